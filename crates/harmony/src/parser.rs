//! What the model writes, from token ids to reasoning, visible text and calls, one token at a time.

use crate::detokenize::Utf8Stream;
use crate::header::{Header, HeaderReader, Opening};
use crate::special::{self, CALL, CHANNEL, CONSTRAIN, END, ENDOFTEXT, MESSAGE, RETURN, START};
use crate::tokenizer::Tokenizer;
use crate::tool_names::{ToolNames, cleaned};

/// Recipients that mean no tool: the message is for whoever reads the channel.
const NOT_TOOLS: [&str; 6] = ["", "all", "assistant", "developer", "system", "user"];
/// Between two visible messages, or two of reasoning, of one generation.
const BETWEEN_MESSAGES: &str = "\n\n";

/// A piece of the model's output. Texts are deltas: joined in order they are the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Text of the analysis channel.
    Reasoning(String),
    /// Text that the user sees: the final channel, and commentary to nobody.
    Content(String),
    /// A call begins.
    ToolCallStart {
        /// Counts the calls of this generation from 0.
        index: usize,
        /// The tool's name as the client writes it; cleaned of illegal characters where no tool is known by it.
        name: String,
    },
    /// Arguments of the call that began last.
    ToolCallArguments {
        /// The call.
        index: usize,
        /// More of its arguments.
        delta: String,
    },
    /// The call's arguments are complete, unless the summary says that the output ended inside them. One call ends a
    /// generation, even where the model ends it with `<|end|>`, which is no stop token.
    ToolCallEnd {
        /// The call.
        index: usize,
    },
}

/// A channel of the assistant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Reasoning.
    Analysis,
    /// Calls, and preambles to them.
    Commentary,
    /// The answer.
    Final,
}

/// How the output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With `<|return|>`.
    Return,
    /// With `<|call|>`.
    Call,
    /// With `<|endoftext|>`.
    EndOfText,
    /// With no stop token.
    Unfinished {
        /// The channel of the message that was cut off; `None` between messages or inside a header.
        channel: Option<Channel>,
    },
}

/// What there is to say when the output is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How the output ended.
    pub end: End,
    /// How many calls began.
    pub tool_calls: usize,
    /// How many messages were malformed and had to be guessed at.
    pub recovered: u32,
    /// How many calls went to a tool that is not listed.
    pub unknown_recipients: u32,
}

/// The incremental parser. It begins after the prompt's `<|start|>assistant`, takes any ids in any order and never
/// fails. After a stop token it begins anew with the next message, as under `ignore_eos`.
#[derive(Clone, Debug)]
pub struct Parser {
    names: ToolNames,
    state: State,
    wrote_reasoning: bool,
    wrote_content: bool,
    tool_calls: usize,
    recovered: u32,
    unknown_recipients: u32,
}

#[derive(Clone, Debug)]
enum State {
    Header(HeaderReader),
    Body(Body),
    Ended(End),
}

/// The message whose content is being read.
#[derive(Clone, Debug)]
struct Body {
    sink: Sink,
    channel: Channel,
    utf8: Utf8Stream,
    /// Nothing but blanks so far.
    blank: bool,
    begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sink {
    Reasoning,
    Content,
    Call(usize),
}

impl Parser {
    /// A parser for the reply to a prompt with these tools.
    pub fn new(names: &ToolNames) -> Self {
        Self {
            names: names.clone(),
            state: State::Header(HeaderReader::new(Opening::Prompted)),
            wrote_reasoning: false,
            wrote_content: false,
            tool_calls: 0,
            recovered: 0,
            unknown_recipients: 0,
        }
    }

    /// Takes one token and returns what it completes.
    pub fn push(&mut self, token: u32) -> Vec<Event> {
        let mut events = Vec::new();
        match token {
            START => {
                self.recovered += u32::from(matches!(&self.state, State::Body(_)));
                self.end_message(&mut events);
                self.state = State::Header(HeaderReader::new(Opening::Started));
            }
            END => {
                self.end_message(&mut events);
                self.state = State::Header(HeaderReader::new(Opening::Loose));
            }
            RETURN => self.stop(End::Return, &mut events),
            CALL => self.stop(End::Call, &mut events),
            ENDOFTEXT => self.stop(End::EndOfText, &mut events),
            MESSAGE => self.begin_content(&mut events),
            CHANNEL | CONSTRAIN => self.continue_header(token, &mut events),
            _ if special::is_special(token) => self.recovered += 1,
            _ => self.text(token, &mut events),
        }
        events
    }

