//! One file per class: its keys, its schedule and its steps.

pub(crate) mod ddim;
pub(crate) mod dpm;
pub(crate) mod euler;
pub(crate) mod euler_ancestral;
pub(crate) mod flow_euler;
pub(crate) mod lcm;
mod multistep;
pub(crate) mod pndm;
pub(crate) mod unipc;

use crate::{SamplingError, Step, keys::Keys, training::Training};

/// A run, before anyone steps through it. What [`crate::Sampler`] says of its fields holds here.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) sigmas: Vec<f64>,
    pub(crate) init_noise_sigma: f64,
}

/// The noise that the last step ends at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FinalSigma {
    Zero,
    /// The lowest of the training's, or of the run's.
    Lowest,
}

impl FinalSigma {
    fn read(keys: Keys<'_>) -> Result<Self, SamplingError> {
        keys.choice("final_sigmas_type", "zero", &[("zero", Self::Zero), ("sigma_min", Self::Lowest)])
    }

    fn sigma(self, lowest: f64) -> f64 {
        match self {
            Self::Zero => 0.0,
            Self::Lowest => lowest,
        }
    }
}

/// ᾱ below the first timestep: of no noise at all, or of timestep 0.
fn read_final_alpha(keys: Keys<'_>, default: bool, training: &Training) -> Result<f64, SamplingError> {
    Ok(if keys.flag("set_alpha_to_one", default)? { 1.0 } else { training.alpha(0) })
}

/// Timesteps as places in the training's table; those beyond it are refused.
fn places(timesteps: &[f64], training: &Training, steps: usize) -> Result<Vec<usize>, SamplingError> {
    let places: Vec<usize> = timesteps.iter().map(|timestep| crate::numpy::whole(*timestep)).collect();
    match places.iter().find(|place| **place >= training.len()) {
        Some(place) => {
            let most = training.len() - 1;
            let reason = format!("`steps_offset` makes a timestep {place} of it, beyond the model's last, {most}");
            Err(SamplingError::Steps { steps, reason })
        }
        None => Ok(places),
    }
}
