//! What all requests share.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tandem_engine::Engine;
use tokio::sync::watch;

use crate::date;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::replay::Replay;
use crate::responses::ResponseStore;
use crate::served_model::ServedModel;
use crate::settings::{ApiSettings, ModelInfo};
use crate::status::History;

/// The state behind the router; clones share it.
#[derive(Clone)]
pub struct ApiState(Arc<Shared>);

struct Shared {
    settings: ApiSettings,
    /// What a request was begun with it ends with; who computes may change in between.
    served: RwLock<Option<Arc<Served>>>,
    metrics: Arc<Metrics>,
    replay: Mutex<Replay>,
    responses: Mutex<ResponseStore>,
    ending: watch::Sender<bool>,
    started: Instant,
    history: Mutex<History>,
}

/// The model that is served, once it is loaded.
pub(crate) struct Served {
    pub engine: Engine,
    pub model: ServedModel,
}

/// Tells the edge that the model is loaded. Until then requests get a 503, and so does `/ready`.
#[derive(Clone)]
pub struct ReadyFlag(Arc<Shared>);

impl ApiState {
    /// A state without a model, and the flag that gives it one.
    pub fn new(settings: ApiSettings) -> (Self, ReadyFlag) {
        let replay = Mutex::new(Replay::new(settings.replay_replies_max, settings.replay_tokens_max));
        let responses = ResponseStore::new(
            settings.stored_responses_max,
            settings.stored_response_bytes_max,
            settings.stored_response_age_max,
        );
        let (ending, _) = watch::channel(false);
        let served = RwLock::new(None);
        let (metrics, responses) = (Arc::new(Metrics::new()), Mutex::new(responses));
        let (started, history) = (Instant::now(), Mutex::new(History::new()));
        let shared = Arc::new(Shared { settings, served, metrics, replay, responses, ending, started, history });
        (Self(shared.clone()), ReadyFlag(shared))
    }

    /// The settings.
    pub fn settings(&self) -> &ApiSettings {
        &self.0.settings
    }

    /// Whether the model is loaded.
    pub fn is_ready(&self) -> bool {
        self.0.served().is_some()
    }

    /// The model, or the error for requests that come too early.
    pub(crate) fn served(&self) -> Result<Arc<Served>, ApiError> {
        self.0.served().ok_or_else(ApiError::loading)
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Replies that may have to be repeated token by token.
    pub(crate) fn replay(&self) -> std::sync::MutexGuard<'_, Replay> {
        // A map of token ids stays usable whatever happened to whoever held it.
        self.0.replay.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Responses that may be asked for again.
    pub(crate) fn responses(&self) -> std::sync::MutexGuard<'_, ResponseStore> {
        // A map of texts stays usable whatever happened to whoever held it.
        self.0.responses.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Counts of the last minutes.
    pub(crate) fn history(&self) -> std::sync::MutexGuard<'_, History> {
        // A list of counts stays usable whatever happened to whoever held it.
        self.0.history.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Time since the state was made.
    pub(crate) fn uptime(&self) -> Duration {
        self.0.started.elapsed()
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

impl Shared {
    fn served(&self) -> Option<Arc<Served>> {
        // It is put there whole or not at all.
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn serve(&self, served: Served) {
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(served));
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
        if self.0.served().is_some() {
            return tracing::warn!("the edge was given a model twice; it keeps the first");
        }
        let model = ServedModel::new(model, &self.0.settings);
        self.0.serve(Served { engine, model });
    }

    /// The same model and engine, of which something else is to be told from now on, such as who computes.
    pub fn changed(&self, model: ModelInfo) {
        let Some(served) = self.0.served() else { return };
        let model = ServedModel::new(model, &self.0.settings);
        self.0.serve(Served { engine: served.engine.clone(), model });
    }
}
