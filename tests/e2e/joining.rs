//! What a node must have to take part: the model, the same build, and trust where TLS is spoken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server::{Server, tandem};
use crate::workers::{Meeting, Worker, completion};

const PROMPT: &str = "one two three four";

/// The demonstration model as a checkpoint folder.
fn checkpoint(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    fs::create_dir(&model).unwrap();
    tandem_testkit::write_demo(&model).unwrap();
    model
}

/// The same with other weights.
fn another_checkpoint(model: &Path, folder: &Path) -> PathBuf {
    let other = folder.join("other");
    fs::create_dir(&other).unwrap();
    for entry in fs::read_dir(model).unwrap() {
        let name = entry.unwrap().file_name();
        fs::copy(model.join(&name), other.join(&name)).unwrap();
    }
    let weights = other.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // Eight bytes of length, a header, then the first tensor's first row.
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header] ^= 1;
    fs::write(&weights, bytes).unwrap();
    other
}

/// This very program with another hash of its sources.
fn another_build(folder: &Path) -> PathBuf {
    let build = env!("BUILD_OF_TANDEM").as_bytes();
    let mut other = build.to_vec();
    let last = other.last_mut().unwrap();
    *last = if *last == b'0' { b'1' } else { b'0' };
    let mut program = fs::read(tandem(&[]).get_program()).unwrap();
    let places: Vec<usize> =
        program.windows(build.len()).enumerate().filter(|(_, some)| *some == build).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the program holds its hash");
    for at in places {
        program[at..at + build.len()].copy_from_slice(&other);
    }
    let path = folder.join("tandem");
    fs::write(&path, program).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_node_that_lacks_what_it_needs_says_so_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let model = checkpoint(folder.path());
    let other = another_checkpoint(&model, folder.path());
    let meeting = Meeting { model: vec![model.to_str().unwrap().to_owned()], ..Meeting::new() };
    let token = meeting.token();
    let refused = |mut worker: Worker, named: &[&str]| {
        let (code, said) = worker.end();
        assert_eq!(code, Some(1), "{said}");
        named.iter().for_each(|part| assert!(said.contains(part), "{said}"));
    };
    let (server, _worker) = meeting.serve(|| {
        refused(meeting.worker_with(&token, &["--model", "/no/such/folder"]), &["/no/such/folder"]);
        let differs = ["differs from the coordinator's", other.to_str().unwrap(), "fingerprint"];
        refused(meeting.worker_with(&token, &["--model", other.to_str().unwrap()]), &differs);
        let mut command = Command::new(another_build(folder.path()));
        command.args(meeting.command(&token, &[]).get_args()).stdin(Stdio::null()).stderr(Stdio::piped());
        refused(Worker(command.spawn().unwrap()), &["another build", env!("BUILD_OF_TANDEM")]);
        meeting.worker(&token)
    });
    server.logged("/no/such/folder");
    server.logged("differs from the coordinator's");
    server.logged("another build");
    assert!(completion(&server, PROMPT).is_array());
}

#[test]
fn nodes_meet_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_string()]).unwrap();
    let (certificate, key) = (folder.path().join("cluster.pem"), folder.path().join("cluster-key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let meeting = Meeting::new();
    let tls = ["--cluster-tls-certificate", certificate, "--cluster-tls-key", key];
    let (server, _workers) = meeting.serve_with(&tls, || {
        // The first one speaks plain text and stays outside.
        let plain = meeting.worker(&meeting.token());
        (plain, meeting.worker_with(&meeting.token(), &["--cluster-ca-certificate", certificate]))
    });
    server.logged("--cluster-ca-certificate FILE");
    server.logged("self-test: ");
    assert!(completion(&server, PROMPT).is_array());
}

#[test]
fn plain_text_beyond_this_machine_is_warned_of() {
    let meeting = Meeting::new();
    let token = meeting.token();
    let args = ["--nodes", "2", "--listen", "0.0.0.0:0", "--token-file", token.to_str().unwrap()];
    Server::start_loading(&args).logged("--cluster-tls-certificate");
}
