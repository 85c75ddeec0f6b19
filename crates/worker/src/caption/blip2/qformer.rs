//! The Q-Former: a few learned queries that look at the picture and come back with what a language model can read.
//!
//! Source: transformers 5.23.0, models/blip_2/modeling_blip_2.py. Computed in f32 whatever the rest is in, as there.

use tch::{Kind, Tensor};

use super::config::QFormerConfig;
use crate::{
    nn::{Blocks, LayerNorm, Linear, Slicing, attend},
    text_encoder::Activation,
    torch::TorchError,
    weights::{Scope, WeightsError},
};

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
    heads: i64,
}

impl Attention {
    fn load(scope: &Scope<'_>, config: &QFormerConfig, seen: i64) -> Result<Self, WeightsError> {
        let hidden = config.hidden_size;
        let (attention, output) = (scope.at("attention"), scope.at("output"));
        Ok(Self {
            query: Linear::load(&attention.at("query"), hidden, hidden, true)?,
            key: Linear::load(&attention.at("key"), seen, hidden, true)?,
            value: Linear::load(&attention.at("value"), seen, hidden, true)?,
            dense: Linear::load(&output.at("dense"), hidden, hidden, true)?,
            norm: LayerNorm::load(&output.at("LayerNorm"), hidden, config.layer_norm_eps)?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, input: &Tensor, seen: &Tensor) -> Result<Tensor, TorchError> {
        let (query, key) = (self.query.forward(input)?, self.key.forward(seen)?);
        let attended = attend(&query, &key, &self.value.forward(seen)?, self.heads, Slicing::Whole)?;
        self.norm.forward(&self.dense.forward(&attended)?.f_add(input)?)
    }
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    /// In every so many layers.
    crossattention: Option<Attention>,
    intermediate: Linear,
    dense: Linear,
    norm: LayerNorm,
    act: Activation,
}

impl Layer {
    fn load(index: usize, scope: &Scope<'_>, config: &QFormerConfig) -> Result<Self, WeightsError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let looks = index.is_multiple_of(config.cross_attention_frequency);
        let crossattention = looks
            .then(|| Attention::load(&scope.at("crossattention"), config, config.encoder_hidden_size))
            .transpose()?;
        let output = scope.at("output_query");
        Ok(Self {
            attention: Attention::load(&scope.at("attention"), config, hidden)?,
            crossattention,
            intermediate: Linear::load(&scope.at("intermediate_query.dense"), hidden, inner, true)?,
            dense: Linear::load(&output.at("dense"), inner, hidden, true)?,
            norm: LayerNorm::load(&output.at("LayerNorm"), hidden, config.layer_norm_eps)?,
            act: config.hidden_act,
        })
    }

    fn forward(&self, input: &Tensor, picture: &Tensor) -> Result<Tensor, TorchError> {
        let mut hidden = self.attention.forward(input, input)?;
        if let Some(attention) = &self.crossattention {
            hidden = attention.forward(&hidden, picture)?;
        }
        let inner = self.act.apply(&self.intermediate.forward(&hidden)?)?;
        self.norm.forward(&self.dense.forward(&inner)?.f_add(&hidden)?)
    }
}

/// `Blip2QFormerModel` with its queries.
pub struct QFormer {
    /// (1, Q, D)
    query_tokens: Tensor,
    layernorm: LayerNorm,
    layers: Blocks<Layer>,
}

impl QFormer {
    /// `root` is the place of `query_tokens` and above `qformer`.
    pub fn load(root: &Scope<'_>, config: &QFormerConfig, queries: i64) -> Result<Self, WeightsError> {
        let root = root.in_kind(Kind::Float);
        let scope = root.at("qformer");
        let of_layers = config.clone();
        let count = usize::try_from(config.num_hidden_layers).unwrap_or_default();
        let load = move |index, scope: &Scope<'_>| Layer::load(index, scope, &of_layers);
        Ok(Self {
            query_tokens: root.take("query_tokens", &[1, queries, config.hidden_size])?,
            layernorm: LayerNorm::load(&scope.at("layernorm"), config.hidden_size, config.layer_norm_eps)?,
            layers: Blocks::load(&scope.at("encoder.layer"), count, load)?,
        })
    }

    /// A picture's hidden states (1, S, D') → (1, Q, D), in f32.
    pub fn forward(&self, picture: &Tensor) -> Result<Tensor, TorchError> {
        let picture = picture.f_to_kind(Kind::Float)?;
        let mut hidden = self.layernorm.forward(&self.query_tokens)?;
        self.layers.each(|_, layer| {
            hidden = layer.forward(&hidden, &picture)?;
            Ok(())
        })?;
        Ok(hidden)
    }
}
