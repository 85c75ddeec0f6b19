//! Rotary position embeddings: a position turns pairs of features, each pair at a speed of its own.

use tch::{Device, Kind, Tensor};

use crate::torch::TorchError;

/// The speeds, and which axis of a position turns which pair where positions have three.
#[derive(Debug)]
pub struct Rotary {
    /// (head / 2), in f32.
    frequencies: Tensor,
    /// How many pairs turn by time, row and column, one after the other.
    sections: Option<[i64; 3]>,
}

/// Cosines and sines of positions, (L, head).
#[derive(Debug)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// `theta` is the base; positions are divided by `factor`, as in linear scaling.
    pub fn new(
        head: i64,
        theta: f64,
        factor: f64,
        sections: Option<[i64; 3]>,
        device: Device,
    ) -> Result<Self, TorchError> {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let width = head as f64;
        // On the CPU in f32, as everywhere: a device's own power function may round another way.
        let steps = Tensor::f_arange_start_step(0, head, 2, (Kind::Float, Device::Cpu))?.f_div_scalar(width)?;
        let frequencies = Tensor::f_pow_scalar(theta, &steps)?.f_reciprocal()?.f_div_scalar(factor)?;
        Ok(Self { frequencies: frequencies.f_to_device(device)?, sections })
    }

    /// `positions` (L), or (3, L) of time, row and column; i64, on the model's device. The angles come in `kind`.
    pub fn at(&self, positions: &Tensor, kind: Kind) -> Result<Angles, TorchError> {
        let turned = positions.f_to_kind(Kind::Float)?.f_unsqueeze(-1)?.f_mul(&self.frequencies)?;
        let turned = match (positions.dim(), self.sections) {
            (1, _) => turned,
            (2, Some(sections)) => {
                let mut start = 0;
                let mut parts = Vec::new();
                for (axis, length) in (0..).zip(sections) {
                    parts.push(turned.f_select(0, axis)?.f_narrow(-1, start, length)?);
                    start += length;
                }
                Tensor::f_cat(&parts, -1)?
            }
            (dimensions, _) => {
                return Err(TorchError::Other(format!("positions of {dimensions} dimensions where there is one axis")));
            }
        };
        let both = Tensor::f_cat(&[&turned, &turned], -1)?;
        Ok(Angles { cos: both.f_cos()?.f_to_kind(kind)?, sin: both.f_sin()?.f_to_kind(kind)? })
    }
}

impl Angles {
    /// Turns queries or keys, (B, heads, L, head): a feature of the first half goes with the one half a head further.
    pub fn turn(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let halves = input.f_chunk(2, -1)?;
        let [first, second] = &halves[..] else {
            return Err(TorchError::Other("a head of one feature cannot be turned".into()));
        };
        let across = Tensor::f_cat(&[&second.f_neg()?, first], -1)?;
        Ok(input.f_mul(&self.cos)?.f_add(&across.f_mul(&self.sin)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.reshape([-1])).expect("numbers")
    }

    #[test]
    fn a_position_turns_each_pair_at_its_own_speed() {
        let rotary = Rotary::new(4, 100.0, 1.0, None, Device::Cpu).expect("made");
        let angles = rotary.at(&Tensor::from_slice(&[0_i64, 2]), Kind::Float).expect("angles");
        let input = Tensor::from_slice(&[1.0_f32, 1.0, 0.0, 0.0]).expand([1, 1, 2, 4], false);
        let turned = values(&angles.turn(&input).expect("turned"));
        assert_eq!(turned[..4], [1.0, 1.0, 0.0, 0.0]);
        // The second pair turns ten times slower.
        let wanted = [2.0_f32.cos(), 0.2_f32.cos(), 2.0_f32.sin(), 0.2_f32.sin()];
        assert!(turned[4..].iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-6), "{turned:?}");
    }

    #[test]
    fn positions_of_three_axes_turn_their_own_pairs() {
        let three = Rotary::new(8, 100.0, 1.0, Some([1, 1, 2]), Device::Cpu).expect("made");
        let one = Rotary::new(8, 100.0, 1.0, None, Device::Cpu).expect("made");
        let input = Tensor::arange(8, (Kind::Float, Device::Cpu)).reshape([1, 1, 1, 8]);
        let turn = |rotary: &Rotary, positions: &Tensor| {
            values(&rotary.at(positions, Kind::Float).and_then(|angles| angles.turn(&input)).expect("turned"))
        };
        let same = Tensor::from_slice(&[5_i64, 5, 5]).reshape([3, 1]);
        assert_eq!(turn(&three, &same), turn(&one, &Tensor::from_slice(&[5_i64])));
        let mixed = turn(&three, &Tensor::from_slice(&[5_i64, 0, 7]).reshape([3, 1]));
        let (time, column) = (turn(&one, &Tensor::from_slice(&[5_i64])), turn(&one, &Tensor::from_slice(&[7_i64])));
        assert_eq!((mixed[0], mixed[1], mixed[2], mixed[3]), (time[0], 1.0, column[2], column[3]));
        assert!(one.at(&same, Kind::Float).is_err());
    }
}
