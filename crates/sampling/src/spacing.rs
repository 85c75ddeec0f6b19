//! Which of the training's timesteps a run visits. Lin et al. 2023, table 2.

use crate::{
    SamplingError,
    keys::Keys,
    numpy::{arange_down, linspace, real},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spacing {
    /// Both ends, evenly.
    Linspace,
    /// Multiples of the stride, from 0 (plus `steps_offset`).
    Leading,
    /// From the last timestep down by the stride.
    Trailing,
}

impl Spacing {
    pub(crate) fn read(keys: Keys<'_>, default: &str) -> Result<Self, SamplingError> {
        let spacings = [("linspace", Self::Linspace), ("leading", Self::Leading), ("trailing", Self::Trailing)];
        keys.choice("timestep_spacing", default, &spacings)
    }
}

/// How the solvers and the one-step methods count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visits {
    pub(crate) spacing: Spacing,
    pub(crate) offset: usize,
    /// Timesteps of the training.
    pub(crate) training: usize,
    /// The highest timestep that may be visited, plus 1.
    pub(crate) last: usize,
    pub(crate) rounding: Rounding,
    /// The multistep solvers space `steps + 1` points and leave the lowest out, since the last σ of theirs is 0.
    pub(crate) lowest: Lowest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Whole,
    /// Linspace keeps fractions.
    Fractions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lowest {
    Visited,
    LeftOut,
}

impl Visits {
    /// Timesteps, highest first: `steps` of them, or fewer where `last` leaves no more.
    ///
    /// Where numpy's `arange` gives one too many, by its rounding, the reference visits timestep −1 at the end; this
    /// does not.
    pub(crate) fn timesteps(&self, steps: usize) -> Result<Vec<f64>, SamplingError> {
        if steps > self.training {
            let reason = format!("the model was trained on {} timesteps; ask for as many or fewer", self.training);
            return Err(SamplingError::Steps { steps, reason });
        }
        let points = steps + usize::from(self.lowest == Lowest::LeftOut);
        let mut timesteps = match self.spacing {
            Spacing::Linspace => self.linspace(points),
            Spacing::Leading => self.leading(steps, points)?,
            Spacing::Trailing => {
                let stride = real(self.training) / real(steps);
                arange_down(real(self.last), stride).into_iter().map(|t| t.round_ties_even() - 1.0).collect()
            }
        };
        timesteps.truncate(steps);
        Ok(timesteps)
    }

    fn linspace(&self, points: usize) -> Vec<f64> {
        let mut timesteps = linspace(0.0, real(self.last - 1), points);
        for timestep in &mut timesteps {
            *timestep = match self.rounding {
                Rounding::Whole => timestep.round_ties_even(),
                Rounding::Fractions => crate::numpy::single(*timestep),
            };
        }
        timesteps.reverse();
        timesteps
    }

    fn leading(&self, steps: usize, points: usize) -> Result<Vec<f64>, SamplingError> {
        let stride = self.last / points;
        if stride == 0 {
            let reason = format!("`timestep_spacing: leading` has {} timesteps for {points} points", self.last);
            return Err(SamplingError::Steps { steps, reason });
        }
        Ok((0..points).rev().map(|i| real(i * stride + self.offset)).collect())
    }
}
