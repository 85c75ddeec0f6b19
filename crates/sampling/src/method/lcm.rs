//! `LCMScheduler`: x₀ at each step, and noise again for all but the last.

use super::{Plan, read_final_alpha};
use crate::{
    Clamp, Level, Operand, Options, SamplingError, Step, Sum,
    class::Method,
    keys::Keys,
    numpy::{real, whole},
    options::Fraction,
    prediction::{Prediction, read_clamp},
    training::{BetaDefaults, LastAlpha, Training},
};

const BETAS: BetaDefaults = BetaDefaults { start: 0.00085, end: 0.012, schedule: "scaled_linear" };
/// The standard deviation of the data, as the boundary condition has it.
const SIGMA_DATA: f64 = 0.5;

#[derive(Debug)]
pub(crate) struct Lcm {
    training: Training,
    prediction: Prediction,
    clamp: Option<Clamp>,
    /// Of the distillation: the timesteps that the model knows are multiples of T / this, less one.
    original_steps: usize,
    timestep_scaling: f64,
}

impl Lcm {
    pub(crate) fn read(keys: Keys<'_>) -> Result<Self, SamplingError> {
        let training = Training::read(keys, BETAS, LastAlpha::Zero)?;
        // Read to be checked; no timestep is below the first.
        read_final_alpha(keys, true, &training)?;
        let original_steps = keys.count("original_inference_steps", 50)?;
        if original_steps == 0 || original_steps > training.len() {
            return Err(keys.wrong("original_inference_steps", format!("it must be from 1 to {}", training.len())));
        }
        let supported = [Prediction::Epsilon, Prediction::Velocity, Prediction::Sample];
        Ok(Self {
            prediction: Prediction::read(keys, &supported)?,
            clamp: read_clamp(keys, Some(false))?,
            original_steps,
            timestep_scaling: keys.positive("timestep_scaling", 10.0)?,
            training,
        })
    }

    /// Every so many of the distillation's timesteps, from the highest.
    fn timesteps(&self, steps: usize) -> Result<Vec<usize>, SamplingError> {
        if steps > self.original_steps {
            let most = self.original_steps;
            let reason = format!("`original_inference_steps` is {most}, and a run can take no more");
            return Err(SamplingError::Steps { steps, reason });
        }
        let stride = self.training.len() / self.original_steps;
        let every = real(self.original_steps) / real(steps);
        Ok((0..steps).map(|i| (self.original_steps - whole(real(i) * every)) * stride - 1).collect())
    }

    fn step(&self, timestep: usize, next: Option<usize>) -> Step {
        let alpha = self.training.alpha(timestep);
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let denoised = self.prediction.denoised(signal, noise);
        // The boundary condition: at timestep 0 the answer is the sample itself.
        let scaled = real(timestep) * self.timestep_scaling;
        let variance = scaled.mul_add(scaled, SIGMA_DATA * SIGMA_DATA);
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / variance, scaled / variance.sqrt());
        let (kept, fresh) = next.map_or((1.0, 0.0), |next| {
            let alpha = self.training.alpha(next);
            (alpha.sqrt(), (1.0 - alpha).sqrt())
        });
        let fresh = (Operand::Noise, fresh);
        let sums = if self.clamp.is_some() {
            let next = Sum::of([(Operand::Sum(0), kept * out), (Operand::Sample, kept * skip), fresh]);
            vec![denoised.sum(self.clamp), next]
        } else {
            let sample = kept * out.mul_add(denoised.sample, skip);
            vec![Sum::of([(Operand::Sample, sample), (Operand::Output, kept * out * denoised.output), fresh])]
        };
        Step {
            timestep: real(timestep),
            input_scale: 1.0,
            level: Level { signal, noise },
            denoised,
            noise: next.is_some(),
            next: sums.len() - 1,
            sums,
            history: Vec::new(),
        }
    }
}

impl Method for Lcm {
    fn plan(&self, options: &Options) -> Result<Plan, SamplingError> {
        options.refuse_sigmas("LCMScheduler")?;
        let begin = options.begin(Fraction::Dropped)?;
        let timesteps = self.timesteps(options.steps)?;
        let step = |index: usize| self.step(timesteps[index], timesteps.get(index + 1).copied());
        Ok(Plan { steps: (begin..timesteps.len()).map(step).collect(), sigmas: Vec::new(), init_noise_sigma: 1.0 })
    }
}
