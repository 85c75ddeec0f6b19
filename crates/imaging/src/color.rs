//! Colour profiles: what they describe, and the way from ink to light.

use moxcms::{ColorProfile, DataColorSpace, Layout, RenderingIntent, TransformOptions};

use crate::Color;

/// The colour space that an ICC profile describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Gray,
    Rgb,
    Cmyk,
    Other,
}

impl Space {
    /// `None` when the bytes are no ICC profile.
    pub(crate) fn of(profile: &[u8]) -> Option<Self> {
        if profile.len() < 132 || profile.get(36..40) != Some(b"acsp") {
            return None;
        }
        Some(match profile.get(16..20)? {
            b"GRAY" => Self::Gray,
            b"RGB " => Self::Rgb,
            b"CMYK" => Self::Cmyk,
            _ => Self::Other,
        })
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gray => "grey",
            Self::Rgb => "RGB",
            Self::Cmyk => "CMYK",
            Self::Other => "different",
        }
    }
}

impl Color {
    pub(crate) const fn space(self) -> Space {
        match self {
            Self::Gray => Space::Gray,
            Self::Rgb => Space::Rgb,
        }
    }
}

/// Ink (0 none, 255 full) to sRGB, through the profile that the ink is meant for.
///
/// `None` when the profile cannot be used.
pub(crate) fn cmyk_to_srgb(cmyk: &[u8], profile: &[u8]) -> Option<Vec<u8>> {
    let source = ColorProfile::new_from_slice(profile).ok().filter(|p| p.color_space == DataColorSpace::Cmyk)?;
    let options =
        TransformOptions { rendering_intent: RenderingIntent::RelativeColorimetric, ..TransformOptions::default() };
    let transform = source.create_transform_8bit(Layout::Rgba, &ColorProfile::new_srgb(), Layout::Rgb, options).ok()?;
    let mut rgb = vec![0; cmyk.len() / 4 * 3];
    transform.transform(cmyk, &mut rgb).ok()?;
    Some(rgb)
}

/// Ink (0 none, 255 full) to RGB without a profile: as if every ink took away its share of the light.
pub(crate) fn cmyk_to_rgb_naively(cmyk: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(cmyk.len() / 4 * 3);
    for ink in cmyk.as_chunks::<4>().0 {
        let [cyan, magenta, yellow, black] = ink.map(|ink| u16::from(255 - ink));
        for light in [cyan, magenta, yellow] {
            rgb.push(u8::try_from((light * black + 127) / 255).unwrap_or(u8::MAX));
        }
    }
    rgb
}

/// One pixel of full-range YCbCr (BT.601, as JPEG has it) to RGB.
pub(crate) fn ycbcr_to_rgb([luma, blue, red]: [u8; 3]) -> [u8; 3] {
    let (luma, blue, red) = (i32::from(luma) << 16, i32::from(blue) - 128, i32::from(red) - 128);
    [luma + 91_881 * red, luma - 22_554 * blue - 46_802 * red, luma + 116_130 * blue]
        .map(|value| u8::try_from(((value + (1 << 15)) >> 16).clamp(0, 255)).unwrap_or(u8::MAX))
}
