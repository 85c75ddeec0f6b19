//! The text so far, of tokens that come one by one.

use crate::tokenizer::{Tokenizer, TokenizerError};

/// What is written is never taken back: a character of which a token holds only some bytes waits for the others.
pub struct TextSoFar<'t> {
    tokenizer: &'t Tokenizer,
    tokens: Vec<i64>,
    /// The last tokens that were written, and with which the next are read: a token may look different at a beginning.
    context: usize,
    written: usize,
    text: String,
}

impl<'t> TextSoFar<'t> {
    pub const fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), context: 0, written: 0, text: String::new() }
    }

    /// Takes the tokens beyond those that it has.
    pub fn take(&mut self, tokens: &[i64]) -> Result<(), TokenizerError> {
        for &token in tokens.get(self.tokens.len()..).unwrap_or_default() {
            self.tokens.push(token);
            // Bytes in a row are read together, also across marks, which are no text: what they are is known when the
            // row has ended.
            let is_byte = self.tokenizer.token(token).is_some_and(|spelt| spelt.starts_with("<0x"));
            if is_byte || self.tokenizer.decode(&[token])?.is_empty() {
                continue;
            }
            let before = self.tokenizer.decode(&self.tokens[self.context..self.written])?;
            let after = self.tokenizer.decode(&self.tokens[self.context..])?;
            if after.ends_with(char::REPLACEMENT_CHARACTER) {
                continue;
            }
            if let Some(new) = after.strip_prefix(&before) {
                self.text.push_str(new);
                self.context = self.written;
                self.written = self.tokens.len();
            }
        }
        Ok(())
    }

    /// Without white space at its ends.
    pub fn text(&self) -> &str {
        self.text.trim()
    }
}
