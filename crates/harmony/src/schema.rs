//! JSON schemas as the TypeScript types in which gpt-oss reads its tools.
//!
//! The layout is that of the openai-harmony library, down to its blanks, for the model was trained on it. Where the
//! library loses what the schema says (`anyOf`, `$ref`, `const`, enums of other than strings, maps, arrays of unions,
//! lines of a comment after the first) the type says it here.

use serde_json::{Map, Value};

/// How many types one function's schema may expand to; beyond, and for a `$ref` inside itself, the type is `any`.
const TYPES_MAX: usize = 4_000;
/// How deep types may nest.
const DEPTH_MAX: usize = 24;

/// The type of a function with these parameters: `(_: {…}) => any`.
pub(crate) fn function_type(parameters: &Value) -> String {
    if parameters.is_null() {
        return "() => any".to_string();
    }
    let mut writer = Writer { root: parameters, types: 0, depth: 0, refs: Vec::new() };
    format!("(_: {}) => any", writer.described_type(parameters, ""))
}

/// `text` as comment lines, each with its line break; nothing for an empty text.
pub(crate) fn comment(indent: &str, text: &str) -> String {
    lines(text).map(|line| format!("{indent}// {line}\n")).collect()
}

/// The lines of `text`, by any line break that could end a comment.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let breaks = ['\n', '\r', '\u{2028}', '\u{2029}'];
    text.lines().flat_map(move |line| line.split(breaks))
}

struct Writer<'a> {
    root: &'a Value,
    types: usize,
    depth: usize,
    /// The references being expanded.
    refs: Vec<&'a str>,
}

impl<'a> Writer<'a> {
    /// The type of `schema`, its own description before it where it is an object.
    fn described_type(&mut self, schema: &'a Value, indent: &str) -> String {
        let description = if is_object(schema) { text(schema, "description") } else { "" };
        comment(indent, description) + &self.nullable_type(schema, indent)
    }

    /// The type of `schema`, with `null` if it says `nullable`.
    fn nullable_type(&mut self, schema: &'a Value, indent: &str) -> String {
        let mut types = self.union(schema, indent);
        if schema.get("nullable") == Some(&Value::Bool(true)) && !types.iter().any(|name| name == "null") {
            types.push("null".to_string());
        }
        types.join(" | ")
    }

    /// The types of which `schema` allows any one, within the limits.
    fn union(&mut self, schema: &'a Value, indent: &str) -> Vec<String> {
        self.types += 1;
        if self.types > TYPES_MAX || self.depth == DEPTH_MAX {
            return vec!["any".to_string()];
        }
        self.depth += 1;
        let types = self.expanded(schema, indent);
        self.depth -= 1;
        types
    }

