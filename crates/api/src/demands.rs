//! What a request demands of its output, as the constraint that the engine follows.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};
use tandem_grammar::{Call, Content, Reply, Rules};
use tandem_harmony::{Tool, ToolNames};
use tandem_step::Constraint;

use crate::body;
use crate::error::ApiError;

/// What a text must look like, and the field of the request that says so.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Demand {
    pub content: Content,
    pub param: String,
}

/// The tools whose arguments have to fit their schemas: the client's name of each, and the field with its schema.
pub(crate) type StrictTools = HashMap<String, String>;

impl Demand {
    /// Checks that the text can be produced. The error names the place within a schema.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        self.content.check().map_err(|error| {
            let place = format!("{}{}", self.param, error.path);
            ApiError::unsupported(&place, format!("'{place}' cannot be followed: {}", error.message))
        })
    }

    /// The constraint of an output that is this text as a whole.
    pub(crate) fn constraint(self) -> Result<Constraint, ApiError> {
        self.check()?;
        compiled(&Rules::Text(self.content), &self.param)
    }
}

/// What is asked of a reply to a conversation.
#[derive(Default)]
pub(crate) struct ReplyDemands {
    /// Of its answer.
    pub answer: Option<Demand>,
    /// The tools that may be called.
    pub tools: Vec<Tool>,
    /// Those of them whose arguments have to fit.
    pub strict: StrictTools,
    /// A call is demanded: its arguments should fit in any case.
    pub must_call: bool,
    /// The reply is to be as long as it may.
    pub ignore_eos: bool,
}

impl ReplyDemands {
    /// The constraint of the reply; none where nothing is asked of it. `forced`: the beginning of its header. Compiles
    /// schemas, which may take a second.
    pub(crate) fn constraint(self, names: &ToolNames, forced: &[u32]) -> Result<Option<Constraint>, ApiError> {
        if let Some(answer) = &self.answer {
            answer.check()?;
        }
        let calls: Vec<Call> = self.tools.iter().map(|tool| self.call(tool, names)).collect::<Result<_, _>>()?;
        let is_bound = self.answer.is_some() || calls.iter().any(|call| call.arguments.is_some());
        // A header's grammar alone is a help to the model, not a promise: it would only be in the way of a load test.
        if !is_bound && (calls.is_empty() || self.ignore_eos) {
            return Ok(None);
        }
        let param = self.answer.as_ref().map_or("tools", |answer| &answer.param).to_string();
        let answer = self.answer.map(|answer| answer.content);
        compiled(&Rules::Reply(Reply { answer, calls, forced: forced.to_vec() }), &param).map(Some)
    }

    fn call(&self, tool: &Tool, names: &ToolNames) -> Result<Call, ApiError> {
        let arguments = Content::Json(match &tool.parameters {
            Value::Null => json!({"type": "object", "properties": {}, "additionalProperties": false}),
            schema => schema.clone(),
        });
        let arguments = match self.strict.get(&tool.name) {
            Some(param) => {
                Demand { content: arguments.clone(), param: param.clone() }.check()?;
                Some(arguments)
            }
            None if self.must_call => Some(supported(arguments, &tool.name)),
            None => None,
        };
        Ok(Call { name: names.model_name(&tool.name), arguments })
    }
}

/// The schema, or any object where it asks for more than is supported: it is not promised to be followed.
fn supported(arguments: Content, tool: &str) -> Content {
    match arguments.check() {
        Ok(()) => arguments,
        Err(error) => {
            tracing::info!(tool, path = error.path, %error, "a call is demanded whose schema is not supported");
            Content::json_object()
        }
    }
}

fn compiled(rules: &Rules, param: &str) -> Result<Constraint, ApiError> {
    rules.constraint().map_err(|error| ApiError::unsupported(param, error.to_string()))
}

/// vLLM's fields for constrained output, old names and new.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GuidedFields {
    structured_outputs: Option<StructuredFields>,
    guided_json: Option<Value>,
    guided_json_object: Option<bool>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    guided_whitespace_pattern: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StructuredFields {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    structural_tag: Option<Value>,
    whitespace_pattern: Option<String>,
    disable_any_whitespace: Option<bool>,
    disable_additional_properties: Option<bool>,
}

/// What vLLM's fields of a request demand of its text; at most one may be given.
pub(crate) fn guided(value: &Value) -> Result<Option<Demand>, ApiError> {
    let fields: GuidedFields = body::typed(value)?;
    let new = fields.structured_outputs.unwrap_or_default();
    refuse("guided_whitespace_pattern", fields.guided_whitespace_pattern.is_some())?;
    refuse("structured_outputs.whitespace_pattern", new.whitespace_pattern.is_some())?;
    refuse("structured_outputs.structural_tag", new.structural_tag.is_some_and(|tag| !tag.is_null()))?;
    refuse("structured_outputs.disable_any_whitespace", new.disable_any_whitespace == Some(true))?;
    refuse("structured_outputs.disable_additional_properties", new.disable_additional_properties == Some(true))?;
    let object = |wanted: Option<bool>| (wanted == Some(true)).then(Content::json_object);
    let demands = [
        ("structured_outputs.json", json_content("structured_outputs.json", new.json)?),
        ("structured_outputs.json_object", object(new.json_object)),
        ("structured_outputs.regex", new.regex.map(Content::Regex)),
        ("structured_outputs.choice", new.choice.map(Content::Choice)),
        ("structured_outputs.grammar", new.grammar.map(Content::Lark)),
        ("guided_json", json_content("guided_json", fields.guided_json)?),
        ("guided_json_object", object(fields.guided_json_object)),
        ("guided_regex", fields.guided_regex.map(Content::Regex)),
        ("guided_choice", fields.guided_choice.map(Content::Choice)),
        ("guided_grammar", fields.guided_grammar.map(Content::Lark)),
    ];
    let demands =
        demands.into_iter().filter_map(|(param, content)| Some(Demand { content: content?, param: param.into() }));
    at_most_one(demands)
}

