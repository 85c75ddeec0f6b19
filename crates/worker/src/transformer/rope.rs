//! Rotary position embeddings: each pair of neighbouring features is a complex number, turned by an angle that grows
//! with the token's position (arXiv 2104.09864). With several axes each has a share of the features.

use tch::{Device, Kind, Tensor};

use crate::torch::TorchError;

/// The turns of all tokens of a sequence.
#[derive(Debug)]
pub struct Rope {
    /// (L, 1, head / 2), complex in f32.
    turns: Tensor,
}

impl Rope {
    /// `positions` (L, axes) of any kind. `axes`: how many features each of them has, even numbers. The angles are
    /// computed in `kind`, f64 or f32, as the reference does: far from the origin that shows. The result is on `device`.
    pub fn new(positions: &Tensor, axes: &[i64], theta: f64, kind: Kind, device: Device) -> Result<Self, TorchError> {
        let positions = positions.f_to_device(Device::Cpu)?.f_to_kind(kind)?;
        let mut angles = Vec::with_capacity(axes.len());
        for (axis, &features) in (0..).zip(axes) {
            let steps = Tensor::f_arange_start_step(0, features, 2, (kind, Device::Cpu))?.f_div_scalar(features)?;
            let frequencies = Tensor::f_pow_scalar(theta, &steps)?.f_reciprocal()?;
            angles.push(positions.f_select(1, axis)?.f_outer(&frequencies)?);
        }
        let angles = Tensor::f_cat(&angles, 1)?;
        let turns = Tensor::f_polar(&angles.f_ones_like()?, &angles)?;
        Self::of_turns(&turns, device)
    }

    /// From the turns themselves, (L, head / 2), complex.
    pub fn of_turns(turns: &Tensor, device: Device) -> Result<Self, TorchError> {
        let turns = turns.f_to_kind(Kind::ComplexFloat)?.f_unsqueeze(1)?;
        Ok(Self { turns: turns.f_to_device(device)? })
    }

    /// Turns for the tokens of `self`, then those of `other`.
    pub fn then(&self, other: &Self) -> Result<Self, TorchError> {
        Ok(Self { turns: Tensor::f_cat(&[&self.turns, &other.turns], 0)? })
    }

    /// `heads` (B, L, H, head) → the same shape and kind; computed in f32.
    pub fn apply(&self, heads: &Tensor) -> Result<Tensor, TorchError> {
        let (batch, length, count, head) = heads.size4()?;
        let pairs = heads.f_to_kind(Kind::Float)?.f_reshape([batch, length, count, head / 2, 2])?;
        let turned = pairs.f_view_as_complex()?.f_mul(&self.turns)?;
        Ok(turned.f_view_as_real()?.f_reshape([batch, length, count, head])?.f_to_kind(heads.f_kind()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("numbers")
    }

    #[test]
    fn pairs_turn_by_their_axis_and_frequency() -> Result<(), TorchError> {
        let positions = Tensor::from_slice(&[0_i64, 0, 1, 2]).f_reshape([2, 2])?;
        let rope = Rope::new(&positions, &[2, 4], 100.0, Kind::Double, Device::Cpu)?;
        let heads = Tensor::from_slice(&[1.0_f32, 0.0, 1.0, 0.0, 1.0, 0.0]).f_repeat([2])?.f_reshape([1, 2, 1, 6])?;
        let turned = values(&rope.apply(&heads)?);
        assert_eq!(turned[..6], [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
        // The first axis by 1 · 1, the second by 2 · 1 and by 2 / 100^(2/4).
        for (got, angle) in turned[6..].chunks(2).zip([1.0_f32, 2.0, 0.2]) {
            assert!((got[0] - angle.cos()).abs() < 1e-6 && (got[1] - angle.sin()).abs() < 1e-6, "{turned:?}");
        }
        Ok(())
    }

    #[test]
    fn sequences_one_after_the_other_turn_as_alone() -> Result<(), TorchError> {
        let rope = |from: i64, to: i64| {
            let positions = Tensor::arange_start(from, to, (Kind::Int64, Device::Cpu)).unsqueeze(1);
            Rope::new(&positions, &[8], 10_000.0, Kind::Float, Device::Cpu)
        };
        let heads = Tensor::f_randn([2, 9, 3, 8], (Kind::Float, Device::Cpu))?;
        let whole = rope(0, 9)?.apply(&heads)?;
        assert_eq!(values(&rope(0, 4)?.then(&rope(4, 9)?)?.apply(&heads)?), values(&whole));
        assert_eq!(rope(0, 9)?.apply(&heads.to_kind(Kind::BFloat16))?.kind(), Kind::BFloat16);
        Ok(())
    }
}
