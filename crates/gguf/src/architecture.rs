//! The networks that are run from GGUF files.

/// A diffusion transformer whose weights may come in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Flux,
    QwenImage,
    StableDiffusion3,
    AuraFlow,
}

/// What some converters write for every network: it says nothing.
const ANY: &str = "pig";

impl Architecture {
    pub const ALL: [Self; 4] = [Self::Flux, Self::QwenImage, Self::StableDiffusion3, Self::AuraFlow];

    /// Of the network whose class `config.json` names; none where its weights are not read from such files.
    pub fn of_class(class: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.class() == class)
    }

    /// The network's class in diffusers.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Flux => "FluxTransformer2DModel",
            Self::QwenImage => "QwenImageTransformer2DModel",
            Self::StableDiffusion3 => "SD3Transformer2DModel",
            Self::AuraFlow => "AuraFlowTransformer2DModel",
        }
    }

    /// What files of it have as `general.architecture`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flux => "flux",
            Self::QwenImage => "qwen_image",
            Self::StableDiffusion3 => "sd3",
            Self::AuraFlow => "aura",
        }
    }

    /// Whether a file that says this of itself may be one of it. Some say nothing, and their tensors must do.
    pub fn fits(self, said: Option<&str>) -> bool {
        said.is_none_or(|said| said == self.as_str() || said == ANY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_known_by_its_class_and_by_the_files_own_word() {
        for architecture in Architecture::ALL {
            assert_eq!(Architecture::of_class(architecture.class()), Some(architecture));
            for other in Architecture::ALL {
                assert_eq!(architecture.fits(Some(other.as_str())), architecture == other);
            }
            assert!(architecture.fits(None) && architecture.fits(Some("pig")) && !architecture.fits(Some("llama")));
        }
        assert_eq!(Architecture::of_class("T5EncoderModel"), None);
    }
}
