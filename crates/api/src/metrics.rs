//! Counts and durations for Prometheus.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tandem_engine::{EngineStats, FinishReason, Finished, Update};

use crate::histogram::Histogram;
use crate::status::{LinkReport, RequestsReport};

/// Upper bounds of waits in seconds, from a millisecond to the prefill of a full context on a slow machine.
const WAITS_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Upper bounds of the time between two tokens, in seconds.
const STEPS_S: &[f64] = &[
    0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
];
/// Why a choice ended, as a label.
const REASONS: [&str; 4] = ["stop", "length", "abort", "error"];

/// What the edge counts; the engine's own figures are added when they are written.
pub(crate) struct Metrics {
    finished: [AtomicU64; REASONS.len()],
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    e2e_request_latency: Histogram,
    queue_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    tool_calls: AtomicU64,
    recovered_messages: AtomicU64,
    unknown_recipients: AtomicU64,
    responses: [AtomicU64; 6],
}

impl Metrics {
    /// All zero.
    pub(crate) fn new() -> Self {
        Self {
            finished: Default::default(),
            time_to_first_token: Histogram::new(WAITS_S),
            inter_token_latency: Histogram::new(STEPS_S),
            e2e_request_latency: Histogram::new(WAITS_S),
            queue_time: Histogram::new(WAITS_S),
            prefill_time: Histogram::new(WAITS_S),
            decode_time: Histogram::new(WAITS_S),
            tool_calls: AtomicU64::new(0),
            recovered_messages: AtomicU64::new(0),
            unknown_recipients: AtomicU64::new(0),
            responses: Default::default(),
        }
    }

