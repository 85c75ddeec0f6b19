//! Rotary positions of patches, in two axes.
//!
//! *Source*: transformers 5.23.0, `Qwen2_5_VLVisionRotaryEmbedding` in `models/qwen2_5_vl/modeling_qwen2_5_vl.py`.

use tch::{Device, Kind, Tensor};

use crate::torch::TorchError;

/// θ^(−2i / size) for i from 0: (size / 2) in f32.
fn frequencies(theta: f64, size: i64, device: Device) -> Result<Tensor, TorchError> {
    let exponents = Tensor::f_arange_start_step(0, size, 2, (Kind::Float, device))?.f_div_scalar(size)?;
    Ok(Tensor::f_pow_scalar(theta, &exponents)?.f_reciprocal()?)
}

/// By how much each pair of a head's features is turned. The second half of a head is the first one's other axis.
#[derive(Debug)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// `angles` (…, size / 2) in f32.
    fn of(angles: &Tensor, kind: Kind) -> Result<Self, TorchError> {
        let twice = |tensor: Tensor| -> Result<Tensor, TorchError> {
            Ok(Tensor::f_cat(&[&tensor, &tensor], -1)?.f_to_kind(kind)?)
        };
        Ok(Self { cos: twice(angles.f_cos()?)?, sin: twice(angles.f_sin()?)? })
    }

    /// `input` has the rotation's sizes, or more in front of them; → the same sizes and kind.
    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let kind = input.f_kind()?;
        let input = input.f_to_kind(self.cos.f_kind()?)?;
        let halves = input.f_chunk(2, -1)?;
        let turned = Tensor::f_cat(&[&halves[1].f_neg()?, &halves[0]], -1)?;
        Ok(input.f_mul(&self.cos)?.f_add(&turned.f_mul(&self.sin)?)?.f_to_kind(kind)?)
    }
}

/// The vision tower's: a quarter of a head's features for the row, a quarter for the column, and both once more. For
/// heads (N, heads, size); computed in f32, whatever the heads are in.
///
/// `rows` and `columns` (N)
pub(super) fn patch_rope(theta: f64, size: i64, rows: &Tensor, columns: &Tensor) -> Result<Rotation, TorchError> {
    let inverse = frequencies(theta, size / 2, rows.device())?;
    let angles = |places: &Tensor| -> Result<Tensor, TorchError> {
        Ok(places.f_to_kind(Kind::Float)?.f_unsqueeze(-1)?.f_mul(&inverse)?)
    };
    let angles = Tensor::f_cat(&[angles(rows)?, angles(columns)?], -1)?;
    Rotation::of(&angles.f_unsqueeze(1)?, Kind::Float)
}
