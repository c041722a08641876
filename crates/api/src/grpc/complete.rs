//! Text that follows text.

use tandem_proto::v1 as proto;
use tandem_proto::v1::complete_event::Event;

use super::call::Call;
use super::request;
use super::stream::Source;
use super::tokens::{finish, finished, started, token_logprob, usage};
use crate::blocking::blocking;
use crate::completion_choice::Piece;
use crate::completion_reply::{CompletionReply, Progress};
use crate::completion_request::{Completions, text_prompt};
use crate::error::ApiError;
use crate::state::ApiState;

/// The completion of one call.
pub(super) struct Completion {
    reply: CompletionReply,
    id: String,
    started: bool,
}

impl Completion {
    /// Checks and tokenizes the request, and hands it to the engine.
    pub(super) async fn start(
        state: &ApiState,
        call: &Call,
        request: proto::CompleteRequest,
        stream: bool,
    ) -> Result<Self, ApiError> {
        let served = state.served()?;
        let (planner, for_model) = (state.clone(), served.clone());
        let plan = blocking(move || {
            let model = &for_model.model;
            request::check_model(&request.model, model)?;
            let completions = Completions {
                params: request::params(request.sampling, stream, &planner, model)?,
                prompts: vec![text_prompt("prompt", &request.prompt, model)?],
                echo: false,
                logprobs: request::logprobs(request.top_logprobs)?,
                skip_special_tokens: true,
                demand: request::demand(request.format)?,
            };
            completions.plan(&planner, model)
        })
        .await?;
        let reply = CompletionReply::start(state, &served, plan, call.arrived)?;
        Ok(Self { reply, id: format!("complete-{}", call.name), started: false })
    }

    /// The completion when it is complete.
    pub(super) async fn whole(mut self) -> Result<proto::CompleteReply, ApiError> {
        let mut all = Piece::default();
        while let Some(progress) = self.reply.next().await? {
            if let Progress::Wrote(wrote) = progress {
                all.append(wrote.piece);
            }
        }
        Ok(proto::CompleteReply {
            id: self.id,
            model: self.reply.served.model.name().to_string(),
            finish: finish(self.reply.choices[0].finish).into(),
            usage: Some(usage(self.reply.tally())),
            logprobs: logprobs(&all),
            text: all.text,
        })
    }

    fn begun(&mut self) -> Vec<proto::CompleteEvent> {
        if std::mem::replace(&mut self.started, true) {
            return Vec::new();
        }
        vec![event(Event::Started(started(&self.id, &self.reply.served.model, self.reply.tally())))]
    }

    fn wrote(&self, piece: Piece) -> Vec<proto::CompleteEvent> {
        let logprobs = logprobs(&piece);
        let mut events = Vec::new();
        if !piece.text.is_empty() {
            events.push(event(Event::Text(piece.text)));
        }
        let reason = self.reply.choices[0].finish;
        if reason.is_some() {
            events.push(event(Event::Finished(finished(reason, self.reply.tally()))));
        }
        // A token without text, such as half a character, goes with what comes next.
        if events.is_empty() && !logprobs.is_empty() {
            events.push(event(Event::Text(String::new())));
        }
        if let Some(first) = events.first_mut() {
            first.logprobs = logprobs;
        }
        events
    }
}

impl Source for Completion {
    type Event = proto::CompleteEvent;

    async fn next(&mut self) -> Result<Option<Vec<proto::CompleteEvent>>, ApiError> {
        let Some(progress) = self.reply.next().await? else { return Ok(None) };
        let mut events = self.begun();
        if let Progress::Wrote(wrote) = progress {
            events.extend(self.wrote(wrote.piece));
        }
        Ok(Some(events))
    }

    fn failed(&mut self, error: &ApiError) {
        self.reply.failed(error);
    }
}

fn event(event: Event) -> proto::CompleteEvent {
    proto::CompleteEvent { event: Some(event), logprobs: Vec::new() }
}

fn logprobs(piece: &Piece) -> Vec<proto::TokenLogprob> {
    let tokens = piece.logprobs.as_ref().map_or(&[][..], |logprobs| logprobs.tokens());
    tokens.iter().filter_map(|scored| scored.logprobs.as_ref().map(token_logprob)).collect()
}
