//! The large layers of a chain in pieces, with the whole picture's result.
//!
//! A convolution is right within a piece that has the pixels around it. A group norm is not: its statistics are the
//! whole picture's. So the picture passes several times. Each pass normalises with the statistics that the one before
//! has measured (the first with the pieces' own) and measures its own anew. The first norm's are exact after one pass,
//! the second's after two, and so on: the last pass that could be needed is known, and its result is that of the
//! whole picture. Far sooner the result no longer changes by more than [`TOLERANCE`], which ends it. Nothing is
//! blended: pieces meet because each is right up to its edge.

use std::ops::{ControlFlow, Range};

use tch::{Device, Kind, Tensor};

use super::chain::{Chain, Norms, Scale};
use crate::{
    nn::{GroupNorm, Margins},
    torch::TorchError,
};

/// How much of its largest value the result may change from one pass to the next, to be the last: an eighth of a
/// step of 8 bits in a picture from -1 to 1. Each pass moves it about half as far as the one before with random weights
/// and tiny pieces, the worst that was measured, and about a tenth as far with the built-in model's.
const TOLERANCE: f64 = 1.0 / 1024.0;

/// Asked before each picture and each piece whether to go on.
pub(super) type Stop<'a> = &'a dyn Fn() -> ControlFlow<()>;

/// The mean and variance of a group, over what was seen of it.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: f64,
    mean: f64,
    /// Sum of squared differences to the mean.
    squares: f64,
}

impl Moments {
    /// Chan, Golub and LeVeque, 1979: the moments of two sets together.
    fn merge(&mut self, other: Self) {
        let total = self.count + other.count;
        let difference = other.mean - self.mean;
        self.squares += other.squares + difference * difference * self.count * other.count / total;
        self.mean += difference * other.count / total;
        self.count = total;
    }

    /// Adds a piece (1, C, H, W) to the moments of the groups.
    fn add(groups: &mut Vec<Self>, piece: &Tensor, count: i64) -> Result<(), TorchError> {
        let (_, channels, height, width) = piece.size4()?;
        if height * width == 0 {
            return Ok(());
        }
        // By channel, not by group: libtorch sums over all but the channels many times faster.
        let sides = [2_i64, 3];
        let mean = piece.f_mean_dim(sides.as_slice(), true, Kind::Float)?;
        let mut centred = piece.f_sub(&mean)?;
        let variance = centred.f_square_()?.f_mean_dim(sides.as_slice(), false, Kind::Float)?;
        let (mean, variance) = (values(&mean.f_flatten(0, -1)?)?, values(&variance.f_flatten(0, -1)?)?);
        #[expect(clippy::cast_precision_loss, reason = "fewer elements than 2^53")]
        let pixels = (height * width) as f64;
        groups.resize(usize::try_from(count).unwrap_or_default(), Self::default());
        let each = usize::try_from(channels / count).unwrap_or(1);
        for (channel, (mean, variance)) in mean.into_iter().zip(variance).enumerate() {
            groups[channel / each].merge(Self { count: pixels, mean, squares: variance * pixels });
        }
        Ok(())
    }

    fn to_tensors(groups: &[Self], device: Device) -> Result<[Tensor; 2], TorchError> {
        let tensor = |values: Vec<f64>| -> Result<Tensor, TorchError> {
            Ok(Tensor::f_from_slice(&values)?.f_to_device(device)?.f_to_kind(Kind::Float)?.f_reshape([1, -1, 1])?)
        };
        Ok([
            tensor(groups.iter().map(|group| group.mean).collect())?,
            tensor(groups.iter().map(|group| group.squares / group.count).collect())?,
        ])
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f64>, TorchError> {
    Ok(Vec::<f64>::try_from(&tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)?)
}

/// The norms of one pass over one piece.
struct Piece<'a> {
    /// Mean and variance of each norm; none in the first pass.
    given: Option<&'a [[Tensor; 2]]>,
    measured: &'a mut [Vec<Moments>],
    /// The next norm.
    next: usize,
    margins: Margins,
}

impl Norms for Piece<'_> {
    fn norm_silu(&mut self, norm: &GroupNorm, input: &Tensor) -> Result<Tensor, TorchError> {
        let index = self.next;
        self.next += 1;
        let core = self.margins.crop(input, Margins::default())?;
        Moments::add(&mut self.measured[index], &core, norm.groups())?;
        match self.given.map(|given| &given[index]) {
            Some([mean, variance]) => Ok(norm.forward_with(input, mean, variance)?.f_silu_()?),
            None => norm.forward_silu(input),
        }
    }
}

