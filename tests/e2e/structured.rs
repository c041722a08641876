//! Structured output of a random model behind the real binary: it says nothing sensible, but what it was asked for.

use serde_json::{Map, Value, json};
use tandem_harmony::{Tokenizer, special};

use crate::server::Server;

/// A bias that makes a random model end its reasoning and close its strings sooner than chance would.
pub fn impatience() -> Value {
    let tokenizer = Tokenizer::shared();
    let closing = ["\"", "\"}", "}", "]"].map(|text| (tokenizer.encode(text)[0].to_string(), json!(9)));
    let mut bias: Map<String, Value> = closing.into_iter().collect();
    bias.insert(special::END.to_string(), json!(60));
    bias.into()
}

fn server(extra: &[&str]) -> Server {
    Server::start(&[&["--synthetic", "tiny", "--exact", "--context", "2048", "--memory", "2G"], extra].concat())
}

fn chat(server: &Server, request: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Go."}], "temperature": 1, "seed": 5,
        "logit_bias": impatience(), "max_tokens": 700});
    body.as_object_mut().unwrap().extend(request.as_object().unwrap().clone());
    server.ok("/v1/chat/completions", &body)
}

fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer",
            "minimum": 0, "maximum": 120}}, "required": ["name", "age"], "additionalProperties": false}),
        json!({"$defs": {"step": {"type": "object", "properties": {"what": {"enum": ["go", "stay"]}}, "required": ["what"],
            "additionalProperties": false}}, "type": "object", "properties": {"steps": {"type": "array", "items":
            {"$ref": "#/$defs/step"}, "minItems": 1, "maxItems": 3}}, "required": ["steps"],
            "additionalProperties": false}),
        json!({"type": "object", "properties": {"when": {"type": "string", "format": "date"}, "how": {"anyOf":
            [{"type": "null"}, {"type": "string", "pattern": "^[a-c]{2,4}$"}]}}, "required": ["when", "how"],
            "additionalProperties": false}),
    ]
}

fn check(schema: &Value, text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let options = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
    options.validate(&value).unwrap_or_else(|error| panic!("{error}: {text}"));
}

fn format(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}})
}

#[test]
fn answers_and_calls_fit_their_schemas_at_any_pipeline_depth() {
    let (deep, shallow) = (server(&["--pipeline-depth", "2"]), server(&["--pipeline-depth", "1"]));
    for schema in schemas() {
        let mut contents = Vec::new();
        for server in [&deep, &shallow] {
            let reply = chat(server, json!({"response_format": format(&schema), "n": 3}));
            for choice in reply["choices"].as_array().unwrap() {
                assert_eq!(choice["finish_reason"], "stop", "{choice}");
                let content = choice["message"]["content"].as_str().unwrap();
                check(&schema, content);
                contents.push(content.to_string());
            }
        }
        assert_eq!(contents[..3], contents[3..], "the depth changes nothing");
        assert!(
            contents[0] != contents[1] || contents[0] != contents[2],
            "choices have seeds of their own: {contents:?}"
        );
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema, "strict": true}});
        for choice in [json!("required"), json!({"type": "function", "function": {"name": "f"}})] {
            let reply = chat(&deep, json!({"tools": [tool], "tool_choice": choice}));
            let choice = &reply["choices"][0];
            assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
            check(&schema, choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap());
        }
    }
}

