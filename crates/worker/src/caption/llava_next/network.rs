//! The networks: CLIP's vision encoder, a projection, and a decoder.
//!
//! Source: transformers 5.23.0, models/llava_next/modeling_llava_next.py. Fields are named as the checkpoint's keys.

use tch::Tensor;

use super::{
    config::LlavaNextConfig,
    tiles::{Sides, best_resolution, without_margins},
};
use crate::{
    caption::{
        captioner::{Inputs, Speaker},
        decoding::Decoding,
        generate::CausalLm,
    },
    language_model::{Decoder, LanguageHead},
    nn::Linear,
    text_encoder::Activation,
    torch::TorchError,
    vision_encoder::ClipVision,
    weights::{Alias, Scope, Weights, WeightsError},
};

/// The hub's names are the canonical ones. transformers 5 keeps the whole below `model.`, and CLIP without its own prefix.
pub const ALIASES: &[Alias] = &[
    Alias::prefix("model.language_model.", "language_model.model."),
    Alias::prefix("model.vision_tower.", "vision_tower."),
    Alias::prefix("model.multi_modal_projector.", "multi_modal_projector."),
    Alias::prefix("model.image_newline", "image_newline"),
    Alias::prefix("lm_head.", "language_model.lm_head."),
    Alias::prefix("vision_tower.vision_model.", "vision_tower."),
];

#[derive(Debug)]
struct Projector {
    linear_1: Linear,
    linear_2: Linear,
    act: Activation,
}

impl Projector {
    fn load(scope: &Scope<'_>, config: &LlavaNextConfig) -> Result<Self, WeightsError> {
        let hidden = config.text.hidden_size;
        let seen = config.vision.hidden_size * i64::try_from(config.feature_layers.len()).unwrap_or(1);
        Ok(Self {
            linear_1: Linear::load(&scope.at("linear_1"), seen, hidden, config.projector_bias)?,
            linear_2: Linear::load(&scope.at("linear_2"), hidden, hidden, config.projector_bias)?,
            act: config.projector_act,
        })
    }

    fn forward(&self, features: &Tensor) -> Result<Tensor, TorchError> {
        self.linear_2.forward(&self.act.apply(&self.linear_1.forward(features)?)?)
    }
}

/// `LlavaNextForConditionalGeneration`.
pub struct LlavaNext {
    vision_tower: ClipVision,
    multi_modal_projector: Projector,
    /// (D)
    image_newline: Tensor,
    language_model: Decoder,
    lm_head: LanguageHead,
    config: LlavaNextConfig,
}

impl LlavaNext {
    pub fn load(weights: &Weights, config: &LlavaNextConfig) -> Result<Self, WeightsError> {
        let root = weights.root();
        let language = root.at("language_model");
        let language_model = Decoder::load(&language.at("model"), &config.text)?;
        Ok(Self {
            vision_tower: ClipVision::load(&root.at("vision_tower"), &config.vision)?,
            multi_modal_projector: Projector::load(&root.at("multi_modal_projector"), config)?,
            image_newline: root.take("image_newline", &[config.text.hidden_size])?,
            lm_head: LanguageHead::load(&language.at("lm_head"), &language_model)?,
            language_model,
            config: config.clone(),
        })
    }

    /// `pixels` (tiles, 3, S, S), the whole picture first, of a picture of this height and width → (tokens, D).
    pub fn encode_picture(&self, pixels: &Tensor, size: Sides) -> Result<Tensor, TorchError> {
        self.pack(&self.project(pixels)?, size)
    }

    /// `pixels` (tiles, 3, S, S) → what the language model could read of each tile, (tiles, patches, D).
    pub fn project(&self, pixels: &Tensor) -> Result<Tensor, TorchError> {
        let device = self.language_model.device();
        let pixels = pixels.f_to_device(device)?;
        let mut features = Vec::new();
        for &layers in &self.config.feature_layers {
            let hidden = self.vision_tower.hidden_states(&pixels, layers)?;
            let (_, length, _) = hidden.size3()?;
            // Without the class's place.
            features.push(hidden.f_narrow(1, 1, length - 1)?);
        }
        self.multi_modal_projector.forward(&Tensor::f_cat(&features, -1)?)
    }

    /// The whole picture's features, then the tiles' as one grid without margins, each row with a mark at its end.
    fn pack(&self, features: &Tensor, size: Sides) -> Result<Tensor, TorchError> {
        let whole = features.f_select(0, 0)?;
        let resolution = best_resolution(size, &self.config.image_grid_pinpoints)
            .ok_or_else(|| TorchError::Other("no resolution for the picture".into()))?;
        let tile = self.config.vision.image_size;
        let side = self.config.vision.side();
        let wide = |side: usize| i64::try_from(side).map_err(|error| TorchError::Other(error.to_string()));
        let (rows, columns) = (wide(resolution[0])? / tile, wide(resolution[1])? / tile);
        let (_, _, hidden) = features.size3()?;
        let tiles = features.f_narrow(0, 1, rows * columns)?;
        let grid = tiles.f_reshape([rows, columns, side, side, hidden])?.f_permute([0, 2, 1, 3, 4])?;
        let grid = grid.f_reshape([rows * side, columns * side, hidden])?;
        let narrow = |side: i64| usize::try_from(side).unwrap_or(0);
        let [(top, high), (left, wide_)] = without_margins(size, [narrow(rows * side), narrow(columns * side)]);
        let shown = grid.f_narrow(0, wide(top)?, wide(high)?)?.f_narrow(1, wide(left)?, wide(wide_)?)?;
        let ends = self.image_newline.f_expand([wide(high)?, 1, hidden], false)?;
        let lines = Tensor::f_cat(&[&shown, &ends], 1)?.f_reshape([-1, hidden])?;
        Ok(Tensor::f_cat(&[&whole, &lines], 0)?)
    }

    /// The prompt (1, L, D) with the picture's `features` (N, D) in the place of its N tokens.
    fn embed(&self, ids: &[i64], features: &Tensor) -> Result<Tensor, TorchError> {
        let (count, hidden) = features.size2()?;
        let marks: Vec<usize> = (0..ids.len()).filter(|&at| ids[at] == self.config.image_token).collect();
        let (Some(&first), Some(&last)) = (marks.first(), marks.last()) else {
            return Err(TorchError::Other("the prompt has no place for the picture".into()));
        };
        if i64::try_from(marks.len()) != Ok(count) || last - first + 1 != marks.len() {
            return Err(TorchError::Other(format!("{} places for a picture of {count}", marks.len())));
        }
        let before = self.language_model.embed(&ids[..first])?;
        let after = self.language_model.embed(&ids[last + 1..])?;
        let picture = features.f_view([1, count, hidden])?.f_to_kind(self.language_model.kind())?;
        Ok(Tensor::f_cat(&[&before, &picture, &after], 1)?)
    }

    /// The language model before the picture and the question, of which it has read nothing yet.
    pub fn decoding(&self, inputs: &Inputs, max_tokens: usize) -> Result<Decoding<'_>, TorchError> {
        let size = inputs.size.map(|side| usize::try_from(side).unwrap_or(0));
        let features = self.encode_picture(&inputs.pixels, size)?;
        let prompt = self.embed(&inputs.ids, &features)?;
        Decoding::new(&self.language_model, &self.lm_head, prompt, max_tokens)
    }
}

impl Speaker for LlavaNext {
    fn begin<'a>(&'a self, inputs: &Inputs, max_tokens: usize) -> Result<Box<dyn CausalLm + 'a>, TorchError> {
        Ok(Box::new(self.decoding(inputs, max_tokens)?))
    }
}
