//! Where a reply stands, token by token, and what may come next.

use std::collections::HashMap;

use llguidance::Matcher;
use tandem_harmony::special::{CALL, CHANNEL, END, ENDOFTEXT, FIRST_SPECIAL, MESSAGE, RETURN, START};
use tandem_harmony::{Channel, Event, Parser, Tokenizer, ToolNames};

use crate::cache;
use crate::header;
use crate::mask::{self, ASSISTANT, COMMON, Exits, Mask};
use crate::rules::{Reply, Rules, RulesError};

/// One request's way through its rules.
///
/// [`mask`](Self::mask) says which tokens may come next, [`allows`](Self::allows) whether one may, and
/// [`push`](Self::push) takes the one that came. What is read where is up to the parser that also reads the reply for the
/// client, so both always mean the same text.
pub struct Walk {
    state: State,
    /// `None` for a raw text.
    reply: Option<ReplyWalk>,
}

struct ReplyWalk {
    parser: Parser,
    /// All below are matchers before their first token.
    header: Matcher,
    answer: Option<Matcher>,
    arguments: HashMap<String, Option<Matcher>>,
}

enum State {
    /// A message ended; `stop`: the reply may end here, too.
    Between { stop: bool },
    /// After `<|start|>`.
    Author,
    /// Inside a header.
    Header(Matcher),
    /// Inside a text that nothing is asked of.
    Free(Mask),
    /// Inside a text with rules.
    Bound { matcher: Matcher, exits: Exits },
    /// The reply is complete.
    Done,
}

impl Walk {
    /// The beginning of an output under these rules, compiled unless that was done before.
    pub fn new(rules: &Rules) -> Result<Self, RulesError> {
        match rules {
            Rules::Text(content) => {
                let matcher = cache::content(content).map_err(RulesError::Answer)?;
                Ok(Self { state: State::Bound { matcher, exits: Exits::TEXT }, reply: None })
            }
            Rules::Reply(reply) => Self::reply(reply),
        }
    }

    fn reply(rules: &Reply) -> Result<Self, RulesError> {
        let names: Vec<&str> = rules.calls.iter().map(|call| call.name.as_str()).collect();
        let header = cache::header(header::grammar(&names, rules.answer.is_none()))
            .map_err(|error| RulesError::Header(error.message))?;
        let answer = rules.answer.as_ref().map(cache::content).transpose().map_err(RulesError::Answer)?;
        let mut arguments = HashMap::new();
        for call in &rules.calls {
            let matcher = call.arguments.as_ref().map(cache::content).transpose();
            let matcher = matcher.map_err(|error| RulesError::Call { name: call.name.clone(), error })?;
            arguments.insert(call.name.clone(), matcher);
        }
        let state = State::Header(header.deep_clone());
        // To this parser the tools have the names that the model knows.
        let parser = Parser::new(&ToolNames::default());
        let mut walk = Self { state, reply: Some(ReplyWalk { parser, header, answer, arguments }) };
        rules.forced.iter().try_for_each(|&token| walk.push(token)).map_err(RulesError::Header)?;
        Ok(walk)
    }

    /// The tokens that may come next; never none. Fails where the grammar is too complex, or leads nowhere.
    pub fn mask(&mut self) -> Result<Mask, String> {
        match &mut self.state {
            State::Between { stop: false } => Ok(COMMON.start.clone()),
            State::Between { stop: true } => Ok(COMMON.start_or_stop.clone()),
            State::Author => Ok(COMMON.author.clone()),
            State::Free(mask) => Ok(mask.clone()),
            State::Done => Ok(COMMON.stop.clone()),
            State::Header(matcher) => Ok(words(matcher)?.into()),
            State::Bound { matcher, exits } => {
                let words = words(matcher)?;
                let complete = mask::contains(&words, RETURN);
                mask::inside_text(words, complete, *exits).ok_or_else(|| "the grammar leads nowhere".to_string())
            }
        }
    }

