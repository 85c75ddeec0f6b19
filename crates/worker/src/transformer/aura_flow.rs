//! `AuraFlowTransformer2DModel`: the denoiser of AuraFlow and of Pony V7.
//!
//! Source: diffusers 0.42.1, `models/transformers/auraflow_transformer_2d.py`.

use std::path::Path;

use serde_json::json;
use tch::{Kind, Tensor};

use super::{
    HeadNorm, Modulation, Names, Projections,
    joint::{self, ProjectionSizes},
    modulate, norm,
    patches::{PATCH, cropped, pack, unpatch},
};
use crate::{
    nn::{
        Blocks, Linear, Pass, Sinusoid, StepCache, TimestepEmbedding,
        config::{ConfigError, ConfigReader},
    },
    torch::TorchError,
    weights::{Scope, Weights, WeightsError},
};

/// Of all norms, also those of queries and keys.
const EPS: f64 = 1e-5;
/// Sinusoids of the timestep.
const TIME_CHANNELS: i64 = 256;
/// Tokens of no text, which take up what attention would leave anywhere.
const REGISTERS: i64 = 8;
/// The feed-forward layers' features are a multiple of this.
const FEED_FORWARD_MULTIPLE: i64 = 256;
/// More is a mistake.
const MOST_BLOCKS: u64 = 1000;

/// `config.json`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuraFlowConfig {
    /// Side of the latents that it was first trained with.
    pub sample_size: i64,
    pub in_channels: i64,
    pub out_channels: i64,
    /// Blocks in which picture and text have weights of their own.
    pub num_mmdit_layers: usize,
    /// Blocks after them, with the same weights for both.
    pub num_single_dit_layers: usize,
    pub attention_head_dim: i64,
    pub num_attention_heads: i64,
    /// Features of the text's tokens.
    pub joint_attention_dim: i64,
    /// Side of the square table of places, in patches.
    pub pos_embed_side: i64,
}

impl AuraFlowConfig {
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
        r.only("patch_size", &[json!(PATCH)])?;
        let in_channels = r.size_or("in_channels", 4)?;
        let (attention_head_dim, num_attention_heads) =
            (r.size_or("attention_head_dim", 256)?, r.size_or("num_attention_heads", 12)?);
        let places = r.size_or("pos_embed_max_size", 1024)?;
        let pos_embed_side = u64::try_from(places).unwrap_or(0).isqrt().cast_signed();
        if pos_embed_side * pos_embed_side != places {
            return Err(r.unsupported("pos_embed_max_size", places.into(), "and not the square of a whole number"));
        }
        let config = Self {
            sample_size: r.size_or("sample_size", 64)?,
            in_channels,
            out_channels: if r.has("out_channels") { r.size_or("out_channels", in_channels)? } else { 4 },
            num_mmdit_layers: count(r, "num_mmdit_layers", 4)?,
            num_single_dit_layers: count(r, "num_single_dit_layers", 32)?,
            attention_head_dim,
            num_attention_heads,
            joint_attention_dim: r.size_or("joint_attention_dim", 2048)?,
            pos_embed_side,
        };
        // The text's tokens meet the picture's in blocks of one width.
        let (width, caption) = (config.width(), r.size_or("caption_projection_dim", 3072)?);
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
            norm: HeadNorm::Layer { eps: EPS },
            bias: false,
            output_bias: false,
        }
    }
}

/// A number of blocks, which may be 0.
fn count(reader: &mut ConfigReader, key: &str, default: usize) -> Result<usize, ConfigError> {
    let value = reader.take(key);
    let found = value.as_u64().filter(|count| *count <= MOST_BLOCKS).and_then(|count| usize::try_from(count).ok());
    match found {
        Some(count) => Ok(count),
        None if value.is_null() => Ok(default),
        None => Err(reader.unsupported(key, value, format!("and not a whole number from 0 to {MOST_BLOCKS}"))),
    }
}

/// Two layers side by side, of which one scales the other, and one after them.
#[derive(Debug)]
struct AuraFlowFeedForward {
    linear_1: Linear,
    linear_2: Linear,
    out_projection: Linear,
}

impl AuraFlowFeedForward {
    fn load(scope: &Scope<'_>, width: i64) -> Result<Self, WeightsError> {
        let inner = (2 * 4 * width / 3 + FEED_FORWARD_MULTIPLE - 1) / FEED_FORWARD_MULTIPLE * FEED_FORWARD_MULTIPLE;
        Ok(Self {
            linear_1: Linear::load(&scope.at("linear_1"), width, inner, false)?,
            linear_2: Linear::load(&scope.at("linear_2"), width, inner, false)?,
            out_projection: Linear::load(&scope.at("out_projection"), inner, width, false)?,
        })
    }

    /// (B, L, D) → the same shape
    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let mut hidden = self.linear_1.forward(input)?.f_silu_()?;
        let hidden = hidden.f_mul_(&self.linear_2.forward(input)?)?;
        self.out_projection.forward(&hidden)
    }
}

