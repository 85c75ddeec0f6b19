//! T5 as it answers: the encoder reads, the decoder writes and looks at what was read.
//!
//! Source: transformers 5.23.0, models/t5/modeling_t5.py. Fields are named as the checkpoint's keys.

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{KvCache, decoder::embed};
use crate::{
    nn::{
        Blocks, Linear,
        config::{ConfigError, ConfigReader},
    },
    text_encoder::{
        T5Config, T5Encoder,
        t5::{Attention, FeedForward, RmsNorm, bounded},
    },
    torch::TorchError,
    weights::{Scope, WeightsError},
};

#[derive(Clone, Debug, PartialEq)]
pub struct T5Seq2SeqConfig {
    pub encoder: T5Config,
    pub num_decoder_layers: i64,
    /// The token that stands before an answer.
    pub decoder_start_token_id: i64,
    /// Whether hidden states are scaled down before the head, as where the head is the embeddings.
    pub scales_output: bool,
}

impl T5Seq2SeqConfig {
    /// # Errors
    /// A value that is not computed here, with its key.
    pub fn read(reader: &ConfigReader) -> Result<Self, ConfigError> {
        let whole = |key: &str| reader.peek(key).as_i64();
        let start = whole("decoder_start_token_id").or_else(|| whole("pad_token_id")).unwrap_or(0);
        let layers = whole("num_decoder_layers").or_else(|| whole("num_layers"));
        let scales = reader.peek("scale_decoder_outputs").as_bool();
        let ties = reader.peek("tie_word_embeddings").as_bool();
        let value = Value::Object(reader.values().clone());
        let encoder =
            T5Config::from_value(&value).map_err(|detail| reader.unsupported("text_config", Value::Null, detail))?;
        if encoder.has_own_biases {
            return Err(reader.unsupported("model_type", "umt5".into(), "and only t5 is supported"));
        }
        let layers = layers.filter(|layers| *layers > 0).ok_or_else(|| reader.missing("num_decoder_layers"))?;
        Ok(Self {
            encoder,
            num_decoder_layers: layers,
            decoder_start_token_id: start,
            scales_output: scales.unwrap_or_else(|| ties.unwrap_or(true)),
        })
    }
}

#[derive(Debug)]
struct Block {
    self_attention: Attention,
    self_norm: RmsNorm,
    cross_attention: Attention,
    cross_norm: RmsNorm,
    feed_forward: FeedForward,
    feed_forward_norm: RmsNorm,
    heads: i64,
    width: i64,
}

impl Block {
    fn load(scope: &Scope<'_>, config: &T5Config, has_biases: bool) -> Result<Self, WeightsError> {
        let [first, second, third] = [0, 1, 2].map(|layer| scope.at("layer").at(layer));
        Ok(Self {
            self_attention: Attention::load(&first.at("SelfAttention"), config, has_biases)?,
            self_norm: RmsNorm::load(&first.at("layer_norm"), config)?,
            cross_attention: Attention::load(&second.at("EncDecAttention"), config, false)?,
            cross_norm: RmsNorm::load(&second.at("layer_norm"), config)?,
            feed_forward: FeedForward::load(&third.at("DenseReluDense"), config)?,
            feed_forward_norm: RmsNorm::load(&third.at("layer_norm"), config)?,
            heads: config.num_heads,
            width: config.d_kv,
        })
    }

    /// (1, L, heads · width) → (1, heads, L, width)
    fn split(&self, tensor: &Tensor) -> Result<Tensor, TorchError> {
        let (batch, length, _) = tensor.size3()?;
        Ok(tensor.f_view([batch, length, self.heads, self.width])?.f_transpose(1, 2)?)
    }

    /// What the decoder looks at, (1, heads, S, width) each.
    fn keys(&self, read: &Tensor) -> Result<(Tensor, Tensor), TorchError> {
        let attention = &self.cross_attention;
        Ok((self.split(&attention.k.forward(read)?)?, self.split(&attention.v.forward(read)?)?))
    }

    /// Not scaled, as everywhere in T5.
    fn attend(
        &self,
        attention: &Attention,
        input: &Tensor,
        (key, value): (&Tensor, &Tensor),
        bias: Option<&Tensor>,
    ) -> Result<Tensor, TorchError> {
        let query = self.split(&attention.q.forward(input)?)?;
        let mut scores = query.f_matmul(&key.f_transpose(2, 3)?)?;
        if let Some(bias) = bias {
            scores = scores.f_add(bias)?;
        }
        let attended = scores.f_softmax(-1, None)?.f_matmul(value)?;
        let (batch, _, length, _) = attended.size4()?;
        attention.o.forward(&attended.f_transpose(1, 2)?.f_reshape([batch, length, self.heads * self.width])?)
    }

    fn forward(
        &self,
        input: &Tensor,
        bias: &Tensor,
        read: (&Tensor, &Tensor),
        cache: &mut KvCache,
        layer: usize,
    ) -> Result<Tensor, TorchError> {
        let normed = self.self_norm.forward(input)?;
        let own = &self.self_attention;
        let (key, value) = (self.split(&own.k.forward(&normed)?)?, self.split(&own.v.forward(&normed)?)?);
        let (key, value) = cache.append(layer, &key, &value)?;
        let hidden = bounded(self.attend(own, &normed, (&key, &value), Some(bias))?.f_add(input)?)?;
        let normed = self.cross_norm.forward(&hidden)?;
        let hidden = bounded(self.attend(&self.cross_attention, &normed, read, None)?.f_add(&hidden)?)?;
        bounded(self.feed_forward.forward(&self.feed_forward_norm.forward(&hidden)?)?.f_add(&hidden)?)
    }
}

