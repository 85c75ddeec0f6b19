//! What stands between the two layers of a feed-forward block.

use serde::Deserialize;
use tch::Tensor;

use crate::torch::TorchError;

/// Named as in transformers' configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x · sigmoid(1.702 x)
    QuickGelu,
    Gelu,
    /// With the approximation by tanh.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    Relu,
    Silu,
}

impl Activation {
    pub fn apply(self, input: &Tensor) -> Result<Tensor, TorchError> {
        Ok(match self {
            Self::QuickGelu => input.f_mul_scalar(1.702)?.f_sigmoid()?.f_mul(input)?,
            Self::Gelu => input.f_gelu("none")?,
            Self::GeluNew => input.f_gelu("tanh")?,
            Self::Relu => input.f_relu()?,
            Self::Silu => input.f_silu()?,
        })
    }
}
