//! A run's steps, and how far it has come.

use serde::{Deserialize, Serialize};

use crate::{Operand, Options, SamplingError, SchedulerConfig, Step, bits, method::Plan};

/// The steps of a run, all worked out, and the next of them. Serialised in the middle of a run it holds everything
/// about the sampler but the tensors, which are the caller's: the latents and as many as [`Self::history_len`] says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Saved")]
pub struct Sampler {
    steps: Vec<Step>,
    #[serde(with = "bits::list")]
    sigmas: Vec<f64>,
    #[serde(with = "bits")]
    init_noise_sigma: f64,
    position: usize,
}

/// What was saved, before anyone looked at it.
#[derive(Deserialize)]
struct Saved {
    steps: Vec<Step>,
    #[serde(with = "bits::list")]
    sigmas: Vec<f64>,
    #[serde(with = "bits")]
    init_noise_sigma: f64,
    position: usize,
}

impl Sampler {
    /// # Errors
    /// A class or key that is not supported, 0 steps or too many, a strength that leaves none, sigmas that do not fit,
    /// a shift that is missing, or a schedule whose coefficients are not finite.
    pub fn new(config: &SchedulerConfig, options: &Options) -> Result<Self, SamplingError> {
        if options.steps == 0 {
            return Err(SamplingError::NoSteps);
        }
        if !(0.0..=1.0).contains(&options.eta) {
            return Err(SamplingError::Eta { eta: options.eta });
        }
        let Plan { steps, sigmas, init_noise_sigma } = config.class()?.read(config.keys())?.plan(options)?;
        if steps.is_empty() {
            return Err(options.leaves_nothing());
        }
        let this = Self { steps, sigmas, init_noise_sigma, position: 0 };
        this.check_numbers()?;
        this.check_operands()?;
        Ok(this)
    }

    /// One per model call, from the first that runs.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What each step tells the model.
    pub fn timesteps(&self) -> Vec<f64> {
        self.steps.iter().map(|step| step.timestep).collect()
    }

    /// Noise levels from the first step that runs, with the one that the last step ends at. Empty for classes that
    /// count in ᾱ: DDIM, LCM and PNDM.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// A run from noise starts with a normal tensor times this.
    pub fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    /// How many steps are done.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The step to do now; `None` at the end.
    pub fn current(&self) -> Option<&Step> {
        self.steps.get(self.position)
    }

    /// The current step is done.
    pub fn advance(&mut self) {
        self.position = (self.position + 1).min(self.steps.len());
    }

    /// How many tensors the current step expects in its history.
    pub fn history_len(&self) -> usize {
        self.history_before(self.position)
    }

    fn history_before(&self, index: usize) -> usize {
        index.checked_sub(1).and_then(|before| self.steps.get(before)).map_or(0, |step| step.history.len())
    }

    fn check_numbers(&self) -> Result<(), SamplingError> {
        for (index, step) in self.steps.iter().enumerate() {
            let weights = step.sums.iter().flat_map(|sum| &sum.terms).map(|term| term.weight);
            let others = [step.timestep, step.input_scale, step.level.signal, step.level.noise, step.denoised.sample];
            if !weights.chain(others).chain([step.denoised.output]).all(f64::is_finite) {
                let hint = "`prediction_type` may not fit `rescale_betas_zero_snr` or the betas".to_owned();
                return Err(SamplingError::NotFinite { index, timestep: step.timestep, hint });
            }
        }
        Ok(())
    }

    /// Whether each operand exists where it is used.
    fn check_operands(&self) -> Result<(), SamplingError> {
        for (index, step) in self.steps.iter().enumerate() {
            let remembered = self.history_before(index);
            let exists = |operand: Operand, sums: usize| match operand {
                Operand::Sample | Operand::Output => true,
                Operand::Noise => step.noise,
                Operand::History(k) => k < remembered,
                Operand::Sum(k) => k < sums,
            };
            let sums = step.sums.iter().enumerate();
            let whole = sums.clone().all(|(at, sum)| sum.terms.iter().all(|term| exists(term.operand, at)))
                && sums.clone().all(|(_, sum)| !sum.terms.is_empty())
                && step.history.iter().all(|operand| exists(*operand, step.sums.len()))
                && step.next < step.sums.len();
            if !whole {
                return Err(SamplingError::State { reason: format!("step {index} uses a tensor that is not there") });
            }
        }
        Ok(())
    }
}

impl TryFrom<Saved> for Sampler {
    type Error = SamplingError;

    fn try_from(saved: Saved) -> Result<Self, Self::Error> {
        let Saved { steps, sigmas, init_noise_sigma, position } = saved;
        if steps.is_empty() || position > steps.len() {
            let reason = format!("it stands at step {position} of {}", steps.len());
            return Err(SamplingError::State { reason });
        }
        let this = Self { steps, sigmas, init_noise_sigma, position };
        this.check_numbers()?;
        this.check_operands()?;
        Ok(this)
    }
}
