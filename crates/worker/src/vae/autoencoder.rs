//! What the autoencoders have in common: an encoder and a decoder that a batch passes whole, picture by picture, or in
//! bands.

use std::ops::ControlFlow;

use tch::{Kind, Tensor};

use super::{
    bands::{Bands, Stop},
    chain::Chain,
};
use crate::{
    torch::TorchError,
    weights::{Scope, WeightsError},
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

/// What an autoencoder's `config.json` says of its tensors, and its two networks.
pub trait Architecture: Clone {
    /// Of the pictures that are encoded.
    fn picture_channels(&self) -> i64;

    fn latent_channels(&self) -> i64;

    /// How many times smaller latents are than the picture.
    fn downscale(&self) -> i64;

    /// What becomes of the decoder's output.
    fn finish(&self, pixels: Tensor) -> Result<Tensor, TorchError>;
}

/// How the networks of an architecture are built; what it knows of its layers stays within this module.
pub(super) trait Build: Architecture {
    fn encoder(&self, root: &Scope<'_>) -> Result<Chain, WeightsError>;

    fn decoder(&self, root: &Scope<'_>) -> Result<Chain, WeightsError>;
}

#[derive(Debug)]
pub struct Autoencoder<C> {
    encoder: Chain,
    decoder: Chain,
    config: C,
    kind: Kind,
}

impl<C: Architecture> Autoencoder<C> {
    /// Takes the tensors of both networks.
    pub(super) fn build(root: &Scope<'_>, config: &C) -> Result<Self, WeightsError>
    where
        C: Build,
    {
        Ok(Self {
            encoder: config.encoder(root)?,
            decoder: config.decoder(root)?,
            config: config.clone(),
            kind: root.kind(),
        })
    }

    pub const fn config(&self) -> &C {
        &self.config
    }

    /// Of what [`Self::encode`] and [`Self::decode`] give.
    pub const fn kind(&self) -> Kind {
        self.kind
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
        let moments = run(&self.encoder, &pixels, partition, 1, stop)?;
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
        let pixels = run(&self.decoder, &latents, partition, self.config.downscale(), stop)?;
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
