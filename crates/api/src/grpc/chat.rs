//! Conversations.

use tandem_proto::v1 as proto;
use tandem_proto::v1::chat_event::Event;

use super::call::Call;
use super::request;
use super::stream::Source;
use super::tokens::{finish, finished, started, token_logprob, usage};
use crate::blocking::blocking;
use crate::chat_choice::{ChatChoice, Delta};
use crate::error::ApiError;
use crate::reply::{Progress, Reply, Said};
use crate::state::ApiState;

/// The assistant's reply to one call.
pub(super) struct Chat {
    reply: Reply,
    id: String,
    started: bool,
    logprobs_sent: usize,
}

impl Chat {
    /// Checks and renders the request, and hands it to the engine.
    pub(super) async fn start(
        state: &ApiState,
        call: &Call,
        request: proto::ChatRequest,
        stream: bool,
    ) -> Result<Self, ApiError> {
        let served = state.served()?;
        let (planner, for_model) = (state.clone(), served.clone());
        let plan = blocking(move || {
            let model = &for_model.model;
            request::check_model(&request.model, model)?;
            let mut request = request;
            let params = request::params(request.sampling.take(), stream, &planner, model)?;
            let logprobs = request::logprobs(request.top_logprobs)?;
            request::turn(request)?.plan(params, logprobs, &planner, model)
        })
        .await?;
        let reply = Reply::start(state, &served, plan, "grpc chat", call.arrived)?;
        Ok(Self { reply, id: format!("chat-{}", call.name), started: false, logprobs_sent: 0 })
    }

    /// The reply when it is complete.
    pub(super) async fn whole(mut self) -> Result<proto::ChatReply, ApiError> {
        self.reply.complete().await?;
        let logprobs = self.logprobs();
        let choice = self.choice();
        let call = |call: &tandem_harmony::ToolCall| proto::ToolCall {
            id: call.id.clone(),
            name: call.name.clone(),
            arguments_json: call.arguments.clone(),
        };
        Ok(proto::ChatReply {
            id: self.id.clone(),
            model: self.reply.served().model.name().to_string(),
            content: choice.content.clone(),
            reasoning: choice.reasoning.clone(),
            tool_calls: choice.tool_calls.iter().map(call).collect(),
            finish: finish(choice.finish).into(),
            usage: Some(usage(self.reply.tally())),
            logprobs,
        })
    }

    fn choice(&self) -> &ChatChoice {
        &self.reply.choices[0]
    }

    fn begun(&mut self) -> Vec<proto::ChatEvent> {
        if std::mem::replace(&mut self.started, true) {
            return Vec::new();
        }
        vec![event(Event::Started(started(&self.id, &self.reply.served().model, self.reply.tally())))]
    }

    fn said(&mut self, said: Said) -> Vec<proto::ChatEvent> {
        let mut events: Vec<_> = said.deltas.into_iter().map(|delta| event(delta_event(delta))).collect();
        if said.finish.is_some() {
            events.push(event(Event::Finished(finished(said.finish, self.reply.tally()))));
        }
        if let Some(first) = events.first_mut() {
            first.logprobs = self.logprobs();
        }
        events
    }

    /// Those not sent yet.
    fn logprobs(&mut self) -> Vec<proto::TokenLogprob> {
        let all = self.reply.choices[0].logprobs.as_deref().unwrap_or_default();
        let fresh = all[self.logprobs_sent..].iter().map(|logprob| token_logprob(&logprob.0)).collect();
        self.logprobs_sent = all.len();
        fresh
    }
}

impl Source for Chat {
    type Event = proto::ChatEvent;

    async fn next(&mut self) -> Result<Option<Vec<proto::ChatEvent>>, ApiError> {
        let Some(progress) = self.reply.next().await? else { return Ok(None) };
        let mut events = self.begun();
        if let Progress::Said(said) = progress {
            events.extend(self.said(said));
        }
        Ok(Some(events))
    }

    fn failed(&mut self, error: &ApiError) {
        self.reply.failed(error);
    }
}

fn event(event: Event) -> proto::ChatEvent {
    proto::ChatEvent { event: Some(event), logprobs: Vec::new() }
}

fn delta_event(delta: Delta) -> Event {
    match delta {
        Delta::Reasoning(text) => Event::Reasoning(text),
        Delta::Content(text) => Event::Content(text),
        Delta::ToolCall { index, id, name } => Event::ToolCall(proto::ToolCallBegin { index: index as u32, id, name }),
        Delta::Arguments { index, arguments } => {
            Event::ToolCallArguments(proto::ToolCallArguments { index: index as u32, delta: arguments })
        }
    }
}
