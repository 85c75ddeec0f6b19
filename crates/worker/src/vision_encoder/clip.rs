//! CLIP's vision transformer.
//!
//! Source: transformers 5.23.0, models/clip/modeling_clip.py. Fields are named as the checkpoint's keys.

use tch::Tensor;

use crate::{
    language_model::decoder::activation,
    nn::{
        Blocks, LayerNorm, Linear, Slicing, attend,
        config::{ConfigError, ConfigReader},
    },
    text_encoder::Activation,
    torch::TorchError,
    weights::{Scope, WeightsError},
};

#[derive(Clone, Debug, PartialEq)]
pub struct ClipVisionConfig {
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub num_channels: i64,
    pub image_size: i64,
    pub patch_size: i64,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    /// Features after `visual_projection`, of the models that have one.
    pub projection_dim: i64,
}

impl ClipVisionConfig {
    /// # Errors
    /// A value that is not computed here, with its key.
    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        reader.only("model_type", &["clip_vision_model".into()])?;
        let config = Self {
            hidden_size: reader.size_or("hidden_size", 768)?,
            intermediate_size: reader.size_or("intermediate_size", 3072)?,
            num_hidden_layers: reader.size_or("num_hidden_layers", 12)?,
            num_attention_heads: reader.size_or("num_attention_heads", 12)?,
            num_channels: reader.size_or("num_channels", 3)?,
            image_size: reader.size_or("image_size", 224)?,
            patch_size: reader.size_or("patch_size", 32)?,
            hidden_act: activation(&mut reader, "hidden_act", Activation::QuickGelu)?,
            layer_norm_eps: reader.float_or("layer_norm_eps", 1e-5)?,
            projection_dim: reader.size_or("projection_dim", 512)?,
        };
        // Of the text that the encoder was trained with.
        reader.ignore(&["vocab_size"]);
        if config.hidden_size % config.num_attention_heads != 0 {
            let problem = "and does not divide hidden_size";
            return Err(reader.unsupported("num_attention_heads", config.num_attention_heads.into(), problem));
        }
        if config.image_size < config.patch_size {
            return Err(reader.unsupported("patch_size", config.patch_size.into(), "and larger than image_size"));
        }
        reader.ignore_transformers();
        reader.finish()?;
        Ok(config)
    }

    /// Patches along a side.
    pub const fn side(&self) -> i64 {
        self.image_size / self.patch_size
    }
}

#[derive(Debug)]
struct Embeddings {
    /// (D)
    class_embedding: Tensor,
    /// (D, C, patch, patch)
    patch_embedding: Tensor,
    /// (patches + 1, D)
    position_embedding: Tensor,
    patch_size: i64,
    image_size: i64,
}

impl Embeddings {
    fn load(scope: &Scope<'_>, config: &ClipVisionConfig) -> Result<Self, WeightsError> {
        let (hidden, patch) = (config.hidden_size, config.patch_size);
        let positions = config.side() * config.side() + 1;
        Ok(Self {
            class_embedding: scope.take("class_embedding", &[hidden])?,
            patch_embedding: scope
                .at("patch_embedding")
                .take("weight", &[hidden, config.num_channels, patch, patch])?,
            position_embedding: scope.at("position_embedding").take("weight", &[positions, hidden])?,
            patch_size: patch,
            image_size: config.image_size,
        })
    }

    fn forward(&self, pixels: &Tensor) -> Result<Tensor, TorchError> {
        let (batch, _, height, width) = pixels.size4()?;
        if (height, width) != (self.image_size, self.image_size) {
            let side = self.image_size;
            return Err(TorchError::Other(format!("a picture of {width} x {height} where {side} x {side} belong")));
        }
        let patches = pixels.f_to_kind(self.patch_embedding.f_kind()?)?;
        let patches =
            patches.f_conv2d(&self.patch_embedding, None::<&Tensor>, [self.patch_size; 2], [0, 0], [1, 1], 1)?;
        let patches = patches.f_flatten(2, -1)?.f_transpose(1, 2)?;
        let hidden = self.class_embedding.size1()?;
        let class = self.class_embedding.f_expand([batch, 1, hidden], false)?;
        Ok(Tensor::f_cat(&[&class, &patches], 1)?.f_add(&self.position_embedding)?)
    }
}

#[derive(Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
    act: Activation,
}

impl EncoderLayer {
    fn load(scope: &Scope<'_>, config: &ClipVisionConfig) -> Result<Self, WeightsError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (attention, mlp) = (scope.at("self_attn"), scope.at("mlp"));
        let linear = |name: &str| Linear::load(&attention.at(name), hidden, hidden, true);
        Ok(Self {
            layer_norm1: LayerNorm::load(&scope.at("layer_norm1"), hidden, config.layer_norm_eps)?,
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
            layer_norm2: LayerNorm::load(&scope.at("layer_norm2"), hidden, config.layer_norm_eps)?,
            fc1: Linear::load(&mlp.at("fc1"), hidden, inner, true)?,
            fc2: Linear::load(&mlp.at("fc2"), inner, hidden, true)?,
            heads: config.num_attention_heads,
            act: config.hidden_act,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let normed = self.layer_norm1.forward(input)?;
        let (query, key) = (self.q_proj.forward(&normed)?, self.k_proj.forward(&normed)?);
        let attended = attend(&query, &key, &self.v_proj.forward(&normed)?, self.heads, Slicing::Whole)?;
        let attended = self.out_proj.forward(&attended)?.f_add(input)?;
        let inner = self.act.apply(&self.fc1.forward(&self.layer_norm2.forward(&attended)?)?)?;
        Ok(self.fc2.forward(&inner)?.f_add(&attended)?)
    }
}

/// `CLIPVisionModel`.
pub struct ClipVision {
    embeddings: Embeddings,
    /// Spelt so in the checkpoints.
    pre_layrnorm: LayerNorm,
    layers: Blocks<EncoderLayer>,
    post_layernorm: LayerNorm,
}

impl ClipVision {
    /// `scope` is the place above `embeddings`.
    pub fn load(scope: &Scope<'_>, config: &ClipVisionConfig) -> Result<Self, WeightsError> {
        let of_layers = config.clone();
        let count = usize::try_from(config.num_hidden_layers).unwrap_or_default();
        let norm = |name: &str| LayerNorm::load(&scope.at(name), config.hidden_size, config.layer_norm_eps);
        let load = move |_, scope: &Scope<'_>| EncoderLayer::load(scope, &of_layers);
        Ok(Self {
            embeddings: Embeddings::load(&scope.at("embeddings"), config)?,
            pre_layrnorm: norm("pre_layrnorm")?,
            layers: Blocks::load(&scope.at("encoder.layers"), count, load)?,
            post_layernorm: norm("post_layernorm")?,
        })
    }

    /// Hidden states after the first `layers` layers; after all of them they are what transformers calls the last.
    /// `pixels` (B, C, S, S), normalised → (B, patches + 1, D), the class's before those of the patches.
    pub fn hidden_states(&self, pixels: &Tensor, layers: usize) -> Result<Tensor, TorchError> {
        let mut hidden = self.pre_layrnorm.forward(&self.embeddings.forward(pixels)?)?;
        self.layers.each(|index, layer| {
            if index < layers {
                hidden = layer.forward(&hidden)?;
            }
            Ok(())
        })?;
        Ok(hidden)
    }

    /// What stands for the whole picture, (B, D), from the last hidden states.
    pub fn pooled(&self, last_hidden: &Tensor) -> Result<Tensor, TorchError> {
        self.post_layernorm.forward(&last_hidden.f_select(1, 0)?)
    }
}
