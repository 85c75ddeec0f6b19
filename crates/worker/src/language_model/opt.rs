//! OPT, with learned positions.
//!
//! Source: transformers 5.23.0, models/opt/modeling_opt.py. Fields are named as the checkpoint's keys.

use tch::{Kind, Tensor};

use super::{
    KvCache,
    decoder::{activation, embed},
};
use crate::{
    nn::{
        Blocks, LayerNorm, Linear,
        config::{ConfigError, ConfigReader},
    },
    text_encoder::Activation,
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// The first position's place in the table, which was made so for a padding that nobody uses.
const OFFSET: i64 = 2;
const NORM_EPS: f64 = 1e-5;

#[derive(Clone, Debug, PartialEq)]
pub struct OptConfig {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub num_hidden_layers: i64,
    pub ffn_dim: i64,
    pub num_attention_heads: i64,
    pub max_position_embeddings: i64,
    pub activation_function: Activation,
}

impl OptConfig {
    /// # Errors
    /// A value that is not computed here, with its key.
    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        reader.only("model_type", &["opt".into()])?;
        reader.only("do_layer_norm_before", &[true.into()])?;
        reader.only("_remove_final_layer_norm", &[false.into()])?;
        reader.only("enable_bias", &[true.into()])?;
        reader.only("layer_norm_elementwise_affine", &[true.into()])?;
        reader.only("tie_word_embeddings", &[true.into()])?;
        let config = Self {
            vocab_size: reader.size_or("vocab_size", 50272)?,
            hidden_size: reader.size_or("hidden_size", 768)?,
            num_hidden_layers: reader.size_or("num_hidden_layers", 12)?,
            ffn_dim: reader.size_or("ffn_dim", 3072)?,
            num_attention_heads: reader.size_or("num_attention_heads", 12)?,
            max_position_embeddings: reader.size_or("max_position_embeddings", 2048)?,
            activation_function: activation(&mut reader, "activation_function", Activation::Relu)?,
        };
        if config.hidden_size % config.num_attention_heads != 0 {
            let problem = "and does not divide hidden_size";
            return Err(reader.unsupported("num_attention_heads", config.num_attention_heads.into(), problem));
        }
        if reader.size("word_embed_proj_dim")?.is_some_and(|width| width != config.hidden_size) {
            let problem = "and only that of word_embed_proj_dim is supported";
            return Err(reader.unsupported("hidden_size", config.hidden_size.into(), problem));
        }
        reader.ignore_transformers();
        reader.finish()?;
        Ok(config)
    }
}

#[derive(Debug)]
struct Layer {
    k_proj: Linear,
    v_proj: Linear,
    q_proj: Linear,
    out_proj: Linear,
    self_attn_layer_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    final_layer_norm: LayerNorm,
    heads: i64,
    act: Activation,
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &OptConfig) -> Result<Self, WeightsError> {
        let hidden = config.hidden_size;
        let attention = scope.at("self_attn");
        let linear = |name: &str| Linear::load(&attention.at(name), hidden, hidden, true);
        let norm = |name: &str| LayerNorm::load(&scope.at(name), hidden, NORM_EPS);
        Ok(Self {
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            q_proj: linear("q_proj")?,
            out_proj: linear("out_proj")?,
            self_attn_layer_norm: norm("self_attn_layer_norm")?,
            fc1: Linear::load(&scope.at("fc1"), hidden, config.ffn_dim, true)?,
            fc2: Linear::load(&scope.at("fc2"), config.ffn_dim, hidden, true)?,
            final_layer_norm: norm("final_layer_norm")?,
            heads: config.num_attention_heads,
            act: config.activation_function,
        })
    }

    fn forward(&self, input: &Tensor, cache: &mut KvCache, layer: usize) -> Result<Tensor, TorchError> {
        let (batch, length, hidden) = input.size3()?;
        let split = |tensor: &Tensor| -> Result<Tensor, TorchError> {
            Ok(tensor.f_view([batch, length, self.heads, hidden / self.heads])?.f_transpose(1, 2)?)
        };
        let normed = self.self_attn_layer_norm.forward(input)?;
        let (key, value) = (split(&self.k_proj.forward(&normed)?)?, split(&self.v_proj.forward(&normed)?)?);
        let (key, value) = cache.append(layer, &key, &value)?;
        let query = split(&self.q_proj.forward(&normed)?)?;
        let mask = None::<&Tensor>;
        let attended =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, mask, 0.0, length > 1, None, false)?;
        let attended = attended.f_transpose(1, 2)?.f_reshape([batch, length, hidden])?;
        let attended = self.out_proj.forward(&attended)?.f_add(input)?;
        let inner = self.act.apply(&self.fc1.forward(&self.final_layer_norm.forward(&attended)?)?)?;
        Ok(self.fc2.forward(&inner)?.f_add(&attended)?)
    }
}

