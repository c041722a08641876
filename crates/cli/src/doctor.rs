//! `tandem doctor`: what goes wrong in practice on a node, or between two, each finding with the command that mends it.

mod access;
mod check;
mod clock;
mod facts;
mod gpu;
mod machine;
mod memory;
mod pair;
mod rate;
mod roce;
mod serving;
mod verdict;

use anyhow::Result;

use crate::rank::rdma_trouble;
use crate::settings::DoctorArgs;

use check::Findings;
use facts::Facts;
use machine::Machine;

/// Examines this node, or with `--peer` the pair, and prints what was found. Whether all is well.
pub fn run(args: &DoctorArgs) -> Result<bool> {
    let machine = Machine::this();
    let findings = if args.peer.is_some() { pair::examine(args, &machine)? } else { examine(args, &machine) };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        print!("{findings}");
    }
    Ok(findings.all_well())
}

/// This node by itself.
fn examine(args: &DoctorArgs, machine: &Machine) -> Findings {
    let ports = machine.rdma_ports();
    let mut findings = Findings::default();
    findings.push(Facts::of(machine).check());
    findings.extend(gpu::checks(machine, args.model.gpu));
    findings.extend(roce::checks(machine, &ports));
    findings.extend(access::checks(machine, &ports, rdma_trouble()));
    findings.extend(memory::checks(machine));
    findings.push(clock::check(machine));
    findings.extend(serving::checks(args));
    findings
}
