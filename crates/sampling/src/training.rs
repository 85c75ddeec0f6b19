//! The noise schedule that a model was trained on: ᾱ of each of its timesteps, from the betas.

use crate::{
    SamplingError,
    keys::Keys,
    numpy::{linspace_single, real, single},
};

/// More than any model has, and little enough to compute.
const MOST_TIMESTEPS: usize = 100_000;

/// ᾱ per training timestep, in f32 as the reference keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Training {
    alphas: Vec<f64>,
}

/// What a class takes where the configuration says nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BetaDefaults {
    pub(crate) start: f64,
    pub(crate) end: f64,
    pub(crate) schedule: &'static str,
}

/// Most classes' defaults; those of DDPM.
pub(crate) const DDPM_BETAS: BetaDefaults = BetaDefaults { start: 0.0001, end: 0.02, schedule: "linear" };

/// What the last ᾱ is under `rescale_betas_zero_snr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastAlpha {
    /// The smallest f16, so that the first σ is 4096 and not infinite.
    Tiny,
    Zero,
}

#[derive(Clone, Copy)]
enum Betas {
    Linear,
    ScaledLinear,
    Cosine,
}

impl Training {
    pub(crate) fn read(keys: Keys<'_>, defaults: BetaDefaults, last: LastAlpha) -> Result<Self, SamplingError> {
        let mut betas = betas(keys, defaults)?;
        let zero_snr = keys.flag("rescale_betas_zero_snr", false)?;
        if zero_snr {
            betas = without_signal_at_the_end(&betas);
        }
        let mut alphas = cumulative(&betas);
        if let (true, LastAlpha::Tiny, Some(end)) = (zero_snr, last, alphas.last_mut()) {
            *end = 2.0_f64.powi(-24);
        }
        Ok(Self { alphas })
    }

    pub(crate) fn len(&self) -> usize {
        self.alphas.len()
    }

    /// ᾱ of a timestep, held within the table.
    pub(crate) fn alpha(&self, timestep: usize) -> f64 {
        self.alphas[timestep.min(self.alphas.len() - 1)]
    }

    /// σ = √((1 − ᾱ) / ᾱ) of each timestep, rising.
    pub(crate) fn sigmas(&self) -> Vec<f64> {
        self.alphas.iter().map(|alpha| single(single(single(1.0 - alpha) / alpha).sqrt())).collect()
    }
}

fn betas(keys: Keys<'_>, defaults: BetaDefaults) -> Result<Vec<f64>, SamplingError> {
    if let Some(trained) = keys.numbers("trained_betas")? {
        let betas: Vec<f64> = trained.into_iter().map(single).collect();
        let whole = (2..=MOST_TIMESTEPS).contains(&betas.len()) && betas.iter().all(|beta| *beta > 0.0 && *beta < 1.0);
        return if whole {
            Ok(betas)
        } else {
            Err(keys.wrong("trained_betas", "it must hold 2 or more numbers between 0 and 1"))
        };
    }
    let count = timesteps(keys)?;
    let between = |key: &str, default: f64| {
        let beta = keys.number(key, default)?;
        if beta > 0.0 && beta < 1.0 { Ok(beta) } else { Err(keys.wrong(key, "it must be between 0 and 1")) }
    };
    let (start, end) = (between("beta_start", defaults.start)?, between("beta_end", defaults.end)?);
    let schedules =
        [("linear", Betas::Linear), ("scaled_linear", Betas::ScaledLinear), ("squaredcos_cap_v2", Betas::Cosine)];
    Ok(match keys.choice("beta_schedule", defaults.schedule, &schedules)? {
        Betas::Linear => linspace_single(start, end, count),
        Betas::ScaledLinear => {
            linspace_single(start.sqrt(), end.sqrt(), count).into_iter().map(|root| single(root * root)).collect()
        }
        Betas::Cosine => cosine(count),
    })
}

/// `num_train_timesteps`.
pub(crate) fn timesteps(keys: Keys<'_>) -> Result<usize, SamplingError> {
    let count = keys.count("num_train_timesteps", 1000)?;
    if (2..=MOST_TIMESTEPS).contains(&count) {
        Ok(count)
    } else {
        Err(keys.wrong("num_train_timesteps", format!("it must be from 2 to {MOST_TIMESTEPS}")))
    }
}

/// Nichol and Dhariwal 2021, arXiv:2102.09672, formula 17, each beta at most 0.999.
fn cosine(count: usize) -> Vec<f64> {
    let alpha = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
    let at = |i: usize| alpha(real(i) / real(count));
    (0..count).map(|i| single((1.0 - at(i + 1) / at(i)).min(0.999))).collect()
}

/// Lin et al. 2023, algorithm 1.
fn without_signal_at_the_end(betas: &[f64]) -> Vec<f64> {
    let roots: Vec<f64> = cumulative(betas).into_iter().map(|alpha| single(alpha.sqrt())).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = single(first / single(first - last));
    let alphas: Vec<f64> =
        roots.into_iter().map(|root| single(single(root - last) * scale)).map(|root| single(root * root)).collect();
    let before = std::iter::once(1.0).chain(alphas.iter().copied());
    before.zip(&alphas).map(|(before, alpha)| single(1.0 - single(alpha / before))).collect()
}

/// The running product of 1 − β: kept in f64, rounded where it is stored.
fn cumulative(betas: &[f64]) -> Vec<f64> {
    let mut product = 1.0;
    betas
        .iter()
        .map(|beta| {
            product *= single(1.0 - beta);
            single(product)
        })
        .collect()
}
