//! Conversation to tokens and back.
