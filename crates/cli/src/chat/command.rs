//! Lines that start with a slash.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::settings::Effort;

/// What `/help` prints.
pub const HELP: &str = "\
/new                  start over, keeping the instructions
/system TEXT          start over with these instructions (without TEXT: with none)
/effort low|medium|high
/temperature T        0 to 2; 0 always takes the likeliest token
/reasoning on|off     show the model's reasoning or not
/retry                ask the last question again
/undo                 take the last question and its answer back
/save FILE            write the conversation as JSON
/quit                 end (also Ctrl-D); Ctrl-C stops an answer";

/// A parsed command.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// `/help`
    Help,
    /// `/new`
    New,
    /// `/system TEXT`
    System(String),
    /// `/effort E`
    Effort(Effort),
    /// `/temperature T`
    Temperature(f32),
    /// `/reasoning on|off`
    Reasoning(bool),
    /// `/retry`
    Retry,
    /// `/undo`
    Undo,
    /// `/save FILE`
    Save(PathBuf),
    /// `/quit`
    Quit,
}

impl Command {
    /// `None` where the line is no command but something to say. `//` says a line that starts with a slash.
    pub fn parse(line: &str) -> Option<Result<Self, String>> {
        let rest = line.strip_prefix('/').filter(|rest| !rest.starts_with('/'))?;
        let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        Some(Self::from_parts(name, value.trim()))
    }

    fn from_parts(name: &str, value: &str) -> Result<Self, String> {
        Ok(match name {
            "help" | "?" => Command::Help,
            "new" | "clear" => Command::New,
            "system" => Command::System(value.into()),
            "effort" => Command::Effort(Effort::from_str(value, true).map_err(|_| "/effort low|medium|high")?),
            "temperature" => match value.parse() {
                Ok(temperature) if (0.0..=2.0).contains(&temperature) => Command::Temperature(temperature),
                _ => return Err("/temperature takes a number from 0 to 2".into()),
            },
            "reasoning" => match value {
                "on" => Command::Reasoning(true),
                "off" => Command::Reasoning(false),
                _ => return Err("/reasoning on|off".into()),
            },
            "retry" => Command::Retry,
            "undo" => Command::Undo,
            "save" if !value.is_empty() => Command::Save(value.into()),
            "save" => return Err("/save FILE".into()),
            "quit" | "exit" => Command::Quit,
            _ => return Err(format!("/{name} is no command; /help lists them")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_things_to_say() {
        let parse = |line| Command::parse(line);
        assert_eq!(parse("hello"), None);
        assert_eq!(parse("//etc/passwd is a file"), None);
        assert_eq!(parse("/effort high"), Some(Ok(Command::Effort(Effort::High))));
        assert_eq!(parse("/system  Be brief. "), Some(Ok(Command::System("Be brief.".into()))));
        assert_eq!(parse("/temperature 0.5"), Some(Ok(Command::Temperature(0.5))));
        assert!(matches!(parse("/temperature hot"), Some(Err(_))));
        assert!(matches!(parse("/nonsense"), Some(Err(_))));
        assert!(matches!(parse("/save"), Some(Err(_))));
    }
}
