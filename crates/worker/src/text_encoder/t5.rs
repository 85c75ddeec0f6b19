//! T5's encoder, and UMT5's, which differs in that each layer has position biases of its own.
//!
//! Source: transformers 5.23.0, models/t5/modeling_t5.py and models/umt5/modeling_umt5.py. Fields are named as the
//! checkpoint's keys.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{Activation, ConfigError, read_config, rows};
use crate::{
    nn::{Blocks, Linear},
    torch::TorchError,
    weights::{Scope, Weights, WeightsError},
};

/// The second name of the token embeddings, under which some files hold them once more.
pub const IGNORED: &[&str] = &["encoder.embed_tokens.weight"];

/// Hidden states in half precision are kept below its largest value.
const HALF_LIMIT: f64 = 64504.0;

#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    pub vocab_size: i64,
    pub d_model: i64,
    pub d_kv: i64,
    pub d_ff: i64,
    pub num_layers: i64,
    pub num_heads: i64,
    pub relative_attention_num_buckets: i64,
    pub relative_attention_max_distance: i64,
    pub layer_norm_epsilon: f64,
    pub activation: Activation,
    /// The feed-forward block has two first layers, one of which scales the other.
    pub is_gated: bool,
    /// Each layer has position biases, as in UMT5; otherwise the first layer's serve all.
    pub has_own_biases: bool,
}

impl T5Config {
    /// # Errors
    /// No such file, or one that makes no sense; with its path and the key.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let (path, value) = read_config(folder)?;
        Self::from_value(&value).map_err(|detail| ConfigError { path, detail })
    }

    pub(crate) fn from_value(value: &Value) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            model_type: String,
            vocab_size: i64,
            d_model: i64,
            d_kv: i64,
            d_ff: i64,
            num_layers: i64,
            num_heads: i64,
            #[serde(default = "buckets")]
            relative_attention_num_buckets: i64,
            #[serde(default = "distance")]
            relative_attention_max_distance: i64,
            #[serde(default = "epsilon")]
            layer_norm_epsilon: f64,
            #[serde(default)]
            feed_forward_proj: Option<String>,
            #[serde(default)]
            dense_act_fn: Option<Value>,
        }
        const fn buckets() -> i64 {
            32
        }
        const fn distance() -> i64 {
            128
        }
        const fn epsilon() -> f64 {
            1e-6
        }
        let file = File::deserialize(value).map_err(|error| error.to_string())?;
        let has_own_biases = file.model_type == "umt5";
        let usual = if has_own_biases { "gated-gelu" } else { "relu" };
        let feed_forward = file.feed_forward_proj.as_deref().unwrap_or(usual);
        let (usual, is_gated) = match feed_forward {
            "relu" => (Activation::Relu, false),
            "gelu" => (Activation::Gelu, false),
            "gated-gelu" => (Activation::GeluNew, true),
            "gated-silu" => (Activation::Silu, true),
            other => return Err(format!("feed_forward_proj is {other}, which is not known")),
        };
        // Named by itself, it counts: BLIP-2's Flan-T5 is "gated-gelu" with the exact function.
        let activation = match file.dense_act_fn {
            None => usual,
            Some(name) => serde_json::from_value(name.clone())
                .map_err(|_| format!("dense_act_fn is {name}, which is not known"))?,
        };
        let config = Self {
            vocab_size: file.vocab_size,
            d_model: file.d_model,
            d_kv: file.d_kv,
            d_ff: file.d_ff,
            num_layers: file.num_layers,
            num_heads: file.num_heads,
            relative_attention_num_buckets: file.relative_attention_num_buckets,
            relative_attention_max_distance: file.relative_attention_max_distance,
            layer_norm_epsilon: file.layer_norm_epsilon,
            activation,
            is_gated,
            has_own_biases,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, size)| *size < 1) {
            return Err(format!("{key} is not above 0"));
        }
        // Half of the buckets are for what comes before, and half of each half is for one distance each.
        if self.relative_attention_num_buckets < 4 {
            return Err("relative_attention_num_buckets is not above 3".into());
        }
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets / 4 {
            return Err("relative_attention_max_distance is too small for relative_attention_num_buckets".into());
        }
        Ok(())
    }
}

