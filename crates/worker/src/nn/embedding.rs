//! Numbers as vectors: sinusoids of timesteps and sizes, and the small networks after them.
//!
//! Source: diffusers 0.42.1, `models/embeddings.py`.

use tch::{Device, Kind, Tensor};

use super::Linear;
use crate::{
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// The longest period of a sinusoid.
const MAX_PERIOD: f64 = 10_000.0;

/// Sinusoids of a number at frequencies from 1 down to 1 / 10 000.
#[derive(Debug)]
pub struct Sinusoid {
    /// (dim / 2) in f32
    frequencies: Tensor,
    /// The cosines first.
    flip_sin_to_cos: bool,
    /// A column of zeros at the end, where the dimension is odd.
    is_odd: bool,
}

impl Sinusoid {
    /// `freq_shift` of 1 makes the last frequency exactly 1 / 10 000, 0 stops one short of it.
    pub fn new(dim: i64, flip_sin_to_cos: bool, freq_shift: f64, device: Device) -> Result<Self, TorchError> {
        #[expect(clippy::cast_precision_loss, reason = "a dimension is small")]
        let steps = (dim / 2) as f64 - freq_shift;
        // In f32 and in this order, so that the last bit is the reference's too.
        let exponents = Tensor::f_arange(dim / 2, (Kind::Float, device))?.f_mul_scalar(-MAX_PERIOD.ln())?;
        let frequencies = exponents.f_div_scalar(steps)?.f_exp()?;
        Ok(Self { frequencies, flip_sin_to_cos, is_odd: dim % 2 == 1 })
    }

    /// (N) of any kind → (N, dim) in f32
    pub fn forward(&self, numbers: &Tensor) -> Result<Tensor, TorchError> {
        self.waves(&numbers.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(&self.frequencies)?)
    }

    /// As [`Self::forward`], with angles so many times as large, multiplied in this order. For timesteps from 0 to 1.
    pub fn forward_scaled(&self, numbers: &Tensor, scale: f64) -> Result<Tensor, TorchError> {
        let angles = numbers.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(&self.frequencies)?;
        self.waves(&angles.f_mul_scalar(scale)?)
    }

    fn waves(&self, angles: &Tensor) -> Result<Tensor, TorchError> {
        let (sin, cos) = (angles.f_sin()?, angles.f_cos()?);
        let pair = if self.flip_sin_to_cos { [cos, sin] } else { [sin, cos] };
        let embedding = Tensor::f_cat(&pair, 1)?;
        if self.is_odd { Ok(embedding.f_constant_pad_nd([0, 1])?) } else { Ok(embedding) }
    }

    /// One number → (1, dim) in f32
    pub fn of(&self, number: f64) -> Result<Tensor, TorchError> {
        self.forward(&Tensor::f_full([1], number, (Kind::Float, self.frequencies.device()))?)
    }
}

/// A linear layer, SiLU, a linear layer: what turns sinusoids into what the blocks are conditioned with.
#[derive(Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    cond_proj: Option<Linear>,
}

impl TimestepEmbedding {
    /// `condition` is the size of a second input that is projected and added to the first.
    pub fn load(
        scope: &Scope<'_>,
        features_in: i64,
        features_out: i64,
        condition: Option<i64>,
    ) -> Result<Self, WeightsError> {
        let cond_proj =
            condition.map(|size| Linear::load(&scope.at("cond_proj"), size, features_in, false)).transpose()?;
        Ok(Self {
            linear_1: Linear::load(&scope.at("linear_1"), features_in, features_out, true)?,
            linear_2: Linear::load(&scope.at("linear_2"), features_out, features_out, true)?,
            cond_proj,
        })
    }

    /// `sample` (B, in), `condition` (B, condition) → (B, out)
    ///
    /// # Errors
    /// A condition for a network that has no place for one.
    pub fn forward(&self, sample: &Tensor, condition: Option<&Tensor>) -> Result<Tensor, TorchError> {
        let mut hidden = match (condition, &self.cond_proj) {
            (None, _) => self.linear_1.forward(sample)?,
            (Some(condition), Some(project)) => self.linear_1.forward(&project.forward(condition)?.f_add(sample)?)?,
            (Some(_), None) => {
                return Err(TorchError::Other("a timestep condition for a network without time_cond_proj_dim".into()));
            }
        };
        self.linear_2.forward(&hidden.f_silu_()?)
    }
}

/// Guidance scales as a condition for distilled networks (latent consistency models): (B) → (B, dim) in f32. The
/// pipelines pass the guidance scale less 1.
pub fn guidance_embedding(scales: &Tensor, dim: i64) -> Result<Tensor, TorchError> {
    Sinusoid::new(dim, false, 1.0, scales.device())?.forward(&scales.f_to_kind(Kind::Float)?.f_mul_scalar(1000.0)?)
}
