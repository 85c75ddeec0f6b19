//! Reads a component's `config.json`: every key is taken, checked and accounted for.
//!
//! A value that changes what a network computes and that we do not compute is an error with the key's and the value's
//! names. So is a key that nobody asked for, unless its value (null, false, 0 or nothing) switches something off.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {detail}", path.display())]
    Unreadable { path: PathBuf, detail: String },
    #[error("{}: {key} is {value}, {problem}", path.display())]
    Unsupported { path: PathBuf, key: String, value: Value, problem: String },
    #[error("{}: {key} is missing", path.display())]
    Missing { path: PathBuf, key: String },
}

/// A configuration whose keys are taken one by one; [`Self::finish`] refuses what is left.
///
/// Keys that begin with an underscore (`_class_name`, `_diffusers_version`, `_name_or_path`) describe the file.
#[derive(Clone, Debug)]
pub struct ConfigReader {
    path: PathBuf,
    values: Map<String, Value>,
}

impl ConfigReader {
    /// # Errors
    /// No such file, or one that holds no JSON object.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |detail| ConfigError::Unreadable { path: path.into(), detail };
        let text = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
        let value = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        Self::from_value(path, value)
    }

    /// `path` is what errors name.
    pub fn from_value(path: &Path, value: Value) -> Result<Self, ConfigError> {
        if let Value::Object(values) = value {
            return Ok(Self { path: path.into(), values });
        }
        Err(ConfigError::Unreadable { path: path.into(), detail: "not a JSON object".into() })
    }

    /// An error about the value of `key`; `problem` ends the sentence "KEY is VALUE, ".
    pub fn unsupported(&self, key: &str, value: Value, problem: impl Into<String>) -> ConfigError {
        ConfigError::Unsupported { path: self.path.clone(), key: key.into(), value, problem: problem.into() }
    }

    pub fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing { path: self.path.clone(), key: key.into() }
    }

    /// What errors name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The value of `key`, null where it is absent.
    pub fn take(&mut self, key: &str) -> Value {
        self.values.remove(key).unwrap_or(Value::Null)
    }

    /// All keys that nobody has taken.
    pub const fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// The value of `key`, which stays; null where it is absent.
    pub fn peek(&self, key: &str) -> &Value {
        self.values.get(key).unwrap_or(&Value::Null)
    }

    /// Sets `key` where it is absent or null.
    pub fn set_default(&mut self, key: &str, value: Value) {
        if self.peek(key).is_null() {
            self.values.insert(key.into(), value);
        }
    }

    /// The object at `key`, to be taken key by key; `None` where it is absent or null.
    pub fn object(&mut self, key: &str) -> Result<Option<Self>, ConfigError> {
        match self.take(key) {
            Value::Null => Ok(None),
            Value::Object(values) => Ok(Some(Self { path: self.path.clone(), values })),
            value @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                Err(self.unsupported(key, value, "and not an object"))
            }
        }
    }

    /// A whole number from 1 up; `None` where the key is absent or null.
    pub fn size(&mut self, key: &str) -> Result<Option<i64>, ConfigError> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(None);
        }
        as_size(&value).map(Some).ok_or_else(|| self.unsupported(key, value, "and not a whole number from 1 up"))
    }

    pub fn size_or(&mut self, key: &str, default: i64) -> Result<i64, ConfigError> {
        Ok(self.size(key)?.unwrap_or(default))
    }

    pub fn float(&mut self, key: &str) -> Result<Option<f64>, ConfigError> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(None);
        }
        value.as_f64().map(Some).ok_or_else(|| self.unsupported(key, value, "and not a number"))
    }

    pub fn float_or(&mut self, key: &str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.float(key)?.unwrap_or(default))
    }

    pub fn floats(&mut self, key: &str) -> Result<Option<Vec<f64>>, ConfigError> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(None);
        }
        let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        numbers.map(Some).ok_or_else(|| self.unsupported(key, value, "and not a list of numbers"))
    }

    pub fn flag_or(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.take(key) {
            Value::Null => Ok(default),
            Value::Bool(flag) => Ok(flag),
            value @ (Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_)) => {
                Err(self.unsupported(key, value, "and not true or false"))
            }
        }
    }

    /// A list of whole numbers from 1 up.
    pub fn sizes(&mut self, key: &str) -> Result<Option<Vec<i64>>, ConfigError> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(None);
        }
        let sizes = value.as_array().and_then(|list| list.iter().map(as_size).collect::<Option<Vec<_>>>());
        match sizes {
            Some(sizes) if !sizes.is_empty() => Ok(Some(sizes)),
            Some(_) | None => Err(self.unsupported(key, value, "and not a list of whole numbers from 1 up")),
        }
    }

    /// One number for each of `count` blocks: a list of as many, or one number for all.
    pub fn sizes_for(&mut self, key: &str, count: usize, default: i64) -> Result<Vec<i64>, ConfigError> {
        self.each(key, count, default, as_size, "a whole number from 1 up")
    }

    /// One flag for each of `count` blocks: a list of as many, or one for all.
    pub fn flags_for(&mut self, key: &str, count: usize, default: bool) -> Result<Vec<bool>, ConfigError> {
        self.each(key, count, default, Value::as_bool, "true or false")
    }

    fn each<T: Clone>(
        &mut self,
        key: &str,
        count: usize,
        default: T,
        read: impl Fn(&Value) -> Option<T>,
        what: &str,
    ) -> Result<Vec<T>, ConfigError> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(vec![default; count]);
        }
        let values = match value.as_array() {
            Some(list) if list.len() == count => list.iter().map(&read).collect(),
            Some(_) => None,
            None => read(&value).map(|one| vec![one; count]),
        };
        values.ok_or_else(|| self.unsupported(key, value, format!("and not {what}, or a list of {count}")))
    }

    /// A list of names, each of which `known` turns into what it stands for; `supported` lists them for the error.
    pub fn names<T>(
        &mut self,
        key: &str,
        default: &[&str],
        supported: &str,
        known: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, ConfigError> {
        let mut value = self.take(key);
        if value.is_null() {
            value = Value::from(default);
        }
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let names: Option<Vec<T>> = list.iter().map(|name| name.as_str().and_then(&known)).collect();
        match names {
            Some(names) if !names.is_empty() => Ok(names),
            Some(_) | None => Err(self.unsupported(key, value, format!("and only {supported} are supported"))),
        }
    }

    /// Takes a key that has to have one of these values, or be absent.
    ///
    /// # Errors
    /// Another value.
    pub fn only(&mut self, key: &str, allowed: &[Value]) -> Result<(), ConfigError> {
        let Some(value) = self.values.remove(key) else { return Ok(()) };
        if allowed.iter().any(|other| *other == value || (value.is_number() && value.as_f64() == other.as_f64())) {
            return Ok(());
        }
        let list = allowed.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
        Err(self.unsupported(key, value, format!("and only {list} is supported")))
    }

    /// Gives `key` this value where the file has none.
    pub fn fill(&mut self, key: &str, value: Value) {
        let held = self.values.entry(key).or_insert(Value::Null);
        if held.is_null() {
            *held = value;
        }
    }

    /// Takes keys that change nothing that we compute.
    pub fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.values.remove(*key);
        }
    }

    /// Takes what transformers writes into any configuration and what changes nothing that we compute: training,
    /// special tokens, and how texts were generated by default years ago.
    pub fn ignore_transformers(&mut self) {
        self.ignore(TRANSFORMERS);
    }

    /// # Errors
    /// A key that nobody took and that is not switched off.
    pub fn finish(self) -> Result<(), ConfigError> {
        let left = self.values.iter().find(|(key, value)| !key.starts_with('_') && !is_off(value));
        match left {
            None => Ok(()),
            Some((key, value)) => Err(self.unsupported(key, value.clone(), "and this key is not known here")),
        }
    }
}

