//! Model families: which networks Atelier knows by the class name in a folder's configuration, and what they do.
//!
//! Adding a family: one variant and its line in [`Family::spec`] here, and its file in `crates/worker`; the compiler names
//! what is left.

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
    /// Qwen-Image: pictures from text, from a picture and text, or within a mask.
    QwenImage,
    /// Qwen-Image-Edit: one picture by instruction, as a whole or within a mask.
    QwenImageEdit,
    /// Qwen-Image-Edit 2509 and 2511: one to three pictures by instruction.
    QwenImageEditPlus,
    /// Flux.1, dev and schnell.
    Flux,
    /// Flux.1 Fill: within a mask.
    FluxFill,
    /// Flux.1 Kontext: a picture by instruction.
    FluxKontext,
    /// Stable Diffusion 3 and 3.5.
    StableDiffusion3,
    /// `AuraFlow`, Pony V7 among them.
    AuraFlow,
    /// LLaVA 1.6: text from a picture and a question.
    LlavaNext,
    /// BLIP-2: text from a picture.
    Blip2,
    /// Qwen2-VL: text from a picture and a question.
    Qwen2Vl,
    /// Qwen2.5-VL: text from a picture and a question.
    Qwen25Vl,
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
    /// Whether a folder may do without it: T5 in Stable Diffusion 3's, which is larger than all the rest.
    pub optional: bool,
}

impl Component {
    const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
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
    /// `preprocessor_config.json` or `processor_config.json`: how pictures become a network's input.
    Processor,
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
const PROJECTING_TEXT_ENCODER: Component = transformers("text_encoder", &["CLIPTextModelWithProjection"]);
const TEXT_ENCODER_2: Component = transformers("text_encoder_2", &["CLIPTextModelWithProjection"]);
const TOKENIZER: Component = tokenizer("tokenizer", CLIP_TOKENIZERS);
const TOKENIZER_2: Component = tokenizer("tokenizer_2", CLIP_TOKENIZERS);
const SCHEDULER: Component =
    Component { name: "scheduler", files: ComponentFiles::Scheduler, classes: &[], optional: false };
const QWEN_TOKENIZER: Component = tokenizer("tokenizer", &["Qwen2Tokenizer", "Qwen2TokenizerFast"]);
const QWEN_PROCESSOR: Component = Component {
    name: "processor",
    files: ComponentFiles::Processor,
    classes: &["Qwen2VLProcessor", "Qwen2_5_VLProcessor"],
    optional: false,
};
const QWEN_TEXT_ENCODER: Component = transformers("text_encoder", &["Qwen2_5_VLForConditionalGeneration"]);
const QWEN_TRANSFORMER: Component = diffusers("transformer", &["QwenImageTransformer2DModel"]);
const QWEN_VAE: Component = diffusers("vae", &["AutoencoderKLQwenImage"]);
const FLUX_TRANSFORMER: Component = diffusers("transformer", &["FluxTransformer2DModel"]);
const SD3_TRANSFORMER: Component = diffusers("transformer", &["SD3Transformer2DModel"]);
const AURA_FLOW_TRANSFORMER: Component = diffusers("transformer", &["AuraFlowTransformer2DModel"]);
const T5_TEXT_ENCODER_2: Component = transformers("text_encoder_2", &["T5EncoderModel"]);
const T5_TEXT_ENCODER_3: Component = transformers("text_encoder_3", &["T5EncoderModel"]).optional();
const UMT5_TEXT_ENCODER: Component = transformers("text_encoder", &["UMT5EncoderModel"]);
const T5_TOKENIZER_2: Component = tokenizer("tokenizer_2", T5_TOKENIZERS);
const T5_TOKENIZER_3: Component = tokenizer("tokenizer_3", T5_TOKENIZERS).optional();
/// `AuraFlow`'s folders call a tokenizer of the T5 kind so.
const LLAMA_TOKENIZER: Component =
    tokenizer("tokenizer", &["LlamaTokenizerFast", "LlamaTokenizer", "T5TokenizerFast", "T5Tokenizer"]);

const CLIP_TOKENIZERS: &[&str] = &["CLIPTokenizer", "CLIPTokenizerFast"];
const T5_TOKENIZERS: &[&str] = &["T5TokenizerFast", "T5Tokenizer"];

const UPSCALER_FILES: &[&str] = &["config.json", "model.safetensors"];
const STABLE_DIFFUSION: &[Component] = &[TOKENIZER, TEXT_ENCODER, UNET, VAE, SCHEDULER];
const QWEN_IMAGE_EDIT: &[Component] =
    &[QWEN_PROCESSOR, QWEN_TOKENIZER, QWEN_TEXT_ENCODER, QWEN_TRANSFORMER, QWEN_VAE, SCHEDULER];
const FLUX: &[Component] =
    &[TOKENIZER, T5_TOKENIZER_2, TEXT_ENCODER, T5_TEXT_ENCODER_2, FLUX_TRANSFORMER, VAE, SCHEDULER];

const fn diffusers(name: &'static str, classes: &'static [&'static str]) -> Component {
    Component { name, files: ComponentFiles::Weights { stem: DIFFUSERS_STEM }, classes, optional: false }
}

const fn transformers(name: &'static str, classes: &'static [&'static str]) -> Component {
    Component { name, files: ComponentFiles::Weights { stem: TRANSFORMERS_STEM }, classes, optional: false }
}

const fn tokenizer(name: &'static str, classes: &'static [&'static str]) -> Component {
    Component { name, files: ComponentFiles::Tokenizer, classes, optional: false }
}

/// What is known of a family.
struct Spec {
    /// On the wire.
    name: &'static str,
    class_names: &'static [&'static str],
    kinds: &'static [JobKind],
    required_files: &'static [&'static str],
    components: &'static [Component],
    own_weights: Option<&'static str>,
    needs_base: Option<Family>,
}

impl Spec {
    /// A pipeline of several networks.
    const fn pipeline(
        name: &'static str,
        class_names: &'static [&'static str],
        kinds: &'static [JobKind],
        components: &'static [Component],
    ) -> Self {
        Self {
            name,
            class_names,
            kinds,
            required_files: &["model_index.json"],
            components,
            own_weights: None,
            needs_base: None,
        }
    }

    /// One network, its weights at the top of the folder.
    const fn network(name: &'static str, class_names: &'static [&'static str], kinds: &'static [JobKind]) -> Self {
        Self {
            name,
            class_names,
            kinds,
            required_files: &["config.json"],
            components: &[],
            own_weights: None,
            needs_base: None,
        }
    }

    const fn with_files(mut self, required_files: &'static [&'static str]) -> Self {
        self.required_files = required_files;
        self
    }

    const fn with_weights(mut self, stem: &'static str) -> Self {
        self.own_weights = Some(stem);
        self
    }

    const fn upon(mut self, base: Family) -> Self {
        self.needs_base = Some(base);
        self
    }
}

impl Family {
    pub const ALL: [Self; 25] = [
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
        Self::QwenImage,
        Self::QwenImageEdit,
        Self::QwenImageEditPlus,
        Self::Flux,
        Self::FluxFill,
        Self::FluxKontext,
        Self::StableDiffusion3,
        Self::AuraFlow,
        Self::LlavaNext,
        Self::Blip2,
        Self::Qwen2Vl,
        Self::Qwen25Vl,
        Self::Lora,
        Self::Fake,
    ];

