//! Which device, port and address to use. The kernel lists them in files, no library needed.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::error::LinkError;
use crate::region::STRIPES_MAX;

const DEVICES: &str = "/sys/class/infiniband";
/// Entries of a port's table that are looked at.
const GIDS_MAX: u8 = 32;

/// Which RDMA devices a link uses.
#[derive(Clone, Debug, Default)]
pub struct RdmaChoice {
    /// Names as in /sys/class/infiniband, two at most: large messages are split over them. A peer's first device must reach
    /// this one's first, its second this one's second. None named: those whose port is active, in the order of their addresses.
    pub devices: Vec<String>,
    /// The entry of the port's GID table. None: the first of RoCE v2 with an IPv4 address.
    pub gid_index: Option<u8>,
}

/// A port of an RDMA device as the kernel lists it, whether it can be used or not.
#[derive(Clone, Debug, PartialEq)]
pub struct RdmaPort {
    /// The device's name.
    pub device: String,
    /// The port's number there.
    pub number: u8,
    /// PCI address of the device; `None` for one that is software.
    pub pci: Option<String>,
    /// Its network interface.
    pub interface: Option<String>,
    /// The rate that it reports.
    pub gigabits_per_s: Option<f64>,
    /// Index of its RoCE v2 GID of an IPv4 address, and the address; or why a link cannot use the port.
    pub usable: Result<(u8, Ipv4Addr), String>,
}

/// All ports of RDMA devices, in the order of names. `root` holds `sys`: `/` but in tests.
pub fn rdma_ports(root: &Path) -> Vec<RdmaPort> {
    let devices = root.join(DEVICES.trim_start_matches('/'));
    let of_device = |device: String| {
        let folder = devices.join(&device);
        let numbers = names(&folder.join("ports")).into_iter().filter_map(|name| name.parse().ok());
        numbers.map(move |number| describe(&folder, &device, number)).collect::<Vec<_>>()
    };
    names(&devices).into_iter().flat_map(of_device).collect()
}

fn describe(folder: &Path, device: &str, number: u8) -> RdmaPort {
    let port = folder.join(format!("ports/{number}"));
    let target = fs::canonicalize(folder.join("device")).ok();
    let pci = target.and_then(|target| Some(target.file_name()?.to_str()?.to_owned()));
    let of_gid = |index: u8| Some(text(port.join(format!("gid_attrs/ndevs/{index}")))).filter(|name| !name.is_empty());
    let usable = usable(&port, None);
    let index = usable.as_ref().map_or(0, |(index, _)| *index);
    RdmaPort {
        device: device.into(),
        number,
        pci: pci.filter(|pci| pci.contains(':')),
        interface: of_gid(index).or_else(|| names(&folder.join("device/net")).into_iter().next()),
        gigabits_per_s: text(port.join("rate")).split(' ').next().and_then(|rate| rate.parse().ok()),
        usable: usable.map(|(index, gid)| (index, address(gid))),
    }
}

/// A RoCE v2 GID of IPv4 is that address, mapped to IPv6.
fn address([.., a, b, c, d]: [u8; 16]) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

/// A port that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) device: String,
    pub(super) number: u8,
    pub(super) gid_index: u8,
    pub(super) gid: [u8; 16],
}

impl Port {
    /// The address behind the GID.
    pub(super) fn address(&self) -> Ipv4Addr {
        address(self.gid)
    }
}

impl RdmaChoice {
    /// The ports to use, one at least.
    pub(super) fn ports(&self) -> Result<Vec<Port>, LinkError> {
        self.ports_in(Path::new(DEVICES))
    }

    fn ports_in(&self, root: &Path) -> Result<Vec<Port>, LinkError> {
        if self.devices.len() > STRIPES_MAX {
            return Err(unusable(format!("{} devices are named, {STRIPES_MAX} are the most", self.devices.len())));
        }
        if !self.devices.is_empty() {
            let port = |device: &String| {
                first_port(root, device, self.gid_index).map_err(|why| unusable(format!("{device}: {why}")))
            };
            return self.devices.iter().map(port).collect();
        }
        self.find(root)
    }

