//! A reply's content as blocks, and as the events that build them.

use serde_json::{Value, json};
use tandem_harmony::ToolCall;

use super::request::Thinking;
use crate::arguments;
use crate::chat_choice::{ChatChoice, Delta};
use crate::sealed;

/// Turns what the model says into events: blocks open, grow and close, one at a time.
pub(super) struct BlockEvents {
    thinking: Thinking,
    index: usize,
    open: Option<Open>,
}

#[derive(Clone, Debug, PartialEq)]
enum Open {
    /// With the text so far, where the signature must hold it.
    Thinking(String),
    Text,
    ToolUse,
}

impl BlockEvents {
    /// Events of a reply of which the client sees this much reasoning.
    pub(super) fn new(thinking: Thinking) -> Self {
        Self { thinking, index: 0, open: None }
    }

    /// The events for what is new.
    pub(super) fn delta(&mut self, delta: Delta) -> Vec<Value> {
        let mut events = Vec::new();
        match delta {
            Delta::Reasoning(_) if self.thinking == Thinking::Hidden => {}
            Delta::Reasoning(text) => {
                if !matches!(self.open, Some(Open::Thinking(_))) {
                    let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                    self.start(Open::Thinking(String::new()), block, &mut events);
                }
                match (&mut self.open, self.thinking) {
                    (Some(Open::Thinking(held)), Thinking::Signed) => *held += &text,
                    _ => events.push(self.grown(json!({"type": "thinking_delta", "thinking": text}))),
                }
            }
            Delta::Content(text) => {
                if self.open != Some(Open::Text) {
                    self.start(Open::Text, json!({"type": "text", "text": ""}), &mut events);
                }
                events.push(self.grown(json!({"type": "text_delta", "text": text})));
            }
            Delta::ToolCall { id, name, .. } => {
                let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.start(Open::ToolUse, block, &mut events);
            }
            Delta::Arguments { arguments, .. } => {
                events.push(self.grown(json!({"type": "input_json_delta", "partial_json": arguments})));
            }
        }
        events
    }

    /// The events that close the block that is open, if any.
    pub(super) fn close(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        let Some(open) = self.open.take() else { return events };
        if let Open::Thinking(held) = open {
            let signature = sealed::seal(&held);
            events.push(self.grown(json!({"type": "signature_delta", "signature": signature})));
        }
        events.push(json!({"type": "content_block_stop", "index": self.index}));
        self.index += 1;
        events
    }

    fn start(&mut self, open: Open, block: Value, events: &mut Vec<Value>) {
        events.extend(self.close());
        self.open = Some(open);
        events.push(json!({"type": "content_block_start", "index": self.index, "content_block": block}));
    }

    fn grown(&self, delta: Value) -> Value {
        json!({"type": "content_block_delta", "index": self.index, "delta": delta})
    }
}

/// The blocks of a reply that is complete.
pub(super) fn blocks(choice: &ChatChoice, thinking: Thinking) -> Vec<Value> {
    let mut blocks = Vec::new();
    let reasoning = &choice.reasoning;
    match thinking {
        _ if reasoning.is_empty() => {}
        Thinking::Hidden => {}
        Thinking::Shown => {
            blocks.push(json!({"type": "thinking", "thinking": reasoning, "signature": sealed::seal("")}));
        }
        Thinking::Signed => {
            blocks.push(json!({"type": "thinking", "thinking": "", "signature": sealed::seal(reasoning)}));
        }
    }
    if !choice.content.is_empty() {
        blocks.push(json!({"type": "text", "text": choice.content}));
    }
    blocks.extend(choice.tool_calls.iter().map(tool_use));
    blocks
}

/// A call as a block.
fn tool_use(call: &ToolCall) -> Value {
    json!({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments::object(&call.arguments)})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(events: &[Value]) -> Vec<&str> {
        events.iter().map(|event| event["type"].as_str().unwrap()).collect()
    }

    #[test]
    fn one_block_is_open_at_a_time() {
        let mut events = BlockEvents::new(Thinking::Shown);
        let said = [
            Delta::Reasoning("a".into()),
            Delta::Content("b".into()),
            Delta::Content("c".into()),
            Delta::ToolCall { index: 0, id: "t".into(), name: "f".into() },
            Delta::Arguments { index: 0, arguments: "{}".into() },
        ];
        let mut all: Vec<Value> = said.into_iter().flat_map(|delta| events.delta(delta)).collect();
        all.extend(events.close());
        assert!(events.close().is_empty());
        let expected = "start delta delta stop start delta delta stop start delta stop";
        let short: Vec<&str> = types(&all).iter().map(|name| name.trim_start_matches("content_block_")).collect();
        assert_eq!(short.join(" "), expected);
        assert_eq!(all.iter().map(|event| event["index"].as_u64().unwrap()).max(), Some(2));
    }

    #[test]
    fn reasoning_that_is_not_shown_goes_into_the_signature() {
        let mut events = BlockEvents::new(Thinking::Signed);
        let mut all = events.delta(Delta::Reasoning("se".into()));
        all.extend(events.delta(Delta::Reasoning("cret".into())));
        all.extend(events.close());
        assert!(!all.iter().any(|event| event.to_string().contains("cret")));
        assert_eq!(sealed::open(all[1]["delta"]["signature"].as_str().unwrap()).as_deref(), Some("secret"));
        assert!(BlockEvents::new(Thinking::Hidden).delta(Delta::Reasoning("x".into())).is_empty());
    }
}
