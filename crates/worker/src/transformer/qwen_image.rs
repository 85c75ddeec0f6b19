//! `QwenImageTransformer2DModel`, the denoiser of Qwen-Image, -Edit and -Edit-Plus: text and patches in two streams that
//! attend to each other in every block. Pictures to be edited are further patches after the ones that are denoised.
//!
//! Source: diffusers 0.42.1, `models/transformers/transformer_qwenimage.py`; "Qwen-Image Technical Report", arXiv
//! 2508.02324.

use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::{
    RmsNorm, Rope,
    joint::{self, HeadNorm, Names, ProjectionSizes, Projections},
    modulation::{Modulation, modulate, norm},
};
use crate::{
    nn::{
        Blocks, FeedForward, FeedForwardKind, Linear, Pass, Sinusoid, StepCache, TimestepEmbedding,
        config::{ConfigError, ConfigReader},
    },
    torch::TorchError,
    weights::{Scope, Weights, WeightsError},
};

const EPS: f64 = 1e-6;
/// Of the sinusoids of the timestep.
const TIME_FEATURES: i64 = 256;
/// Timesteps are given from 0 to 1, and embedded from 0 to this.
const TIME_SCALE: f64 = 1000.0;
/// The base of the rotary embedding's frequencies.
const THETA: f64 = 10_000.0;
/// The largest number of half precision.
const HALF_MAX: f64 = 65_504.0;

/// `config.json`
#[derive(Clone, Debug, PartialEq)]
pub struct QwenImageConfig {
    pub patch_size: i64,
    /// Features of a patch.
    pub in_channels: i64,
    /// Channels of the latents that come out.
    pub out_channels: i64,
    pub num_layers: usize,
    pub attention_head_dim: i64,
    pub num_attention_heads: i64,
    /// Features of the text.
    pub joint_attention_dim: i64,
    /// How many of a head's features turn with the picture's number, the row and the column.
    pub axes_dims_rope: [i64; 3],
    /// The patches of pictures that are edited are modulated as at the timestep 0 (2511).
    pub zero_cond_t: bool,
}

impl QwenImageConfig {
    /// Reads `config.json` in the transformer's folder.
    ///
    /// # Errors
    /// No such file, or a value that this network does not compute, with its key.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        Self::read(ConfigReader::open(path)?)
    }

    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        let r = &mut reader;
        let attention_head_dim = r.size_or("attention_head_dim", 128)?;
        let axes = r.sizes("axes_dims_rope")?.unwrap_or_else(|| vec![16, 56, 56]);
        let axes_dims_rope = match <[i64; 3]>::try_from(axes.as_slice()) {
            Ok(axes) if axes.iter().sum::<i64>() == attention_head_dim && axes.iter().all(|axis| axis % 2 == 0) => axes,
            Ok(_) | Err(_) => {
                let problem = format!("and not three even numbers that make {attention_head_dim}");
                return Err(r.unsupported("axes_dims_rope", json!(axes), problem));
            }
        };
        // Written into the first folders, and read by nobody.
        r.size("pooled_projection_dim")?;
        let in_channels = r.size_or("in_channels", 64)?;
        let config = Self {
            patch_size: r.size_or("patch_size", 2)?,
            in_channels,
            // The class's own default is 16; what is null is as many as come in.
            out_channels: if r.has("out_channels") { r.size_or("out_channels", in_channels)? } else { 16 },
            num_layers: usize::try_from(r.size_or("num_layers", 60)?).unwrap_or_default(),
            attention_head_dim,
            num_attention_heads: r.size_or("num_attention_heads", 24)?,
            joint_attention_dim: r.size_or("joint_attention_dim", 3584)?,
            axes_dims_rope,
            zero_cond_t: r.flag_or("zero_cond_t", false)?,
        };
        // guidance_embeds, use_additional_t_cond and use_layer3d_rope are other networks; switched off they pass.
        reader.finish()?;
        Ok(config)
    }

    /// Features within the blocks.
    pub const fn inner_dim(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }
}

/// Where the tokens of a call are.
#[derive(Debug)]
pub struct Places {
    /// Of the text's tokens, then all pictures'.
    rope: Rope,
    text: i64,
    /// Patches that are denoised.
    target: i64,
    /// All patches.
    patches: i64,
}

