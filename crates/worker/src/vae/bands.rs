//! The large layers of a chain in bands of rows, with the whole picture's result.
//!
//! A layer is computed band by band; a band has the rows around it that its convolutions see. A group norm's statistics
//! are the whole picture's: they are measured over all bands before the first is normalised. So nothing is computed
//! twice but a few rows at the seams, nothing is blended, and the result is the whole picture's up to its rounding.
//!
//! What is saved is what a layer takes beside its input and its output, and often the output too, which takes the
//! input's place row by row. On a graphics card nearly all is saved: what lies between two layers waits in the
//! machine's memory, and a band at a time is on the card.

use std::ops::{ControlFlow, Range};

use tch::{Device, Kind, Tensor};

use super::chain::{Across, Chain, Layer};
use crate::{
    nn::{GroupNorm, ResnetBlock2D},
    torch::TorchError,
};

/// Asked before each picture and each band whether to go on.
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

    /// Adds rows (1, C, H, W) to the moments of the groups.
    fn add(groups: &mut [Self], rows: &Tensor) -> Result<(), TorchError> {
        let (_, channels, height, width) = rows.size4()?;
        if height * width == 0 {
            return Ok(());
        }
        // By channel, not by group: libtorch sums over all but the channels many times faster.
        let sides = [2_i64, 3];
        let mean = rows.f_mean_dim(sides.as_slice(), true, Kind::Float)?;
        let mut centred = rows.f_sub(&mean)?;
        let variance = centred.f_square_()?.f_mean_dim(sides.as_slice(), false, Kind::Float)?;
        let (mean, variance) = (values(&mean.f_flatten(0, -1)?)?, values(&variance.f_flatten(0, -1)?)?);
        #[expect(clippy::cast_precision_loss, reason = "fewer elements than 2^53")]
        let pixels = (height * width) as f64;
        let each = usize::try_from(channels).unwrap_or_default() / groups.len().max(1);
        for (channel, (mean, variance)) in mean.into_iter().zip(variance).enumerate() {
            groups[channel / each.max(1)].merge(Self { count: pixels, mean, squares: variance * pixels });
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

/// Some rows of a picture, and how many around them belong to the band.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Band {
    start: i64,
    length: i64,
    before: i64,
    after: i64,
}

impl Band {
    /// Cuts a picture's `height` into bands of `rows` with up to `reach` rows around each.
    fn cut(height: i64, rows: i64, reach: i64) -> Vec<Self> {
        let part = |start: i64| {
            let length = rows.min(height - start);
            Self { start, length, before: reach.min(start), after: reach.min(height - start - length) }
        };
        (0..height).step_by(usize::try_from(rows).unwrap_or(1).max(1)).map(part).collect()
    }

    /// A view of the band's rows of (1, C, H, W), those around it included.
    fn of(self, picture: &Tensor) -> Result<Tensor, TorchError> {
        Ok(picture.f_narrow(2, self.start - self.before, self.before + self.length + self.after)?)
    }
}

pub(super) struct Bands<'a> {
    chain: &'a Chain,
    /// Elements of a band's largest tensor, about.
    elements: i64,
    stop: Stop<'a>,
    /// Where bands are computed.
    device: Device,
}

impl<'a> Bands<'a> {
    pub(super) const fn new(chain: &'a Chain, elements: i64, stop: Stop<'a>, device: Device) -> Self {
        Self { chain, elements, stop, device }
    }

    /// (1, C, H, W) → what the layers of the range make of it; none where it was told to stop.
    pub(super) fn forward(&self, range: Range<usize>, input: Tensor) -> Result<Option<Tensor>, TorchError> {
        // On a CPU this may be the picture that was given: the first layer must leave it as it is.
        let mut hidden = input.f_to_device(Device::Cpu)?;
        drop(input);
        for (place, layer) in range.clone().zip(self.chain.layers(range.clone())) {
            let is_callers = place == range.start;
            match self.layer(layer, hidden, is_callers)? {
                Some(output) => hidden = output,
                None => return Ok(None),
            }
        }
        Ok(Some(hidden.f_to_device(self.device)?))
    }

