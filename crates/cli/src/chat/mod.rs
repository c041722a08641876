//! `tandem chat`: a conversation in the terminal.
//!
//! It always speaks HTTP: to the server named by `--url`, to the one already running on the default port, or to one
//! started for the purpose inside this process.

mod client;
mod command;
mod screen;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use self::client::{ChatRequest, Client, Message, Piece, Usage};
use self::command::Command;
use self::screen::Screen;
use crate::remote::{DEFAULT_URL, Remote};
use crate::serve::{self, LocalServer};
use crate::settings::{ChatArgs, Effort, ServerArgs};

/// Lines kept of what was typed.
const HISTORY_LINES_MAX: usize = 1000;

/// Talks until the input ends.
pub fn run(args: &ChatArgs) -> Result<()> {
    let (client, server) = connect(args)?;
    let mut chat = Chat::new(args, client)?;
    chat.greet(server.as_ref());
    let result = chat.converse();
    drop(server);
    result
}

/// A client, and the server it talks to where that was started here.
fn connect(args: &ChatArgs) -> Result<(Client, Option<LocalServer>)> {
    if let Some(url) = &args.url {
        return Ok((Client::new(Remote::new(url, &args.server)?), None));
    }
    if args.model.model.is_none() && args.model.synthetic.is_none() {
        let running = Client::new(Remote::new(DEFAULT_URL, &args.server)?);
        if running.model().is_ok() {
            return Ok((running, None));
        }
    }
    let server = serve::start_local(&args.model)?;
    Ok((Client::new(Remote::new(&server.url(), &ServerArgs::default())?), Some(server)))
}

struct Chat {
    client: Client,
    model: String,
    messages: Vec<Message>,
    effort: Effort,
    temperature: f32,
    show_reasoning: bool,
    /// Set by Ctrl-C while an answer is coming.
    interrupted: Arc<AtomicBool>,
    screen: Screen,
}

