//! `FluxTransformer2DModel`: the denoiser of FLUX.1 dev, schnell, Kontext and Fill.
//!
//! First the text's and the picture's tokens pass blocks of their own that attend to both (`transformer_blocks`), then
//! all of them as one sequence blocks whose attention and feed-forward run side by side (`single_transformer_blocks`).
//! Source: diffusers 0.42.1, `models/transformers/transformer_flux.py`.

use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::{
    HeadNorm, Modulation, Names, Projections, Rope, TextProjection,
    joint::{self, ProjectionSizes},
    modulate, norm,
};
use crate::{
    nn::{
        Blocks, FeedForward, FeedForwardKind, Linear, Pass, Sinusoid, StepCache, TimestepEmbedding,
        config::{ConfigError, ConfigReader},
    },
    torch::{LinearActivation, TorchError},
    weights::{Scope, Weights, WeightsError},
};

const EPS: f64 = 1e-6;
/// Features between the two layers of a feed-forward network, for each of the token's.
const MLP_RATIO: i64 = 4;
/// Of the sinusoids of timestep and guidance.
const TIME_FEATURES: i64 = 256;
const THETA: f64 = 10_000.0;
/// The largest number in half precision.
const HALF_LIMIT: f64 = 65504.0;

/// `config.json`
#[derive(Clone, Debug, PartialEq)]
pub struct FluxConfig {
    /// Of a token: 4 times the latents' channels, and more where the network sees other pictures beside them.
    pub in_channels: i64,
    pub out_channels: i64,
    pub num_layers: usize,
    pub num_single_layers: usize,
    pub attention_head_dim: i64,
    pub num_attention_heads: i64,
    /// Of T5's hidden states.
    pub joint_attention_dim: i64,
    /// Of CLIP's pooled text.
    pub pooled_projection_dim: i64,
    /// Whether guidance is a condition that was distilled into the network.
    pub guidance_embeds: bool,
    /// Features of each head that turn with the first, second and third of a token's positions.
    pub axes_dims_rope: Vec<i64>,
}

impl FluxConfig {
    /// Reads `config.json` in the transformer's folder.
    ///
    /// # Errors
    /// No such file, or a value that this network does not compute, with its key.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        Self::read(ConfigReader::open(path)?)
    }

    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        let r = &mut reader;
        r.only("patch_size", &[json!(1)])?;
        let in_channels = r.size_or("in_channels", 64)?;
        let config = Self {
            in_channels,
            out_channels: r.size_or("out_channels", in_channels)?,
            num_layers: count(r.size_or("num_layers", 19)?),
            num_single_layers: count(r.size_or("num_single_layers", 38)?),
            attention_head_dim: r.size_or("attention_head_dim", 128)?,
            num_attention_heads: r.size_or("num_attention_heads", 24)?,
            joint_attention_dim: r.size_or("joint_attention_dim", 4096)?,
            pooled_projection_dim: r.size_or("pooled_projection_dim", 768)?,
            guidance_embeds: r.flag_or("guidance_embeds", false)?,
            axes_dims_rope: r.sizes("axes_dims_rope")?.unwrap_or_else(|| vec![16, 56, 56]),
        };
        let axes = &config.axes_dims_rope;
        if axes.len() != 3 || axes.iter().any(|axis| axis % 2 != 0) {
            return Err(r.unsupported("axes_dims_rope", json!(axes), "and not three even numbers"));
        }
        if axes.iter().sum::<i64>() != config.attention_head_dim {
            let problem = format!("which do not add up to attention_head_dim's {}", config.attention_head_dim);
            return Err(r.unsupported("axes_dims_rope", json!(axes), problem));
        }
        reader.finish()?;
        Ok(config)
    }

    /// Features of a token within the network.
    pub const fn width(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }

    const fn projections(&self) -> ProjectionSizes {
        ProjectionSizes {
            width: self.width(),
            heads: self.num_attention_heads,
            head: self.attention_head_dim,
            norm: HeadNorm::Rms { eps: EPS },
            bias: true,
            output_bias: true,
        }
    }
}

fn count(size: i64) -> usize {
    usize::try_from(size).unwrap_or(0)
}

