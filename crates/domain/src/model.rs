//! Model families: which networks Atelier knows by the class name in a folder's configuration, and what they do.
//!
//! Adding a family: one variant here, and its file in `crates/worker`; the compiler names what is left.

use serde::{Deserialize, Serialize};

use crate::JobKind;

/// A network architecture, recognised by `_class_name` in `config.json` or `model_index.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// SPAN, a plain convolutional upscaler.
    Span,
    /// waifu2x's UpConv7: upscales by 2 and removes noise.
    UpConv7,
    /// What the tests' stand-in worker serves. The real worker refuses it.
    Fake,
}

impl Family {
    pub const ALL: [Self; 3] = [Self::Span, Self::UpConv7, Self::Fake];

    /// The `_class_name` that marks this family.
    pub const fn class_name(self) -> &'static str {
        match self {
            Self::Span => "SPAN",
            Self::UpConv7 => "UpConv7",
            Self::Fake => "AtelierFake",
        }
    }

    pub fn from_class_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.class_name() == name)
    }

    /// The kinds of job that a model of this family serves.
    pub const fn kinds(self) -> &'static [JobKind] {
        match self {
            Self::Span | Self::UpConv7 => &[JobKind::Upscale],
            // All but speech, so that tests meet a kind that nothing does.
            Self::Fake => &[
                JobKind::Generate,
                JobKind::Edit,
                JobKind::Upscale,
                JobKind::Inpaint,
                JobKind::Control,
                JobKind::Caption,
                JobKind::Video,
                JobKind::TalkingHead,
            ],
        }
    }

    /// The files without which a folder of this family is incomplete.
    pub const fn required_files(self) -> &'static [&'static str] {
        match self {
            Self::Span | Self::UpConv7 => &["config.json", "model.safetensors"],
            Self::Fake => &["config.json"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_found_by_its_class_name() {
        for family in Family::ALL {
            assert_eq!(Family::from_class_name(family.class_name()), Some(family));
            assert!(!family.kinds().is_empty());
        }
        assert_eq!(Family::from_class_name("StableDiffusion9Pipeline"), None);
    }
}
