//! CLIP's text encoder, with and without the projection.
//!
//! Source: transformers 5.23.0, models/clip/modeling_clip.py. Fields are named as the checkpoint's keys.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Tensor};

use super::{Activation, ConfigError, read_config, rows};
use crate::{
    nn::{Blocks, LayerNorm, Linear},
    torch::TorchError,
    weights::{Alias, Scope, Weights, WeightsError},
};

/// transformers 5 writes `CLIPTextModel` without the prefix that version 4, and both for the model with a projection,
/// have.
pub const ALIASES: &[Alias] = &[
    Alias::prefix("embeddings.", "text_model.embeddings."),
    Alias::prefix("encoder.", "text_model.encoder."),
    Alias::prefix("final_layer_norm.", "text_model.final_layer_norm."),
];

/// Configurations from before transformers 4.31 say this, whatever the vocabulary. The token that ends a text is the
/// one with the highest number then.
const LEGACY_EOS: i64 = 2;

/// `config.json`. Defaults are transformers' own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub projection_dim: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub max_position_embeddings: i64,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub eos_token_id: i64,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl ClipTextConfig {
    /// Reads `config.json`: flat, or within the `text_config` of a whole CLIP.
    ///
    /// # Errors
    /// No such file, or one that makes no sense; with its path and the key.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let (path, value) = read_config(folder)?;
        Self::from_value(&value).map_err(|detail| ConfigError { path, detail })
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let text = value.get("text_config").filter(|nested| nested.is_object()).unwrap_or(value);
        let mut text = text.clone();
        // Absent and null are the same to transformers.
        if let Some(map) = text.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
        let config = Self::deserialize(&text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("projection_dim", self.projection_dim),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, size)| *size < 1) {
            return Err(format!("{key} is not above 0"));
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            return Err("num_attention_heads does not divide hidden_size".into());
        }
        Ok(())
    }
}

/// What the encoder makes of (B, L) tokens.
#[derive(Debug)]
pub struct ClipOutput {
    /// (B, L, D), after the final norm.
    pub last_hidden: Tensor,
    /// The embeddings, then what each layer gave, without the final norm; (B, L, D) each.
    pub hidden: Vec<Tensor>,
    /// (B, D): the last hidden state of the token that ends the text.
    pub pooled: Tensor,
    /// (B, P)
    pub projected: Option<Tensor>,
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
}

