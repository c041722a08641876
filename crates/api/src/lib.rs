//! The HTTP edge: the protocols of OpenAI, Anthropic and Ollama in front of the engine.
//!
//! A request is read (`body`) and, by its protocol (`chat_request`, `anthropic`, `responses`, `ollama`), turned into a
//! `Turn`, which is checked and rendered to token ids. A `Reply` hands it to the engine
//! (`generation`) and reads the tokens back (`chat_choice`); the protocol sends that whole or as events (`sse`). Plain
//! completions (`completions`) go a shorter way of their own. Nothing that a client sends is answered with a 5xx, and
//! every wait and every buffer has a limit in [`ApiSettings`].

mod access;
mod anthropic;
mod arguments;
mod blocking;
mod body;
mod chat;
mod chat_choice;
mod chat_request;
mod completion_choice;
mod completion_reply;
mod completion_request;
mod completions;
mod conversation;
mod cors;
mod date;
mod demands;
mod error;
mod file_watch;
mod generation;
mod grpc;
mod histogram;
mod http2;
mod ids;
mod logprobs;
mod metrics;
mod models;
mod ollama;
mod openapi;
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
mod strict;
mod tls;
mod tokenize;
mod turn;
mod usage;
mod write_deadline;

pub use access::{BadOrigin, KeyEntry, KeyFile, KeyFileError, KeyLimits, Keyring, Origins};
pub use error::ApiError;
pub use router::{ollama_router, router};
pub use serve::{Listening, serve, serve_grpc, serve_ollama};
pub use settings::{ApiSettings, ModelInfo};
pub use state::{ApiState, ReadyFlag};
pub use status::{
    CacheReport, EngineReport, LatencyReport, LinkReport, MemoryUse, ModelReport, NodeReport, Percentiles,
    RequestsReport, SpeedReport, Status,
};
pub use tls::{Tls, TlsError};