    fn find(&self, root: &Path) -> Result<Vec<Port>, LinkError> {
        let (mut ports, mut reasons) = (Vec::new(), Vec::new());
        for device in names(root) {
            match first_port(root, &device, self.gid_index) {
                Ok(port) => ports.push(port),
                Err(why) => reasons.push(format!("{device}: {why}")),
            }
        }
        if ports.is_empty() {
            reasons.push(format!("{} lists {} devices", root.display(), reasons.len()));
            return Err(unusable(reasons.join("; ")));
        }
        // Twins have a subnet each, the same on both nodes: in the order of addresses, first meets first.
        ports.sort_by_key(|port| port.gid);
        ports.truncate(STRIPES_MAX);
        Ok(ports)
    }
}

fn unusable(why: String) -> LinkError {
    LinkError::NoRdma(why)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The device's first active port with an address, or why none is.
fn first_port(root: &Path, device: &str, gid_index: Option<u8>) -> Result<Port, String> {
    let folder = root.join(device).join("ports");
    let mut reasons = Vec::new();
    for number in names(&folder).iter().filter_map(|name| name.parse().ok()) {
        match usable(&folder.join(u8::to_string(&number)), gid_index) {
            Ok((gid_index, gid)) => return Ok(Port { device: device.into(), number, gid_index, gid }),
            Err(why) => reasons.push(format!("port {number} {why}")),
        }
    }
    Err(if reasons.is_empty() { "no such RDMA device".into() } else { reasons.join(", ") })
}

/// Index and GID.
fn usable(port: &Path, wanted: Option<u8>) -> Result<(u8, [u8; 16]), String> {
    let state = text(port.join("state"));
    if !state.ends_with("ACTIVE") {
        return Err(format!("is {}: is the cable in, and the network interface up?", state.trim()));
    }
    let table = wanted.map_or(0..GIDS_MAX, |index| index..index.saturating_add(1));
    let found = table.clone().find_map(|index| {
        let roce2 = text(port.join(format!("gid_attrs/types/{index}"))) == "RoCE v2";
        let gid = roce2.then(|| parse_gid(&text(port.join(format!("gids/{index}")))))??;
        gid.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]).then_some((index, gid))
    });
    found.ok_or_else(|| match wanted {
        Some(index) => format!("has no RoCE v2 GID of an IPv4 address at index {index}"),
        None => "has no RoCE v2 GID of an IPv4 address: has its network interface one?".into(),
    })
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// As the kernel writes it: eight groups of four hexadecimal digits.
fn parse_gid(text: &str) -> Option<[u8; 16]> {
    let mut gid = [0; 16];
    let mut groups = text.split(':');
    for pair in gid.as_chunks_mut().0 {
        *pair = u16::from_str_radix(groups.next()?, 16).ok()?.to_be_bytes();
    }
    groups.next().is_none().then_some(gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder like the kernel's.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a folder"))
        }

        fn with(self, device: &str, state: &str, gids: &[(&str, &str)]) -> Self {
            let port = self.0.path().join(device).join("ports/1");
            for folder in ["gids", "gid_attrs/types"] {
                fs::create_dir_all(port.join(folder)).expect("a folder");
            }
            let write = |path: String, text: &str| fs::write(port.join(path), format!("{text}\n")).expect("a file");
            write("state".into(), state);
            for (index, (kind, gid)) in gids.iter().enumerate() {
                write(format!("gids/{index}"), gid);
                write(format!("gid_attrs/types/{index}"), kind);
            }
            self
        }

        fn ports(&self, choice: &RdmaChoice) -> Result<Vec<Port>, String> {
            choice.ports_in(self.0.path()).map_err(|error| error.to_string())
        }
    }

    const LINK_LOCAL: &str = "fe80:0000:0000:0000:4ebb:47ff:fe00:0001";

    fn v4(last: &str) -> String {
        format!("0000:0000:0000:0000:0000:ffff:{last}")
    }

    /// As on a Spark: four entries of each port, of which the last is the one.
    fn spark() -> Machine {
        let (first, second) = (v4("c0a8:640a"), v4("c0a8:650a"));
        let table = |v4| [("IB/RoCE v1", LINK_LOCAL), ("RoCE v2", LINK_LOCAL), ("IB/RoCE v1", v4), ("RoCE v2", v4)];
        Machine::new()
            .with("roceP2p1s0f0", "4: ACTIVE", &table(&second))
            .with("rocep1s0f0", "4: ACTIVE", &table(&first))
            .with("rocep1s0f1", "1: DOWN", &table(&first))
    }

    #[test]
    fn both_twins_are_found_in_the_order_of_their_subnets() {
        let ports = spark().ports(&RdmaChoice::default()).expect("two ports");
        let found: Vec<_> = ports.iter().map(|port| (port.device.as_str(), port.gid_index, port.address())).collect();
        let (first, second) = (Ipv4Addr::new(192, 168, 100, 10), Ipv4Addr::new(192, 168, 101, 10));
        assert_eq!(found, [("rocep1s0f0", 3, first), ("roceP2p1s0f0", 3, second)]);
    }

    #[test]
    fn what_is_named_is_taken_or_refused() {
        let choice = |device: &str, gid_index| RdmaChoice { devices: vec![device.into()], gid_index };
        assert_eq!(spark().ports(&choice("roceP2p1s0f0", None)).expect("a port")[0].gid_index, 3);
        for (choice, reason) in [
            (choice("rocep1s0f1", None), "rocep1s0f1: port 1 is 1: DOWN"),
            (choice("mlx5_0", None), "mlx5_0: no such RDMA device"),
            (choice("rocep1s0f0", Some(1)), "at index 1"),
            (RdmaChoice { devices: vec!["a".into(); 3], gid_index: None }, "3 devices are named"),
        ] {
            let error = spark().ports(&choice).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn all_ports_are_described() {
        let root = tempfile::tempdir().expect("a folder");
        let made = spark();
        fs::create_dir_all(root.path().join("sys/class")).expect("a folder");
        fs::rename(made.0.path(), root.path().join("sys/class/infiniband")).expect("renaming");
        let device = root.path().join("sys/class/infiniband/rocep1s0f0");
        let pci = root.path().join("sys/devices/0000:01:00.0");
        fs::create_dir_all(pci.join("net/enp1s0f0np0")).expect("a folder");
        std::os::unix::fs::symlink(&pci, device.join("device")).expect("a link");
        fs::write(device.join("ports/1/rate"), "200 Gb/sec (4X HDR)\n").expect("a file");
        let ports = rdma_ports(root.path());
        let names: Vec<&str> = ports.iter().map(|port| port.device.as_str()).collect();
        assert_eq!(names, ["roceP2p1s0f0", "rocep1s0f0", "rocep1s0f1"]);
        let first = &ports[1];
        assert_eq!((first.pci.as_deref(), first.interface.as_deref()), (Some("0000:01:00.0"), Some("enp1s0f0np0")));
        assert_eq!(first.gigabits_per_s, Some(200.0));
        assert_eq!(first.usable, Ok((3, Ipv4Addr::new(192, 168, 100, 10))));
        assert!(ports[2].usable.as_ref().is_err_and(|why| why.contains("DOWN")), "{:?}", ports[2]);
        assert_eq!((&ports[0].pci, &ports[0].interface, ports[0].gigabits_per_s), (&None, &None, None));
        assert!(rdma_ports(Path::new("/no/such/folder")).is_empty());
    }

    #[test]
    fn without_devices_the_reason_is_told() {
        let error = Machine::new().ports(&RdmaChoice::default()).expect_err("nothing there");
        assert!(error.contains("lists 0 devices"), "{error}");
        let machine = Machine::new().with("mlx5_0", "4: ACTIVE", &[("RoCE v2", LINK_LOCAL)]);
        let error = machine.ports(&RdmaChoice::default()).expect_err("no IPv4 address");
        assert!(error.contains("mlx5_0: port 1 has no RoCE v2 GID of an IPv4 address"), "{error}");
    }
}
