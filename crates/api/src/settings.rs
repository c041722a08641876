//! What the HTTP edge can be told.

use std::time::Duration;

use crate::access::{Keyring, Origins};
use crate::status::{LinkReport, NodeReport};
use tandem_harmony::Effort;

/// Settings of the HTTP edge. Every wait has a limit here, and so has everything that grows with what clients send.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// The name under which the model is served, instead of [`ModelInfo::id`].
    pub served_model_name: Option<String>,
    /// Further names that requests may use.
    pub model_aliases: Vec<String>,
    /// Largest request body, in bytes.
    pub body_bytes_max: usize,
    /// The keys of which a request needs one; `None` lets everybody in.
    pub keys: Option<Keyring>,
    /// Whether `/metrics` needs no key.
    pub open_metrics: bool,
    /// Other sites whose pages may use the server from a browser.
    pub cors_origins: Origins,
    /// Longest wait for a request's headers, which is also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// Longest wait for a request's whole body.
    pub body_timeout: Duration,
    /// Longest wait for a client to take more of a response.
    pub write_timeout: Duration,
    /// Longest time that a request may take, waiting in the queue included.
    pub request_timeout: Duration,
    /// Interval of the comments that keep a silent stream open.
    pub keep_alive: Duration,
    /// How long open requests may go on after a shutdown was asked for.
    pub shutdown_grace: Duration,
    /// Open connections; further ones wait to be accepted.
    pub connections_max: usize,
    /// Choices of one request (`n` times the number of prompts).
    pub choices_max: usize,
    /// Choices of one request that the engine is given at a time; the others follow as these end.
    pub choices_at_once: usize,
    /// Updates of one request that may wait for its client; a client further behind loses its stream.
    pub pending_updates_max: usize,
    /// Replies whose tokens are remembered, so that a tool loop's next request repeats them exactly.
    pub replay_replies_max: usize,
    /// Tokens remembered for that, over all replies.
    pub replay_tokens_max: usize,
    /// Responses of `/v1/responses` that are stored.
    pub stored_responses_max: usize,
    /// Bytes of these and of their conversations.
    pub stored_response_bytes_max: usize,
    /// How long they are stored.
    pub stored_response_age_max: Duration,
    /// The most that the model thinks, whatever a request asks for.
    pub effort_max: Effort,
    /// The date in the system message, `YYYY-MM-DD`, instead of today's in UTC.
    pub date: Option<String>,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            served_model_name: None,
            model_aliases: Vec::new(),
            body_bytes_max: 8 << 20,
            keys: None,
            open_metrics: false,
            cors_origins: Origins::None,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(3600),
            keep_alive: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(30),
            connections_max: 1024,
            choices_max: 256,
            choices_at_once: 16,
            pending_updates_max: 1024,
            replay_replies_max: 1024,
            replay_tokens_max: 1 << 20,
            stored_responses_max: 1024,
            stored_response_bytes_max: 64 << 20,
            stored_response_age_max: Duration::from_secs(24 * 3600),
            effort_max: Effort::High,
            date: None,
        }
    }
}

/// What the edge must know of the model besides the engine that runs it.
#[derive(Clone, Debug, Default)]
pub struct ModelInfo {
    /// Its name, such as `gpt-oss-20b`.
    pub id: String,
    /// Other names that requests may use.
    pub aliases: Vec<String>,
    /// Size of its vocabulary: token ids are `0..vocab`.
    pub vocab: u32,
    /// Positions that one request may occupy, prompt and output together.
    pub context: u32,
    /// Its parameters, active or not.
    pub parameters: u64,
    /// Bytes of its tensors as shipped.
    pub checkpoint_bytes: u64,
    /// When it was made, or loaded: seconds since 1970.
    pub created: u64,
    /// Something that whoever talks to it should know, such as that it is a demo.
    pub notice: Option<String>,
    /// The machines that compute it, this one first.
    pub nodes: Vec<NodeReport>,
    /// How they are connected, if there are several.
    pub link: Option<LinkReport>,
    /// Why they are fewer than they should be, if so.
    pub degraded: Option<String>,
    /// Whether the first of them is this very process, whose memory can be told.
    pub computes_here: bool,
}
