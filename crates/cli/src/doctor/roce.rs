//! The RDMA devices of this node's end of the cable, and their network interfaces.

use tandem_link::RdmaPort;

use super::check::Check;
use super::machine::Machine;
use super::rate;

/// Sets up both twins, now and for the next boot.
pub(super) const SET_UP: &str = "sudo deploy/network/cable.sh set-up 1 (on the other node: 2)";
/// With which packets of RoCE carry 4,096 bytes, the most there is; below, 1,024 or 2,048.
const MTU_MIN: f64 = 4200.0;
/// What one port of a ConnectX-7 in a Spark should report at least.
const GIGABITS_MIN: f64 = 100.0;

/// Devices and their twins, addresses, MTU, and what they could carry.
pub fn checks(machine: &Machine, ports: &[RdmaPort]) -> Vec<Check> {
    if ports.is_empty() {
        let finding = "no RDMA device: fine for one node; two would exchange over TCP, several times slower";
        return vec![Check::unknown("rdma devices", finding)];
    }
    let usable: Vec<&RdmaPort> = ports.iter().filter(|port| port.usable.is_ok()).collect();
    let mut checks = vec![devices(ports, &usable)];
    if !usable.is_empty() {
        checks.extend([gid(&usable), subnets(machine, &usable), mtu(machine, &usable), rates(machine, &usable)]);
    }
    checks.extend(usable.iter().filter_map(|port| pcie(machine, port)));
    checks
}

/// One is up, and its twin as well where it has one.
fn devices(ports: &[RdmaPort], usable: &[&RdmaPort]) -> Check {
    const NAME: &str = "rdma devices";
    let trouble = |port: &RdmaPort| {
        let why = port.usable.as_ref().err().map_or("", String::as_str);
        let interface = port.interface.as_ref().map_or(String::new(), |interface| format!(" ({interface})"));
        format!("{}{interface}: port {} {why}", port.device, port.number)
    };
    if usable.is_empty() {
        let all: Vec<String> = ports.iter().map(trouble).collect();
        return Check::warn(NAME, format!("none can be used: {}", all.join("\n")), SET_UP);
    }
    let lame =
        usable.iter().find_map(|port| ports.iter().find(|other| are_twins(port, other) && other.usable.is_err()));
    if let Some(twin) = lame {
        let finding = format!("only one of the cable's two devices is up, which halves its rate; {}", trouble(twin));
        return Check::warn(NAME, finding, SET_UP);
    }
    let names: Vec<&str> = usable.iter().map(|port| port.device.as_str()).collect();
    Check::ok(NAME, format!("{} can be used", names.join(" and ")))
}

/// Whether two devices share one port of the adapter: the same function in another PCI domain.
fn are_twins(one: &RdmaPort, other: &RdmaPort) -> bool {
    match (domain_and_function(one), domain_and_function(other)) {
        (Some((one_domain, one)), Some((other_domain, other))) => one == other && one_domain != other_domain,
        _ => false,
    }
}

fn domain_and_function(port: &RdmaPort) -> Option<(&str, &str)> {
    port.pci.as_ref()?.split_once(':')
}

fn gid(usable: &[&RdmaPort]) -> Check {
    let each = usable.iter().filter_map(|port| {
        let (index, address) = port.usable.as_ref().ok()?;
        Some(format!("{} {index} ({address})", port.device))
    });
    Check::ok("gid index", format!("RoCE v2 of an IPv4 address: {}", each.collect::<Vec<_>>().join(", ")))
}

/// Two devices in one subnet would send by whichever the kernel likes.
fn subnets(machine: &Machine, usable: &[&RdmaPort]) -> Check {
    const NAME: &str = "subnets";
    let all = machine.subnets();
    let mut of: Vec<(&str, String)> = Vec::new();
    for port in usable {
        let address = port.usable.as_ref().map(|(_, address)| *address);
        let found = address.ok().and_then(|address| all.iter().find(|subnet| subnet.has(address)));
        let Some(subnet) = found.map(ToString::to_string) else { continue };
        if let Some((other, _)) = of.iter().find(|(_, other)| *other == subnet) {
            let finding = format!("{other} and {} are both in {subnet}; each needs a subnet of its own", port.device);
            return Check::warn(NAME, finding, SET_UP);
        }
        of.push((&port.device, subnet));
    }
    match of.is_empty() {
        true => Check::unknown(NAME, "the kernel lists none for these devices"),
        false => Check::ok(
            NAME,
            of.iter().map(|(device, subnet)| format!("{device} {subnet}")).collect::<Vec<_>>().join(", "),
        ),
    }
}

fn mtu(machine: &Machine, usable: &[&RdmaPort]) -> Check {
    const NAME: &str = "mtu";
    let mut seen = Vec::new();
    for interface in usable.iter().filter_map(|port| port.interface.as_ref()) {
        let Some(mtu) = machine.number(&format!("sys/class/net/{interface}/mtu")) else { continue };
        if mtu < MTU_MIN {
            let finding = format!("{interface} has {mtu}: RoCE's packets are then short, and slow");
            let fix = format!("sudo ip link set dev {interface} mtu 9000; for good: {SET_UP}");
            return Check::warn(NAME, finding, fix);
        }
        seen.push(format!("{interface} {mtu}"));
    }
    match seen.is_empty() {
        true => Check::unknown(NAME, "the devices' network interfaces are not known"),
        false => Check::ok(NAME, seen.join(", ")),
    }
}

