//! The GPU, its driver, and the compiler of its kernels.

use tandem_backend_cuda::{Compiler, Device, SOURCES};

use super::check::Check;
use super::machine::Machine;

const NAME: &str = "gpu";
/// NVIDIA's number among the makers of PCI devices, and the first digits of the class of what draws or computes.
const VENDOR: &str = "0x10de";
const DISPLAY_CLASS: &str = "0x03";

/// Whether GPU number `ordinal` opens, and whether kernels can be compiled for it.
pub fn checks(machine: &Machine, ordinal: usize) -> Vec<Check> {
    match Device::open(ordinal) {
        Ok(device) => {
            let driver = machine.text("sys/module/nvidia/version").unwrap_or_else(|| "of unknown version".into());
            let found = format!("{} ({}), driver {driver}", device.name(), device.arch());
            vec![Check::ok(NAME, found), compiler(device.arch())]
        }
        Err(error) => vec![missing(machine, &error.to_string())],
    }
}

/// Compiles one kernel: the compiler's library may be there and still not do.
fn compiler(arch: &str) -> Check {
    const NAME: &str = "nvrtc";
    match Compiler::new(arch, None).compile(&SOURCES[0]) {
        Ok(_) => Check::ok(NAME, format!("compiles kernels for {arch}")),
        Err(error) => {
            Check::fail(NAME, error.to_string(), "sudo apt install cuda-nvrtc-13-0 (or the whole CUDA toolkit 13)")
        }
    }
}

fn missing(machine: &Machine, why: &str) -> Check {
    if !is_fitted(machine) {
        return Check::unknown(NAME, format!("no NVIDIA GPU here, so the CPU computes ({why})"));
    }
    let fix = match machine.has("sys/module/nvidia") {
        true => "nvidia-smi (it says what is wrong; a driver that was just updated wants a reboot)",
        false => "sudo apt install nvidia-open, then reboot (DGX OS: sudo apt full-upgrade)",
    };
    Check::fail(NAME, format!("there is one, but {why}"), fix)
}

/// Whether there is one, whatever the driver says.
fn is_fitted(machine: &Machine) -> bool {
    let is_gpu = |device: &String| {
        let of = |name: &str| machine.text(&format!("sys/bus/pci/devices/{device}/{name}")).unwrap_or_default();
        of("vendor") == VENDOR && of("class").starts_with(DISPLAY_CLASS)
    };
    machine.has("dev/nvidia0") || machine.names("sys/bus/pci/devices").iter().any(is_gpu)
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::super::machine::fake::Fake;
    use super::*;

    #[test]
    fn a_gpu_without_a_driver_is_told_from_no_gpu() {
        let none = Fake::new()
            .with("sys/bus/pci/devices/0000:00:1f.0/vendor", "0x10de\n")
            .with("sys/bus/pci/devices/0000:00:1f.0/class", "0x020000\n");
        assert_eq!(missing(&none.machine(), "no driver").status, Status::Unknown, "a network card is none");
        let gpu = none.with("sys/bus/pci/devices/0000:00:1f.0/class", "0x030200\n");
        let check = missing(&gpu.machine(), "no driver");
        assert!(check.status == Status::Fail && check.fix.unwrap().contains("apt install"), "{}", check.finding);
        let check = missing(&gpu.with("sys/module/nvidia/version", "580\n").machine(), "the driver refuses");
        assert!(check.fix.unwrap().contains("nvidia-smi"));
    }
}
