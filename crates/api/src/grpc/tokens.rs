//! Tokens, with and without text.

use tandem_harmony::Tokenizer;
use tandem_proto::v1 as proto;
use tandem_step::TokenLogprobs;

use super::request;
use crate::blocking::blocking;
use crate::chat_choice::Finish;
use crate::error::ApiError;
use crate::logprobs::{finite, token_bytes};
use crate::params::check_tokens;
use crate::served_model::ServedModel;
use crate::state::ApiState;
use crate::turn::check_vocabulary;
use crate::usage::Tally;

/// Text, or a conversation, as token ids.
pub(super) async fn tokenize(
    state: &ApiState,
    request: proto::TokenizeRequest,
) -> Result<proto::TokenizeReply, ApiError> {
    use proto::tokenize_request::Input;
    let (state, served) = (state.clone(), state.served()?);
    blocking(move || {
        request::check_model(&request.model, &served.model)?;
        check_vocabulary(&served.model)?;
        let tokens = match request.input {
            None => return Err(ApiError::missing("input")),
            Some(Input::Text(text)) => Tokenizer::shared().encode_with_special(&text),
            Some(Input::Chat(chat)) => {
                request::check_model(&chat.model, &served.model)?;
                request::turn(chat)?.render(&state, &served.model)?.tokens
            }
        };
        Ok(proto::TokenizeReply { tokens, context: served.model.info.context })
    })
    .await
}

/// Token ids as text.
pub(super) async fn detokenize(
    state: &ApiState,
    request: proto::DetokenizeRequest,
) -> Result<proto::DetokenizeReply, ApiError> {
    let served = state.served()?;
    blocking(move || {
        request::check_model(&request.model, &served.model)?;
        check_tokens("tokens", &request.tokens, Tokenizer::VOCAB_SIZE as u32)?;
        Ok(proto::DetokenizeReply { text: Tokenizer::shared().decode(&request.tokens) })
    })
    .await
}

/// A token's log-probabilities as a message.
pub(super) fn token_logprob(logprobs: &TokenLogprobs) -> proto::TokenLogprob {
    let TokenLogprobs { token, logprob, top } = logprobs;
    let alternative =
        |&(token, logprob)| proto::Alternative { token, text: token_bytes(token), logprob: finite(logprob) };
    proto::TokenLogprob {
        token: *token,
        text: token_bytes(*token),
        logprob: finite(*logprob),
        top: top.iter().map(alternative).collect(),
    }
}

/// Why generation ended, as a message.
pub(super) fn finish(finish: Option<Finish>) -> proto::Finish {
    match finish {
        None => proto::Finish::Unspecified,
        Some(Finish::Stop) => proto::Finish::Stop,
        Some(Finish::Length) => proto::Finish::Length,
        Some(Finish::ToolCalls) => proto::Finish::ToolCalls,
    }
}

/// What a stream begins with.
pub(super) fn started(id: &str, model: &ServedModel, tally: Tally) -> proto::Started {
    proto::Started {
        id: id.into(),
        model: model.name().to_string(),
        prompt_tokens: tally.prompt,
        cached_tokens: tally.cached,
    }
}

/// What a stream ends with.
pub(super) fn finished(reason: Option<Finish>, tally: Tally) -> proto::Finished {
    proto::Finished { finish: finish(reason).into(), usage: Some(usage(tally)) }
}

/// Token counts as a message.
pub(super) fn usage(tally: Tally) -> proto::Usage {
    let Tally { prompt, cached, generated, reasoning } = tally;
    proto::Usage {
        prompt_tokens: prompt,
        cached_tokens: cached,
        generated_tokens: generated,
        reasoning_tokens: reasoning,
    }
}
