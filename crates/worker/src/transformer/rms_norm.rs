//! Root mean square normalisation over the last dimension (arXiv 1910.07467).

use tch::Tensor;

use crate::{
    torch::TorchError,
    weights::{Scope, WeightsError},
};

#[derive(Debug)]
pub struct RmsNorm {
    /// (features)
    weight: Tensor,
    features: i64,
    eps: f64,
}

impl RmsNorm {
    /// Takes `weight` (features).
    pub fn load(scope: &Scope<'_>, features: i64, eps: f64) -> Result<Self, WeightsError> {
        Ok(Self { weight: scope.take("weight", &[features])?, features, eps })
    }

    /// (…, features) → the same shape and kind; the mean is taken in f32.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        Ok(input.f_rms_norm([self.features], Some(&self.weight), self.eps)?)
    }
}
