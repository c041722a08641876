//! A completion request: from JSON to prompts.

use serde::Deserialize;
use serde_json::Value;
use tandem_harmony::Tokenizer;
use tandem_step::Constraint;

use crate::body::{self, kind};
use crate::chat_request::{FormatFields, response_format};
use crate::demands::{self, Demand};
use crate::error::ApiError;
use crate::params::{self, Params, check_tokens};
use crate::served_model::ServedModel;
use crate::state::ApiState;
use crate::turn::check_vocabulary;

/// Tokens generated where the request does not say; OpenAI's default.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// The fields that only completions have, as typed by the client.
#[derive(Debug, Deserialize)]
struct CompletionFields {
    prompt: Option<Value>,
    echo: Option<bool>,
    logprobs: Option<i64>,
    best_of: Option<i64>,
    suffix: Option<String>,
    skip_special_tokens: Option<bool>,
    response_format: Option<FormatFields>,
}

/// A completion request, checked and tokenized.
pub(crate) struct CompletionPlan {
    pub params: Params,
    /// Token ids, one list per prompt.
    pub prompts: Vec<Vec<u32>>,
    /// Most tokens to generate.
    pub output_tokens: u32,
    /// Repeat the prompt in front of the text.
    pub echo: bool,
    /// Alternatives per token, where log-probabilities are asked for.
    pub logprobs: Option<u8>,
    /// Leave control tokens out of the generated text.
    pub skip_special_tokens: bool,
    /// What the text must look like.
    pub constraint: Option<Constraint>,
}

/// What is asked of completions, in whatever protocol.
pub(crate) struct Completions {
    pub params: Params,
    /// Token ids, one list per prompt.
    pub prompts: Vec<Vec<u32>>,
    pub echo: bool,
    /// Alternatives per token, where log-probabilities are asked for.
    pub logprobs: Option<u8>,
    pub skip_special_tokens: bool,
    /// What the text must look like.
    pub demand: Option<Demand>,
}

impl Completions {
    /// Checks what is asked against the model.
    pub(crate) fn plan(self, state: &ApiState, model: &ServedModel) -> Result<CompletionPlan, ApiError> {
        let Self { mut params, prompts, echo, logprobs, skip_special_tokens, demand } = self;
        params.max_tokens.get_or_insert(MAX_TOKENS_DEFAULT.max(params.min_tokens));
        check_choices(&prompts, params.n, state.settings().choices_max)?;
        let mut output_tokens = 0;
        for prompt in &prompts {
            output_tokens = params.output_tokens("prompt", prompt.len(), model.info.context)?;
        }
        if demand.is_some() {
            check_vocabulary(model)?;
        }
        let constraint = demand.map(Demand::constraint).transpose()?;
        Ok(CompletionPlan { params, prompts, output_tokens, echo, logprobs, skip_special_tokens, constraint })
    }
}

impl CompletionPlan {
    /// The number of choices: `n` for each prompt, one prompt after the other.
    pub(crate) fn choices(&self) -> usize {
        self.prompts.len() * self.params.n
    }

    /// The prompt of a choice.
    pub(crate) fn prompt_of(&self, choice: usize) -> &[u32] {
        &self.prompts[choice / self.params.n]
    }

    /// What the engine is asked for a choice.
    pub(crate) fn engine_request(&self, choice: usize) -> tandem_engine::Request {
        tandem_engine::Request {
            prompt: self.prompt_of(choice).to_vec(),
            max_tokens: self.output_tokens,
            sampling: self.params.sampling_of(choice % self.params.n, self.logprobs),
            stop_tokens: self.params.stop_tokens.clone(),
            prompt_logprobs: self.logprobs.filter(|_| self.scores_prompt()),
            constraint: self.constraint.clone(),
        }
    }

    /// Whether there is anything for the engine to do.
    pub(crate) fn computes(&self) -> bool {
        self.output_tokens > 0 || self.scores_prompt()
    }

    /// Whether the tokens of the prompt are to be scored.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.echo && self.logprobs.is_some()
    }
}

