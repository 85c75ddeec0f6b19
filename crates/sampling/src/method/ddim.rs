//! `DDIMScheduler`: formula 12 of arXiv:2010.02502, with η from the run's options.

use super::{Plan, places, read_final_alpha};
use crate::{
    Clamp, Level, Operand, Options, SamplingError, Step, Sum,
    class::Method,
    keys::Keys,
    numpy::real,
    options::Fraction,
    prediction::{Prediction, read_clamp},
    spacing::{Lowest, Rounding, Spacing, Visits},
    training::{DDPM_BETAS, LastAlpha, Training},
};

#[derive(Debug)]
pub(crate) struct Ddim {
    training: Training,
    final_alpha: f64,
    prediction: Prediction,
    clamp: Option<Clamp>,
    visits: Visits,
}

impl Ddim {
    pub(crate) fn read(keys: Keys<'_>) -> Result<Self, SamplingError> {
        let training = Training::read(keys, DDPM_BETAS, LastAlpha::Zero)?;
        let supported = [Prediction::Epsilon, Prediction::Velocity, Prediction::Sample];
        Ok(Self {
            final_alpha: read_final_alpha(keys, true, &training)?,
            prediction: Prediction::read(keys, &supported)?,
            clamp: read_clamp(keys, Some(true))?,
            visits: Visits {
                spacing: Spacing::read(keys, "leading")?,
                offset: keys.count("steps_offset", 0)?,
                training: training.len(),
                last: training.len(),
                rounding: Rounding::Whole,
                lowest: Lowest::Visited,
            },
            training,
        })
    }

    fn step(&self, timestep: usize, stride: usize, eta: f64) -> Step {
        let alpha = self.training.alpha(timestep);
        let previous = timestep.checked_sub(stride).map_or(self.final_alpha, |before| self.training.alpha(before));
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        // Formula 16.
        let variance = ((1.0 - previous) / (1.0 - alpha) * (1.0 - alpha / previous)).max(0.0);
        let deviation = eta * variance.sqrt();
        let direction = (1.0 - previous - deviation * deviation).max(0.0).sqrt();
        let denoised = self.prediction.denoised(signal, noise);
        let epsilon = self.prediction.noise(signal, noise);
        let kept = previous.sqrt();
        let fresh = (Operand::Noise, deviation);
        let sums = if self.clamp.is_some() {
            let next = Sum::of([
                (Operand::Sum(0), kept),
                (Operand::Sample, direction * epsilon.sample),
                (Operand::Output, direction * epsilon.output),
                fresh,
            ]);
            vec![denoised.sum(self.clamp), next]
        } else {
            vec![Sum::of([
                (Operand::Sample, kept.mul_add(denoised.sample, direction * epsilon.sample)),
                (Operand::Output, kept.mul_add(denoised.output, direction * epsilon.output)),
                fresh,
            ])]
        };
        Step {
            timestep: real(timestep),
            input_scale: 1.0,
            level: Level { signal, noise },
            denoised,
            noise: eta > 0.0,
            next: sums.len() - 1,
            sums,
            history: Vec::new(),
        }
    }
}

impl Method for Ddim {
    fn plan(&self, options: &Options) -> Result<Plan, SamplingError> {
        options.refuse_sigmas("DDIMScheduler")?;
        let begin = options.begin(Fraction::Dropped)?;
        let timesteps = places(&self.visits.timesteps(options.steps)?, &self.training, options.steps)?;
        let stride = self.training.len() / options.steps;
        let steps = timesteps.iter().skip(begin).map(|timestep| self.step(*timestep, stride, options.eta));
        Ok(Plan { steps: steps.collect(), sigmas: Vec::new(), init_noise_sigma: 1.0 })
    }
}
