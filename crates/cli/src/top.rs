//! `tandem top`: how a running server is doing, in the terminal.

use std::io::{IsTerminal, Write, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tandem_api::{Percentiles, Status};
use tandem_model::memory::human;

use crate::nodes::link_speed;
use crate::remote::{DEFAULT_URL, Remote};
use crate::settings::TopArgs;

/// Columns where the terminal does not say how wide it is.
const COLUMNS: usize = 80;
/// Longest sleep before Ctrl-C is noticed.
const NAP: Duration = Duration::from_millis(50);
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The other screen of a terminal, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// From the top, deleting what was there.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Shows the status until Ctrl-C, or once.
pub fn run(args: &TopArgs) -> Result<()> {
    let remote = Remote::new(args.url.as_deref().unwrap_or(DEFAULT_URL), &args.server)?;
    if args.json {
        let status: serde_json::Value = remote.get("/status.json")?;
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    if args.once || !stdout().is_terminal() {
        print!("{}", text(&remote.get("/status.json")?, COLUMNS));
        return Ok(());
    }
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, ended.clone()).context("watching for Ctrl-C")?;
    }
    let _screen = Screen::enter()?;
    watch(&remote, args.interval, &ended)
}

fn watch(remote: &Remote, interval: Duration, ended: &AtomicBool) -> Result<()> {
    while !ended.load(Ordering::Relaxed) {
        let started = Instant::now();
        let shown = match remote.get::<Status>("/status.json") {
            Ok(status) => text(&status, columns()),
            Err(error) => {
                format!("{error:#}\n\n{} is not there, or not as it should be. Asking again.\n", remote.base())
            }
        };
        print!("{REDRAW}{}\nCtrl-C ends.", shown.replace('\n', "\r\n"));
        stdout().flush().context("writing to the terminal")?;
        while started.elapsed() < interval && !ended.load(Ordering::Relaxed) {
            std::thread::sleep(NAP.min(interval));
        }
    }
    Ok(())
}

/// The terminal's other screen, left however this ends.
struct Screen;

impl Screen {
    fn enter() -> Result<Self> {
        print!("{ENTER}");
        stdout().flush().context("writing to the terminal")?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print!("{LEAVE}");
        // Nothing can be done for a terminal that is gone.
        let _ = stdout().flush();
    }
}

fn columns() -> usize {
    terminal_size::terminal_size().map_or(COLUMNS, |(width, _)| usize::from(width.0))
}

/// The whole status, in lines of at most `columns`.
fn text(status: &Status, columns: usize) -> String {
    let mut lines = vec![heading(status)];
    lines.extend(status.model.as_ref().and_then(|model| model.notice.clone()));
    lines.extend(status.degraded.clone());
    lines.push(String::new());
    lines.extend(work(status));
    lines.push(String::new());
    lines.extend(latencies(status));
    for node in &status.nodes {
        lines.push(String::new());
        lines.extend(memory(node));
    }
    if let Some(link) = &status.link {
        lines.push(format!("link      {}", link.transport));
        lines.push(format!("          {}", link_speed(link.exchange_us, link.bytes_per_s)));
    } else if status.nodes.len() == 1 {
        lines.push("link      none: this node is alone".into());
    }
    let cut = |line: String| line.chars().take(columns).collect::<String>() + "\n";
    lines.into_iter().map(cut).collect()
}

fn heading(status: &Status) -> String {
    let state = match (&status.trouble, &status.model) {
        (Some(trouble), _) => format!("stopped: {trouble}"),
        (None, None) => "loading the model".into(),
        (None, Some(model)) => format!("{}, context {}", model.names.join(", "), model.context),
    };
    format!("tandem {} · up {} · {state}", status.version, uptime(status.uptime_s))
}

