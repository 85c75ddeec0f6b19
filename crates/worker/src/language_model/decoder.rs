//! The decoder that Llama, Mistral and Qwen2 share: rotary positions, grouped keys and values, a gated feed-forward.
//!
//! Source: transformers 5.23.0, models/llama/modeling_llama.py, models/mistral/modeling_mistral.py and
//! models/qwen2/modeling_qwen2.py, which differ in biases and defaults only. Fields are named as the checkpoint's keys.

use serde_json::Value;
use tch::{Kind, Tensor};

use super::{Angles, KvCache, Rotary};
use crate::{
    nn::{
        Blocks, Linear,
        config::{ConfigError, ConfigReader},
    },
    text_encoder::Activation,
    torch::TorchError,
    weights::{Scope, WeightsError},
};

#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub num_key_value_heads: i64,
    pub head_dim: i64,
    pub hidden_act: Activation,
    pub rms_norm_eps: f64,
    /// Whether `q_proj`, `k_proj` and `v_proj` have biases.
    pub qkv_bias: bool,
    /// Whether `o_proj` has one.
    pub output_bias: bool,
    pub tie_word_embeddings: bool,
    pub max_position_embeddings: i64,
    pub rope_theta: f64,
    /// Positions are divided by it.
    pub rope_factor: f64,
    /// Pairs of features that turn by time, row and column.
    pub mrope_section: Option<[i64; 3]>,
    /// A token sees this many before it, where not all.
    pub sliding_window: Option<i64>,
}

/// What differs by `model_type`, where the file says nothing.
struct Defaults {
    vocab_size: i64,
    intermediate_size: i64,
    key_value_heads: Option<i64>,
    max_position_embeddings: i64,
    sliding_window: Option<i64>,
    qkv_bias: bool,
}

impl DecoderConfig {
    /// The decoder of a `text_config`, or of a configuration that is flat.
    ///
    /// # Errors
    /// A value that is not computed here, with its key.
    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        let config = Self::take(&mut reader)?;
        reader.ignore_transformers();
        reader.finish()?;
        Ok(config)
    }

    /// As [`Self::read`], of a configuration in which there is more.
    pub fn take(reader: &mut ConfigReader) -> Result<Self, ConfigError> {
        let model_type = reader.take("model_type");
        let defaults = match model_type.as_str() {
            Some("llama") => Defaults {
                vocab_size: 32000,
                intermediate_size: 11008,
                key_value_heads: None,
                max_position_embeddings: 2048,
                sliding_window: None,
                qkv_bias: false,
            },
            Some("mistral") => Defaults {
                vocab_size: 32000,
                intermediate_size: 14336,
                key_value_heads: Some(8),
                max_position_embeddings: 131_072,
                sliding_window: Some(4096),
                qkv_bias: false,
            },
            Some("qwen2" | "qwen2_vl" | "qwen2_vl_text" | "qwen2_5_vl" | "qwen2_5_vl_text") => Defaults {
                vocab_size: 152_064,
                intermediate_size: 29568,
                key_value_heads: Some(8),
                max_position_embeddings: 32768,
                sliding_window: None,
                qkv_bias: true,
            },
            Some(_) | None => {
                return Err(reader.unsupported(
                    "model_type",
                    model_type,
                    "and only llama, mistral and qwen2 are decoders",
                ));
            }
        };
        let hidden_size = reader.size_or("hidden_size", 4096)?;
        let heads = reader.size_or("num_attention_heads", 32)?;
        let key_value_heads = reader.size("num_key_value_heads")?.or(defaults.key_value_heads).unwrap_or(heads);
        let given_head = reader.size("head_dim")?;
        if given_head.is_none() && hidden_size % heads != 0 {
            return Err(reader.unsupported("num_attention_heads", heads.into(), "and does not divide hidden_size"));
        }
        let head_dim = given_head.unwrap_or(hidden_size / heads);
        if heads % key_value_heads != 0 {
            let problem = "and does not divide num_attention_heads";
            return Err(reader.unsupported("num_key_value_heads", key_value_heads.into(), problem));
        }
        if head_dim % 2 != 0 {
            return Err(reader.unsupported("head_dim", head_dim.into(), "and positions turn pairs of features"));
        }
        let has_llama_biases = reader.flag_or("attention_bias", false)?;
        reader.only("mlp_bias", &[false.into()])?;
        let rope = Rope::take(reader)?;
        let has_window = reader.flag_or("use_sliding_window", !defaults.qkv_bias)?;
        let window = match (reader.has("sliding_window"), reader.size("sliding_window")?) {
            (true, window) => window,
            (false, _) => defaults.sliding_window,
        };
        reader.ignore(&["max_window_layers", "layer_types"]);
        if let Some(sections) = rope.sections
            && sections.iter().sum::<i64>() != head_dim / 2
        {
            return Err(reader.unsupported(
                "mrope_section",
                sections.to_vec().into(),
                "and does not add up to half a head",
            ));
        }
        Ok(Self {
            vocab_size: reader.size_or("vocab_size", defaults.vocab_size)?,
            hidden_size,
            intermediate_size: reader.size_or("intermediate_size", defaults.intermediate_size)?,
            num_hidden_layers: reader.size_or("num_hidden_layers", 32)?,
            num_attention_heads: heads,
            num_key_value_heads: key_value_heads,
            head_dim,
            hidden_act: activation(reader, "hidden_act", Activation::Silu)?,
            rms_norm_eps: reader.float_or("rms_norm_eps", 1e-6)?,
            qkv_bias: defaults.qkv_bias || has_llama_biases,
            output_bias: has_llama_biases,
            tie_word_embeddings: reader.flag_or("tie_word_embeddings", false)?,
            max_position_embeddings: reader.size_or("max_position_embeddings", defaults.max_position_embeddings)?,
            rope_theta: rope.theta,
            rope_factor: rope.factor,
            mrope_section: rope.sections,
            sliding_window: window.filter(|_| has_window),
        })
    }

    /// How the positions of this decoder turn.
    pub fn rotary(&self, device: tch::Device) -> Result<Rotary, TorchError> {
        Rotary::new(self.head_dim, self.rope_theta, self.rope_factor, self.mrope_section, device)
    }

    /// The most tokens, of prompt and answer together, that it was made for.
    pub fn context(&self) -> i64 {
        self.sliding_window.map_or(self.max_position_embeddings, |window| window.min(self.max_position_embeddings))
    }
}

