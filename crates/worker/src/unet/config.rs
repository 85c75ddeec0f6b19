//! `config.json` of a UNet, and of what its ControlNets share with it.
//!
//! Source: diffusers 0.42.1, `models/unets/unet_2d_condition.py`; defaults are those of its constructor.

use std::path::Path;

use serde_json::{Value, json};

use crate::nn::config::{ConfigError, ConfigReader};

/// Transformer blocks in each attention of a block of the UNet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Depth {
    Same(i64),
    Each(Vec<i64>),
}

impl Depth {
    /// In the attention after the residual block `index`.
    pub fn at(&self, index: usize) -> i64 {
        match self {
            Self::Same(layers) => *layers,
            Self::Each(layers) => layers.get(index).copied().unwrap_or_default(),
        }
    }

    fn fits(&self, count: usize) -> bool {
        match self {
            Self::Same(_) => true,
            Self::Each(layers) => layers.len() >= count,
        }
    }

    fn from_json(value: &Value) -> Option<Self> {
        let size = |value: &Value| value.as_i64().filter(|layers| *layers >= 1);
        match value.as_array() {
            Some(list) => list.iter().map(size).collect::<Option<Vec<_>>>().map(Self::Each),
            None => size(value).map(Self::Same),
        }
    }
}

/// One resolution: a block on the way down, and one on the way up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    pub channels: i64,
    /// Residual blocks on the way down; one more on the way up.
    pub layers: usize,
    /// Heads of its attentions. The key is `attention_head_dim`, which has named the number of heads ever since a
    /// mistake at the beginning.
    pub heads: i64,
    pub cross_attention_dim: i64,
    pub only_cross_attention: bool,
    pub depth: Depth,
    pub down_has_attention: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MidBlock {
    /// One residual block.
    Resnet,
    /// Two, with an attention between them.
    CrossAttention,
}

/// The sizes of pictures and the text as a whole, added to the time embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTime {
    /// Of each of the six sizes.
    pub time_embed_dim: i64,
    /// Of all of them and the text.
    pub input_dim: i64,
}

/// The half of a UNet that a ControlNet copies.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    pub in_channels: i64,
    pub conv_in_kernel: i64,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    pub time_embedding_dim: i64,
    /// Size of a condition on the time embedding, in distilled networks.
    pub time_cond_proj_dim: Option<i64>,
    pub addition: Option<TextTime>,
    pub levels: Vec<Level>,
    pub mid_block: Option<MidBlock>,
    pub downsample_padding: i64,
    pub norm_num_groups: i64,
    pub norm_eps: f64,
    pub use_linear_projection: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UNetConfig {
    pub encoder: EncoderConfig,
    pub out_channels: i64,
    pub conv_out_kernel: i64,
    /// Pixels are doubled and reduced by 1 first.
    pub center_input_sample: bool,
    /// Side of the latents that it was trained with.
    pub sample_size: Option<[i64; 2]>,
    /// Whether the block at each level has attention on the way up, and how deep: in the order of the levels.
    pub up: Vec<Option<Depth>>,
}

impl UNetConfig {
    /// Reads `config.json` in the UNet's folder.
    ///
    /// # Errors
    /// No such file, or a value that this UNet does not compute, with its key.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        Self::read(ConfigReader::open(path)?)
    }

    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        let r = &mut reader;
        let conv_in_kernel = odd_kernel(r, "conv_in_kernel")?;
        let conv_out_kernel = odd_kernel(r, "conv_out_kernel")?;
        let out_channels = r.size_or("out_channels", 4)?;
        let center_input_sample = r.flag_or("center_input_sample", false)?;
        let time_embedding_dim = r.size("time_embedding_dim")?;
        let time_cond_proj_dim = r.size("time_cond_proj_dim")?;
        let up_types = r.take("up_block_types");
        let reversed = r.take("reverse_transformer_layers_per_block");
        let sample_size = sample_size(r)?;
        // Of the middle, this names an attention that none of the blocks below has.
        r.ignore(&["mid_block_only_cross_attention"]);
        r.only("time_embedding_type", &[json!("positional")])?;
        r.only("dual_cross_attention", &[json!(false)])?;
        r.only("class_embeddings_concat", &[json!(false)])?;
        r.only("resnet_skip_time_act", &[json!(false)])?;
        r.only("resnet_out_scale_factor", &[json!(1)])?;
        r.only("attention_type", &[json!("default")])?;
        for key in ["time_embedding_act_fn", "timestep_post_act", "cross_attention_norm"] {
            r.only(key, &[Value::Null])?;
        }
        let mut encoder = EncoderConfig::read(r)?;
        encoder.conv_in_kernel = conv_in_kernel;
        encoder.time_cond_proj_dim = time_cond_proj_dim;
        encoder.time_embedding_dim = time_embedding_dim.unwrap_or(encoder.time_embedding_dim);
        let up = up_blocks(r, &up_types, &reversed, &encoder.levels)?;
        reader.finish()?;
        Ok(Self { encoder, out_channels, conv_out_kernel, center_input_sample, sample_size, up })
    }

    /// How many times smaller the smallest level is.
    pub fn downscale(&self) -> i64 {
        1 << (self.encoder.levels.len() - 1)
    }
}

