//! Noise levels σ other than those of the training: Karras, exponential, beta; and the shifts of flow models.

use crate::{
    Options, SamplingError, Shift,
    beta::quantile,
    keys::Keys,
    numpy::{interpolate, linspace, real, single, whole},
};

/// How noise levels are spread between the highest and the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// As the timesteps are.
    Timesteps,
    Karras,
    Exponential,
    Beta,
}

/// `use_karras_sigmas` and its siblings, of which one may be set.
pub(crate) fn read_spread(keys: Keys<'_>) -> Result<Spread, SamplingError> {
    let named = [
        ("use_karras_sigmas", Spread::Karras),
        ("use_exponential_sigmas", Spread::Exponential),
        ("use_beta_sigmas", Spread::Beta),
    ];
    let mut spread = Spread::Timesteps;
    for (key, named) in named {
        if keys.flag(key, false)? {
            if spread != Spread::Timesteps {
                return Err(keys.wrong(key, "only one of the Karras, exponential and beta sigmas can be used"));
            }
            spread = named;
        }
    }
    Ok(spread)
}

impl Spread {
    /// `count` levels from `highest` down to `lowest`; for [`Spread::Timesteps`] none.
    pub(crate) fn between(self, highest: f64, lowest: f64, count: usize) -> Option<Vec<f64>> {
        match self {
            Self::Timesteps => None,
            // Formula 5 of arXiv:2206.00364, with ρ = 7.
            Self::Karras => {
                let (top, bottom) = (highest.powf(1.0 / 7.0), lowest.powf(1.0 / 7.0));
                Some(linspace(0.0, 1.0, count).into_iter().map(|at| (top + at * (bottom - top)).powf(7.0)).collect())
            }
            Self::Exponential => Some(linspace(highest.ln(), lowest.ln(), count).into_iter().map(f64::exp).collect()),
            // arXiv:2407.12173, with α = β = 0.6.
            Self::Beta => Some(
                linspace(0.0, 1.0, count)
                    .into_iter()
                    .map(|at| lowest + quantile(1.0 - at) * (highest - lowest))
                    .collect(),
            ),
        }
    }
}

/// The logarithms of a model's own levels, to find timesteps by.
#[derive(Clone, Debug)]
pub(crate) struct LogSigmas(Vec<f64>);

impl LogSigmas {
    /// `sigmas` rises with the timesteps.
    pub(crate) fn new(sigmas: &[f64]) -> Self {
        Self(sigmas.iter().map(|sigma| single(sigma.ln())).collect())
    }

    /// The timestep, with a fraction, at which the training's noise was `sigma`.
    pub(crate) fn timestep(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let below = self.0.iter().filter(|known| **known <= log).count();
        let low = below.saturating_sub(1).min(self.0.len() - 2);
        let (from, to) = (self.0[low], self.0[low + 1]);
        let weight = ((from - log) / single(from - to)).clamp(0.0, 1.0);
        (1.0 - weight) * real(low) + weight * real(low + 1)
    }
}

/// Levels of the training at timesteps that may have fractions.
pub(crate) fn at_timesteps(sigmas: &[f64], timesteps: &[f64]) -> Vec<f64> {
    timesteps.iter().map(|timestep| interpolate(*timestep, sigmas)).collect()
}

/// Whether the reference computes in f32 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    Single,
    Double,
}

impl Precision {
    pub(crate) fn round(self, value: f64) -> f64 {
        match self {
            Self::Single => single(value),
            Self::Double => value,
        }
    }
}

/// How a flow model's levels are pushed towards noise. Esser et al. 2024, formula 23; σ from 1 to 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FlowShift {
    /// s·σ / (1 + (s − 1)·σ)
    Static(f64),
    /// e / (e + 1/σ − 1)
    Dynamic(f64),
}

impl FlowShift {
    pub(crate) fn apply(self, sigma: f64, precision: Precision) -> f64 {
        let round = |value| precision.round(value);
        match self {
            Self::Static(shift) => {
                let (shift, less) = (round(shift), round(shift - 1.0));
                round(round(shift * sigma) / round(1.0 + round(less * sigma)))
            }
            Self::Dynamic(shift) => {
                let shift = round(shift);
                round(shift / round(shift + round(round(1.0 / sigma) - 1.0)))
            }
        }
    }
}

/// `use_dynamic_shifting` and the keys that go with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DynamicShift {
    exponential: bool,
    base_shift: f64,
    max_shift: f64,
    base_tokens: usize,
    max_tokens: usize,
}

impl DynamicShift {
    /// `None` where the model has a static shift.
    pub(crate) fn read(keys: Keys<'_>) -> Result<Option<Self>, SamplingError> {
        let exponential = keys.choice("time_shift_type", "exponential", &[("exponential", true), ("linear", false)])?;
        if !keys.flag("use_dynamic_shifting", false)? {
            return Ok(None);
        }
        let this = Self {
            exponential,
            base_shift: keys.number("base_shift", 0.5)?,
            max_shift: keys.number("max_shift", 1.15)?,
            base_tokens: keys.count("base_image_seq_len", 256)?,
            max_tokens: keys.count("max_image_seq_len", 4096)?,
        };
        if this.base_tokens >= this.max_tokens {
            return Err(keys.wrong("max_image_seq_len", "it must be above `base_image_seq_len`"));
        }
        Ok(Some(this))
    }

    pub(crate) fn resolve(self, options: &Options) -> Result<FlowShift, SamplingError> {
        let mu = match options.shift.ok_or(SamplingError::NoShift)? {
            Shift::Mu(mu) => mu,
            Shift::SequenceLength(tokens) => {
                let slope = (self.max_shift - self.base_shift) / (real(self.max_tokens) - real(self.base_tokens));
                real(tokens) * slope + (self.base_shift - slope * real(self.base_tokens))
            }
        };
        let shift = if self.exponential { mu.exp() } else { mu };
        if shift > 0.0 && shift.is_finite() { Ok(FlowShift::Dynamic(shift)) } else { Err(SamplingError::Mu { mu }) }
    }
}

/// Stretches levels so that the last of them is `terminal`. In place; `sigmas` falls.
pub(crate) fn stretch_to(sigmas: &mut [f64], terminal: f64, precision: Precision) {
    let round = |value| precision.round(value);
    let Some(last) = sigmas.last().copied() else { return };
    let factor = round(round(1.0 - last) / round(1.0 - terminal));
    if factor == 0.0 {
        // A single level of 1 cannot be stretched; the reference divides 0 by 0.
        return;
    }
    for sigma in sigmas {
        *sigma = round(1.0 - round(round(1.0 - *sigma) / factor));
    }
}

/// Checks levels that were given: above 0, at most `highest`, each below the one before.
pub(crate) fn check_given(sigmas: &[f64], highest: f64) -> Result<(), SamplingError> {
    let wrong = |reason: String| SamplingError::Sigmas { reason };
    for (index, sigma) in sigmas.iter().enumerate() {
        if !(*sigma > 0.0 && *sigma <= highest) {
            return Err(wrong(format!("entry {index} is {sigma}; it must be above 0 and at most {highest}")));
        }
        if sigmas.get(index + 1).is_some_and(|next| next >= sigma) {
            return Err(wrong(format!("entry {} is not below entry {index}", index + 1)));
        }
    }
    Ok(())
}

/// As the reference makes whole timesteps of levels.
pub(crate) fn truncated(timesteps: &mut [f64]) {
    for timestep in timesteps {
        *timestep = real(whole(*timestep));
    }
}
