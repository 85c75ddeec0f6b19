//! BLIP-2's vision transformer.
//!
//! Source: transformers 5.23.0, models/blip_2/modeling_blip_2.py. Fields are named as the checkpoint's keys.

use tch::Tensor;

use super::config::VisionConfig;
use crate::{
    nn::{Blocks, LayerNorm, Linear, Slicing, attend},
    text_encoder::Activation,
    torch::TorchError,
    weights::{Scope, WeightsError},
};

#[derive(Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    qkv: Linear,
    projection: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
    act: Activation,
}

impl EncoderLayer {
    fn load(scope: &Scope<'_>, config: &VisionConfig) -> Result<Self, WeightsError> {
        let (hidden, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let (attention, mlp) = (scope.at("self_attn"), scope.at("mlp"));
        Ok(Self {
            layer_norm1: LayerNorm::load(&scope.at("layer_norm1"), hidden, eps)?,
            qkv: Linear::load(&attention.at("qkv"), hidden, 3 * hidden, config.qkv_bias)?,
            projection: Linear::load(&attention.at("projection"), hidden, hidden, true)?,
            layer_norm2: LayerNorm::load(&scope.at("layer_norm2"), hidden, eps)?,
            fc1: Linear::load(&mlp.at("fc1"), hidden, inner, true)?,
            fc2: Linear::load(&mlp.at("fc2"), inner, hidden, true)?,
            heads: config.num_attention_heads,
            act: config.hidden_act,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let parts = self.qkv.forward(&self.layer_norm1.forward(input)?)?.f_chunk(3, -1)?;
        let [query, key, value] = &parts[..] else {
            return Err(TorchError::Other("qkv does not split into three".into()));
        };
        let attended = attend(query, key, value, self.heads, Slicing::Whole)?;
        let attended = self.projection.forward(&attended)?.f_add(input)?;
        let inner = self.act.apply(&self.fc1.forward(&self.layer_norm2.forward(&attended)?)?)?;
        Ok(self.fc2.forward(&inner)?.f_add(&attended)?)
    }
}

/// `Blip2VisionModel`.
pub struct Vision {
    /// (1, 1, D)
    class_embedding: Tensor,
    /// (D, 3, patch, patch)
    patch_weight: Tensor,
    patch_bias: Tensor,
    /// (1, patches + 1, D)
    position_embedding: Tensor,
    layers: Blocks<EncoderLayer>,
    post_layernorm: LayerNorm,
    patch_size: i64,
}

impl Vision {
    pub fn load(scope: &Scope<'_>, config: &VisionConfig) -> Result<Self, WeightsError> {
        let (hidden, patch) = (config.hidden_size, config.patch_size);
        let side = config.image_size / patch;
        let embeddings = scope.at("embeddings");
        let patches = embeddings.at("patch_embedding");
        let of_layers = config.clone();
        let count = usize::try_from(config.num_hidden_layers).unwrap_or_default();
        let load = move |_, scope: &Scope<'_>| EncoderLayer::load(scope, &of_layers);
        Ok(Self {
            class_embedding: embeddings.take("class_embedding", &[1, 1, hidden])?,
            patch_weight: patches.take("weight", &[hidden, 3, patch, patch])?,
            patch_bias: patches.take("bias", &[hidden])?,
            position_embedding: embeddings.take("position_embedding", &[1, side * side + 1, hidden])?,
            layers: Blocks::load(&scope.at("encoder.layers"), count, load)?,
            post_layernorm: LayerNorm::load(&scope.at("post_layernorm"), hidden, config.layer_norm_eps)?,
            patch_size: patch,
        })
    }

    /// `pixels` (1, 3, S, S), normalised → (1, patches + 1, D)
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor, TorchError> {
        let pixels = pixels.f_to_device(self.patch_weight.device())?.f_to_kind(self.patch_weight.f_kind()?)?;
        let stride = [self.patch_size; 2];
        let patches = pixels.f_conv2d(&self.patch_weight, Some(&self.patch_bias), stride, [0, 0], [1, 1], 1)?;
        let patches = patches.f_flatten(2, -1)?.f_transpose(1, 2)?;
        let mut hidden = Tensor::f_cat(&[&self.class_embedding, &patches], 1)?.f_add(&self.position_embedding)?;
        self.layers.each(|_, layer| {
            hidden = layer.forward(&hidden)?;
            Ok(())
        })?;
        self.post_layernorm.forward(&hidden)
    }
}
