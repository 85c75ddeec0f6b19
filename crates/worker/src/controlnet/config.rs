//! `config.json` of ControlNets.

use std::path::Path;

use serde_json::json;

use super::hint::HintConfig;
use crate::{
    nn::config::{ConfigError, ConfigReader},
    unet::EncoderConfig,
};

#[derive(Clone, Debug, PartialEq)]
pub struct ControlNetConfig {
    pub encoder: EncoderConfig,
    pub hint: HintConfig,
    /// The hint's channels are to be reversed first.
    pub is_bgr: bool,
    /// Only each residual's mean is added.
    pub global_pool_conditions: bool,
}

impl ControlNetConfig {
    /// Reads `config.json` in the ControlNet's folder.
    ///
    /// # Errors
    /// No such file, or a value that this ControlNet does not compute, with its key.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        Self::read(ConfigReader::open(path)?)
    }

    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        let r = &mut reader;
        let order = r.take("controlnet_conditioning_channel_order");
        let is_bgr = match order.as_str() {
            None if order.is_null() => false,
            Some("rgb") => false,
            Some("bgr") => true,
            _ => {
                let problem = "and only \"rgb\" or \"bgr\" is supported";
                return Err(r.unsupported("controlnet_conditioning_channel_order", order, problem));
            }
        };
        let config = Self {
            hint: HintConfig::read(r, &[16, 32, 96, 256])?,
            global_pool_conditions: r.flag_or("global_pool_conditions", false)?,
            encoder: read_encoder(r)?,
            is_bgr,
        };
        reader.finish()?;
        Ok(config)
    }
}

/// `ControlNetUnionModel`: for several kinds of hints, and several hints at once.
#[derive(Clone, Debug, PartialEq)]
pub struct UnionConfig {
    pub encoder: EncoderConfig,
    pub hint: HintConfig,
    pub global_pool_conditions: bool,
    /// Kinds of hints.
    pub num_control_type: i64,
    /// Of the transformer that weighs the hints: features, heads and layers.
    pub num_trans_channel: i64,
    pub num_trans_head: i64,
    pub num_trans_layer: i64,
    /// What it gives for each hint; the UNet's first number of channels.
    pub num_proj_channel: i64,
    /// Of each kind's sinusoid.
    pub control_type_dim: i64,
}

impl UnionConfig {
    /// Reads `config.json` in the ControlNet's folder.
    ///
    /// # Errors
    /// No such file, or a value that this ControlNet does not compute, with its key.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        Self::read(ConfigReader::open(path)?)
    }

    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        let r = &mut reader;
        r.only("controlnet_conditioning_channel_order", &[json!("rgb")])?;
        let hint = HintConfig::read(r, &[48, 96, 192, 384])?;
        let global_pool_conditions = r.flag_or("global_pool_conditions", false)?;
        let num_control_type = r.size_or("num_control_type", 6)?;
        let num_trans_channel = r.size_or("num_trans_channel", 320)?;
        let num_trans_head = r.size_or("num_trans_head", 8)?;
        let num_trans_layer = r.size_or("num_trans_layer", 1)?;
        let num_proj_channel = r.size_or("num_proj_channel", 320)?;
        let encoder = read_encoder(r)?;
        let first = encoder.levels[0].channels;
        for (key, channels) in [("num_trans_channel", num_trans_channel), ("num_proj_channel", num_proj_channel)] {
            if channels != first {
                let problem = format!("and block_out_channels begin with {first}");
                return Err(r.unsupported(key, channels.into(), problem));
            }
        }
        if num_trans_channel % num_trans_head != 0 {
            let problem = format!("which does not divide num_trans_channel {num_trans_channel}");
            return Err(r.unsupported("num_trans_head", num_trans_head.into(), problem));
        }
        let addition = encoder.addition.ok_or_else(|| {
            r.unsupported("addition_embed_type", serde_json::Value::Null, "and a union needs \"text_time\"")
        })?;
        reader.finish()?;
        Ok(Self {
            encoder,
            hint,
            global_pool_conditions,
            num_control_type,
            num_trans_channel,
            num_trans_head,
            num_trans_layer,
            num_proj_channel,
            control_type_dim: addition.time_embed_dim,
        })
    }
}

fn read_encoder(r: &mut ConfigReader) -> Result<EncoderConfig, ConfigError> {
    let encoder = EncoderConfig::read(r)?;
    // A UNet's key, which says nothing of a ControlNet.
    r.ignore(&["sample_size"]);
    if encoder.mid_block.is_none() {
        return Err(r.unsupported("mid_block_type", serde_json::Value::Null, "and a ControlNet needs a middle"));
    }
    Ok(encoder)
}
