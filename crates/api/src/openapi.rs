//! `GET /openapi.json`: all routes, as OpenAPI describes them.
//!
//! The routes of each protocol are described in a file of `openapi/`, with their requests and answers. What is the same
//! for all of them is added here: errors in the shape of the protocol, and keys, where the server wants any. A test holds
//! the document to the routes that there are.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::access;
use crate::protocol::Protocol;
use crate::settings::ApiSettings;
use crate::state::ApiState;

const FRAGMENTS: [&str; 5] = [
    include_str!("../openapi/openai.json"),
    include_str!("../openapi/responses.json"),
    include_str!("../openapi/anthropic.json"),
    include_str!("../openapi/ollama.json"),
    include_str!("../openapi/tandem.json"),
];

/// The document of this server.
pub(crate) async fn document(State(state): State<ApiState>) -> Response {
    let text = build(state.settings()).to_string();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn build(settings: &ApiSettings) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for fragment in FRAGMENTS {
        // They are part of the program, and a test reads them.
        let Ok(Value::Object(mut fragment)) = serde_json::from_str(fragment) else { continue };
        take(&mut fragment["paths"], &mut paths);
        take(&mut fragment["components"]["schemas"], &mut schemas);
    }
    for (path, item) in &mut paths {
        for operation in item.as_object_mut().into_iter().flat_map(|item| item.values_mut()) {
            complete(operation, path, settings);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tandem",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Serves gpt-oss. Fields that are not listed are ignored; null is the same as leaving a field out.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    })
}

fn take(from: &mut Value, into: &mut Map<String, Value>) {
    if let Value::Object(entries) = from.take() {
        into.extend(entries);
    }
}

/// Adds what an operation shares with others.
fn complete(operation: &mut Value, path: &str, settings: &ApiSettings) {
    let schema = match Protocol::of_path(path) {
        Protocol::OpenAi | Protocol::Responses => "Error",
        Protocol::Anthropic => "AnthropicError",
        Protocol::Ollama => "OllamaError",
    };
    let content = json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}});
    for (status, description) in [
        ("4XX", "Something is wrong with the request, or it may not be sent."),
        ("5XX", "The server cannot serve it: now, with `Retry-After`, or at all."),
    ] {
        operation["responses"][status] = json!({"description": description, "content": content});
    }
    operation["security"] = match settings.keys.is_some() && access::needs_key(path, settings) {
        true => json!([{"bearer": []}, {"x-api-key": []}]),
        false => json!([]),
    };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The first text in quotes after each mention of `mark` in our sources.
    fn quoted_after(mark: &str, folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                quoted_after(mark, &path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("openapi.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.extend(text.split(mark).skip(1).filter_map(|rest| rest.split('"').nth(1)).map(str::to_string));
            }
        }
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let mut routes = Vec::new();
        quoted_after(".route(", &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut routes);
        let routes: BTreeSet<String> = routes.into_iter().map(|route| route.replace("{*", "{")).collect();
        assert!(routes.len() > 20, "{routes:?}");
        let document = build(&ApiSettings::default());
        let described: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        let missing: Vec<_> = routes.difference(&described).collect();
        assert!(missing.is_empty(), "not in openapi/*.json: {missing:?}");
        // Routes that are nested below a path are described in full.
        let unknown = |path: &&String| !routes.contains(path.strip_prefix("/anthropic").unwrap_or(path));
        let extra: Vec<_> = described.difference(&routes).filter(unknown).collect();
        assert!(extra.is_empty(), "there are no such routes: {extra:?}");
    }

    #[test]
    fn what_is_referred_to_is_there() {
        let document = build(&ApiSettings::default());
        let text = document.to_string();
        let names: BTreeSet<&str> =
            text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(names.len() > 20);
        for name in names {
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
        for fragment in FRAGMENTS {
            serde_json::from_str::<Value>(fragment).unwrap();
        }
    }
}
