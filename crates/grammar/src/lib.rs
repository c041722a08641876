//! What a reply must look like, as masks over the vocabulary.
//!
//! The edge writes [`Rules`] and has them checked and compiled ([`Rules::constraint`]); the constraint that comes out is
//! plain text and travels with the request to every worker. There [`Masks`] follows the tokens of each slot and says
//! which may come next. Whoever reads the same constraint computes the same masks, so masks themselves never travel.
//!
//! A reply in harmony is a sequence of messages, and rules hold where their text stands: inside the answer, or inside
//! the arguments of a call. Reasoning stays free, and the control tokens that end a message are allowed exactly when
//! its text is complete. [`Walk`] is that state machine; the grammars within are compiled by `llguidance`.
//!
//! ```
//! use tandem_grammar::{Content, Masks, Reply, Rules};
//! use tandem_step::Masker;
//!
//! let answer = Content::Choice(vec!["yes".into(), "no".into()]);
//! let constraint = Rules::Reply(Reply { answer: Some(answer), ..Reply::default() }).constraint()?;
//! let mut masks = Masks::start(1)?;
//! let header = tandem_harmony::Tokenizer::shared().encode_with_special("<|channel|>final<|message|>");
//! masks.begin(0, &constraint, &header);
//! let allowed = masks.mask(0)?;
//! let is_allowed = |text: &str| {
//!     let token = tandem_harmony::Tokenizer::shared().encode(text)[0] as usize;
//!     allowed[token / 32] >> (token % 32) & 1 == 1
//! };
//! assert!(is_allowed("yes") && is_allowed("n") && !is_allowed("maybe"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cache;
mod content;
mod header;
mod mask;
mod masks;
mod rules;
mod schema;
mod vocabulary;
mod walk;

pub use content::{Content, ContentError};
pub use masks::Masks;
pub use rules::{Call, Reply, Rules, RulesError};
pub use vocabulary::warm_up;
pub use walk::Walk;