/// What the ports report; what they reach is for `--peer` to tell.
fn rates(machine: &Machine, usable: &[&RdmaPort]) -> Check {
    const NAME: &str = "rates";
    let known: Vec<(&str, f64)> =
        usable.iter().filter_map(|port| Some((port.device.as_str(), rate::of_port(machine, port)?))).collect();
    if known.is_empty() {
        return Check::unknown(NAME, "the devices do not report them");
    }
    let each: Vec<String> = known.iter().map(|(device, rate)| format!("{device} {rate:.0} Gb/s")).collect();
    let slow =
        usable.iter().find(|port| port.pci.is_some() && port.gigabits_per_s.is_some_and(|rate| rate < GIGABITS_MIN));
    let finding = format!("{} as reported; what is reached: tandem doctor --peer", each.join(", "));
    match slow.and_then(|port| port.interface.as_ref()) {
        Some(interface) => {
            Check::warn(NAME, finding, format!("sudo ethtool {interface} (reseat the cable, or try another)"))
        }
        None => Check::ok(NAME, finding),
    }
}

/// A link that came up slower or narrower than it can.
fn pcie(machine: &Machine, port: &RdmaPort) -> Option<Check> {
    let (now, most) = (rate::pcie_link(machine, port, "current")?, rate::pcie_link(machine, port, "max")?);
    let text = |(speed, width)| format!("{speed} GT/s x{width}");
    let (finding, device) = (format!("{}: {}", port.device, text(now)), port.pci.as_deref().unwrap_or_default());
    if now.0 < most.0 || now.1 < most.1 {
        let finding = format!("{finding}, though it can {}", text(most));
        return Some(Check::warn(
            "pcie",
            finding,
            format!("power off and on again; then sudo lspci -vvs {device} | grep LnkSta"),
        ));
    }
    Some(Check::ok("pcie", finding))
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::super::machine::fake::Fake;
    use super::*;

    fn of(fake: &Fake) -> Vec<Check> {
        let machine = fake.machine();
        checks(&machine, &machine.rdma_ports())
    }

    /// The one check that is not as it should be.
    fn finding(fake: &Fake) -> Check {
        let mut wrong: Vec<Check> = of(fake).into_iter().filter(|check| check.fix.is_some()).collect();
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        wrong.remove(0)
    }

    const SECOND: &str = "sys/class/infiniband/roceP2p1s0f0/ports/1";

    #[test]
    fn a_spark_that_is_set_up_is_well() {
        let checks = of(&Fake::spark());
        assert!(checks.iter().all(|check| check.status == Status::Ok), "{checks:?}");
        let text = format!("{checks:?}");
        for part in [
            "rocep1s0f0 3 (192.168.177.1)",
            "192.168.178.0/24",
            "enP2p1s0f0np0 9000",
            "rocep1s0f0 100 Gb/s",
            "32 GT/s x4",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }

    #[test]
    fn a_twin_that_is_down_is_named_with_its_interface() {
        for (path, text) in [("state", "1: DOWN\n"), ("gids/3", "0000:0000:0000:0000:0000:0000:0000:0000\n")] {
            let check = finding(&Fake::spark().with(&format!("{SECOND}/{path}"), text));
            assert!(check.finding.contains("roceP2p1s0f0 (enP2p1s0f0np0)"), "{check:?}");
            assert!(check.fix.unwrap().contains("cable.sh set-up"));
        }
        // The other port of the adapter has no cable, and is nobody's twin that matters.
        let other = Fake::spark()
            .with_device("rocep1s0f1", "0000:01:00.1", "enp1s0f1np1", std::net::Ipv4Addr::new(10, 0, 0, 1))
            .with("sys/class/infiniband/rocep1s0f1/ports/1/state", "1: DOWN\n");
        assert!(of(&other).iter().all(|check| check.status == Status::Ok));
    }

    #[test]
    fn no_device_that_can_be_used_is_told_with_every_reason() {
        let fake = Fake::spark().with(&format!("{SECOND}/state"), "1: DOWN\n");
        let check = finding(&fake.with("sys/class/infiniband/rocep1s0f0/ports/1/state", "1: DOWN\n"));
        assert!(check.finding.contains("rocep1s0f0") && check.finding.contains("roceP2p1s0f0"), "{check:?}");
        let none = of(&Fake::new());
        assert_eq!((none.len(), none[0].status), (1, Status::Unknown), "one node needs none");
    }

    #[test]
    fn a_short_mtu_comes_with_the_command() {
        let check = finding(&Fake::spark().with("sys/class/net/enP2p1s0f0np0/mtu", "1500\n"));
        assert_eq!((check.name, check.status), ("mtu", Status::Warn));
        assert!(check.fix.unwrap().starts_with("sudo ip link set dev enP2p1s0f0np0 mtu 9000"));
    }

    #[test]
    fn twins_in_one_subnet_are_told() {
        let gid = "0000:0000:0000:0000:0000:ffff:c0a8:b107\n";
        let check = finding(&Fake::spark().with(&format!("{SECOND}/gids/3"), gid));
        assert!(check.name == "subnets" && check.finding.contains("192.168.177.0/24"), "{check:?}");
    }

    #[test]
    fn slow_ports_and_narrow_buses_are_told() {
        let check = finding(&Fake::spark().with(&format!("{SECOND}/rate"), "10 Gb/sec (1X QDR)\n"));
        assert!(check.name == "rates" && check.finding.contains("roceP2p1s0f0 10 Gb/s"), "{check:?}");
        let check = finding(&Fake::spark().with("sys/devices/0002:01:00.0/current_link_width", "1\n"));
        assert!(check.name == "pcie" && check.finding.contains("x1, though it can 32 GT/s x4"), "{check:?}");
        assert!(check.fix.unwrap().contains("0002:01:00.0"));
    }
}