/// Reads, checks and tokenizes a request.
pub(crate) fn plan(value: &Value, state: &ApiState, model: &ServedModel) -> Result<CompletionPlan, ApiError> {
    model.check_request(value)?;
    let params = Params::read(value, &model.info, state.settings())?;
    let fields: CompletionFields = body::typed(value)?;
    check_refused(&fields, params.n)?;
    let prompts = prompts(fields.prompt.as_ref(), model)?;
    let format = fields.response_format.map_or(Ok(None), response_format)?.map(|format| format.demand());
    let demand = demands::at_most_one(format.into_iter().chain(demands::guided(value)?))?;
    let asked = Completions {
        params,
        prompts,
        echo: fields.echo.unwrap_or(false),
        logprobs: fields.logprobs.map(|top| params::top_logprobs("logprobs", top)).transpose()?,
        skip_special_tokens: fields.skip_special_tokens.unwrap_or(true),
        demand,
    };
    asked.plan(state, model)
}

fn check_choices(prompts: &[Vec<u32>], n: usize, max: usize) -> Result<(), ApiError> {
    let choices = prompts.len().saturating_mul(n);
    if choices <= max {
        return Ok(());
    }
    let prompts = prompts.len();
    let message = format!("{prompts} prompts times 'n' of {n} are {choices} choices, at most {max} are allowed");
    Err(ApiError::invalid_value("prompt", message))
}

fn check_refused(fields: &CompletionFields, n: usize) -> Result<(), ApiError> {
    if fields.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported("suffix", "'suffix' is not supported: the model was not trained to insert"));
    }
    match fields.best_of {
        Some(best_of) if best_of != n as i64 => {
            Err(ApiError::unsupported("best_of", "'best_of' is not supported; leave it out or make it equal to 'n'"))
        }
        _ => Ok(()),
    }
}

/// One text, one list of token ids, or an array of either.
fn prompts(value: Option<&Value>, model: &ServedModel) -> Result<Vec<Vec<u32>>, ApiError> {
    let one = |param: &str, value: &Value| Ok(vec![prompt(param, value, model)?]);
    match value {
        None | Some(Value::Null) => Err(ApiError::missing("prompt")),
        Some(Value::Array(list)) => match list.first() {
            None => Err(ApiError::invalid_value("prompt", "'prompt' is an empty array")),
            Some(Value::Number(_)) => one("prompt", &value.cloned().unwrap_or_default()),
            Some(_) => {
                list.iter().enumerate().map(|(at, value)| prompt(&format!("prompt[{at}]"), value, model)).collect()
            }
        },
        Some(value) => one("prompt", value),
    }
}

/// The tokens of a text, of which there must be some.
pub(crate) fn text_prompt(param: &str, text: &str, model: &ServedModel) -> Result<Vec<u32>, ApiError> {
    check_vocabulary(model)?;
    not_empty(param, Tokenizer::shared().encode_with_special(text))
}

/// Tokens of which there must be some.
pub(crate) fn not_empty(param: &str, tokens: Vec<u32>) -> Result<Vec<u32>, ApiError> {
    if tokens.is_empty() {
        return Err(ApiError::invalid_value(param, format!("'{param}' is empty; at least one token is needed")));
    }
    Ok(tokens)
}

fn prompt(param: &str, value: &Value, model: &ServedModel) -> Result<Vec<u32>, ApiError> {
    let tokens = match value {
        Value::String(text) => return text_prompt(param, text, model),
        Value::Array(ids) => token_ids(param, ids, model)?,
        other => {
            let message = format!("'{param}' is {}; a string or an array of token ids is expected", kind(other));
            return Err(ApiError::invalid_type(param, message));
        }
    };
    not_empty(param, tokens)
}

fn token_ids(param: &str, ids: &[Value], model: &ServedModel) -> Result<Vec<u32>, ApiError> {
    let id = |(at, value): (usize, &Value)| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            let path = format!("{param}[{at}]");
            let message = format!("'{path}' is {value}; a token id is expected");
            ApiError::invalid_type(path, message)
        })
    };
    let ids: Vec<u32> = ids.iter().enumerate().map(id).collect::<Result<_, _>>()?;
    check_tokens(param, &ids, model.info.vocab)?;
    Ok(ids)
}
