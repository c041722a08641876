//! What two nodes found about each other, judged.

use std::net::IpAddr;

use tandem_link::TransportKind;

use crate::nodes::link_speed;

use super::check::Check;
use super::facts::{Facts, RdmaFacts};
use super::machine::Machine;
use super::pair::{NoLink, Reached};
use super::rate;
use super::roce::SET_UP;

/// Clocks further apart make logs hard to read side by side.
const CLOCKS_APART_MAX_S: f64 = 1.0;
/// Less than this share of what the devices could carry, and something is wrong with them: a link was seen at 13 of 200 Gb/s.
const RATE_SHARE_MIN: f64 = 0.4;
/// One TCP connection carries no more than this, whatever the interface.
const TCP_GIGABITS_MAX: f64 = 20.0;

/// What both should have in common.
pub fn of_facts(ours: &Facts, theirs: &Facts) -> Vec<Check> {
    let mut checks = vec![builds(ours, theirs), versions(ours, theirs)];
    if !ours.devices.is_empty() || !theirs.devices.is_empty() {
        checks.push(devices(ours, theirs));
        checks.push(mtus(ours, theirs));
    }
    checks
}

fn builds(ours: &Facts, theirs: &Facts) -> Check {
    const NAME: &str = "build";
    if ours.build == theirs.build {
        return Check::ok(NAME, format!("both are tandem {}, built from the same sources", ours.version));
    }
    let finding = format!(
        "this is tandem {} of build {}, the other {} of build {}: they will refuse each other",
        ours.version, ours.build, theirs.version, theirs.build
    );
    Check::fail(NAME, finding, "scp \"$(command -v tandem)\" from one node to the other")
}

fn versions(ours: &Facts, theirs: &Facts) -> Check {
    const NAME: &str = "versions";
    let firmware = |facts: &Facts| facts.devices.first().and_then(|device| device.firmware.clone());
    let differing = [
        ("NVIDIA drivers", ours.driver.clone(), theirs.driver.clone()),
        ("kernels", Some(ours.kernel.clone()), Some(theirs.kernel.clone())),
        ("the adapters' firmware", firmware(ours), firmware(theirs)),
    ];
    let differing: Vec<String> = differing
        .into_iter()
        .filter(|(_, ours, theirs)| ours != theirs)
        .map(|(what, ours, theirs)| {
            let text = |version: Option<String>| version.unwrap_or_else(|| "none".into());
            format!("{what} differ: {} here, {} there", text(ours), text(theirs))
        })
        .collect();
    match differing.is_empty() {
        true => Check::ok(NAME, "kernels, drivers and firmware are the same"),
        false => Check::warn(
            NAME,
            differing.join("\n"),
            "sudo apt update && sudo apt full-upgrade, sudo fwupdmgr update, on both",
        ),
    }
}

/// First meets first, second second.
fn devices(ours: &Facts, theirs: &Facts) -> Check {
    const NAME: &str = "rdma devices";
    if ours.devices.len() != theirs.devices.len() {
        let finding = format!("{} can be used here, {} there", ours.devices.len(), theirs.devices.len());
        return Check::warn(NAME, finding, SET_UP);
    }
    for (ours, theirs) in pairs(ours, theirs) {
        if ours.address == theirs.address || ours.subnet != theirs.subnet {
            let text = |device: &RdmaFacts| {
                format!(
                    "{} has {} in {}",
                    device.device,
                    device.address,
                    device.subnet.as_deref().unwrap_or("no subnet")
                )
            };
            let finding = format!("here {}, there {}: they cannot meet", text(ours), text(theirs));
            return Check::fail(NAME, finding, SET_UP);
        }
    }
    let met = pairs(ours, theirs).map(|(ours, theirs)| format!("{} meets {}", ours.address, theirs.address));
    Check::ok(NAME, met.collect::<Vec<_>>().join(", "))
}

