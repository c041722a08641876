use std::fmt;

use serde::Serialize;

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, but slower or less surely than it could.
    Warn,
    /// It will not work.
    Fail,
    /// It could not be told, or does not matter here.
    Unknown,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub finding: String,
    /// The command that mends it, where there is something to mend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    /// As it should be.
    pub fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, finding: finding.into(), fix: None }
    }

    /// Could be better.
    pub fn warn(name: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, finding: finding.into(), fix: Some(fix.into()) }
    }

    /// Will not work.
    pub fn fail(name: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, finding: finding.into(), fix: Some(fix.into()) }
    }

    /// Could not be told, or does not matter.
    pub fn unknown(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, status: Status::Unknown, finding: finding.into(), fix: None }
    }
}

/// All that was looked at, in the order in which it is told.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    checks: Vec<Check>,
}

impl Findings {
    /// Adds one.
    pub fn push(&mut self, check: Check) {
        self.checks.push(check);
    }

    /// Adds several.
    pub fn extend(&mut self, checks: impl IntoIterator<Item = Check>) {
        self.checks.extend(checks);
    }

    /// Whether nothing is to be mended.
    pub fn all_well(&self) -> bool {
        self.to_mend() == 0
    }

    fn to_mend(&self) -> usize {
        self.checks.iter().filter(|check| matches!(check.status, Status::Warn | Status::Fail)).count()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { name, status, finding, fix } in &self.checks {
            let status = match status {
                Status::Ok => "ok",
                Status::Warn => "warn",
                Status::Fail => "fail",
                Status::Unknown => "-",
            };
            writeln!(f, "{status:<5} {name:<14} {}", finding.replace('\n', "\n                     "))?;
            if let Some(fix) = fix {
                writeln!(f, "                     fix: {fix}")?;
            }
        }
        match self.to_mend() {
            0 => writeln!(f, "\nnothing to mend"),
            1 => writeln!(f, "\n1 thing to mend"),
            many => writeln!(f, "\n{many} things to mend"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_to_be_mended_spoils_it() {
        let mut findings = Findings::default();
        findings.extend([Check::ok("gpu", "there"), Check::unknown("clock", "nobody says")]);
        assert!(findings.all_well() && findings.to_string().ends_with("\nnothing to mend\n"));
        findings.push(Check::warn("mtu", "1500", "ip link"));
        assert!(!findings.all_well());
        let text = findings.to_string();
        assert!(text.contains("warn  mtu            1500\n                     fix: ip link\n\n1 thing"), "{text}");
        let json = serde_json::to_value(&findings).unwrap();
        let expected = serde_json::json!({"name": "mtu", "status": "warn", "finding": "1500", "fix": "ip link"});
        assert_eq!(json["checks"][2], expected);
        assert!(json["checks"][0].get("fix").is_none());
    }
}