impl Chat {
    fn new(args: &ChatArgs, client: Client) -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&interrupted))
            .context("watching for Ctrl-C")?;
        let model = client.model()?;
        let mut chat = Self {
            client,
            model,
            messages: Vec::new(),
            effort: args.effort,
            temperature: args.temperature,
            show_reasoning: !args.hide_reasoning,
            interrupted,
            screen: Screen::new(),
        };
        chat.start_over(args.system.as_deref());
        Ok(chat)
    }

    fn greet(&self, server: Option<&LocalServer>) {
        let place = if server.is_some() { "loaded here" } else { "on a running server" };
        self.screen.note(&format!("{} ({place}). /help lists commands, Ctrl-D ends.", self.model));
        if let Some(notice) = server.and_then(LocalServer::notice) {
            self.screen.note(notice);
        }
    }

    /// Reads lines until the input ends or `/quit`.
    fn converse(&mut self) -> Result<()> {
        let mut editor = DefaultEditor::with_config(
            rustyline::Config::builder().max_history_size(HISTORY_LINES_MAX)?.auto_add_history(true).build(),
        )?;
        let history = history_file();
        if let Some(file) = &history {
            // The first conversation has no history to load.
            let _ = editor.load_history(file);
        }
        loop {
            match editor.readline("> ") {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => match Command::parse(line.trim()) {
                    None => self.ask(line),
                    Some(Ok(Command::Quit)) => break,
                    Some(Ok(command)) => self.obey(command),
                    Some(Err(reason)) => self.screen.error(&reason),
                },
                Err(ReadlineError::Interrupted) => self.screen.note("Ctrl-D or /quit ends."),
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(error).context("reading the terminal"),
            }
        }
        if let Some(file) = &history {
            save_history(&mut editor, file).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Help => self.screen.note(command::HELP),
            Command::New => {
                let system = self.system().map(str::to_owned);
                self.start_over(system.as_deref());
                self.screen.note("A new conversation.");
            }
            Command::System(text) => {
                self.start_over((!text.is_empty()).then_some(text.as_str()));
                self.screen.note("A new conversation with these instructions.");
            }
            Command::Effort(effort) => self.effort = effort,
            Command::Temperature(temperature) => self.temperature = temperature,
            Command::Reasoning(show) => self.show_reasoning = show,
            Command::Undo => {
                self.forget_last();
            }
            Command::Retry => match self.forget_last() {
                Some(text) => self.ask(text),
                None => self.screen.error("Nothing was asked yet."),
            },
            Command::Save(file) => match self.save(&file) {
                Ok(()) => self.screen.note(&format!("Saved to {}.", file.display())),
                Err(error) => self.screen.error(&format!("{error:#}")),
            },
            Command::Quit => {}
        }
    }

    /// Sends what was typed and shows the answer. A question that failed is forgotten, so it can be asked again.
    fn ask(&mut self, text: String) {
        self.messages.push(Message { role: "user".into(), content: text });
        match self.answer() {
            Ok(content) => self.messages.push(Message { role: "assistant".into(), content }),
            Err(error) => {
                self.messages.pop();
                self.screen.error(&format!("{error:#}"));
            }
        }
    }

    fn answer(&mut self) -> Result<String> {
        self.interrupted.store(false, Ordering::SeqCst);
        let start = Instant::now();
        let (mut content, mut usage, mut reason) = (String::new(), Usage::default(), None);
        let mut first_token = None;
        let request = ChatRequest::new(&self.messages, self.effort.name(), self.temperature);
        self.client.chat(&request, |piece| {
            match piece {
                Piece::Reasoning(text) => {
                    first_token.get_or_insert_with(|| start.elapsed());
                    if self.show_reasoning {
                        self.screen.reasoning(&text);
                    }
                }
                Piece::Content(text) => {
                    first_token.get_or_insert_with(|| start.elapsed());
                    self.screen.content(&text);
                    content.push_str(&text);
                }
                Piece::Finished(why) => reason = Some(why),
                Piece::Usage(counts) => usage = counts,
            }
            !self.interrupted.load(Ordering::SeqCst)
        })?;
        self.screen.end_answer(&summary(reason.as_deref(), usage, first_token, start.elapsed()));
        Ok(content)
    }

    fn start_over(&mut self, system: Option<&str>) {
        self.messages.clear();
        if let Some(text) = system {
            self.messages.push(Message { role: "system".into(), content: text.into() });
        }
    }

    fn system(&self) -> Option<&str> {
        self.messages.first().filter(|message| message.role == "system").map(|message| message.content.as_str())
    }

    /// Takes back the last question and its answer; returns the question.
    fn forget_last(&mut self) -> Option<String> {
        let last = self.messages.iter().rposition(|message| message.role == "user")?;
        self.messages.drain(last..).next().map(|message| message.content)
    }

    fn save(&self, file: &PathBuf) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.messages)?;
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
    }
}

impl Effort {
    fn name(self) -> &'static str {
        match self {
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
        }
    }
}

/// `stopped · 0.2 s to the first token · 54 tokens, 31.2 tokens/s · 812 in the conversation`
fn summary(reason: Option<&str>, usage: Usage, first_token: Option<Duration>, total: Duration) -> String {
    let Some(reason) = reason else { return "interrupted".into() };
    let first_token = first_token.unwrap_or(total);
    let decode = (total - first_token).as_secs_f64();
    let mut parts = Vec::new();
    if reason == "length" {
        parts.push("cut off: the context is full".to_owned());
    }
    parts.push(format!("{:.1} s to the first token", first_token.as_secs_f64()));
    if usage.completion_tokens > 1 && decode > 0.0 {
        let rate = (usage.completion_tokens - 1) as f64 / decode;
        parts.push(format!("{} tokens at {rate:.1} tokens/s", usage.completion_tokens));
    }
    parts.push(format!("{} in the conversation", usage.prompt_tokens + usage.completion_tokens));
    parts.join(" · ")
}

/// Where typed lines are kept between conversations, following the XDG base directory specification.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    Some(state.join("tandem/chat_history"))
}

fn save_history(editor: &mut DefaultEditor, file: &PathBuf) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(editor.save_history(file)?)
}
