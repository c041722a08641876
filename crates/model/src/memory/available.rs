use std::path::Path;
use std::{fs, io};

/// Bytes that this process may take without pushing others out: `MemAvailable`, or less where a control group says so.
pub fn available_memory() -> io::Result<u64> {
    available_memory_below(Path::new("/"))
}

/// The same by the files of `proc` and `sys` in a folder.
pub fn available_memory_below(root: &Path) -> io::Result<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo"))?;
    let available = mem_available(&meminfo)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no MemAvailable"))?;
    let read = |file: &str| fs::read_to_string(root.join("sys/fs/cgroup").join(file)).ok();
    let left = group_left(read("memory.max"), read("memory.current"), read("memory.stat"));
    Ok(left.map_or(available, |left| left.min(available)))
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// What the limit of the process's own control group (version 2, as a container sees it) leaves; `None` without a limit.
/// Cached file pages that nobody used lately count as free, as in `MemAvailable`.
fn group_left(max: Option<String>, current: Option<String>, stat: Option<String>) -> Option<u64> {
    let max: u64 = max?.trim().parse().ok()?;
    let current: u64 = current?.trim().parse().ok()?;
    let stat = stat.unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok());
    Some(max.saturating_sub(current.saturating_sub(cached.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kibibytes() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(mem_available(meminfo), Some(23_552_000_000));
        assert_eq!(mem_available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_group_without_a_limit_says_max() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(group_left(text("max\n"), text("5\n"), None), None);
        assert_eq!(group_left(text("100\n"), text("30\n"), None), Some(70));
        assert_eq!(group_left(text("100\n"), text("130\n"), None), Some(0));
        assert_eq!(group_left(text("100\n"), text("30\n"), text("anon 10\ninactive_file 20\n")), Some(90));
        assert_eq!(group_left(None, None, None), None);
    }
}
