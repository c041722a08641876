//! What `tandem serve` needs beside the machine: its ports, and the model.

use std::net::{TcpListener, ToSocketAddrs};

use anyhow::{Context, Result};
use tandem_model::memory::{human, plan_memory};

use crate::load::{self, Source};
use crate::settings::DoctorArgs;

use super::check::Check;

/// The ports where it would listen, and the model that was named, if one was.
pub fn checks(args: &DoctorArgs) -> Vec<Check> {
    let mut checks = vec![port("port", &format!("{}:{}", args.host, args.port))];
    checks.extend(args.listen.as_ref().map(|listen| port("cluster port", listen)));
    if args.model.model.is_some() {
        checks.extend(model(args));
    }
    checks
}

fn port(name: &'static str, address: &str) -> Check {
    let bound = address.to_socket_addrs().and_then(|found| TcpListener::bind(found.collect::<Vec<_>>().as_slice()));
    match bound {
        Ok(_) => Check::ok(name, format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let port = address.rsplit(':').next().unwrap_or_default();
            let fix = format!("sudo ss -ltnp 'sport = :{port}' (if it is a tandem that serves already, all is well)");
            Check::warn(name, format!("{address} is in use"), fix)
        }
        Err(error) => {
            Check::fail(name, format!("{address}: {error}"), "ip address (it must be an address of this machine)")
        }
    }
}

fn model(args: &DoctorArgs) -> Vec<Check> {
    const NAME: &str = "model";
    let source = match Source::open(&args.model) {
        Ok(source) => source,
        Err(error) => {
            let folder = args.model.model.as_ref().map_or(String::new(), |folder| folder.display().to_string());
            return vec![Check::fail(
                NAME,
                format!("{error:#}"),
                format!("ls -l {folder} (a checkpoint as it was published, all files)"),
            )];
        }
    };
    let config = source.store.config();
    let opened = Check::ok(NAME, format!("{}: every tensor is there, in its shape", source.name));
    vec![opened, fits(&args.model, config).unwrap_or_else(|error| Check::unknown("memory plan", format!("{error:#}")))]
}

fn fits(args: &crate::settings::ModelArgs, config: &tandem_model::Config) -> Result<Check> {
    const NAME: &str = "memory plan";
    let request = load::memory_request(args).context("planning memory")?;
    Ok(match plan_memory(config, &request) {
        Ok(plan) => {
            let (planned, context) = (human(plan.table.total_bytes()), plan.capacity.context);
            let budget = human(plan.table.budget_bytes);
            Check::ok(NAME, format!("{planned} of {budget} that may be used, for conversations of {context} tokens"))
        }
        Err(error) => Check::fail(
            NAME,
            error.to_string(),
            "a smaller --context, --dense mxfp4 or --kv fp8, or share it between two nodes",
        ),
    })
}