    /// Takes several tokens.
    pub fn push_all(&mut self, tokens: &[u32]) -> Vec<Event> {
        tokens.iter().flat_map(|&token| self.push(token)).collect()
    }

    /// The channel of the message being read, once its header is complete.
    pub fn channel(&self) -> Option<Channel> {
        match &self.state {
            State::Body(body) => Some(body.channel),
            _ => None,
        }
    }

    /// Whether the text being read is what the user sees.
    pub fn in_content(&self) -> bool {
        matches!(&self.state, State::Body(body) if body.sink == Sink::Content)
    }

    /// Ends the output: flushes what is held back, and sums up.
    pub fn finish(mut self) -> (Vec<Event>, Summary) {
        let mut events = Vec::new();
        let end = match self.state {
            State::Ended(end) => end,
            _ => End::Unfinished { channel: self.channel() },
        };
        self.cut_message(&mut events);
        let Self { tool_calls, recovered, unknown_recipients, .. } = self;
        (events, Summary { end, tool_calls, recovered, unknown_recipients })
    }

    fn stop(&mut self, end: End, events: &mut Vec<Event>) {
        self.end_message(events);
        self.state = State::Ended(end);
    }

    /// `<|message|>`: the header is complete.
    fn begin_content(&mut self, events: &mut Vec<Event>) {
        match self.header() {
            Some(header) => self.open(header.finish(), events),
            None => self.recovered += 1,
        }
    }

    /// `<|channel|>` or `<|constrain|>`: part of a header, or the beginning of one whose `<|start|>` is missing.
    fn continue_header(&mut self, token: u32, events: &mut Vec<Event>) {
        if token == CONSTRAIN && matches!(self.state, State::Body(_)) {
            self.recovered += 1;
            return;
        }
        let mut header = self.header().unwrap_or_else(|| {
            self.end_message(events);
            HeaderReader::new(Opening::Loose)
        });
        let too_long = if token == CHANNEL { header.channel() } else { header.content_type() };
        self.state = State::Header(header);
        if too_long {
            self.begin_content_unannounced(events);
        }
    }

    fn text(&mut self, token: u32, events: &mut Vec<Event>) {
        let bytes = Tokenizer::shared().token_bytes(token).unwrap_or_default();
        if let State::Ended(_) = self.state {
            self.state = State::Header(HeaderReader::new(Opening::Loose));
        }
        match &mut self.state {
            State::Header(header) => {
                if header.text(bytes) {
                    self.begin_content_unannounced(events);
                }
            }
            State::Body(body) => {
                let text = body.utf8.push(bytes);
                self.write(text, events);
            }
            State::Ended(_) => {}
        }
    }

    /// Content has begun without `<|message|>`.
    fn begin_content_unannounced(&mut self, events: &mut Vec<Event>) {
        if let Some(header) = self.header() {
            self.open(header.finish_without_message(), events);
        }
    }

    /// The header being read, or a new one after a stop token; `None` inside content.
    fn header(&self) -> Option<HeaderReader> {
        match &self.state {
            State::Header(header) => Some(header.clone()),
            State::Ended(_) => Some(HeaderReader::new(Opening::Loose)),
            State::Body(_) => None,
        }
    }

    /// Ends the message being read.
    fn end_message(&mut self, events: &mut Vec<Event>) {
        match &self.state {
            State::Header(header) if header.is_empty() => return,
            State::Header(_) => self.begin_content_unannounced(events),
            _ => {}
        }
        self.flush(events);
        let State::Body(body) = &self.state else { return };
        if let Body { sink: Sink::Call(index), blank, .. } = *body {
            // Clients parse the arguments: a call without any gets the empty object.
            if blank {
                self.recovered += 1;
                events.push(Event::ToolCallArguments { index, delta: "{}".to_string() });
            }
            events.push(Event::ToolCallEnd { index });
        }
        self.state = State::Header(HeaderReader::new(Opening::Loose));
    }