impl EncoderConfig {
    /// Takes the keys that UNets and ControlNets have in common.
    pub fn read(r: &mut ConfigReader) -> Result<Self, ConfigError> {
        r.only("act_fn", &[json!("silu"), json!("swish")])?;
        r.only("class_embed_type", &[Value::Null])?;
        r.only("num_class_embeds", &[Value::Null])?;
        r.only("num_attention_heads", &[Value::Null])?;
        r.only("encoder_hid_dim", &[Value::Null])?;
        r.only("encoder_hid_dim_type", &[Value::Null])?;
        r.only("resnet_time_scale_shift", &[json!("default")])?;
        r.only("mid_block_scale_factor", &[json!(1)])?;
        // Dropout is for training. Attention is computed in one precision throughout, as libtorch's kernels do.
        r.ignore(&["dropout", "upcast_attention", "addition_embed_type_num_heads"]);

        let norm_num_groups = r.size_or("norm_num_groups", 32)?;
        let levels = levels(r, norm_num_groups)?;
        let mid_block = mid_block(r)?;
        Ok(Self {
            in_channels: r.size_or("in_channels", 4)?,
            conv_in_kernel: 3,
            flip_sin_to_cos: r.flag_or("flip_sin_to_cos", true)?,
            freq_shift: r.float_or("freq_shift", 0.0)?,
            time_embedding_dim: 4 * levels[0].channels,
            time_cond_proj_dim: None,
            addition: addition(r)?,
            mid_block,
            downsample_padding: downsample_padding(r)?,
            norm_num_groups,
            norm_eps: r.float_or("norm_eps", 1e-5)?,
            use_linear_projection: r.flag_or("use_linear_projection", false)?,
            levels,
        })
    }
}

fn odd_kernel(r: &mut ConfigReader, key: &str) -> Result<i64, ConfigError> {
    let kernel = r.size_or(key, 3)?;
    if kernel % 2 == 1 { Ok(kernel) } else { Err(r.unsupported(key, kernel.into(), "and not odd")) }
}