/// What a block does to one kind of token.
#[derive(Debug)]
struct Half {
    /// `norm1`, `norm1_context`
    norm: Modulation,
    /// `attn`'s
    projections: Projections,
    ff: AuraFlowFeedForward,
}

/// Tokens on their way through a block. `parts` are shift, scale and gate of attention, then of the layer after it.
struct Begun<'a> {
    half: &'a Half,
    residual: &'a Tensor,
    normed: Tensor,
    parts: [Tensor; 6],
}

impl Half {
    fn load(
        scope: &Scope<'_>,
        config: &AuraFlowConfig,
        names: Names,
        [norm, ff]: [&str; 2],
    ) -> Result<Self, WeightsError> {
        Ok(Self {
            norm: Modulation::load(&scope.at(norm).at("linear"), config.width(), 6, false)?,
            projections: Projections::load(&scope.at("attn"), names, config.projections())?,
            ff: AuraFlowFeedForward::load(&scope.at(ff), config.width())?,
        })
    }

    fn begin<'a>(&'a self, tokens: &'a Tensor, conditioning: &Tensor) -> Result<Begun<'a>, TorchError> {
        let parts: [Tensor; 6] = self.norm.forward(conditioning)?;
        let normed = modulate(&norm(tokens, EPS)?, &parts[0], &parts[1])?;
        Ok(Begun { half: self, residual: tokens, normed, parts })
    }
}

impl Begun<'_> {
    /// The feed-forward layer sees the tokens with what attention gave; the block adds only what that layer makes of
    /// them.
    fn finish(&self, attended: &Tensor) -> Result<Tensor, TorchError> {
        let [_, _, attention_gate, shift, scale, gate] = &self.parts;
        let hidden = norm(&self.residual.f_add(&attended.f_mul(attention_gate)?)?, EPS)?;
        let output = self.half.ff.forward(&modulate(&hidden, shift, scale)?)?;
        Ok(self.residual.f_add(&output.f_mul(gate)?)?)
    }
}

/// `joint_transformer_blocks`
#[derive(Debug)]
struct JointBlock {
    text: Half,
    picture: Half,
}

impl JointBlock {
    fn load(scope: &Scope<'_>, config: &AuraFlowConfig) -> Result<Self, WeightsError> {
        Ok(Self {
            text: Half::load(scope, config, Names::ADDED, ["norm1_context", "ff_context"])?,
            picture: Half::load(scope, config, Names::OWN, ["norm1", "ff"])?,
        })
    }

    /// `text` (B, S, D), `picture` (B, L, D), `conditioning` (B, D) after SiLU → text and picture
    fn forward(&self, text: &Tensor, picture: &Tensor, conditioning: &Tensor) -> Result<[Tensor; 2], TorchError> {
        let text = self.text.begin(text, conditioning)?;
        let picture = self.picture.begin(picture, conditioning)?;
        let (attended_text, attended) =
            joint::attend((&self.text.projections, &text.normed), (&self.picture.projections, &picture.normed), None)?;
        Ok([text.finish(&attended_text)?, picture.finish(&attended)?])
    }
}

/// `single_transformer_blocks`
#[derive(Debug)]
struct SingleBlock {
    all: Half,
}

impl SingleBlock {
    fn load(scope: &Scope<'_>, config: &AuraFlowConfig) -> Result<Self, WeightsError> {
        Ok(Self { all: Half::load(scope, config, Names::OWN, ["norm1", "ff"])? })
    }

    /// `tokens` (B, S + L, D), `conditioning` (B, D) after SiLU → (B, S + L, D)
    fn forward(&self, tokens: &Tensor, conditioning: &Tensor) -> Result<Tensor, TorchError> {
        let all = self.all.begin(tokens, conditioning)?;
        let projections = &self.all.projections;
        all.finish(&projections.output(&projections.heads(&all.normed)?.attend(None)?)?)
    }
}

pub struct AuraFlowTransformer {
    /// `pos_embed.proj`
    proj: Linear,
    /// `pos_embed.pos_embed` (1, side · side, D)
    pos_embed: Tensor,
    context_embedder: Linear,
    time_step_embed: Sinusoid,
    time_step_proj: TimestepEmbedding,
    joint_transformer_blocks: Blocks<JointBlock>,
    single_transformer_blocks: Blocks<SingleBlock>,
    /// `norm_out.linear`: scale, then shift.
    norm_out: Modulation,
    proj_out: Linear,
    /// (1, 8, D)
    register_tokens: Tensor,
    config: AuraFlowConfig,
}

