//! `SD3Transformer2DModel`: the denoiser of Stable Diffusion 3 and 3.5.
//!
//! Source: diffusers 0.42.1, `models/transformers/transformer_sd3.py`, and `JointTransformerBlock` of
//! `models/attention.py`; "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206.

use std::path::Path;

use serde_json::{Value, json};
use tch::Tensor;

use super::{
    HeadNorm, Modulation, Names, Projections, TextProjection,
    joint::{self, ProjectionSizes},
    modulate, norm,
    patches::{cropped, unpatch},
};
use crate::{
    nn::{
        Blocks, Conv2d, FeedForward, FeedForwardKind, Linear, Pass, Sinusoid, StepCache, TimestepEmbedding, Window,
        config::{ConfigError, ConfigReader},
    },
    torch::TorchError,
    weights::{Scope, Weights, WeightsError},
};

/// Of all norms, also those of queries and keys.
const EPS: f64 = 1e-6;
/// Sinusoids of the timestep.
const TIME_CHANNELS: i64 = 256;

/// `config.json`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sd3Config {
    /// Side of the latents that it was trained with.
    pub sample_size: i64,
    /// Side of a patch in latents.
    pub patch_size: i64,
    pub in_channels: i64,
    pub out_channels: i64,
    pub num_layers: usize,
    pub attention_head_dim: i64,
    pub num_attention_heads: i64,
    /// Features of the text's tokens.
    pub joint_attention_dim: i64,
    pub pooled_projection_dim: i64,
    /// Side of the table of places, in patches.
    pub pos_embed_max_size: i64,
    /// The blocks in which the picture's tokens also attend to themselves alone.
    pub dual_attention_layers: Vec<usize>,
    /// Whether queries and keys are normalised.
    pub has_qk_norm: bool,
}

impl Sd3Config {
    /// Reads `config.json` in the transformer's folder.
    ///
    /// # Errors
    /// No such file, or a value that this network does not compute, with its key.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        Self::read(ConfigReader::open(path)?)
    }

    /// Defaults are diffusers' own.
    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        let r = &mut reader;
        let in_channels = r.size_or("in_channels", 16)?;
        let (attention_head_dim, num_attention_heads) =
            (r.size_or("attention_head_dim", 64)?, r.size_or("num_attention_heads", 18)?);
        let num_layers = usize::try_from(r.size_or("num_layers", 18)?).unwrap_or(0);
        let config = Self {
            sample_size: r.size_or("sample_size", 128)?,
            patch_size: r.size_or("patch_size", 2)?,
            in_channels,
            out_channels: if r.has("out_channels") { r.size_or("out_channels", in_channels)? } else { 16 },
            num_layers,
            attention_head_dim,
            num_attention_heads,
            joint_attention_dim: r.size_or("joint_attention_dim", 4096)?,
            pooled_projection_dim: r.size_or("pooled_projection_dim", 2048)?,
            pos_embed_max_size: r.size_or("pos_embed_max_size", 96)?,
            dual_attention_layers: layers(r, "dual_attention_layers", num_layers)?,
            has_qk_norm: has_qk_norm(r)?,
        };
        // The text's tokens meet the picture's in blocks of one width.
        let (width, caption) = (config.width(), r.size_or("caption_projection_dim", 1152)?);
        if caption != width {
            let problem = format!("and the blocks have {width} features");
            return Err(r.unsupported("caption_projection_dim", caption.into(), problem));
        }
        reader.finish()?;
        Ok(config)
    }

    /// Features of the blocks.
    pub const fn width(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }

    const fn projections(&self) -> ProjectionSizes {
        ProjectionSizes {
            width: self.width(),
            heads: self.num_attention_heads,
            head: self.attention_head_dim,
            norm: if self.has_qk_norm { HeadNorm::Rms { eps: EPS } } else { HeadNorm::None },
            bias: true,
            output_bias: true,
        }
    }
}

fn has_qk_norm(reader: &mut ConfigReader) -> Result<bool, ConfigError> {
    let value = reader.take("qk_norm");
    if value.is_null() || value == json!("rms_norm") {
        return Ok(!value.is_null());
    }
    Err(reader.unsupported("qk_norm", value, "and only \"rms_norm\" or null is supported"))
}