/// One of the two streams of a double block: all but the attention's way into it.
#[derive(Debug)]
struct Stream {
    modulation: Modulation,
    projections: Projections,
    feed_forward: FeedForward,
}

impl Stream {
    fn load(
        block: &Scope<'_>,
        config: &FluxConfig,
        names: Names,
        norm: &str,
        feed_forward: &str,
    ) -> Result<Self, WeightsError> {
        let width = config.width();
        Ok(Self {
            modulation: Modulation::load(&block.at(norm).at("linear"), width, 6, true)?,
            projections: Projections::load(&block.at("attn"), names, config.projections())?,
            feed_forward: FeedForward::load(
                &block.at(feed_forward),
                width,
                MLP_RATIO * width,
                FeedForwardKind::GeluTanh,
            )?,
        })
    }

    /// What follows the attention. `parts`: the modulation's.
    fn finish(&self, hidden: &Tensor, attended: &Tensor, parts: &[Tensor; 6]) -> Result<Tensor, TorchError> {
        let [_, _, attention_gate, shift, scale, gate] = parts;
        let hidden = hidden.f_add(&attended.f_mul(attention_gate)?)?;
        let output = self.feed_forward.forward(&modulate(&norm(&hidden, EPS)?, shift, scale)?)?;
        bounded(hidden.f_add(&output.f_mul(gate)?)?)
    }
}

/// A block of `transformer_blocks`.
#[derive(Debug)]
struct DoubleBlock {
    text: Stream,
    picture: Stream,
}

impl DoubleBlock {
    fn load(scope: &Scope<'_>, config: &FluxConfig) -> Result<Self, WeightsError> {
        Ok(Self {
            text: Stream::load(scope, config, Names::ADDED, "norm1_context", "ff_context")?,
            picture: Stream::load(scope, config, Names::OWN, "norm1", "ff")?,
        })
    }

    fn forward(&self, text: &Tensor, picture: &Tensor, time: &Tensor, rope: &Rope) -> Result<[Tensor; 2], TorchError> {
        let text_parts: [Tensor; 6] = self.text.modulation.forward(time)?;
        let picture_parts: [Tensor; 6] = self.picture.modulation.forward(time)?;
        let normed_text = modulate(&norm(text, EPS)?, &text_parts[0], &text_parts[1])?;
        let normed_picture = modulate(&norm(picture, EPS)?, &picture_parts[0], &picture_parts[1])?;
        let (attended_text, attended_picture) = joint::attend(
            (&self.text.projections, &normed_text),
            (&self.picture.projections, &normed_picture),
            Some(rope),
        )?;
        drop((normed_text, normed_picture));
        Ok([
            self.text.finish(text, &attended_text, &text_parts)?,
            self.picture.finish(picture, &attended_picture, &picture_parts)?,
        ])
    }
}

/// A block of `single_transformer_blocks`.
#[derive(Debug)]
struct SingleBlock {
    /// `norm.linear`
    modulation: Modulation,
    attn: Projections,
    proj_mlp: Linear,
    proj_out: Linear,
}

impl SingleBlock {
    fn load(scope: &Scope<'_>, config: &FluxConfig) -> Result<Self, WeightsError> {
        let width = config.width();
        let inner = MLP_RATIO * width;
        let names = Names::OWN.without_output();
        Ok(Self {
            modulation: Modulation::load(&scope.at("norm.linear"), width, 3, true)?,
            attn: Projections::load(&scope.at("attn"), names, config.projections())?,
            proj_mlp: Linear::load(&scope.at("proj_mlp"), width, inner, true)?,
            proj_out: Linear::load(&scope.at("proj_out"), width + inner, width, true)?,
        })
    }

    fn forward(&self, hidden: &Tensor, time: &Tensor, rope: &Rope) -> Result<Tensor, TorchError> {
        let [shift, scale, gate] = self.modulation.forward(time)?;
        let normed = modulate(&norm(hidden, EPS)?, &shift, &scale)?;
        let attended = self.attn.heads(&normed)?.turned(rope)?.attend(None)?;
        let inner = self.proj_mlp.forward_then(&normed, LinearActivation::GeluTanh)?;
        drop(normed);
        let both = Tensor::f_cat(&[attended, inner], 2)?;
        let output = self.proj_out.forward(&both)?;
        drop(both);
        bounded(hidden.f_add(&output.f_mul(&gate)?)?)
    }
}

