//! The small network that makes a control picture as small as latents, and as many channels.

use serde_json::json;
use tch::Tensor;

use crate::{
    nn::{
        Conv2d, Window,
        config::{ConfigError, ConfigReader},
    },
    torch::TorchError,
    weights::{Scope, WeightsError},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HintConfig {
    pub conditioning_channels: i64,
    /// Of each resolution, the largest first.
    pub conditioning_embedding_out_channels: Vec<i64>,
}

impl HintConfig {
    pub(super) fn read(r: &mut ConfigReader, default: &[i64]) -> Result<Self, ConfigError> {
        const KEY: &str = "conditioning_embedding_out_channels";
        let channels = r.sizes(KEY)?.unwrap_or_else(|| default.to_vec());
        if channels.len() > 16 {
            return Err(r.unsupported(KEY, json!(channels), "and longer than any picture can be halved"));
        }
        Ok(Self {
            conditioning_channels: r.size_or("conditioning_channels", 3)?,
            conditioning_embedding_out_channels: channels,
        })
    }

    /// How many times larger the picture is than the sample.
    pub const fn factor(&self) -> i64 {
        1 << (self.conditioning_embedding_out_channels.len() - 1)
    }
}

/// `ControlNetConditioningEmbedding`
#[derive(Debug)]
pub(super) struct ConditioningEmbedding {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
    config: HintConfig,
}

impl ConditioningEmbedding {
    pub(super) fn load(scope: &Scope<'_>, config: &HintConfig, channels_out: i64) -> Result<Self, WeightsError> {
        let channels = &config.conditioning_embedding_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let halving = Window { kernel: 3, stride: 2, padding: 1 };
        let mut blocks = Vec::new();
        for pair in channels.windows(2) {
            for (to, window) in [(pair[0], Window::SAME), (pair[1], halving)] {
                blocks.push(Conv2d::load(&scope.at("blocks").at(blocks.len()), pair[0], to, window)?);
            }
        }
        Ok(Self {
            conv_in: Conv2d::load(&scope.at("conv_in"), config.conditioning_channels, first, Window::SAME)?,
            blocks,
            conv_out: Conv2d::load(&scope.at("conv_out"), last, channels_out, Window::SAME)?,
            config: config.clone(),
        })
    }

    /// # Errors
    /// A picture that does not lie over the sample.
    pub(super) fn check(&self, hint: &Tensor, sample: &Tensor) -> Result<(), TorchError> {
        super::check_hint(hint, sample, self.config.conditioning_channels, self.config.factor())
    }

    /// (B, in, H, W) → (B, out, ⌈H / factor⌉, ⌈W / factor⌉)
    pub(super) fn forward(&self, hint: &Tensor) -> Result<Tensor, TorchError> {
        let mut hidden = self.conv_in.forward_silu(hint)?;
        for block in &self.blocks {
            hidden = block.forward_silu(&hidden)?;
        }
        self.conv_out.forward(&hidden)
    }
}
