use super::check::Check;
use super::machine::Machine;

/// Whether something keeps the clock right: the two nodes' logs are read side by side.
pub fn check(machine: &Machine) -> Check {
    const NAME: &str = "clock";
    if machine.has("run/systemd/timesync/synchronized") {
        return Check::ok(NAME, "synchronized by systemd-timesyncd");
    }
    if let Some(daemon) =
        ["chrony/chronyd.pid", "chronyd.pid", "ntpd.pid"].into_iter().find(|pid| machine.has(&format!("run/{pid}")))
    {
        return Check::ok(
            NAME,
            format!("{} keeps it", daemon.rsplit('/').next().unwrap_or(daemon).trim_end_matches(".pid")),
        );
    }
    if machine.has("run/systemd/timesync") {
        return Check::warn(
            NAME,
            "systemd-timesyncd runs, but has reached no time server yet",
            "sudo timedatectl set-ntp true; timedatectl timesync-status",
        );
    }
    Check::unknown(NAME, "nothing that keeps it was found; what the nodes differ by: tandem doctor --peer")
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::super::machine::fake::Fake;
    use super::*;

    #[test]
    fn whoever_keeps_the_clock_is_named() {
        let of = |path: &str| check(&Fake::new().with(path, "").machine());
        assert_eq!(of("run/systemd/timesync/synchronized").status, Status::Ok);
        assert_eq!(of("run/chrony/chronyd.pid").finding, "chronyd keeps it");
        assert_eq!(of("run/systemd/timesync/clock").status, Status::Warn);
        assert_eq!(of("run/other").status, Status::Unknown);
    }
}
