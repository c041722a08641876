//! JSON schemas: what is understood of them, and where not.
//!
//! Nothing is ignored in silence: a keyword that restricts values is either honoured or refused with its place.

use std::time::{Duration, Instant};

use llguidance::Matcher;
use serde_json::{Map, Value};

use crate::content::{ContentError, compile_json};

/// Keywords that say nothing about which values are valid.
const ANNOTATIONS: [&str; 19] = [
    "$anchor",
    "$comment",
    "$id",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "deprecated",
    "description",
    "discriminator",
    "example",
    "examples",
    "externalDocs",
    "id",
    "readOnly",
    "title",
    "writeOnly",
    "xml",
    "enumNames",
];

/// Schemas compiled, at most, in search of the one at fault.
const SEARCH_MAX: usize = 100;
/// How long that search may take. A costly schema is refused all the same, only less precisely.
const SEARCH_TIME: Duration = Duration::from_secs(5);
/// A number beyond this may not be what it seems once it is a double.
const EXACT_INTEGER_MAX: u64 = 1 << 53;

/// Days that exist, leap years (Gregorian) included; and times without leap seconds, whose days a pattern cannot know.
const DATE: &str = concat!(
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)",
);
const TIME: &str =
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";

/// Host names and mail addresses within the lengths that the Internet's standards allow.
const HOSTNAME: &str =
    "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,57}[a-zA-Z0-9])?(?:\\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,57}[a-zA-Z0-9])?){0,3}";
const MAILBOX: &str = "[a-zA-Z0-9_%+-]{1,20}(?:\\.[a-zA-Z0-9_%+-]{1,20}){0,2}";

/// What a keyword's value is.
enum Operand {
    Schema,
    Schemas,
    /// An object whose values are schemas.
    Named,
    SchemaOrSchemas,
    Count,
    Number,
    NumberOrFlag,
    Text,
    Texts,
    TextOrTexts,
    Values,
    Value,
    Reference,
}

/// Checks a schema and compiles it.
pub(crate) fn compile(schema: &Value) -> Result<Matcher, ContentError> {
    let plain = Check { root: schema }.schema(schema, "")?;
    compile_json(plain.clone()).map_err(|error| locate(&plain, error))
}

/// Goes through a schema and leaves out of it what says nothing about values.
struct Check<'a> {
    root: &'a Value,
}

