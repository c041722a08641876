//! `GET /status.json`: how the server is doing, for the status page, `tandem top` and whoever else asks.

mod history;
mod report;

use axum::Json;
use axum::extract::State;

use crate::state::{ApiState, Served};
pub(crate) use history::History;
pub use report::{
    CacheReport, EngineReport, LatencyReport, LinkReport, MemoryUse, ModelReport, NodeReport, Percentiles,
    RequestsReport, SpeedReport, Status,
};

/// The state of the server now, and what it did of late.
pub(crate) async fn report(State(state): State<ApiState>) -> Json<Status> {
    Json(now(&state))
}

/// The same, for any protocol.
pub(crate) fn now(state: &ApiState) -> Status {
    sample(state);
    let served = state.served().ok();
    let recent = state.history().recent(state.metrics());
    Status {
        version: env!("CARGO_PKG_VERSION").to_string(),
        uptime_s: state.uptime().as_secs(),
        trouble: served.as_ref().and_then(|served| served.engine.trouble()),
        model: served.as_ref().map(|served| model(served)),
        nodes: served.as_ref().map_or(Vec::new(), |served| nodes(served)),
        degraded: served.as_ref().and_then(|served| served.model.info.degraded.clone()),
        link: served.as_ref().and_then(|served| served.model.info.link.clone()),
        engine: served.as_ref().map(|served| engine(served)),
        speed: recent.speed,
        prefix_cache: served.as_ref().map(|served| cache(served)).unwrap_or_default(),
        latency: recent.latency,
        requests: state.metrics().requests(),
    }
}

/// Notes the engine's counts, for what is reported about the last minutes.
pub(crate) fn sample(state: &ApiState) {
    if let Ok(served) = state.served() {
        state.history().note(served.engine.stats(), state.metrics());
    }
}

fn model(served: &Served) -> ModelReport {
    let info = &served.model.info;
    ModelReport { names: served.model.names().to_vec(), context: info.context, notice: info.notice.clone() }
}

/// The nodes as they were planned, with what this process, if it is the first node's, really has in memory.
fn nodes(served: &Served) -> Vec<NodeReport> {
    let mut nodes = served.model.info.nodes.clone();
    if let Some(first) = nodes.first_mut().filter(|_| served.model.info.computes_here) {
        first.resident_bytes = resident_bytes();
    }
    nodes
}

fn engine(served: &Served) -> EngineReport {
    let (stats, capacity) = (served.engine.stats(), served.engine.capacity());
    EngineReport {
        running: stats.running as u64,
        waiting: stats.waiting as u64,
        max_streams: u64::from(capacity.max_streams),
        kv_usage: stats.kv_usage,
        kv_tokens: u64::from(capacity.full_blocks) * u64::from(capacity.block_tokens),
        prompt_tokens: stats.prompt_tokens,
        generated_tokens: stats.generated_tokens,
        preemptions: stats.preemptions,
        steps: stats.steps,
    }
}

fn cache(served: &Served) -> CacheReport {
    let stats = served.engine.stats();
    let hit_rate = (stats.prefix_queries > 0).then(|| stats.prefix_hits as f64 / stats.prefix_queries as f64);
    CacheReport { queried_tokens: stats.prefix_queries, hit_tokens: stats.prefix_hits, hit_rate }
}

/// Memory of this process that is not swapped out; `None` where the kernel does not say.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}