/// The one demand, if any: texts that fit two at once are not supported.
pub(crate) fn at_most_one(mut demands: impl Iterator<Item = Demand>) -> Result<Option<Demand>, ApiError> {
    let first = demands.next();
    match (&first, demands.next()) {
        (Some(first), Some(second)) => {
            let message = format!("'{}' and '{}' cannot be combined", first.param, second.param);
            Err(ApiError::invalid_value(second.param, message))
        }
        _ => Ok(first),
    }
}

fn refuse(param: &str, is_given: bool) -> Result<(), ApiError> {
    match is_given {
        true => Err(ApiError::unsupported(param, format!("'{param}' is not supported"))),
        false => Ok(()),
    }
}

/// A schema as an object or as JSON in a string.
fn json_content(param: &str, value: Option<Value>) -> Result<Option<Content>, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => serde_json::from_str(&text)
            .map(|schema| Some(Content::Json(schema)))
            .map_err(|error| ApiError::invalid_value(param, format!("'{param}' is a string, but not JSON: {error}"))),
        Some(schema @ Value::Object(_)) => Ok(Some(Content::Json(schema))),
        Some(other) => {
            let message = format!("'{param}' is {}; a JSON schema is expected", body::kind(&other));
            Err(ApiError::invalid_type(param, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(value: Value) -> String {
        let error = guided(&value).and_then(|demand| demand.map_or(Ok(()), |demand| demand.check())).unwrap_err();
        assert_eq!(error.status(), 400);
        error.body()["error"]["param"].as_str().unwrap().to_string()
    }

    #[test]
    fn vllms_fields() {
        let read = |value: Value| guided(&value).unwrap().map(|demand| demand.content);
        let schema = json!({"type": "integer"});
        assert_eq!(read(json!({})), None);
        assert_eq!(read(json!({"guided_json": null, "guided_json_object": false})), None);
        assert_eq!(read(json!({"guided_json": schema})), Some(Content::Json(schema.clone())));
        assert_eq!(read(json!({"guided_json": schema.to_string()})), Some(Content::Json(schema.clone())));
        assert_eq!(read(json!({"guided_regex": "a+"})), Some(Content::Regex("a+".into())));
        assert_eq!(read(json!({"structured_outputs": {"choice": ["a"]}})), Some(Content::Choice(vec!["a".into()])));
        assert_eq!(read(json!({"structured_outputs": {"json_object": true}})), Some(Content::json_object()));
        assert_eq!(read(json!({"structured_outputs": {"grammar": "start: \"a\""}})), {
            Some(Content::Lark("start: \"a\"".into()))
        });
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_its_place() {
        assert_eq!(fault(json!({"guided_json": {"items": {"not": {}}}})), "guided_json.items.not");
        assert_eq!(fault(json!({"guided_json": "{"})), "guided_json");
        assert_eq!(fault(json!({"guided_json": 5})), "guided_json");
        assert_eq!(fault(json!({"guided_regex": "("})), "guided_regex");
        assert_eq!(fault(json!({"guided_regex": "a", "structured_outputs": {"choice": ["a"]}})), "guided_regex");
        assert_eq!(fault(json!({"structured_outputs": {"structural_tag": {}}})), "structured_outputs.structural_tag");
        assert_eq!(fault(json!({"structured_outputs": {"choice": "a"}})), "structured_outputs.choice");
        assert_eq!(fault(json!({"guided_whitespace_pattern": " "})), "guided_whitespace_pattern");
    }

    #[test]
    fn tools_that_are_not_strict_need_no_schema_we_know() {
        let parameters = json!({"type": "object", "propertyNames": {"pattern": "a"}});
        let tool = Tool { name: "f".into(), description: String::new(), parameters };
        let names = ToolNames::new(std::slice::from_ref(&tool)).unwrap();
        let demands = |must_call| ReplyDemands { tools: vec![tool.clone()], must_call, ..ReplyDemands::default() };
        assert!(demands(false).constraint(&names, &[]).unwrap().unwrap().spec().contains("\"arguments\":null"));
        assert!(demands(true).constraint(&names, &[]).unwrap().unwrap().spec().contains("\"type\":\"object\"}"));
        let strict = StrictTools::from([("f".to_string(), "tools[0].function.parameters".to_string())]);
        let error = ReplyDemands { strict, ..demands(false) }.constraint(&names, &[]).unwrap_err();
        assert_eq!(error.body()["error"]["param"], "tools[0].function.parameters.propertyNames");
        assert!(ReplyDemands { ignore_eos: true, ..demands(false) }.constraint(&names, &[]).unwrap().is_none());
        assert!(ReplyDemands::default().constraint(&names, &[]).unwrap().is_none());
    }
}
