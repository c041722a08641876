//! Sizes and times as they are typed.

use std::time::Duration;

/// Bytes from `12G`, `800M`, `1.5GiB`, `4096`. Units are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| "expected a size like 12G or 800M".to_owned())?;
    let shift = match text[digits..].trim().to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        other => return Err(format!("unknown unit {other}: use K, M, G or T")),
    };
    let bytes = number * (1u64 << shift) as f64;
    if bytes.is_finite() && (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err("out of range".into()) }
}

/// A duration from `90s`, `10m`, `2h`, `500ms`, or plain seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| "expected a time like 90s or 10m".to_owned())?;
    let seconds = match &text[digits..] {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        other => return Err(format!("unknown unit {other}: use ms, s, m or h")),
    };
    if (0.001..=1e7).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err("out of range".into()) }
}

/// A duration, or 0.
pub fn parse_slice(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        assert_eq!(parse_size("12G"), Ok(12 << 30));
        assert_eq!(parse_size("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert!(parse_size("12 parsecs").is_err());
        assert!(parse_size("0").is_err());
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(parse_duration("10y").is_err());
        assert_eq!((parse_slice("0"), parse_slice("20ms")), (Ok(Duration::ZERO), Ok(Duration::from_millis(20))));
        assert!(parse_duration("0").is_err() && parse_slice("soon").is_err());
    }
}
