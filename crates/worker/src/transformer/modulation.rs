//! Adaptive layer norms: shift, scale and gate of a block are functions of the timestep (DiT, arXiv 2212.09748).

use tch::Tensor;

use crate::{
    nn::Linear,
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// A linear layer whose output is so many vectors, one for each part that it modulates.
#[derive(Debug)]
pub struct Modulation {
    linear: Linear,
    count: i64,
}

impl Modulation {
    /// `scope` is the linear layer's own: `norm1.linear` in most networks, `img_mod.1` in Qwen-Image's.
    pub fn load(scope: &Scope<'_>, width: i64, count: i64, bias: bool) -> Result<Self, WeightsError> {
        Ok(Self { linear: Linear::load(scope, width, count * width, bias)?, count })
    }

    /// `conditioning` (B, D), the SiLU of the timestep's embedding → vectors (B, 1, D) in the checkpoint's order.
    pub fn forward<const COUNT: usize>(&self, conditioning: &Tensor) -> Result<[Tensor; COUNT], TorchError> {
        let parts = self.linear.forward(conditioning)?.f_unsqueeze(1)?.f_chunk(self.count, -1)?;
        let found = parts.len();
        parts.try_into().map_err(|_| TorchError::Other(format!("a modulation has {found} parts where {COUNT} belong")))
    }
}

/// Layer norm over the last dimension without parameters of its own.
pub fn norm(input: &Tensor, eps: f64) -> Result<Tensor, TorchError> {
    let features = input.size().last().copied().unwrap_or(1);
    Ok(input.f_layer_norm([features], None::<&Tensor>, None::<&Tensor>, eps, true)?)
}

/// x · (1 + scale) + shift. `hidden` (B, L, D), `shift` and `scale` (B, 1, D).
pub fn modulate(hidden: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor, TorchError> {
    Ok(hidden.f_mul(&scale.f_add_scalar(1.0)?)?.f_add(shift)?)
}