fn mtus(ours: &Facts, theirs: &Facts) -> Check {
    const NAME: &str = "mtu";
    match pairs(ours, theirs).find(|(ours, theirs)| ours.mtu != theirs.mtu) {
        None => Check::ok(NAME, "the same on both nodes"),
        Some((ours, theirs)) => {
            let text = |mtu: Option<u32>| mtu.map_or("unknown".into(), |mtu| mtu.to_string());
            let finding = format!("{} {} here, {} there", ours.device, text(ours.mtu), text(theirs.mtu));
            Check::warn(NAME, finding, SET_UP)
        }
    }
}

fn pairs<'a>(ours: &'a Facts, theirs: &'a Facts) -> impl Iterator<Item = (&'a RdmaFacts, &'a RdmaFacts)> {
    ours.devices.iter().zip(&theirs.devices)
}

/// By how many seconds the other node's clock is ahead.
pub fn of_clocks(ahead_s: f64) -> Check {
    const NAME: &str = "clocks";
    let finding = match ahead_s.abs() < 0.001 {
        true => "less than a millisecond apart".to_owned(),
        false => {
            format!("the other node's is {:.3} s {}", ahead_s.abs(), if ahead_s > 0.0 { "ahead" } else { "behind" })
        }
    };
    match ahead_s.abs() <= CLOCKS_APART_MAX_S {
        true => Check::ok(NAME, finding),
        // Also where it is no number.
        false => Check::warn(NAME, finding, "sudo timedatectl set-ntp true, on both"),
    }
}

/// What a link reached, beside what its devices could carry.
pub fn of_link(
    machine: &Machine,
    ours: &Facts,
    theirs: &Facts,
    peer: IpAddr,
    kind: TransportKind,
    reached: Reached,
) -> Check {
    let name = if kind == TransportKind::Rdma { "rdma" } else { "tcp" };
    let (description, speed) = match reached {
        Ok(reached) => reached,
        // Without RDMA on both, `--link auto` takes TCP.
        Err(NoLink::Absent(why)) if kind == TransportKind::Rdma => {
            return Check::warn(
                name,
                format!("{why}; they would exchange over TCP, several times slower"),
                "tandem doctor, on both nodes",
            );
        }
        Err(NoLink::Absent(why) | NoLink::Broken(why)) => {
            return Check::fail(name, why, "tandem doctor, on both nodes");
        }
    };
    let gigabits = speed.bytes_per_s * 8.0 / 1e9;
    let speed = link_speed(speed.exchange.as_secs_f64() * 1e6, speed.bytes_per_s);
    let finding = format!("{description}: {speed}, {gigabits:.1} Gb/s");
    let could: Option<f64> = match kind {
        TransportKind::Rdma => {
            pairs(ours, theirs).map(|(ours, theirs)| least(ours.gigabits_per_s, theirs.gigabits_per_s)).sum()
        }
        _ => interface_rate(machine, peer).map(|rate| rate.min(TCP_GIGABITS_MAX)),
    };
    match could {
        Some(could) if gigabits < RATE_SHARE_MIN * could => {
            let finding = format!("{finding}; {could:.0} Gb/s should be near");
            Check::warn(
                name,
                finding,
                "tandem doctor, on both nodes (mtu, pcie, rates); then reseat the cable, power both off and on",
            )
        }
        _ => Check::ok(name, finding),
    }
}

fn least(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    Some(one?.min(other?))
}