impl Check<'_> {
    fn schema(&self, schema: &Value, path: &str) -> Result<Value, ContentError> {
        let object = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(object) => object,
            other => return Err(ContentError::new(path, format!("{} is no JSON schema", kind(other)))),
        };
        let mut plain = Map::new();
        for (keyword, value) in object {
            let here = format!("{path}.{keyword}");
            if ANNOTATIONS.contains(&keyword.as_str()) || keyword.starts_with("x-") {
                continue;
            }
            let Some(operand) = operand(keyword) else {
                let message = format!("the keyword '{keyword}' is not supported");
                return Err(ContentError::new(here, message));
            };
            plain.insert(keyword.clone(), self.operand(&operand, value, &here)?);
        }
        spell_out_format(&mut plain);
        bound_integer(&mut plain);
        Ok(Value::Object(plain))
    }

    fn operand(&self, operand: &Operand, value: &Value, path: &str) -> Result<Value, ContentError> {
        let expected = |what: &str| Err(ContentError::new(path, format!("{} stands where {what} should", kind(value))));
        match (operand, value) {
            (Operand::Schema, value) => self.schema(value, path),
            (Operand::Schemas, Value::Array(schemas)) if !schemas.is_empty() => self.schemas(schemas, path),
            (Operand::Schemas, _) => expected("a list of schemas"),
            (Operand::SchemaOrSchemas, Value::Array(schemas)) => self.schemas(schemas, path),
            (Operand::SchemaOrSchemas, value) => self.schema(value, path),
            (Operand::Named, Value::Object(schemas)) => {
                let one = |(name, schema): (&String, &Value)| {
                    Ok((name.clone(), self.schema(schema, &format!("{path}.{name}"))?))
                };
                Ok(Value::Object(schemas.iter().map(one).collect::<Result<_, _>>()?))
            }
            (Operand::Named, _) => expected("an object of schemas"),
            (Operand::Count, value) if value.is_u64() => Ok(value.clone()),
            (Operand::Count, _) => expected("a whole number of at least 0"),
            (Operand::NumberOrFlag, Value::Bool(_)) => Ok(value.clone()),
            (Operand::Number | Operand::NumberOrFlag, Value::Number(_)) => exact(value, path),
            (Operand::Number | Operand::NumberOrFlag, _) => expected("a number"),
            (Operand::Text | Operand::TextOrTexts, Value::String(_)) => Ok(value.clone()),
            (Operand::Text, _) => expected("a string"),
            (Operand::Texts | Operand::TextOrTexts, Value::Array(texts)) if texts.iter().all(Value::is_string) => {
                Ok(value.clone())
            }
            (Operand::Texts, _) => expected("a list of strings"),
            (Operand::TextOrTexts, _) => expected("a string or a list of strings"),
            (Operand::Values, Value::Array(values)) if !values.is_empty() => exact(value, path),
            (Operand::Values, _) => expected("a list of values"),
            (Operand::Value, value) => exact(value, path),
            (Operand::Reference, Value::String(reference)) => self.reference(reference, path),
            (Operand::Reference, _) => expected("a string"),
        }
    }

    fn schemas(&self, schemas: &[Value], path: &str) -> Result<Value, ContentError> {
        let one = |(at, schema): (usize, &Value)| self.schema(schema, &format!("{path}[{at}]"));
        Ok(Value::Array(schemas.iter().enumerate().map(one).collect::<Result<_, _>>()?))
    }

    /// References lead to places in the same schema.
    fn reference(&self, reference: &str, path: &str) -> Result<Value, ContentError> {
        let is_here = reference == "#" || reference.starts_with("#/");
        if !is_here || reference.contains(['~', '%']) {
            let message = format!("'{reference}' is not supported; references like '#/$defs/name' are");
            return Err(ContentError::new(path, message));
        }
        match self.root.pointer(&reference[1..]) {
            Some(_) => Ok(Value::String(reference.to_string())),
            None => Err(ContentError::new(path, format!("'{reference}' leads nowhere in this schema"))),
        }
    }
}

/// Gives integers the bounds within which every reader of JSON takes them for what they are (RFC 7493), where they have
/// none: a model in a loop would add digits until its budget ends.
fn bound_integer(schema: &mut Map<String, Value>) {
    if schema.get("type").and_then(Value::as_str) != Some("integer") {
        return;
    }
    let bound = EXACT_INTEGER_MAX as i64 - 1;
    for (sides, bound) in [(["minimum", "exclusiveMinimum"], -bound), (["maximum", "exclusiveMaximum"], bound)] {
        if !sides.iter().any(|side| schema.get(*side).is_some_and(Value::is_number)) {
            schema.insert(sides[0].to_string(), bound.into());
        }
    }
}

/// Replaces the formats that `llguidance` takes more loosely than validators do: it makes every year a leap year, and
/// sets no limits to lengths.
fn spell_out_format(schema: &mut Map<String, Value>) {
    let pattern = match schema.get("format").and_then(Value::as_str) {
        Some("date") => format!("^{DATE}$"),
        Some("time") => format!("^{TIME}$"),
        Some("date-time") => format!("^{DATE}T{TIME}$"),
        Some("hostname") => format!("^{HOSTNAME}$"),
        Some("email") => format!("^{MAILBOX}@{HOSTNAME}$"),
        _ => return,
    };
    schema.shift_remove("format");
    let also = schema.entry("allOf").or_insert_with(|| Value::Array(Vec::new()));
    if let Some(list) = also.as_array_mut() {
        list.push(serde_json::json!({"pattern": pattern}));
    }
}

