//! One choice of a reply, token by token.

use serde::Serialize;
use tandem_engine::{FinishReason, Update};
use tandem_harmony::{Channel, Event, Parser, StopStrings, Summary, ToolCall, special};
use tandem_step::TokenLogprobs;

use crate::ids;
use crate::logprobs::ChatLogprob;
use crate::turn::TurnPlan;

/// A choice as far as it is generated.
pub(crate) struct ChatChoice {
    /// `None` once the choice has ended.
    parser: Option<Parser>,
    summary: Option<Summary>,
    stops: StopStrings,
    /// Ordinary tokens that end the choice and are no part of its text.
    stop_tokens: Vec<u32>,
    /// Fewest tokens before the edge may end the choice; the engine sees to the stop tokens itself.
    min_tokens: u32,
    /// A call does not end the choice.
    ignore_eos: bool,
    pub reasoning: String,
    pub content: String,
    pub tool_calls: Vec<ToolCall>,
    pub logprobs: Option<Vec<ChatLogprob>>,
    /// The tokens of the reply, those of a forced header first.
    reply: Vec<u32>,
    forced_len: usize,
    pub cached_tokens: u32,
    pub reasoning_tokens: u32,
    pub finish: Option<Finish>,
    /// The stop string that ended the choice, by its place in the request.
    pub stop_string: Option<usize>,
}

/// Why a choice ended, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finish {
    /// The model was done, or a stop string was found.
    Stop,
    /// Out of tokens.
    Length,
    /// The model calls a tool.
    ToolCalls,
}

impl Finish {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
        }
    }
}

/// What is new to the client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Delta {
    Reasoning(String),
    Content(String),
    ToolCall { index: usize, id: String, name: String },
    Arguments { index: usize, arguments: String },
}

impl ChatChoice {
    /// A choice of `plan`'s reply.
    pub(crate) fn new(plan: &TurnPlan) -> (Self, Vec<Delta>) {
        let mut choice = Self {
            parser: Some(Parser::new(&plan.tool_names)),
            summary: None,
            stops: StopStrings::new(plan.params.stop.iter().cloned()),
            stop_tokens: plan.params.stop_tokens.iter().copied().filter(|&id| !special::is_special(id)).collect(),
            min_tokens: plan.params.min_tokens,
            ignore_eos: plan.params.ignore_eos,
            reasoning: String::new(),
            content: String::new(),
            tool_calls: Vec::new(),
            logprobs: plan.logprobs.map(|_| Vec::new()),
            reply: Vec::new(),
            forced_len: plan.forced.len(),
            cached_tokens: 0,
            reasoning_tokens: 0,
            finish: None,
            stop_string: None,
        };
        let deltas = plan.forced.iter().flat_map(|&token| choice.token(token, None)).collect();
        choice.reasoning_tokens = 0;
        (choice, deltas)
    }

    /// Takes an update of the engine and returns what is new. Afterwards `finish` says whether the choice has ended,
    /// which may be sooner than the engine knows.
    pub(crate) fn update(&mut self, update: &Update) -> Vec<Delta> {
        match update {
            Update::Started { cached_tokens } => {
                self.cached_tokens = *cached_tokens;
                Vec::new()
            }
            Update::PromptScores(_) => Vec::new(),
            Update::Token { token, logprobs } => self.token(*token, logprobs.as_ref()),
            Update::Finished(finished) => match finished.reason {
                FinishReason::Length => self.end(Finish::Length),
                _ => self.end(Finish::Stop),
            },
        }
    }

    /// The tokens generated.
    pub(crate) fn generated(&self) -> &[u32] {
        &self.reply[self.forced_len.min(self.reply.len())..]
    }

    /// The tokens of the whole reply, a forced header included.
    pub(crate) fn reply(&self) -> &[u32] {
        &self.reply
    }

    /// What the parser says of the reply, once it has ended.
    pub(crate) fn summary(&self) -> Option<&Summary> {
        self.summary.as_ref()
    }

    fn token(&mut self, token: u32, logprobs: Option<&TokenLogprobs>) -> Vec<Delta> {
        let Some(parser) = &mut self.parser else { return Vec::new() };
        self.reply.push(token);
        if self.stop_tokens.contains(&token) {
            return Vec::new();
        }
        let was_reasoning = parser.channel() == Some(Channel::Analysis);
        let is_visible = parser.in_content() && !special::is_special(token);
        if let (true, Some(list), Some(logprobs)) = (is_visible, &mut self.logprobs, logprobs) {
            list.push(ChatLogprob(logprobs.clone()));
        }
        let events = parser.push(token);
        let is_reasoning = parser.channel() == Some(Channel::Analysis);
        self.reasoning_tokens += u32::from(was_reasoning || is_reasoning);
        self.events(events)
    }

    fn events(&mut self, events: Vec<Event>) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for event in events {
            if self.finish.is_some() {
                break;
            }
            self.event(event, &mut deltas);
        }
        deltas
    }

    fn event(&mut self, event: Event, deltas: &mut Vec<Delta>) {
        match event {
            Event::Reasoning(text) => {
                self.reasoning.push_str(&text);
                deltas.push(Delta::Reasoning(text));
            }
            Event::Content(text) => self.content(&text, deltas),
            Event::ToolCallStart { name, .. } => {
                let held = self.stops.finish();
                self.show(held, deltas);
                let (index, id) = (self.tool_calls.len(), ids::unique_name("call_"));
                self.tool_calls.push(ToolCall { id: id.clone(), name: name.clone(), arguments: String::new() });
                deltas.push(Delta::ToolCall { index, id, name });
            }
            Event::ToolCallArguments { delta, .. } => {
                // The parser speaks of the call that began last.
                if let Some((index, call)) = self.tool_calls.iter_mut().enumerate().next_back() {
                    call.arguments.push_str(&delta);
                    deltas.push(Delta::Arguments { index, arguments: delta });
                }
            }
            // One call ends a reply, also where the model does not write the token that says so.
            Event::ToolCallEnd { .. } if self.parser.is_some() && self.may_end() && !self.ignore_eos => {
                deltas.extend(self.end(Finish::ToolCalls));
            }
            Event::ToolCallEnd { .. } => {}
        }
    }

    /// Shows text up to a stop string, which ends the choice.
    fn content(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        if !self.may_end() {
            return self.show(text.to_string(), deltas);
        }
        let output = self.stops.push(text);
        self.show(output.text, deltas);
        if output.matched.is_some() {
            self.stop_string = output.matched;
            deltas.extend(self.end(Finish::Stop));
        }
    }

    fn show(&mut self, text: String, deltas: &mut Vec<Delta>) {
        if !text.is_empty() {
            self.content.push_str(&text);
            deltas.push(Delta::Content(text));
        }
    }

    fn may_end(&self) -> bool {
        self.generated().len() as u64 >= u64::from(self.min_tokens)
    }

    /// Ends the choice, once: what was held back is shown, unless a stop string cut it off.
    fn end(&mut self, finish: Finish) -> Vec<Delta> {
        let Some(parser) = self.parser.take() else { return Vec::new() };
        let (events, summary) = parser.finish();
        let mut deltas = self.events(events);
        let held = self.stops.finish();
        self.show(held, &mut deltas);
        self.summary = Some(summary);
        let called = finish == Finish::Stop && !self.tool_calls.is_empty();
        self.finish = Some(if called { Finish::ToolCalls } else { finish });
        deltas
    }
}
