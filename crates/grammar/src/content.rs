//! What a piece of text must look like.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::{Matcher, TokenParser};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cache;
use crate::schema;
use crate::vocabulary::factory;

/// The largest description of one content: a schema as JSON, a grammar, a pattern, all choices together.
const BYTES_MAX: usize = 256 * 1024;
/// What may stand between the parts of JSON: a blank, or a line break with an indent. A model in a loop must not fill its
/// budget with either.
const WHITESPACE: &str = r"\x20|\r?\n[\x20\t]{0,60}";

/// What an answer, the arguments of a call or a whole text must look like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// JSON that this schema allows.
    Json(Value),
    /// Text that this regular expression matches as a whole, in the syntax of Rust's `regex` without look-around.
    Regex(String),
    /// Text of this grammar, in llguidance's variant of Lark.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// Why a content cannot be asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ContentError {
    /// Where the fault lies within a schema, such as `.properties.age.minimum`; empty where it is the whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl ContentError {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl Content {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::Json(json!({"type": "object"}))
    }

    /// Checks that the content can be produced, by compiling it; it is then at hand for the request.
    pub fn check(&self) -> Result<(), ContentError> {
        cache::content(self).map(drop)
    }

    /// Compiles. Takes from milliseconds to a second or so: not for a thread that others wait for.
    pub(crate) fn compile(&self) -> Result<Matcher, ContentError> {
        check_size(self.bytes())?;
        match self {
            Self::Json(schema) => schema::compile(schema),
            Self::Regex(pattern) => compile_regex(pattern),
            Self::Lark(grammar) => compile_lark(grammar),
            Self::Choice(choices) => compile_choice(choices),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Json(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|choice| choice.len() + 1).sum(),
        }
    }
}

fn check_size(bytes: usize) -> Result<(), ContentError> {
    if bytes <= BYTES_MAX {
        return Ok(());
    }
    Err(ContentError::new("", format!("it has {bytes} bytes, at most {BYTES_MAX} are allowed")))
}

fn compile_regex(pattern: &str) -> Result<Matcher, ContentError> {
    // The syntax is checked by the library that defines it: its messages say where the fault is.
    regex::Regex::new(pattern).map_err(|error| ContentError::new("", error.to_string()))?;
    let whole = pattern.strip_prefix('^').unwrap_or(pattern);
    let whole = match whole.strip_suffix('$') {
        Some(before) if !before.ends_with('\\') => before,
        _ => whole,
    };
    compile_text(GrammarWithLexer::from_regex(whole))
}

fn compile_lark(grammar: &str) -> Result<Matcher, ContentError> {
    if grammar.contains("::=") {
        let message =
            "it is in GBNF or EBNF ('::='); a Lark grammar is expected, with rules like 'start: \"a\" | \"b\"'";
        return Err(ContentError::new("", message));
    }
    compile_text(GrammarWithLexer::from_lark(grammar.to_string()))
}

fn compile_choice(choices: &[String]) -> Result<Matcher, ContentError> {
    if choices.is_empty() {
        return Err(ContentError::new("", "there is no choice in it"));
    }
    let pattern: Vec<String> = choices.iter().map(|choice| regex::escape(choice)).collect();
    compile_text(GrammarWithLexer::from_regex(&format!("(?:{})", pattern.join("|"))))
}

/// A JSON schema that has been checked, without options of its own.
pub(crate) fn compile_json(mut schema: Value) -> Result<Matcher, ContentError> {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(object) = schema.as_object_mut() {
        object.insert("x-guidance".into(), json!({"whitespace_pattern": WHITESPACE}));
    }
    compile_text(GrammarWithLexer::from_json_schema(schema))
}

/// A grammar in which control tokens have no place.
fn compile_text(grammar: GrammarWithLexer) -> Result<Matcher, ContentError> {
    let parser = parser(grammar)?;
    if parser.parser.grammar().lexer_spec().special_token_rx.is_some() {
        return Err(ContentError::new("", "it names control tokens; they are no text and cannot be asked for"));
    }
    Ok(Matcher::new(Ok(parser)))
}

/// The grammar of a header, which does have control tokens.
pub(crate) fn compile_header(grammar: &str) -> Result<Matcher, ContentError> {
    Ok(Matcher::new(Ok(parser(GrammarWithLexer::from_lark(grammar.to_string()))?)))
}

fn parser(grammar: GrammarWithLexer) -> Result<TokenParser, ContentError> {
    factory().create_parser(TopLevelGrammar::from_grammar(grammar)).map_err(|error| {
        let message = format!("{error:#}");
        ContentError::new("", message.split("\n<").next().unwrap_or_default().trim())
    })
}