    fn layer(&self, layer: &Layer, input: Tensor, is_callers: bool) -> Result<Option<Tensor>, TorchError> {
        let bands = self.bands(layer, &input)?;
        match layer.across() {
            Across::Resnet(resnet) => self.resnet(layer, resnet, &bands, &input),
            Across::Norm(norm) => {
                let Some(statistics) = self.statistics(norm, &bands, &input)? else { return Ok(None) };
                self.each(layer, &bands, input, is_callers, |rows| norm_silu(norm, &rows, &statistics))
            }
            Across::Nothing => self.each(layer, &bands, input, is_callers, |rows| layer.forward(rows)),
        }
    }

    /// What `work` makes of each band, in the place of the input where that is possible.
    fn each(
        &self,
        layer: &Layer,
        bands: &[Band],
        input: Tensor,
        is_callers: bool,
        work: impl Fn(Tensor) -> Result<Tensor, TorchError>,
    ) -> Result<Option<Tensor>, TorchError> {
        if layer.keeps_shape() && !is_callers {
            return self.replace(bands, input, |_, rows| work(rows));
        }
        self.map(layer, bands, &input, work)
    }

    fn resnet(
        &self,
        layer: &Layer,
        resnet: &ResnetBlock2D,
        bands: &[Band],
        input: &Tensor,
    ) -> Result<Option<Tensor>, TorchError> {
        let [norm1, norm2] = resnet.norms();
        let Some(statistics) = self.statistics(norm1, bands, input)? else { return Ok(None) };
        let hidden =
            self.map(layer, bands, input, |rows| resnet.convolve(&norm_silu(norm1, &rows, &statistics)?, None))?;
        let Some(hidden) = hidden else { return Ok(None) };
        let Some(statistics) = self.statistics(norm2, bands, &hidden)? else { return Ok(None) };
        self.replace(bands, hidden, |band, rows| {
            resnet.finish(norm_silu(norm2, &rows, &statistics)?, self.computed(&band.of(input)?)?)
        })
    }

    /// Bands of about as many elements as wanted, that begin where a layer that halves the picture begins a pixel.
    fn bands(&self, layer: &Layer, input: &Tensor) -> Result<Vec<Band>, TorchError> {
        let (_, _, height, width) = input.size4()?;
        let even = |rows: i64| (rows + 1) / 2 * 2;
        // Of an even height, since half a row is none.
        let rows = 2 * self.elements / layer.elements([2, width]).max(1);
        Ok(Band::cut(height, even(rows.max(1)), even(layer.reach())))
    }

    /// Mean and variance (1, G, 1) of the norm's groups over the whole picture.
    fn statistics(&self, norm: &GroupNorm, bands: &[Band], input: &Tensor) -> Result<Option<[Tensor; 2]>, TorchError> {
        let mut groups = vec![Moments::default(); usize::try_from(norm.groups()).unwrap_or_default()];
        for band in bands {
            if (self.stop)().is_break() {
                return Ok(None);
            }
            Moments::add(&mut groups, &self.computed(&input.f_narrow(2, band.start, band.length)?)?)?;
        }
        Moments::to_tensors(&groups, self.device).map(Some)
    }

    /// What `work` makes of each band, without the rows around it, in a tensor of its own.
    fn map(
        &self,
        layer: &Layer,
        bands: &[Band],
        input: &Tensor,
        work: impl Fn(Tensor) -> Result<Tensor, TorchError>,
    ) -> Result<Option<Tensor>, TorchError> {
        let scale = layer.scale();
        let mut output: Option<Tensor> = None;
        for &band in bands {
            if (self.stop)().is_break() {
                return Ok(None);
            }
            let (start, end) = (scale.of(band.start), scale.of(band.start + band.length));
            if start == end {
                // The last row of an odd height, which halving drops.
                continue;
            }
            let made = work(self.computed(&band.of(input)?)?)?;
            let made = made.f_narrow(2, scale.of(band.before), end - start)?;
            let whole = match output.take() {
                Some(output) => output,
                None => {
                    let (_, channels, _, width) = made.size4()?;
                    let sizes = [1, channels, scale.of(input.size4()?.2), width];
                    let empty = Tensor::f_empty(sizes, (made.f_kind()?, Device::Cpu))?;
                    self.chain.layout().of_tensor(&empty)?
                }
            };
            whole.f_narrow(2, start, end - start)?.f_copy_(&made)?;
            output = Some(whole);
        }
        Ok(output)
    }

