//! What a network device could carry, in Gbit/s.

use tandem_link::RdmaPort;

use super::machine::Machine;

/// What is left of PCIe's rate once packets have headers: about nine tenths, with those of 256 bytes.
const PCIE_PAYLOAD: f64 = 0.9;

/// Of an RDMA device: the rate that its port reports, or what its PCIe link carries where that is less. `None` where neither
/// is known.
pub fn of_port(machine: &Machine, port: &RdmaPort) -> Option<f64> {
    let pcie = pcie_link(machine, port, "current").map(|(speed, width)| speed * width * 128.0 / 130.0 * PCIE_PAYLOAD);
    [port.gigabits_per_s, pcie].into_iter().flatten().reduce(f64::min)
}

/// Transfers a second of a PCIe link's lane, in billions, and its lanes: `current` or `max`.
pub fn pcie_link(machine: &Machine, port: &RdmaPort, which: &str) -> Option<(f64, f64)> {
    let folder = format!("sys/class/infiniband/{}/device", port.device);
    let speed = machine.text(&format!("{folder}/{which}_link_speed"))?;
    let width = machine.number(&format!("{folder}/{which}_link_width"))?;
    Some((speed.split(' ').next()?.parse().ok()?, width))
}

/// Of a network interface, where the kernel knows it.
pub fn of_interface(machine: &Machine, interface: &str) -> Option<f64> {
    let megabits = machine.number(&format!("sys/class/net/{interface}/speed"))?;
    (megabits > 0.0).then_some(megabits / 1e3)
}

#[cfg(test)]
mod tests {
    use super::super::machine::fake::Fake;
    use super::*;

    #[test]
    fn the_narrowest_part_counts() {
        let fake = Fake::spark();
        let rate = |fake: &Fake| of_port(&fake.machine(), &fake.machine().rdma_ports()[1]).unwrap();
        assert_eq!(rate(&fake), 100.0, "four lanes of PCIe 5 carry more");
        let fake = fake.with("sys/devices/0000:01:00.0/current_link_speed", "8.0 GT/s PCIe\n");
        assert!((28.0..29.0).contains(&rate(&fake)), "{}", rate(&fake));
        let fake = fake.with("sys/class/net/veth0/speed", "-1\n").with("sys/class/net/eth0/speed", "10000\n");
        assert_eq!(of_interface(&fake.machine(), "veth0"), None);
        assert_eq!(of_interface(&fake.machine(), "eth0"), Some(10.0));
        assert_eq!(of_interface(&fake.machine(), "eth1"), None);
    }
}
