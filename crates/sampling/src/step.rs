//! One model call and what is made of it, as weighted sums.

use serde::{Deserialize, Serialize};

use crate::{SamplingError, bits};

/// One call of the model, and the sums that make the next latents of it.
///
/// Do `sums` in their order; then the latents are `sums[next]` and the remembered tensors are `history`, which replaces
/// the history before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What the model is told. A whole number for most classes; may be negative (`timestep_type: continuous`).
    #[serde(with = "bits")]
    pub timestep: f64,
    /// The model's input is the latents times this.
    #[serde(with = "bits")]
    pub input_scale: f64,
    /// How noisy the latents are before this step.
    pub level: Level,
    /// An estimate of the finished latents, for previews. Not clamped.
    pub denoised: Denoised,
    /// Whether to draw one normal tensor, of the latents' shape, from the run's generator. True even where its weight
    /// is 0, as in the last ancestral step: the generator then stands where the reference's does.
    pub noise: bool,
    pub sums: Vec<Sum>,
    /// Which sum is the next latents.
    pub next: usize,
    /// What to remember, newest first. Empty after the last step.
    pub history: Vec<Operand>,
}

/// `Σ weight · operand`, then clamped if asked for. Never empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    pub terms: Vec<Term>,
    pub clamp: Option<Clamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    pub operand: Operand,
    #[serde(with = "bits")]
    pub weight: f64,
}

/// A tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    /// The latents before this step, not scaled.
    Sample,
    /// What the model answered, after guidance.
    Output,
    /// A fresh draw; only where [`Step::noise`] says so.
    Noise,
    /// What the step before left in [`Step::history`].
    History(usize),
    /// An earlier sum of this step.
    Sum(usize),
}

/// The one thing about a step that is not linear.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Clamp {
    /// `clip_sample`: each value into −range … range.
    Range(#[serde(with = "bits")] f64),
    /// `thresholding`: for each picture of the batch, s = the `ratio`-quantile of the absolute values (interpolated
    /// linearly), itself clamped to 1 … `most`; values into −s … s, then divided by s.
    Dynamic {
        #[serde(with = "bits")]
        ratio: f64,
        #[serde(with = "bits")]
        most: f64,
    },
}

/// Latents as noisy as at some step: `signal · clean + noise · normal`. What diffusers calls `add_noise`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    #[serde(with = "bits")]
    pub signal: f64,
    #[serde(with = "bits")]
    pub noise: f64,
}

/// `sample · latents + output · model output`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Denoised {
    #[serde(with = "bits")]
    pub sample: f64,
    #[serde(with = "bits")]
    pub output: f64,
}

/// The tensors that a step starts from; `T` is a cheap handle, such as an `Rc`.
#[derive(Debug)]
pub struct Inputs<'a, T> {
    /// The latents, not scaled.
    pub sample: &'a T,
    /// What the model answered, after guidance.
    pub output: &'a T,
    /// A draw, where [`Step::noise`] asks for one.
    pub noise: Option<&'a T>,
    /// What [`Step::apply`] of the step before returned; empty before the first.
    pub history: &'a [T],
}

impl Step {
    /// Does the sums: the next latents, and the history for the next step. `combine` adds up weighted tensors and
    /// clamps the total.
    ///
    /// # Errors
    /// Those of `combine`, and a noise or history tensor that is missing.
    pub fn apply<T: Clone, E: From<SamplingError>>(
        &self,
        inputs: &Inputs<'_, T>,
        mut combine: impl FnMut(&[(T, f64)], Option<Clamp>) -> Result<T, E>,
    ) -> Result<(T, Vec<T>), E> {
        let mut sums: Vec<T> = Vec::with_capacity(self.sums.len());
        for sum in &self.sums {
            let weighted = |term: &Term| Ok((inputs.get(&sums, term.operand)?, term.weight));
            let terms = sum.terms.iter().map(weighted).collect::<Result<Vec<_>, SamplingError>>()?;
            sums.push(combine(&terms, sum.clamp)?);
        }
        let history = self.history.iter().map(|operand| inputs.get(&sums, *operand)).collect::<Result<_, _>>()?;
        Ok((inputs.get(&sums, Operand::Sum(self.next))?, history))
    }
}

impl<T: Clone> Inputs<'_, T> {
    fn get(&self, sums: &[T], operand: Operand) -> Result<T, SamplingError> {
        let tensor = match operand {
            Operand::Sample => Some(self.sample),
            Operand::Output => Some(self.output),
            Operand::Noise => self.noise,
            Operand::History(k) => self.history.get(k),
            Operand::Sum(k) => sums.get(k),
        };
        tensor.cloned().ok_or_else(|| SamplingError::State { reason: format!("the tensor {operand:?} is missing") })
    }
}

impl Sum {
    /// Without the terms that weigh nothing, unless nothing else is left.
    pub(crate) fn of(terms: impl IntoIterator<Item = (Operand, f64)>) -> Self {
        let all: Vec<Term> = terms.into_iter().map(|(operand, weight)| Term { operand, weight }).collect();
        let kept: Vec<Term> = all.iter().copied().filter(|term| term.weight != 0.0).collect();
        let terms = if kept.is_empty() { all.into_iter().take(1).collect() } else { kept };
        Self { terms, clamp: None }
    }
}

impl Denoised {
    /// As a sum, clamped.
    pub(crate) fn sum(self, clamp: Option<Clamp>) -> Sum {
        let sum = Sum::of([(Operand::Sample, self.sample), (Operand::Output, self.output)]);
        Sum { clamp, ..sum }
    }
}
