//! Whether this user's processes may use RDMA devices.

use std::fs::OpenOptions;

use tandem_link::{RdmaPort, STRIPES_MAX, Settings};

use super::check::Check;
use super::machine::Machine;

/// Queues of a device beside the messages' memory: some pages for each of its queue pairs.
const QUEUES_BYTES: u64 = 1 << 20;
const DEVICES: &str = "dev/infiniband";

/// The device files, the limit of locked memory, and whether a device opens in fact: `trouble` is what stood in the way. Nothing
/// of it matters where there is no device.
pub fn checks(machine: &Machine, ports: &[RdmaPort], trouble: Option<String>) -> Vec<Check> {
    if ports.is_empty() {
        return Vec::new();
    }
    let mut checks = vec![device_files(machine), memlock(machine)];
    checks.push(match trouble {
        None => Check::ok("verbs", "a device opens, and takes this process's memory"),
        Some(why) if why.contains("libibverbs") => {
            Check::warn("verbs", why, "sudo apt install rdma-core ibverbs-providers")
        }
        Some(why) => Check::warn("verbs", why, "sudo ibv_devinfo (and what is to be mended above)"),
    });
    checks
}

fn device_files(machine: &Machine) -> Check {
    const NAME: &str = "device files";
    let files: Vec<String> = machine.names(DEVICES).into_iter().filter(|name| name.starts_with("uverbs")).collect();
    if files.is_empty() {
        let finding =
            "there is no /dev/infiniband/uverbs*, so nothing can use RDMA (in a container: --device /dev/infiniband)";
        return Check::warn(NAME, finding, "sudo modprobe ib_uverbs");
    }
    for file in &files {
        let path = machine.path(&format!("{DEVICES}/{file}"));
        if let Err(error) = OpenOptions::new().read(true).write(true).open(&path) {
            let finding = format!("{}: {error}", path.display());
            return Check::warn(NAME, finding, format!("sudo chmod a+rw {}", path.display()));
        }
    }
    Check::ok(NAME, format!("/dev/infiniband: {}", files.join(", ")))
}

/// Every device locks the memory that messages go through.
fn memlock(machine: &Machine) -> Check {
    const NAME: &str = "memlock";
    let region = Settings::default().region_bytes().unwrap_or(0) as u64;
    let needed = STRIPES_MAX as u64 * (region + QUEUES_BYTES);
    let limits = machine.text("proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let needed_mib = needed.div_ceil(1 << 20);
    match line.and_then(|line| line.split_whitespace().next()) {
        Some("unlimited") => Check::ok(NAME, "no limit"),
        Some(bytes) => match bytes.parse::<u64>() {
            Ok(bytes) if bytes >= needed => Check::ok(NAME, format!("{} MiB, {needed_mib} are needed", bytes >> 20)),
            Ok(bytes) => Check::warn(
                NAME,
                format!("{} KiB may be locked, {needed_mib} MiB are needed", bytes >> 10),
                "sudo deploy/network/cable.sh set-up 1, then log in again; for a service: LimitMEMLOCK=infinity",
            ),
            Err(_) => Check::unknown(NAME, format!("the kernel says {bytes}")),
        },
        None => Check::unknown(NAME, "the kernel does not tell the limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::super::machine::fake::Fake;
    use super::*;

    fn of(fake: &Fake, trouble: Option<&str>) -> Vec<Check> {
        let machine = fake.machine();
        checks(&machine, &machine.rdma_ports(), trouble.map(str::to_owned))
    }

    fn limits(locked: &str) -> Fake {
        let limits =
            format!("Limit Soft Limit Hard Limit Units\nMax locked memory         {locked}   {locked}   bytes\n");
        Fake::spark().with("proc/self/limits", &limits).with("dev/infiniband/uverbs0", "")
    }

    #[test]
    fn all_is_there() {
        for locked in ["unlimited", "67108864"] {
            let checks = of(&limits(locked), None);
            assert!(checks.len() == 3 && checks.iter().all(|check| check.status == Status::Ok), "{checks:?}");
        }
        assert!(of(&Fake::new(), Some("no device")).is_empty());
    }

    #[test]
    fn what_is_missing_comes_with_the_command() {
        let checks = of(&limits("65536").without("dev/infiniband/uverbs0"), Some("libibverbs.so.1: not found"));
        let fixes: Vec<&str> = checks.iter().filter_map(|check| check.fix.as_deref()).collect();
        assert_eq!(fixes.len(), 3, "{checks:?}");
        assert!(fixes[0].contains("modprobe ib_uverbs") && fixes[1].contains("LimitMEMLOCK"));
        assert!(fixes[2].contains("apt install rdma-core"));
        assert!(checks[1].finding.starts_with("64 KiB may be locked"), "{checks:?}");
    }
}
