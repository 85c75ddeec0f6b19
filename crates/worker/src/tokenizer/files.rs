//! A tokenizer's folder, in any of the layouts that are about, as one document of the `tokenizers` crate.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::TokenizerError;

/// CLIP's pre-tokenizer takes what this matches and drops the rest, which is white space.
/// Source: transformers 5.23.0, models/clip/tokenization_clip.py.
const CLIP_PATTERN: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Source: transformers 5.23.0, models/qwen2/tokenization_qwen2.py.
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// transformers writes an integer of about 10^30 where there is no limit.
const NO_LIMIT: f64 = 1e9;

/// What kind of tokenizer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Clip,
    T5,
    Qwen2,
    Llama,
    Other,
}

impl Class {
    fn from_name(name: &str) -> Self {
        match name.strip_suffix("Fast").unwrap_or(name) {
            "CLIPTokenizer" => Self::Clip,
            "T5Tokenizer" => Self::T5,
            "Qwen2Tokenizer" => Self::Qwen2,
            "LlamaTokenizer" => Self::Llama,
            _ => Self::Other,
        }
    }

    /// What transformers takes where the folder names no token.
    const fn default_token(self, role: &str) -> Option<&'static str> {
        match (self, role.as_bytes()) {
            (Self::Clip, b"bos_token") => Some("<|startoftext|>"),
            (Self::Clip | Self::Qwen2, b"eos_token" | b"unk_token" | b"pad_token") => Some("<|endoftext|>"),
            (Self::Llama, b"bos_token") => Some("<s>"),
            (Self::T5 | Self::Llama, b"eos_token") => Some("</s>"),
            (Self::T5, b"pad_token") => Some("<pad>"),
            (Self::T5 | Self::Llama, b"unk_token") => Some("<unk>"),
            _ => None,
        }
    }
}

/// All that a tokenizer is made of.
pub(super) struct Source {
    /// The file that errors name.
    pub path: PathBuf,
    /// As a `tokenizer.json`.
    pub document: Value,
    /// Tokens that are found in a text as they are, besides the document's.
    pub special: Vec<AddedToken>,
    pub pad: String,
    /// Whether padding comes before the text.
    pub pads_left: bool,
    pub max_length: Option<usize>,
    pub class: Class,
}

pub(super) fn read(folder: &Path) -> Result<Source, TokenizerError> {
    let config = read_map(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let map = read_map(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
    let named_class = config.get("tokenizer_class").and_then(Value::as_str).map(Class::from_name);
    let (path, (vocab, merges)) =
        (folder.join("tokenizer.json"), (folder.join("vocab.json"), folder.join("merges.txt")));
    let (path, class, document) = if let Some(document) = read_map(&path)? {
        let class = named_class.unwrap_or_else(|| guess(&document));
        (path, class, Value::Object(document))
    } else if vocab.is_file() && merges.is_file() {
        let words = read_map(&vocab)?.unwrap_or_default();
        let class = match named_class {
            Some(class) => class,
            None if words.contains_key("<|startoftext|>") => Class::Clip,
            None => Class::Other,
        };
        let added = added_tokens(folder, &config, &words)?;
        let document = document(class, words, read_merges(&merges)?, &added, &Names { config: &config, map: &map })
            .map_err(|detail| TokenizerError::Format { path: vocab.clone(), detail })?;
        (vocab, class, document)
    } else {
        let hint = if folder.join("spiece.model").is_file() {
            "; spiece.model alone is not read: install the folder's tokenizer.json too"
        } else {
            ""
        };
        return Err(TokenizerError::Absent { folder: folder.into(), hint });
    };
    let names = Names { config: &config, map: &map };
    let pad = names.get(class, "pad_token").unwrap_or_else(|| padding_of(&document));
    let special = names.special(class, &document);
    let (pads_left, max_length) = (pads_left(&config, class), max_length(&config));
    Ok(Source { path, document, special, pad, pads_left, max_length, class })
}

/// The files that say which tokens have a role.
struct Names<'a> {
    config: &'a Map<String, Value>,
    map: &'a Map<String, Value>,
}

impl Names<'_> {
    /// The token with this role, as a string or in the long form.
    fn value(&self, role: &str) -> Option<&Value> {
        [self.config, self.map].into_iter().filter_map(|map| map.get(role)).find(|value| !value.is_null())
    }

    fn get(&self, class: Class, role: &str) -> Option<String> {
        self.value(role).and_then(content).or_else(|| class.default_token(role)).map(str::to_owned)
    }

    /// What transformers adds to a tokenizer that lacks it: the tokens with a role, then additional ones.
    fn special(&self, class: Class, document: &Value) -> Vec<AddedToken> {
        let known: Vec<&str> = document["added_tokens"].as_array().into_iter().flatten().filter_map(content).collect();
        let mut special: Vec<AddedToken> = Vec::new();
        let roles = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        let named = roles.iter().filter_map(|role| match self.value(role) {
            Some(value) => Some((value.clone(), content(value)?.to_owned())),
            None => class.default_token(role).map(|token| (Value::Null, token.to_owned())),
        });
        let lists = ["additional_special_tokens", "extra_special_tokens"];
        let listed = lists.iter().filter_map(|list| self.value(list)?.as_array()).flatten();
        let listed = listed.filter_map(|value| Some((value.clone(), content(value)?.to_owned())));
        for (value, token) in named.chain(listed) {
            if !known.contains(&token.as_str()) && special.iter().all(|other| other.content != token) {
                special.push(added_token(&value, token));
            }
        }
        special
    }
}

/// The flags of the long form; those of the short form are all off.
fn added_token(value: &Value, token: String) -> AddedToken {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(false);
    AddedToken::from(token, true)
        .lstrip(flag("lstrip"))
        .rstrip(flag("rstrip"))
        .single_word(flag("single_word"))
        .normalized(flag("normalized"))
}