/// `T5ForConditionalGeneration`.
pub struct T5Seq2Seq {
    encoder: T5Encoder,
    block: Blocks<Block>,
    final_layer_norm: RmsNorm,
    lm_head: Linear,
    config: T5Seq2SeqConfig,
}

/// A text that was read, and what was written after it.
pub struct T5Text {
    /// Of each block of the decoder.
    read: Vec<(Tensor, Tensor)>,
    cache: KvCache,
}

impl T5Seq2Seq {
    /// `scope` is the place above `shared`, `encoder`, `decoder` and `lm_head`.
    pub fn load(scope: &Scope<'_>, config: &T5Seq2SeqConfig) -> Result<Self, WeightsError> {
        let encoder = T5Encoder::load_at(scope, &config.encoder)?;
        let decoder = scope.at("decoder");
        let of_blocks = config.encoder.clone();
        let count = usize::try_from(config.num_decoder_layers).unwrap_or_default();
        let load = move |index, scope: &Scope<'_>| Block::load(scope, &of_blocks, index == 0);
        let shape = [config.encoder.vocab_size, config.encoder.d_model];
        let own_head = scope.at("lm_head").take_optional("weight", &shape)?;
        Ok(Self {
            block: Blocks::load(&decoder.at("block"), count, load)?,
            final_layer_norm: RmsNorm::load(&decoder.at("final_layer_norm"), &config.encoder)?,
            lm_head: Linear::new(own_head.unwrap_or_else(|| encoder.shared().shallow_clone()), None),
            encoder,
            config: config.clone(),
        })
    }

    /// What stands before an answer.
    pub const fn start_token(&self) -> i64 {
        self.config.decoder_start_token_id
    }

    /// `ids` (L) → (1, L, D)
    ///
    /// # Errors
    /// A token that is none of the model's.
    pub fn embed(&self, ids: &[i64]) -> Result<Tensor, TorchError> {
        embed(self.encoder.shared(), ids)
    }

    /// Embedded tokens (1, S, D) → what the decoder looks at, of the same shape.
    pub fn encode(&self, embedded: &Tensor) -> Result<Tensor, TorchError> {
        self.encoder.forward_embedded(embedded.shallow_clone(), None)
    }

    /// Reads embedded tokens (1, S, D); an answer of at most `capacity` tokens, the first one included, can follow.
    pub fn begin(&self, embedded: &Tensor, capacity: i64) -> Result<T5Text, TorchError> {
        let hidden = self.encode(embedded)?;
        let mut read = Vec::new();
        self.block.each(|_, block| {
            read.push(block.keys(&hidden)?);
            Ok(())
        })?;
        Ok(T5Text { read, cache: KvCache::new(self.block.len(), capacity) })
    }

    /// Writes `token` → the scores of the next one, (V).
    pub fn step(&self, text: &mut T5Text, token: i64) -> Result<Tensor, TorchError> {
        let mut hidden = self.embed(&[token])?;
        let position = text.cache.length();
        let buckets = self.buckets(position, hidden.device())?;
        let T5Text { read, cache } = text;
        let mut bias = None;
        self.block.each(|index, block| {
            if let Some(own) = block.self_attention.bias(&buckets)? {
                bias = Some(own);
            }
            let bias = bias.as_ref().ok_or_else(|| TorchError::Other("T5's first block has no biases".into()))?;
            let (key, value) = read.get(index).ok_or_else(|| TorchError::Other(format!("no block {index}")))?;
            hidden = block.forward(&hidden, bias, (key, value), cache, index)?;
            Ok(())
        })?;
        cache.advance(1);
        let mut last = self.final_layer_norm.forward(&hidden)?.f_select(1, 0)?;
        if self.config.scales_output {
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let width = self.config.encoder.d_model as f64;
            last = last.f_mul_scalar(width.powf(-0.5))?;
        }
        Ok(self.lm_head.forward(&last)?.f_squeeze_dim(0)?.f_to_kind(Kind::Float)?)
    }

    /// The bucket of each position up to `position`, (1, position + 1): by distance, one by one at first and ever wider
    /// after. The logarithm is in f32, as it is there.
    fn buckets(&self, position: i64, device: Device) -> Result<Tensor, TorchError> {
        let count = self.config.encoder.relative_attention_num_buckets;
        let exact = count / 2;
        let distance = Tensor::f_arange_start_step(position, -1, -1, (Kind::Int64, device))?.f_unsqueeze(0)?;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let (exact_f, span, wide) = (
            exact as f64,
            (self.config.encoder.relative_attention_max_distance as f64 / exact as f64).ln(),
            (count - exact) as f64,
        );
        let far = distance.f_to_kind(Kind::Float)?.f_div_scalar(exact_f)?.f_log()?;
        let far = far.f_div_scalar(span)?.f_mul_scalar(wide)?.f_to_kind(Kind::Int64)?;
        let far = far.f_add_scalar(exact)?.f_clamp_max(count - 1)?;
        Ok(distance.f_where_self(&distance.f_lt(exact)?, &far)?)
    }
}
