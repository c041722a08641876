//! The header of a message that the model writes, read leniently.
//!
//! ```text
//! <|start|>{author}[ to={recipient}]<|channel|>{channel}[ to={recipient}][ <|constrain|>{type}]<|message|>
//! ```
//!
//! Models deviate: parts doubled, glued or missing. The reader takes what fits and says where content begins that
//! no `<|message|>` announced.

use crate::detokenize::Utf8Stream;

/// Words that never stop the reading of a header: what a model writes as the content type.
const CONTENT_TYPES: [&str; 3] = ["json", "code", "text"];
const AUTHORS: [&str; 5] = ["assistant", "user", "system", "developer", "tool"];
const CHANNELS: [&str; 3] = ["analysis", "commentary", "final"];

/// The longest header, in tokens; a name of 128 characters fits.
const TOKENS_MAX: usize = 160;
/// How long words that fit nowhere may stand in a header before they are taken for content.
const STRAY_TOKENS_MAX: usize = 8;
/// The longest author or channel name, in bytes.
const NAME_BYTES_MAX: usize = 160;

/// How a header came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// The prompt ended with `<|start|>assistant`.
    Prompted,
    /// The model wrote `<|start|>`.
    Started,
    /// The last message ended, and something else than `<|start|>` followed.
    Loose,
}

/// What a header says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    pub(crate) author: Option<String>,
    pub(crate) channel: Option<String>,
    /// As written after `to=`, cut at the first `<|`.
    pub(crate) recipient: Option<String>,
    /// Text that belongs to the content, where `<|message|>` is missing.
    pub(crate) content: String,
    /// The unfinished character after that text.
    pub(crate) utf8: Utf8Stream,
    /// Whether anything was other than the format says.
    pub(crate) faulty: bool,
}

/// A header as far as it has been read.
#[derive(Clone, Debug)]
pub(crate) struct HeaderReader {
    opening: Opening,
    sections: Vec<Section>,
    /// Of the last section.
    utf8: Utf8Stream,
    tokens: usize,
    stray_tokens: usize,
}

/// The text after a control token.
#[derive(Clone, Debug)]
struct Section {
    mark: Mark,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Author,
    Channel,
    ContentType,
}

impl HeaderReader {
    pub(crate) fn new(opening: Opening) -> Self {
        let author = Section { mark: Mark::Author, text: String::new() };
        Self { opening, sections: vec![author], utf8: Utf8Stream::default(), tokens: 0, stray_tokens: 0 }
    }

    /// Whether nothing has been read yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Takes `<|channel|>`. True where the header is too long to be one.
    pub(crate) fn channel(&mut self) -> bool {
        self.begin(Mark::Channel)
    }

    /// Takes `<|constrain|>`. True where the header is too long to be one.
    pub(crate) fn content_type(&mut self) -> bool {
        self.begin(Mark::ContentType)
    }

    fn begin(&mut self, mark: Mark) -> bool {
        let unfinished = self.utf8.finish();
        self.add_text(&unfinished);
        self.sections.push(Section { mark, text: String::new() });
        self.tokens += 1;
        self.tokens > TOKENS_MAX
    }

    /// Takes the bytes of a text token. True where content has begun without `<|message|>`.
    pub(crate) fn text(&mut self, bytes: &[u8]) -> bool {
        let text = self.utf8.push(bytes);
        self.add_text(&text);
        self.tokens += 1;
        if self.scan(false).content.is_empty() {
            return self.tokens > TOKENS_MAX;
        }
        self.stray_tokens += 1;
        let plain_text = self.opening != Opening::Started && self.sections.len() == 1;
        plain_text || self.stray_tokens > STRAY_TOKENS_MAX || self.tokens > TOKENS_MAX
    }

    fn add_text(&mut self, text: &str) {
        if let Some(section) = self.sections.last_mut() {
            section.text += text;
        }
    }

    /// The header, ended by `<|message|>`: what fits nowhere is dropped.
    pub(crate) fn finish(self) -> Header {
        let mut header = self.scan(true);
        header.faulty |= !header.content.is_empty();
        header.content.clear();
        header
    }

    /// The header, ended by anything else: what fits nowhere is content.
    pub(crate) fn finish_without_message(self) -> Header {
        Header { faulty: true, utf8: self.utf8.clone(), ..self.scan(true) }
    }

