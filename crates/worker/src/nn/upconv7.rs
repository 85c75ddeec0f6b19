//! waifu2x's UpConv7: six convolutions without padding, then a transposed one that doubles the size.
//!
//! Source: nagadomi/waifu2x (MIT), `lib/srcnn.lua`, `upconv_7`. Fields are numbered as the checkpoint's keys.

use serde::Deserialize;
use tch::Tensor;

use crate::{
    nn::{Conv, Margins},
    torch::{self, Activation, TorchError},
    weights::{Weights, WeightsError},
};

/// What the network consumes on each side; where the picture ends, its last pixels are repeated.
pub const HALO: u32 = 7;

/// Channels between the convolutions.
const CHANNELS: [i64; 7] = [3, 16, 32, 64, 128, 128, 256];

/// `config.json` of a pack.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct UpConv7Config {
    pub scale: u32,
    pub pad: u32,
    pub leaky: f64,
    /// 0 to 3; absent for the network that only upscales.
    #[serde(default)]
    pub denoise: Option<u8>,
}

#[derive(Debug)]
pub struct UpConv7 {
    convs: Vec<Conv>,
    /// (256, 3, 4, 4)
    weight: Tensor,
    bias: Tensor,
    leaky: f64,
}

impl UpConv7 {
    pub fn load(config: &UpConv7Config, mut weights: Weights) -> Result<Self, WeightsError> {
        let convs = CHANNELS
            .windows(2)
            .enumerate()
            .map(|(i, pair)| Conv::load(&mut weights, &i.to_string(), pair[0], pair[1], 3, 0))
            .collect::<Result<_, _>>()?;
        let weight = weights.take("6.weight", &[256, 3, 4, 4])?;
        let bias = weights.take("6.bias", &[3])?;
        weights.finish()?;
        Ok(Self { convs, weight, bias, leaky: config.leaky })
    }

    /// See [`super::Network::forward`].
    pub fn forward(&self, input: &Tensor, margins: Margins) -> Result<Tensor, TorchError> {
        let repeat = |margin: u32| i64::from(HALO.saturating_sub(margin));
        let sides = [margins.left, margins.right, margins.top, margins.bottom].map(repeat);
        let mut hidden = torch::channels_last(&input.f_replication_pad2d(sides)?)?;
        for conv in &self.convs {
            hidden = conv.forward(&hidden, Activation::LeakyRelu(self.leaky))?;
        }
        Ok(hidden.f_conv_transpose2d(&self.weight, Some(&self.bias), [2, 2], [3, 3], [0, 0], 1, [1, 1])?)
    }
}
