//! What a job does.

use serde::{Deserialize, Serialize};

/// The wire names are the variants in `snake_case`; a test pins them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    Upscale,
    Edit,
    Generate,
    Inpaint,
    Control,
    Caption,
    Video,
    TalkingHead,
    Speech,
}

impl JobKind {
    pub const ALL: [Self; 9] = [
        Self::Upscale,
        Self::Edit,
        Self::Generate,
        Self::Inpaint,
        Self::Control,
        Self::Caption,
        Self::Video,
        Self::TalkingHead,
        Self::Speech,
    ];

    /// The name on the wire, in the database and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upscale => "upscale",
            Self::Edit => "edit",
            Self::Generate => "generate",
            Self::Inpaint => "inpaint",
            Self::Control => "control",
            Self::Caption => "caption",
            Self::Video => "video",
            Self::TalkingHead => "talking_head",
            Self::Speech => "speech",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether such a job cannot run without a picture.
    pub const fn needs_image(self) -> bool {
        match self {
            Self::Upscale | Self::Edit | Self::Inpaint | Self::Control | Self::Caption | Self::TalkingHead => true,
            Self::Generate | Self::Video | Self::Speech => false,
        }
    }

    /// Whether such a job cannot run without a text.
    pub const fn needs_prompt(self) -> bool {
        match self {
            Self::Edit | Self::Generate | Self::Inpaint | Self::Control | Self::Speech => true,
            Self::Upscale | Self::Caption | Self::Video | Self::TalkingHead => false,
        }
    }
}

impl std::fmt::Display for JobKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_names_are_stable_and_the_same_everywhere() {
        let names: Vec<_> = JobKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(
            names,
            ["upscale", "edit", "generate", "inpaint", "control", "caption", "video", "talking_head", "speech"]
        );
        for kind in JobKind::ALL {
            assert_eq!(serde_json::to_string(&kind).expect("serialises"), format!("\"{kind}\""));
            assert_eq!(JobKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(JobKind::parse("Upscale"), None);
    }
}