    fn scan(&self, complete: bool) -> Header {
        let mut scan = Scan { opening: self.opening, header: Header::default(), expects_recipient: false };
        scan.header.faulty = self.opening == Opening::Loose;
        for (index, section) in self.sections.iter().enumerate() {
            let last = index + 1 == self.sections.len();
            let rest = scan.section(section.mark, &section.text, last && !complete);
            let lacks_channel = section.mark == Mark::Channel && scan.header.channel.is_none();
            scan.header.faulty |= !rest.is_empty() || lacks_channel;
            scan.header.content = if last { rest.to_string() } else { String::new() };
        }
        scan.header
    }
}

struct Scan {
    opening: Opening,
    header: Header,
    /// After a lone `to=`.
    expects_recipient: bool,
}

impl Scan {
    /// Reads one section and returns its end from the first word that fits nowhere. `open`: the last word may go on.
    fn section<'a>(&mut self, mark: Mark, text: &'a str, open: bool) -> &'a str {
        if mark == Mark::Channel && self.header.channel.is_some() {
            self.header.faulty = true;
        }
        let before = self.header.clone();
        let mut rest = text;
        let mut first = true;
        while let Some((word, after)) = next_word(rest) {
            let growing = open && after.is_empty();
            let taken = match self.takes(mark, word, first, growing) {
                true => word.len(),
                false if first && mark == Mark::ContentType => content_type_len(word),
                false => 0,
            };
            if taken < word.len() {
                let from_start = if first { taken == 0 } else { only_first_was_taken(text, rest) };
                if from_start {
                    self.header = before;
                    return text;
                }
                return &text[text.len() - after.len() - word.len() + taken..];
            }
            rest = after;
            first = false;
        }
        ""
    }

    /// Whether `word` fits, after noting what it says.
    fn takes(&mut self, mark: Mark, word: &str, first: bool, growing: bool) -> bool {
        let word = word.split("<|").next().unwrap_or_default();
        if std::mem::take(&mut self.expects_recipient) {
            self.header.recipient = Some(word.to_string());
            return true;
        }
        if let Some(recipient) = word.strip_prefix("to=") {
            self.expects_recipient = recipient.is_empty();
            self.header.faulty |= recipient.is_empty() || mark == Mark::ContentType;
            self.header.recipient = Some(recipient.to_string());
            return true;
        }
        if CHANNELS.contains(&word) {
            self.header.faulty |= mark != Mark::Channel || self.header.channel.is_some();
            self.header.channel = Some(word.to_string());
            return true;
        }
        if first && self.takes_first(mark, word) {
            return true;
        }
        if word.starts_with("functions.") {
            self.header.faulty = true;
            self.header.recipient = Some(word.to_string());
            return true;
        }
        if CONTENT_TYPES.contains(&word) && (mark != Mark::Author || self.header.recipient.is_some()) {
            self.header.faulty |= mark != Mark::ContentType;
            return true;
        }
        growing && self.may_grow(mark, word, first)
    }

    /// The author, or a channel that is none of the three.
    fn takes_first(&mut self, mark: Mark, word: &str) -> bool {
        let author = AUTHORS.contains(&word) || (self.opening == Opening::Started && is_name(word));
        match mark {
            Mark::Author if author => {
                self.header.faulty |= self.opening == Opening::Prompted;
                self.header.author = Some(word.to_string());
                true
            }
            Mark::Channel if is_name(word) => {
                self.header.faulty = true;
                self.header.channel = Some(word.to_string());
                true
            }
            _ => false,
        }
    }

    /// Whether more letters could make `word` fit.
    fn may_grow(&self, mark: Mark, word: &str, first: bool) -> bool {
        let authors = AUTHORS.iter().filter(|_| first && mark == Mark::Author);
        let words = CHANNELS.iter().chain(&CONTENT_TYPES).chain(&["to=", "functions."]).chain(authors);
        words.into_iter().any(|candidate| candidate.starts_with(word))
    }
}

/// Whether `rest`, which fits nowhere, follows a single word that names nothing we know: then that is text, too.
fn only_first_was_taken(text: &str, rest: &str) -> bool {
    let Some((word, after)) = next_word(text) else { return false };
    let known = CHANNELS.contains(&word) || word == "assistant";
    after.len() == rest.len() && !known && !word.starts_with("to=") && !word.starts_with("functions.")
}

/// The first word of `text` and what follows it.
fn next_word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// How much of `word` is a content type: `json` of `json{"a":1}`.
fn content_type_len(word: &str) -> usize {
    word.find(|char: char| !char.is_ascii_alphanumeric() && !"/_-+.".contains(char)).unwrap_or(word.len())
}

/// Whether `word` could name an author or a channel.
fn is_name(word: &str) -> bool {
    let chars = word.chars().all(|char| char.is_ascii_alphanumeric() || "_-.:".contains(char));
    chars && (1..=NAME_BYTES_MAX).contains(&word.len())
}
