//! The fields that chat completions and completions share: how tokens are chosen, and when to stop.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tandem_harmony::STOP_TOKENS;
use tandem_step::Sampling;

use crate::body;
use crate::error::ApiError;
use crate::ids;
use crate::settings::{ApiSettings, ModelInfo};

/// Most stop strings of a request, and most stop token ids.
const STOPS_MAX: usize = 64;
/// Longest stop string, in bytes.
const STOP_BYTES_MAX: usize = 1024;
/// Most entries of a logit bias.
const LOGIT_BIAS_MAX: usize = 1024;
/// Most alternatives reported per token.
const TOP_LOGPROBS_MAX: i64 = 20;

/// The shared fields as typed by the client. `null` is as good as absent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SamplingFields {
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub n: Option<i64>,
    pub max_tokens: Option<i64>,
    pub max_completion_tokens: Option<i64>,
    pub min_tokens: Option<i64>,
    pub ignore_eos: Option<bool>,
    pub stop: Option<Value>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub seed: Option<i128>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub return_token_ids: Option<bool>,
}

/// What a stream holds besides the text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: Option<bool>,
}

/// The shared fields, checked, with defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub stop_tokens: Vec<u32>,
    /// `None`: as many as fit the context.
    pub max_tokens: Option<u32>,
    pub min_tokens: u32,
    pub ignore_eos: bool,
    pub n: usize,
    pub stream: bool,
    pub include_usage: bool,
    pub return_token_ids: bool,
}

impl Params {
    /// Reads and checks the shared fields of a request. `model` bounds token ids and counts.
    pub(crate) fn read(value: &Value, model: &ModelInfo, settings: &ApiSettings) -> Result<Self, ApiError> {
        let fields: SamplingFields = body::typed(value)?;
        fields.check(model, settings)
    }

    /// The sampling of choice `index`: the choices of a request differ in their seeds alone.
    pub(crate) fn sampling_of(&self, index: usize, logprobs: Option<u8>) -> Sampling {
        let seed = self.sampling.seed.wrapping_add(index as u64);
        Sampling { seed, logprobs, ..self.sampling.clone() }
    }

    /// Tokens to generate after a prompt of `prompt` tokens, or why there is no room for them.
    pub(crate) fn output_tokens(&self, param: &str, prompt: usize, context: u32) -> Result<u32, ApiError> {
        let wanted = self.max_tokens.unwrap_or(1);
        // A request occupies at least one position after its prompt, even where it generates nothing.
        if prompt as u64 + u64::from(wanted.max(1)) > u64::from(context) {
            return Err(ApiError::context_exceeded(param, context, prompt, wanted));
        }
        let output = self.max_tokens.unwrap_or(context - prompt as u32);
        if self.min_tokens > output {
            let message = format!("'min_tokens' is {}, but the context leaves room for {output}", self.min_tokens);
            return Err(ApiError::invalid_value("min_tokens", message));
        }
        Ok(output)
    }
}

