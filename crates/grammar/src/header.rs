//! The grammar of a message's header.

use std::fmt::Write;

/// The header of the assistant's next message, from after `assistant` through `<|message|>`, as a Lark grammar.
///
/// The recipient may stand in the role's part, as libraries render it, or in the channel's part, as the model writes
/// it, and calls may come on the analysis channel: models do, and whatever a grammar keeps them from is replaced by
/// something worse. `tools`: names as the model knows them. `preamble`: whether text to the user may come before calls.
pub(crate) fn grammar(tools: &[&str], preamble: bool) -> String {
    let mut text = String::from("start: <|channel|> channel <|message|>");
    if !tools.is_empty() {
        text += "\n     | recipient <|channel|> (\"commentary\" | \"analysis\") type? <|message|>";
    }
    text += "\nchannel: \"analysis\" | \"final\" final_type?";
    if !tools.is_empty() {
        text += " | (\"commentary\" | \"analysis\") recipient type?";
        text += if preamble { " | \"commentary\"" } else { "" };
    }
    text += "\nfinal_type: \" \"? <|constrain|> \"json\"";
    if !tools.is_empty() {
        text += "\ntype: \" \"? <|constrain|> \"json\" | \" json\" | \" code\"";
        text += "\nrecipient: ";
        for (index, name) in tools.iter().enumerate() {
            let or = if index == 0 { "" } else { " | " };
            // Names the model is shown have no character that a grammar's strings would have to escape.
            let _ = write!(text, "{or}\" to=functions.{name}\"");
        }
    }
    text + "\n"
}
