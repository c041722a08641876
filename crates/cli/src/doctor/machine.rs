use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use tandem_link::{RdmaPort, rdma_ports};
use tandem_model::memory::available_memory_below;

/// A machine as its files tell of it: below `/`, or in tests below a folder.
#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
}

/// A network that is reached through an interface without a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The interface.
    pub interface: String,
    /// First address.
    pub network: Ipv4Addr,
    /// Bits that its addresses have in common.
    pub bits: u32,
}

impl Subnet {
    /// Whether an address belongs to it.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - self.bits).unwrap_or(0);
        address.to_bits() & mask == self.network.to_bits()
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        Self { root: "/".into() }
    }

    /// One whose files are below a folder.
    #[cfg(test)]
    pub fn below(root: &std::path::Path) -> Self {
        Self { root: root.into() }
    }

    /// A file's text without the space around it; `None` where it cannot be read.
    pub fn text(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.root.join(path)).ok()?.trim().to_owned())
    }

    /// The number in a file.
    pub fn number(&self, path: &str) -> Option<f64> {
        self.text(path)?.parse().ok()
    }

    /// Names in a folder, sorted; none where there is no such folder.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Whether there is such a file or folder.
    pub fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// Where a file is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Memory that a process may take.
    pub fn available_memory(&self) -> Option<u64> {
        available_memory_below(&self.root).ok()
    }

    /// Ports of RDMA devices.
    pub fn rdma_ports(&self) -> Vec<RdmaPort> {
        rdma_ports(&self.root)
    }

    /// Networks that interfaces are part of.
    pub fn subnets(&self) -> Vec<Subnet> {
        let routes = self.text("proc/net/route").unwrap_or_default();
        routes.lines().skip(1).filter_map(subnet).collect()
    }
}

/// A line of the kernel's table of routes, if no router is in it: interface, network, router, ..., mask as the eighth.
/// Addresses are words of this machine's order, in hexadecimal.
fn subnet(line: &str) -> Option<Subnet> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let word = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok().map(u32::from_be);
    let (network, router, mask) = (word(1)?, word(2)?, word(7)?);
    let of_interface = router == 0 && mask != 0;
    of_interface.then(|| Subnet { interface: fields[0].to_owned(), network: network.into(), bits: mask.count_ones() })
}

/// A machine made of files, for tests.
#[cfg(test)]
pub mod fake {
    use super::*;
    use std::os::unix::fs::symlink;

    pub struct Fake {
        root: tempfile::TempDir,
    }

    impl Fake {
        pub fn new() -> Self {
            Self { root: tempfile::tempdir().unwrap() }
        }

        pub fn machine(&self) -> Machine {
            Machine::below(self.root.path())
        }

        pub fn with(self, path: &str, text: &str) -> Self {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        pub fn without(self, path: &str) -> Self {
            fs::remove_file(self.root.path().join(path)).unwrap();
            self
        }

        /// An RDMA device of a PCI function, whose interface has this address.
        pub fn with_device(self, device: &str, pci: &str, interface: &str, address: Ipv4Addr) -> Self {
            let [a, b, c, d] = address.octets();
            let gid = format!("0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}");
            let (ib, function) = (format!("sys/class/infiniband/{device}"), format!("sys/devices/{pci}"));
            let made = self
                .with(&format!("{ib}/ports/1/state"), "4: ACTIVE\n")
                .with(&format!("{ib}/ports/1/rate"), "100 Gb/sec (2X HDR)\n")
                .with(&format!("{ib}/ports/1/gids/3"), &gid)
                .with(&format!("{ib}/ports/1/gid_attrs/types/3"), "RoCE v2\n")
                .with(&format!("{ib}/ports/1/gid_attrs/ndevs/3"), interface)
                .with(&format!("{ib}/fw_ver"), "28.45.4028\n")
                .with(&format!("{function}/current_link_speed"), "32.0 GT/s PCIe\n")
                .with(&format!("{function}/current_link_width"), "4\n")
                .with(&format!("{function}/max_link_speed"), "32.0 GT/s PCIe\n")
                .with(&format!("{function}/max_link_width"), "4\n")
                .with(&format!("{function}/net/{interface}/mtu"), "9000\n")
                .with(&format!("sys/class/net/{interface}/mtu"), "9000\n");
            symlink(made.root.path().join(&function), made.root.path().join(&ib).join("device")).unwrap();
            made
        }

        /// A Spark whose cable is set up.
        pub fn spark() -> Self {
            Self::new()
                .with_device("rocep1s0f0", "0000:01:00.0", "enp1s0f0np0", Ipv4Addr::new(192, 168, 177, 1))
                .with_device("roceP2p1s0f0", "0002:01:00.0", "enP2p1s0f0np0", Ipv4Addr::new(192, 168, 178, 1))
                .with("proc/net/route", ROUTES)
        }
    }

    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
enp1s0f0np0\t00B1A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
enP2p1s0f0np0\t00B2A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
";
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;

    #[test]
    fn subnets_are_read_from_the_routes() {
        let fake = Fake::spark();
        let subnets = fake.machine().subnets();
        assert_eq!(
            subnets.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.168.177.0/24", "192.168.178.0/24"]
        );
        assert_eq!(subnets[1].interface, "enP2p1s0f0np0");
        assert!(subnets[0].has(Ipv4Addr::new(192, 168, 177, 200)) && !subnets[0].has(Ipv4Addr::new(192, 168, 178, 1)));
        assert!(Fake::new().with("proc/net/route", "Iface\nnonsense\n").machine().subnets().is_empty());
        assert!(Fake::new().machine().subnets().is_empty());
    }
}
