//! A call's arguments, for protocols whose calls carry an object instead of text.

use serde_json::{Value, json};

/// The arguments as an object. Those that are none go to the tool as text, under a name that says so.
pub(crate) fn object(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(object @ Value::Object(_)) => object,
        _ => json!({"invalid_json": arguments}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_always_an_object() {
        assert_eq!(object("{\"a\": 1}"), json!({"a": 1}));
        assert_eq!(object("[1"), json!({"invalid_json": "[1"}));
    }
}
