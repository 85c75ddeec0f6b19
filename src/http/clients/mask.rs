//! Masks as other programs draw them, turned into ours: white is painted anew, black stays.

use std::sync::Arc;

use atelier_domain::{ErrorCode, OutputFormat};
use atelier_imaging::{Color, EncodeSpec, ImageError, Limits, Metadata, Pixels, Samples, decode, encode};

use super::super::{Http, intake::Received, problem::Problem};
use crate::config::Config;

/// How a mask says where to paint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drawn {
    /// Where it is white.
    White,
    /// Where it is black.
    Black,
    /// Where it is transparent; white where it has no transparency.
    Transparent,
}

/// The mask as ours. One that is ours already is not touched.
pub(crate) async fn ours(http: &Arc<Http>, mask: Received, drawn: Drawn) -> Result<Received, Problem> {
    if drawn == Drawn::White {
        return Ok(mask);
    }
    let _core = http.inspections.acquire().await;
    let config = http.app.config();
    let turned = tokio::task::spawn_blocking(move || {
        let result = turn(&mask, drawn, &config);
        result.map(|()| mask)
    });
    let failed = |_| Problem::new(ErrorCode::Internal, "the mask could not be looked at");
    turned.await.map_err(failed)?.map_err(|error| error.info("mask").into())
}

fn turn(mask: &Received, drawn: Drawn, config: &Config) -> Result<(), ImageError> {
    let limits = Limits { max_pixels: config.limits.pixels, max_bytes: config.limits.upload };
    let picture = decode(mask.path(), &limits)?;
    if drawn == Drawn::Transparent && !picture.alpha {
        return Ok(());
    }
    let channels = picture.channels();
    let of = |pixel: &[u8]| match drawn {
        Drawn::Transparent => 255 - pixel.last().copied().unwrap_or(255),
        Drawn::Black | Drawn::White => 255 - pixel.first().copied().unwrap_or(0),
    };
    let samples: Vec<u8> = match &picture.pixels {
        Pixels::U8(samples) => samples.chunks_exact(channels).map(of).collect(),
        Pixels::U16(samples) => samples
            .chunks_exact(channels)
            .map(|pixel| {
                let high: Vec<u8> = pixel.iter().map(|sample| sample.to_be_bytes()[0]).collect();
                of(&high)
            })
            .collect(),
    };
    let spec = EncodeSpec {
        format: OutputFormat::Png,
        quality: 100,
        width: picture.width,
        height: picture.height,
        color: Color::Gray,
        alpha: false,
        metadata: &Metadata::default(),
    };
    encode(Samples::U8(&samples), &spec, mask.path()).map(drop)
}