/// A part of one side of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: i64,
    length: i64,
    before: i64,
    after: i64,
}

impl Span {
    /// Cuts `side` into parts of `core` with up to `margin` around each.
    fn cut(side: i64, core: i64, margin: i64) -> Vec<Self> {
        let part = |start: i64| {
            let length = core.min(side - start);
            Self { start, length, before: margin.min(start), after: margin.min(side - start - length) }
        };
        (0..side).step_by(usize::try_from(core).unwrap_or(1).max(1)).map(part).collect()
    }
}

pub(super) struct Tiles<'a> {
    chain: &'a Chain,
    range: Range<usize>,
    needs: Vec<i64>,
    /// Side of a piece before the first layer of the range.
    core: i64,
    margin: i64,
    stop: Stop<'a>,
}

impl<'a> Tiles<'a> {
    /// Pieces of about `side` where the picture is largest.
    pub(super) fn new(chain: &'a Chain, range: Range<usize>, side: i64, stop: Stop<'a>) -> Self {
        let needs = chain.needs(range.clone());
        let count = |scale| range.clone().filter(|layer| chain.scale(*layer) == scale).count();
        // Pieces begin where the layers that halve the picture begin a pixel.
        let grid = 1 << count(Scale::Half);
        let round_up = |value: i64| (value + grid - 1) / grid * grid;
        let core = round_up((side >> count(Scale::Double)).max(1));
        Self { chain, core, margin: round_up(needs[0]), needs, range, stop }
    }

    /// (1, C, H, W) → what the layers of the range make of it; none where it was told to stop.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Option<Tensor>, TorchError> {
        let mut given: Option<Vec<[Tensor; 2]>> = None;
        let mut previous: Option<Tensor> = None;
        let passes = self.chain.norms(self.range.clone());
        for _ in 0..passes {
            let mut measured = vec![Vec::new(); passes];
            let Some(output) = self.pass(input, given.as_deref(), &mut measured)? else { return Ok(None) };
            if let Some(previous) = &previous
                && change(previous, &output)? <= TOLERANCE
            {
                return Ok(Some(output));
            }
            let tensors = measured.iter().map(|groups| Moments::to_tensors(groups, input.device()));
            given = Some(tensors.collect::<Result<_, _>>()?);
            previous = Some(output);
        }
        drop(previous);
        self.pass(input, given.as_deref(), &mut vec![Vec::new(); passes])
    }

    fn pass(
        &self,
        input: &Tensor,
        given: Option<&[[Tensor; 2]]>,
        measured: &mut [Vec<Moments>],
    ) -> Result<Option<Tensor>, TorchError> {
        let (_, _, height, width) = input.size4()?;
        let sides = |side| self.range.clone().fold(side, |side, layer| self.chain.scale(layer).of(side));
        let mut output: Option<Tensor> = None;
        for rows in Span::cut(height, self.core, self.margin) {
            for columns in Span::cut(width, self.core, self.margin) {
                if (self.stop)().is_break() {
                    return Ok(None);
                }
                let piece = self.piece(input, rows, columns, given, measured)?;
                let (_, channels, piece_height, piece_width) = piece.size4()?;
                if piece_height == 0 || piece_width == 0 {
                    // The last row or column of an odd side, which halving drops.
                    continue;
                }
                let whole = match output.take() {
                    Some(output) => output,
                    None => self.empty([1, channels, sides(height), sides(width)], &piece)?,
                };
                let mut place = whole.f_narrow(2, sides(rows.start), piece_height)?;
                place = place.f_narrow(3, sides(columns.start), piece_width)?;
                place.f_copy_(&piece)?;
                output = Some(whole);
            }
        }
        Ok(output)
    }

    fn empty(&self, sizes: [i64; 4], like: &Tensor) -> Result<Tensor, TorchError> {
        let tensor = Tensor::f_empty(sizes, (like.f_kind()?, like.device()))?;
        self.chain.layout().of_tensor(&tensor)
    }

    /// One piece through all layers of the range, without its margins in the end.
    fn piece(
        &self,
        input: &Tensor,
        rows: Span,
        columns: Span,
        given: Option<&[[Tensor; 2]]>,
        measured: &mut [Vec<Moments>],
    ) -> Result<Tensor, TorchError> {
        let margins =
            [columns.before, rows.before, columns.after, rows.after].map(|side| u32::try_from(side).unwrap_or(0));
        let [left, top, right, bottom] = margins;
        let mut norms = Piece { given, measured, next: 0, margins: Margins { left, top, right, bottom } };
        let mut hidden = input
            .f_narrow(2, rows.start - rows.before, rows.before + rows.length + rows.after)?
            .f_narrow(3, columns.start - columns.before, columns.before + columns.length + columns.after)?;
        for (layer, need) in self.range.clone().zip(&self.needs[1..]) {
            hidden = self.chain.forward(layer..layer + 1, hidden, &mut norms)?;
            norms.margins = scaled(norms.margins, self.chain.scale(layer));
            if self.chain.scale(layer) == Scale::Double {
                // A doubled margin is more than is needed, and costs the most where pictures are largest.
                let less = norms.margins.at_most(u32::try_from(*need).unwrap_or(u32::MAX));
                hidden = norms.margins.crop(&hidden, less)?;
                norms.margins = less;
            }
        }
        norms.margins.crop(&hidden, Margins::default())
    }
}