    /// Ends the message where the output ends inside it. Half a header is nothing; text in place of one is content.
    fn cut_message(&mut self, events: &mut Vec<Event>) {
        if let State::Header(reader) = &self.state {
            let header = reader.clone().finish_without_message();
            if header.content.is_empty() || header.recipient.is_some() {
                return;
            }
            self.open(header, events);
        }
        self.flush(events);
        if let State::Body(Body { sink: Sink::Call(index), .. }) = self.state {
            events.push(Event::ToolCallEnd { index });
        }
    }

    /// Writes what is held back of an unfinished character.
    fn flush(&mut self, events: &mut Vec<Event>) {
        if let State::Body(body) = &mut self.state {
            let rest = body.utf8.finish();
            self.write(rest, events);
        }
    }

    /// Begins the content of the message with this header.
    fn open(&mut self, header: Header, events: &mut Vec<Event>) {
        let channel = match header.channel.as_deref() {
            Some("analysis") => Channel::Analysis,
            Some("commentary") => Channel::Commentary,
            _ => Channel::Final,
        };
        let mut faulty = header.faulty || header.channel.is_none();
        let sink = self.sink(&header, channel, &mut faulty, events);
        let channel = if matches!(sink, Sink::Call(_)) { Channel::Commentary } else { channel };
        self.recovered += u32::from(faulty);
        self.state = State::Body(Body { sink, channel, utf8: header.utf8, blank: true, begun: false });
        self.write(header.content, events);
    }

    /// Where the content of the message goes.
    fn sink(&mut self, header: &Header, channel: Channel, faulty: &mut bool, events: &mut Vec<Event>) -> Sink {
        let author = header.author.as_deref().unwrap_or("assistant");
        let recipient = header.recipient.as_deref().filter(|name| !NOT_TOOLS.contains(name));
        *faulty |= author != "assistant" || (header.recipient.is_some() && recipient.is_none());
        let by_tool = author.starts_with("functions.") && header.recipient.is_none();
        match (author, recipient) {
            ("user" | "system" | "developer" | "tool", _) => Sink::Reasoning,
            (author, None) if by_tool => self.begin_call(author, faulty, events),
            (author, None) if author.starts_with("functions.") => Sink::Reasoning,
            (_, Some(recipient)) => {
                *faulty |= channel != Channel::Commentary;
                self.begin_call(recipient, faulty, events)
            }
            (_, None) if channel == Channel::Analysis => Sink::Reasoning,
            (_, None) => Sink::Content,
        }
    }

    fn begin_call(&mut self, recipient: &str, faulty: &mut bool, events: &mut Vec<Event>) -> Sink {
        let index = self.tool_calls;
        self.tool_calls += 1;
        let bare = recipient.strip_prefix("functions.").unwrap_or(recipient);
        let name = match self.names.client_name(bare) {
            Some(name) => {
                *faulty |= bare == recipient;
                name.to_string()
            }
            None if self.names.is_client_name(bare) => {
                *faulty = true;
                bare.to_string()
            }
            None => {
                self.unknown_recipients += 1;
                cleaned(bare)
            }
        };
        events.push(Event::ToolCallStart { index, name });
        Sink::Call(index)
    }

    /// Writes text of the message being read.
    fn write(&mut self, text: String, events: &mut Vec<Event>) {
        let State::Body(body) = &mut self.state else { return };
        if text.is_empty() {
            return;
        }
        body.blank &= text.trim().is_empty();
        let first = !std::mem::replace(&mut body.begun, true);
        let apart = |wrote_before: bool| if first && wrote_before { BETWEEN_MESSAGES } else { "" };
        events.push(match body.sink {
            Sink::Reasoning => {
                let wrote_before = std::mem::replace(&mut self.wrote_reasoning, true);
                Event::Reasoning(apart(wrote_before).to_string() + &text)
            }
            Sink::Content => {
                let wrote_before = std::mem::replace(&mut self.wrote_content, true);
                Event::Content(apart(wrote_before).to_string() + &text)
            }
            Sink::Call(index) => Event::ToolCallArguments { index, delta: text },
        });
    }
}
