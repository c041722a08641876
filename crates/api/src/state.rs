//! What all requests share.

use std::sync::{Arc, Mutex, OnceLock};

use serde_json::Value;
use tandem_engine::Engine;
use tokio::sync::watch;

use crate::body;
use crate::date;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::replay::Replay;
use crate::settings::{ApiSettings, ModelInfo};

/// The state behind the router; clones share it.
#[derive(Clone)]
pub struct ApiState(Arc<Shared>);

struct Shared {
    settings: ApiSettings,
    served: OnceLock<Arc<Served>>,
    metrics: Arc<Metrics>,
    replay: Mutex<Replay>,
    ending: watch::Sender<bool>,
}

/// The model that is served, once it is loaded.
pub(crate) struct Served {
    pub engine: Engine,
    pub model: ModelInfo,
    /// Names that requests may use; the first is the one that replies carry.
    names: Vec<String>,
}

/// Tells the edge that the model is loaded. Until then requests get a 503, and so does `/ready`.
#[derive(Clone)]
pub struct ReadyFlag(Arc<Shared>);

impl ApiState {
    /// A state without a model, and the flag that gives it one.
    pub fn new(settings: ApiSettings) -> (Self, ReadyFlag) {
        let replay = Mutex::new(Replay::new(settings.replay_replies_max, settings.replay_tokens_max));
        let (ending, _) = watch::channel(false);
        let served = OnceLock::new();
        let shared = Arc::new(Shared { settings, served, metrics: Arc::new(Metrics::new()), replay, ending });
        (Self(shared.clone()), ReadyFlag(shared))
    }

    /// The settings.
    pub fn settings(&self) -> &ApiSettings {
        &self.0.settings
    }

    /// Whether the model is loaded.
    pub fn is_ready(&self) -> bool {
        self.0.served.get().is_some()
    }

    /// The model, or the error for requests that come too early.
    pub(crate) fn served(&self) -> Result<Arc<Served>, ApiError> {
        self.0.served.get().cloned().ok_or_else(ApiError::loading)
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Replies that may have to be repeated token by token.
    pub(crate) fn replay(&self) -> std::sync::MutexGuard<'_, Replay> {
        // A map of token ids stays usable whatever happened to whoever held it.
        self.0.replay.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The date for the system message.
    pub(crate) fn date(&self) -> String {
        self.0.settings.date.clone().unwrap_or_else(date::today)
    }

    /// Ends all open requests with an error.
    pub(crate) fn end_requests(&self) {
        self.0.ending.send_replace(true);
    }

    /// Becomes true when open requests must end.
    pub(crate) fn ending(&self) -> watch::Receiver<bool> {
        self.0.ending.subscribe()
    }
}

/// Waits until a flag is raised; for ever, if whoever could raise it is gone.
pub(crate) async fn is_true(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|&raised| raised).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl ReadyFlag {
    /// From now on requests are served. Only the first call counts.
    pub fn ready(&self, engine: Engine, model: ModelInfo) {
        let settings = &self.0.settings;
        let name = settings.served_model_name.clone().unwrap_or_else(|| model.id.clone());
        let mut names = vec![name];
        names.extend(model.aliases.iter().chain(&settings.model_aliases).cloned());
        if self.0.served.set(Arc::new(Served { engine, model, names })).is_err() {
            tracing::warn!("the edge was given a model twice; it keeps the first");
        }
    }
}

impl Served {
    /// The name that replies carry.
    pub(crate) fn name(&self) -> &str {
        &self.names[0]
    }

    /// All names that requests may use, the first being [`Served::name`].
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Checks the `model` of a request; none means the one served.
    pub(crate) fn check_model(&self, request: &Value) -> Result<(), ApiError> {
        match &request["model"] {
            Value::Null => Ok(()),
            Value::String(name) => self.check_name(name),
            other => {
                let message = format!("'model' is {}; a string is expected", body::kind(other));
                Err(ApiError::invalid_type("model", message))
            }
        }
    }

    /// Checks that `name` is one of the model's.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), ApiError> {
        match self.names.iter().any(|known| known == name) {
            true => Ok(()),
            false => Err(ApiError::model_not_found(name, self.name())),
        }
    }

    /// Identifies the software and the model, as OpenAI's `system_fingerprint` does.
    pub(crate) fn fingerprint(&self) -> String {
        format!("tandem-{}-{}", env!("CARGO_PKG_VERSION"), self.model.id)
    }
}