    /// Counts a response by the class of its status.
    pub(crate) fn count_response(&self, status: u16) {
        let class = usize::from(status / 100).min(self.responses.len() - 1);
        self.responses[class].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what the parser had to say about a reply.
    pub(crate) fn count_reply(&self, summary: &tandem_harmony::Summary) {
        self.tool_calls.fetch_add(summary.tool_calls as u64, Ordering::Relaxed);
        self.recovered_messages.fetch_add(summary.recovered.into(), Ordering::Relaxed);
        self.unknown_recipients.fetch_add(summary.unknown_recipients.into(), Ordering::Relaxed);
    }

    /// The histograms of which percentiles are reported: first token, between tokens, whole request, queue.
    pub(crate) fn latencies(&self) -> [&Histogram; 4] {
        [&self.time_to_first_token, &self.inter_token_latency, &self.e2e_request_latency, &self.queue_time]
    }

    /// What became of requests.
    pub(crate) fn requests(&self) -> RequestsReport {
        let [stop, length, aborted, failed] = self.finished.each_ref().map(|count| count.load(Ordering::Relaxed));
        let [.., refused, server_errors] = self.responses.each_ref().map(|count| count.load(Ordering::Relaxed));
        RequestsReport { stop, length, aborted, failed, refused, server_errors }
    }

    /// All of it in Prometheus' text format. Without an engine, its figures are left out.
    pub(crate) fn write(&self, model: &str, stats: Option<EngineStats>, link: Option<&LinkReport>) -> String {
        let model = format!("model_name=\"{}\"", model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
        let mut page = Page { text: String::new(), model };
        if let Some(stats) = stats {
            page.engine(&stats);
        }
        if let Some(link) = link {
            page.link(link);
        }
        page.family("request_success_total", "counter", "Choices that ended, by reason.");
        for (reason, count) in REASONS.iter().zip(&self.finished) {
            page.labelled("request_success_total", &format!("finished_reason=\"{reason}\""), count);
        }
        page.family("http_responses_total", "counter", "HTTP responses, by class of status.");
        for (class, count) in self.responses.iter().enumerate().skip(1) {
            page.labelled("http_responses_total", &format!("status=\"{class}xx\""), count);
        }
        page.counter("tool_calls_total", "Tool calls in replies.", self.tool_calls.load(Ordering::Relaxed));
        let recovered = self.recovered_messages.load(Ordering::Relaxed);
        page.counter("recovered_messages_total", "Malformed messages of the model that were read anyway.", recovered);
        let unknown = self.unknown_recipients.load(Ordering::Relaxed);
        page.counter("unknown_recipients_total", "Tool calls to tools that were not offered.", unknown);
        page.histogram("time_to_first_token_seconds", "From arrival to the first token.", &self.time_to_first_token);
        page.histogram("inter_token_latency_seconds", "Between two tokens of a choice.", &self.inter_token_latency);
        page.histogram("e2e_request_latency_seconds", "From arrival to the end.", &self.e2e_request_latency);
        page.histogram("request_queue_time_seconds", "Waiting for a slot.", &self.queue_time);
        page.histogram("request_prefill_time_seconds", "From slot to first token.", &self.prefill_time);
        page.histogram("request_decode_time_seconds", "From first token to last.", &self.decode_time);
        page.text
    }
}

/// The metrics page as far as it is written.
struct Page {
    text: String,
    model: String,
}

impl Page {
    fn engine(&mut self, stats: &EngineStats) {
        self.gauge("num_requests_running", "Requests that hold a slot.", stats.running as f64);
        self.gauge("num_requests_waiting", "Requests in the queue.", stats.waiting as f64);
        self.gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", stats.kv_usage);
        self.counter("prefix_cache_queries_total", "Prompt tokens looked up in the cache.", stats.prefix_queries);
        self.counter("prefix_cache_hits_total", "Prompt tokens found in the cache.", stats.prefix_hits);
        self.counter("prompt_tokens_total", "Prompt tokens computed.", stats.prompt_tokens);
        self.counter("generation_tokens_total", "Tokens generated.", stats.generated_tokens);
        self.counter("num_preemptions_total", "Requests preempted for want of blocks.", stats.preemptions);
        self.counter("steps_total", "Steps of the model.", stats.steps);
    }

    fn link(&mut self, link: &LinkReport) {
        let help = "An exchange of a token's activations between the nodes, as measured when they had connected.";
        self.gauge("link_exchange_seconds", help, link.exchange_us / 1e6);
        let help =
            "What a node sends to each other one while it receives as much, as measured when they had connected.";
        self.gauge("link_bytes_per_second", help, link.bytes_per_s);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP tandem_{name} {help}\n# TYPE tandem_{name} {kind}");
    }

    fn labelled(&mut self, name: &str, label: &str, count: &AtomicU64) {
        let _ = writeln!(self.text, "tandem_{name}{{{},{label}}} {}", self.model, count.load(Ordering::Relaxed));
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help);
        let _ = writeln!(self.text, "tandem_{name}{{{}}} {value}", self.model);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        let _ = writeln!(self.text, "tandem_{name}{{{}}} {value}", self.model);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        histogram.write(&mut self.text, &format!("tandem_{name}"), &self.model);
    }
}

/// Measures one choice by the updates that pass, on the engine's thread.
pub(crate) struct Meter {
    metrics: Arc<Metrics>,
    arrived: Instant,
    last_token: Option<Instant>,
    /// Set where the edge ended the choice at a stop string, which the engine sees as an abort.
    stopped: Arc<AtomicBool>,
}

impl Meter {
    /// A meter for a choice of a request that arrived at `arrived`.
    pub(crate) fn new(metrics: Arc<Metrics>, arrived: Instant, stopped: Arc<AtomicBool>) -> Self {
        Self { metrics, arrived, last_token: None, stopped }
    }

    /// Records an update.
    pub(crate) fn observe(&mut self, update: &Update) {
        match update {
            Update::Token { .. } => self.token(),
            Update::Finished(finished) => self.finished(finished),
            Update::Started { .. } | Update::PromptScores(_) => {}
        }
    }

    fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.metrics.time_to_first_token.record(now - self.arrived),
            Some(last) => self.metrics.inter_token_latency.record(now - last),
        }
    }

    fn finished(&self, finished: &Finished) {
        let reason = match &finished.reason {
            FinishReason::Stop(_) => 0,
            FinishReason::Length => 1,
            FinishReason::Aborted if self.stopped.load(Ordering::Relaxed) => 0,
            FinishReason::Aborted => 2,
            FinishReason::Failed(_) => 3,
        };
        self.metrics.finished[reason].fetch_add(1, Ordering::Relaxed);
        self.metrics.e2e_request_latency.record(self.arrived.elapsed());
        self.metrics.queue_time.record(finished.timings.queue);
        if self.last_token.is_some() {
            self.metrics.prefill_time.record(finished.timings.prefill);
            self.metrics.decode_time.record(finished.timings.decode);
        }
    }
}
