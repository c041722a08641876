//! The standard health service, and what it follows.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tandem_proto::v1::inference_server::SERVICE_NAME;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthService, HealthServer};
use tonic_health::server::HealthReporter;

use crate::state::ApiState;

/// How often the model is asked how it does.
const INTERVAL: Duration = Duration::from_millis(250);
/// Its one service that can be out of order, and the server as a whole: last, so that whoever hears that it serves finds the
/// service serving.
const NAMES: [&str; 2] = [SERVICE_NAME, ""];

/// What watchers are told.
pub(crate) struct Health {
    reporter: HealthReporter,
    ended: AtomicBool,
}

impl Health {
    /// Nothing is served yet; and the service that says so.
    pub(super) async fn new() -> (Self, HealthServer<impl HealthService>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let health = Self { reporter, ended: AtomicBool::new(false) };
        health.set(ServingStatus::NotServing).await;
        (health, service)
    }

    /// Says how the model does, for ever.
    pub(crate) async fn follow(&self, state: &ApiState) -> Infallible {
        let mut last = ServingStatus::NotServing;
        loop {
            let serving = state.served().is_ok_and(|served| served.engine.trouble().is_none());
            let now = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            if now != last && !self.ended.load(Ordering::Relaxed) {
                self.set(now).await;
                last = now;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Nothing more will be served. Watchers are told, and let go: they would hold up the end.
    pub(crate) async fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.set(ServingStatus::NotServing).await;
        let mut reporter = self.reporter.clone();
        for name in NAMES {
            reporter.clear_service_status(name).await;
        }
    }

    async fn set(&self, status: ServingStatus) {
        for name in NAMES {
            self.reporter.set_service_status(name, status).await;
        }
    }
}
