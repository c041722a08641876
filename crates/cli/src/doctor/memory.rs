//! Memory that is free, and memory that was swapped out.

use tandem_model::memory::human;

use super::check::Check;
use super::machine::Machine;

/// Less available than this share of all means that something else has much of it.
const AVAILABLE_SHARE_MIN: f64 = 0.5;
/// What may lie in swap without meaning anything: a desktop's forgotten pages.
const SWAPPED_MAX: u64 = 1 << 30;

/// What is available, and what is swapped out.
pub fn checks(machine: &Machine) -> Vec<Check> {
    let text = machine.text("proc/meminfo").unwrap_or_default();
    let of = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    };
    vec![available(of("MemTotal"), machine.available_memory()), swap(of("SwapTotal"), of("SwapFree"))]
}

fn available(total: Option<u64>, available: Option<u64>) -> Check {
    const NAME: &str = "free memory";
    let Some((total, available)) = total.zip(available) else {
        return Check::unknown(NAME, "the kernel does not tell");
    };
    let finding = format!("{} of {} are available", human(available), human(total));
    if (available as f64) < AVAILABLE_SHARE_MIN * total as f64 {
        return Check::warn(NAME, finding, "ps -eo rss,pid,user,args --sort=-rss | head, and end what need not run");
    }
    Check::ok(NAME, finding)
}

/// Where CPU and GPU share one memory, swapping makes a machine crawl.
fn swap(total: Option<u64>, free: Option<u64>) -> Check {
    const NAME: &str = "swap";
    match total.zip(free) {
        None => Check::unknown(NAME, "the kernel does not tell"),
        Some((0, _)) => Check::ok(NAME, "none"),
        Some((total, free)) => {
            let used = total.saturating_sub(free);
            let finding = format!("{} of {} are in use", human(used), human(total));
            match used > SWAPPED_MAX {
                true => Check::warn(NAME, finding, "end what need not run, then sudo swapoff -a && sudo swapon -a"),
                false => Check::ok(NAME, finding),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::super::machine::fake::Fake;
    use super::*;

    fn of(total: u64, available: u64, swap: u64, free: u64) -> [Check; 2] {
        let text = format!(
            "MemTotal: {} kB\nMemFree: 1 kB\nMemAvailable: {} kB\nSwapCached: 0 kB\nSwapTotal: {} kB\nSwapFree: {} kB\n",
            total << 20,
            available << 20,
            swap << 20,
            free << 20
        );
        checks(&Fake::new().with("proc/meminfo", &text).machine()).try_into().unwrap()
    }

    #[test]
    fn what_others_hold_is_told() {
        let [memory, swap] = of(120, 110, 16, 16);
        assert_eq!((memory.status, swap.status), (Status::Ok, Status::Ok));
        let [memory, swap] = of(120, 40, 16, 9);
        assert_eq!((memory.status, swap.status), (Status::Warn, Status::Warn));
        assert!(
            memory.finding.contains("42.95 GB of 128.85 GB") && swap.finding.contains("7.52 GB"),
            "{memory:?} {swap:?}"
        );
        assert_eq!(of(120, 110, 0, 0)[1].finding, "none");
        // A control group grants less than is free.
        let text = "MemTotal: 100 kB\nMemAvailable: 90 kB\n";
        let group = Fake::new().with("proc/meminfo", text).with("sys/fs/cgroup/memory.max", "40960\n");
        let group = group.with("sys/fs/cgroup/memory.current", "0\n");
        assert_eq!(checks(&group.machine())[0].status, Status::Warn);
        let unknown = checks(&Fake::new().machine());
        assert!(unknown.iter().all(|check| check.status == Status::Unknown));
    }
}