/// Half precision does not reach as far as these sums may.
fn bounded(hidden: Tensor) -> Result<Tensor, TorchError> {
    if hidden.f_kind()? == Kind::Half { Ok(hidden.f_clamp(-HALF_LIMIT, HALF_LIMIT)?) } else { Ok(hidden) }
}

/// `time_text_embed`: timestep, guidance and pooled text as one vector.
#[derive(Debug)]
struct TimeTextEmbed {
    sinusoid: Sinusoid,
    timestep_embedder: TimestepEmbedding,
    guidance_embedder: Option<TimestepEmbedding>,
    text_embedder: TextProjection,
}

impl TimeTextEmbed {
    fn load(scope: &Scope<'_>, config: &FluxConfig) -> Result<Self, WeightsError> {
        let embedder = |name: &str| TimestepEmbedding::load(&scope.at(name), TIME_FEATURES, config.width(), None);
        let sinusoid = Sinusoid::new(TIME_FEATURES, true, 0.0, scope.device());
        Ok(Self {
            sinusoid: sinusoid.map_err(|error| WeightsError::Torch { path: scope.full("").into(), error })?,
            timestep_embedder: embedder("timestep_embedder")?,
            guidance_embedder: if config.guidance_embeds { Some(embedder("guidance_embedder")?) } else { None },
            text_embedder: TextProjection::load(
                &scope.at("text_embedder"),
                config.pooled_projection_dim,
                config.width(),
            )?,
        })
    }

    /// `pooled` (B, P) → (B, D)
    fn forward(&self, timestep: f64, guidance: Option<f64>, pooled: &Tensor) -> Result<Tensor, TorchError> {
        let kind = pooled.f_kind()?;
        // The pipeline divides by the number of training's steps, the network multiplies: in f32, for the last bit.
        let timestep = Tensor::f_full([1], timestep, (Kind::Float, pooled.device()))?;
        let timestep = timestep.f_div_scalar(1000.0)?.f_mul_scalar(1000.0)?;
        let mut time = self.timestep_embedder.forward(&self.sinusoid.forward(&timestep)?.f_to_kind(kind)?, None)?;
        match (&self.guidance_embedder, guidance) {
            (Some(embedder), Some(guidance)) => {
                let sinusoid = self.sinusoid.of(1000.0 * guidance)?.f_to_kind(kind)?;
                time = time.f_add(&embedder.forward(&sinusoid, None)?)?;
            }
            (None, None) => {}
            (Some(_), None) => return Err(TorchError::Other("a network with guidance_embeds needs a guidance".into())),
            (None, Some(_)) => {
                return Err(TorchError::Other("a guidance for a network without guidance_embeds".into()));
            }
        }
        Ok(time.f_add(&self.text_embedder.forward(pooled)?)?)
    }
}

/// What the tokens are denoised under.
#[derive(Clone, Copy, Debug)]
pub struct FluxConditions<'a> {
    /// (B, T, joint): T5's.
    pub encoder_hidden_states: &'a Tensor,
    /// (B, P): CLIP's.
    pub pooled_projections: &'a Tensor,
    /// Where the network has `guidance_embeds`, and only there.
    pub guidance: Option<f64>,
    /// Of the text's tokens, then the picture's: see [`FluxTransformer::rope`].
    pub rope: &'a Rope,
}

pub struct FluxTransformer {
    x_embedder: Linear,
    context_embedder: Linear,
    time_text_embed: TimeTextEmbed,
    transformer_blocks: Blocks<DoubleBlock>,
    single_transformer_blocks: Blocks<SingleBlock>,
    /// `norm_out.linear`: scale, then shift.
    norm_out: Modulation,
    proj_out: Linear,
    config: FluxConfig,
    device: Device,
}

