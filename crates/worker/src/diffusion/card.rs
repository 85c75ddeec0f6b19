//! `atelier.json` in a model's folder: how the model wants to be run, and, for one that knows only so many
//! instructions, which these are and how people say them.
//!
//! A model without a card is run as diffusers runs it, with any prompt.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use atelier_domain::{Detail, ErrorCode, Fit};
use atelier_imaging::classic::Operation;
use serde::Deserialize;

use crate::{error::JobError, models::ModelError};

pub const FILE: &str = "atelier.json";

/// What the folder says; everything is optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Card {
    /// For people.
    pub about: String,
    /// Pixels of a side for which the model was made; a square of it is the area that pictures are brought to.
    pub size: Option<u32>,
    /// The same for pictures as the text encoder sees them, where it sees them in a size of their own.
    pub condition_size: Option<u32>,
    pub steps: Option<u32>,
    pub guidance_scale: Option<f64>,
    pub image_guidance_scale: Option<f64>,
    /// What `detail = "auto"` means; `none` where nothing is said.
    pub detail: Option<Detail>,
    /// What `fit` means where a job does not say.
    pub fit: Option<Fit>,
    /// Other forms of a word, each with the one that is meant.
    spelling: BTreeMap<String, String>,
    /// Words that change nothing.
    neutral: BTreeSet<String>,
    /// All that the model knows. Empty: it takes any prompt.
    instructions: Vec<Instruction>,
}

/// Something that can be asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Instruction {
    /// As the list of what can be done shows it.
    name: String,
    /// The wording that the model was trained on.
    #[serde(default)]
    say: Option<String>,
    /// In place of the model: an exact operation on pixels.
    #[serde(default)]
    classic: Option<Classic>,
    /// What the operation takes where the phrase holds no numbers.
    #[serde(default)]
    numbers: Vec<u32>,
    /// How people ask for it. `{}` stands for a number.
    phrases: Vec<String>,
    /// Where it differs from the card's.
    #[serde(default)]
    detail: Option<Detail>,
}

/// An operation by name; some take numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Classic {
    Blur,
    Sharpen,
    Posterize,
    Sketch,
    #[serde(rename = "rotate_90")]
    Rotate90,
    #[serde(rename = "rotate_180")]
    Rotate180,
    #[serde(rename = "rotate_270")]
    Rotate270,
    FlipHorizontal,
    FlipVertical,
    CropTo,
    ResizeTo,
    ResizeWidth,
    ResizeHeight,
    Scale,
}

impl Classic {
    fn operation(self, numbers: &[u32]) -> Option<Operation> {
        Some(match (self, numbers) {
            (Self::Blur, []) => Operation::Blur,
            (Self::Sharpen, []) => Operation::Sharpen,
            (Self::Posterize, []) => Operation::Posterize { levels: 4 },
            (Self::Sketch, []) => Operation::Sketch,
            (Self::Rotate90, []) => Operation::Rotate { quarters: 1 },
            (Self::Rotate180, []) => Operation::Rotate { quarters: 2 },
            (Self::Rotate270, []) => Operation::Rotate { quarters: 3 },
            (Self::FlipHorizontal, []) => Operation::FlipHorizontal,
            (Self::FlipVertical, []) => Operation::FlipVertical,
            (Self::CropTo, &[width, height]) => Operation::CropTo { width, height },
            (Self::ResizeTo, &[width, height]) => Operation::ResizeTo { width, height },
            (Self::ResizeWidth, &[width]) => Operation::ResizeTo { width, height: 0 },
            (Self::ResizeHeight, &[height]) => Operation::ResizeTo { width: 0, height },
            (Self::Scale, &[percent]) => Operation::Scale { percent },
            (
                Self::Blur
                | Self::Sharpen
                | Self::Posterize
                | Self::Sketch
                | Self::Rotate90
                | Self::Rotate180
                | Self::Rotate270
                | Self::FlipHorizontal
                | Self::FlipVertical
                | Self::CropTo
                | Self::ResizeTo
                | Self::ResizeWidth
                | Self::ResizeHeight
                | Self::Scale,
                _,
            ) => return None,
        })
    }
}

/// What an instruction means to this model.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// The model takes any prompt: as it was typed.
    Free,
    /// The model does it, asked in these words.
    Known { name: String, say: String, detail: Option<Detail> },
    /// It is done on the pixels themselves.
    Classic { name: String, operation: Operation },
}