/// A list of blocks, counted from 0.
fn layers(reader: &mut ConfigReader, key: &str, count: usize) -> Result<Vec<usize>, ConfigError> {
    let value = reader.take(key);
    if value.is_null() {
        return Ok(Vec::new());
    }
    let number = |value: &Value| value.as_u64().and_then(|layer| usize::try_from(layer).ok());
    let list = value.as_array().and_then(|list| list.iter().map(number).collect::<Option<Vec<_>>>());
    match list {
        Some(list) if list.iter().all(|layer| *layer < count) => Ok(list),
        Some(_) | None => {
            Err(reader.unsupported(key, value, format!("and not a list of numbers from 0 to below {count}")))
        }
    }
}

/// How a layer's input is shifted and scaled, and how much of its output counts. (B, 1, D) each.
struct Adaptive {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Adaptive {
    fn new(shift: Tensor, scale: Tensor, gate: Tensor) -> Self {
        Self { shift, scale, gate }
    }

    fn modulate(&self, normed: &Tensor) -> Result<Tensor, TorchError> {
        modulate(normed, &self.shift, &self.scale)
    }

    fn gated(&self, residual: &Tensor, output: &Tensor) -> Result<Tensor, TorchError> {
        Ok(residual.f_add(&output.f_mul(&self.gate)?)?)
    }

    /// A feed-forward network with its norm, and the residual added.
    fn feed(&self, ff: &FeedForward, residual: &Tensor) -> Result<Tensor, TorchError> {
        self.gated(residual, &ff.forward(&self.modulate(&norm(residual, EPS)?)?)?)
    }
}

/// How a block adapts the picture's layers: `AdaLayerNormZero`, or `SD35AdaLayerNormZeroX` with a second attention.
struct Adapted {
    attention: Adaptive,
    feed_forward: Adaptive,
    second: Option<Adaptive>,
}

/// The picture's attention to itself alone.
#[derive(Debug)]
struct SelfAttention {
    projections: Projections,
}

impl SelfAttention {
    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        self.projections.output(&self.projections.heads(input)?.attend(None)?)
    }
}

/// `transformer_blocks`
#[derive(Debug)]
struct JointTransformerBlock {
    norm1: Modulation,
    /// `attn`'s projections of the picture, and of the text.
    picture: Projections,
    text: Projections,
    attn2: Option<SelfAttention>,
    ff: FeedForward,
    norm1_context: Modulation,
    /// None in the last block, which has no more use for the text than to attend to it.
    ff_context: Option<FeedForward>,
}

impl JointTransformerBlock {
    fn load(scope: &Scope<'_>, config: &Sd3Config, index: usize) -> Result<Self, WeightsError> {
        let width = config.width();
        let is_last = index + 1 == config.num_layers;
        let is_dual = config.dual_attention_layers.contains(&index);
        let feed_forward = |name| FeedForward::load(&scope.at(name), width, 4 * width, FeedForwardKind::GeluTanh);
        let modulation = |name, count| Modulation::load(&scope.at(name).at("linear"), width, count, true);
        let projections = |name, names| Projections::load(&scope.at(name), names, config.projections());
        let text = if is_last { Names::ADDED.without_output() } else { Names::ADDED };
        Ok(Self {
            norm1: modulation("norm1", if is_dual { 9 } else { 6 })?,
            picture: projections("attn", Names::OWN)?,
            text: projections("attn", text)?,
            attn2: if is_dual { Some(SelfAttention { projections: projections("attn2", Names::OWN)? }) } else { None },
            ff: feed_forward("ff")?,
            norm1_context: modulation("norm1_context", if is_last { 2 } else { 6 })?,
            ff_context: if is_last { None } else { Some(feed_forward("ff_context")?) },
        })
    }

    /// `picture` (B, L, D), `text` (B, S, D), `conditioning` (B, D) after SiLU → picture and text; the last block's text
    /// stays as it was.
    fn forward(&self, picture: &Tensor, text: &Tensor, conditioning: &Tensor) -> Result<[Tensor; 2], TorchError> {
        let own = self.adapted(conditioning)?;
        let normed = norm(picture, EPS)?;
        let (normed_text, of_text) = self.text_norm(text, conditioning)?;
        let (attended, attended_text) =
            joint::attend((&self.picture, &own.attention.modulate(&normed)?), (&self.text, &normed_text), None)?;
        drop(normed_text);
        let mut picture = own.attention.gated(picture, &attended)?;
        if let (Some(attn2), Some(second)) = (&self.attn2, &own.second) {
            picture = second.gated(&picture, &attn2.forward(&second.modulate(&normed)?)?)?;
        }
        drop((normed, attended));
        let picture = own.feed_forward.feed(&self.ff, &picture)?;
        let (Some([attention, feed_forward]), Some(ff)) = (of_text, &self.ff_context) else {
            return Ok([picture, text.shallow_clone()]);
        };
        let text = attention.gated(text, &attended_text)?;
        Ok([picture, feed_forward.feed(ff, &text)?])
    }

