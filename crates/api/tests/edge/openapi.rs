//! The OpenAPI document, held against the routes.

use serde_json::{Value, json};
use tandem_api::{ApiSettings, KeyFile, KeyFileError, KeyLimits, Keyring};
use tandem_engine::EngineSettings;

use crate::edge::Edge;

#[tokio::test]
async fn every_operation_is_there() {
    let edge = Edge::start();
    let document = edge.get("/openapi.json").await.ok();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let url = path.replace("{id}", "some").replace("{name}", "theme.css");
            let answer = edge.request(&method.to_uppercase(), &url, "{}").await;
            let text = String::from_utf8_lossy(&answer.body);
            assert!(answer.status != 405 && !text.contains("unknown_url"), "{method} {path}: {} {text}", answer.status);
        }
    }
}

#[tokio::test]
async fn keys_are_asked_for_where_they_are_needed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let add = |keys: &mut KeyFile| Ok::<_, KeyFileError>(keys.add("x", KeyLimits::default()).unwrap());
    KeyFile::update(&file, add).unwrap();
    let settings = ApiSettings { keys: Some(Keyring::open(&file).unwrap()), ..ApiSettings::default() };
    let edge = Edge::with(settings, Edge::capacity(), EngineSettings::default());
    let document = edge.get("/openapi.json").await.ok();
    for (path, item) in document["paths"].as_object().unwrap() {
        let url = path.replace("{id}", "some").replace("{name}", "theme.css");
        for (method, operation) in item.as_object().unwrap() {
            let is_refused = edge.request(&method.to_uppercase(), &url, "{}").await.status == 401;
            let is_locked = operation["security"].as_array().is_some_and(|security| !security.is_empty());
            assert_eq!(is_refused, is_locked, "{method} {path}");
        }
    }
    assert_eq!(document["paths"]["/health"]["get"]["security"], json!([]));
    assert!(document["components"]["securitySchemes"]["bearer"] != Value::Null);
}