/// `OPTForCausalLM`.
pub struct Opt {
    /// (V, D); also the head.
    embed_tokens: Tensor,
    /// (positions + 2, D)
    embed_positions: Tensor,
    layers: Blocks<Layer>,
    final_layer_norm: LayerNorm,
    lm_head: Linear,
}

impl Opt {
    /// `scope` is the place above `model` and `lm_head`. The head's own copy of the embeddings may be left over.
    pub fn load(scope: &Scope<'_>, config: &OptConfig) -> Result<Self, WeightsError> {
        let decoder = scope.at("model.decoder");
        let hidden = config.hidden_size;
        let embed_tokens = decoder.at("embed_tokens").take("weight", &[config.vocab_size, hidden])?;
        let positions = [config.max_position_embeddings + OFFSET, hidden];
        let of_layers = config.clone();
        let count = usize::try_from(config.num_hidden_layers).unwrap_or_default();
        let load = move |_, scope: &Scope<'_>| Layer::load(scope, &of_layers);
        Ok(Self {
            embed_positions: decoder.at("embed_positions").take("weight", &positions)?,
            layers: Blocks::load(&decoder.at("layers"), count, load)?,
            final_layer_norm: LayerNorm::load(&decoder.at("final_layer_norm"), hidden, NORM_EPS)?,
            lm_head: Linear::new(embed_tokens.shallow_clone(), None),
            embed_tokens,
        })
    }

    /// An empty cache for so many tokens.
    pub fn cache(&self, capacity: i64) -> KvCache {
        KvCache::new(self.layers.len(), capacity)
    }

    /// `ids` (L) → (1, L, D)
    ///
    /// # Errors
    /// A token that is none of the model's.
    pub fn embed(&self, ids: &[i64]) -> Result<Tensor, TorchError> {
        embed(&self.embed_tokens, ids)
    }

    /// Embedded tokens (1, L, D) after those that `cache` holds → the scores of the next one, (V) in f32. More than one
    /// at a time only into an empty cache.
    ///
    /// # Errors
    /// More tokens than there are positions, or a device's failure.
    pub fn forward(&self, embedded: &Tensor, cache: &mut KvCache) -> Result<Tensor, TorchError> {
        let (_, length, _) = embedded.size3()?;
        let (positions, _) = self.embed_positions.size2()?;
        let start = OFFSET + cache.length();
        if start + length > positions {
            let most = positions - OFFSET;
            return Err(TorchError::Other(format!("more tokens than the model's {most} positions")));
        }
        if cache.length() > 0 && length > 1 {
            return Err(TorchError::Other("several tokens at once after others".into()));
        }
        let mut hidden = embedded.f_add(&self.embed_positions.f_narrow(0, start, length)?)?;
        self.layers.each(|index, layer| {
            hidden = layer.forward(&hidden, cache, index)?;
            Ok(())
        })?;
        cache.advance(length);
        let last = self.final_layer_norm.forward(&hidden.f_select(1, -1)?)?;
        Ok(self.lm_head.forward(&last)?.f_squeeze_dim(0)?.f_to_kind(Kind::Float)?)
    }
}
