//! JSON as strictly as the file formats of the inbox: every name once, and errors say where.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Where JSON stops being JSON; both counted from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct JsonError {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) message: String,
}

/// Parses one JSON text. A name that stands twice in an object is an error: which of the two would be meant?
pub(crate) fn parse(text: &[u8]) -> Result<Value, JsonError> {
    serde_json::from_slice(text).map(|Strict(value)| value).map_err(|error| {
        // serde_json appends the place to the message.
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message).to_owned();
        JsonError { line: error.line(), column: error.column(), message }
    })
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            if map.contains_key(&name) {
                let name: String = name.chars().take(64).collect();
                return Err(A::Error::custom(format!("{name:?} is given twice")));
            }
            let Strict(value) = access.next_value()?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_what_serde_json_reads() {
        let text = r#"{"a":[1,-2,3.5,"x\u00e9",null,true,{"b":{}}],"big":18446744073709551615}"#;
        assert_eq!(parse(text.as_bytes()).expect("parses"), serde_json::from_str::<Value>(text).expect("parses"));
    }

    #[test]
    fn a_name_given_twice_is_an_error_at_any_depth() {
        let error = parse(br#"{"a":{"seed":1,"seed":2}}"#).expect_err("twice");
        assert_eq!(error.message, "\"seed\" is given twice");
        assert_eq!(parse(br#"[{"a":1},{"a":2}]"#).expect("different objects"), json!([{"a":1},{"a":2}]));
        assert!(parse(br#"{"a":1,"\u0061":2}"#).is_err(), "an escape does not make another name");
    }

    #[test]
    fn errors_say_where() {
        let error = parse(b"{\n  \"a\": 1,\n  \"b\" 2\n}").expect_err("no colon");
        assert_eq!((error.line, error.column, error.message.as_str()), (3, 7, "expected `:`"));
    }

    #[test]
    fn what_is_no_json_is_refused_without_a_panic() {
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "NaN",
            "{\"a\":NaN}",
            "{\"a\":Infinity}",
            "{\"a\":1e999}",
            "{'a':1}",
            "{\"a\":1,}",
            "{} {}",
            "\u{feff}{}",
            deep.as_str(),
            "\"\u{1}\"",
            "\"\\ud800\"",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{}", &text[..text.len().min(20)]);
        }
        assert!(parse(b"\"\xff\"").is_err());
    }
}
