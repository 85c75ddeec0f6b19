//! `EulerDiscreteScheduler`: one Euler step of the probability flow per model call, for latents x₀ + σ·ε.

use super::{FinalSigma, Plan};
use crate::{
    Level, Operand, Options, SamplingError, Step, Sum,
    class::Method,
    keys::Keys,
    numpy::{linspace_single, real, single},
    options::Fraction,
    prediction::Prediction,
    sigmas::{LogSigmas, Spread, at_timesteps, check_given, read_spread},
    spacing::{Lowest, Rounding, Spacing, Visits},
    training::{DDPM_BETAS, LastAlpha, Training},
};

#[derive(Debug)]
pub(crate) struct Euler {
    training: Training,
    prediction: Prediction,
    visits: Visits,
    spread: Spread,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    /// σ between the training's, instead of along the timesteps.
    log_linear: bool,
    /// Timesteps are ¼·ln σ.
    continuous: bool,
    last: FinalSigma,
}

impl Euler {
    pub(crate) fn read(keys: Keys<'_>) -> Result<Self, SamplingError> {
        let training = Training::read(keys, DDPM_BETAS, LastAlpha::Tiny)?;
        let supported = [Prediction::Epsilon, Prediction::Velocity, Prediction::Sample];
        let prediction = Prediction::read(keys, &supported)?;
        let continuous = keys.choice("timestep_type", "discrete", &[("discrete", false), ("continuous", true)])?;
        let (sigma_min, sigma_max) = read_range(keys)?;
        Ok(Self {
            visits: read_visits(keys, &training)?,
            training,
            prediction,
            spread: read_spread(keys)?,
            sigma_min,
            sigma_max,
            log_linear: keys.choice("interpolation_type", "linear", &[("linear", false), ("log_linear", true)])?,
            // The reference keeps its own timesteps for other predictions.
            continuous: continuous && prediction == Prediction::Velocity,
            last: FinalSigma::read(keys)?,
        })
    }

    /// Timesteps, and one σ more than that at least.
    fn schedule(&self, options: &Options) -> Result<(Vec<f64>, Vec<f64>), SamplingError> {
        let own = self.training.sigmas();
        let logs = LogSigmas::new(&own);
        let on_logs = |sigmas: &[f64]| sigmas.iter().map(|sigma| logs.timestep(*sigma)).collect::<Vec<_>>();
        let (timesteps, sigmas) = if let Some(given) = &options.sigmas {
            let given = given_sigmas(given, options.steps)?;
            (on_logs(&given[..options.steps]), given)
        } else {
            let mut timesteps = self.visits.timesteps(options.steps)?;
            let mut sigmas = if self.log_linear {
                let (highest, lowest) = (own[own.len() - 1].ln(), own[0].ln());
                linspace_single(highest, lowest, options.steps + 1).into_iter().map(|log| single(log.exp())).collect()
            } else {
                at_timesteps(&own, &timesteps)
            };
            let highest = self.sigma_max.unwrap_or(sigmas[0]);
            let lowest = self.sigma_min.unwrap_or(sigmas[sigmas.len() - 1]);
            if let Some(spread) = self.spread.between(highest, lowest, options.steps) {
                timesteps = on_logs(&spread);
                sigmas = spread;
            }
            sigmas.push(self.last.sigma(own[0]));
            (timesteps, sigmas.into_iter().map(single).collect())
        };
        let timesteps = if self.continuous {
            sigmas[..options.steps].iter().map(|sigma| single(0.25 * single(sigma.ln()))).collect()
        } else {
            timesteps.into_iter().map(single).collect()
        };
        Ok((timesteps, sigmas))
    }
}

impl Method for Euler {
    fn plan(&self, options: &Options) -> Result<Plan, SamplingError> {
        let begin = options.begin(Fraction::Dropped)?;
        let (timesteps, sigmas) = self.schedule(options)?;
        let step = |index: usize| {
            let (from, to) = (sigmas[index], sigmas[index + 1]);
            let next = toward(self.prediction, from, to);
            unscaled_step(timesteps[index], from, self.prediction, false, next)
        };
        Ok(Plan {
            steps: (begin..timesteps.len()).map(step).collect(),
            init_noise_sigma: init_noise_sigma(&sigmas, self.visits.spacing),
            sigmas: sigmas[begin..].to_vec(),
        })
    }
}

/// The spacing of the two Euler classes.
pub(super) fn read_visits(keys: Keys<'_>, training: &Training) -> Result<Visits, SamplingError> {
    Ok(Visits {
        spacing: Spacing::read(keys, "linspace")?,
        offset: keys.count("steps_offset", 0)?,
        training: training.len(),
        last: training.len(),
        rounding: Rounding::Fractions,
        lowest: Lowest::Visited,
    })
}

/// A step of a model whose input is scaled and whose latents are not.
pub(super) fn unscaled_step(timestep: f64, sigma: f64, prediction: Prediction, noise: bool, next: Sum) -> Step {
    Step {
        timestep,
        input_scale: 1.0 / sigma.mul_add(sigma, 1.0).sqrt(),
        level: Level { signal: 1.0, noise: sigma },
        denoised: prediction.denoised_unscaled(sigma),
        noise,
        sums: vec![next],
        next: 0,
        history: Vec::new(),
    }
}

/// x + (x − x₀)/σ · (σ' − σ)
pub(super) fn toward(prediction: Prediction, sigma: f64, to: f64) -> Sum {
    let denoised = prediction.denoised_unscaled(sigma);
    let stride = (to - sigma) / sigma;
    let sample = (1.0 - denoised.sample).mul_add(stride, 1.0);
    Sum::of([(Operand::Sample, sample), (Operand::Output, -denoised.output * stride)])
}

pub(super) fn init_noise_sigma(sigmas: &[f64], spacing: Spacing) -> f64 {
    let highest = sigmas.iter().copied().fold(0.0, f64::max);
    match spacing {
        Spacing::Linspace | Spacing::Trailing => highest,
        Spacing::Leading => single(single(single(highest * highest) + 1.0).sqrt()),
    }
}

/// `sigma_min` and `sigma_max`.
pub(super) fn read_range(keys: Keys<'_>) -> Result<(Option<f64>, Option<f64>), SamplingError> {
    let positive = |key: &str| {
        let sigma = keys.optional_number(key)?;
        if sigma.is_none_or(|sigma| sigma > 0.0) { Ok(sigma) } else { Err(keys.wrong(key, "it must be above 0")) }
    };
    let (min, max) = (positive("sigma_min")?, positive("sigma_max")?);
    if let (Some(lowest), Some(highest)) = (min, max)
        && lowest >= highest
    {
        return Err(keys.wrong("sigma_min", format!("it must be below `sigma_max`, {highest}")));
    }
    Ok((min, max))
}

/// `steps` levels, each below the one before, and a last one that may be 0.
fn given_sigmas(given: &[f64], steps: usize) -> Result<Vec<f64>, SamplingError> {
    if given.len() != steps + 1 {
        let reason = format!("{} for {} steps; it takes one more than steps, 0 at the end", given.len(), real(steps));
        return Err(SamplingError::Sigmas { reason });
    }
    check_given(&given[..steps], f64::MAX)?;
    if !(given[steps] >= 0.0 && given[steps] < given[steps - 1]) {
        return Err(SamplingError::Sigmas { reason: format!("the last is {}; 0 is usual", given[steps]) });
    }
    Ok(given.iter().copied().map(single).collect())
}
