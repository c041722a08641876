//! What the terminal shows: reasoning dimmed, answers plain, remarks of the program apart from both.

use std::io::{IsTerminal, Write, stderr, stdout};

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// What was printed last, so that reasoning and answer stand apart.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Nothing,
    Reasoning,
    Content,
}

/// Prints the pieces of a conversation.
pub struct Screen {
    colour: bool,
    last: Last,
}

impl Screen {
    /// Colours only where a terminal shows them and `NO_COLOR` is not set.
    pub fn new() -> Self {
        let colour = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, last: Last::Nothing }
    }

    /// More of the model's reasoning.
    pub fn reasoning(&mut self, text: &str) {
        self.print(Last::Reasoning, &self.styled(DIM, text));
    }

    /// More of the answer.
    pub fn content(&mut self, text: &str) {
        self.print(Last::Content, text);
    }

    /// The answer is over.
    pub fn end_answer(&mut self, summary: &str) {
        self.last = Last::Nothing;
        println!();
        self.note(&format!("[{summary}]"));
    }

    /// A remark of the program, on standard error: redirected output holds the answers alone.
    pub fn note(&self, text: &str) {
        eprintln!("{}", self.styled(DIM, text));
    }

    /// Something went wrong.
    pub fn error(&mut self, text: &str) {
        if self.last != Last::Nothing {
            println!();
            self.last = Last::Nothing;
        }
        eprintln!("{}", self.styled(RED, text));
    }

    fn print(&mut self, kind: Last, text: &str) {
        if self.last == Last::Reasoning && kind == Last::Content {
            print!("\n\n");
        }
        self.last = kind;
        print!("{text}");
        // Output that nobody can see any more is no reason to stop.
        let _ = stdout().flush();
        let _ = stderr().flush();
    }

    fn styled(&self, style: &str, text: &str) -> String {
        if self.colour { format!("{style}{text}{RESET}") } else { text.to_owned() }
    }
}