/// An activation by the name that transformers gives it.
pub fn activation(reader: &mut ConfigReader, key: &str, default: Activation) -> Result<Activation, ConfigError> {
    let value = reader.take(key);
    if value.is_null() {
        return Ok(default);
    }
    serde_json::from_value(value.clone())
        .map_err(|_| reader.unsupported(key, value, "and only gelu, quick_gelu, gelu_new, relu and silu are known"))
}

struct Rope {
    theta: f64,
    factor: f64,
    sections: Option<[i64; 3]>,
}

impl Rope {
    /// transformers 5 has `rope_parameters`, transformers 4 `rope_theta` and `rope_scaling`.
    fn take(reader: &mut ConfigReader) -> Result<Self, ConfigError> {
        let flat = reader.float("rope_theta")?;
        let mut rope = Self { theta: flat.unwrap_or(10_000.0), factor: 1.0, sections: None };
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(mut inner) = reader.object(key)? else { continue };
            let theta = inner.float("rope_theta")?;
            rope.theta = theta.unwrap_or(rope.theta);
            let (new, old) = (inner.take("rope_type"), inner.take("type"));
            let kind = if new.is_null() { old } else { new };
            let factor = inner.float("factor")?;
            rope.factor = match kind.as_str() {
                None | Some("default" | "mrope") => 1.0,
                Some("linear") => factor.filter(|factor| *factor > 0.0).ok_or_else(|| inner.missing("factor"))?,
                Some(_) => {
                    return Err(inner.unsupported("rope_type", kind, "and only default and linear are supported"));
                }
            };
            let sections = inner.take("mrope_section");
            if !sections.is_null() {
                let read: Option<[i64; 3]> = serde_json::from_value(sections.clone()).ok();
                let read = read.filter(|sections| sections.iter().all(|section| *section >= 0));
                let problem = "and not three whole numbers";
                rope.sections = Some(read.ok_or_else(|| inner.unsupported("mrope_section", sections, problem))?);
            }
            inner.finish()?;
        }
        if rope.theta <= 0.0 {
            return Err(reader.unsupported("rope_theta", Value::from(rope.theta), "and not above 0"));
        }
        Ok(rope)
    }
}

