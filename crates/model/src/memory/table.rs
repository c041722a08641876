use std::fmt;

/// What asks for how much memory on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTable {
    /// By purpose.
    pub lines: Vec<MemoryLine>,
    /// How much there may be in all.
    pub budget_bytes: u64,
}

/// One purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLine {
    /// What for.
    pub what: &'static str,
    /// How much.
    pub bytes: u64,
    /// Format or size, for the reader.
    pub note: String,
}

impl MemoryTable {
    /// All lines together.
    pub fn total_bytes(&self) -> u64 {
        self.lines.iter().map(|line| line.bytes).sum()
    }
}

/// Decimal megabytes, or gigabytes from one on up.
pub fn human(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

impl fmt::Display for MemoryTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "  {:<22} {:>12}  {}", line.what, human(line.bytes), line.note)?;
        }
        writeln!(f, "  {:<22} {:>12}", "total", human(self.total_bytes()))?;
        write!(f, "  {:<22} {:>12}", "may be used", human(self.budget_bytes))
    }
}