/// Divides by the root of the mean square; no mean is subtracted, and there is no bias.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub(crate) fn load(scope: &Scope<'_>, config: &T5Config) -> Result<Self, WeightsError> {
        Ok(Self { weight: scope.take("weight", &[config.d_model])?, eps: config.layer_norm_epsilon })
    }

    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let wide = input.f_to_kind(Kind::Float)?;
        let variance = wide.f_square()?.f_mean_dim([-1].as_slice(), true, None)?;
        let scaled = wide.f_mul(&variance.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        Ok(scaled.f_to_kind(self.weight.f_kind()?)?.f_mul(&self.weight)?)
    }
}

#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    /// (buckets, heads)
    relative_attention_bias: Option<Tensor>,
    heads: i64,
    width: i64,
}

impl Attention {
    pub(crate) fn load(scope: &Scope<'_>, config: &T5Config, has_biases: bool) -> Result<Self, WeightsError> {
        let inner = config.num_heads * config.d_kv;
        let linear = |name: &str| Linear::load(&scope.at(name), config.d_model, inner, false);
        let relative_attention_bias = if has_biases {
            let shape = [config.relative_attention_num_buckets, config.num_heads];
            Some(scope.at("relative_attention_bias").take("weight", &shape)?)
        } else {
            None
        };
        Ok(Self {
            q: linear("q")?,
            k: linear("k")?,
            v: linear("v")?,
            o: Linear::load(&scope.at("o"), inner, config.d_model, false)?,
            relative_attention_bias,
            heads: config.num_heads,
            width: config.d_kv,
        })
    }

    /// The bias of each head for each pair of positions, (1, heads, L, L), from the pairs' buckets (L, L).
    pub(crate) fn bias(&self, buckets: &Tensor) -> Result<Option<Tensor>, TorchError> {
        let Some(table) = &self.relative_attention_bias else { return Ok(None) };
        let bias = Tensor::f_embedding(table, buckets, -1, false, false)?;
        Ok(Some(bias.f_permute([2, 0, 1])?.f_unsqueeze(0)?))
    }

    /// `bias` is added to the scores, which T5 does not scale.
    fn forward(&self, input: &Tensor, bias: &Tensor) -> Result<Tensor, TorchError> {
        let (batch, length, _) = input.size3()?;
        let split = |tensor: Tensor| -> Result<Tensor, TorchError> {
            Ok(tensor.f_view([batch, length, self.heads, self.width])?.f_transpose(1, 2)?)
        };
        let query = split(self.q.forward(input)?)?;
        let key = split(self.k.forward(input)?)?;
        let value = split(self.v.forward(input)?)?;
        let scores = query.f_matmul(&key.f_transpose(2, 3)?)?.f_add(bias)?;
        let output = scores.f_softmax(-1, None)?.f_matmul(&value)?;
        self.o.forward(&output.f_transpose(1, 2)?.f_reshape([batch, length, self.heads * self.width])?)
    }
}

#[derive(Debug)]
pub(crate) struct FeedForward {
    /// `wi`, or `wi_0` where there is a gate.
    inner: Linear,
    /// `wi_1`
    gate: Option<Linear>,
    wo: Linear,
    activation: Activation,
    /// Of `wo`, which stays in f32 where the rest is in half precision.
    wo_kind: Kind,
}

impl FeedForward {
    pub(crate) fn load(scope: &Scope<'_>, config: &T5Config) -> Result<Self, WeightsError> {
        let linear = |name: &str| Linear::load(&scope.at(name), config.d_model, config.d_ff, false);
        let wo_kind = if scope.kind() == Kind::Half { Kind::Float } else { scope.kind() };
        let (inner, gate) =
            if config.is_gated { (linear("wi_0")?, Some(linear("wi_1")?)) } else { (linear("wi")?, None) };
        let wo = Linear::load(&scope.at("wo").in_kind(wo_kind), config.d_ff, config.d_model, false)?;
        Ok(Self { inner, gate, wo, activation: config.activation, wo_kind })
    }

    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let mut hidden = self.activation.apply(&self.inner.forward(input)?)?;
        if let Some(gate) = &self.gate {
            hidden = hidden.f_mul(&gate.forward(input)?)?;
        }
        Ok(self.wo.forward(&hidden.f_to_kind(self.wo_kind)?)?.f_to_kind(input.f_kind()?)?)
    }
}

#[derive(Debug)]
struct Block {
    attention: Attention,
    attention_norm: RmsNorm,
    feed_forward: FeedForward,
    feed_forward_norm: RmsNorm,
}

