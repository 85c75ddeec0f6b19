//! What a run asks of its sampler, beside what the model folder says.

use crate::{
    SamplingError,
    numpy::{linspace, real, whole},
};

/// How a run goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Model calls of a full run. (`PNDMScheduler` makes one more.)
    pub steps: usize,
    pub start: Start,
    /// DDIM's η: 0 is deterministic, 1 is as noisy as DDPM. Other classes have no use for it.
    pub eta: f64,
    /// The noise levels to pass, highest first, in place of the class's own. Flow classes take one per step, before
    /// their shift; `EulerDiscreteScheduler` takes them as they are, with the last 0 included. Others refuse them.
    pub sigmas: Option<Vec<f64>>,
    /// For `use_dynamic_shifting`; left alone by models without.
    pub shift: Option<Shift>,
}

impl Options {
    /// All of a schedule's steps, from noise.
    #[must_use]
    pub const fn new(steps: usize) -> Self {
        Self { steps, start: Start::Noise, eta: 0.0, sigmas: None, shift: None }
    }

    /// The first of a schedule's `steps` indices to run.
    pub(crate) fn begin(&self, rounding: Fraction) -> Result<usize, SamplingError> {
        let Start::Strength(strength) = self.start else { return Ok(0) };
        if !(strength > 0.0 && strength <= 1.0) {
            return Err(SamplingError::Strength { strength });
        }
        let steps = real(self.steps);
        let begin = match rounding {
            Fraction::Dropped => self.steps - whole((steps * strength).min(steps)),
            Fraction::Run => whole(steps - (steps * strength).min(steps)),
        };
        if begin < self.steps { Ok(begin) } else { Err(self.leaves_nothing()) }
    }

    /// The error that a strength is too low for any step.
    pub(crate) fn leaves_nothing(&self) -> SamplingError {
        let strength = match self.start {
            Start::Noise => 1.0,
            Start::Strength(strength) => strength,
        };
        SamplingError::StrengthLeavesNothing { strength, steps: self.steps }
    }

    /// Refuses `sigmas`, for classes that have no use for them.
    pub(crate) fn refuse_sigmas(&self, class: &str) -> Result<(), SamplingError> {
        match self.sigmas {
            Some(_) => Err(SamplingError::Sigmas { reason: format!("{class} makes its own") }),
            None => Ok(()),
        }
    }

    /// `1, …, 1/steps`: what the pipelines of Flux, SD 3 and Qwen-Image hand to their schedulers.
    #[must_use]
    pub fn flow_sigmas(steps: usize) -> Vec<f64> {
        linspace(1.0, 1.0 / real(steps), steps)
    }
}

/// Where in the schedule a run begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// At the top, from noise times [`crate::Sampler::init_noise_sigma`].
    Noise,
    /// Image to image: 0 < strength ≤ 1. The first `(1 − strength) · steps` steps are left out, and the run begins with
    /// the picture's latents and noise, mixed as the first step's [`crate::Level`] says.
    ///
    /// As in diffusers, where n = steps · strength is no whole number, `FlowMatchEulerDiscreteScheduler` runs ⌈n⌉ steps
    /// and all others ⌊n⌋.
    Strength(f64),
}

/// How far a flow's noise levels are pushed up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shift {
    Mu(f64),
    /// Tokens of the picture, from which `base_shift`, `max_shift`, `base_image_seq_len` and `max_image_seq_len` make μ.
    SequenceLength(usize),
}

/// What becomes of the fraction of a step in `steps · strength`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fraction {
    /// `int(steps * strength)` steps run: the pipelines of SD, SDXL and Wan.
    Dropped,
    /// `int(steps - steps * strength)` are left out: those of Flux, SD 3 and Qwen-Image.
    Run,
}
