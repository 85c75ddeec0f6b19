//! Weights in 8-bit floating point, with the scales that files keep beside them.
//!
//! Found in the wild: no scale at all; one for the tensor (`scale_weight`, `weight_scale`); one for each row; and one
//! for each square of 128 x 128 (`weight_scale_inv`, which is multiplied with all the same). How activations would be
//! quantised is left aside: they are not.

use std::collections::BTreeMap;

use serde::Deserialize;
use tch::{Kind, Tensor};

use super::shards::{Entry, Shard};
use crate::torch::TorchError;

/// The side of a square that shares a scale.
const SQUARE: i64 = 128;

/// Ends of the names of a weight's scale, after the weight's own name without `weight`.
const SCALES: [&str; 3] = ["scale_weight", "weight_scale", "weight_scale_inv"];

/// Likewise, of what is said of activations.
const INPUT_SCALES: [&str; 2] = ["scale_input", "input_scale"];

/// A JSON text beside a weight: how it is stored.
const FORMAT: &str = "comfy_quant";

/// A tensor that says of the whole file that there are scales.
const MARKER: &str = "scaled_fp8";

/// Moves the scales to the weights that they belong to, and leaves out what is not needed.
///
/// # Errors
/// The shard, and what is wrong: a scale that does not fit, or a way of storing that is not known.
pub(super) fn attach_scales(shards: &[Shard], entries: &mut BTreeMap<String, Entry>) -> Result<(), (usize, String)> {
    entries.retain(|name, entry| !(is_float8(entry.kind) && name.rsplit('.').next() == Some(MARKER)));
    let weights = entries.iter().filter(|(_, entry)| is_float8(entry.kind));
    let stems = weights.filter_map(|(name, _)| name.strip_suffix("weight").map(str::to_owned));
    for stem in stems.collect::<Vec<_>>() {
        if let Some(format) = entries.remove(&format!("{stem}{FORMAT}")) {
            check_format(&shards[format.shard], &format).map_err(|detail| (format.shard, detail))?;
        }
        for name in INPUT_SCALES {
            entries.remove(&format!("{stem}{name}"));
        }
        let scale = SCALES.iter().find_map(|name| entries.remove(&format!("{stem}{name}")));
        let (Some(scale), Some(weight)) = (scale, entries.get_mut(&format!("{stem}weight"))) else { continue };
        if Layout::of(&weight.shape, &scale.shape).is_none() || !super::is_floating(scale.kind) {
            let (shape, kind) = (&scale.shape, scale.kind);
            let detail = format!("{} of {shape:?} in {kind:?} is no scale for {:?}", scale.key, weight.shape);
            return Err((scale.shard, detail));
        }
        weight.scale = Some(Box::new(scale));
    }
    Ok(())
}

const fn is_float8(kind: Kind) -> bool {
    matches!(kind, Kind::Float8e4m3fn | Kind::Float8e5m2)
}

fn check_format(shard: &Shard, entry: &Entry) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Told {
        format: String,
    }
    let wrong = |detail: String| format!("{}: {detail}", entry.key);
    let bytes = &shard.map[entry.offset..entry.offset + entry.bytes];
    let told: Told = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    match told.format.as_str() {
        "float8_e4m3fn" | "float8_e5m2" => Ok(()),
        other => Err(wrong(format!("weights stored as {other} are not computed"))),
    }
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Tensor,
    Rows,
    Squares,
}

impl Layout {
    fn of(weight: &[i64], scale: &[i64]) -> Option<Self> {
        match (scale, weight) {
            ([] | [1], _) => Some(Self::Tensor),
            ([rows] | [rows, 1], [of_weight, _, ..]) if rows == of_weight => Some(Self::Rows),
            ([down, across], [height, width]) => {
                let squares = |side: i64| (side + SQUARE - 1) / SQUARE;
                (*down == squares(*height) && *across == squares(*width)).then_some(Self::Squares)
            }
            _ => None,
        }
    }
}

/// The weight (out, in, …) as it was before it was quantised. Both in f32 on the same device.
pub(super) fn scaled(weight: Tensor, scale: &Tensor) -> Result<Tensor, TorchError> {
    let (sides, scales) = (weight.size(), scale.size());
    let layout = Layout::of(&sides, &scales);
    let layout = layout.ok_or_else(|| TorchError::Other(format!("a scale of {scales:?} for {sides:?}")))?;
    let mut weight = weight;
    Ok(match layout {
        Layout::Tensor => weight.f_mul_(&scale.f_reshape([1_i64; 0])?)?,
        Layout::Rows => {
            let mut wide = vec![1; sides.len()];
            wide[0] = -1;
            weight.f_mul_(&scale.f_reshape(&wide)?)?
        }
        Layout::Squares => {
            let wide =
                scale.f_repeat_interleave_self_int(SQUARE, 0, None)?.f_repeat_interleave_self_int(SQUARE, 1, None)?;
            weight.f_mul_(&wide.f_narrow(0, 0, sides[0])?.f_narrow(1, 0, sides[1])?)?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_for_a_tensor_its_rows_or_its_squares() {
        for (weight, scale, layout) in [
            (vec![200, 130], vec![], Some(Layout::Tensor)),
            (vec![200, 130], vec![1], Some(Layout::Tensor)),
            (vec![200, 130], vec![200], Some(Layout::Rows)),
            (vec![200, 130], vec![200, 1], Some(Layout::Rows)),
            (vec![200, 130], vec![2, 2], Some(Layout::Squares)),
            (vec![200, 3, 3, 3], vec![200], Some(Layout::Rows)),
            (vec![200, 130], vec![130], None),
            (vec![200, 130], vec![2, 1], None),
            (vec![200], vec![200], None),
        ] {
            assert_eq!(Layout::of(&weight, &scale), layout, "{weight:?} {scale:?}");
        }
    }

    #[test]
    fn every_square_has_its_own_scale() -> Result<(), TorchError> {
        let weight = Tensor::f_ones([130, 129], (Kind::Float, tch::Device::Cpu))?;
        let scale = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).f_view([2, 2])?;
        let scaled = scaled(weight, &scale)?;
        let at = |row, column| scaled.f_double_value(&[row, column]);
        assert_eq!((at(127, 127)?, at(127, 128)?, at(128, 127)?, at(129, 128)?), (1.0, 2.0, 3.0, 4.0));
        Ok(())
    }
}