impl Card {
    /// The card in `folder`; one that says nothing where there is none.
    ///
    /// # Errors
    /// A card that does not parse or contradicts itself.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(FILE);
        let wrong = |detail: String| ModelError::Config { path: path.clone(), detail };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let card: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        for instruction in &card.instructions {
            if instruction.say.is_some() == instruction.classic.is_some() {
                return Err(wrong(format!("{:?} needs either say or classic", instruction.name)));
            }
        }
        Ok(card)
    }

    /// What `prompt` means.
    ///
    /// # Errors
    /// `unknown_instruction`, with all that the model can do.
    pub fn understand(&self, prompt: &str) -> Result<Meaning, JobError> {
        if self.instructions.is_empty() {
            return Ok(Meaning::Free);
        }
        let asked = self.words(prompt);
        let found = self.instructions.iter().find_map(|instruction| {
            let fits = |phrase: &String| self.words(phrase).meets(&asked);
            let numbers = instruction.phrases.iter().chain(&instruction.say).find_map(fits)?;
            Some((instruction, numbers))
        });
        let Some((instruction, mut numbers)) = found else {
            return Err(self.unknown(prompt));
        };
        if numbers.is_empty() {
            numbers.clone_from(&instruction.numbers);
        }
        let name = instruction.name.clone();
        match (&instruction.say, instruction.classic) {
            (Some(say), _) => Ok(Meaning::Known { name, say: say.clone(), detail: instruction.detail }),
            (None, Some(classic)) => match classic.operation(&numbers) {
                Some(operation) => Ok(Meaning::Classic { name, operation }),
                None => Err(self.unknown(prompt)),
            },
            (None, None) => Err(self.unknown(prompt)),
        }
    }

    fn unknown(&self, prompt: &str) -> JobError {
        let known: Vec<&str> = self.instructions.iter().map(|instruction| instruction.name.as_str()).collect();
        let shown: String = prompt.chars().take(100).collect();
        JobError::refused(
            ErrorCode::UnknownInstruction,
            format!("this model does not know {shown:?}"),
            format!(
                "It knows: {}. One at a time; another model, such as a full InstructPix2Pix, takes any instruction.",
                known.join(", ")
            ),
        )
    }

    fn words(&self, text: &str) -> Words {
        let mut words = Words::default();
        for token in tokens(text) {
            if token == "{}" {
                words.numbers.push(None);
            } else if let Ok(number) = token.parse() {
                words.numbers.push(Some(number));
            } else {
                let word = self.spelling.get(&token).unwrap_or(&token);
                if !self.neutral.contains(word) {
                    words.words.insert(word.clone());
                }
            }
        }
        words
    }
}

/// What is left of a text: the words that mean something, and the numbers in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Words {
    words: BTreeSet<String>,
    /// `None`: any number.
    numbers: Vec<Option<u32>>,
}

impl Words {
    /// The numbers for this phrase's gaps, if `asked` says the same.
    fn meets(&self, asked: &Self) -> Option<Vec<u32>> {
        if self.words != asked.words || self.numbers.len() != asked.numbers.len() {
            return None;
        }
        let mut gaps = Vec::new();
        for (own, asked) in self.numbers.iter().zip(&asked.numbers) {
            match own {
                None => gaps.push((*asked)?),
                Some(_) if own == asked => {}
                Some(_) => return None,
            }
        }
        Some(gaps)
    }
}

