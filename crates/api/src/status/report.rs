//! What `/status.json` says.

use serde::{Deserialize, Serialize};

/// How the server is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of this software.
    pub version: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Why requests are not served although the model is loaded, if so.
    pub trouble: Option<String>,
    /// The model; `null` while it is loading.
    pub model: Option<ModelReport>,
    /// The machines that compute, this one first; empty while the model is loading.
    pub nodes: Vec<NodeReport>,
    /// Why they are fewer than they should be; `null` where they are not.
    pub degraded: Option<String>,
    /// How the nodes are connected; `null` where there is only one.
    pub link: Option<LinkReport>,
    /// What is being computed; `null` while the model is loading.
    pub engine: Option<EngineReport>,
    /// Tokens per second.
    pub speed: SpeedReport,
    /// Prompt tokens that need not be computed.
    pub prefix_cache: CacheReport,
    /// How long requests take.
    pub latency: LatencyReport,
    /// What became of requests.
    pub requests: RequestsReport,
}

/// The model that is served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelReport {
    /// The names that requests may use; the first is in the replies.
    pub names: Vec<String>,
    /// Longest conversation, in tokens.
    pub context: u32,
    /// Something whoever talks to it should know.
    pub notice: Option<String>,
}

/// A machine that computes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its host name.
    pub name: String,
    /// Device, code path and threads.
    pub device: String,
    /// Number formats.
    pub formats: String,
    /// What was planned for what.
    pub memory: Vec<MemoryUse>,
    /// How much may be used in all.
    pub budget_bytes: u64,
    /// What the process really has in memory; `null` where that is not known.
    pub resident_bytes: Option<u64>,
}

/// Memory for one purpose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// What for.
    pub purpose: String,
    /// How much.
    pub bytes: u64,
    /// Format or size, for the reader.
    pub note: String,
}

/// How nodes are connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// What carries the exchanges: transport and devices.
    pub transport: String,
    /// Microseconds of an exchange of a token's activations, as measured when the nodes had connected.
    pub exchange_us: f64,
    /// Bytes in a second that a node sends to each other one while it receives as many, as measured then.
    pub bytes_per_s: f64,
}

/// What is being computed, and what was since the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineReport {
    /// Requests that are computed.
    pub running: u64,
    /// Requests in the queue.
    pub waiting: u64,
    /// Requests that can be computed at once.
    pub max_streams: u64,
    /// Share of the KV cache that running requests hold, 0 to 1.
    pub kv_usage: f64,
    /// Tokens that the KV cache has room for.
    pub kv_tokens: u64,
    /// Prompt tokens computed, without those from the cache.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Requests that had to make room for others for a while.
    pub preemptions: u64,
    /// Steps of the model.
    pub steps: u64,
}

/// Tokens per second, over all requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpeedReport {
    /// Generated, in the last few seconds.
    pub generated_per_s: f64,
    /// Prompt tokens computed, in the last few seconds.
    pub prompt_per_s: f64,
    /// Generated in each of the last seconds, at most 60, the latest last.
    pub generated_history: Vec<f64>,
}

/// Prompt tokens looked up in the prefix cache since the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CacheReport {
    /// Looked up.
    pub queried_tokens: u64,
    /// Found.
    pub hit_tokens: u64,
    /// Their quotient; `null` where nothing was looked up.
    pub hit_rate: Option<f64>,
}

/// Percentiles of the last five minutes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// From arrival to the first token.
    pub time_to_first_token: Percentiles,
    /// Between two tokens of a choice.
    pub inter_token: Percentiles,
    /// From arrival to the end.
    pub request: Percentiles,
    /// Waiting for a slot.
    pub queue: Percentiles,
}

/// Percentiles of durations in seconds, as exact as the histogram's buckets; `null` where there were none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many durations.
    pub count: u64,
    /// Half take no longer.
    pub p50_s: Option<f64>,
    /// Nine out of ten take no longer.
    pub p90_s: Option<f64>,
    /// 99 out of a hundred take no longer.
    pub p99_s: Option<f64>,
}

/// What became of choices since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestsReport {
    /// Ended by themselves or at a stop string.
    pub stop: u64,
    /// Ended by their budget or the context.
    pub length: u64,
    /// Ended by their clients.
    pub aborted: u64,
    /// Failed.
    pub failed: u64,
    /// HTTP answers with a 4xx.
    pub refused: u64,
    /// HTTP answers with a 5xx.
    pub server_errors: u64,
}
