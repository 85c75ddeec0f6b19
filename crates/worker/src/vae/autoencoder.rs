//! What the autoencoders have in common: an encoder and a decoder that a batch passes whole, picture by picture, or in
//! bands.

use std::{ops::ControlFlow, path::Path};

use serde_json::json;
use tch::{Kind, Tensor};

use super::{
    bands::{Bands, Stop},
    chain::Chain,
};
use crate::{
    nn::config::{ConfigError, ConfigReader},
    torch::TorchError,
    weights::{Scope, Weights, WeightsError},
};

/// How a batch passes the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partition {
    /// All pictures at once.
    #[default]
    Whole,
    /// One picture after the other.
    Slices,
    /// One picture after the other, and its large layers in bands of rows, each as large as a picture of this side.
    /// The result is that of whole pictures up to its rounding.
    Bands(i64),
}

/// The latents' distribution, each element on its own.
#[derive(Debug)]
pub struct Gaussian {
    /// (B, C, h, w)
    pub mean: Tensor,
    /// From -30 to 20.
    pub logvar: Tensor,
}

impl Gaussian {
    fn from_moments(moments: &Tensor) -> Result<Self, TorchError> {
        let channels = moments.size4()?.1 / 2;
        let mean = moments.f_narrow(1, 0, channels)?.f_contiguous()?;
        let logvar = moments.f_narrow(1, channels, channels)?.f_clamp(-30.0, 20.0)?.f_contiguous()?;
        Ok(Self { mean, logvar })
    }

    /// The most probable latents.
    pub const fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// `noise` is normal, of the mean's shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor, TorchError> {
        let std = self.logvar.f_mul_scalar(0.5)?.f_exp_()?;
        let noise = noise.f_to_device(std.device())?.f_to_kind(std.f_kind()?)?;
        Ok(self.mean.f_add(&std.f_mul(&noise)?)?)
    }
}

/// How a VAE's latents are brought to those that a denoiser works on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling<'a> {
    /// (z - shift) · factor
    Whole { channels: i64, factor: f64, shift: f64 },
    /// (z - mean) · factor / std, of each channel
    EachChannel { mean: &'a [f64], std: &'a [f64], factor: f64 },
}

impl Scaling<'_> {
    /// The VAE's latents (B, C, h, w) as the denoiser's.
    pub fn scale(self, latents: &Tensor) -> Result<Tensor, TorchError> {
        match self {
            Self::Whole { factor, shift, .. } => Ok(latents.f_sub_scalar(shift)?.f_mul_scalar(factor)?),
            Self::EachChannel { mean, std, factor } => {
                let [mean, std] = [channels(mean, latents)?, channels(std, latents)?];
                Ok(latents.f_sub(&mean)?.f_mul_scalar(factor)?.f_div(&std)?)
            }
        }
    }

    /// The denoiser's latents as the VAE's.
    pub fn unscale(self, latents: &Tensor) -> Result<Tensor, TorchError> {
        match self {
            Self::Whole { factor, shift, .. } => Ok(latents.f_div_scalar(factor)?.f_add_scalar(shift)?),
            Self::EachChannel { mean, std, factor } => {
                let [mean, std] = [channels(mean, latents)?, channels(std, latents)?];
                Ok(latents.f_mul(&std)?.f_div_scalar(factor)?.f_add(&mean)?)
            }
        }
    }
}

/// (1, C, 1, 1)
fn channels(numbers: &[f64], like: &Tensor) -> Result<Tensor, TorchError> {
    let tensor = Tensor::f_from_slice(numbers)?.f_to_kind(like.f_kind()?)?;
    Ok(tensor.f_to_device(like.device())?.f_reshape([1, -1, 1, 1])?)
}

/// `latents_mean` of `config.json`: a number for each channel.
pub(super) fn means(
    reader: &mut ConfigReader,
    channels: i64,
    default: Option<&[f64]>,
) -> Result<Option<Vec<f64>>, ConfigError> {
    each_channel(reader, "latents_mean", channels, default, f64::is_finite)
}

/// `latents_std` of `config.json`: a number above 0 for each channel.
pub(super) fn deviations(
    reader: &mut ConfigReader,
    channels: i64,
    default: Option<&[f64]>,
) -> Result<Option<Vec<f64>>, ConfigError> {
    each_channel(reader, "latents_std", channels, default, |std| std.is_finite() && std > 0.0)
}

