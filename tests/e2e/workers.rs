//! Models computed by worker processes: the same answers, and what happens when a process is lost.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::model::{self, prompt};
use crate::server::{Server, tandem};

/// Requests end within 5 s of a failure; a busy machine may take as long again to say so, an emulated one much longer.
pub fn failed_within() -> Duration {
    Duration::from_secs(if std::env::var_os("TEST_EMULATED").is_some() { 60 } else { 10 })
}

/// Longest wait for something that happens soon.
const PATIENCE: Duration = Duration::from_secs(120);
pub const EXACT: [&str; 7] = ["--exact", "--context", "1024", "--memory", "2G", "--max-streams", "4"];

pub fn start(extra: &[&str]) -> Server {
    Server::start(&[&EXACT[..], &model::arguments(), extra].concat())
}

/// Greedy: ranks add in another order than one process, and a draw may fall on either side of a token of the far tail.
pub fn completion(server: &Server, text: &str) -> Value {
    let mut body =
        json!({"prompt": prompt(text), "max_tokens": 24, "temperature": 0, "ignore_eos": true, "logprobs": 2});
    body["return_token_ids"] = json!(true);
    server.ok("/v1/completions", &body)["choices"][0]["token_ids"].clone()
}

/// To a short and to a longer prompt.
pub fn answers(server: &Server) -> [Value; 2] {
    ["one two three four", "The river was under the green light, and the wheel of music"]
        .map(|text| completion(server, text))
}

/// How activations travel between its nodes.
pub fn transport(server: &Server) -> String {
    let status: Value = serde_json::from_str(&server.get("/status.json").1).unwrap();
    status["link"]["transport"].as_str().expect("a link").to_owned()
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes whose parent is this one, oldest first.
pub fn children(parent: u32) -> Vec<u32> {
    let stat = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let parent_of = |pid: u32| stat(pid)?.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut children: Vec<u32> = pids.filter(|&pid| parent_of(pid) == Some(parent)).collect();
    children.sort();
    children
}

pub fn is_there(pid: u32) -> bool {
    // A process that ended and was not waited for is no more.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub fn send(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Streams a long answer and does something in the middle of it; what came.
pub fn interrupted(server: &Server, meanwhile: impl FnOnce()) -> (String, Duration) {
    let generated = |server: &Server| -> u64 {
        let status: Value = serde_json::from_str(&server.get("/status.json").1).unwrap();
        status["engine"]["generated_tokens"].as_u64().unwrap()
    };
    let before = generated(server);
    let body = json!({"prompt": prompt("Once"), "max_tokens": 900, "ignore_eos": true, "stream": true, "seed": 1});
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| server.post_raw("/v1/completions", body.to_string().as_bytes()));
        wait_until("the stream begins", || generated(server) > before + 3);
        meanwhile();
        let since = Instant::now();
        let (status, text) = stream.join().unwrap();
        assert_eq!(status, 200);
        (text, since.elapsed())
    })
}

/// A stream that was cut off ends with exactly one error, and nothing that looks like a good end.
pub fn assert_one_error(text: &str) {
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let errors: Vec<&Value> = events.iter().filter(|event| !event["error"].is_null()).collect();
    assert_eq!(errors.len(), 1, "{text}");
    assert_eq!(errors[0]["error"]["code"], "engine_failed", "{text}");
    assert!(!events.last().unwrap()["error"].is_null(), "nothing follows the error: {text}");
    assert!(events.iter().all(|event| event["choices"][0]["finish_reason"].is_null()), "{text}");
}

#[test]
fn workers_give_the_answers_of_one_process() {
    let expected = answers(&start(&[]));
    for extra in [
        &["--local-workers"][..],
        &["--local-workers", "--nodes", "2"],
        &["--local-workers", "--nodes", "2", "--experts", "whole", "--link", "tcp", "--pipeline-depth", "2"],
        &["--local-workers", "--nodes", "4"],
    ] {
        // The small model has two key heads.
        if extra.contains(&"4") && !model::arguments().is_empty() {
            continue;
        }
        let server = start(extra);
        assert_eq!(answers(&server), expected, "{extra:?}");
        let status: Value = serde_json::from_str(&server.get("/status.json").1).unwrap();
        let nodes = extra.iter().find_map(|word| word.parse::<usize>().ok()).unwrap_or(1);
        assert_eq!(status["nodes"].as_array().unwrap().len(), nodes, "{status}");
        assert_eq!(status["link"].is_null(), nodes == 1, "{status}");
        if nodes == 2 {
            let measured = |name: &str| status["link"][name].as_f64().unwrap();
            assert!(measured("exchange_us") > 0.0 && measured("bytes_per_s") > 0.0, "{status}");
            let top = tandem(&["top", "--once", "--url", server.url()]).output().unwrap();
            assert!(String::from_utf8_lossy(&top.stdout).contains("for a token's exchange"), "{top:?}");
        }
    }
}