impl Block {
    fn load(scope: &Scope<'_>, config: &T5Config, has_biases: bool) -> Result<Self, WeightsError> {
        let (first, second) = (scope.at("layer.0"), scope.at("layer.1"));
        Ok(Self {
            attention: Attention::load(&first.at("SelfAttention"), config, has_biases)?,
            attention_norm: RmsNorm::load(&first.at("layer_norm"), config)?,
            feed_forward: FeedForward::load(&second.at("DenseReluDense"), config)?,
            feed_forward_norm: RmsNorm::load(&second.at("layer_norm"), config)?,
        })
    }

    fn forward(&self, input: &Tensor, bias: &Tensor) -> Result<Tensor, TorchError> {
        let attended = self.attention.forward(&self.attention_norm.forward(input)?, bias)?.f_add(input)?;
        let attended = bounded(attended)?;
        let output = self.feed_forward.forward(&self.feed_forward_norm.forward(&attended)?)?.f_add(&attended)?;
        bounded(output)
    }
}

/// Within what half precision holds, where that is what it is.
pub(crate) fn bounded(tensor: Tensor) -> Result<Tensor, TorchError> {
    if tensor.f_kind()? == Kind::Half { Ok(tensor.f_clamp(-HALF_LIMIT, HALF_LIMIT)?) } else { Ok(tensor) }
}

/// `T5EncoderModel`, or `UMT5EncoderModel`.
#[derive(Debug)]
pub struct T5Encoder {
    /// (V, D)
    shared: Tensor,
    block: Blocks<Block>,
    final_layer_norm: RmsNorm,
    config: T5Config,
}

impl T5Encoder {
    /// Takes the encoder's tensors; the caller finishes the weights, which were opened with [`IGNORED`].
    pub fn load(weights: &Weights, config: &T5Config) -> Result<Self, WeightsError> {
        Self::load_at(&weights.root(), config)
    }

    /// As [`Self::load`], of a model that is a part of another.
    pub fn load_at(root: &Scope<'_>, config: &T5Config) -> Result<Self, WeightsError> {
        let encoder = root.at("encoder");
        let shape = [config.vocab_size, config.d_model];
        let embeddings = if root.has("shared.weight") { root.at("shared") } else { encoder.at("embed_tokens") };
        let shared = embeddings.take("weight", &shape)?;
        let count = usize::try_from(config.num_layers).unwrap_or(0);
        let of = config.clone();
        let block = Blocks::load(&encoder.at("block"), count, move |i, scope| {
            Block::load(scope, &of, of.has_own_biases || i == 0)
        })?;
        let final_layer_norm = RmsNorm::load(&encoder.at("final_layer_norm"), config)?;
        Ok(Self { shared, block, final_layer_norm, config: config.clone() })
    }

    pub const fn config(&self) -> &T5Config {
        &self.config
    }

    /// The token embeddings, (V, D).
    pub const fn shared(&self) -> &Tensor {
        &self.shared
    }

    /// `ids` (B, L), i64, on the model's device; `mask` (B, L), 0 for tokens that none attends to. → (B, L, D)
    ///
    /// # Errors
    /// An unknown token, or a device's failure.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, TorchError> {
        rows(ids, self.config.vocab_size)?;
        self.forward_embedded(Tensor::f_embedding(&self.shared, ids, -1, false, false)?, mask)
    }

    /// As [`Self::forward`], of what was embedded (B, L, D) before.
    pub fn forward_embedded(&self, mut hidden: Tensor, mask: Option<&Tensor>) -> Result<Tensor, TorchError> {
        let (_, length, _) = hidden.size3()?;
        let kind = hidden.f_kind()?;
        let buckets = buckets(&self.config, length, hidden.device())?;
        let masked = mask.map(|mask| additive(mask, kind)).transpose()?;
        let mut bias = None;
        self.block.each(|_, block| {
            if let Some(own) = block.attention.bias(&buckets)? {
                bias = Some(match &masked {
                    Some(masked) => own.f_add(masked)?,
                    None => own,
                });
            }
            let bias = bias.as_ref().ok_or_else(|| TorchError::Other("T5's first layer has no biases".into()))?;
            hidden = block.forward(&hidden, bias)?;
            Ok(())
        })?;
        self.final_layer_norm.forward(&hidden)
    }
}