/// Divides by the root of the mean square.
#[derive(Debug)]
struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    fn load(scope: &Scope<'_>, config: &DecoderConfig) -> Result<Self, WeightsError> {
        Ok(Self { weight: scope.take("weight", &[config.hidden_size])?, eps: config.rms_norm_eps })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let wide = input.f_to_kind(Kind::Float)?;
        let variance = wide.f_square()?.f_mean_dim([-1].as_slice(), true, None)?;
        let scaled = wide.f_mul(&variance.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        Ok(scaled.f_to_kind(input.f_kind()?)?.f_mul(&self.weight)?)
    }
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: i64,
    key_value_heads: i64,
    head: i64,
}

impl Attention {
    fn load(scope: &Scope<'_>, config: &DecoderConfig) -> Result<Self, WeightsError> {
        let linear = |name: &str, heads: i64| {
            Linear::load(&scope.at(name), config.hidden_size, heads * config.head_dim, config.qkv_bias)
        };
        let (heads, key_value_heads) = (config.num_attention_heads, config.num_key_value_heads);
        Ok(Self {
            q_proj: linear("q_proj", heads)?,
            k_proj: linear("k_proj", key_value_heads)?,
            v_proj: linear("v_proj", key_value_heads)?,
            o_proj: Linear::load(&scope.at("o_proj"), heads * config.head_dim, config.hidden_size, config.output_bias)?,
            heads,
            key_value_heads,
            head: config.head_dim,
        })
    }

    fn forward(&self, input: &Tensor, pass: &mut Pass<'_>, layer: usize) -> Result<Tensor, TorchError> {
        let (batch, length, _) = input.size3()?;
        let split = |tensor: &Tensor, heads: i64| -> Result<Tensor, TorchError> {
            Ok(tensor.f_view([batch, length, heads, self.head])?.f_transpose(1, 2)?)
        };
        let query = pass.angles.turn(&split(&self.q_proj.forward(input)?, self.heads)?)?;
        let key = pass.angles.turn(&split(&self.k_proj.forward(input)?, self.key_value_heads)?)?;
        let value = split(&self.v_proj.forward(input)?, self.key_value_heads)?;
        let (key, value) = match &mut pass.cache {
            Some(cache) => cache.append(layer, &key, &value)?,
            None => (key, value),
        };
        let is_causal = pass.mask.is_none() && length > 1;
        let is_grouped = self.key_value_heads != self.heads;
        let attended =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, pass.mask, 0.0, is_causal, None, is_grouped)?;
        self.o_proj.forward(&attended.f_transpose(1, 2)?.f_reshape([batch, length, self.heads * self.head])?)
    }
}

#[derive(Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    act: Activation,
}

impl Mlp {
    fn load(scope: &Scope<'_>, config: &DecoderConfig) -> Result<Self, WeightsError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            gate_proj: Linear::load(&scope.at("gate_proj"), hidden, inner, false)?,
            up_proj: Linear::load(&scope.at("up_proj"), hidden, inner, false)?,
            down_proj: Linear::load(&scope.at("down_proj"), inner, hidden, false)?,
            act: config.hidden_act,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let gate = self.act.apply(&self.gate_proj.forward(input)?)?;
        self.down_proj.forward(&gate.f_mul(&self.up_proj.forward(input)?)?)
    }
}

#[derive(Debug)]
struct Layer {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &DecoderConfig) -> Result<Self, WeightsError> {
        Ok(Self {
            self_attn: Attention::load(&scope.at("self_attn"), config)?,
            mlp: Mlp::load(&scope.at("mlp"), config)?,
            input_layernorm: RmsNorm::load(&scope.at("input_layernorm"), config)?,
            post_attention_layernorm: RmsNorm::load(&scope.at("post_attention_layernorm"), config)?,
        })
    }

    fn forward(&self, input: &Tensor, pass: &mut Pass<'_>, layer: usize) -> Result<Tensor, TorchError> {
        let attended = self.self_attn.forward(&self.input_layernorm.forward(input)?, pass, layer)?.f_add(input)?;
        Ok(self.mlp.forward(&self.post_attention_layernorm.forward(&attended)?)?.f_add(&attended)?)
    }
}