/// Where a variable says that there is a device.
#[test]
fn workers_that_exchange_by_rdma_give_the_same_and_come_back() {
    if std::env::var_os("TANDEM_TEST_RDMA").is_none() {
        return eprintln!("skipped: TANDEM_TEST_RDMA is not set (.ci/run rdma boots a machine with a device)");
    }
    let expected = answers(&start(&[]));
    for extra in [&["--pipeline-depth", "1"][..], &["--experts", "whole", "--pipeline-depth", "2"]] {
        let server = start(&[&["--local-workers", "--nodes", "2", "--link", "rdma"], extra].concat());
        assert_eq!(answers(&server), expected, "{extra:?}");
        assert!(transport(&server).contains("RDMA"), "{}", transport(&server));
        let workers = children(server.pid());
        let (text, took) = interrupted(&server, || send("-KILL", workers[1]));
        assert_one_error(&text);
        assert!(took < failed_within(), "{took:?}");
        server.wait_ready();
        assert_eq!(answers(&server), expected, "{extra:?}, with new workers");
    }
}

#[test]
fn a_worker_that_is_lost_fails_open_requests_once_and_is_replaced() {
    let server = start(&["--local-workers", "--nodes", "2"]);
    let expected = completion(&server, "one two three four");
    for (signal, rank) in [("-KILL", 0), ("-KILL", 1), ("-STOP", 1), ("-STOP", 0)] {
        let workers = children(server.pid());
        assert_eq!(workers.len(), 2);
        let (text, took) = interrupted(&server, || send(signal, workers[rank]));
        assert_one_error(&text);
        assert!(took < failed_within(), "{signal} of rank {rank}: {took:?}");
        assert_eq!(server.get("/health").0, 200, "the edge stays up");
        server.wait_ready();
        assert_eq!(completion(&server, "one two three four"), expected, "{signal} of rank {rank}");
        assert!(workers.iter().all(|&pid| !is_there(pid)), "all are new");
    }
}

#[test]
fn an_idle_worker_that_is_lost_is_replaced_before_anybody_asks() {
    let server = start(&["--local-workers"]);
    let expected = completion(&server, "one two three");
    let before = children(server.pid());
    send("-KILL", before[0]);
    server.logged("requests are served again");
    assert_ne!(children(server.pid()), before);
    assert_eq!(completion(&server, "one two three"), expected);
}

#[test]
fn no_worker_outlives_its_server() {
    for signal in ["-KILL", "-INT"] {
        let mut server = start(&["--local-workers", "--nodes", "2"]);
        let workers = children(server.pid());
        assert_eq!(workers.len(), 2);
        send(signal, server.pid());
        server.exit_code();
        wait_until("the workers end", || workers.iter().all(|&pid| !is_there(pid)));
    }
}

/// A node that others can join, and what they need to know.
pub struct Meeting {
    pub folder: TempDir,
    pub address: String,
    /// What names the model to the coordinator.
    pub model: Vec<String>,
}

impl Meeting {
    pub fn new() -> Self {
        // Any port will do that is free for the moment.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let model = model::arguments().into_iter().map(str::to_owned).collect();
        Self { folder: tempfile::tempdir().unwrap(), address: free.to_string(), model }
    }

    pub fn token(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// Starts the coordinator, and `beside` once it listens.
    pub fn serve<T: Send>(&self, beside: impl FnOnce() -> T + Send) -> (Server, T) {
        self.serve_with(&[], beside)
    }

    /// The same, with further arguments.
    pub fn serve_with<T: Send>(&self, extra: &[&str], beside: impl FnOnce() -> T + Send) -> (Server, T) {
        let token = self.token();
        let args = ["--nodes", "2", "--listen", &self.address, "--token-file", token.to_str().unwrap()];
        let model: Vec<&str> = self.model.iter().map(String::as_str).collect();
        let args = [&EXACT[..], &args, &model, extra].concat();
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| {
                wait_until("it listens", || TcpStream::connect(&self.address).is_ok());
                beside()
            });
            let server = Server::start(&args);
            (server, beside.join().unwrap())
        })
    }

    pub fn worker(&self, token: &Path) -> Worker {
        self.worker_with(token, &[])
    }

    pub fn worker_with(&self, token: &Path, extra: &[&str]) -> Worker {
        Worker(self.command(token, extra).stderr(Stdio::piped()).spawn().expect("starting a worker"))
    }

    /// What starts a worker.
    pub fn command(&self, token: &Path, extra: &[&str]) -> Command {
        let token = token.to_str().unwrap();
        let args = ["worker", "--join", &self.address, "--token-file", token, "--threads", "1", "--memory", "1G"];
        tandem(&[&args[..], extra].concat())
    }
}

