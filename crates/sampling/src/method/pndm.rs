//! `PNDMScheduler` without its Runge-Kutta start: linear multistep on the model's outputs. The second timestep is
//! asked for twice, so that a run of n steps calls the model n + 1 times.

use super::{Plan, places, read_final_alpha};
use crate::{
    Level, Operand, Options, SamplingError, Step, Sum,
    class::Method,
    keys::Keys,
    numpy::real,
    options::Fraction,
    prediction::Prediction,
    spacing::{Lowest, Rounding, Spacing, Visits},
    training::{DDPM_BETAS, LastAlpha, Training},
};

#[derive(Debug)]
pub(crate) struct Pndm {
    training: Training,
    final_alpha: f64,
    prediction: Prediction,
    visits: Visits,
}

impl Pndm {
    pub(crate) fn read(keys: Keys<'_>) -> Result<Self, SamplingError> {
        if !keys.flag("skip_prk_steps", false)? {
            return Err(keys.wrong("skip_prk_steps", "only true is supported, as Stable Diffusion's folders have it"));
        }
        keys.refuse("rescale_betas_zero_snr", "this class does not have it")?;
        let training = Training::read(keys, DDPM_BETAS, LastAlpha::Zero)?;
        Ok(Self {
            final_alpha: read_final_alpha(keys, false, &training)?,
            prediction: Prediction::read(keys, &[Prediction::Epsilon, Prediction::Velocity])?,
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

    /// From `timestep` down by `stride`, along `outputs`, which sum up to what the model is taken to have said.
    fn transfer(&self, from: usize, to: Option<usize>, sample: Operand, outputs: &[(Operand, f64)]) -> Sum {
        let alpha = self.training.alpha(from);
        let previous = to.map_or(self.final_alpha, |to| self.training.alpha(to));
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let epsilon = self.prediction.noise(signal, noise);
        // Formula 9 of arXiv:2202.09778, in ᾱ.
        let per_epsilon = -(previous - alpha) / (alpha * (1.0 - previous).sqrt() + signal * noise * previous.sqrt());
        let kept = per_epsilon.mul_add(epsilon.sample, (previous / alpha).sqrt());
        let outputs = outputs.iter().map(|(operand, weight)| (*operand, per_epsilon * epsilon.output * weight));
        Sum::of(std::iter::once((sample, kept)).chain(outputs))
    }

    /// The `call`-th call of the model.
    fn step(&self, call: usize, timestep: usize, stride: usize) -> Step {
        use Operand::{History, Output, Sample};
        let below = timestep.checked_sub(stride);
        let (sum, history) = match call {
            0 => (self.transfer(timestep, below, Sample, &[(Output, 1.0)]), vec![Output, Sample]),
            // The first step once more, from where it began, with the mean of both outputs.
            1 => {
                let mean = [(Output, 0.5), (History(0), 0.5)];
                (self.transfer(timestep + stride, Some(timestep), History(1), &mean), vec![History(0)])
            }
            // Adams-Bashforth of as many outputs as there are.
            2 => {
                let two = [(Output, 3.0 / 2.0), (History(0), -1.0 / 2.0)];
                (self.transfer(timestep, below, Sample, &two), vec![Output, History(0)])
            }
            3 => {
                let three = [(Output, 23.0 / 12.0), (History(0), -16.0 / 12.0), (History(1), 5.0 / 12.0)];
                (self.transfer(timestep, below, Sample, &three), vec![Output, History(0), History(1)])
            }
            _ => {
                let four = [
                    (Output, 55.0 / 24.0),
                    (History(0), -59.0 / 24.0),
                    (History(1), 37.0 / 24.0),
                    (History(2), -9.0 / 24.0),
                ];
                (self.transfer(timestep, below, Sample, &four), vec![Output, History(0), History(1)])
            }
        };
        let alpha = self.training.alpha(timestep);
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        Step {
            timestep: real(timestep),
            input_scale: 1.0,
            level: Level { signal, noise },
            denoised: self.prediction.denoised(signal, noise),
            noise: false,
            sums: vec![sum],
            next: 0,
            history,
        }
    }
}

impl Method for Pndm {
    fn plan(&self, options: &Options) -> Result<Plan, SamplingError> {
        options.refuse_sigmas("PNDMScheduler")?;
        let begin = options.begin(Fraction::Dropped)?;
        let mut timesteps = places(&self.visits.timesteps(options.steps)?, &self.training, options.steps)?;
        if let Some(second) = timesteps.get(1).copied() {
            timesteps.insert(1, second);
        }
        let stride = self.training.len() / options.steps;
        let calls = timesteps.iter().skip(begin).enumerate();
        let mut steps: Vec<Step> = calls.map(|(call, timestep)| self.step(call, *timestep, stride)).collect();
        if let Some(last) = steps.last_mut() {
            last.history.clear();
        }
        Ok(Plan { steps, sigmas: Vec::new(), init_noise_sigma: 1.0 })
    }
}