    fn expanded(&mut self, schema: &'a Value, indent: &str) -> Vec<String> {
        if schema == &Value::Bool(false) {
            return vec!["never".to_string()];
        }
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.referenced(reference, indent);
        }
        if let Some(value) = schema.get("const") {
            return vec![value.to_string()];
        }
        if let Some(values) = non_empty(schema, "enum") {
            return distinct(values.iter().map(Value::to_string).collect());
        }
        if let Some(variants) = variants(schema) {
            return distinct(variants.iter().flat_map(|variant| self.variant(variant, indent)).collect());
        }
        if let Some(parts) = non_empty(schema, "allOf") {
            return vec![self.intersection(schema, parts, indent)];
        }
        match schema.get("type") {
            Some(Value::String(name)) => vec![self.named(name, schema, indent)],
            Some(Value::Array(names)) if !names.is_empty() => {
                let names = names.iter().filter_map(Value::as_str);
                distinct(names.map(|name| self.named(name, schema, indent)).collect())
            }
            _ => vec![self.named(implied_type(schema), schema, indent)],
        }
    }

    /// One alternative within a line.
    fn variant(&mut self, variant: &'a Value, indent: &str) -> Vec<String> {
        let mut types = self.union(variant, indent);
        if variant.get("nullable") == Some(&Value::Bool(true)) {
            types.push("null".to_string());
        }
        types
    }

    fn referenced(&mut self, reference: &'a str, indent: &str) -> Vec<String> {
        let target = (!self.refs.contains(&reference)).then(|| resolve(self.root, reference)).flatten();
        let Some(target) = target else { return vec!["any".to_string()] };
        self.refs.push(reference);
        let types = self.variant(target, indent);
        self.refs.pop();
        types
    }

    /// `allOf`, along with what stands beside it.
    fn intersection(&mut self, schema: &'a Value, parts: &'a [Value], indent: &str) -> String {
        let mut types: Vec<String> = parts.iter().map(|part| self.grouped(part, indent)).collect();
        if schema.get("properties").is_some() {
            types.push(self.object(schema, indent));
        }
        let mut types = distinct(types);
        if types.len() > 1 {
            types.retain(|name| name != "any");
        }
        types.join(" & ")
    }

    /// The type in brackets if it is more than one word could be mistaken for.
    fn grouped(&mut self, schema: &'a Value, indent: &str) -> String {
        let several = |types: &[String]| types.len() > 1 || types.iter().any(|name| name.contains(" & "));
        let mut types = self.variant(schema, indent);
        types = distinct(types);
        if several(&types) { format!("({})", types.join(" | ")) } else { types.join("") }
    }

    fn named(&mut self, name: &str, schema: &'a Value, indent: &str) -> String {
        match name {
            "object" => self.object(schema, indent),
            "array" => self.array(schema, indent),
            "integer" | "number" => "number".to_string(),
            "string" | "boolean" | "null" => name.to_string(),
            _ => "any".to_string(),
        }
    }

    fn array(&mut self, schema: &'a Value, indent: &str) -> String {
        let tuple = non_empty(schema, "prefixItems").or_else(|| non_empty(schema, "items"));
        if let Some(items) = tuple {
            let types: Vec<String> = items.iter().map(|item| self.nullable_type(item, indent)).collect();
            return format!("[{}]", types.join(", "));
        }
        match schema.get("items") {
            Some(items) => {
                let description = if is_object(items) { text(items, "description") } else { "" };
                format!("{}{}[]", comment(indent, description), self.grouped(items, indent))
            }
            None => "Array<any>".to_string(),
        }
    }

    fn object(&mut self, schema: &'a Value, indent: &str) -> String {
        let no_properties = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object);
        let required = schema.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut out = String::from("{\n");
        if let Some(properties) = properties {
            for (name, property) in properties {
                let required = required.iter().any(|entry| entry.as_str() == Some(name));
                out += &self.property(name, property, required, indent);
            }
        }
        let is_map = properties.unwrap_or(&no_properties).is_empty();
        for values in map_values(schema, is_map) {
            let type_name = self.nullable_type(values, &deeper(indent));
            out += &format!("{}{indent}[key: string]: {type_name},\n", comment(indent, text(values, "description")));
        }
        out + indent + "}"
    }

    /// One property: comments, name and type, each line ended.
    fn property(&mut self, name: &str, property: &'a Value, required: bool, indent: &str) -> String {
        let mut out = property_comments(self.described(property), property, indent);
        let key = format!("{indent}{}{}:", property_name(name), if required { "" } else { "?" });
        let default = property.get("default").map(|value| default_comment(value, is_enum(property)));
        match variants(property).filter(|variants| in_lines(property, variants)) {
            Some(variants) => {
                out += &default.map(|default| format!("{indent}// {default}\n")).unwrap_or_default();
                out += &format!("{key}\n");
                for variant in variants {
                    out += &self.variant_line(variant, text(property, "description"), indent);
                }
                if property.get("nullable") == Some(&Value::Bool(true)) {
                    out += &format!("{indent} | null\n");
                }
                out + &format!("{indent},\n")
            }
            None => {
                let type_name = self.nullable_type(property, &deeper(indent));
                let default = default.map(|default| format!(" // {default}")).unwrap_or_default();
                out + &format!("{key} {type_name},{default}\n")
            }
        }
    }

    /// The schema that describes a property: itself, or what it refers to.
    fn described(&self, property: &'a Value) -> &'a Value {
        let reference = property.get("$ref").and_then(Value::as_str).filter(|_| property.get("description").is_none());
        reference.and_then(|reference| resolve(self.root, reference)).unwrap_or(property)
    }

    /// ` | {type} // {description} {default}`
    fn variant_line(&mut self, variant: &'a Value, said_already: &str, indent: &str) -> String {
        let type_name = self.nullable_type(variant, &format!("{indent}   "));
        let description = lines(text(variant, "description")).collect::<Vec<_>>().join(" ");
        let description = Some(description).filter(|text| !text.is_empty() && text != said_already);
        let default = variant.get("default").map(|value| default_comment(value, is_enum(variant)));
        let notes: Vec<String> = description.into_iter().chain(default).collect();
        let notes = if notes.is_empty() { String::new() } else { format!(" // {}", notes.join(" ")) };
        format!("{indent} | {type_name}{notes}\n")
    }
}