pub struct QwenImageTransformer {
    timestep: Sinusoid,
    /// `time_text_embed.timestep_embedder`
    timestep_embedder: TimestepEmbedding,
    txt_norm: RmsNorm,
    img_in: Linear,
    txt_in: Linear,
    transformer_blocks: Blocks<Block>,
    /// `norm_out.linear`: scale, then shift.
    norm_out: Modulation,
    proj_out: Linear,
    config: QwenImageConfig,
    kind: Kind,
    device: Device,
}

impl QwenImageTransformer {
    /// # Errors
    /// No room. What is missing or does not fit is listed by [`Weights::finish`].
    pub fn load(weights: &Weights, config: &QwenImageConfig) -> Result<Self, WeightsError> {
        let root = weights.root();
        let dim = config.inner_dim();
        let timestep = Sinusoid::new(TIME_FEATURES, true, 0.0, root.device()).map_err(|error| root.failed(error))?;
        let embedder = root.at("time_text_embed.timestep_embedder");
        let sizes = config.clone();
        let load = move |_, scope: &Scope<'_>| Block::load(scope, &sizes);
        Ok(Self {
            timestep,
            timestep_embedder: TimestepEmbedding::load(&embedder, TIME_FEATURES, dim, None)?,
            txt_norm: RmsNorm::load(&root.at("txt_norm"), config.joint_attention_dim, EPS)?,
            img_in: Linear::load(&root.at("img_in"), config.in_channels, dim, true)?,
            txt_in: Linear::load(&root.at("txt_in"), config.joint_attention_dim, dim, true)?,
            transformer_blocks: Blocks::load(&root.at("transformer_blocks"), config.num_layers, load)?,
            norm_out: Modulation::load(&root.at("norm_out.linear"), dim, 2, true)?,
            proj_out: Linear::load(&root.at("proj_out"), dim, config.patch_size.pow(2) * config.out_channels, true)?,
            config: config.clone(),
            kind: root.kind(),
            device: root.device(),
        })
    }

    pub const fn config(&self) -> &QwenImageConfig {
        &self.config
    }

    /// Of what [`Self::forward`] computes in.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Places for so many tokens of text and for pictures of these rows and columns of patches, the one that is
    /// denoised first.
    ///
    /// # Errors
    /// No picture.
    pub fn places(&self, text: i64, pictures: &[[i64; 2]]) -> Result<Places, TorchError> {
        let area = |[rows, columns]: [i64; 2]| rows * columns;
        let target = pictures.first().copied().map(area);
        let target = target.ok_or_else(|| TorchError::Other("there is no picture to denoise".into()))?;
        let patches: Vec<Tensor> =
            (0..).zip(pictures).map(|(n, &sides)| patches(n, sides)).collect::<Result<_, _>>()?;
        // The text goes on, on all axes, where the largest picture ends.
        let end = pictures.iter().flatten().map(|side| side / 2).max().unwrap_or(0);
        let options = (Kind::Int64, Device::Cpu);
        let words = Tensor::f_arange_start(end, end + text, options)?.f_unsqueeze(1)?.f_repeat([1, 3])?;
        let positions = Tensor::f_cat(&std::iter::once(words).chain(patches).collect::<Vec<_>>(), 0)?;
        let rope = Rope::new(&positions, &self.config.axes_dims_rope, THETA, Kind::Float, self.device)?;
        Ok(Places { rope, text, target, patches: pictures.iter().copied().map(area).sum() })
    }