/// What stands behind a keyword; `None` for those that are not supported.
fn operand(keyword: &str) -> Option<Operand> {
    Some(match keyword {
        "additionalProperties" | "additionalItems" => Operand::Schema,
        "items" => Operand::SchemaOrSchemas,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Operand::Schemas,
        "$defs" | "definitions" | "properties" | "patternProperties" => Operand::Named,
        "minItems" | "maxItems" | "minLength" | "maxLength" | "minProperties" | "maxProperties" => Operand::Count,
        "minimum" | "maximum" | "multipleOf" => Operand::Number,
        "exclusiveMinimum" | "exclusiveMaximum" => Operand::NumberOrFlag,
        "pattern" | "format" => Operand::Text,
        "required" => Operand::Texts,
        "type" => Operand::TextOrTexts,
        "enum" => Operand::Values,
        "const" => Operand::Value,
        "$ref" => Operand::Reference,
        _ => return None,
    })
}

/// Refuses numbers that the grammar could not tell from their neighbours.
fn exact(value: &Value, path: &str) -> Result<Value, ContentError> {
    let inexact = match value {
        Value::Number(number) => {
            let magnitude = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            magnitude.is_some_and(|magnitude| magnitude > EXACT_INTEGER_MAX)
        }
        Value::Array(values) => {
            values.iter().enumerate().try_for_each(|(at, value)| exact(value, &format!("{path}[{at}]")).map(drop))?;
            false
        }
        Value::Object(values) => {
            values.iter().try_for_each(|(name, value)| exact(value, &format!("{path}.{name}")).map(drop))?;
            false
        }
        _ => false,
    };
    match inexact {
        true => Err(ContentError::new(path, format!("{value} is beyond 2^53; such numbers are not supported"))),
        false => Ok(value.clone()),
    }
}

/// Finds the innermost schema that fails to compile for the same reason, so that the error can name it.
fn locate(root: &Value, error: ContentError) -> ContentError {
    let definitions = ["$defs", "definitions"].map(|name| (name, root.get(name)));
    let mut left = SEARCH_MAX;
    let started = Instant::now();
    let mut path = String::new();
    let mut schema = root.clone();
    'deeper: loop {
        for (step, inner) in inner_schemas(&schema) {
            if left == 0 || started.elapsed() > SEARCH_TIME {
                break 'deeper;
            }
            left -= 1;
            let mut alone = inner.clone();
            if let Some(object) = alone.as_object_mut() {
                let missing = definitions.iter().filter(|(name, _)| inner.get(name).is_none());
                object.extend(missing.filter_map(|(name, value)| Some((name.to_string(), (*value)?.clone()))));
            }
            if compile_json(alone).is_err_and(|inner| inner.message == error.message) {
                path += &step;
                schema = inner;
                continue 'deeper;
            }
        }
        break;
    }
    ContentError { path, ..error }
}

/// The schemas directly inside a schema, with the ways to them.
fn inner_schemas(schema: &Value) -> Vec<(String, Value)> {
    let Some(object) = schema.as_object() else { return Vec::new() };
    let mut inner = Vec::new();
    for (keyword, value) in object {
        match (operand(keyword), value) {
            (Some(Operand::Schemas | Operand::SchemaOrSchemas), Value::Array(list)) => {
                inner.extend(list.iter().enumerate().map(|(at, one)| (format!(".{keyword}[{at}]"), one.clone())));
            }
            (Some(Operand::Named), Value::Object(named)) => {
                inner.extend(named.iter().map(|(name, one)| (format!(".{keyword}.{name}"), one.clone())));
            }
            (Some(Operand::Schema | Operand::SchemaOrSchemas), one) => inner.push((format!(".{keyword}"), one.clone())),
            _ => {}
        }
    }
    inner
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
