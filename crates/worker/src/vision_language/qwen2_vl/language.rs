//! The language model: vectors of tokens to hidden states.
//!
//! *Source*: transformers 5.23.0, `Qwen2_5_VLTextModel` in `models/qwen2_5_vl/modeling_qwen2_5_vl.py`; Qwen2-VL's is
//! the same. Fields are named as the checkpoint's keys.

use tch::{Device, Kind, Tensor};

use super::{
    cache::KeyValues,
    config::LanguageConfig,
    norm::RmsNorm,
    rope::{Rotation, TokenRope},
};
use crate::{
    nn::{Blocks, Linear},
    text_encoder::Activation,
    torch::TorchError,
    weights::{Scope, WeightsError},
};

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: i64,
    key_heads: i64,
}

/// Who attends to whom.
enum Sight {
    /// All to all; of one new token.
    All,
    /// Each token to itself and those before it.
    Causal,
    /// Where this is true: (B or 1, 1, L, S).
    Mask(Tensor),
}

impl Attention {
    fn load(scope: &Scope<'_>, config: &LanguageConfig) -> Result<Self, WeightsError> {
        let features = config.hidden_size;
        let inner = config.num_key_value_heads * config.head_size();
        Ok(Self {
            q_proj: Linear::load(&scope.at("q_proj"), features, features, true)?,
            k_proj: Linear::load(&scope.at("k_proj"), features, inner, true)?,
            v_proj: Linear::load(&scope.at("v_proj"), features, inner, true)?,
            o_proj: Linear::load(&scope.at("o_proj"), features, features, false)?,
            heads: config.num_attention_heads,
            key_heads: config.num_key_value_heads,
        })
    }

    fn forward(
        &self,
        input: &Tensor,
        rotation: &Rotation,
        sight: &Sight,
        cache: Option<(&mut KeyValues, usize)>,
    ) -> Result<Tensor, TorchError> {
        let (batch, length, features) = input.size3()?;
        let split = |tensor: Tensor, heads: i64| -> Result<Tensor, TorchError> {
            Ok(tensor.f_view([batch, length, heads, features / self.heads])?.f_transpose(1, 2)?)
        };
        let query = rotation.apply(&split(self.q_proj.forward(input)?, self.heads)?)?;
        let mut key = rotation.apply(&split(self.k_proj.forward(input)?, self.key_heads)?)?;
        let mut value = split(self.v_proj.forward(input)?, self.key_heads)?;
        if let Some((cache, layer)) = cache {
            (key, value) = cache.extend(layer, &key, &value)?;
        }
        let (mask, is_causal) = match sight {
            Sight::All => (None, false),
            Sight::Causal => (None, true),
            Sight::Mask(mask) => (Some(mask), false),
        };
        let shares_keys = self.heads != self.key_heads;
        let output =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, mask, 0.0, is_causal, None, shares_keys)?;
        self.o_proj.forward(&output.f_transpose(1, 2)?.f_reshape([batch, length, features])?)
    }
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl Mlp {
    fn load(scope: &Scope<'_>, config: &LanguageConfig) -> Result<Self, WeightsError> {
        let (features, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            gate_proj: Linear::load(&scope.at("gate_proj"), features, inner, false)?,
            up_proj: Linear::load(&scope.at("up_proj"), features, inner, false)?,
            down_proj: Linear::load(&scope.at("down_proj"), inner, features, false)?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let gate = self.activation.apply(&self.gate_proj.forward(input)?)?;
        self.down_proj.forward(&gate.f_mul(&self.up_proj.forward(input)?)?)
    }
}

struct Layer {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &LanguageConfig) -> Result<Self, WeightsError> {
        let norm = |name: &str| RmsNorm::load(&scope.at(name), config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            self_attn: Attention::load(&scope.at("self_attn"), config)?,
            mlp: Mlp::load(&scope.at("mlp"), config)?,
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
        })
    }

    fn forward(
        &self,
        input: &Tensor,
        rotation: &Rotation,
        sight: &Sight,
        cache: Option<(&mut KeyValues, usize)>,
    ) -> Result<Tensor, TorchError> {
        let normed = self.input_layernorm.forward(input)?;
        let attended = self.self_attn.forward(&normed, rotation, sight, cache)?.f_add(input)?;
        Ok(self.mlp.forward(&self.post_attention_layernorm.forward(&attended)?)?.f_add(&attended)?)
    }
}

