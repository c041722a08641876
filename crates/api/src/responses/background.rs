//! Responses that are computed while nobody waits for them.

use serde_json::Value;
use tokio::sync::watch;
use tracing::Instrument;

use super::create::ResponseReply;
use super::response::Status;
use super::store::Running;
use crate::state::is_true;

/// Goes on with a response on its own and returns it as it stands. It ends early when it is cancelled, or when nobody
/// can ask for it any more.
pub(super) fn start(response: ResponseReply) -> Value {
    let (running, cancelled) = Running::new();
    let object = response.object(&Status::Queued);
    let items = response.conversation();
    let input = response.history.len()..items.len();
    let (id, caller) = (response.head.id.clone(), response.caller);
    response.state.responses().insert(id, caller, &object, items, input, Some(running));
    tokio::spawn(compute(response, cancelled).in_current_span());
    object
}

async fn compute(mut response: ResponseReply, mut cancelled: watch::Receiver<bool>) {
    let mut begun = false;
    let status = loop {
        let progress = tokio::select! {
            biased;
            () = is_true(&mut cancelled) => return,
            progress = response.advance() => progress,
        };
        match progress {
            Ok(Some(_)) if begun => {}
            Ok(Some(_)) => {
                begun = true;
                let object = response.object(&Status::InProgress);
                response.state.responses().update(&response.head.id, &object, Vec::new(), false);
            }
            Ok(None) => break response.finish().1,
            Err(error) => break Status::Failed(error),
        }
    };
    let (object, output) = (response.object(&status), response.output());
    response.state.responses().update(&response.head.id, &object, output, true);
}
