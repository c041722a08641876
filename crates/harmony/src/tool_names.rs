//! Names of tools as the client writes them, and as the model sees them.

use std::collections::{HashMap, HashSet};

use crate::conversation::Tool;
use crate::render::RenderError;

/// The longest name shown to the model, in characters.
const NAME_CHARS_MAX: usize = 128;

/// Names that mean something else to the model: built-in tools, roles and channels.
const RESERVED: [&str; 13] = [
    "all",
    "analysis",
    "assistant",
    "browser",
    "commentary",
    "container",
    "developer",
    "final",
    "functions",
    "python",
    "system",
    "tool",
    "user",
];

/// The mapping between the client's names and the model's.
///
/// They are the same, unless the client's name is illegal in a header (anything but letters, digits, `_` and `-`, or
/// too long) or collides with a built-in such as `python`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolNames {
    to_model: HashMap<String, String>,
    to_client: HashMap<String, String>,
}

impl ToolNames {
    /// Maps the tools' names. Legal ones stay, whatever the others would be mapped to.
    pub fn new(tools: &[Tool]) -> Result<Self, RenderError> {
        let mut seen = HashSet::new();
        if let Some(twice) = tools.iter().find(|tool| !seen.insert(tool.name.as_str())) {
            return Err(RenderError::DuplicateTool { name: twice.name.clone() });
        }
        if tools.iter().any(|tool| tool.name.is_empty()) {
            return Err(RenderError::UnnamedTool);
        }
        let mut names = Self::default();
        let mut tried = HashMap::new();
        let (legal, illegal): (Vec<_>, Vec<_>) = tools.iter().partition(|tool| is_legal(&tool.name));
        for tool in legal.into_iter().chain(illegal) {
            names.insert(&tool.name, &mut tried);
        }
        Ok(names)
    }

    /// The model's name for the client's. A tool that is not listed, as in calls from before the list changed, is
    /// cleaned alike.
    pub fn model_name(&self, client: &str) -> String {
        self.to_model.get(client).cloned().unwrap_or_else(|| legal_name(client))
    }

    /// The client's name for a tool that the model knows.
    pub fn client_name(&self, model: &str) -> Option<&str> {
        self.to_client.get(model).map(String::as_str)
    }

    /// Whether a listed tool goes by this name with the client.
    pub fn is_client_name(&self, client: &str) -> bool {
        self.to_model.contains_key(client)
    }

    /// Gives the tool the first of `name`, `name_2`, `name_3`… that is free. `tried`: how far each name has got.
    fn insert(&mut self, client: &str, tried: &mut HashMap<String, u32>) {
        let name = legal_name(client);
        let number = tried.entry(name.clone()).or_insert(0);
        let free = loop {
            *number += 1;
            let candidate = if *number == 1 { name.clone() } else { numbered(&name, *number) };
            if !self.to_client.contains_key(&candidate) {
                break candidate;
            }
        };
        self.to_model.insert(client.to_string(), free.clone());
        self.to_client.insert(free, client.to_string());
    }
}

/// Whether the model can be shown `name` as it is.
fn is_legal(name: &str) -> bool {
    let chars = name.chars().all(is_name_char);
    chars && (1..=NAME_CHARS_MAX).contains(&name.len()) && !RESERVED.contains(&name)
}

/// `name` with illegal characters replaced, cut to length, out of the way of reserved names.
fn legal_name(name: &str) -> String {
    let name = cleaned(name);
    if RESERVED.contains(&name.as_str()) { format!("{name}_tool") } else { name }
}

/// `name` with anything but letters, digits, `_` and `-` replaced by `_`, cut to length; never empty.
pub(crate) fn cleaned(name: &str) -> String {
    let chars = name.chars().map(|char| if is_name_char(char) { char } else { '_' });
    let name: String = chars.take(NAME_CHARS_MAX).collect();
    if name.is_empty() { "unknown".to_string() } else { name }
}

/// `name_2`, within the longest length.
fn numbered(name: &str, number: u32) -> String {
    let suffix = format!("_{number}");
    let stem: String = name.chars().take(NAME_CHARS_MAX - suffix.len()).collect();
    stem + &suffix
}

fn is_name_char(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_' || char == '-'
}
