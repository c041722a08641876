use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::load::host_name;
use crate::worker::BUILD;

use super::check::Check;
use super::machine::Machine;
use super::rate;

/// What two nodes must have in common, or should.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The machine's name.
    pub host: String,
    /// Version of this program, and the hash of its sources.
    pub version: String,
    /// See `version`.
    pub build: String,
    /// The kernel's version.
    pub kernel: String,
    /// The NVIDIA driver's, where there is one.
    pub driver: Option<String>,
    /// RDMA devices that can be used, in the order in which a link takes them.
    pub devices: Vec<RdmaFacts>,
}

/// An RDMA device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RdmaFacts {
    /// Its name.
    pub device: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The network that the address is part of, where the kernel lists one.
    pub subnet: Option<String>,
    /// Of its network interface.
    pub mtu: Option<u32>,
    /// Its firmware's version.
    pub firmware: Option<String>,
    /// What it could carry.
    pub gigabits_per_s: Option<f64>,
}

impl Facts {
    /// This machine's.
    pub fn of(machine: &Machine) -> Self {
        Self {
            host: host_name(),
            version: env!("CARGO_PKG_VERSION").into(),
            build: BUILD.into(),
            kernel: machine.text("proc/sys/kernel/osrelease").unwrap_or_default(),
            driver: machine.text("sys/module/nvidia/version"),
            devices: devices(machine),
        }
    }

    /// For one node there is nothing to compare them with.
    pub fn check(&self) -> Check {
        let driver = self.driver.as_ref().map_or(String::new(), |driver| format!(", NVIDIA driver {driver}"));
        Check::ok("versions", format!("tandem {} (build {}), Linux {}{driver}", self.version, self.build, self.kernel))
    }
}

/// In the order of their addresses, as a link takes them.
fn devices(machine: &Machine) -> Vec<RdmaFacts> {
    let subnets = machine.subnets();
    let mut devices: Vec<RdmaFacts> = Vec::new();
    for port in machine.rdma_ports() {
        let Ok((_, address)) = port.usable else { continue };
        let mtu = port.interface.as_ref().and_then(|name| machine.number(&format!("sys/class/net/{name}/mtu")));
        devices.push(RdmaFacts {
            address,
            subnet: subnets.iter().find(|subnet| subnet.has(address)).map(ToString::to_string),
            mtu: mtu.map(|mtu| mtu as u32),
            firmware: machine.text(&format!("sys/class/infiniband/{}/fw_ver", port.device)),
            gigabits_per_s: rate::of_port(machine, &port),
            device: port.device,
        });
    }
    devices.sort_by_key(|device| device.address);
    devices
}

#[cfg(test)]
mod tests {
    use super::super::machine::fake::Fake;
    use super::*;

    #[test]
    fn a_spark_says_what_it_has() {
        let fake =
            Fake::spark().with("sys/module/nvidia/version", "580.95.05\n").with("proc/sys/kernel/osrelease", "6.11\n");
        let facts = Facts::of(&fake.machine());
        let devices: Vec<&str> = facts.devices.iter().map(|device| device.device.as_str()).collect();
        assert_eq!(devices, ["rocep1s0f0", "roceP2p1s0f0"], "by address");
        let first = &facts.devices[0];
        assert_eq!((first.mtu, first.gigabits_per_s), (Some(9000), Some(100.0)));
        assert_eq!(
            (first.subnet.as_deref(), first.firmware.as_deref()),
            (Some("192.168.177.0/24"), Some("28.45.4028"))
        );
        let finding = facts.check().finding;
        assert!(finding.contains("Linux 6.11, NVIDIA driver 580.95.05"), "{finding}");
    }
}
