//! The tools of a request, and by which kind of item each is called.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Value, json};
use tandem_harmony::Tool;

use crate::body;
use crate::conversation::schema;
use crate::demands::StrictTools;
use crate::error::ApiError;
use crate::turn::ToolChoice;

/// Tools that run at OpenAI's and that clients offer on the chance that they are there: the model never sees them.
const IGNORED: [&str; 4] = ["web_search", "web_search_preview", "image_generation", "tool_search"];

/// The tools of one request.
#[derive(Debug, Default)]
pub(super) struct Tools {
    pub tools: Vec<Tool>,
    /// What a call of each tool is called in items, by the tool's name.
    called: HashMap<String, Called>,
    /// Those whose arguments must follow their schema.
    pub strict: StrictTools,
}

/// How items name a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Called {
    pub namespace: Option<String>,
    pub name: String,
    /// Its input is text, not JSON.
    pub custom: bool,
}

#[derive(Debug, Deserialize)]
struct ToolFields {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
    format: Option<CustomFormat>,
    tools: Option<Vec<Value>>,
}

/// What the text of a custom tool looks like.
#[derive(Debug, Deserialize)]
struct CustomFormat {
    syntax: Option<String>,
    definition: Option<String>,
}

impl Tools {
    /// Adds the tools of a list, each checked.
    pub(super) fn add(&mut self, param: &str, list: &[Value]) -> Result<(), ApiError> {
        list.iter().enumerate().try_for_each(|(at, tool)| self.add_one(&format!("{param}[{at}]"), tool, None))
    }

    /// How items call the tool that the model knows by `name`; one that was not offered is a function of that name.
    pub(super) fn called(&self, name: &str) -> Called {
        let unknown = || Called { namespace: None, name: name.to_string(), custom: false };
        self.called.get(name).cloned().unwrap_or_else(unknown)
    }

    /// Keeps the tools of these names alone.
    fn keep(&mut self, names: &HashSet<String>) {
        self.tools.retain(|tool| names.contains(&tool.name));
    }

    fn add_one(&mut self, path: &str, value: &Value, namespace: Option<&str>) -> Result<(), ApiError> {
        let fields: ToolFields = body::typed(value).map_err(|error| error.below(path))?;
        let name = |fields: &ToolFields| match &fields.name {
            Some(name) if !name.is_empty() => Ok(name.clone()),
            _ => Err(ApiError::missing(format!("{path}.name"))),
        };
        let (parameters, custom) = match fields.kind.as_str() {
            "function" => {
                let param = format!("{path}.parameters");
                (fields.parameters.clone().map_or(Ok(Value::Null), |value| schema(&param, Some(value)))?, false)
            }
            "custom" => (custom_parameters(fields.format.as_ref()), true),
            "namespace" if namespace.is_none() => {
                let (name, tools) = (name(&fields)?, fields.tools.unwrap_or_default());
                let each = |(at, tool)| self.add_one(&format!("{path}.tools[{at}]"), tool, Some(&name));
                return tools.iter().enumerate().try_for_each(each);
            }
            kind if is_ignored(kind) => return Ok(()),
            other => {
                let message = format!(
                    "'{path}.type' is '{other}', a tool that this server does not have; offer a 'function' instead"
                );
                return Err(ApiError::unsupported(format!("{path}.type"), message));
            }
        };
        let called = Called { namespace: namespace.map(str::to_string), name: name(&fields)?, custom };
        let known_as = called.known_as();
        if self.called.insert(known_as.clone(), called).is_some() {
            let message = format!("two tools are named '{known_as}': a call could not be told apart");
            return Err(ApiError::invalid_value(format!("{path}.name"), message));
        }
        if fields.strict == Some(true) && !custom {
            self.strict.insert(known_as.clone(), format!("{path}.parameters"));
        }
        let description = fields.description.unwrap_or_default();
        self.tools.push(Tool { name: known_as, description, parameters });
        Ok(())
    }
}

impl Called {
    /// The name that tells this tool from all others; harmony makes it one that the model can write.
    pub(super) fn known_as(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}.{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Which of the tools the model may call, and whether it must. Others than the allowed ones are taken away.
pub(super) fn choice(value: Option<&Value>, tools: &mut Tools) -> Result<ToolChoice, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(ToolChoice::Auto),
        Some(Value::String(mode)) => mode_choice("tool_choice", mode),
        Some(object @ Value::Object(_)) => match object["type"].as_str() {
            Some("function" | "custom") => Ok(ToolChoice::Named(named("tool_choice", object)?)),
            Some("allowed_tools") => {
                let listed = object["tools"].as_array().ok_or_else(|| ApiError::missing("tool_choice.tools"))?;
                let listed = listed.iter().filter(|tool| !is_ignored(tool["type"].as_str().unwrap_or_default()));
                let names = listed.enumerate().map(|(at, tool)| named(&format!("tool_choice.tools[{at}]"), tool));
                tools.keep(&names.collect::<Result<_, _>>()?);
                mode_choice("tool_choice.mode", object["mode"].as_str().unwrap_or("auto"))
            }
            other => {
                let message = format!(
                    "'tool_choice.type' is '{}', but must be 'function', 'custom' or 'allowed_tools'",
                    other.unwrap_or_default()
                );
                Err(ApiError::unsupported("tool_choice.type", message))
            }
        },
        Some(other) => {
            let message = format!("'tool_choice' is {}; a string or an object is expected", body::kind(other));
            Err(ApiError::invalid_type("tool_choice", message))
        }
    }
}