/// Title, description and examples, above the property.
fn property_comments(described: &Value, property: &Value, indent: &str) -> String {
    let mut out = String::new();
    let title = text(property, "title");
    if !title.is_empty() {
        out += &format!("{}{indent}//\n", comment(indent, title));
    }
    out += &comment(indent, text(described, "description"));
    if let Some(examples) = non_empty(property, "examples") {
        out += &format!("{indent}// Examples:\n");
        for example in examples {
            out += &format!("{indent}// - {example}\n");
        }
    }
    out
}

/// `default: 10`; the default of an enum stands without quotes.
fn default_comment(value: &Value, of_enum: bool) -> String {
    match value {
        Value::String(text) if of_enum => format!("default: {}", lines(text).collect::<Vec<_>>().join(" ")),
        value => format!("default: {value}"),
    }
}

/// Whether the alternatives of a property stand in lines of their own: as soon as there is more to say of one.
fn in_lines(property: &Value, variants: &[Value]) -> bool {
    let noted = |variant: &Value| variant.get("description").is_some() || variant.get("default").is_some();
    property.get("oneOf").is_some() || variants.iter().any(|variant| noted(variant) || is_object(variant))
}

fn variants(schema: &Value) -> Option<&[Value]> {
    non_empty(schema, "oneOf").or_else(|| non_empty(schema, "anyOf"))
}

/// The schemas of what an object holds besides its properties. `true` is worth saying only where there are none.
fn map_values(schema: &Value, is_map: bool) -> impl Iterator<Item = &Value> {
    let patterns = schema.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(Map::values);
    let additional = schema.get("additionalProperties");
    let additional = additional.filter(move |values| values.is_object() || (is_map && **values == Value::Bool(true)));
    patterns.chain(additional)
}

/// The type that the keywords imply where none is named.
fn implied_type(schema: &Value) -> &'static str {
    let has = |keyword: &str| schema.get(keyword).is_some();
    if has("properties") || has("additionalProperties") || has("patternProperties") {
        "object"
    } else if has("items") || has("prefixItems") {
        "array"
    } else {
        "any"
    }
}

fn is_object(schema: &Value) -> bool {
    schema.get("type").map_or(implied_type(schema) == "object", |name| name == "object")
}

fn is_enum(schema: &Value) -> bool {
    non_empty(schema, "enum").is_some()
}

fn non_empty<'a>(schema: &'a Value, keyword: &str) -> Option<&'a [Value]> {
    schema.get(keyword)?.as_array().map(Vec::as_slice).filter(|values| !values.is_empty())
}

fn text<'a>(schema: &'a Value, keyword: &str) -> &'a str {
    schema.get(keyword).and_then(Value::as_str).unwrap_or_default()
}

/// The schema at `#/…`, a JSON pointer into the same document.
fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// A property's name, in quotes where TypeScript wants them.
fn property_name(name: &str) -> String {
    let letter = |char: char| char.is_alphanumeric() || char == '_' || char == '$';
    let plain = name.chars().all(letter) && !name.starts_with(|first: char| first.is_numeric());
    if plain && !name.is_empty() { name.to_string() } else { Value::from(name).to_string() }
}

fn distinct(mut types: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    types.retain(|name| seen.insert(name.clone()));
    types
}

fn deeper(indent: &str) -> String {
    format!("{indent}    ")
}
