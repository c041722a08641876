//! The HTTP edge: the protocols of OpenAI, Anthropic and Ollama in front of the engine.
//!
//! A request is read (`body`), checked and rendered to token ids (`chat_request`, `completion_request`), handed to the
//! engine (`generation`), and its tokens are read back into a reply (`chat_choice`, `completion_choice`) that is sent
//! whole or as events (`sse`). Nothing that a client sends is answered with a 5xx, and every wait and
//! every buffer has a limit in [`ApiSettings`].

mod access;
mod anthropic;
mod arguments;
mod blocking;
mod body;
mod chat;
mod chat_choice;
mod chat_request;
mod completion_choice;
mod completion_request;
mod completions;
mod conversation;
mod cors;
mod date;
mod demands;
mod error;
mod file_watch;
mod generation;
mod histogram;
mod ids;
mod logprobs;
mod metrics;
mod models;
mod ollama;
mod pages;
mod params;
mod probes;
mod protocol;
mod replay;
mod reply;
mod request_log;
mod responses;
mod router;
mod sealed;
mod serve;
mod served_model;
mod settings;
mod sse;
mod state;
mod status;
mod tls;
mod tokenize;
mod turn;
mod usage;
mod write_deadline;

pub use access::{BadOrigin, KeyEntry, KeyFile, KeyFileError, KeyLimits, Keyring, Origins};
pub use error::ApiError;
pub use router::{ollama_router, router};
pub use serve::{Listening, serve, serve_ollama};
pub use settings::{ApiSettings, ModelInfo};
pub use state::{ApiState, ReadyFlag};
pub use status::{
    CacheReport, EngineReport, LatencyReport, LinkReport, MemoryUse, ModelReport, NodeReport, Percentiles,
    RequestsReport, SpeedReport, Status,
};
pub use tls::{Tls, TlsError};