fn mode_choice(param: &str, mode: &str) -> Result<ToolChoice, ApiError> {
    match mode {
        "none" => Ok(ToolChoice::None),
        "auto" => Ok(ToolChoice::Auto),
        "required" => Ok(ToolChoice::Required),
        other => {
            let message = format!("'{param}' is '{other}', but must be 'none', 'auto' or 'required'");
            Err(ApiError::invalid_value(param, message))
        }
    }
}

fn named(path: &str, object: &Value) -> Result<String, ApiError> {
    let name = object["name"].as_str().ok_or_else(|| ApiError::missing(format!("{path}.name")))?;
    let namespace = object["namespace"].as_str().map(str::to_string);
    Ok(Called { namespace, name: name.to_string(), custom: false }.known_as())
}

/// Whether the type is of a tool that is left out; types carry dates, as in `web_search_2025_08_26`.
fn is_ignored(kind: &str) -> bool {
    IGNORED
        .iter()
        .any(|ignored| kind.strip_prefix(ignored).is_some_and(|date| date.is_empty() || date.starts_with('_')))
}

/// The model writes JSON to every tool: what is to be text is one string in it.
fn custom_parameters(format: Option<&CustomFormat>) -> Value {
    let grammar = format.and_then(|format| format.definition.as_ref().map(|definition| (format, definition)));
    let description = match grammar {
        Some((format, definition)) => {
            let syntax = format.syntax.as_deref().unwrap_or("grammar");
            format!("The input as text that follows this {syntax} grammar:\n{definition}")
        }
        None => "The input as text.".to_string(),
    };
    json!({
        "type": "object",
        "properties": {"input": {"type": "string", "description": description}},
        "required": ["input"],
    })
}

/// The text that a custom tool is called with.
pub(super) fn custom_input(arguments: &str) -> String {
    match serde_json::from_str::<Value>(arguments) {
        Ok(value) => value["input"].as_str().map_or_else(|| arguments.to_string(), str::to_string),
        Err(_) => arguments.to_string(),
    }
}

/// The arguments that stand for a custom tool's text.
pub(super) fn custom_arguments(input: &str) -> String {
    json!({"input": input}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: Value) -> Result<Tools, ApiError> {
        let mut tools = Tools::default();
        tools.add("tools", list.as_array().unwrap()).map(|()| tools)
    }

    fn names(tools: &Tools) -> Vec<&str> {
        tools.tools.iter().map(|tool| tool.name.as_str()).collect()
    }

    #[test]
    fn kinds_of_tools() {
        let tools = read(json!([
            {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true},
            {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", "name": "f"}]},
            {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}},
            {"type": "web_search", "external_web_access": false},
            {"type": "web_search_preview_2025_03_11"},
        ]))
        .unwrap();
        assert_eq!(names(&tools), ["f", "n.f", "c"]);
        assert_eq!(tools.called("n.f"), Called { namespace: Some("n".into()), name: "f".into(), custom: false });
        assert!(tools.called("c").custom && !tools.called("other").custom);
        assert!(tools.tools[2].parameters.to_string().contains("start: /a/"));
    }

    #[test]
    fn faults_are_named() {
        let cases = [
            (json!([{"type": "file_search"}]), "tools[0].type"),
            (json!([{"type": "function"}]), "tools[0].name"),
            (json!([{"name": "f"}]), "tools[0].type"),
            (json!([{"type": "function", "name": "f", "parameters": 5}]), "tools[0].parameters"),
            (json!([{"type": "function", "name": "f"}, {"type": "custom", "name": "f"}]), "tools[1].name"),
            (json!([{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]), "tools[0].tools[0].type"),
        ];
        for (list, param) in cases {
            assert_eq!(read(list.clone()).unwrap_err().body()["error"]["param"], param, "{list}");
        }
    }

    #[test]
    fn choices() {
        let tools = || read(json!([{"type": "function", "name": "f"}, {"type": "function", "name": "g"}])).unwrap();
        let read = |value: Value| choice(Some(&value), &mut tools());
        assert_eq!(read(json!("required")).unwrap(), ToolChoice::Required);
        assert_eq!(read(json!({"type": "function", "name": "g"})).unwrap(), ToolChoice::Named("g".into()));
        let namespaced = json!({"type": "function", "name": "g", "namespace": "n"});
        assert_eq!(read(namespaced).unwrap(), ToolChoice::Named("n.g".into()));
        assert!(
            read(json!({"type": "web_search"})).is_err() && read(json!("maybe")).is_err() && read(json!(1)).is_err()
        );
        let allowed =
            json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]});
        let mut some = tools();
        assert_eq!(choice(Some(&allowed), &mut some).unwrap(), ToolChoice::Required);
        assert_eq!(names(&some), ["g"]);
    }

    #[test]
    fn custom_tools_take_text() {
        for text in ["", "*** Begin \"Patch\"\n"] {
            assert_eq!(custom_input(&custom_arguments(text)), text);
        }
        assert_eq!(custom_input("no json"), "no json");
        assert_eq!(custom_input("{\"other\": 1}"), "{\"other\": 1}");
    }
}