    fn adapted(&self, conditioning: &Tensor) -> Result<Adapted, TorchError> {
        if self.attn2.is_some() {
            let [shift, scale, gate, ff_shift, ff_scale, ff_gate, shift_2, scale_2, gate_2] =
                self.norm1.forward(conditioning)?;
            let second = Some(Adaptive::new(shift_2, scale_2, gate_2));
            return Ok(Adapted {
                attention: Adaptive::new(shift, scale, gate),
                feed_forward: Adaptive::new(ff_shift, ff_scale, ff_gate),
                second,
            });
        }
        let [shift, scale, gate, ff_shift, ff_scale, ff_gate] = self.norm1.forward(conditioning)?;
        Ok(Adapted {
            attention: Adaptive::new(shift, scale, gate),
            feed_forward: Adaptive::new(ff_shift, ff_scale, ff_gate),
            second: None,
        })
    }

    /// The text as attention takes it, and how its layers after that are adapted.
    fn text_norm(&self, text: &Tensor, conditioning: &Tensor) -> Result<(Tensor, Option<[Adaptive; 2]>), TorchError> {
        let normed = norm(text, EPS)?;
        if self.ff_context.is_none() {
            // `AdaLayerNormContinuous`, which has the scale first.
            let [scale, shift] = self.norm1_context.forward(conditioning)?;
            return Ok((modulate(&normed, &shift, &scale)?, None));
        }
        let [shift, scale, gate, ff_shift, ff_scale, ff_gate] = self.norm1_context.forward(conditioning)?;
        let attention = Adaptive::new(shift, scale, gate);
        Ok((attention.modulate(&normed)?, Some([attention, Adaptive::new(ff_shift, ff_scale, ff_gate)])))
    }
}

/// What latents are denoised under.
#[derive(Clone, Copy, Debug)]
pub struct Sd3Conditions<'a> {
    /// (B, L, D): the texts' tokens.
    pub encoder_hidden_states: &'a Tensor,
    /// (B, P)
    pub pooled_projections: &'a Tensor,
    /// Blocks to leave out, for guidance away from what is made without them.
    pub skip_layers: &'a [usize],
}

pub struct Sd3Transformer {
    /// `pos_embed.proj`
    proj: Conv2d,
    /// `pos_embed.pos_embed` (1, side · side, D)
    pos_embed: Tensor,
    time_proj: Sinusoid,
    /// `time_text_embed.timestep_embedder`
    timestep_embedder: TimestepEmbedding,
    /// `time_text_embed.text_embedder`
    text_embedder: TextProjection,
    context_embedder: Linear,
    transformer_blocks: Blocks<JointTransformerBlock>,
    /// `norm_out.linear`: scale, then shift.
    norm_out: Modulation,
    proj_out: Linear,
    config: Sd3Config,
}

impl Sd3Transformer {
    /// # Errors
    /// No room. What is missing or does not fit is listed by [`Weights::finish`].
    pub fn load(weights: &Weights, config: &Sd3Config) -> Result<Self, WeightsError> {
        let root = weights.root();
        let (width, patch, side) = (config.width(), config.patch_size, config.pos_embed_max_size);
        let (places, time) = (root.at("pos_embed"), root.at("time_text_embed"));
        let window = Window { kernel: patch, stride: patch, padding: 0 };
        let own = config.clone();
        let load = move |index: usize, scope: &Scope<'_>| JointTransformerBlock::load(scope, &own, index);
        let time_proj = Sinusoid::new(TIME_CHANNELS, true, 0.0, root.device());
        Ok(Self {
            proj: Conv2d::load(&places.at("proj"), config.in_channels, width, window)?,
            pos_embed: places.take("pos_embed", &[1, side * side, width])?,
            time_proj: time_proj.map_err(|error| WeightsError::Torch { path: time.full("").into(), error })?,
            timestep_embedder: TimestepEmbedding::load(&time.at("timestep_embedder"), TIME_CHANNELS, width, None)?,
            text_embedder: TextProjection::load(&time.at("text_embedder"), config.pooled_projection_dim, width)?,
            context_embedder: Linear::load(&root.at("context_embedder"), config.joint_attention_dim, width, true)?,
            transformer_blocks: Blocks::load(&root.at("transformer_blocks"), config.num_layers, load)?,
            norm_out: Modulation::load(&root.at("norm_out.linear"), width, 2, true)?,
            proj_out: Linear::load(&root.at("proj_out"), width, patch * patch * config.out_channels, true)?,
            config: config.clone(),
        })
    }