/// A worker of "another machine"; killed when dropped.
pub struct Worker(pub Child);

impl Worker {
    /// Waits for it to end by itself: exit code and what it said.
    pub fn end(&mut self) -> (Option<i32>, String) {
        let mut stderr = self.0.stderr.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut said = String::new();
            stderr.read_to_string(&mut said).map(|_| said)
        });
        wait_until("it did not end by itself", || self.0.try_wait().unwrap().is_some());
        (self.0.wait().unwrap().code(), reader.join().unwrap().unwrap())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn write_token(path: &Path, digit: &str, mode: u32) {
    fs::write(path, digit.repeat(64)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn another_node_joins_leaves_and_comes_back() {
    // The demonstration model in any case: it comes from no folder.
    let meeting = Meeting { model: Vec::new(), ..Meeting::new() };
    let (server, worker) = meeting.serve(|| {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 500], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff"]
        {
            let mut stream = TcpStream::connect(&meeting.address).unwrap();
            // It may be refused before all is sent.
            let _ = stream.write_all(garbage);
        }
        let wrong = meeting.folder.path().join("wrong");
        write_token(&wrong, "a", 0o600);
        let (code, said) = meeting.worker(&wrong).end();
        assert_eq!(code, Some(1));
        assert!(said.contains("does not know the token"), "{said}");
        write_token(&wrong, "a", 0o644);
        let (code, said) = meeting.worker(&wrong).end();
        assert_eq!(code, Some(1));
        assert!(said.contains("chmod 600"), "{said}");
        let (code, said) = meeting.worker_with(&meeting.token(), &["--model", "/no/such/folder"]).end();
        assert_eq!(code, Some(1));
        assert!(said.contains("--model"), "{said}");
        meeting.worker(&meeting.token())
    });
    server.logged("refused 127.0.0.1");
    let expected = completion(&server, "one two three four");
    let (text, took) = interrupted(&server, || send("-KILL", worker.0.id()));
    assert_one_error(&text);
    assert!(took < failed_within(), "{took:?}");
    assert_eq!(server.get("/ready").0, 503);
    assert_eq!(server.get("/health").0, 200);
    let again = meeting.worker(&meeting.token());
    server.wait_ready();
    assert_eq!(completion(&server, "one two three four"), expected);

    // The coordinator is lost, comes back, and finds its worker dialling.
    drop(server);
    let (server, ()) = meeting.serve(|| ());
    assert_eq!(completion(&server, "one two three four"), expected);
    assert!(is_there(again.0.id()));
}

#[test]
fn what_makes_no_sense_of_nodes_is_refused() {
    for (args, named) in [
        (&["--nodes", "2"][..], "--local-workers"),
        (&["--experts", "whole"], "--nodes"),
        (&["--listen", "127.0.0.1:0"], "--nodes"),
        (&["--nodes", "2", "--local-workers", "--synthetic", "tiny", "--device", "cuda"], "cuda"),
        (&["--nodes", "3", "--local-workers"], "3 ranks"),
        (&["--nodes", "2", "--local-workers", "--degrade"], "--listen"),
        (&["--nodes", "2", "--listen", "127.0.0.1:0", "--degrade-after", "5s"], "--degrade"),
        (&["--nodes", "2", "--listen", "127.0.0.1:0", "--cluster-tls-key", "key.pem"], "--cluster-tls-certificate"),
    ] {
        let all = [&["serve", "--port", "0", "--ollama-port", "0"], args].concat();
        let out = tandem(&all).output().expect("running tandem");
        let message = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {message}");
        assert!(message.contains(named), "{args:?}: {message}");
    }
    let out = tandem(&["serve", "--nodes", "8", "--local-workers"]).output().expect("running tandem");
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(2) && message.contains("8 is not in 1..=4"), "{message}");
}
