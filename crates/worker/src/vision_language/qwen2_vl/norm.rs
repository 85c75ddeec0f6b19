//! Root mean square norm.

use tch::{Kind, Tensor};

use crate::{
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// Divides by the root of the mean square, in f32; no mean is subtracted, and there is no bias.
#[derive(Debug)]
pub(super) struct RmsNorm {
    /// (features)
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub(super) fn load(scope: &Scope<'_>, features: i64, eps: f64) -> Result<Self, WeightsError> {
        Ok(Self { weight: scope.take("weight", &[features])?, eps })
    }

    /// (…, features) → the same shape
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let wide = input.f_to_kind(Kind::Float)?;
        let variance = wide.f_square()?.f_mean_dim([-1].as_slice(), true, None)?;
        let scaled = wide.f_mul(&variance.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        Ok(scaled.f_to_kind(input.f_kind()?)?.f_mul(&self.weight)?)
    }
}