    /// Whether `token` may come next: what its bit in [`mask`](Self::mask) says, without computing the others.
    pub fn allows(&mut self, token: u32) -> Result<bool, String> {
        match &mut self.state {
            State::Header(matcher) => admits(matcher, token),
            State::Bound { matcher, exits } if token >= FIRST_SPECIAL => {
                Ok(exits.0.contains(&token) && admits(matcher, RETURN)?)
            }
            State::Bound { matcher, .. } => admits(matcher, token),
            _ => Ok(mask::contains(&self.mask()?, token)),
        }
    }

    /// Takes the next token. Fails where it was none of those allowed.
    pub fn push(&mut self, token: u32) -> Result<(), String> {
        let events = match &mut self.reply {
            Some(reply) => reply.parser.push(token),
            None => Vec::new(),
        };
        self.state = match (std::mem::replace(&mut self.state, State::Done), token) {
            (State::Done, _) | (_, RETURN | CALL | ENDOFTEXT) => State::Done,
            (State::Between { .. }, START) => State::Author,
            (State::Author, token) if token == *ASSISTANT => State::Header(self.fresh_header()?),
            (State::Header(mut matcher), token) => {
                matcher.consume_token(token).map_err(|error| first_line(&error))?;
                if token == MESSAGE { self.body(&events)? } else { State::Header(matcher) }
            }
            (State::Free(mask), END) => self.after(mask),
            (State::Bound { .. }, END) => State::Done,
            (state @ State::Free(_), token) if token < CHANNEL => state,
            (State::Bound { mut matcher, exits }, token) => {
                matcher.consume_token(token).map_err(|error| first_line(&error))?;
                State::Bound { matcher, exits }
            }
            (_, token) => return Err(format!("token {token} has no place here")),
        };
        Ok(())
    }

    /// The text that a header has announced.
    fn body(&mut self, events: &[Event]) -> Result<State, String> {
        let reply = self.reply.as_mut().ok_or("a raw text has no header")?;
        let called = events.iter().find_map(|event| match event {
            Event::ToolCallStart { name, .. } => Some(name),
            _ => None,
        });
        let bound = |matcher: &Matcher, exits| State::Bound { matcher: matcher.deep_clone(), exits };
        Ok(match (called, reply.parser.channel()) {
            (Some(name), _) => match reply.arguments.get(name) {
                Some(Some(matcher)) => bound(matcher, Exits::CALL),
                _ => State::Free(COMMON.call.clone()),
            },
            (None, Some(Channel::Analysis)) => State::Free(COMMON.analysis.clone()),
            (None, Some(Channel::Commentary)) => State::Free(COMMON.preamble.clone()),
            (None, _) => match &reply.answer {
                Some(matcher) => bound(matcher, Exits::ANSWER),
                None => State::Free(COMMON.answer.clone()),
            },
        })
    }

    /// What comes after a free text that ended with `<|end|>`. One call ends a reply.
    fn after(&self, mask: Mask) -> State {
        match mask {
            mask if std::sync::Arc::ptr_eq(&mask, &COMMON.call) => State::Done,
            mask => State::Between { stop: mask::contains(&mask, RETURN) },
        }
    }

    fn fresh_header(&self) -> Result<Matcher, String> {
        self.reply.as_ref().map(|reply| reply.header.deep_clone()).ok_or_else(|| "a raw text has no header".to_string())
    }
}

/// A mask in words; the bit of `<|return|>` says whether the text may end.
fn words(matcher: &mut Matcher) -> Result<Vec<u32>, String> {
    matcher.compute_mask_or_eos().map(Vec::from).map_err(|error| first_line(&error))
}

/// One bit of [`words`]. Where the grammar forces its next bytes, only the token that the tokenizer would make of them is
/// allowed, though others would fit.
fn admits(matcher: &mut Matcher, token: u32) -> Result<bool, String> {
    if let Some(error) = matcher.get_error() {
        return Err(first_line(&error));
    }
    if matcher.is_stopped() {
        return Ok(token == RETURN);
    }
    if let Some(&forced) = matcher.compute_ff_tokens().first() {
        return Ok(token == forced);
    }
    if token as usize >= Tokenizer::VOCAB_SIZE {
        return Ok(false);
    }
    let admitted = matcher.validate_tokens(&[token]).map_err(|error| first_line(&error))?;
    Ok(admitted == 1)
}

fn first_line(error: &impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}