/// What the layers of one call have in common.
pub struct Pass<'a> {
    pub angles: &'a Angles,
    /// Added to the scores, or true where a token sees another: (B, 1, L, S). Without one, a token sees all before it.
    pub mask: Option<&'a Tensor>,
    /// With one, what is given goes on after what it holds; more than one token at a time only into an empty one.
    pub cache: Option<&'a mut KvCache>,
}

/// A decoder without its head: below `model.` or `language_model.model.`.
pub struct Decoder {
    /// (V, D)
    embed_tokens: Tensor,
    layers: Blocks<Layer>,
    norm: RmsNorm,
    config: DecoderConfig,
}

impl Decoder {
    pub fn load(scope: &Scope<'_>, config: &DecoderConfig) -> Result<Self, WeightsError> {
        let embed_tokens = scope.at("embed_tokens").take("weight", &[config.vocab_size, config.hidden_size])?;
        let of_layers = config.clone();
        let count = usize::try_from(config.num_hidden_layers).unwrap_or_default();
        let layers = Blocks::load(&scope.at("layers"), count, move |_, scope| Layer::load(scope, &of_layers))?;
        let norm = RmsNorm::load(&scope.at("norm"), config)?;
        Ok(Self { embed_tokens, layers, norm, config: config.clone() })
    }

    pub const fn config(&self) -> &DecoderConfig {
        &self.config
    }

    pub fn device(&self) -> tch::Device {
        self.embed_tokens.device()
    }

    pub fn kind(&self) -> Kind {
        self.embed_tokens.kind()
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

    /// Embedded tokens (B, L, D) → the last hidden states, (B, L, D).
    pub fn forward(&self, embedded: &Tensor, mut pass: Pass<'_>) -> Result<Tensor, TorchError> {
        let (_, length, _) = embedded.size3()?;
        let seen = pass.cache.as_ref().map_or(0, |cache| cache.length());
        if seen > 0 && length > 1 && pass.mask.is_none() {
            return Err(TorchError::Other("several tokens at once after others need a mask".into()));
        }
        let mut hidden = embedded.shallow_clone();
        self.layers.each(|index, layer| {
            hidden = layer.forward(&hidden, &mut pass, index)?;
            Ok(())
        })?;
        if let Some(cache) = pass.cache {
            cache.advance(length);
        }
        self.norm.forward(&hidden)
    }
}

/// Rows of a table (V, D) for `ids` (L) → (1, L, D). An id beyond the table ends a CUDA process; here it is an error.
pub fn embed(table: &Tensor, ids: &[i64]) -> Result<Tensor, TorchError> {
    let (vocabulary, _) = table.size2()?;
    if let Some(id) = ids.iter().find(|id| !(0..vocabulary).contains(*id)) {
        return Err(TorchError::Other(format!("the token {id} is none of the model's {vocabulary}")));
    }
    let ids = Tensor::f_from_slice(ids)?.f_to_device(table.device())?.f_unsqueeze(0)?;
    Ok(Tensor::f_embedding(table, &ids, -1, false, false)?)
}

/// Scores of the next token from hidden states.
#[derive(Debug)]
pub struct LanguageHead(Linear);

impl LanguageHead {
    /// `scope` is the place of `lm_head`, which a model that shares its embeddings need not have.
    pub fn load(scope: &Scope<'_>, decoder: &Decoder) -> Result<Self, WeightsError> {
        let DecoderConfig { vocab_size, hidden_size, tie_word_embeddings, .. } = decoder.config;
        let head = if tie_word_embeddings {
            // Some files hold them once more.
            scope.take_optional("weight", &[vocab_size, hidden_size])?;
            Linear::new(decoder.embed_tokens.shallow_clone(), None)
        } else {
            Linear::load(scope, hidden_size, vocab_size, false)?
        };
        Ok(Self(head))
    }

    /// Of the last of `hidden` (1, L, D): (V), in f32.
    pub fn last(&self, hidden: &Tensor) -> Result<Tensor, TorchError> {
        let last = hidden.f_select(1, -1)?;
        Ok(self.0.forward(&last)?.f_squeeze_dim(0)?.f_to_kind(Kind::Float)?)
    }

    /// (B, L, D) → (B, L, V)
    pub fn forward(&self, hidden: &Tensor) -> Result<Tensor, TorchError> {
        self.0.forward(hidden)
    }
}