fn each_channel(
    reader: &mut ConfigReader,
    key: &str,
    channels: i64,
    default: Option<&[f64]>,
    is_right: fn(f64) -> bool,
) -> Result<Option<Vec<f64>>, ConfigError> {
    let Some(numbers) = reader.floats(key)?.or_else(|| default.map(<[f64]>::to_vec)) else { return Ok(None) };
    if i64::try_from(numbers.len()) != Ok(channels) || !numbers.iter().all(|number| is_right(*number)) {
        return Err(reader.unsupported(key, json!(numbers), format!("and {channels} channels need a number each")));
    }
    Ok(Some(numbers))
}

/// What a VAE's `config.json` says of it.
pub trait Architecture: Clone + 'static {
    /// Reads `config.json` in the VAE's folder.
    ///
    /// # Errors
    /// No such file, or a value that this VAE does not compute, with its key.
    fn open(path: &Path) -> Result<Self, ConfigError> {
        Self::read(ConfigReader::open(path)?)
    }

    fn read(reader: ConfigReader) -> Result<Self, ConfigError>;

    /// Of the pictures that are encoded.
    fn picture_channels(&self) -> i64;

    fn latent_channels(&self) -> i64;

    /// How many times smaller latents are than the picture.
    fn downscale(&self) -> i64;

    fn scaling(&self) -> Scaling<'_>;

    /// What it is computed in where `kind` is wanted.
    fn kind(&self, kind: Kind) -> Kind;

    /// The encoder and the decoder, of the tensors below `root`.
    fn networks(&self, root: &Scope<'_>) -> Result<Networks, WeightsError>;

    /// What becomes of the decoder's output.
    fn finish(&self, pixels: Tensor) -> Result<Tensor, TorchError>;
}

#[derive(Debug)]
pub struct Networks {
    pub(super) encoder: Chain,
    pub(super) decoder: Chain,
}

/// Tensors as large as a layer's larger one that the layer has at a time, about.
const TENSORS: u64 = 3;

#[derive(Debug)]
pub struct Autoencoder<C> {
    networks: Networks,
    config: C,
    kind: Kind,
}

impl<C: Architecture> Autoencoder<C> {
    /// # Errors
    /// No room. What is missing or does not fit is listed by [`Weights::finish`].
    pub fn load(weights: &Weights, config: &C) -> Result<Self, WeightsError> {
        let root = weights.root();
        let kind = config.kind(root.kind());
        Ok(Self { networks: config.networks(&root.in_kind(kind))?, config: config.clone(), kind })
    }

    pub const fn config(&self) -> &C {
        &self.config
    }

    /// Of what [`Self::encode`] and [`Self::decode`] give.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes that encoding a picture of these sides takes as a whole, about.
    pub fn encoding_bytes(&self, sides: [i64; 2]) -> u64 {
        self.bytes(&self.networks.encoder, sides)
    }

    /// Bytes that decoding latents of these sides takes as a whole, about.
    pub fn decoding_bytes(&self, sides: [i64; 2]) -> u64 {
        self.bytes(&self.networks.decoder, sides)
    }

    fn bytes(&self, chain: &Chain, sides: [i64; 2]) -> u64 {
        TENSORS * chain.most_elements(sides).unsigned_abs() * self.kind.elt_size_in_bytes() as u64
    }

    /// `pixels` (B, picture, H, W) from -1 to 1 → latents of (B, latent, ⌊H / downscale⌋, ⌊W / downscale⌋)
    ///
    /// # Errors
    /// Another number of channels, a picture smaller than a latent, no memory.
    pub fn encode(&self, pixels: &Tensor, partition: Partition) -> Result<Gaussian, TorchError> {
        let moments = self.encode_unless(pixels, partition, &|| ControlFlow::Continue(()))?;
        moments.ok_or_else(|| TorchError::Other("encoding has stopped by itself".into()))
    }

    /// As [`Self::encode`]; none where `stop` said so, which is asked before each picture and each band.
    pub fn encode_unless(
        &self,
        pixels: &Tensor,
        partition: Partition,
        stop: Stop<'_>,
    ) -> Result<Option<Gaussian>, TorchError> {
        let (_, channels, height, width) = pixels.size4()?;
        let least = self.config.downscale();
        if channels != self.config.picture_channels() || height < least || width < least {
            return Err(TorchError::Other(format!("a picture of {:?} is not for this VAE", pixels.size())));
        }
        let pixels = pixels.f_to_kind(self.kind)?;
        let moments = run(&self.networks.encoder, &pixels, partition, 1, stop)?;
        moments.map(|moments| Gaussian::from_moments(&moments)).transpose()
    }

