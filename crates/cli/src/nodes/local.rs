//! The workers that are processes of this machine.

use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use tandem_cluster::{Local, Token};

use super::word;
use crate::load::{self, Place};
use crate::settings::{Device, ModelArgs, ServeArgs};

/// Of this machine's workers: all, or the first rank's alone.
pub(super) fn local(args: &ServeArgs, log: Option<&str>, folder: &Path) -> Result<Local> {
    let count = if args.nodes.local_workers { usize::from(args.nodes.nodes) } else { 1 };
    let socket = folder.join("control");
    let listener = UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
    let token_file = folder.join("token");
    let token = Token::open_or_create(&token_file)?;
    let flags = child_flags(&args.model, count, &socket, &token_file, log)?;
    let gpus = matches!(Place::choose(&args.model)?, Place::Cuda);
    let command = move |index: usize| {
        // This very program, even if the file has been replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("tandem").args(&flags);
        if gpus {
            command.args(["--gpu", &index.to_string()]);
        }
        let ours = std::env::vars_os().map(|(name, _)| name);
        for name in ours.filter(|name| name.to_string_lossy().starts_with("TANDEM_")) {
            command.env_remove(name);
        }
        // An interrupt at the terminal is for the server, which lets open requests finish.
        command.process_group(0);
        command
    };
    Ok(Local { count, listener, token, command: Box::new(command) })
}

/// What this machine's workers are told on their command line: the share of the machine that is each one's.
fn child_flags(
    model: &ModelArgs,
    count: usize,
    socket: &Path,
    token_file: &Path,
    log: Option<&str>,
) -> Result<Vec<String>> {
    let place = Place::choose(model)?;
    let (device, share) = match place {
        Place::Cpu => (Device::Cpu, count as u64),
        // Each has a GPU of its own.
        Place::Cuda => (Device::Cuda, 1),
    };
    let threads = (load::threads(model) / count).max(1);
    let mut flags = vec![
        "worker".into(),
        format!("--join=unix:{}", socket.display()),
        format!("--token-file={}", token_file.display()),
        format!("--child-of={}", std::process::id()),
        format!("--device={}", word(device)),
        format!("--memory={}", load::budget(model)? / share),
        format!("--threads={threads}"),
    ];
    flags.extend(model.isa.iter().map(|isa| format!("--isa={isa}")));
    flags.extend(log.map(|log| format!("--log={log}")));
    Ok(flags)
}
