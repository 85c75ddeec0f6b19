//! Model families: which networks Atelier knows by the class name in a folder's configuration, and what they do.
//!
//! Adding a family: one variant here, and its file in `crates/worker`; the compiler names what is left.

use serde::{Deserialize, Serialize};

use crate::JobKind;

/// A network architecture or a pipeline of several, recognised by `_class_name` in `config.json` or `model_index.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// SPAN, a plain convolutional upscaler.
    Span,
    /// waifu2x's UpConv7: upscales by 2 and removes noise.
    UpConv7,
    /// Stable Diffusion 1.x: pictures from text, or from a picture and text.
    StableDiffusion,
    /// Stable Diffusion 1.x whose UNet also sees the mask and the masked picture.
    StableDiffusionInpaint,
    /// Stable Diffusion 1.x trained to follow instructions.
    InstructPix2Pix,
    /// SDXL.
    StableDiffusionXl,
    /// SDXL whose UNet also sees the mask and the masked picture, or that was saved as such.
    StableDiffusionXlInpaint,
    /// SDXL with a `ControlNet` in the same folder.
    StableDiffusionXlControlNet,
    /// SDXL with a `ControlNetUnion` in the same folder.
    StableDiffusionXlControlNetUnion,
    /// A `ControlNet` alone; it works with an SDXL model beside it.
    ControlNet,
    /// A `ControlNetUnion` alone; it works with an SDXL model beside it.
    ControlNetUnion,
    /// Low-rank changes to another model's weights; does nothing by itself.
    Lora,
    /// What the tests' stand-in worker serves. The real worker refuses it.
    Fake,
}

/// Where a part of a pipeline lies, and what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// The folder, and the key in `model_index.json`.
    pub name: &'static str,
    pub files: ComponentFiles,
    /// The classes that can be run; empty where the worker decides.
    pub classes: &'static [&'static str],
}

/// Which files make a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentFiles {
    /// `config.json` and weights under this stem, whole or in parts with an index.
    Weights { stem: &'static str },
    /// `scheduler_config.json`.
    Scheduler,
    /// `tokenizer.json`, or `vocab.json` and `merges.txt`.
    Tokenizer,
}

/// The stem of weights that diffusers writes.
pub const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// The stem of weights that transformers writes.
pub const TRANSFORMERS_STEM: &str = "model";
/// What diffusers calls a file of LoRA weights.
pub const LORA_FILE: &str = "pytorch_lora_weights.safetensors";

const UNET: Component = diffusers("unet", &["UNet2DConditionModel"]);
const VAE: Component = diffusers("vae", &["AutoencoderKL"]);
const CONTROLNET: Component = diffusers("controlnet", &["ControlNetModel"]);
const CONTROLNET_UNION: Component = diffusers("controlnet", &["ControlNetUnionModel"]);
const TEXT_ENCODER: Component = transformers("text_encoder", &["CLIPTextModel"]);
const TEXT_ENCODER_2: Component = transformers("text_encoder_2", &["CLIPTextModelWithProjection"]);
const TOKENIZER: Component = tokenizer("tokenizer");
const TOKENIZER_2: Component = tokenizer("tokenizer_2");
const SCHEDULER: Component = Component { name: "scheduler", files: ComponentFiles::Scheduler, classes: &[] };