    /// `latents` (B, latent, h, w) as the encoder gives them → (B, picture, downscale · h, downscale · w), about -1 to 1
    ///
    /// # Errors
    /// Another number of channels, no memory.
    pub fn decode(&self, latents: &Tensor, partition: Partition) -> Result<Tensor, TorchError> {
        let pixels = self.decode_unless(latents, partition, &|| ControlFlow::Continue(()))?;
        pixels.ok_or_else(|| TorchError::Other("decoding has stopped by itself".into()))
    }

    /// As [`Self::decode`]; none where `stop` said so, which is asked before each picture and each band.
    pub fn decode_unless(
        &self,
        latents: &Tensor,
        partition: Partition,
        stop: Stop<'_>,
    ) -> Result<Option<Tensor>, TorchError> {
        let (_, channels, height, width) = latents.size4()?;
        if channels != self.config.latent_channels() || height < 1 || width < 1 {
            return Err(TorchError::Other(format!("latents of {:?} are not for this VAE", latents.size())));
        }
        let latents = latents.f_to_kind(self.kind)?;
        let pixels = run(&self.networks.decoder, &latents, partition, self.config.downscale(), stop)?;
        pixels.map(|pixels| self.config.finish(pixels.f_contiguous()?)).transpose()
    }
}

/// `unit` is the number of the picture's pixels in one of the input's.
fn run(
    chain: &Chain,
    input: &Tensor,
    partition: Partition,
    unit: i64,
    stop: Stop<'_>,
) -> Result<Option<Tensor>, TorchError> {
    let whole = |input: &Tensor| chain.forward(0..chain.len(), chain.layout().of_tensor(input)?);
    if partition == Partition::Whole {
        return if stop().is_break() { Ok(None) } else { whole(input).map(Some) };
    }
    let mut outputs = Vec::new();
    for picture in input.f_split(1, 0)? {
        if stop().is_break() {
            return Ok(None);
        }
        let output = match partition {
            Partition::Bands(side) => in_bands(chain, &picture, side, unit, stop)?,
            Partition::Whole | Partition::Slices => Some(whole(&picture)?),
        };
        let Some(output) = output else { return Ok(None) };
        outputs.push(output);
    }
    if outputs.len() == 1 { Ok(outputs.pop()) } else { Ok(Some(Tensor::f_cat(&outputs, 0)?)) }
}

fn in_bands(
    chain: &Chain,
    picture: &Tensor,
    side: i64,
    unit: i64,
    stop: Stop<'_>,
) -> Result<Option<Tensor>, TorchError> {
    let (_, _, height, width) = picture.size4()?;
    let (side, device) = ((side / unit).max(1), picture.device());
    let limit = chain.most_elements([side, side]);
    let picture = chain.layout().of_tensor(picture)?;
    let Some(range) = chain.large([height, width], limit) else {
        return chain.forward(0..chain.len(), picture).map(Some);
    };
    let small = chain.forward(0..range.start, picture)?;
    let large = Bands::new(chain, limit, stop, device).forward(range.clone(), small)?;
    large.map(|large| chain.forward(range.end..chain.len(), large)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_are_scaled_as_a_whole_or_for_each_channel_and_back() -> Result<(), TorchError> {
        let latents = Tensor::f_from_slice(&[3.0_f32, 5.0])?.f_reshape([1, 2, 1, 1])?;
        let each = Scaling::EachChannel { mean: &[1.0, 2.0], std: &[2.0, 4.0], factor: 0.5 };
        let whole = Scaling::Whole { channels: 2, factor: 0.5, shift: 1.0 };
        for (scaling, expected) in [(each, [0.5, 0.375]), (whole, [1.0, 2.0])] {
            let scaled = scaling.scale(&latents)?;
            assert_eq!(Vec::<f32>::try_from(scaled.f_flatten(0, -1)?)?, expected, "{scaling:?}");
            assert_eq!(scaling.unscale(&scaled)?, latents, "{scaling:?}");
        }
        Ok(())
    }
}
