//! The control tokens of o200k_harmony.
//!
//! All other ids from 200000 to 201087 are reserved and never rendered.

/// `<|startoftext|>`: unused by harmony prompts, which begin with [`START`].
pub const STARTOFTEXT: u32 = 199_998;
/// `<|endoftext|>`: ends a document; a stop token.
pub const ENDOFTEXT: u32 = 199_999;
/// `<|return|>`: the model is done; a stop token, stored as [`END`] in history.
pub const RETURN: u32 = 200_002;
/// `<|constrain|>`: precedes the content type in a header.
pub const CONSTRAIN: u32 = 200_003;
/// `<|channel|>`: precedes the channel in a header.
pub const CHANNEL: u32 = 200_005;
/// `<|start|>`: begins a message header.
pub const START: u32 = 200_006;
/// `<|end|>`: ends a message; not a stop token, the model goes on with the next message.
pub const END: u32 = 200_007;
/// `<|message|>`: ends the header, the content follows.
pub const MESSAGE: u32 = 200_008;
/// `<|call|>`: ends a tool call; a stop token.
pub const CALL: u32 = 200_012;

/// The tokens that end a generation.
pub const STOP_TOKENS: [u32; 3] = [RETURN, CALL, ENDOFTEXT];

/// The first id that is not ordinary text.
pub const FIRST_SPECIAL: u32 = STARTOFTEXT;

/// Whether `token` is a control or reserved token rather than text.
pub fn is_special(token: u32) -> bool {
    token >= FIRST_SPECIAL
}