impl Attention {
    fn load(scope: &Scope<'_>, config: &ClipTextConfig) -> Result<Self, WeightsError> {
        let linear = |name: &str| Linear::load(&scope.at(name), config.hidden_size, config.hidden_size, true);
        Ok(Self {
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let (batch, length, width) = input.size3()?;
        let split = |tensor: Tensor| -> Result<Tensor, TorchError> {
            Ok(tensor.f_view([batch, length, self.heads, width / self.heads])?.f_transpose(1, 2)?)
        };
        let query = split(self.q_proj.forward(input)?)?;
        let key = split(self.k_proj.forward(input)?)?;
        let value = split(self.v_proj.forward(input)?)?;
        let output =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, true, None, false)?;
        self.out_proj.forward(&output.f_transpose(1, 2)?.f_reshape([batch, length, width])?)
    }
}

#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the names of the checkpoint's keys")]
struct Layer {
    self_attn: Attention,
    layer_norm1: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    layer_norm2: LayerNorm,
    activation: Activation,
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &ClipTextConfig) -> Result<Self, WeightsError> {
        let norm = |name: &str| LayerNorm::load(&scope.at(name), config.hidden_size, config.layer_norm_eps);
        let mlp = scope.at("mlp");
        Ok(Self {
            self_attn: Attention::load(&scope.at("self_attn"), config)?,
            layer_norm1: norm("layer_norm1")?,
            fc1: Linear::load(&mlp.at("fc1"), config.hidden_size, config.intermediate_size, true)?,
            fc2: Linear::load(&mlp.at("fc2"), config.intermediate_size, config.hidden_size, true)?,
            layer_norm2: norm("layer_norm2")?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let attended = self.self_attn.forward(&self.layer_norm1.forward(input)?)?.f_add(input)?;
        let hidden = self.fc1.forward(&self.layer_norm2.forward(&attended)?)?;
        Ok(self.fc2.forward(&self.activation.apply(&hidden)?)?.f_add(&attended)?)
    }
}

/// `CLIPTextModel`, or `CLIPTextModelWithProjection`.
#[derive(Debug)]
pub struct ClipText {
    /// (V, D)
    token_embedding: Tensor,
    /// (L, D)
    position_embedding: Tensor,
    layers: Blocks<Layer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    config: ClipTextConfig,
}

impl ClipText {
    /// Takes the encoder's tensors; the caller finishes the weights, which were opened with [`ALIASES`].
    pub fn load(weights: &Weights, config: &ClipTextConfig, projection: bool) -> Result<Self, WeightsError> {
        let root = weights.root();
        let scope = root.at("text_model");
        let embeddings = scope.at("embeddings");
        let (width, positions) = (config.hidden_size, config.max_position_embeddings);
        let token_embedding = embeddings.at("token_embedding").take("weight", &[config.vocab_size, width])?;
        let position_embedding = embeddings.at("position_embedding").take("weight", &[positions, width])?;
        let count = usize::try_from(config.num_hidden_layers).unwrap_or(0);
        let of = config.clone();
        let layers = Blocks::load(&scope.at("encoder").at("layers"), count, move |_, scope| Layer::load(scope, &of))?;
        let final_layer_norm = LayerNorm::load(&scope.at("final_layer_norm"), width, config.layer_norm_eps)?;
        let text_projection = if projection {
            Some(Linear::load(&root.at("text_projection"), width, config.projection_dim, false)?)
        } else {
            None
        };
        let config = config.clone();
        Ok(Self { token_embedding, position_embedding, layers, final_layer_norm, text_projection, config })
    }

    pub const fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    pub fn device(&self) -> Device {
        self.token_embedding.device()
    }

    /// `ids` (B, L), i64, on the model's device.
    ///
    /// # Errors
    /// More tokens than the model has positions for, an unknown token, or a device's failure.
    pub fn forward(&self, ids: &Tensor) -> Result<ClipOutput, TorchError> {
        let (_, length) = ids.size2()?;
        if length > self.config.max_position_embeddings {
            let most = self.config.max_position_embeddings;
            return Err(TorchError::Other(format!("{length} tokens are more than the model's {most}")));
        }
        let ends: Vec<i64> = rows(ids, self.config.vocab_size)?.iter().map(|row| self.end(row)).collect();
        let embedded = Tensor::f_embedding(&self.token_embedding, ids, -1, false, false)?;
        let mut hidden = vec![embedded.f_add(&self.position_embedding.f_narrow(0, 0, length)?)?];
        self.layers.each(|_, layer| {
            let last = hidden.last().ok_or_else(|| TorchError::Other("no hidden state".into()))?;
            let next = layer.forward(last)?;
            hidden.push(next);
            Ok(())
        })?;
        let last = hidden.last().ok_or_else(|| TorchError::Other("no hidden state".into()))?;
        let last_hidden = self.final_norm(last)?;
        let rows = (0..).zip(&ends).map(|(row, &end)| last_hidden.f_select(0, row)?.f_select(0, end));
        let pooled = Tensor::f_stack(&rows.collect::<Result<Vec<_>, _>>()?, 0)?;
        let projected = self.text_projection.as_ref().map(|layer| layer.forward(&pooled)).transpose()?;
        Ok(ClipOutput { last_hidden, hidden, pooled, projected })
    }

    /// The norm that the last hidden state has had; some pipelines want it on an earlier one. (…, D) → the same shape
    pub fn final_norm(&self, hidden: &Tensor) -> Result<Tensor, TorchError> {
        self.final_layer_norm.forward(hidden)
    }

    /// Where a text ends: at the first token that says so.
    fn end(&self, row: &[i64]) -> i64 {
        let wanted = match self.config.eos_token_id {
            LEGACY_EOS => row.iter().copied().max(),
            eos => Some(eos),
        };
        let position = row.iter().position(|id| Some(*id) == wanted).unwrap_or(0);
        i64::try_from(position).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_layouts_of_the_configuration_are_read() {
        let flat = json!({"hidden_size": 32, "num_attention_heads": 4, "hidden_act": "gelu", "eos_token_id": 2});
        let nested = json!({"model_type": "clip", "text_config": flat, "projection_dim": 9, "hidden_size": 7});
        let flat = ClipTextConfig::from_value(&flat).expect("flat");
        assert_eq!(ClipTextConfig::from_value(&nested).expect("nested"), flat);
        assert_eq!((flat.hidden_size, flat.hidden_act, flat.eos_token_id), (32, Activation::Gelu, 2));
        assert_eq!(flat.num_hidden_layers, 12);
        let null = json!({"eos_token_id": null, "projection_dim": null});
        assert_eq!(ClipTextConfig::from_value(&null).expect("null"), ClipTextConfig::default());
    }

    #[test]
    fn a_configuration_that_makes_no_sense_names_the_key() {
        for (value, part) in [
            (json!({"hidden_size": 30, "num_attention_heads": 4}), "num_attention_heads"),
            (json!({"num_hidden_layers": 0}), "num_hidden_layers"),
            (json!({"hidden_act": "mish"}), "mish"),
            (json!({"hidden_size": "wide"}), "wide"),
        ] {
            let error = ClipTextConfig::from_value(&value).expect_err(part);
            assert!(error.contains(part), "{error}");
        }
    }
}