/// A token in its short form, a string, or its long one, an object.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn padding_of(document: &Value) -> String {
    document["padding"]["pad_token"].as_str().unwrap_or("<pad>").to_owned()
}

/// Llama's tokenizer pads before the text where the folder does not say.
fn pads_left(config: &Map<String, Value>, class: Class) -> bool {
    config.get("padding_side").and_then(Value::as_str).map_or(class == Class::Llama, |side| side == "left")
}

fn max_length(config: &Map<String, Value>) -> Option<usize> {
    let length = config.get("model_max_length")?;
    if length.as_f64().is_none_or(|length| length > NO_LIMIT) {
        return None;
    }
    usize::try_from(length.as_u64()?).ok()
}

/// Which tokenizer a document is, where no file names the class.
fn guess(document: &Map<String, Value>) -> Class {
    let model = document.get("model");
    let vocab = model.and_then(|model| model.get("vocab"));
    if vocab.and_then(|vocab| vocab.get("<|startoftext|>")).is_some() {
        Class::Clip
    } else if model.and_then(|model| model.get("type")).and_then(Value::as_str) == Some("Unigram") {
        Class::T5
    } else {
        Class::Other
    }
}

/// Tokens with an id that the vocabulary's files add to it, in the document's form.
fn added_tokens(
    folder: &Path,
    config: &Map<String, Value>,
    words: &Map<String, Value>,
) -> Result<Vec<Value>, TokenizerError> {
    let mut by_id: BTreeMap<u64, Value> = BTreeMap::new();
    for (token, id) in read_map(&folder.join("added_tokens.json"))?.unwrap_or_default() {
        if let Some(id) = id.as_u64() {
            by_id.insert(id, long_form(&Value::Null, &token, id));
        }
    }
    if let Some(decoder) = config.get("added_tokens_decoder").and_then(Value::as_object) {
        for (id, value) in decoder {
            if let (Ok(id), Some(token)) = (id.parse(), content(value)) {
                by_id.insert(id, long_form(value, token, id));
            }
        }
    }
    // A token that the vocabulary has under another id cannot have two.
    by_id.retain(|id, value| {
        content(value).and_then(|token| words.get(token)?.as_u64()).is_none_or(|known| known == *id)
    });
    Ok(by_id.into_values().collect())
}

fn long_form(value: &Value, token: &str, id: u64) -> Value {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(false);
    let special = value.get("special").and_then(Value::as_bool).unwrap_or(true);
    json!({
        "id": id, "content": token, "special": special, "lstrip": flag("lstrip"), "rstrip": flag("rstrip"),
        "single_word": flag("single_word"), "normalized": flag("normalized"),
    })
}

/// The `tokenizer.json` that these files stand for.
fn document(
    class: Class,
    words: Map<String, Value>,
    merges: Vec<Value>,
    added: &[Value],
    names: &Names<'_>,
) -> Result<Value, String> {
    let split = |pattern: &str, behavior: &str, invert: bool| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert});
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let model = |suffix: &str, unknown: Value| {
        json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": "",
            "end_of_word_suffix": suffix, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        })
    };
    let (normalizer, pre_tokenizer, post_processor, mut model) = match class {
        Class::Clip => {
            let id = |role| {
                let token = names.get(class, role).unwrap_or_default();
                let id = words.get(&token).cloned().ok_or_else(|| format!("the vocabulary lacks {token}"))?;
                Ok::<_, String>(json!([token, id]))
            };
            let clean = json!({"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "});
            let normalizer = json!({
                "type": "Sequence", "normalizers": [{"type": "NFC"}, clean, {"type": "Lowercase"}],
            });
            let around = json!({
                "type": "RobertaProcessing", "sep": id("eos_token")?, "cls": id("bos_token")?,
                "trim_offsets": false, "add_prefix_space": false,
            });
            let unknown = names.get(class, "unk_token").into();
            (normalizer, [split(CLIP_PATTERN, "Removed", true), byte_level(true)], around, model("</w>", unknown))
        }
        Class::Qwen2 => {
            let normalizer = json!({"type": "NFC"});
            let pre_tokenizer = [split(QWEN2_PATTERN, "Isolated", false), byte_level(false)];
            (normalizer, pre_tokenizer, Value::Null, model("", Value::Null))
        }
        Class::T5 | Class::Llama | Class::Other => {
            return Err("it is not known which tokenizer these files are for: tokenizer_config.json must say \
                        CLIPTokenizer or Qwen2Tokenizer, or the folder hold a tokenizer.json"
                .into());
        }
    };
    model["vocab"] = Value::Object(words);
    model["merges"] = Value::Array(merges);
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizer}, "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": model,
    }))
}

/// One merge a line, two tokens with a space between them; the first line may tell the format's version.
fn read_merges(path: &Path) -> Result<Vec<Value>, TokenizerError> {
    let text = fs::read_to_string(path).map_err(|error| TokenizerError::Io { path: path.into(), error })?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.starts_with("#version") && !line.is_empty());
    lines
        .map(|(line, number)| match line.split(' ').collect::<Vec<_>>()[..] {
            [first, second] if !first.is_empty() && !second.is_empty() => Ok(json!([first, second])),
            _ => Err(TokenizerError::Format {
                path: path.into(),
                detail: format!("line {number} is not two tokens with a space between them"),
            }),
        })
        .collect()
}

/// None where there is no such file.
fn read_map(path: &Path) -> Result<Option<Map<String, Value>>, TokenizerError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TokenizerError::Io { path: path.into(), error }),
    };
    let map = serde_json::from_slice(&text);
    map.map(Some).map_err(|error| TokenizerError::Format { path: path.into(), detail: error.to_string() })
}