    /// `hidden_states` (B, S, in) are the patches of all pictures, `encoder_hidden_states` (B, L, joint) the text, all of
    /// which is seen; `timestep` is from 0 to 1 → (B, S, patch² · out), in the network's kind.
    ///
    /// # Errors
    /// Other numbers of tokens than the places', no memory.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        encoder_hidden_states: &Tensor,
        timestep: f64,
        places: &Places,
    ) -> Result<Tensor, TorchError> {
        self.forward_cached(hidden_states, encoder_hidden_states, timestep, places, None)
    }

    /// As [`Self::forward`]; with a cache, blocks may be left out.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_cached(
        &self,
        hidden_states: &Tensor,
        encoder_hidden_states: &Tensor,
        timestep: f64,
        places: &Places,
        cache: Option<&StepCache>,
    ) -> Result<Tensor, TorchError> {
        let (patches, words) = (hidden_states.size3()?.1, encoder_hidden_states.size3()?.1);
        if (patches, words) != (places.patches, places.text) {
            return Err(TorchError::Other(format!(
                "{patches} patches and {words} tokens of text where there are places for {} and {}",
                places.patches, places.text
            )));
        }
        let mut hidden = self.img_in.forward(&hidden_states.f_to_kind(self.kind)?)?;
        let text = self.txt_norm.forward(&encoder_hidden_states.f_to_kind(self.kind)?)?;
        let mut text = self.txt_in.forward(&text)?;
        let conditioning = self.conditioning(timestep)?;
        let mut pass = Pass::begin(cache, &hidden);
        self.transformer_blocks.each_while(|_, block| {
            block.forward(&mut hidden, &mut text, &conditioning, places)?;
            pass.goes_on(&mut hidden)
        })?;
        pass.end(&hidden)?;
        let [scale, shift] = self.norm_out.forward(&conditioning.f_narrow(0, 0, 1)?)?;
        self.proj_out.forward(&modulate(&norm(&hidden, EPS)?, &shift, &scale)?)
    }

    /// The SiLU of the timestep's embedding, (1, D); with `zero_cond_t` a second row is that of 0.
    fn conditioning(&self, timestep: f64) -> Result<Tensor, TorchError> {
        let times: &[f64] = if self.config.zero_cond_t { &[timestep, 0.0] } else { &[timestep] };
        let times = Tensor::f_from_slice(times)?.f_to_kind(Kind::Float)?.f_to_kind(self.kind)?;
        let waves = self.timestep.forward_scaled(&times.f_to_device(self.device)?, TIME_SCALE)?;
        Ok(self.timestep_embedder.forward(&waves.f_to_kind(self.kind)?, None)?.f_silu()?)
    }
}

/// Positions of a picture's patches (rows · columns, 3): its number, and row and column counted from the middle.
fn patches(number: i64, [rows, columns]: [i64; 2]) -> Result<Tensor, TorchError> {
    let options = (Kind::Int64, Device::Cpu);
    let centred = |side: i64| Tensor::f_arange_start(side / 2 - side, side / 2, options);
    let row = centred(rows)?.f_unsqueeze(1)?.f_expand([rows, columns], false)?;
    let column = centred(columns)?.f_unsqueeze(0)?.f_expand([rows, columns], false)?;
    let number = Tensor::f_full([rows, columns], number, options)?;
    Ok(Tensor::f_stack(&[number, row, column], -1)?.f_reshape([rows * columns, 3])?)
}

/// Layers of one of the two streams of a block.
#[derive(Debug)]
struct Stream {
    /// `img_mod.1` or `txt_mod.1`: shift, scale and gate for the attention, then for the network after it.
    modulation: Modulation,
    projections: Projections,
    mlp: FeedForward,
}

#[derive(Debug)]
struct Block {
    img: Stream,
    txt: Stream,
}

impl Block {
    fn load(scope: &Scope<'_>, config: &QwenImageConfig) -> Result<Self, WeightsError> {
        let dim = config.inner_dim();
        let sizes = ProjectionSizes {
            width: dim,
            heads: config.num_attention_heads,
            head: config.attention_head_dim,
            norm: HeadNorm::Rms { eps: EPS },
            bias: true,
            output_bias: true,
        };
        let stream = |name: &str, names| -> Result<Stream, WeightsError> {
            let mlp = scope.at(format!("{name}_mlp"));
            Ok(Stream {
                modulation: Modulation::load(&scope.at(format!("{name}_mod.1")), dim, 6, true)?,
                projections: Projections::load(&scope.at("attn"), names, sizes)?,
                mlp: FeedForward::load(&mlp, dim, 4 * dim, FeedForwardKind::GeluTanh)?,
            })
        };
        Ok(Self { img: stream("img", Names::OWN)?, txt: stream("txt", Names::ADDED)? })
    }

