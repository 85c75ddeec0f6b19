//! Values as other programs write them: numbers in quotes, flags as words, empty texts for nothing.

use atelier_domain::ErrorCode;
use serde_json::Value;

use super::super::{
    intake::{Fields, Received},
    problem::Problem,
};

fn wrong(name: &str, value: &Value, what: &str) -> Problem {
    let shown: String = value.to_string().chars().take(64).collect();
    Problem::new(ErrorCode::InvalidParams, format!("params.{name}: {shown} is not {what}"))
}

/// A number, also in quotes. `None`: an empty text.
pub(crate) fn number(name: &str, value: &Value) -> Result<Option<f64>, Problem> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null => return Ok(None),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    number.filter(|number: &f64| number.is_finite()).map(Some).ok_or_else(|| wrong(name, value, "a number"))
}

/// A whole number, also in quotes or as `20.0`; `None`: an empty text.
pub(crate) fn whole(name: &str, value: &Value) -> Result<Option<i128>, Problem> {
    let parsed = match value {
        Value::Number(number) => number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from))
            .or_else(|| number.as_f64().and_then(without_fraction)),
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => text.trim().parse().ok().or_else(|| text.trim().parse().ok().and_then(without_fraction)),
        Value::Null => return Ok(None),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    parsed.map(Some).ok_or_else(|| wrong(name, value, "a whole number"))
}

#[expect(clippy::cast_possible_truncation, reason = "the bounds are checked first")]
fn without_fraction(number: f64) -> Option<i128> {
    (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i128)
}

impl Fields {
    /// The picture of a request that has one: part or value `image`.
    pub(crate) async fn image(&mut self) -> Result<Received, Problem> {
        if let Some(file) = self.files_named(&["image", "file"]).into_iter().next() {
            return Ok(file);
        }
        match self.take(&["image", "image_base64"]) {
            Some((name, Value::String(text))) => self.picture(name, &text).await,
            Some(_) | None => Err(Problem::new(ErrorCode::InvalidRequest, "image is missing")
                .with_hint("a data URI or base64, or a file in a form's part image")),
        }
    }

    /// A text under the first of these names; an empty one is none.
    pub(crate) fn text(&mut self, names: &[&'static str]) -> Result<Option<String>, Problem> {
        let Some((name, value)) = self.take(names) else { return Ok(None) };
        match &value {
            Value::String(text) if self.is_long(text) => {
                Err(Problem::new(ErrorCode::InvalidParams, format!("params.{name}: more than 16,000 characters")))
            }
            Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                Err(wrong(name, &value, "a text"))
            }
        }
    }

    pub(crate) fn number(&mut self, names: &[&'static str]) -> Result<Option<f64>, Problem> {
        self.take(names).map_or(Ok(None), |(name, value)| number(name, &value))
    }

    /// A whole number within these bounds.
    pub(crate) fn whole(
        &mut self,
        names: &[&'static str],
        bounds: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Problem> {
        let Some((name, value)) = self.take(names) else { return Ok(None) };
        let Some(number) = whole(name, &value)? else { return Ok(None) };
        let within = u64::try_from(number).ok().filter(|number| bounds.contains(number));
        within.map(Some).ok_or_else(|| wrong(name, &value, &format!("within {} to {}", bounds.start(), bounds.end())))
    }

    /// A seed; -1 is how many programs ask for any.
    pub(crate) fn seed(&mut self, names: &[&'static str]) -> Result<Option<u64>, Problem> {
        let Some((name, value)) = self.take(names) else { return Ok(None) };
        match whole(name, &value)? {
            None | Some(-1) => Ok(None),
            Some(seed) => u64::try_from(seed)
                .map(Some)
                .map_err(|_| wrong(name, &value, "a seed: 0 to 18446744073709551615, or -1 for any")),
        }
    }

    /// A flag, also as a word.
    pub(crate) fn flag(&mut self, names: &[&'static str]) -> Result<Option<bool>, Problem> {
        let Some((name, value)) = self.take(names) else { return Ok(None) };
        match &value {
            Value::Bool(flag) => Ok(Some(*flag)),
            Value::Number(number) if number.as_u64().is_some_and(|n| n <= 1) => Ok(Some(number.as_u64() == Some(1))),
            Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
                "" => Ok(None),
                "true" | "1" | "yes" | "on" => Ok(Some(true)),
                "false" | "0" | "no" | "off" => Ok(Some(false)),
                _ => Err(wrong(name, &value, "true or false")),
            },
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                Err(wrong(name, &value, "true or false"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_read_from_texts_and_nothing_else_is() {
        assert_eq!(whole("steps", &json!("20")).ok(), Some(Some(20)));
        assert_eq!(whole("steps", &json!(20.0)).ok(), Some(Some(20)));
        assert_eq!(whole("seed", &json!(u64::MAX)).ok(), Some(Some(i128::from(u64::MAX))));
        assert_eq!(whole("seed", &json!("")).ok(), Some(None));
        for bad in [json!(1.5), json!("x"), json!(true), json!([1]), json!("1e999")] {
            assert_eq!(whole("steps", &bad).map_err(|p| p.code()), Err("invalid_params"), "{bad}");
        }
        assert_eq!(number("scale", &json!("7.5")).ok(), Some(Some(7.5)));
        for bad in [json!("NaN"), json!("inf"), json!({}), json!(false)] {
            assert!(number("scale", &bad).is_err(), "{bad}");
        }
    }
}