/// (B, L) of 0 and 1 → (B, 1, 1, L), what is added to scores: nothing, or the smallest number.
fn additive(mask: &Tensor, kind: Kind) -> Result<Tensor, TorchError> {
    let smallest = if kind == Kind::Half {
        -65504.0
    } else if kind == Kind::BFloat16 {
        // f32's own would be infinite in it.
        -3.389_531_389_251_535e38
    } else {
        f64::from(f32::MIN)
    };
    let hidden = mask.f_eq(0)?.f_unsqueeze(1)?.f_unsqueeze(1)?;
    let zeros = Tensor::f_zeros_like(&hidden)?.f_to_kind(kind)?;
    Ok(zeros.f_masked_fill(&hidden, smallest)?)
}

/// The bucket of each pair of positions, (L, L): by direction, then by distance, one by one at first and ever wider
/// after. The logarithm is in f32, as it is there: it decides at the edges.
fn buckets(config: &T5Config, length: i64, device: Device) -> Result<Tensor, TorchError> {
    let half = config.relative_attention_num_buckets / 2;
    let exact = half / 2;
    let positions = Tensor::f_arange(length, (Kind::Int64, device))?;
    let relative = positions.f_unsqueeze(0)?.f_sub(&positions.f_unsqueeze(1)?)?;
    let side = relative.f_gt(0)?.f_to_kind(Kind::Int64)?.f_mul_scalar(half)?;
    let distance = relative.f_abs()?;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (exact_f, span, wide) =
        (exact as f64, (config.relative_attention_max_distance as f64 / exact as f64).ln(), (half - exact) as f64);
    let far = distance.f_to_kind(Kind::Float)?.f_div_scalar(exact_f)?.f_log()?;
    let far = far.f_div_scalar(span)?.f_mul_scalar(wide)?.f_to_kind(Kind::Int64)?;
    let far = far.f_add_scalar(exact)?.f_clamp_max(half - 1)?;
    Ok(side.f_add(&distance.f_where_self(&distance.f_lt(exact)?, &far)?)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(model_type: &str, feed_forward: &str) -> Value {
        json!({
            "model_type": model_type, "vocab_size": 10, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2,
            "num_heads": 2, "feed_forward_proj": feed_forward,
        })
    }

    #[test]
    fn the_kinds_of_t5_are_told_apart() {
        let config = T5Config::from_value(&value("umt5", "gated-gelu")).expect("UMT5");
        assert!(config.has_own_biases && config.is_gated && config.activation == Activation::GeluNew);
        let config = T5Config::from_value(&value("t5", "relu")).expect("T5");
        assert!(!config.has_own_biases && !config.is_gated && config.activation == Activation::Relu);
        assert_eq!((config.relative_attention_num_buckets, config.relative_attention_max_distance), (32, 128));
    }

    #[test]
    fn an_activation_that_is_named_by_itself_counts() {
        for (name, activation) in [("gelu", Activation::Gelu), ("gelu_new", Activation::GeluNew)] {
            let mut named = value("t5", "gated-gelu");
            named["dense_act_fn"] = json!(name);
            let config = T5Config::from_value(&named).expect("T5");
            assert!(config.is_gated && config.activation == activation, "{name}");
        }
    }

    #[test]
    fn a_configuration_that_makes_no_sense_names_the_key() {
        let mut small = value("t5", "relu");
        small["relative_attention_num_buckets"] = json!(2);
        let mut none = value("t5", "relu");
        none["num_heads"] = json!(0);
        let mut odd = value("t5", "gated-gelu");
        odd["dense_act_fn"] = json!("mish");
        let mut lacking = value("t5", "relu");
        lacking.as_object_mut().expect("a map").remove("d_kv");
        for (value, part) in [
            (value("t5", "gated-mish"), "gated-mish"),
            (odd, "dense_act_fn is \"mish\""),
            (small, "relative_attention_num_buckets"),
            (none, "num_heads"),
            (lacking, "d_kv"),
        ] {
            let error = T5Config::from_value(&value).expect_err(part);
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn near_positions_have_buckets_of_their_own_and_far_ones_share_the_last() {
        let config = T5Config::from_value(&value("t5", "relu")).expect("T5");
        let table = buckets(&config, 300, Device::Cpu).expect("buckets");
        let at = |query: i64, key: i64| table.int64_value(&[query, key]);
        assert_eq!([at(0, 0), at(0, 1), at(0, 7), at(1, 0), at(7, 0)], [0, 17, 23, 1, 7]);
        assert_eq!([at(0, 8), at(8, 0), at(0, 127), at(0, 299), at(299, 0)], [24, 8, 31, 31, 15]);
    }
}
