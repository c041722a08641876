//! Two nodes and the cable between them, which are network namespaces of this machine; and full disks, which are file systems in
//! its memory. Where kernel, programs or rights for it are lacking, the tests say so and pass.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::model::{self, prompt};
use crate::server::{Server, tandem};
use crate::workers::{
    EXACT, Meeting, Worker, answers, assert_one_error, children, failed_within, interrupted, is_there, send, start,
    wait_until,
};

/// Set where a test is in namespaces of its own.
const INSIDE: &str = "TEST_INSIDE_NAMESPACES";
/// The two ends of the cable.
const ADDRESSES: [&str; 2] = ["10.79.0.1", "10.79.0.2"];

#[test]
fn a_cable_is_pulled_and_put_back() {
    let Some(nodes) = Nodes::new("a_cable_is_pulled_and_put_back") else { return };
    let expected = answers(&start(&[]));
    let (server, worker) = nodes.serve(&[]);
    assert_eq!(answers(&server), expected);
    let (text, took) = interrupted(&server, || run("ip", &["link", "set", "cable0", "down"]));
    assert_one_error(&text);
    assert!(took < failed_within(), "{took:?}");
    assert_eq!((server.get("/ready").0, server.get("/health").0), (503, 200));
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": prompt("Once"), "max_tokens": 1}));
    assert_eq!(status, 503, "{answer}");
    run("ip", &["link", "set", "cable0", "up"]);
    server.wait_ready();
    assert_eq!(answers(&server), expected);
    assert!(is_there(worker.0.id()), "it came back by itself");
}

#[test]
fn a_bad_network_changes_no_token() {
    let Some(nodes) = Nodes::new("a_bad_network_changes_no_token") else { return };
    let netem = ["qdisc", "add", "dev", "cable0", "root", "netem", "delay", "2ms", "1ms", "loss", "1%"];
    if !succeeds(Command::new("tc").args(netem)) {
        assert!(std::env::var_os("TEST_NETEM").is_none(), "this kernel was to have netem");
        return eprintln!("skipped: this kernel has no netem (.ci/run rdma boots one that has)");
    }
    assert!(succeeds(nodes.on_other(&Command::new("tc")).args(netem.map(|word| word.replace("cable0", "cable1")))));
    let expected = answers(&start(&[]));
    for extra in
        [&["--pipeline-depth", "2", "--experts", "whole", "--prefill-chunk", "7"][..], &["--pipeline-depth", "1"]]
    {
        let (server, _worker) = nodes.serve(extra);
        assert_eq!(answers(&server), expected, "{extra:?}");
    }
    let statistics = Command::new("tc").args(["-s", "qdisc", "show", "dev", "cable0"]).output().unwrap().stdout;
    println!("{}", String::from_utf8_lossy(&statistics));
}

/// What cannot be written is named; what can do without goes on.
#[test]
fn a_full_disk_is_named_or_passed_over() {
    if !is_inside("a_full_disk_is_named_or_passed_over") {
        return;
    }
    let disk = FullDisk::new();
    let token = disk.path().join("token");
    let node = ["--nodes", "2", "--listen", "127.0.0.1:0", "--token-file", token.to_str().unwrap()];
    let said = refusal(tandem(&[&["serve", "--port", "0", "--ollama-port", "0"], &node[..]].concat()));
    assert!(said.contains(token.to_str().unwrap()) && said.contains("No space left"), "{said}");
    assert!(!token.exists(), "half a token would be refused the next time");

    let mut local = tandem(&["serve", "--port", "0", "--ollama-port", "0", "--local-workers"]);
    local.env("XDG_RUNTIME_DIR", disk.path());
    let said = refusal(local);
    assert!(said.contains(disk.path().to_str().unwrap()) && said.contains("No space left"), "{said}");

    let log = File::create(disk.path().join("log")).expect("a file without content");
    let server = Server::start_logging_to(log, &[&EXACT[..], &model::arguments(), &["--local-workers"]].concat());
    let expected = answers(&server);
    let workers = children(server.pid());
    send("-KILL", workers[0]);
    let short = json!({"prompt": prompt("Once"), "max_tokens": 1});
    wait_until("it is replaced", || !is_there(workers[0]) && server.post("/v1/completions", &short).0 == 200);
    assert_eq!(answers(&server), expected, "with a log that takes nothing");
    assert_eq!(fs::metadata(disk.path().join("log")).unwrap().len(), 0, "the disk is full indeed");
}

