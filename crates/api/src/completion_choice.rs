//! One choice of a completion, token by token.

use std::sync::Arc;

use tandem_engine::{FinishReason, Update};
use tandem_harmony::{StopStrings, TextDecoder};
use tandem_step::TokenLogprobs;

use crate::chat_choice::Finish;
use crate::completion_request::CompletionPlan;
use crate::logprobs::CompletionLogprobs;

/// A choice as far as it is generated.
pub(crate) struct CompletionChoice {
    plan: Arc<CompletionPlan>,
    index: usize,
    /// The prompt is still to be repeated.
    echo: bool,
    prompt_scores: Vec<TokenLogprobs>,
    decoder: TextDecoder,
    stops: StopStrings,
    /// Characters decoded, and of them those shown: the rest may yet turn out to begin a stop string.
    decoded_chars: usize,
    shown_chars: usize,
    /// Log-probabilities of tokens whose text was not shown yet.
    pending: Option<CompletionLogprobs>,
    pub generated: Vec<u32>,
    pub cached_tokens: u32,
    pub finish: Option<Finish>,
}

/// What is new to the client: text, and the tokens it consists of.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub text: String,
    pub logprobs: Option<CompletionLogprobs>,
}

impl Piece {
    /// Adds what came after it.
    pub(crate) fn append(&mut self, other: Piece) {
        self.text += &other.text;
        match (&mut self.logprobs, other.logprobs) {
            (Some(logprobs), Some(more)) => logprobs.append(more),
            (logprobs @ None, more) => *logprobs = more,
            (Some(_), None) => {}
        }
    }
}

impl CompletionChoice {
    /// Choice `index` of a request.
    pub(crate) fn new(plan: &Arc<CompletionPlan>, index: usize) -> Self {
        Self {
            plan: plan.clone(),
            index,
            echo: plan.echo,
            prompt_scores: Vec::new(),
            decoder: if plan.skip_special_tokens { TextDecoder::new() } else { TextDecoder::with_special() },
            stops: StopStrings::new(plan.params.stop.iter().cloned()),
            decoded_chars: 0,
            shown_chars: 0,
            pending: plan.logprobs.map(|_| CompletionLogprobs::default()),
            generated: Vec::new(),
            cached_tokens: 0,
            finish: None,
        }
    }

    /// Takes an update of the engine and returns what is new. Afterwards `finish` says whether the choice has ended.
    pub(crate) fn update(&mut self, update: Update) -> Piece {
        match update {
            Update::Started { cached_tokens } => self.cached_tokens = cached_tokens,
            Update::PromptScores(scores) => self.prompt_scores.extend(scores),
            Update::Token { token, logprobs } => return self.token(token, logprobs.as_ref()),
            Update::Finished(finished) => return self.end_by_engine(&finished.reason),
        }
        Piece::default()
    }

    /// Ends a choice that generates nothing.
    pub(crate) fn end_empty(&mut self) -> Piece {
        self.end_by_engine(&FinishReason::Length)
    }

    fn end_by_engine(&mut self, reason: &FinishReason) -> Piece {
        if self.finish.is_some() {
            return Piece::default();
        }
        let mut text = self.echo_prompt();
        let rest = self.decoder.finish();
        text += &self.visible(&rest);
        if self.finish.is_none() {
            text += &self.stops.finish();
            self.finish = Some(if *reason == FinishReason::Length { Finish::Length } else { Finish::Stop });
            self.shown_chars = self.decoded_chars;
            return Piece { text, logprobs: self.pending.take() };
        }
        self.piece(text)
    }

    fn token(&mut self, token: u32, logprobs: Option<&TokenLogprobs>) -> Piece {
        if self.finish.is_some() {
            return Piece::default();
        }
        let mut text = self.echo_prompt();
        self.generated.push(token);
        if let Some(pending) = &mut self.pending {
            pending.push(token, logprobs, self.decoded_chars);
        }
        // The token that ends the text is no part of it.
        let decoded =
            if self.plan.params.stop_tokens.contains(&token) { String::new() } else { self.decoder.push(token) };
        text += &self.visible(&decoded);
        self.piece(text)
    }

    /// The prompt's text, once, with the log-probabilities of its tokens.
    fn echo_prompt(&mut self) -> String {
        if !std::mem::take(&mut self.echo) {
            return String::new();
        }
        let plan = self.plan.clone();
        let mut decoder = TextDecoder::with_special();
        let mut text = String::new();
        let scores = std::mem::take(&mut self.prompt_scores);
        for (at, &token) in plan.prompt_of(self.index).iter().enumerate() {
            if let Some(pending) = &mut self.pending {
                let score = at.checked_sub(1).and_then(|before| scores.get(before));
                pending.push(token, score, self.decoded_chars);
            }
            let decoded = decoder.push(token);
            self.decoded_chars += decoded.chars().count();
            text += &decoded;
        }
        let rest = decoder.finish();
        self.decoded_chars += rest.chars().count();
        self.shown_chars = self.decoded_chars;
        text + &rest
    }

    /// What may be shown after more text was decoded; a stop string in it ends the choice.
    fn visible(&mut self, decoded: &str) -> String {
        self.decoded_chars += decoded.chars().count();
        if (self.generated.len() as u64) < u64::from(self.plan.params.min_tokens) {
            self.shown_chars += decoded.chars().count();
            return decoded.to_string();
        }
        let output = self.stops.push(decoded);
        self.shown_chars += output.text.chars().count();
        if output.matched.is_some() {
            self.finish = Some(Finish::Stop);
        }
        output.text
    }

    /// The text, and the log-probabilities of tokens that begin within what is shown.
    fn piece(&mut self, text: String) -> Piece {
        let shown_chars = self.shown_chars;
        let logprobs = self.pending.as_mut().map(|pending| pending.take_before(shown_chars));
        Piece { text, logprobs: logprobs.filter(|logprobs| logprobs.len() > 0) }
    }
}
