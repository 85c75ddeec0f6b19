//! What the two multistep solvers share: their timesteps, and noise levels on the scale of half the log-SNR.

use crate::{
    Level, SamplingError,
    keys::Keys,
    prediction::Prediction,
    sigmas::{LogSigmas, Spread, read_spread},
    spacing::{Lowest, Rounding, Spacing, Visits},
    training::Training,
};

/// What the latents are made of at a noise level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mixture {
    /// α² + σ'² = 1, with σ = σ'/α.
    VariancePreserving,
    /// (1 − σ)·x₀ + σ·ε
    Flow,
}

/// A noise level as the solvers see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) alpha: f64,
    pub(super) sigma: f64,
    /// ln(α/σ); +∞ without noise.
    pub(super) lambda: f64,
}

impl Mixture {
    pub(super) fn point(self, sigma: f64) -> Point {
        let (alpha, sigma) = match self {
            Self::VariancePreserving => {
                let alpha = 1.0 / sigma.mul_add(sigma, 1.0).sqrt();
                (alpha, sigma * alpha)
            }
            Self::Flow => (1.0 - sigma, sigma),
        };
        Point { alpha, sigma, lambda: alpha.ln() - sigma.ln() }
    }
}

impl Point {
    pub(super) fn level(self) -> Level {
        Level { signal: self.alpha, noise: self.sigma }
    }
}

/// The keys that both classes read alike.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) training: Training,
    pub(super) mixture: Mixture,
    pub(super) prediction: Prediction,
    pub(super) spread: Spread,
    pub(super) flow_shift: f64,
    pub(super) order: usize,
    pub(super) lower_order_final: bool,
    pub(super) spacing: Spacing,
    pub(super) offset: usize,
}

impl Common {
    pub(super) fn read(keys: Keys<'_>, training: Training) -> Result<Self, SamplingError> {
        let flow = keys.flag("use_flow_sigmas", false)?;
        let all = [Prediction::Epsilon, Prediction::Velocity, Prediction::Sample, Prediction::Flow];
        let prediction = Prediction::read(keys, &all)?;
        if prediction == Prediction::Flow && !flow {
            return Err(keys.wrong("prediction_type", "it needs `use_flow_sigmas: true`"));
        }
        let order = keys.count("solver_order", 2)?;
        if !(1..=3).contains(&order) {
            return Err(keys.wrong("solver_order", "it must be 1, 2 or 3"));
        }
        Ok(Self {
            training,
            mixture: if flow { Mixture::Flow } else { Mixture::VariancePreserving },
            prediction,
            spread: read_spread(keys)?,
            flow_shift: keys.positive("flow_shift", 1.0)?,
            order,
            lower_order_final: keys.flag("lower_order_final", true)?,
            spacing: Spacing::read(keys, "linspace")?,
            offset: keys.count("steps_offset", 0)?,
        })
    }

    /// `last`: as [`Visits`] has it.
    pub(super) fn timesteps(&self, steps: usize, last: usize) -> Result<Vec<f64>, SamplingError> {
        let visits = Visits {
            spacing: self.spacing,
            offset: self.offset,
            training: self.training.len(),
            last,
            rounding: Rounding::Whole,
            // Trailing has no point to leave out.
            lowest: if self.spacing == Spacing::Trailing { Lowest::Visited } else { Lowest::LeftOut },
        };
        visits.timesteps(steps)
    }

    /// `count` levels over the whole of the training's, with the timesteps that they belong to.
    pub(super) fn spread(&self, spread: Spread, count: usize) -> Option<(Vec<f64>, Vec<f64>)> {
        let own = self.training.sigmas();
        self.spread_between(spread, own[own.len() - 1], own[0], count)
    }

    pub(super) fn spread_between(
        &self,
        spread: Spread,
        highest: f64,
        lowest: f64,
        count: usize,
    ) -> Option<(Vec<f64>, Vec<f64>)> {
        let logs = LogSigmas::new(&self.training.sigmas());
        let sigmas = spread.between(highest, lowest, count)?;
        Some((sigmas.iter().map(|sigma| logs.timestep(*sigma)).collect(), sigmas))
    }
}

/// Of the distances back to earlier levels, in units of the step to come; `None` where a step has no length or no end,
/// and only a first-order step makes sense.
pub(super) fn ratios(from: Point, to: Point, earlier: &[Point]) -> Option<Vec<f64>> {
    let length = to.lambda - from.lambda;
    let ratios: Vec<f64> = earlier.iter().map(|point| (point.lambda - from.lambda) / length).collect();
    let apart = std::iter::once(&0.0).chain(&ratios).zip(&ratios).all(|(near, far)| far.is_finite() && far < near);
    (length.is_finite() && length > 0.0 && apart).then_some(ratios)
}