fn work(status: &Status) -> Vec<String> {
    let (speed, cache) = (&status.speed, &status.prefix_cache);
    let mut lines = vec![format!(
        "tokens/s  {:.1} generated, {:.1} of prompts  {}",
        speed.generated_per_s,
        speed.prompt_per_s,
        sparks(&speed.generated_history)
    )];
    if let Some(engine) = &status.engine {
        lines.push(format!(
            "requests  {} of {} running, {} waiting, {} preempted so far",
            engine.running, engine.max_streams, engine.waiting, engine.preemptions
        ));
        let (share, room) = (engine.kv_usage, engine.kv_tokens);
        lines.push(format!("KV cache  {} {:5.1} % of room for {room} tokens", bar(share), 100.0 * share));
    }
    let share = cache.hit_rate.unwrap_or(0.0);
    let (hits, queried) = (cache.hit_tokens, cache.queried_tokens);
    lines.push(format!("prefixes  {} {:5.1} % hits: {hits} of {queried} tokens", bar(share), 100.0 * share));
    let ended = &status.requests;
    lines.push(format!(
        "ended     {} complete, {} cut off, {} by their clients, {} failed; {} refused, {} server errors",
        ended.stop, ended.length, ended.aborted, ended.failed, ended.refused, ended.server_errors
    ));
    lines
}

fn latencies(status: &Status) -> Vec<String> {
    let row = |name: &str, of: &Percentiles| {
        let [p50, p90, p99] = [of.p50_s, of.p90_s, of.p99_s].map(|value| value.map_or("–".to_owned(), seconds));
        format!("{name:<22}{p50:>10}{p90:>10}{p99:>10}{:>10}", of.count)
    };
    let latency = &status.latency;
    vec![
        format!("{:<22}{:>10}{:>10}{:>10}{:>10}", "last five minutes", "p50", "p90", "p99", "count"),
        row("time to first token", &latency.time_to_first_token),
        row("between tokens", &latency.inter_token),
        row("whole request", &latency.request),
        row("in the queue", &latency.queue),
    ]
}

fn memory(node: &tandem_api::NodeReport) -> Vec<String> {
    let total: u64 = node.memory.iter().map(|part| part.bytes).sum();
    let resident = node.resident_bytes.map_or(String::new(), |bytes| format!(", {} resident", human(bytes)));
    let mut lines = vec![
        format!("node      {} · {}", node.name, node.device),
        format!("          {}", node.formats),
        format!("memory    {} of {} that may be used{resident}", human(total), human(node.budget_bytes)),
    ];
    let part = |part: &tandem_api::MemoryUse| format!("  {:<22}{:>12}  {}", part.purpose, human(part.bytes), part.note);
    lines.extend(node.memory.iter().map(part));
    lines
}

/// Twenty characters, filled to a share of 0 to 1.
fn bar(share: f64) -> String {
    let filled = (share.clamp(0.0, 1.0) * 20.0).round() as usize;
    format!("{}{}", "█".repeat(filled), "░".repeat(20 - filled))
}

/// The last values as a line of blocks, the highest being full.
fn sparks(values: &[f64]) -> String {
    let latest = &values[values.len().saturating_sub(30)..];
    let most = latest.iter().copied().fold(1.0, f64::max);
    latest.iter().map(|value| SPARKS[((value / most * 7.0).round() as usize).min(7)]).collect()
}

fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{:.1} ms", value * 1e3) } else { format!("{value:.2} s") }
}

fn uptime(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_for_the_eye() {
        assert_eq!(bar(0.5), "██████████░░░░░░░░░░");
        assert_eq!((bar(7.0).chars().count(), bar(-1.0).chars().count()), (20, 20));
        assert_eq!(sparks(&[0.0, 50.0, 100.0]), "▁▅█");
        assert_eq!(sparks(&[]), "");
        assert_eq!((seconds(0.0123), seconds(2.5)), ("12.3 ms".into(), "2.50 s".into()));
        assert_eq!((uptime(59), uptime(3_700), uptime(90_000)), ("59 s".into(), "1 h 1 min".into(), "1 d 1 h".into()));
    }
}
