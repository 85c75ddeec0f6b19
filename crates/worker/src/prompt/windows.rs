//! A prompt's tokens in windows that each fill the encoder's context.

use super::parse_weights;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// A window ends at the last comma in this part of it rather than in the midst of what follows the comma, and at a
/// word's end where there is no comma: 20 of 75 tokens.
const LOOK_BACK: (usize, usize) = (20, 75);

/// What becomes of a prompt that is longer than the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LongPrompt {
    /// It becomes several windows.
    #[default]
    Windows,
    /// What does not fit is dropped, and counted, as diffusers does it.
    Cut,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptOptions {
    /// Parentheses and brackets weigh words. Off, they are text.
    pub weighting: bool,
    pub long: LongPrompt,
}

/// One or more windows, all of the same length.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// Start, tokens, end, padding.
    ids: Vec<Vec<i64>>,
    /// Of each token; 1 for start, end and padding.
    weights: Vec<Vec<f32>>,
    /// Of the text.
    tokens: usize,
    dropped: usize,
}

struct Token {
    id: i64,
    weight: f32,
}

impl Windows {
    /// The windows of `prompt`, each `length` tokens long with its start and end.
    pub fn of(
        tokenizer: &Tokenizer,
        prompt: &str,
        length: usize,
        options: PromptOptions,
    ) -> Result<Self, TokenizerError> {
        let room = length.saturating_sub(tokenizer.prefix().len() + tokenizer.suffix().len());
        if room == 0 {
            return Err(TokenizerError::Encode(format!("a context of {length} tokens has no room for text")));
        }
        let tokens = tokens(tokenizer, prompt, options.weighting)?;
        let mut windows = Self { ids: Vec::new(), weights: Vec::new(), tokens: tokens.len(), dropped: 0 };
        let mut rest = &tokens[..];
        loop {
            let taken = match options.long {
                LongPrompt::Cut => rest.len().min(room),
                LongPrompt::Windows => window(tokenizer, rest, room),
            };
            windows.push(tokenizer, &rest[..taken], length);
            rest = &rest[taken..];
            if rest.is_empty() || options.long == LongPrompt::Cut {
                break;
            }
        }
        windows.dropped = rest.len();
        Ok(windows)
    }

    fn push(&mut self, tokenizer: &Tokenizer, tokens: &[Token], length: usize) {
        let mut ids = tokenizer.prefix().to_vec();
        let mut weights = vec![1.0; ids.len()];
        ids.extend(tokens.iter().map(|token| token.id));
        weights.extend(tokens.iter().map(|token| token.weight));
        ids.extend(tokenizer.suffix());
        ids.resize(length, tokenizer.pad_id());
        weights.resize(length, 1.0);
        self.ids.push(ids);
        self.weights.push(weights);
    }

    /// Adds empty windows until there are `count`: what a prompt and its negative must have in common.
    pub fn pad_to(&mut self, tokenizer: &Tokenizer, count: usize) {
        let Some(length) = self.ids.first().map(Vec::len) else { return };
        while self.ids.len() < count {
            self.push(tokenizer, &[], length);
        }
    }

    pub const fn count(&self) -> usize {
        self.ids.len()
    }

    /// Tokens of the text, before anything was dropped.
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens of the text that found no room.
    pub const fn dropped(&self) -> usize {
        self.dropped
    }

    pub fn ids(&self) -> &[Vec<i64>] {
        &self.ids
    }

    pub fn weights(&self) -> &[Vec<f32>] {
        &self.weights
    }

    /// Whether any token's weight is not 1.
    pub fn is_weighted(&self) -> bool {
        self.weights.iter().flatten().any(|weight| weight.to_bits() != 1.0_f32.to_bits())
    }
}

fn tokens(tokenizer: &Tokenizer, prompt: &str, weighting: bool) -> Result<Vec<Token>, TokenizerError> {
    if !weighting {
        let ids = tokenizer.encode_plain(prompt)?;
        return Ok(ids.into_iter().map(|id| Token { id, weight: 1.0 }).collect());
    }
    let mut tokens = Vec::new();
    for piece in parse_weights(prompt) {
        #[expect(clippy::cast_possible_truncation, reason = "a weight need not be more exact")]
        let weight = piece.weight as f32;
        tokens.extend(tokenizer.encode_plain(&piece.text)?.into_iter().map(|id| Token { id, weight }));
    }
    Ok(tokens)
}

/// How many of the tokens go into the next window.
fn window(tokenizer: &Tokenizer, tokens: &[Token], room: usize) -> usize {
    if tokens.len() <= room {
        return tokens.len();
    }
    let ends = |is_end: fn(&str) -> bool| {
        let from = (room - room * LOOK_BACK.0 / LOOK_BACK.1).max(1);
        (from..=room).rev().find(|&end| tokenizer.token(tokens[end - 1].id).is_some_and(|token| is_end(&token)))
    };
    ends(|token| token == "," || token == ",</w>").or_else(|| ends(|token| token.ends_with("</w>"))).unwrap_or(room)
}