/// Keys of transformers' `PretrainedConfig`, of versions 4 and 5.
const TRANSFORMERS: &[&str] = &[
    "activation_dropout",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "diversity_penalty",
    "dropout",
    "dropout_rate",
    "dtype",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "layerdrop",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "n_positions",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "projection_dim",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// JSON has one kind of number; `8.0` is a whole number too.
fn as_size(value: &Value) -> Option<i64> {
    let whole = value.as_i64().or_else(|| {
        let float = value.as_f64().filter(|float| float.fract() == 0.0 && (1.0..=1e9).contains(float))?;
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within a billion")]
        Some(float as i64)
    });
    whole.filter(|size| *size >= 1)
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reader(value: Value) -> ConfigReader {
        ConfigReader::from_value(Path::new("unet/config.json"), value).expect("an object")
    }

    #[test]
    fn a_wrong_value_is_named_with_its_file_and_key() {
        let mut reader = reader(json!({ "act_fn": "mish", "in_channels": 0, "heads": [1, 2, 3] }));
        let error = reader.only("act_fn", &["silu".into(), "swish".into()]).expect_err("mish");
        assert_eq!(
            error.to_string(),
            "unet/config.json: act_fn is \"mish\", and only \"silu\" or \"swish\" is supported"
        );
        let error = reader.size("in_channels").expect_err("zero");
        assert_eq!(error.to_string(), "unet/config.json: in_channels is 0, and not a whole number from 1 up");
        let error = reader.sizes_for("heads", 2, 8).expect_err("three for two");
        assert_eq!(
            error.to_string(),
            "unet/config.json: heads is [1,2,3], and not a whole number from 1 up, or a list of 2"
        );
    }

    #[test]
    fn what_is_left_over_must_be_switched_off() {
        assert_eq!(reader(json!({ "_class_name": "X", "new": null, "newer": false, "list": [] })).finish(), Ok(()));
        let error = reader(json!({ "use_new_trick": true })).finish().expect_err("switched on");
        assert_eq!(error.to_string(), "unet/config.json: use_new_trick is true, and this key is not known here");
    }

    #[test]
    fn one_number_stands_for_all_blocks() -> Result<(), ConfigError> {
        let mut reader = reader(json!({ "a": 8, "b": [5, 10], "d": 2.0, "e": null }));
        assert_eq!(reader.sizes_for("a", 2, 1)?, [8, 8]);
        assert_eq!(reader.sizes_for("b", 2, 1)?, [5, 10]);
        assert_eq!(reader.sizes_for("c", 2, 1)?, [1, 1]);
        assert_eq!(reader.size("d")?, Some(2));
        assert_eq!(reader.size("e")?, None);
        reader.finish()
    }
}
