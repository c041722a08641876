//! The real binary, started for a test.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::tls::TlsConfig;

/// Longest wait for a server to be ready; generous, as machines are busy.
const READY_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// `tandem` with these arguments, and none of the caller's settings.
pub fn tandem(args: &[&str]) -> Command {
    // Elsewhere than where it was built, a variable says where the program is.
    let program = std::env::var_os("TEST_TANDEM").unwrap_or_else(|| env!("CARGO_BIN_EXE_tandem").into());
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TANDEM_") {
            command.env_remove(name);
        }
    }
    command
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    log: Mutex<Receiver<String>>,
    url: String,
    /// Where gRPC is served, if it is.
    grpc_url: Option<String>,
    agent: ureq::Agent,
}

impl Server {
    /// Starts `tandem serve --port 0` with further arguments and waits until it is ready. It leaves Ollama's port alone
    /// unless these name one.
    pub fn start(args: &[&str]) -> Self {
        Self::start_trusting(TlsConfig::default(), args)
    }

    /// The same, where the server proves its name to a client that trusts so.
    pub fn start_trusting(tls: TlsConfig, args: &[&str]) -> Self {
        let server = Self::spawn(tls, args);
        server.wait_ready();
        server
    }

    /// The same, while the model may still be loading.
    pub fn start_loading(args: &[&str]) -> Self {
        Self::spawn(TlsConfig::default(), args)
    }

    fn spawn(tls: TlsConfig, args: &[&str]) -> Self {
        let ollama = if args.contains(&"--ollama-port") { &[][..] } else { &["--ollama-port", "0"] };
        let all = [&["serve", "--port", "0"], ollama, args].concat();
        let mut child = tandem(&all).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starting tandem");
        let stderr = child.stderr.take().expect("piped");
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Kept for whoever reads the test's output; the receiver may be gone.
                eprintln!("  server: {line}");
                let _ = sender.send(line);
            }
        });
        let url = logged_url(&log, "");
        let grpc_url = args.contains(&"--grpc-port").then(|| logged_url(&log, "gRPC"));
        Self { child, url, grpc_url, agent: agent(tls), log: Mutex::new(log) }
    }

    /// The same as [`Self::start`], with a log that goes to a file and is not read.
    pub fn start_logging_to(file: File, args: &[&str]) -> Self {
        // Any port will do that is free for the moment.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
        let port = address.port().to_string();
        let all = [&["serve", "--port", &port, "--ollama-port", "0"], args].concat();
        let child = tandem(&all).stdout(Stdio::null()).stderr(file).spawn().expect("starting tandem");
        let log = Mutex::new(channel().1);
        let mut server =
            Self { child, url: format!("http://{address}"), grpc_url: None, agent: agent(TlsConfig::default()), log };
        let deadline = Instant::now() + READY_TIMEOUT;
        while TcpStream::connect(address).is_err() {
            assert!(server.child.try_wait().expect("waiting for tandem").is_none(), "tandem ended");
            assert!(Instant::now() < deadline, "it does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        server.wait_ready();
        server
    }

    /// Waits until requests are served.
    pub fn wait_ready(&self) {
        let deadline = Instant::now() + READY_TIMEOUT;
        while self.get("/ready").0 != 200 {
            assert!(Instant::now() < deadline, "not ready in {READY_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The same server by another of its addresses.
    pub fn get_from(&self, url: &str) -> (u16, String) {
        let mut response = self.agent.get(url).call().expect("an answer");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("a body"))
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it listens for gRPC; `--grpc-port` must be among its arguments.
    pub fn grpc_url(&self) -> &str {
        self.grpc_url.as_deref().expect("--grpc-port")
    }

    /// Asks it to end.
    pub fn interrupt(&self) {
        let sent = Command::new("kill").args(["-INT", &self.pid().to_string()]).status().expect("kill");
        assert!(sent.success());
    }

    /// Waits for a line of the log, not seen before, with this in it.
    pub fn logged(&self, part: &str) -> String {
        let deadline = Instant::now() + READY_TIMEOUT;
        let log = self.log.lock().expect("a log");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = log.recv_timeout(left).unwrap_or_else(|_| panic!("no line with {part}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the process to end by itself; its exit code.
    pub fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().expect("waiting for tandem") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "tandem did not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Status and body of a GET.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.get_from(&format!("{}{path}", self.url))
    }

    /// Status and body of a POST of raw bytes.
    pub fn post_raw(&self, path: &str, body: &[u8]) -> (u16, String) {
        let request = self.agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        let mut response = request.send(body).expect("an answer");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("a body"))
    }

    /// Status and JSON body of a POST.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.post_raw(path, body.to_string().as_bytes());
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}")))
    }

    /// JSON body of a POST that must succeed.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The events of a streamed answer, `[DONE]` checked and left out.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, text) = self.post_raw(path, body.to_string().as_bytes());
        assert_eq!(status, 200, "{text}");
        let mut events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{text}");
        events.into_iter().map(|event| serde_json::from_str(event).expect("JSON events")).collect()
    }
}

fn agent(tls: TlsConfig) -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(ANSWER_TIMEOUT));
    config.tls_config(tls).build().into()
}

/// The address in the next line of the log that names one and speaks of `what`.
fn logged_url(log: &Receiver<String>, what: &str) -> String {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = log.recv_timeout(left).expect("a log that names the address");
        if let Some(url) = line
            .split_whitespace()
            .filter(|_| line.contains(what))
            .find(|word| word.starts_with("http://") || word.starts_with("https://"))
        {
            return url.to_owned();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