    pub const fn config(&self) -> &Sd3Config {
        &self.config
    }

    /// The velocity from the picture to the noise.
    ///
    /// `latents` (B, in, H, W), in the kind of the weights; the sides are multiples of the patch's. `timestep` from 0 to
    /// 1000. → (B, out, H, W)
    ///
    /// # Errors
    /// Shapes that do not fit the network, no memory, or a device's failure.
    pub fn forward(
        &self,
        latents: &Tensor,
        timestep: f64,
        conditions: &Sd3Conditions<'_>,
    ) -> Result<Tensor, TorchError> {
        self.forward_cached(latents, timestep, conditions, None)
    }

    /// As [`Self::forward`]; with a cache, blocks may be left out.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_cached(
        &self,
        latents: &Tensor,
        timestep: f64,
        conditions: &Sd3Conditions<'_>,
        cache: Option<&StepCache>,
    ) -> Result<Tensor, TorchError> {
        self.check(latents, conditions)?;
        let (_, _, height, width) = latents.size4()?;
        let (patch, side) = (self.config.patch_size, self.config.pos_embed_max_size);
        let [rows, columns] = [height / patch, width / patch];
        let corner = [(side - rows) / 2, (side - columns) / 2];
        let places = cropped(&self.pos_embed, side, [rows, columns], corner)?;
        let tokens = self.proj.forward(latents)?.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let mut picture = tokens.f_add(&places)?.f_contiguous()?;
        let mut text = self.context_embedder.forward(conditions.encoder_hidden_states)?;
        // All that it adapts begins with the SiLU of it.
        let conditioning = self.embed(timestep, conditions.pooled_projections)?.f_silu_()?;
        let mut pass = Pass::begin(cache, &picture);
        self.transformer_blocks.each_while(|index, block| {
            if !conditions.skip_layers.contains(&index) {
                [picture, text] = block.forward(&picture, &text, &conditioning)?;
            }
            pass.goes_on(&mut picture)
        })?;
        pass.end(&picture)?;
        let [scale, shift] = self.norm_out.forward(&conditioning)?;
        let output = self.proj_out.forward(&modulate(&norm(&picture, EPS)?, &shift, &scale)?)?;
        unpatch(&output, patch, [height, width])
    }

    /// `time_text_embed`: the timestep and the text's gist, (B, D).
    fn embed(&self, timestep: f64, pooled_projections: &Tensor) -> Result<Tensor, TorchError> {
        let time = self.time_proj.of(timestep)?.f_to_kind(pooled_projections.f_kind()?)?;
        let text = self.text_embedder.forward(pooled_projections)?;
        Ok(self.timestep_embedder.forward(&time, None)?.f_add(&text)?)
    }

    fn check(&self, latents: &Tensor, conditions: &Sd3Conditions<'_>) -> Result<(), TorchError> {
        let config = &self.config;
        let (batch, channels, height, width) = latents.size4()?;
        if channels != config.in_channels || height % config.patch_size != 0 || width % config.patch_size != 0 {
            return Err(TorchError::Other(format!(
                "latents of {:?} are not for a transformer of {} channels and patches of {}",
                latents.size(),
                config.in_channels,
                config.patch_size
            )));
        }
        let (text, pooled) = (conditions.encoder_hidden_states.size(), conditions.pooled_projections.size());
        if text.len() != 3 || text[0] != batch || text[2] != config.joint_attention_dim {
            let wanted = config.joint_attention_dim;
            return Err(TorchError::Other(format!("a text of {text:?} where ({batch}, L, {wanted}) belongs")));
        }
        if pooled != [batch, config.pooled_projection_dim] {
            let wanted = config.pooled_projection_dim;
            return Err(TorchError::Other(format!("a pooled text of {pooled:?} where ({batch}, {wanted}) belongs")));
        }
        Ok(())
    }
}