    const fn spec(self) -> Spec {
        use JobKind::{Caption, Control, Edit, Generate, Inpaint, TalkingHead, Upscale, Video};
        match self {
            Self::Span => Spec::network("span", &["SPAN"], &[Upscale]).with_files(UPSCALER_FILES),
            Self::UpConv7 => Spec::network("up_conv7", &["UpConv7"], &[Upscale]).with_files(UPSCALER_FILES),
            Self::StableDiffusion => Spec::pipeline(
                "stable_diffusion",
                &["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"],
                &[Generate, Inpaint],
                STABLE_DIFFUSION,
            ),
            Self::StableDiffusionInpaint => Spec::pipeline(
                "stable_diffusion_inpaint",
                &["StableDiffusionInpaintPipeline"],
                &[Inpaint],
                STABLE_DIFFUSION,
            ),
            Self::InstructPix2Pix => Spec::pipeline(
                "instruct_pix2_pix",
                &["StableDiffusionInstructPix2PixPipeline"],
                &[Edit],
                STABLE_DIFFUSION,
            ),
            Self::StableDiffusionXl => Spec::pipeline(
                "stable_diffusion_xl",
                &["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"],
                &[Generate, Inpaint],
                &[TOKENIZER, TOKENIZER_2, TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE, SCHEDULER],
            ),
            Self::StableDiffusionXlInpaint => Spec::pipeline(
                "stable_diffusion_xl_inpaint",
                &["StableDiffusionXLInpaintPipeline"],
                &[Inpaint],
                &[TOKENIZER, TOKENIZER_2, TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE, SCHEDULER],
            ),
            Self::StableDiffusionXlControlNet => Spec::pipeline(
                "stable_diffusion_xl_control_net",
                &["StableDiffusionXLControlNetPipeline"],
                &[Control],
                &[TOKENIZER, TOKENIZER_2, TEXT_ENCODER, TEXT_ENCODER_2, UNET, CONTROLNET, VAE, SCHEDULER],
            ),
            Self::StableDiffusionXlControlNetUnion => Spec::pipeline(
                "stable_diffusion_xl_control_net_union",
                &["StableDiffusionXLControlNetUnionPipeline"],
                &[Control],
                &[TOKENIZER, TOKENIZER_2, TEXT_ENCODER, TEXT_ENCODER_2, UNET, CONTROLNET_UNION, VAE, SCHEDULER],
            ),
            Self::ControlNet => Spec::network("control_net", &["ControlNetModel"], &[Control])
                .with_weights(DIFFUSERS_STEM)
                .upon(Self::StableDiffusionXl),
            Self::ControlNetUnion => Spec::network("control_net_union", &["ControlNetUnionModel"], &[Control])
                .with_weights(DIFFUSERS_STEM)
                .upon(Self::StableDiffusionXl),
            Self::QwenImage => Spec::pipeline(
                "qwen_image",
                &["QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"],
                &[Generate, Inpaint],
                &[QWEN_TOKENIZER, QWEN_TEXT_ENCODER, QWEN_TRANSFORMER, QWEN_VAE, SCHEDULER],
            ),
            Self::QwenImageEdit => Spec::pipeline(
                "qwen_image_edit",
                &["QwenImageEditPipeline", "QwenImageEditInpaintPipeline"],
                &[Edit, Inpaint],
                QWEN_IMAGE_EDIT,
            ),
            Self::QwenImageEditPlus => {
                Spec::pipeline("qwen_image_edit_plus", &["QwenImageEditPlusPipeline"], &[Edit], QWEN_IMAGE_EDIT)
            }
            Self::Flux => Spec::pipeline(
                "flux",
                &["FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"],
                &[Generate, Inpaint],
                FLUX,
            ),
            Self::FluxFill => Spec::pipeline("flux_fill", &["FluxFillPipeline"], &[Inpaint], FLUX),
            Self::FluxKontext => Spec::pipeline("flux_kontext", &["FluxKontextPipeline"], &[Edit], FLUX),
            Self::StableDiffusion3 => Spec::pipeline(
                "stable_diffusion3",
                &["StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"],
                &[Generate, Inpaint],
                &[
                    TOKENIZER,
                    TOKENIZER_2,
                    T5_TOKENIZER_3,
                    PROJECTING_TEXT_ENCODER,
                    TEXT_ENCODER_2,
                    T5_TEXT_ENCODER_3,
                    SD3_TRANSFORMER,
                    VAE,
                    SCHEDULER,
                ],
            ),
            Self::AuraFlow => Spec::pipeline(
                "aura_flow",
                &["AuraFlowPipeline"],
                &[Generate],
                &[LLAMA_TOKENIZER, UMT5_TEXT_ENCODER, AURA_FLOW_TRANSFORMER, VAE, SCHEDULER],
            ),
            Self::LlavaNext => Spec::network("llava_next", &["LlavaNextForConditionalGeneration"], &[Caption])
                .with_weights(TRANSFORMERS_STEM),
            Self::Blip2 => {
                Spec::network("blip2", &["Blip2ForConditionalGeneration"], &[Caption]).with_weights(TRANSFORMERS_STEM)
            }
            Self::Qwen2Vl => Spec::network("qwen2_vl", &["Qwen2VLForConditionalGeneration"], &[Caption])
                .with_weights(TRANSFORMERS_STEM),
            Self::Qwen25Vl => Spec::network("qwen25_vl", &["Qwen2_5_VLForConditionalGeneration"], &[Caption])
                .with_weights(TRANSFORMERS_STEM),
            Self::Lora => Spec::network("lora", &["LoRA"], &[]).with_files(&[]),
            // All but speech, so that tests meet a kind that nothing does.
            Self::Fake => Spec::network(
                "fake",
                &["AtelierFake"],
                &[Generate, Edit, Upscale, Inpaint, Control, Caption, Video, TalkingHead],
            ),
        }
    }