impl AuraFlowTransformer {
    /// # Errors
    /// No room. What is missing or does not fit is listed by [`Weights::finish`].
    pub fn load(weights: &Weights, config: &AuraFlowConfig) -> Result<Self, WeightsError> {
        let root = weights.root();
        let (width, side) = (config.width(), config.pos_embed_side);
        let patch = PATCH * PATCH;
        let (places, text) = (root.at("pos_embed"), root.at("context_embedder"));
        let (joint, single) = (config.clone(), config.clone());
        let time_step_embed = Sinusoid::new(TIME_CHANNELS, true, 0.0, root.device());
        Ok(Self {
            proj: Linear::load(&places.at("proj"), patch * config.in_channels, width, true)?,
            pos_embed: places.take("pos_embed", &[1, side * side, width])?,
            context_embedder: Linear::load(&text, config.joint_attention_dim, width, false)?,
            time_step_embed: time_step_embed
                .map_err(|error| WeightsError::Torch { path: root.full("").into(), error })?,
            time_step_proj: TimestepEmbedding::load(&root.at("time_step_proj"), TIME_CHANNELS, width, None)?,
            joint_transformer_blocks: Blocks::load(
                &root.at("joint_transformer_blocks"),
                config.num_mmdit_layers,
                move |_, scope| JointBlock::load(scope, &joint),
            )?,
            single_transformer_blocks: Blocks::load(
                &root.at("single_transformer_blocks"),
                config.num_single_dit_layers,
                move |_, scope| SingleBlock::load(scope, &single),
            )?,
            norm_out: Modulation::load(&root.at("norm_out.linear"), width, 2, false)?,
            proj_out: Linear::load(&root.at("proj_out"), width, patch * config.out_channels, false)?,
            register_tokens: root.take("register_tokens", &[1, REGISTERS, width])?,
            config: config.clone(),
        })
    }

    pub const fn config(&self) -> &AuraFlowConfig {
        &self.config
    }

    /// The velocity from the picture to the noise.
    ///
    /// `latents` (B, in, H, W) of even sides, in the kind of the weights; `timestep` from 0 to 1; `text` (B, S, joint),
    /// zero where there are no words. → (B, out, H, W)
    ///
    /// # Errors
    /// Shapes that do not fit the network, no memory, or a device's failure.
    pub fn forward(&self, latents: &Tensor, timestep: f64, text: &Tensor) -> Result<Tensor, TorchError> {
        self.forward_cached(latents, timestep, text, None)
    }

    /// As [`Self::forward`]; with a cache, blocks may be left out.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_cached(
        &self,
        latents: &Tensor,
        timestep: f64,
        text: &Tensor,
        cache: Option<&StepCache>,
    ) -> Result<Tensor, TorchError> {
        self.check(latents, text)?;
        let (batch, _, height, width) = latents.size4()?;
        let (rows, columns, side) = (height / PATCH, width / PATCH, self.config.pos_embed_side);
        // Half of each is rounded down, which for an odd number of patches is not the middle that SD 3 takes.
        let corner = [side / 2 - rows / 2, side / 2 - columns / 2];
        let places = cropped(&self.pos_embed, side, [rows, columns], corner)?;
        let mut picture = self.proj.forward(&pack(latents)?)?.f_add(&places)?;
        let conditioning = self.embed(timestep, latents.f_kind()?)?.f_silu_()?;
        let registers = self.register_tokens.f_repeat([batch, 1, 1])?;
        let mut text = Tensor::f_cat(&[registers, self.context_embedder.forward(text)?], 1)?;
        let mut pass = Pass::begin(cache, &picture);
        self.joint_transformer_blocks.each_while(|_, block| {
            [text, picture] = block.forward(&text, &picture, &conditioning)?;
            pass.goes_on(&mut picture)
        })?;
        if pass.is_whole() {
            let before = text.size3()?.1;
            let mut all = Tensor::f_cat(&[text, picture], 1)?;
            self.single_transformer_blocks.each(|_, block| {
                all = block.forward(&all, &conditioning)?;
                Ok(())
            })?;
            picture = all.f_narrow(1, before, rows * columns)?;
            pass.end(&picture)?;
        }
        let [scale, shift] = self.norm_out.forward(&conditioning)?;
        let output = self.proj_out.forward(&modulate(&picture, &shift, &scale)?)?;
        unpatch(&output, PATCH, [height, width])
    }

    /// The timestep, (1, D).
    fn embed(&self, timestep: f64, kind: Kind) -> Result<Tensor, TorchError> {
        let timestep = Tensor::f_full([1], timestep, (Kind::Float, self.register_tokens.device()))?;
        let time = self.time_step_embed.forward_scaled(&timestep, 1000.0)?;
        self.time_step_proj.forward(&time.f_to_kind(kind)?, None)
    }

    fn check(&self, latents: &Tensor, text: &Tensor) -> Result<(), TorchError> {
        let (batch, channels, _, _) = latents.size4()?;
        if channels != self.config.in_channels {
            let (sizes, wanted) = (latents.size(), self.config.in_channels);
            return Err(TorchError::Other(format!("latents of {sizes:?} where {wanted} channels belong")));
        }
        let (text, wanted) = (text.size(), self.config.joint_attention_dim);
        if text.len() != 3 || text[0] != batch || text[2] != wanted {
            return Err(TorchError::Other(format!("a text of {text:?} where [{batch}, L, {wanted}] belongs")));
        }
        Ok(())
    }
}