const fn diffusers(name: &'static str, classes: &'static [&'static str]) -> Component {
    Component { name, files: ComponentFiles::Weights { stem: DIFFUSERS_STEM }, classes }
}

const fn transformers(name: &'static str, classes: &'static [&'static str]) -> Component {
    Component { name, files: ComponentFiles::Weights { stem: TRANSFORMERS_STEM }, classes }
}

const fn tokenizer(name: &'static str) -> Component {
    let classes = &["CLIPTokenizer", "CLIPTokenizerFast"];
    Component { name, files: ComponentFiles::Tokenizer, classes }
}

impl Family {
    pub const ALL: [Self; 13] = [
        Self::Span,
        Self::UpConv7,
        Self::StableDiffusion,
        Self::StableDiffusionInpaint,
        Self::InstructPix2Pix,
        Self::StableDiffusionXl,
        Self::StableDiffusionXlInpaint,
        Self::StableDiffusionXlControlNet,
        Self::StableDiffusionXlControlNetUnion,
        Self::ControlNet,
        Self::ControlNetUnion,
        Self::Lora,
        Self::Fake,
    ];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Span => "span",
            Self::UpConv7 => "up_conv7",
            Self::StableDiffusion => "stable_diffusion",
            Self::StableDiffusionInpaint => "stable_diffusion_inpaint",
            Self::InstructPix2Pix => "instruct_pix2_pix",
            Self::StableDiffusionXl => "stable_diffusion_xl",
            Self::StableDiffusionXlInpaint => "stable_diffusion_xl_inpaint",
            Self::StableDiffusionXlControlNet => "stable_diffusion_xl_control_net",
            Self::StableDiffusionXlControlNetUnion => "stable_diffusion_xl_control_net_union",
            Self::ControlNet => "control_net",
            Self::ControlNetUnion => "control_net_union",
            Self::Lora => "lora",
            Self::Fake => "fake",
        }
    }

    /// Every `_class_name` that marks this family; the first is its own, the others are the same parts saved from
    /// another pipeline.
    pub const fn class_names(self) -> &'static [&'static str] {
        match self {
            Self::Span => &["SPAN"],
            Self::UpConv7 => &["UpConv7"],
            Self::StableDiffusion => &["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"],
            Self::StableDiffusionInpaint => &["StableDiffusionInpaintPipeline"],
            Self::InstructPix2Pix => &["StableDiffusionInstructPix2PixPipeline"],
            Self::StableDiffusionXl => &["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"],
            Self::StableDiffusionXlInpaint => &["StableDiffusionXLInpaintPipeline"],
            Self::StableDiffusionXlControlNet => &["StableDiffusionXLControlNetPipeline"],
            Self::StableDiffusionXlControlNetUnion => &["StableDiffusionXLControlNetUnionPipeline"],
            Self::ControlNet => &["ControlNetModel"],
            Self::ControlNetUnion => &["ControlNetUnionModel"],
            Self::Lora => &["LoRA"],
            Self::Fake => &["AtelierFake"],
        }
    }

    pub fn from_class_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.class_names().contains(&name))
    }

    /// The kinds of job that a model of this family serves.
    pub const fn kinds(self) -> &'static [JobKind] {
        match self {
            Self::Span | Self::UpConv7 => &[JobKind::Upscale],
            Self::StableDiffusion | Self::StableDiffusionXl => &[JobKind::Generate, JobKind::Inpaint],
            Self::StableDiffusionInpaint | Self::StableDiffusionXlInpaint => &[JobKind::Inpaint],
            Self::InstructPix2Pix => &[JobKind::Edit],
            Self::StableDiffusionXlControlNet
            | Self::StableDiffusionXlControlNetUnion
            | Self::ControlNet
            | Self::ControlNetUnion => &[JobKind::Control],
            Self::Lora => &[],
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

    /// Files at the top of the folder without which it is incomplete.
    pub const fn required_files(self) -> &'static [&'static str] {
        match self {
            Self::Span | Self::UpConv7 => &["config.json", "model.safetensors"],
            Self::StableDiffusion
            | Self::StableDiffusionInpaint
            | Self::InstructPix2Pix
            | Self::StableDiffusionXl
            | Self::StableDiffusionXlInpaint
            | Self::StableDiffusionXlControlNet
            | Self::StableDiffusionXlControlNetUnion => &["model_index.json"],
            Self::ControlNet | Self::ControlNetUnion | Self::Fake => &["config.json"],
            Self::Lora => &[],
        }
    }

    /// The parts that a folder of this family must have, each in a folder of its name.
    pub const fn components(self) -> &'static [Component] {
        match self {
            Self::StableDiffusion | Self::StableDiffusionInpaint | Self::InstructPix2Pix => {
                &[TOKENIZER, TEXT_ENCODER, UNET, VAE, SCHEDULER]
            }
            Self::StableDiffusionXl | Self::StableDiffusionXlInpaint => {
                &[TOKENIZER, TOKENIZER_2, TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE, SCHEDULER]
            }
            Self::StableDiffusionXlControlNet => {
                &[TOKENIZER, TOKENIZER_2, TEXT_ENCODER, TEXT_ENCODER_2, UNET, CONTROLNET, VAE, SCHEDULER]
            }
            Self::StableDiffusionXlControlNetUnion => {
                &[TOKENIZER, TOKENIZER_2, TEXT_ENCODER, TEXT_ENCODER_2, UNET, CONTROLNET_UNION, VAE, SCHEDULER]
            }
            Self::Span | Self::UpConv7 | Self::ControlNet | Self::ControlNetUnion | Self::Lora | Self::Fake => &[],
        }
    }

    /// The weights that lie at the top of the folder itself, under this stem.
    pub const fn own_weights(self) -> Option<&'static str> {
        match self {
            Self::ControlNet | Self::ControlNetUnion => Some(DIFFUSERS_STEM),
            Self::Span
            | Self::UpConv7
            | Self::StableDiffusion
            | Self::StableDiffusionInpaint
            | Self::InstructPix2Pix
            | Self::StableDiffusionXl
            | Self::StableDiffusionXlInpaint
            | Self::StableDiffusionXlControlNet
            | Self::StableDiffusionXlControlNetUnion
            | Self::Lora
            | Self::Fake => None,
        }
    }

    /// The family that a model of this one builds upon, where it is not complete by itself.
    pub const fn needs_base(self) -> Option<Self> {
        match self {
            Self::ControlNet | Self::ControlNetUnion => Some(Self::StableDiffusionXl),
            Self::Span
            | Self::UpConv7
            | Self::StableDiffusion
            | Self::StableDiffusionInpaint
            | Self::InstructPix2Pix
            | Self::StableDiffusionXl
            | Self::StableDiffusionXlInpaint
            | Self::StableDiffusionXlControlNet
            | Self::StableDiffusionXlControlNetUnion
            | Self::Lora
            | Self::Fake => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_found_by_each_of_its_class_names() {
        for family in Family::ALL {
            for name in family.class_names() {
                assert_eq!(Family::from_class_name(name), Some(family));
            }
            assert_eq!(family.kinds().is_empty(), family == Family::Lora, "{family:?}");
        }
        assert_eq!(Family::from_class_name("StableDiffusion9Pipeline"), None);
    }

    #[test]
    fn wire_names_are_what_serde_writes() {
        for family in Family::ALL {
            assert_eq!(serde_json::to_string(&family).expect("serialises"), format!("{:?}", family.as_str()));
        }
    }

    #[test]
    fn a_pipeline_has_an_index_and_whatever_needs_a_base_has_one_that_is_whole() {
        for family in Family::ALL {
            let is_pipeline = !family.components().is_empty();
            assert_eq!(is_pipeline, family.required_files().contains(&"model_index.json"), "{family:?}");
            if let Some(base) = family.needs_base() {
                assert!(base.needs_base().is_none() && !base.components().is_empty());
            }
        }
    }
}