/// `Qwen2VLTextModel`, or `Qwen2_5_VLTextModel`.
pub struct LanguageModel {
    /// (V, D)
    embed_tokens: Tensor,
    layers: Blocks<Layer>,
    norm: RmsNorm,
    rope: TokenRope,
}

impl LanguageModel {
    pub fn load(scope: &Scope<'_>, config: &LanguageConfig) -> Result<Self, WeightsError> {
        let embed_tokens = scope.at("embed_tokens").take("weight", &[config.vocab_size, config.hidden_size])?;
        let count = usize::try_from(config.num_hidden_layers).unwrap_or(0);
        let own = config.clone();
        Ok(Self {
            embed_tokens,
            layers: Blocks::load(&scope.at("layers"), count, move |_, scope| Layer::load(scope, &own))?,
            norm: RmsNorm::load(&scope.at("norm"), config.hidden_size, config.rms_norm_eps)?,
            rope: TokenRope {
                theta: config.rope_theta,
                size: config.head_size(),
                sections: config.mrope_section.clone(),
            },
        })
    }

    pub fn device(&self) -> Device {
        self.embed_tokens.device()
    }

    pub fn kind(&self) -> Kind {
        self.embed_tokens.kind()
    }

    /// (V, D)
    pub(super) const fn embedding(&self) -> &Tensor {
        &self.embed_tokens
    }

    /// `ids` (B, L) → (B, L, D)
    pub(super) fn embed(&self, ids: &Tensor) -> Result<Tensor, TorchError> {
        Ok(Tensor::f_embedding(&self.embed_tokens, ids, -1, false, false)?)
    }

    /// `embeddings` (B, L, D) of tokens at `positions` (3, B, L) → hidden states (B, L, D) after the last norm.
    ///
    /// `mask` (B, L) is 0 for tokens that none attends to. With `cache`, the tokens come after those it holds.
    ///
    /// # Errors
    /// A mask together with tokens in the cache, or a device's failure.
    pub(super) fn forward(
        &self,
        embeddings: Tensor,
        positions: &Tensor,
        mask: Option<&Tensor>,
        mut cache: Option<&mut KeyValues>,
    ) -> Result<Tensor, TorchError> {
        let (_, length, _) = embeddings.size3()?;
        let past = cache.as_deref().map_or(0, KeyValues::length);
        let sight = sight(length, past, mask, self.device())?;
        let rotation = self.rope.at(positions, embeddings.f_kind()?)?;
        let mut hidden = embeddings;
        self.layers.each(|index, layer| {
            let cache = cache.as_deref_mut().map(|cache| (cache, index));
            hidden = layer.forward(&hidden, &rotation, &sight, cache)?;
            Ok(())
        })?;
        self.norm.forward(&hidden)
    }
}

fn sight(length: i64, past: i64, mask: Option<&Tensor>, device: Device) -> Result<Sight, TorchError> {
    let mask = match mask {
        // A mask that leaves nothing out is none.
        Some(mask) if mask.f_eq(0)?.f_any()?.f_int64_value(&[])? == 0 => None,
        other => other,
    };
    let seen = |past: i64| -> Result<Tensor, TorchError> {
        Ok(Tensor::f_ones([length, past + length], (Kind::Bool, device))?.f_tril(past)?)
    };
    match mask {
        None if length == 1 => Ok(Sight::All),
        None if past == 0 => Ok(Sight::Causal),
        None => Ok(Sight::Mask(seen(past)?.f_view([1, 1, length, past + length])?)),
        Some(mask) if past == 0 => {
            let shown = mask.f_to(device)?.f_ne(0)?.f_unsqueeze(1)?.f_unsqueeze(1)?;
            Ok(Sight::Mask(shown.f_logical_and(&seen(0)?)?))
        }
        Some(_) => Err(TorchError::Other("a mask for tokens after others is not supported".into())),
    }
}
