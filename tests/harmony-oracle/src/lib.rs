//! Our harmony against OpenAI's own library: see `tests/`.

pub mod generate;
pub mod reference;