fn scaled(margins: Margins, scale: Scale) -> Margins {
    let of = |side: u32| u32::try_from(scale.of(i64::from(side))).unwrap_or(u32::MAX);
    let Margins { left, top, right, bottom } = margins;
    Margins { left: of(left), top: of(top), right: of(right), bottom: of(bottom) }
}

/// The largest difference, as a part of the largest value.
fn change(before: &Tensor, after: &Tensor) -> Result<f64, TorchError> {
    let largest = |tensor: &Tensor| -> Result<f64, TorchError> { Ok(tensor.f_abs()?.f_max()?.f_double_value(&[])?) };
    let scale = largest(after)?;
    Ok(if scale > 0.0 { largest(&after.f_sub(before)?)? / scale } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moments_of_parts_are_those_of_the_whole() -> Result<(), TorchError> {
        let whole = Tensor::f_arange(4 * 5 * 7, (Kind::Float, Device::Cpu))?.f_sin()?.f_reshape([1, 4, 5, 7])?;
        let (mut parts, mut all) = (Vec::new(), Vec::new());
        for (start, length) in [(0, 3), (3, 1), (4, 0), (4, 3)] {
            Moments::add(&mut parts, &whole.f_narrow(3, start, length)?, 2)?;
        }
        Moments::add(&mut all, &whole, 2)?;
        let (variance, mean) = whole.f_reshape([2, -1])?.f_var_mean_correction([1_i64].as_slice(), 0, false)?;
        let expected = values(&mean)?.into_iter().zip(values(&variance)?);
        for ((part, whole), (mean, variance)) in parts.iter().zip(&all).zip(expected) {
            for moments in [part, whole] {
                assert!((moments.count - 70.0).abs() < f64::EPSILON);
                assert!((moments.mean - mean).abs() < 1e-6, "{moments:?} {mean}");
                assert!((moments.squares / 70.0 - variance).abs() < 1e-6, "{moments:?} {variance}");
            }
        }
        assert_eq!((parts.len(), all.len()), (2, 2));
        Ok(())
    }

    #[test]
    fn parts_meet_and_end_where_the_picture_ends() {
        let parts = Span::cut(10, 4, 3);
        let ends: Vec<_> =
            parts.iter().map(|part| (part.start - part.before, part.start + part.length + part.after)).collect();
        assert_eq!(ends, [(0, 7), (1, 10), (5, 10)]);
        assert_eq!(parts.iter().map(|part| part.length).sum::<i64>(), 10);
    }
}