    /// `hidden` (B, S, D), `text` (B, L, D); new tensors take their places.
    fn forward(
        &self,
        hidden: &mut Tensor,
        text: &mut Tensor,
        conditioning: &Tensor,
        places: &Places,
    ) -> Result<(), TorchError> {
        let own = Parts::of(places.target, self.img.modulation.forward(conditioning)?);
        let words = Parts::of(places.text, self.txt.modulation.forward(&conditioning.f_narrow(0, 0, 1)?)?);
        let (patches, tokens) = (own.before_attention(hidden)?, words.before_attention(text)?);
        let streams = ((&self.txt.projections, &tokens), (&self.img.projections, &patches));
        let (tokens, patches) = joint::attend(streams.0, streams.1, Some(&places.rope))?;
        *hidden = own.after_attention(hidden, &patches)?;
        *text = words.after_attention(text, &tokens)?;
        drop((tokens, patches));
        *hidden = own.after_mlp(hidden, &self.img.mlp.forward(&own.before_mlp(hidden)?)?)?;
        *text = words.after_mlp(text, &self.txt.mlp.forward(&words.before_mlp(text)?)?)?;
        if hidden.f_kind()? == Kind::Half {
            let _ = hidden.f_clamp_(-HALF_MAX, HALF_MAX)?;
            let _ = text.f_clamp_(-HALF_MAX, HALF_MAX)?;
        }
        Ok(())
    }
}

/// A stream's modulation. Vectors of two rows: the first is for the first `length` tokens, the second for the rest.
struct Parts {
    length: i64,
    /// (1 or 2, 1, D) each.
    vectors: [Tensor; 6],
}

impl Parts {
    const fn of(length: i64, vectors: [Tensor; 6]) -> Self {
        Self { length, vectors }
    }

    fn before_attention(&self, hidden: &Tensor) -> Result<Tensor, TorchError> {
        self.modulated(hidden, 0)
    }

    fn after_attention(&self, hidden: &Tensor, change: &Tensor) -> Result<Tensor, TorchError> {
        self.added(hidden, change, 2)
    }

    fn before_mlp(&self, hidden: &Tensor) -> Result<Tensor, TorchError> {
        self.modulated(hidden, 3)
    }

    fn after_mlp(&self, hidden: &Tensor, change: &Tensor) -> Result<Tensor, TorchError> {
        self.added(hidden, change, 5)
    }

    /// The norm of `hidden`, moved by the vectors `first` (shift) and `first + 1` (scale).
    fn modulated(&self, hidden: &Tensor, first: usize) -> Result<Tensor, TorchError> {
        let normed = norm(hidden, EPS)?;
        let of = |part: &Tensor, row: i64| -> Result<Tensor, TorchError> {
            modulate(part, &self.vectors[first].f_narrow(0, row, 1)?, &self.vectors[first + 1].f_narrow(0, row, 1)?)
        };
        let (own, others) = self.cut(&normed)?;
        match others {
            None => of(&own, 0),
            Some(others) => Ok(Tensor::f_cat(&[of(&own, 0)?, of(&others, 1)?], 1)?),
        }
    }

    /// `hidden` and `change`, times the vector `gate`.
    fn added(&self, hidden: &Tensor, change: &Tensor, gate: usize) -> Result<Tensor, TorchError> {
        let gate = |row: i64| self.vectors[gate].f_narrow(0, row, 1);
        let ((own, others), (own_change, other_change)) = (self.cut(hidden)?, self.cut(change)?);
        let own = own.f_addcmul(&own_change, &gate(0)?)?;
        match (others, other_change) {
            (Some(others), Some(change)) => Ok(Tensor::f_cat(&[own, others.f_addcmul(&change, &gate(1)?)?], 1)?),
            (_, _) => Ok(own),
        }
    }

    /// The tokens of the first row and, where there are two, those of the second.
    fn cut(&self, tokens: &Tensor) -> Result<(Tensor, Option<Tensor>), TorchError> {
        if self.vectors[0].size3()?.0 == 1 {
            return Ok((tokens.shallow_clone(), None));
        }
        let rest = tokens.size3()?.1 - self.length;
        Ok((tokens.f_narrow(1, 0, self.length)?, Some(tokens.f_narrow(1, self.length, rest)?)))
    }
}