impl SamplingFields {
    /// Checks the fields. `model` bounds token ids and counts.
    pub(crate) fn check(self, model: &ModelInfo, settings: &ApiSettings) -> Result<Params, ApiError> {
        let context = i64::from(model.context);
        let (param, max) = match (self.max_completion_tokens, self.max_tokens) {
            (Some(max), _) => ("max_completion_tokens", Some(max)),
            (None, max) => ("max_tokens", max),
        };
        let max_tokens = max.map(|max| whole(param, max, 0, i64::from(u32::MAX))).transpose()?.map(|max| max as u32);
        let min_tokens = whole("min_tokens", self.min_tokens.unwrap_or(0), 0, context)? as u32;
        if max_tokens.is_some_and(|max| min_tokens > max) {
            let message = format!("'min_tokens' is {min_tokens}, more than '{param}'");
            return Err(ApiError::invalid_value("min_tokens", message));
        }
        let stop_token_ids = self.stop_token_ids(model)?;
        let ignore_eos = self.ignore_eos.unwrap_or(false);
        if ignore_eos && min_tokens > 0 && !stop_token_ids.is_empty() {
            let message = "'stop_token_ids' cannot be combined with both 'ignore_eos' and 'min_tokens'";
            return Err(ApiError::unsupported("stop_token_ids", message));
        }
        let eos: Vec<u32> = STOP_TOKENS.into_iter().filter(|&token| token < model.vocab).collect();
        let stop_tokens = if ignore_eos { stop_token_ids } else { [stop_token_ids, eos.clone()].concat() };
        let (suppress, suppress_until) = match (ignore_eos, min_tokens) {
            (true, _) => (eos, u32::MAX),
            (false, 0) => (Vec::new(), 0),
            (false, min) => (stop_tokens.clone(), min),
        };
        Ok(Params {
            sampling: Sampling { suppress, suppress_until, ..self.sampling(model)? },
            stop: stop_strings(self.stop.as_ref())?,
            stop_tokens,
            max_tokens,
            min_tokens,
            ignore_eos,
            n: whole("n", self.n.unwrap_or(1), 1, settings.choices_max as i64)? as usize,
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            return_token_ids: self.return_token_ids.unwrap_or(false),
        })
    }

    fn sampling(&self, model: &ModelInfo) -> Result<Sampling, ApiError> {
        // -1 is how vLLM's clients say "off".
        let top_k = self.top_k.filter(|&top_k| top_k != -1).unwrap_or(0);
        Ok(Sampling {
            temperature: number("temperature", self.temperature, 1.0, 0.0, 2.0)?,
            // The smallest set that reaches 0 is still one token.
            top_p: number("top_p", self.top_p, 1.0, 0.0, 1.0)?.max(f32::MIN_POSITIVE),
            top_k: whole("top_k", top_k, 0, i64::from(u32::MAX))? as u32,
            min_p: number("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            seed: seed(self.seed)?,
            presence_penalty: number("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: number("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?,
            repetition_penalty: number("repetition_penalty", self.repetition_penalty, 1.0, 0.01, 100.0)?,
            logit_bias: self.logit_bias(model)?,
            ..Sampling::default()
        })
    }

    fn stop_token_ids(&self, model: &ModelInfo) -> Result<Vec<u32>, ApiError> {
        let ids = self.stop_token_ids.clone().unwrap_or_default();
        if ids.len() > STOPS_MAX {
            let message = format!("'stop_token_ids' has {} entries, at most {STOPS_MAX} are allowed", ids.len());
            return Err(ApiError::invalid_value("stop_token_ids", message));
        }
        check_tokens("stop_token_ids", &ids, model.vocab)?;
        Ok(ids)
    }

    fn logit_bias(&self, model: &ModelInfo) -> Result<Vec<(u32, f32)>, ApiError> {
        let Some(biases) = &self.logit_bias else { return Ok(Vec::new()) };
        if biases.len() > LOGIT_BIAS_MAX {
            let message = format!("'logit_bias' has {} entries, at most {LOGIT_BIAS_MAX} are allowed", biases.len());
            return Err(ApiError::invalid_value("logit_bias", message));
        }
        let entry = |(id, &bias): (&String, &f64)| {
            let param = format!("logit_bias.{id}");
            let token = id.parse().ok().filter(|&token: &u32| token < model.vocab).ok_or_else(|| {
                let message = format!("'{id}' in 'logit_bias' is not a token id in 0..{}", model.vocab);
                ApiError::invalid_value(&param, message)
            })?;
            Ok((token, number(&param, Some(bias), 0.0, -100.0, 100.0)?))
        };
        biases.iter().map(entry).collect()
    }
}

/// Checks that all `ids` are tokens.
pub(crate) fn check_tokens(param: &str, ids: &[u32], vocab: u32) -> Result<(), ApiError> {
    match ids.iter().position(|&id| id >= vocab) {
        Some(at) => {
            let message = format!("'{param}[{at}]' is {}, not a token id in 0..{vocab}", ids[at]);
            Err(ApiError::invalid_value(param, message))
        }
        None => Ok(()),
    }
}

/// The number of alternatives to report per token.
pub(crate) fn top_logprobs(param: &str, value: i64) -> Result<u8, ApiError> {
    Ok(whole(param, value, 0, TOP_LOGPROBS_MAX)? as u8)
}

/// A value that is one `T` or a list of them, `null` being none. An error names the element.
pub(crate) fn one_or_many<T: DeserializeOwned>(param: &str, value: Option<&Value>) -> Result<Vec<T>, ApiError> {
    let element = |path: String, value: &Value| {
        T::deserialize(value)
            .map_err(|error| ApiError::invalid_type(path.clone(), format!("invalid value for '{path}': {error}")))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => {
            values.iter().enumerate().map(|(at, value)| element(format!("{param}[{at}]"), value)).collect()
        }
        Some(value) => Ok(vec![element(param.to_string(), value)?]),
    }
}

/// `value` if it lies in `min..=max`.
pub(crate) fn whole(param: &str, value: i64, min: i64, max: i64) -> Result<i64, ApiError> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid_value(param, format!("'{param}' is {value}, but must be in {min}..={max}")))
}

