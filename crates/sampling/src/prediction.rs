//! What a model's output means, as weights for the finished latents x₀.

use crate::{Clamp, Denoised, SamplingError, keys::Keys};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prediction {
    /// The noise ε.
    Epsilon,
    /// v = α·ε − σ·x₀, Salimans and Ho 2022, arXiv:2202.00512.
    Velocity,
    /// x₀ itself.
    Sample,
    /// ε − x₀, for latents (1 − σ)·x₀ + σ·ε.
    Flow,
}

const NAMES: [(&str, Prediction); 4] = [
    ("epsilon", Prediction::Epsilon),
    ("v_prediction", Prediction::Velocity),
    ("sample", Prediction::Sample),
    ("flow_prediction", Prediction::Flow),
];

impl Prediction {
    /// `prediction_type`, of those that the class supports.
    pub(crate) fn read(keys: Keys<'_>, supported: &[Self]) -> Result<Self, SamplingError> {
        let choices: Vec<_> = NAMES.into_iter().filter(|(_, prediction)| supported.contains(prediction)).collect();
        keys.choice("prediction_type", "epsilon", &choices)
    }

    /// x₀ for latents α·x₀ + σ·ε.
    pub(crate) fn denoised(self, alpha: f64, sigma: f64) -> Denoised {
        let (sample, output) = match self {
            Self::Epsilon => (1.0 / alpha, -sigma / alpha),
            Self::Velocity => (alpha, -sigma),
            Self::Sample => (0.0, 1.0),
            Self::Flow => (1.0, -sigma),
        };
        Denoised { sample, output }
    }

    /// ε for the same latents.
    pub(crate) fn noise(self, alpha: f64, sigma: f64) -> Denoised {
        let (sample, output) = match self {
            Self::Epsilon => (0.0, 1.0),
            Self::Velocity => (sigma, alpha),
            Self::Sample => (1.0 / sigma, -alpha / sigma),
            Self::Flow => (1.0, alpha),
        };
        Denoised { sample, output }
    }

    /// x₀ for latents x₀ + σ·ε, of a model that sees them divided by √(σ² + 1).
    pub(crate) fn denoised_unscaled(self, sigma: f64) -> Denoised {
        let scale = sigma.mul_add(sigma, 1.0).sqrt();
        let (sample, output) = match self {
            Self::Epsilon | Self::Flow => (1.0, -sigma),
            Self::Velocity => (1.0 / (scale * scale), -sigma / scale),
            Self::Sample => (0.0, 1.0),
        };
        Denoised { sample, output }
    }
}

/// `thresholding` and, for classes that have it, `clip_sample` with the class's default.
pub(crate) fn read_clamp(keys: Keys<'_>, clips: Option<bool>) -> Result<Option<Clamp>, SamplingError> {
    if keys.flag("thresholding", false)? {
        let ratio = keys.positive("dynamic_thresholding_ratio", 0.995)?;
        if ratio > 1.0 {
            return Err(keys.wrong("dynamic_thresholding_ratio", "it must be at most 1"));
        }
        return Ok(Some(Clamp::Dynamic { ratio, most: keys.positive("sample_max_value", 1.0)? }));
    }
    match clips {
        Some(default) if keys.flag("clip_sample", default)? => {
            Ok(Some(Clamp::Range(keys.positive("clip_sample_range", 1.0)?)))
        }
        Some(_) | None => Ok(None),
    }
}
