//! Keys and TLS, as their users meet them.

use std::io::Write;
use std::process::{Output, Stdio};

use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::server::{Server, tandem};

const TINY: [&str; 7] = ["--synthetic", "tiny", "--context", "2048", "--memory", "3G", "--exact"];

fn succeed(args: &[&str]) -> String {
    let Output { status, stdout, stderr } = tandem(args).output().expect("running tandem");
    assert!(status.success(), "{args:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("UTF-8")
}

#[test]
fn a_key_is_made_used_over_tls_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, secret, keys) = (path("cert.pem"), path("key.pem"), path("keys/of/tandem.toml"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&secret, made.signing_key.serialize_pem()).unwrap();

    let key = succeed(&["key", "add", "laptop", "--max-concurrent", "2", "--api-keys", &keys]);
    succeed(&["key", "add", "phone", "--api-keys", &keys]);
    let list = succeed(&["key", "list", "--api-keys", &keys]);
    assert!(list.contains("laptop") && list.contains("2 at a time") && !list.contains(key.trim()), "{list}");

    let roots = RootCerts::new_with_certs(&[Certificate::from_der(made.cert.der()).to_owned()]);
    let tls = TlsConfig::builder().root_certs(roots).build();
    let access = ["--api-keys", &keys, "--tls-certificate", &certificate, "--tls-key", &secret];
    let server = Server::start_trusting(tls, &[&TINY[..], &access].concat());
    assert!(server.url().starts_with("https://"));
    assert_eq!(server.get("/v1/models").0, 401);

    let chat = |key: &str| {
        let mut command = tandem(&["chat", "--url", server.url(), "--ca-certificate", &certificate]);
        command.env("TANDEM_API_KEY", key).env("XDG_STATE_HOME", folder.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"/help\n").unwrap();
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        (status.success(), String::from_utf8(stderr).expect("UTF-8"))
    };
    let (connected, said) = chat(key.trim());
    assert!(connected && said.contains("synthetic-tiny"), "{said}");
    let (connected, said) = chat("sk-tandem-wrong");
    assert!(!connected && said.contains("401") && said.contains("TANDEM_API_KEY"), "{said}");

    succeed(&["key", "remove", "laptop", "--api-keys", &keys]);
    let started = std::time::Instant::now();
    while chat(key.trim()).0 {
        assert!(started.elapsed().as_secs() < 60, "a removed key still opens");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}