    /// As [`Self::map`], where the result has the picture's own shape and takes its place.
    fn replace(
        &self,
        bands: &[Band],
        picture: Tensor,
        work: impl Fn(Band, Tensor) -> Result<Tensor, TorchError>,
    ) -> Result<Option<Tensor>, TorchError> {
        let most = bands.iter().map(|band| band.before).max().unwrap_or_default();
        // Rows before the band, as they were.
        let mut above: Option<Tensor> = None;
        for &band in bands {
            if (self.stop)().is_break() {
                return Ok(None);
            }
            let below = picture.f_narrow(2, band.start, band.length + band.after)?;
            let rows = match above.take().filter(|_| band.before > 0) {
                Some(above) => Tensor::f_cat(&[above, below], 2)?,
                None => below,
            };
            let known = band.before + band.length;
            let kept = most.min(known);
            above = Some(rows.f_narrow(2, known - kept, kept)?.f_detach_copy()?);
            let made = work(band, self.computed(&rows)?)?;
            let mut place = picture.f_narrow(2, band.start, band.length)?;
            place.f_copy_(&made.f_narrow(2, band.before, band.length)?)?;
        }
        Ok(Some(picture))
    }

    /// Rows where they are computed, as the layers take them.
    fn computed(&self, rows: &Tensor) -> Result<Tensor, TorchError> {
        self.chain.layout().of_tensor(&rows.f_to_device(self.device)?)
    }
}

/// Of rows of a picture whose groups have this mean and variance.
fn norm_silu(norm: &GroupNorm, rows: &Tensor, [mean, variance]: &[Tensor; 2]) -> Result<Tensor, TorchError> {
    Ok(norm.forward_with(rows, mean, variance)?.f_silu_()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moments_of_parts_are_those_of_the_whole() -> Result<(), TorchError> {
        let whole = Tensor::f_arange(4 * 5 * 7, (Kind::Float, Device::Cpu))?.f_sin()?.f_reshape([1, 4, 5, 7])?;
        let (mut parts, mut all) = ([Moments::default(); 2], [Moments::default(); 2]);
        for (start, length) in [(0, 3), (3, 1), (4, 0), (4, 3)] {
            Moments::add(&mut parts, &whole.f_narrow(3, start, length)?)?;
        }
        Moments::add(&mut all, &whole)?;
        let (variance, mean) = whole.f_reshape([2, -1])?.f_var_mean_correction([1_i64].as_slice(), 0, false)?;
        let expected = values(&mean)?.into_iter().zip(values(&variance)?);
        for ((part, whole), (mean, variance)) in parts.iter().zip(&all).zip(expected) {
            for moments in [part, whole] {
                assert!((moments.count - 70.0).abs() < f64::EPSILON);
                assert!((moments.mean - mean).abs() < 1e-6, "{moments:?} {mean}");
                assert!((moments.squares / 70.0 - variance).abs() < 1e-6, "{moments:?} {variance}");
            }
        }
        Ok(())
    }

    #[test]
    fn bands_meet_and_end_where_the_picture_ends() {
        let parts = Band::cut(10, 4, 3);
        let ends: Vec<_> =
            parts.iter().map(|part| (part.start - part.before, part.start + part.length + part.after)).collect();
        assert_eq!(ends, [(0, 7), (1, 10), (5, 10)]);
        assert_eq!(parts.iter().map(|part| part.length).sum::<i64>(), 10);
    }
}
