//! A reply as output items, and as the events that build them.

use serde_json::{Value, json};

use super::tools::{Called, Tools, custom_input};
use crate::chat_choice::Delta;
use crate::ids::unique_name;
use crate::logprobs::ChatLogprob;
use crate::sealed;

/// Output items under construction: one is open at a time, and those before it are complete.
pub(super) struct Output {
    tools: Tools,
    /// Reasoning items carry their text sealed, too.
    sealed: bool,
    /// Texts carry log-probabilities.
    logprobs: bool,
    items: Vec<Value>,
    open: Option<Open>,
}

struct Open {
    id: String,
    kind: Kind,
    text: String,
    logprobs: Vec<Value>,
}

enum Kind {
    Reasoning,
    Message,
    Call { call_id: String, called: Called },
}

impl Output {
    /// Nothing yet, of a reply that may call these tools.
    pub(super) fn new(tools: Tools, sealed: bool, logprobs: bool) -> Self {
        Self { tools, sealed, logprobs, items: Vec::new(), open: None }
    }

    /// The items that are complete.
    pub(super) fn items(&self) -> &[Value] {
        &self.items
    }

    /// The events for what is new, in the order of OpenAI's own. `logprobs` belong to text among it.
    pub(super) fn delta(&mut self, delta: Delta, logprobs: &[ChatLogprob]) -> Vec<Value> {
        let mut events = Vec::new();
        match delta {
            Delta::Reasoning(text) => {
                if !matches!(self.open, Some(Open { kind: Kind::Reasoning, .. })) {
                    self.start("rs_", Kind::Reasoning, &mut events);
                }
                self.grow(text, &[], &mut events);
            }
            Delta::Content(text) => {
                if !matches!(self.open, Some(Open { kind: Kind::Message, .. })) {
                    self.start("msg_", Kind::Message, &mut events);
                }
                self.grow(text, logprobs, &mut events);
            }
            Delta::ToolCall { id, name, .. } => {
                let called = self.tools.called(&name);
                let prefix = if called.custom { "ctc_" } else { "fc_" };
                self.start(prefix, Kind::Call { call_id: id, called }, &mut events);
            }
            Delta::Arguments { arguments, .. } => self.grow(arguments, &[], &mut events),
        }
        events
    }

    /// The events that complete the open item, if any; `complete` says whether the reply got to its end.
    pub(super) fn close(&mut self, complete: bool) -> Vec<Value> {
        let Some(open) = self.open.take() else { return Vec::new() };
        let at = self.items.len();
        let status = if complete { "completed" } else { "incomplete" };
        let item = open.item(status, self.sealed, self.logprobs);
        let mut events = match &open.kind {
            Kind::Reasoning | Kind::Message => {
                let part = open.part(self.logprobs);
                let name = open.event_name();
                let mut text = event(&format!("{name}.done"), &open.id, at);
                text["content_index"] = json!(0);
                text["text"] = json!(open.text);
                if matches!(open.kind, Kind::Message) {
                    text["logprobs"] = part["logprobs"].clone();
                }
                vec![text, part_event("response.content_part.done", &open.id, at, part)]
            }
            Kind::Call { called: Called { custom: true, .. }, .. } => {
                // The text is inside JSON, and known only when that is complete.
                let mut delta = event("response.custom_tool_call_input.delta", &open.id, at);
                delta["delta"] = item["input"].clone();
                let mut done = event("response.custom_tool_call_input.done", &open.id, at);
                done["input"] = item["input"].clone();
                vec![delta, done]
            }
            Kind::Call { called, .. } => {
                let mut done = event("response.function_call_arguments.done", &open.id, at);
                done["name"] = json!(called.name);
                done["arguments"] = json!(open.text);
                vec![done]
            }
        };
        events.push(json!({"type": "response.output_item.done", "output_index": at, "item": item}));
        self.items.push(item);
        events
    }

    fn start(&mut self, prefix: &str, kind: Kind, events: &mut Vec<Value>) {
        // Whatever the model goes on from is complete.
        events.extend(self.close(true));
        let at = self.items.len();
        let open = Open { id: unique_name(prefix), kind, text: String::new(), logprobs: Vec::new() };
        let mut item = open.item("in_progress", false, false);
        if !matches!(open.kind, Kind::Call { .. }) {
            item["content"] = json!([]);
        }
        events.push(json!({"type": "response.output_item.added", "output_index": at, "item": item}));
        if !matches!(open.kind, Kind::Call { .. }) {
            events.push(part_event("response.content_part.added", &open.id, at, open.part(false)));
        }
        self.open = Some(open);
    }

    fn grow(&mut self, text: String, logprobs: &[ChatLogprob], events: &mut Vec<Value>) {
        let at = self.items.len();
        let Some(open) = &mut self.open else { return };
        open.text += &text;
        if matches!(open.kind, Kind::Call { called: Called { custom: true, .. }, .. }) {
            return;
        }
        let mut delta = event(&format!("{}.delta", open.event_name()), &open.id, at);
        delta["delta"] = json!(text);
        match open.kind {
            Kind::Call { .. } => {}
            Kind::Reasoning => delta["content_index"] = json!(0),
            Kind::Message => {
                delta["content_index"] = json!(0);
                let logprobs: Vec<Value> = logprobs.iter().map(|logprob| json!(logprob)).collect();
                delta["logprobs"] = json!(logprobs);
                open.logprobs.extend(logprobs);
            }
        }
        events.push(delta);
    }
}

impl Open {
    fn event_name(&self) -> &'static str {
        match self.kind {
            Kind::Reasoning => "response.reasoning_text",
            Kind::Message => "response.output_text",
            Kind::Call { .. } => "response.function_call_arguments",
        }
    }

    /// The one content part of reasoning or a message.
    fn part(&self, logprobs: bool) -> Value {
        match self.kind {
            Kind::Reasoning => json!({"type": "reasoning_text", "text": self.text}),
            _ => json!({
                "type": "output_text",
                "text": self.text,
                "annotations": [],
                "logprobs": if logprobs { &self.logprobs[..] } else { &[] },
            }),
        }
    }

    fn item(&self, status: &str, sealed: bool, logprobs: bool) -> Value {
        let id = &self.id;
        match &self.kind {
            Kind::Reasoning => json!({
                "id": id,
                "type": "reasoning",
                "status": status,
                "summary": [],
                "content": [self.part(false)],
                "encrypted_content": sealed.then(|| sealed::seal(&self.text)),
            }),
            Kind::Message => json!({
                "id": id,
                "type": "message",
                "status": status,
                "role": "assistant",
                "content": [self.part(logprobs)],
            }),
            Kind::Call { call_id, called } => {
                let mut item = json!({"id": id, "status": status, "call_id": call_id, "name": called.name});
                if let Some(namespace) = &called.namespace {
                    item["namespace"] = json!(namespace);
                }
                if called.custom {
                    item["type"] = json!("custom_tool_call");
                    item["input"] =
                        json!(if status == "in_progress" { String::new() } else { custom_input(&self.text) });
                } else {
                    item["type"] = json!("function_call");
                    item["arguments"] = json!(self.text);
                }
                item
            }
        }
    }
}

fn event(kind: &str, item_id: &str, output_index: usize) -> Value {
    json!({"type": kind, "item_id": item_id, "output_index": output_index})
}

fn part_event(kind: &str, item_id: &str, output_index: usize, part: Value) -> Value {
    let mut event = event(kind, item_id, output_index);
    event["content_index"] = json!(0);
    event["part"] = part;
    event
}
