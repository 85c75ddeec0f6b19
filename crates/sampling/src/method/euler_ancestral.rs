//! `EulerAncestralDiscreteScheduler`: an Euler step to less noise than wanted, and fresh noise on top.

use super::{
    Plan,
    euler::{init_noise_sigma, read_visits, toward, unscaled_step},
};
use crate::{
    Operand, Options, SamplingError, Sum, Term,
    class::Method,
    keys::Keys,
    numpy::single,
    options::Fraction,
    prediction::Prediction,
    sigmas::at_timesteps,
    spacing::Visits,
    training::{DDPM_BETAS, LastAlpha, Training},
};

#[derive(Debug)]
pub(crate) struct EulerAncestral {
    training: Training,
    prediction: Prediction,
    visits: Visits,
}

impl EulerAncestral {
    pub(crate) fn read(keys: Keys<'_>) -> Result<Self, SamplingError> {
        let training = Training::read(keys, DDPM_BETAS, LastAlpha::Tiny)?;
        Ok(Self {
            visits: read_visits(keys, &training)?,
            training,
            prediction: Prediction::read(keys, &[Prediction::Epsilon, Prediction::Velocity])?,
        })
    }

    fn next(&self, from: f64, to: f64) -> Sum {
        // σ_down² = σ_to² − σ_up² = σ_to⁴ / σ_from²
        let down = to * to / from;
        let up = to * ((from - to) * (from + to)).max(0.0).sqrt() / from;
        let mut next = toward(self.prediction, from, down);
        if up > 0.0 {
            next.terms.push(Term { operand: Operand::Noise, weight: up });
        }
        next
    }
}

impl Method for EulerAncestral {
    fn plan(&self, options: &Options) -> Result<Plan, SamplingError> {
        options.refuse_sigmas("EulerAncestralDiscreteScheduler")?;
        let begin = options.begin(Fraction::Dropped)?;
        let timesteps = self.visits.timesteps(options.steps)?;
        let mut sigmas = at_timesteps(&self.training.sigmas(), &timesteps);
        sigmas.push(0.0);
        let sigmas: Vec<f64> = sigmas.into_iter().map(single).collect();
        let step = |index: usize| {
            let (from, to) = (sigmas[index], sigmas[index + 1]);
            unscaled_step(timesteps[index], from, self.prediction, true, self.next(from, to))
        };
        Ok(Plan {
            steps: (begin..timesteps.len()).map(step).collect(),
            init_noise_sigma: init_noise_sigma(&sigmas, self.visits.spacing),
            sigmas: sigmas[begin..].to_vec(),
        })
    }
}