impl FluxTransformer {
    /// # Errors
    /// No room. What is missing or does not fit is listed by [`Weights::finish`].
    pub fn load(weights: &Weights, config: &FluxConfig) -> Result<Self, WeightsError> {
        let root = weights.root();
        let width = config.width();
        let (of_double, of_single) = (config.clone(), config.clone());
        Ok(Self {
            x_embedder: Linear::load(&root.at("x_embedder"), config.in_channels, width, true)?,
            context_embedder: Linear::load(&root.at("context_embedder"), config.joint_attention_dim, width, true)?,
            time_text_embed: TimeTextEmbed::load(&root.at("time_text_embed"), config)?,
            transformer_blocks: Blocks::load(&root.at("transformer_blocks"), config.num_layers, move |_, scope| {
                DoubleBlock::load(scope, &of_double)
            })?,
            single_transformer_blocks: Blocks::load(
                &root.at("single_transformer_blocks"),
                config.num_single_layers,
                move |_, scope| SingleBlock::load(scope, &of_single),
            )?,
            norm_out: Modulation::load(&root.at("norm_out.linear"), width, 2, true)?,
            proj_out: Linear::load(&root.at("proj_out"), width, config.out_channels, true)?,
            config: config.clone(),
            device: root.device(),
        })
    }

    pub const fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// The turns of `text_tokens`, which all are at the origin, and of patches at `positions` (L, 3).
    pub fn rope(&self, text_tokens: i64, positions: &Tensor) -> Result<Rope, TorchError> {
        let text = Tensor::f_zeros([text_tokens, 3], (positions.f_kind()?, positions.device()))?;
        let all = Tensor::f_cat(&[&text, positions], 0)?;
        Rope::new(&all, &self.config.axes_dims_rope, THETA, Kind::Double, self.device)
    }

    /// What the network makes of patches at one timestep, from 0 to 1000.
    ///
    /// `hidden_states` (B, L, in), in the kind of the weights → (B, L, out)
    ///
    /// # Errors
    /// Shapes that do not fit the network, a guidance where it has no use for one, no memory, or a device's failure.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        timestep: f64,
        conditions: &FluxConditions<'_>,
    ) -> Result<Tensor, TorchError> {
        self.forward_cached(hidden_states, timestep, conditions, None)
    }

    /// As [`Self::forward`]; with a cache, blocks may be left out.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_cached(
        &self,
        hidden_states: &Tensor,
        timestep: f64,
        conditions: &FluxConditions<'_>,
        cache: Option<&StepCache>,
    ) -> Result<Tensor, TorchError> {
        let FluxConditions { encoder_hidden_states, pooled_projections, guidance, rope } = *conditions;
        self.check(hidden_states, encoder_hidden_states, pooled_projections)?;
        // The blocks all begin with the SiLU of it.
        let time = self.time_text_embed.forward(timestep, guidance, pooled_projections)?.f_silu_()?;
        let mut picture = self.x_embedder.forward(hidden_states)?;
        let mut text = self.context_embedder.forward(encoder_hidden_states)?;
        let mut pass = Pass::begin(cache, &picture);
        self.transformer_blocks.each_while(|_, block| {
            [text, picture] = block.forward(&text, &picture, &time, rope)?;
            pass.goes_on(&mut picture)
        })?;
        if pass.is_whole() {
            let (text_length, length) = (text.size3()?.1, picture.size3()?.1);
            let mut hidden = Tensor::f_cat(&[text, picture], 1)?;
            self.single_transformer_blocks.each(|_, block| {
                hidden = block.forward(&hidden, &time, rope)?;
                Ok(())
            })?;
            picture = hidden.f_narrow(1, text_length, length)?;
            pass.end(&picture)?;
        }
        let [scale, shift] = self.norm_out.forward(&time)?;
        self.proj_out.forward(&modulate(&norm(&picture, EPS)?, &shift, &scale)?)
    }

    fn check(&self, hidden: &Tensor, text: &Tensor, pooled: &Tensor) -> Result<(), TorchError> {
        let wants = |what: &str, got: i64, wanted: i64| {
            if got == wanted {
                return Ok(());
            }
            Err(TorchError::Other(format!("{what} of {got} features, where the network takes {wanted}")))
        };
        wants("patches", hidden.size3()?.2, self.config.in_channels)?;
        wants("a text", text.size3()?.2, self.config.joint_attention_dim)?;
        wants("a pooled text", pooled.size2()?.1, self.config.pooled_projection_dim)
    }
}
