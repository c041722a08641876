//! The `tandem` program.

mod bench;
mod bench_link;
mod chat;
mod demo;
mod doctor;
mod fingerprint;
mod inspect;
mod key;
mod load;
mod nodes;
mod rank;
mod remote;
mod roofline;
mod serve;
mod settings;
mod top;
mod worker;

use std::io::{IsTerminal, Write, stderr};
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use tracing_subscriber::EnvFilter;

use settings::{Action, Cli};

/// Settings that cannot be understood.
const EXIT_USAGE: u8 = 2;
/// Anything else that prevents or ends the work.
const EXIT_FAILURE: u8 = 1;

fn main() -> ExitCode {
    let cli = match Cli::from_process() {
        Ok(cli) => cli,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    let quiet = !matches!(cli.action, Action::Serve(_) | Action::Worker(_));
    let level = cli.log.as_deref().unwrap_or(if quiet { "warn" } else { "info" });
    // The server that started a worker writes its lines into a log of its own.
    let bare = matches!(&cli.action, Action::Worker(worker) if worker.child_of.is_some());
    if let Err(error) = start_log(level, bare) {
        return fail(&error, EXIT_USAGE);
    }
    let done = match &cli.action {
        Action::Serve(args) => serve::run(args, cli.log.as_deref()),
        Action::Worker(args) => worker::run(args),
        Action::Chat(args) => chat::run(args),
        Action::Bench(args) if args.link => bench_link::run(args),
        Action::Bench(args) => bench::run(args),
        Action::Inspect(args) => inspect::run(args),
        Action::Top(args) => top::run(args),
        Action::Doctor(args) => match doctor::run(args) {
            // What is to be mended has been printed.
            Ok(false) => return ExitCode::from(EXIT_FAILURE),
            done => done.map(|_| ()),
        },
        Action::Key(args) => key::run(args),
        Action::LinkPeer(args) => bench_link::run_peer(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, EXIT_FAILURE),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    // A log that takes nothing, say on a full disk, is no reason to panic.
    let _ = writeln!(stderr(), "tandem: {error:#}");
    ExitCode::from(code)
}

/// Logs to standard error; standard output belongs to what was asked for.
fn start_log(level: &str, bare: bool) -> Result<()> {
    let filter = EnvFilter::try_new(level).map_err(|error| anyhow!("--log {level}: {error}"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(stderr);
    // Where standard error takes nothing, on a full disk, a complaint to it about that would panic whoever logs.
    let log = log.log_internal_errors(false);
    if bare {
        log.with_ansi(false).without_time().init();
    } else {
        log.with_ansi(stderr().is_terminal()).init();
    }
    Ok(())
}
