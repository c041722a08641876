//! What the server says of itself.

use tandem_proto::v1 as proto;

use crate::state::ApiState;
use crate::status::{self, EngineReport, LinkReport, NodeReport, Status};

/// What is served.
pub(super) fn models(state: &ApiState) -> proto::ListModelsReply {
    let model = state.served().ok().map(|served| {
        let info = &served.model.info;
        proto::Model {
            names: served.model.names().to_vec(),
            context: info.context,
            vocabulary: info.vocab,
            parameters: info.parameters,
            created: info.created,
            notice: info.notice.clone().unwrap_or_default(),
        }
    });
    proto::ListModelsReply { models: model.into_iter().collect() }
}

/// Whether requests are served.
pub(super) fn health(state: &ApiState) -> proto::HealthReply {
    use proto::health_reply::State;
    let trouble = state.served().ok().map(|served| served.engine.trouble());
    let (state, trouble) = match trouble {
        None => (State::Loading, String::new()),
        Some(None) => (State::Serving, String::new()),
        Some(Some(trouble)) => (State::Failed, trouble),
    };
    proto::HealthReply { state: state.into(), trouble, version: env!("CARGO_PKG_VERSION").to_string() }
}

/// The nodes and what they do.
pub(super) fn cluster(state: &ApiState) -> proto::ClusterStatusReply {
    let status = status::now(state);
    proto::ClusterStatusReply {
        engine: status.engine.as_ref().map(|report| engine(report, &status)),
        version: status.version,
        uptime_s: status.uptime_s,
        trouble: status.trouble.unwrap_or_default(),
        nodes: status.nodes.into_iter().map(node).collect(),
        degraded: status.degraded.unwrap_or_default(),
        link: status.link.map(link),
    }
}

fn link(link: LinkReport) -> proto::Link {
    proto::Link { transport: link.transport, exchange_us: link.exchange_us, bytes_per_s: link.bytes_per_s }
}

fn node(node: NodeReport) -> proto::Node {
    let memory = node.memory.into_iter();
    proto::Node {
        name: node.name,
        device: node.device,
        formats: node.formats,
        memory: memory
            .map(|used| proto::MemoryUse { purpose: used.purpose, bytes: used.bytes, note: used.note })
            .collect(),
        budget_bytes: node.budget_bytes,
        resident_bytes: node.resident_bytes,
    }
}

fn engine(engine: &EngineReport, status: &Status) -> proto::EngineStatus {
    proto::EngineStatus {
        running: engine.running,
        waiting: engine.waiting,
        max_streams: engine.max_streams,
        kv_usage: engine.kv_usage,
        kv_tokens: engine.kv_tokens,
        prompt_tokens: engine.prompt_tokens,
        generated_tokens: engine.generated_tokens,
        cache_queried_tokens: status.prefix_cache.queried_tokens,
        cache_hit_tokens: status.prefix_cache.hit_tokens,
        generated_per_s: status.speed.generated_per_s,
        prompt_per_s: status.speed.prompt_per_s,
    }
}