#[test]
fn every_way_to_ask_and_what_may_come_beside() {
    let server = server(&[]);
    let content = |reply: &Value| reply["choices"][0]["message"]["content"].as_str().unwrap().to_string();
    let text = content(&chat(&server, json!({"response_format": {"type": "json_object"}})));
    assert!(serde_json::from_str::<Value>(&text).unwrap().is_object());
    let text = content(&chat(&server, json!({"structured_outputs": {"regex": "[ab]{3}-[0-9]{2}"}})));
    assert!(text.len() == 6 && text.as_bytes()[3] == b'-', "{text}");
    let text = content(&chat(&server, json!({"guided_choice": ["left", "right"]})));
    assert!(["left", "right"].contains(&&*text), "{text}");
    let text = content(&chat(&server, json!({"guided_grammar": "start: \"x\" (\"+\" \"x\")~1..3"})));
    assert!(["x+x", "x+x+x", "x+x+x+x"].contains(&&*text), "{text}");
    let raw = json!({"prompt": "Pick:", "guided_json": {"enum": ["one", 2]}, "max_tokens": 50, "logprobs": 2, "echo": true,
        "min_tokens": 40});
    let reply = server.ok("/v1/completions", &raw);
    assert!(["Pick:\"one\"", "Pick:2"].contains(&reply["choices"][0]["text"].as_str().unwrap()), "{reply}");
    // A stop string cuts the text as it does without a constraint.
    let text = content(&chat(&server, json!({"guided_regex": "abcdef", "stop": "de"})));
    assert_eq!(text, "abc");
    // Of several tools, those allowed.
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
        "additionalProperties": false}}})
    };
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
        {"type": "function", "function": {"name": "g"}}, {"type": "function", "function": {"name": "h"}}]}});
    let reply = chat(&server, json!({"tools": [tool("f"), tool("g"), tool("h")], "tool_choice": allowed, "n": 4}));
    for choice in reply["choices"].as_array().unwrap() {
        let function = &choice["message"]["tool_calls"][0]["function"];
        assert!(["g", "h"].contains(&function["name"].as_str().unwrap()), "{choice}");
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["n"].is_u64(), "{choice}");
    }
    // Streamed deltas join to the same text.
    let body = json!({"messages": [{"role": "user", "content": "Go."}], "stream": true, "seed": 5, "max_tokens": 700,
        "logit_bias": impatience(), "response_format": format(&schemas()[0])});
    let events = server.stream("/v1/chat/completions", &body);
    let deltas = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    check(&schemas()[0], &deltas.collect::<String>());
}

#[test]
fn faults_are_named_by_their_place() {
    let server = server(&[]);
    let message = json!([{"role": "user", "content": "Go."}]);
    let strict = |parameters: Value| {
        json!([{"type": "function", "function":
        {"name": "f", "parameters": parameters, "strict": true}}])
    };
    let cases = [
        (
            json!({"response_format": format(&json!({"type": "object", "properties": {"a": {"uniqueItems": true}}}))}),
            "response_format.json_schema.schema.properties.a.uniqueItems",
        ),
        (
            json!({"response_format": format(&json!({"items": {"type": "string", "pattern": "("}}))}),
            "response_format.json_schema.schema.items",
        ),
        (
            json!({"tools": strict(json!({"type": "object", "dependentRequired": {}}))}),
            "tools[0].function.parameters.dependentRequired",
        ),
        (json!({"guided_json": {"$ref": "#/nowhere"}}), "guided_json.$ref"),
        (json!({"guided_regex": "(a"}), "guided_regex"),
        (json!({"structured_outputs": {"grammar": "start: nothing"}}), "structured_outputs.grammar"),
        (json!({"guided_choice": [], "tools": []}), "guided_choice"),
        (json!({"guided_regex": "a", "response_format": {"type": "json_object"}}), "guided_regex"),
        (
            json!({"tools": strict(json!({})), "tool_choice": {"type": "allowed_tools", "allowed_tools":
            {"mode": "auto", "tools": [{"type": "function", "function": {"name": "z"}}]}}}),
            "tool_choice",
        ),
    ];
    for (mut body, param) in cases {
        body["messages"] = message.clone();
        let (status, answer) = server.post("/v1/chat/completions", &body);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().len() > 20, "{answer}");
    }
    let deep = (0..100).fold(json!({}), |inner, _| json!({"items": inner}));
    let wide: Vec<Value> = (0..20_000).map(|i| json!(format!("choice {i}"))).collect();
    for schema in [deep, json!({"enum": wide}), json!({"type": "string", "pattern": "^(a{1,900}){1,900}$"})] {
        let body = json!({"messages": message, "guided_json": schema, "max_tokens": 3});
        let (status, answer) = server.post("/v1/chat/completions", &body);
        assert!([200, 400].contains(&status), "{status}: {answer}");
    }
}
