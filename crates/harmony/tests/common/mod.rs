//! What the tests of the parser share.

use tandem_harmony::{Event, Parser, Summary, Tool, ToolNames};

/// The output of a generation, its deltas joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub reasoning: String,
    pub content: String,
    /// Names and arguments.
    pub calls: Vec<(String, String)>,
    /// How many calls have ended.
    pub ended_calls: usize,
}

impl Reply {
    /// Adds events, checking that those of calls come in order.
    pub fn extend(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            match event {
                Event::Reasoning(text) => self.reasoning += &text,
                Event::Content(text) => self.content += &text,
                Event::ToolCallStart { index, name } => {
                    assert_eq!((index, index), (self.calls.len(), self.ended_calls), "a call starts after the last");
                    self.calls.push((name, String::new()));
                }
                Event::ToolCallArguments { index, delta } => {
                    assert_eq!((index + 1, index), (self.calls.len(), self.ended_calls), "arguments of an open call");
                    self.calls[index].1 += &delta;
                }
                Event::ToolCallEnd { index } => {
                    assert_eq!((index + 1, index), (self.calls.len(), self.ended_calls), "the end of an open call");
                    self.ended_calls += 1;
                }
            }
        }
    }
}

/// Names of tools as the parser wants them.
pub fn names(tools: &[&str]) -> ToolNames {
    let tool =
        |name: &&str| Tool { name: name.to_string(), description: String::new(), parameters: Default::default() };
    ToolNames::new(&tools.iter().map(tool).collect::<Vec<_>>()).expect("legal tools")
}

/// Parses tokens to the end.
pub fn parse_tokens(tokens: &[u32], names: &ToolNames) -> (Reply, Summary) {
    let mut parser = Parser::new(names);
    let mut reply = Reply::default();
    for &token in tokens {
        reply.extend(parser.push(token));
    }
    let (events, summary) = parser.finish();
    reply.extend(events);
    (reply, summary)
}