/// Words, whole numbers and signs, in lower case.
fn tokens(text: &str) -> Vec<String> {
    #[derive(Clone, Copy, PartialEq)]
    enum Class {
        Word,
        Number,
        Apart,
    }
    let text = text.to_lowercase().replace("{}", " { ").replace(['\'', '’'], "");
    let mut tokens: Vec<(Class, String)> = Vec::new();
    let mut glued = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let next_is = |test: fn(&char) -> bool, next: Option<&char>| next.is_some_and(test);
        let class = match character {
            '0'..='9' => Class::Number,
            '&' | '/' => Class::Word,
            '-' if glued && next_is(|c| c.is_alphabetic(), characters.peek()) => Class::Word,
            '-' if !glued && next_is(char::is_ascii_digit, characters.peek()) => Class::Apart,
            '{' | '%' | '°' | ':' | '×' => Class::Apart,
            character if character.is_alphabetic() => Class::Word,
            _ => {
                glued = false;
                continue;
            }
        };
        match tokens.last_mut() {
            Some((last, token)) if glued && *last == class && class != Class::Apart => token.push(character),
            _ => {
                let token = match character {
                    '{' => "{}".into(),
                    '×' => "x".into(),
                    '-' => "minus".into(),
                    other => other.to_string(),
                };
                tokens.push((class, token));
            }
        }
        glued = true;
    }
    tokens.into_iter().map(|(_, token)| token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded() -> Card {
        Card::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-edit")).expect("a card")
    }

    fn name(card: &Card, prompt: &str) -> String {
        match card.understand(prompt) {
            Ok(Meaning::Known { name, .. } | Meaning::Classic { name, .. }) => name,
            other => panic!("{prompt:?}: {other:?}"),
        }
    }

    #[test]
    fn every_phrase_of_the_card_means_its_own_instruction() {
        let card = embedded();
        for instruction in &card.instructions {
            for phrase in instruction.phrases.iter().chain(&instruction.say) {
                assert!(!card.words(phrase).words.is_empty() || phrase.contains("{}"), "{phrase:?} says nothing");
                let asked = phrase.replacen("{}", "800", 1).replacen("{}", "600", 1);
                assert_eq!(name(&card, &asked), instruction.name, "{phrase:?}");
            }
        }
    }

    #[test]
    fn people_say_the_same_in_many_ways() {
        let card = embedded();
        for (prompt, expected) in [
            ("turn this picture into greyscale", "black and white"),
            ("Could you please make my photo Black & White?", "black and white"),
            ("remove all colour from this photograph!", "black and white"),
            ("make it a bit warmer", "warmer"),
            ("I want it to look like an old photograph", "sepia (an old photo)"),
            ("Increase the contrast.", "more contrast"),
            ("more light please", "brighter"),
            ("less light", "darker"),
            ("rotate 90° to the left", "rotate left"),
            ("Rotate by -90 degrees", "rotate left"),
            ("MAKE IT SHARPER", "sharpen"),
        ] {
            assert_eq!(name(&card, prompt), expected, "{prompt:?}");
        }
    }

    #[test]
    fn numbers_are_taken_from_the_instruction() {
        let card = embedded();
        let operation = |prompt: &str| match card.understand(prompt) {
            Ok(Meaning::Classic { operation, .. }) => operation,
            other => panic!("{prompt:?}: {other:?}"),
        };
        assert_eq!(operation("crop to 16:9"), Operation::CropTo { width: 16, height: 9 });
        assert_eq!(operation("crop it to a square"), Operation::CropTo { width: 1, height: 1 });
        assert_eq!(operation("resize to 800x600"), Operation::ResizeTo { width: 800, height: 600 });
        assert_eq!(operation("make it 1024 pixels wide"), Operation::ResizeTo { width: 1024, height: 0 });
        assert_eq!(operation("scale down to 50%"), Operation::Scale { percent: 50 });
    }

    #[test]
    fn what_it_does_not_know_is_refused_with_all_that_it_does() {
        let card = embedded();
        for prompt in [
            "add sunglasses",
            "make the sky blue",
            "don't make it black and white",
            "a black and white cat on the sofa",
            "make it black and white and brighter",
            "rotate 45 degrees",
            "",
            "?",
            "please",
        ] {
            let error = card.understand(prompt).expect_err(prompt).info("cpu");
            assert_eq!(error.code, ErrorCode::UnknownInstruction, "{prompt:?}");
            assert!(error.hint.contains("black and white") && error.hint.contains("resize"), "{}", error.hint);
        }
    }

    #[test]
    fn without_a_card_any_prompt_is_taken_and_a_damaged_card_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let card = Card::read(folder.path()).expect("no card is no error");
        assert_eq!(card.understand("add sunglasses").expect("any"), Meaning::Free);
        for text in ["{", r#"{"stepz":3}"#, r#"{"instructions":[{"name":"x","phrases":["x"]}]}"#] {
            fs::write(folder.path().join(FILE), text).expect("written");
            let error = Card::read(folder.path()).expect_err(text).to_string();
            assert!(error.contains(FILE), "{error}");
        }
    }
}