/// Of the interface by which an address is reached.
fn interface_rate(machine: &Machine, to: IpAddr) -> Option<f64> {
    let IpAddr::V4(to) = to else { return None };
    let subnet = machine.subnets().into_iter().find(|subnet| subnet.has(to))?;
    rate::of_interface(machine, &subnet.interface)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tandem_link::LinkSpeed;

    use super::super::check::Status;
    use super::super::machine::fake::Fake;
    use super::*;

    fn nodes() -> (Facts, Facts) {
        let ours = Facts { driver: Some("580.95".into()), ..Facts::of(&Fake::spark().machine()) };
        let mut theirs = ours.clone();
        for device in &mut theirs.devices {
            let [a, b, c, _] = device.address.octets();
            device.address = Ipv4Addr::new(a, b, c, 2);
        }
        (ours, theirs)
    }

    /// The one check that is not as it should be.
    fn finding(ours: &Facts, theirs: &Facts) -> Check {
        let mut wrong: Vec<Check> = of_facts(ours, theirs).into_iter().filter(|check| check.fix.is_some()).collect();
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        wrong.remove(0)
    }

    #[test]
    fn equals_are_well() {
        let (ours, theirs) = nodes();
        assert!(of_facts(&ours, &theirs).iter().all(|check| check.status == Status::Ok));
    }

    #[test]
    fn what_differs_is_named() {
        let (ours, theirs) = nodes();
        let check = finding(&ours, &Facts { build: "other".into(), ..theirs.clone() });
        assert!(check.name == "build" && check.status == Status::Fail, "{check:?}");
        let check = finding(&ours, &Facts { driver: None, ..theirs.clone() });
        assert!(check.finding.contains("drivers differ: 580.95 here, none there"), "{check:?}");
        let mut fewer = theirs.clone();
        fewer.devices.pop();
        assert_eq!(finding(&ours, &fewer).finding, "2 can be used here, 1 there");
        let mut crossed = theirs.clone();
        crossed.devices.reverse();
        assert!(finding(&ours, &crossed).finding.contains("they cannot meet"));
        assert_eq!(finding(&ours, &ours.clone()).status, Status::Fail, "two with one address");
        let mut short = theirs;
        short.devices[1].mtu = Some(1500);
        assert!(finding(&ours, &short).finding.contains("9000 here, 1500 there"));
    }

    #[test]
    fn clocks_may_be_a_second_apart() {
        assert_eq!(of_clocks(0.0004).finding, "less than a millisecond apart");
        assert_eq!((of_clocks(-0.9).status, of_clocks(1.5).status), (Status::Ok, Status::Warn));
        assert!(of_clocks(-90.0).finding.contains("90.000 s behind"));
        assert_eq!(of_clocks(f64::NAN).status, Status::Warn);
    }

    #[test]
    fn a_rate_is_held_against_the_devices() {
        let (ours, theirs) = nodes();
        let fake = Fake::spark().with("sys/class/net/enp1s0f0np0/speed", "200000\n");
        let peer = IpAddr::V4(Ipv4Addr::new(192, 168, 177, 2));
        let of = |kind, gigabits: f64| {
            let speed = LinkSpeed { exchange: Duration::from_micros(12), bytes_per_s: gigabits * 1e9 / 8.0 };
            of_link(&fake.machine(), &ours, &theirs, peer, kind, Ok(("a link".into(), speed)))
        };
        let stuck = of(TransportKind::Rdma, 13.0);
        assert!(stuck.status == Status::Warn && stuck.finding.contains("200 Gb/s should be near"), "{stuck:?}");
        assert_eq!(of(TransportKind::Rdma, 150.0).status, Status::Ok);
        assert!(of(TransportKind::Rdma, 150.0).finding.contains("12.0 µs"));
        assert_eq!(
            (of(TransportKind::Tcp, 13.0).status, of(TransportKind::Tcp, 2.0).status),
            (Status::Ok, Status::Warn)
        );
        let broken =
            of_link(&fake.machine(), &ours, &theirs, peer, TransportKind::Rdma, Err(NoLink::Broken("no route".into())));
        assert_eq!((broken.status, broken.finding.as_str()), (Status::Fail, "no route"));
        let bare = Facts { devices: Vec::new(), ..ours.clone() };
        let none = of_link(
            &fake.machine(),
            &bare,
            &bare,
            peer,
            TransportKind::Rdma,
            Err(NoLink::Absent("not on this node".into())),
        );
        assert_eq!(none.status, Status::Warn);
    }
}