fn number(param: &str, value: Option<f64>, default: f32, min: f64, max: f64) -> Result<f32, ApiError> {
    match value {
        None => Ok(default),
        Some(value) if (min..=max).contains(&value) => Ok(value as f32),
        Some(value) => {
            Err(ApiError::invalid_value(param, format!("'{param}' is {value}, but must be between {min} and {max}")))
        }
    }
}

/// Any 64-bit integer, signed or not; none draws one.
fn seed(value: Option<i128>) -> Result<u64, ApiError> {
    match value {
        None => Ok(ids::unique()),
        Some(seed) if i128::from(i64::MIN) <= seed && seed <= i128::from(u64::MAX) => Ok(seed as u64),
        Some(seed) => Err(ApiError::invalid_value("seed", format!("'seed' is {seed}, which does not fit 64 bits"))),
    }
}

fn stop_strings(value: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let stops: Vec<String> = one_or_many("stop", value)?;
    if stops.len() > STOPS_MAX {
        let message = format!("'stop' has {} entries, at most {STOPS_MAX} are allowed", stops.len());
        return Err(ApiError::invalid_value("stop", message));
    }
    if let Some(at) = stops.iter().position(|stop| stop.len() > STOP_BYTES_MAX) {
        let message = format!("'stop[{at}]' has {} bytes, at most {STOP_BYTES_MAX} are allowed", stops[at].len());
        return Err(ApiError::invalid_value("stop", message));
    }
    // Some clients send "" for "no stop string".
    Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Params, ApiError> {
        let model = ModelInfo { vocab: 201_088, context: 1000, ..ModelInfo::default() };
        Params::read(&value, &model, &ApiSettings::default())
    }

    #[test]
    fn out_of_range_values_are_refused_by_name() {
        let cases = [
            (json!({"temperature": -0.1}), "temperature"),
            (json!({"temperature": 2.1}), "temperature"),
            (json!({"temperature": "1"}), "temperature"),
            (json!({"temperature": [1]}), "temperature"),
            (json!({"top_p": 1.01}), "top_p"),
            (json!({"top_p": -1}), "top_p"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"top_k": 1.5}), "top_k"),
            (json!({"min_p": 2}), "min_p"),
            (json!({"n": 0}), "n"),
            (json!({"n": -1}), "n"),
            (json!({"n": 100000}), "n"),
            (json!({"n": true}), "n"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_tokens": 1e30}), "max_tokens"),
            (json!({"max_completion_tokens": -5}), "max_completion_tokens"),
            (json!({"min_tokens": -1}), "min_tokens"),
            (json!({"min_tokens": 9, "max_tokens": 8}), "min_tokens"),
            (json!({"seed": 1.5}), "seed"),
            (json!({"seed": "x"}), "seed"),
            (json!({"presence_penalty": 2.5}), "presence_penalty"),
            (json!({"frequency_penalty": -2.5}), "frequency_penalty"),
            (json!({"repetition_penalty": 0}), "repetition_penalty"),
            (json!({"logit_bias": {"201088": 1}}), "logit_bias.201088"),
            (json!({"logit_bias": {"-1": 1}}), "logit_bias.-1"),
            (json!({"logit_bias": {"the": 1}}), "logit_bias.the"),
            (json!({"logit_bias": {"5": 100.5}}), "logit_bias.5"),
            (json!({"logit_bias": {"5": "much"}}), "logit_bias.5"),
            (json!({"logit_bias": [5]}), "logit_bias"),
            (json!({"stop": 5}), "stop"),
            (json!({"stop": ["a", 5]}), "stop[1]"),
            (json!({"stop": ["x".repeat(2000)]}), "stop"),
            (json!({"stop": vec!["x"; 65]}), "stop"),
            (json!({"stop_token_ids": [201088]}), "stop_token_ids"),
            (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]"),
            (json!({"stream": "yes"}), "stream"),
            (json!({"stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        ];
        for (body, param) in cases {
            let error = read(body.clone()).expect_err(&body.to_string());
            assert_eq!(
                (error.status().as_u16(), error.body()["error"]["param"].as_str()),
                (400, Some(param)),
                "{body}"
            );
        }
    }

    #[test]
    fn values_in_range_pass_through() {
        let params = read(json!({
            "temperature": 0, "top_p": 0, "top_k": -1, "min_p": 0.1, "seed": -1, "presence_penalty": -2,
            "frequency_penalty": 2, "repetition_penalty": 1.1, "logit_bias": {"7": -100, "201087": 5},
            "stop": "x", "stop_token_ids": [3], "n": 2, "max_tokens": 5, "max_completion_tokens": 7,
            "unheard_of": {"anything": []},
        }))
        .unwrap();
        let sampling = &params.sampling;
        assert_eq!((sampling.temperature, sampling.top_k, sampling.seed), (0.0, 0, u64::MAX));
        assert!(sampling.top_p > 0.0 && sampling.top_p < 1e-30);
        assert_eq!(sampling.logit_bias, [(201_087, 5.0), (7, -100.0)]);
        assert_eq!((params.max_tokens, params.n, params.stop), (Some(7), 2, vec!["x".to_string()]));
        assert_eq!(params.stop_tokens, [3, 200_002, 200_012, 199_999]);
        assert_eq!(sampling.suppress_until, 0);
    }

    #[test]
    fn nulls_are_absent_and_defaults_are_the_models() {
        let nulls = json!({
            "temperature": null, "top_p": null, "n": null, "max_tokens": null, "stop": null, "seed": null,
            "logit_bias": null, "stream": null, "stream_options": null, "stop_token_ids": null, "min_tokens": null,
        });
        let params = read(nulls).unwrap();
        assert_eq!((params.sampling.temperature, params.sampling.top_p, params.n), (1.0, 1.0, 1));
        assert_eq!(params.output_tokens("messages", 400, 1000).unwrap(), 600);
        assert!(params.output_tokens("messages", 1000, 1000).is_err());
    }

    #[test]
    fn stop_tokens_are_masked_for_as_long_as_asked() {
        let params = read(json!({"ignore_eos": true, "stop_token_ids": [3]})).unwrap();
        assert_eq!((params.sampling.suppress_until, params.stop_tokens), (u32::MAX, vec![3]));
        assert_eq!(params.sampling.suppress, STOP_TOKENS);
        let params = read(json!({"min_tokens": 4, "stop_token_ids": [3]})).unwrap();
        assert_eq!(params.sampling.suppress_until, 4);
        assert_eq!(params.sampling.suppress, params.stop_tokens);
    }

    #[test]
    fn the_context_is_never_exceeded_silently() {
        let params = read(json!({"max_tokens": 601})).unwrap();
        let error = params.output_tokens("messages", 400, 1000).unwrap_err();
        assert_eq!(error.body()["error"]["code"], "context_length_exceeded");
        let message = error.to_string();
        assert!(["1000", "1001", "400", "601"].iter().all(|number| message.contains(number)), "{message}");
    }
}