/// One number, or height and width.
fn sample_size(r: &mut ConfigReader) -> Result<Option<[i64; 2]>, ConfigError> {
    let value = r.take("sample_size");
    let side = |value: &Value| value.as_i64().filter(|side| *side >= 1);
    match &value {
        Value::Null => Ok(None),
        Value::Array(list) if list.len() == 2 => match (side(&list[0]), side(&list[1])) {
            (Some(height), Some(width)) => Ok(Some([height, width])),
            _ => Err(r.unsupported("sample_size", value, "and no size")),
        },
        Value::Number(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => match side(&value)
        {
            Some(side) => Ok(Some([side, side])),
            None => Err(r.unsupported("sample_size", value, "and no size")),
        },
    }
}

fn downsample_padding(r: &mut ConfigReader) -> Result<i64, ConfigError> {
    let value = r.take("downsample_padding");
    match value.as_i64() {
        None if value.is_null() => Ok(1),
        Some(padding @ (0 | 1)) => Ok(padding),
        _ => Err(r.unsupported("downsample_padding", value, "and only 0 or 1 is supported")),
    }
}

fn mid_block(r: &mut ConfigReader) -> Result<Option<MidBlock>, ConfigError> {
    const KEY: &str = "mid_block_type";
    if !r.has(KEY) {
        return Ok(Some(MidBlock::CrossAttention));
    }
    let value = r.take(KEY);
    match value.as_str() {
        None if value.is_null() => Ok(None),
        Some("UNetMidBlock2DCrossAttn") => Ok(Some(MidBlock::CrossAttention)),
        Some("UNetMidBlock2D") => Ok(Some(MidBlock::Resnet)),
        _ => {
            let problem = "and only \"UNetMidBlock2DCrossAttn\", \"UNetMidBlock2D\" or null is supported";
            Err(r.unsupported(KEY, value, problem))
        }
    }
}

fn addition(r: &mut ConfigReader) -> Result<Option<TextTime>, ConfigError> {
    const KEY: &str = "addition_embed_type";
    let value = r.take(KEY);
    let time_embed_dim = r.size("addition_time_embed_dim")?;
    let input_dim = r.size("projection_class_embeddings_input_dim")?;
    match value.as_str() {
        None if value.is_null() => Ok(None),
        Some("text_time") => Ok(Some(TextTime {
            time_embed_dim: time_embed_dim.ok_or_else(|| r.missing("addition_time_embed_dim"))?,
            input_dim: input_dim.ok_or_else(|| r.missing("projection_class_embeddings_input_dim"))?,
        })),
        _ => Err(r.unsupported(KEY, value, "and only \"text_time\" or null is supported")),
    }
}

fn levels(r: &mut ConfigReader, groups: i64) -> Result<Vec<Level>, ConfigError> {
    const TYPES: [&str; 4] = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"];
    let down =
        r.names("down_block_types", &TYPES, "\"CrossAttnDownBlock2D\" and \"DownBlock2D\"", |name| match name {
            "CrossAttnDownBlock2D" => Some(true),
            "DownBlock2D" => Some(false),
            _ => None,
        })?;
    let count = down.len();
    let channels = r.sizes("block_out_channels")?.unwrap_or_else(|| vec![320, 640, 1280, 1280]);
    if channels.len() != count {
        let problem = format!("and there are {count} down_block_types");
        return Err(r.unsupported("block_out_channels", json!(channels), problem));
    }
    let layers = r.sizes_for("layers_per_block", count, 2)?;
    let heads = r.sizes_for("attention_head_dim", count, 8)?;
    let cross = r.sizes_for("cross_attention_dim", count, 1280)?;
    let only_cross = r.flags_for("only_cross_attention", count, false)?;
    let value = r.take("transformer_layers_per_block");
    let depths = depths(&value, count)
        .ok_or_else(|| r.unsupported("transformer_layers_per_block", value, "which does not fit the blocks"))?;
    let levels: Vec<Level> = (0..count)
        .map(|i| Level {
            channels: channels[i],
            layers: usize::try_from(layers[i]).unwrap_or(usize::MAX),
            heads: heads[i],
            cross_attention_dim: cross[i],
            only_cross_attention: only_cross[i],
            depth: depths[i].clone(),
            down_has_attention: down[i],
        })
        .collect();
    if let Some(level) = levels.iter().find(|level| level.channels % groups != 0) {
        let problem = format!("which does not divide block_out_channels' {}", level.channels);
        return Err(r.unsupported("norm_num_groups", groups.into(), problem));
    }
    // The last level's heads are the middle's too.
    if let Some(level) = levels.iter().find(|level| level.channels % level.heads != 0) {
        let problem = format!("and {} heads do not divide block_out_channels' {}", level.heads, level.channels);
        return Err(r.unsupported("attention_head_dim", json!(heads), problem));
    }
    if let Some(level) = levels.iter().find(|level| level.layers > 64 || !level.depth.fits(level.layers)) {
        return Err(r.unsupported("layers_per_block", json!(layers), format!("and does not fit {:?}", level.depth)));
    }
    Ok(levels)
}

/// A number for all blocks, or a list with a number, or a list of numbers, for each.
fn depths(value: &Value, count: usize) -> Option<Vec<Depth>> {
    match value {
        Value::Null => Some(vec![Depth::Same(1); count]),
        Value::Array(list) if list.len() == count => list.iter().map(Depth::from_json).collect(),
        Value::Number(_) => Depth::from_json(value).map(|depth| vec![depth; count]),
        Value::Array(_) | Value::Bool(_) | Value::String(_) | Value::Object(_) => None,
    }
}

/// `types` and `reversed` begin at the smallest level; the result at the largest.
fn up_blocks(
    r: &ConfigReader,
    types: &Value,
    reversed: &Value,
    levels: &[Level],
) -> Result<Vec<Option<Depth>>, ConfigError> {
    const KEY: &str = "up_block_types";
    let default = json!(["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]);
    let types = if types.is_null() { &default } else { types };
    let list = types.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.len() != levels.len() {
        return Err(r.unsupported(KEY, types.clone(), format!("and there are {} down_block_types", levels.len())));
    }
    let reversed = if reversed.is_null() {
        None
    } else {
        let depths = depths(reversed, levels.len());
        let problem = "which does not fit the blocks";
        Some(depths.ok_or_else(|| r.unsupported("reverse_transformer_layers_per_block", reversed.clone(), problem))?)
    };
    let mut up = Vec::new();
    for (i, (name, level)) in list.iter().zip(levels.iter().rev()).enumerate() {
        let depth = reversed.as_ref().map_or(&level.depth, |reversed| &reversed[i]);
        up.push(match name.as_str() {
            Some("UpBlock2D") => None,
            Some("CrossAttnUpBlock2D") if depth.fits(level.layers + 1) => Some(depth.clone()),
            Some("CrossAttnUpBlock2D") => {
                let key = "reverse_transformer_layers_per_block";
                let problem = format!("and block {i} has {} attentions", level.layers + 1);
                return Err(r.unsupported(
                    key,
                    reversed.as_ref().map_or(Value::Null, |_| json!(format!("{depth:?}"))),
                    problem,
                ));
            }
            _ => {
                let problem = "and only \"CrossAttnUpBlock2D\" and \"UpBlock2D\" are supported";
                return Err(r.unsupported(KEY, types.clone(), problem));
            }
        });
    }
    up.reverse();
    Ok(up)
}
