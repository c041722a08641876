//! One line in the log for every request that reached the engine.

use std::time::Instant;

use crate::error::ApiError;
use crate::usage::Tally;

/// What is known of a request so far; it is logged when this is dropped, however the request ended.
pub(crate) struct RequestLog {
    arrived: Instant,
    endpoint: &'static str,
    stream: bool,
    pub(crate) tally: Tally,
    outcome: Option<String>,
}

impl RequestLog {
    /// Begins the record of a request.
    pub(crate) fn new(endpoint: &'static str, arrived: Instant, stream: bool) -> Self {
        Self { arrived, endpoint, stream, tally: Tally::default(), outcome: None }
    }

    /// Notes why a choice ended.
    pub(crate) fn finished(&mut self, reason: &str) {
        match &mut self.outcome {
            Some(outcome) if outcome.split(',').any(|known| known == reason) => {}
            Some(outcome) => *outcome = format!("{outcome},{reason}"),
            None => self.outcome = Some(reason.to_string()),
        }
    }

    /// Notes the error that ended the request.
    pub(crate) fn failed(&mut self, error: &ApiError) {
        self.outcome = Some(error.code().to_string());
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let Tally { prompt, cached, generated, reasoning } = self.tally;
        tracing::info!(
            endpoint = self.endpoint,
            stream = self.stream,
            outcome = self.outcome.as_deref().unwrap_or("disconnected"),
            prompt,
            cached,
            generated,
            reasoning,
            seconds = self.arrived.elapsed().as_secs_f64(),
            "request ended"
        );
    }
}
