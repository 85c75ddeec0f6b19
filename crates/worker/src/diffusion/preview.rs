//! The file of a preview, in the job's folder. What it shows is said by [`super::colors`].

use std::path::Path;

use atelier_domain::OutputFormat;
use atelier_imaging::{
    Color, EncodeSpec, ImageError, Metadata, Samples, encode,
    resize::{Filter, resize_u8},
};

use super::pixels::Rgb;
use crate::durable;

/// The file in the job's folder.
pub const FILE: &str = "preview.jpg";
/// The longer side of a preview.
const SIDE: usize = 256;

/// Puts the preview into the job's folder, where a reader finds either the last one or this one.
pub fn write(folder: &Path, picture: &Rgb) -> Result<(), ImageError> {
    let longer = picture.width.max(picture.height);
    let scaled = |side: usize| (side * SIDE / longer).max(1);
    let (width, height) = (scaled(picture.width), scaled(picture.height));
    let samples = resize_u8(&picture.samples, picture.width, picture.height, 3, width, height, Filter::Bicubic);
    let spec = EncodeSpec {
        format: OutputFormat::Jpeg,
        quality: 80,
        width: u32::try_from(width).unwrap_or(1),
        height: u32::try_from(height).unwrap_or(1),
        color: Color::Rgb,
        alpha: false,
        metadata: &Metadata::default(),
    };
    let part = folder.join(format!("{FILE}.part"));
    encode(Samples::U8(&samples), &spec, &part)?;
    std::fs::rename(&part, folder.join(FILE))?;
    Ok(())
}

pub fn clear(folder: &Path) -> std::io::Result<()> {
    durable::remove(&folder.join(FILE))
}