    /// The class that a model's configuration names: `_class_name` as diffusers writes it, or the first of the
    /// `architectures` of transformers.
    pub fn class_in(config: &serde_json::Value) -> Option<&str> {
        let architecture = || config.get("architectures")?.get(0)?.as_str();
        config.get("_class_name").and_then(serde_json::Value::as_str).or_else(architecture)
    }

    /// Whether a tokenizer, and what prepares pictures, lie at the top of the folder beside the weights.
    pub fn has_own_tokenizer(self) -> bool {
        self.own_weights() == Some(TRANSFORMERS_STEM)
    }

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        self.spec().name
    }

    /// Every `_class_name` (or, in folders of one transformers network, name under `architectures`) that marks this
    /// family; the first is its own, the others are the same parts saved from another pipeline.
    pub const fn class_names(self) -> &'static [&'static str] {
        self.spec().class_names
    }

    pub fn from_class_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.class_names().contains(&name))
    }

    /// The kinds of job that a model of this family serves.
    pub const fn kinds(self) -> &'static [JobKind] {
        self.spec().kinds
    }

    /// Files at the top of the folder without which it is incomplete.
    pub const fn required_files(self) -> &'static [&'static str] {
        self.spec().required_files
    }

    /// The parts that a folder of this family must have, each in a folder of its name.
    pub const fn components(self) -> &'static [Component] {
        self.spec().components
    }

    /// The weights that lie at the top of the folder itself, under this stem.
    pub const fn own_weights(self) -> Option<&'static str> {
        self.spec().own_weights
    }

    /// The family that a model of this one builds upon, where it is not complete by itself.
    pub const fn needs_base(self) -> Option<Self> {
        self.spec().needs_base
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
