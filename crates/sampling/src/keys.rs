//! Typed reading of `scheduler_config.json`: each class has its own defaults, `null` means the default, and what is
//! wrong is told with its key and value.

use serde_json::{Map, Value};

use crate::SamplingError;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// The error that `key` is not as expected.
    pub(crate) fn wrong(self, key: &str, expected: impl Into<String>) -> SamplingError {
        let value = self.0.get(key).map_or_else(|| "absent".to_owned(), Value::to_string);
        SamplingError::Key { key: key.to_owned(), value, expected: expected.into() }
    }

    pub(crate) fn flag(self, key: &str, default: bool) -> Result<bool, SamplingError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "it must be true or false")),
        }
    }

    pub(crate) fn number(self, key: &str, default: f64) -> Result<f64, SamplingError> {
        Ok(self.optional_number(key)?.unwrap_or(default))
    }

    pub(crate) fn optional_number(self, key: &str) -> Result<Option<f64>, SamplingError> {
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        self.get(key)
            .map(|value| number(value).ok_or_else(|| self.wrong(key, "it must be a finite number")))
            .transpose()
    }

    /// A number above 0.
    pub(crate) fn positive(self, key: &str, default: f64) -> Result<f64, SamplingError> {
        let number = self.number(key, default)?;
        if number > 0.0 { Ok(number) } else { Err(self.wrong(key, "it must be above 0")) }
    }

    pub(crate) fn count(self, key: &str, default: usize) -> Result<usize, SamplingError> {
        let count = |value: &Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
        match self.get(key) {
            None => Ok(default),
            Some(value) => count(value).ok_or_else(|| self.wrong(key, "it must be a whole number, 0 or more")),
        }
    }

    pub(crate) fn numbers(self, key: &str) -> Result<Option<Vec<f64>>, SamplingError> {
        let list = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<_>>>();
        self.get(key)
            .map(|value| list(value).ok_or_else(|| self.wrong(key, "it must be a list of numbers")))
            .transpose()
    }

    pub(crate) fn word(self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// One of the named values; `default` is the name of the class's own.
    pub(crate) fn choice<T: Copy>(self, key: &str, default: &str, choices: &[(&str, T)]) -> Result<T, SamplingError> {
        let name = match self.get(key) {
            None => Some(default),
            Some(value) => value.as_str(),
        };
        let found = choices.iter().find(|(known, _)| Some(*known) == name);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<String> = choices.iter().map(|(known, _)| format!("`{known}`")).collect();
            self.wrong(key, format!("this class supports {}", names.join(", ")))
        })
    }

    /// Refuses `key` where it is set to anything but null, false, 0 or an empty list.
    pub(crate) fn refuse(self, key: &str, why: &str) -> Result<(), SamplingError> {
        let empty = |value: &Value| {
            value == &Value::Bool(false) || value.as_f64() == Some(0.0) || value.as_array().is_some_and(Vec::is_empty)
        };
        match self.get(key) {
            Some(value) if !empty(value) => Err(self.wrong(key, why)),
            None | Some(_) => Ok(()),
        }
    }
}
