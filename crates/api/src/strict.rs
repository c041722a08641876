//! JSON to types, more strictly than serde does it of itself: it would read `["user", "Hello"]` as a message whose fields
//! come in their order.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

/// A value whose objects, however deep, are read from objects only.
#[derive(Clone, Copy)]
pub(crate) struct Strict<'de>(pub &'de Value);

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(list) => visitor.visit_seq(SeqDeserializer::new(list.iter().map(Strict))),
            Value::Object(map) => {
                let entries = map.iter().map(|(name, value)| (name.as_str(), Strict(value)));
                visitor.visit_map(MapDeserializer::new(entries))
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &"an object")),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    // A whole number may be wanted as one with a fraction, which the value itself knows how to give.
    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.0.deserialize_f64(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Strict<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Outer {
        list: Vec<Inner>,
        maybe: Option<Inner>,
        any: Option<Value>,
        numbers: Option<BTreeMap<String, f64>>,
        seed: Option<i128>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        name: Option<String>,
    }

    #[test]
    fn what_serde_reads_from_objects_is_read_the_same() {
        for value in [
            json!({"list": []}),
            json!({"list": [{"name": "a"}, {"name": null}, {}], "maybe": null, "more": [1]}),
            json!({"list": [], "maybe": {"name": "b"}, "any": [[1, {"x": null}], 1.5], "numbers": {"a": 1, "b": 2.5}}),
            json!({"list": [], "seed": u64::MAX}),
            json!({"list": [], "seed": i64::MIN}),
        ] {
            let plain = Outer::deserialize(&value).unwrap();
            assert_eq!(Outer::deserialize(Strict(&value)).unwrap(), plain, "{value}");
        }
        assert!(Outer::deserialize(Strict(&json!({"list": 1}))).is_err());
    }

    #[test]
    fn objects_are_not_read_from_arrays() {
        for value in [json!([[]]), json!({"list": [["a"]]}), json!({"list": [], "maybe": ["a"]})] {
            assert!(Outer::deserialize(&value).is_ok() || value.is_array(), "{value}");
            let error = Outer::deserialize(Strict(&value)).unwrap_err().to_string();
            assert_eq!(error, "invalid type: sequence, expected an object", "{value}");
        }
    }
}