/// What a program says that ends with an error.
fn refusal(mut program: Command) -> String {
    let (code, said) = Worker(program.stderr(Stdio::piped()).spawn().expect("running tandem")).end();
    assert_eq!(code, Some(1), "{said}");
    said
}

/// Whether this process has namespaces of its own. If not, runs the test of that name in a process that has.
fn is_inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return true;
    }
    // As root, or as an ordinary user where those may be root of a namespace.
    let ways = [&["-n", "-m"][..], &["-r", "-n", "-m"]];
    let mut possible = ways.into_iter().filter(|way| succeeds(Command::new("unshare").args(*way).args(["ip", "-V"])));
    let Some(way) = possible.next() else {
        eprintln!("skipped: no namespaces can be had here, or there is no ip program");
        return false;
    };
    let program = std::env::current_exe().expect("this program");
    let mut inside = Command::new("unshare");
    inside.args(way).arg(program).args(["--exact", &format!("namespaces::{name}"), "--nocapture"]).env(INSIDE, "1");
    let out = inside.stderr(Stdio::inherit()).output().expect("running this test");
    let said = String::from_utf8_lossy(&out.stdout);
    println!("{said}");
    assert!(out.status.success() && said.contains("test result: ok. 1 passed"), "it failed in its namespaces");
    false
}

/// This process's namespace, another, and a cable between the two. Both vanish with their processes.
struct Nodes {
    meeting: Meeting,
    other: Child,
}

impl Nodes {
    /// None, and a word about it, where there can be none.
    fn new(test: &str) -> Option<Self> {
        if !is_inside(test) {
            return None;
        }
        let mut holder = Command::new("unshare");
        holder.args(["-n", "sh", "-c", "echo; exec sleep 3600"]).stdout(Stdio::piped());
        let mut other = holder.spawn().expect("a process with a namespace");
        // It has its namespace when it says something.
        other.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("a word");
        let nodes = Self { meeting: Meeting { address: format!("{}:7117", ADDRESSES[0]), ..Meeting::new() }, other };
        nodes.connect();
        Some(nodes)
    }

    fn connect(&self) {
        let pid = self.other.id().to_string();
        run("ip", &["link", "add", "cable0", "type", "veth", "peer", "name", "cable1"]);
        run("ip", &["link", "set", "cable1", "netns", &pid]);
        for (end, address) in ADDRESSES.iter().enumerate() {
            let cable = format!("cable{end}");
            for words in [
                &["link", "set", "lo", "up"][..],
                &["address", "add", &format!("{address}/24"), "dev", &cable],
                &["link", "set", &cable, "up"],
            ] {
                let mut ip = Command::new("ip");
                ip.args(words);
                assert!(succeeds(&mut if end == 0 { ip } else { self.on_other(&ip) }), "ip {words:?}");
            }
        }
    }

    /// The same program, on the other node.
    fn on_other(&self, program: &Command) -> Command {
        let mut there = Command::new("nsenter");
        there.args(["-t", &self.other.id().to_string(), "-n"]).arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => there.env(name, value),
                None => there.env_remove(name),
            };
        }
        there
    }

    /// The server here, a worker there.
    fn serve(&self, extra: &[&str]) -> (Server, Worker) {
        let extra = [&["--link", "tcp"], extra].concat();
        self.meeting.serve_with(&extra, || {
            let mut worker = self.on_other(&self.meeting.command(&self.meeting.token(), &[]));
            Worker(worker.stdin(Stdio::null()).spawn().expect("starting a worker"))
        })
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

/// A file system without room for content, and with room for one more name.
struct FullDisk(tempfile::TempDir);

impl FullDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=16k,nr_inodes=3", "tmpfs", path]);
        fs::write(folder.path().join("filler"), [0; 64 << 10]).expect_err("more than there is room for");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        // The namespace, and with it the mount, ends with this process anyway.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn run(program: &str, args: &[&str]) {
    assert!(succeeds(Command::new(program).args(args)), "{program} {args:?}");
}

/// Whether a program can be started and succeeds. What it complains about is shown where that matters.
fn succeeds(program: &mut Command) -> bool {
    match program.stdin(Stdio::null()).output() {
        Ok(out) => {
            eprint!("{}", String::from_utf8_lossy(&out.stderr));
            out.status.success()
        }
        Err(_) => false,
    }
}
