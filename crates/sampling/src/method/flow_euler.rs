//! `FlowMatchEulerDiscreteScheduler`: Euler steps along a straight flow, for latents (1 − σ)·x₀ + σ·ε.

use super::Plan;
use crate::{
    Level, Operand, Options, SamplingError, Step, Sum,
    class::Method,
    keys::Keys,
    numpy::{linspace, real, single},
    options::Fraction,
    prediction::Prediction,
    sigmas::{DynamicShift, FlowShift, Precision, Spread, check_given, read_spread, stretch_to},
    training,
};

#[derive(Debug)]
pub(crate) struct FlowEuler {
    train_timesteps: usize,
    shift: f64,
    dynamic: Option<DynamicShift>,
    terminal: Option<f64>,
    spread: Spread,
    /// Each step goes to x₀ and noises again.
    stochastic: bool,
}

impl FlowEuler {
    pub(crate) fn read(keys: Keys<'_>) -> Result<Self, SamplingError> {
        keys.refuse("invert_sigmas", "only false is supported")?;
        Ok(Self {
            train_timesteps: training::timesteps(keys)?,
            shift: keys.positive("shift", 1.0)?,
            dynamic: DynamicShift::read(keys)?,
            terminal: read_terminal(keys)?,
            spread: read_spread(keys)?,
            stochastic: keys.flag("stochastic_sampling", false)?,
        })
    }

    fn sigmas(&self, options: &Options) -> Result<Vec<f64>, SamplingError> {
        let steps = options.steps;
        let (mut sigmas, precision) = match &options.sigmas {
            Some(given) if given.len() == steps => {
                check_given(given, 1.0)?;
                (given.iter().copied().map(single).collect(), Precision::Single)
            }
            Some(given) => {
                return Err(SamplingError::Sigmas { reason: format!("{} for {steps} steps", given.len()) });
            }
            None => (self.own_sigmas(steps), Precision::Double),
        };
        let shift = match self.dynamic {
            Some(dynamic) => dynamic.resolve(options)?,
            None => FlowShift::Static(self.shift),
        };
        for sigma in &mut sigmas {
            *sigma = shift.apply(*sigma, precision);
        }
        if let Some(terminal) = self.terminal {
            stretch_to(&mut sigmas, terminal, precision);
        }
        let spread = self.spread.between(sigmas[0], sigmas[steps - 1], steps);
        Ok(spread.unwrap_or(sigmas).into_iter().map(single).collect())
    }

    /// From the training's highest to its lowest, which a static shift has moved already: it acts twice, as in the
    /// reference.
    fn own_sigmas(&self, steps: usize) -> Vec<f64> {
        let train = real(self.train_timesteps);
        let ends = [1.0, single(1.0 / train)].map(|sigma| match self.dynamic {
            Some(_) => sigma,
            None => FlowShift::Static(self.shift).apply(sigma, Precision::Single),
        });
        linspace(ends[0] * train, ends[1] * train, steps).into_iter().map(|timestep| timestep / train).collect()
    }
}

impl Method for FlowEuler {
    fn plan(&self, options: &Options) -> Result<Plan, SamplingError> {
        let begin = options.begin(Fraction::Run)?;
        let mut sigmas = self.sigmas(options)?;
        sigmas.push(0.0);
        let train = real(self.train_timesteps);
        let step = |index: usize| {
            let (from, to) = (sigmas[index], sigmas[index + 1]);
            let denoised = Prediction::Flow.denoised(1.0 - from, from);
            let next = if self.stochastic {
                let kept = 1.0 - to;
                Sum::of([(Operand::Sample, kept), (Operand::Output, -kept * from), (Operand::Noise, to)])
            } else {
                Sum::of([(Operand::Sample, 1.0), (Operand::Output, to - from)])
            };
            Step {
                timestep: single(from * train),
                input_scale: 1.0,
                level: Level { signal: 1.0 - from, noise: from },
                denoised,
                noise: self.stochastic,
                sums: vec![next],
                next: 0,
                history: Vec::new(),
            }
        };
        let steps = (begin..options.steps).map(step).collect();
        Ok(Plan { steps, sigmas: sigmas[begin..].to_vec(), init_noise_sigma: 1.0 })
    }
}

/// `shift_terminal`; 0 is none.
pub(super) fn read_terminal(keys: Keys<'_>) -> Result<Option<f64>, SamplingError> {
    let terminal = keys.number("shift_terminal", 0.0)?;
    if (0.0..1.0).contains(&terminal) {
        Ok(Some(terminal).filter(|terminal| *terminal > 0.0))
    } else {
        Err(keys.wrong("shift_terminal", "it must be from 0 to below 1"))
    }
}
