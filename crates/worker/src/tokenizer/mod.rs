//! Text to token ids, as transformers' tokenizers of the same folder give them.
//!
//! Never cuts a text without saying so: [`Tokenizer::encode_to`] counts what it leaves out. Knows no model.

mod files;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use self::files::Class;

/// Longer texts are refused: no prompt is that long, and a pattern with look-ahead could run out of its budget.
pub const MOST_CHARACTERS: usize = 100_000;

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: {detail}", path.display())]
    Format { path: PathBuf, detail: String },
    #[error("{}: no tokenizer; looked for tokenizer.json, and for vocab.json with merges.txt{hint}", folder.display())]
    Absent { folder: PathBuf, hint: &'static str },
    #[error("the text has {characters} characters, and may have {MOST_CHARACTERS}")]
    TooLong { characters: usize },
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    #[error("the tokens are no text: {0}")]
    Decode(String),
}

/// Token ids of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<i64>,
    /// 1 for each token of the text or around it, 0 for padding.
    pub mask: Vec<i64>,
    /// How many of the text's tokens found no room.
    pub dropped: usize,
}

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    class: Class,
    /// What stands before and after the tokens of a text: `<|startoftext|>` and `<|endoftext|>` for CLIP, nothing and
    /// `</s>` for T5.
    prefix: Vec<i64>,
    suffix: Vec<i64>,
    pad: i64,
    pads_left: bool,
    max_length: Option<usize>,
}

impl Tokenizer {
    /// Reads the tokenizer in `folder`: `tokenizer.json`, or the `vocab.json` and `merges.txt` of CLIP and Qwen2; with
    /// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` where there are any.
    ///
    /// # Errors
    /// No tokenizer, or files that do not make one.
    pub fn open(folder: &Path) -> Result<Self, TokenizerError> {
        let source = files::read(folder)?;
        let wrong = |detail: String| TokenizerError::Format { path: source.path.clone(), detail };
        let mut inner: tokenizers::Tokenizer =
            serde_json::from_value(source.document).map_err(|error| wrong(format!("not a tokenizer: {error}")))?;
        inner.add_tokens(source.special).map_err(|error| wrong(error.to_string()))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| wrong(error.to_string()))?;
        let id = |token: &str| inner.token_to_id(token).map(i64::from);
        let pad = id(&source.pad).ok_or_else(|| wrong(format!("it has no {}, the token to pad with", source.pad)))?;
        let (prefix, suffix) = surroundings(&inner).map_err(wrong)?;
        let (class, pads_left, max_length) = (source.class, source.pads_left, source.max_length);
        Ok(Self { inner, class, prefix, suffix, pad, pads_left, max_length })
    }

    pub const fn class(&self) -> Class {
        self.class
    }

    /// The longest sequence that the model takes, with all that stands around the text. None where the folder does
    /// not say.
    pub const fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    pub const fn pad_id(&self) -> i64 {
        self.pad
    }

    pub fn prefix(&self) -> &[i64] {
        &self.prefix
    }

    pub fn suffix(&self) -> &[i64] {
        &self.suffix
    }

    /// Of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// As the vocabulary spells it.
    pub fn token(&self, id: i64) -> Option<String> {
        self.inner.id_to_token(u32::try_from(id).ok()?)
    }

    /// The text that tokens stand for, without those that stand for something else.
    ///
    /// # Errors
    /// A token that the vocabulary does not have.
    pub fn decode(&self, ids: &[i64]) -> Result<String, TokenizerError> {
        let ids = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(|error| TokenizerError::Decode(error.to_string()))?;
        self.inner.decode(&ids, true).map_err(|error| TokenizerError::Decode(error.to_string()))
    }

    /// The tokens of `text` alone.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<i64>, TokenizerError> {
        let characters = text.chars().count();
        if characters > MOST_CHARACTERS {
            return Err(TokenizerError::TooLong { characters });
        }
        encode(&self.inner, text, false).map_err(TokenizerError::Encode)
    }

    /// All tokens of `text`, and what stands around them.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, TokenizerError> {
        Ok([&self.prefix[..], &self.encode_plain(text)?, &self.suffix].concat())
    }

    /// As [`Self::encode`], cut to at most `length` and padded to it, on the side that the folder says.
    pub fn encode_to(&self, text: &str, length: usize) -> Result<Encoded, TokenizerError> {
        let plain = self.encode_plain(text)?;
        let room = length.saturating_sub(self.prefix.len() + self.suffix.len());
        let kept = plain.len().min(room);
        let mut ids = [&self.prefix[..], &plain[..kept], &self.suffix].concat();
        let mut mask = vec![1; ids.len()];
        let padding = length.saturating_sub(ids.len());
        let at = if self.pads_left { 0 } else { ids.len() };
        ids.splice(at..at, std::iter::repeat_n(self.pad, padding));
        mask.splice(at..at, std::iter::repeat_n(0, padding));
        Ok(Encoded { ids, mask, dropped: plain.len() - kept })
    }
}

fn encode(tokenizer: &tokenizers::Tokenizer, text: &str, special: bool) -> Result<Vec<i64>, String> {
    let encoding = tokenizer.encode(text, special).map_err(|error| error.to_string())?;
    Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
}

/// What the post-processor puts before and after the tokens of any text.
fn surroundings(tokenizer: &tokenizers::Tokenizer) -> Result<(Vec<i64>, Vec<i64>), String> {
    let probe = "a";
    let (plain, whole) = (encode(tokenizer, probe, false)?, encode(tokenizer, probe, true)?);
    if plain.is_empty() {
        return Err("it has no tokens for a simple text".into());
    }
    let start = whole.windows(plain.len()).position(|window| window == plain);
    let start = start.ok_or("what it adds to a text is not around it")?;
    Ok((whole[..start].to_vec(), whole[start + plain.len()..].to_vec()))
}
