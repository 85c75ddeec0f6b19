//! What travels with the pixels: EXIF, the colour profile and XMP, and how they must change on the way.

use atelier_domain::protocol::GpsPolicy;

use crate::{
    Color,
    color::Space,
    exif::{self, Edit},
    xmp,
};

/// The metadata of a picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// A TIFF-formatted block, without the "Exif\0\0" of a JPEG.
    pub exif: Option<Vec<u8>>,
    pub icc: Option<Vec<u8>>,
    /// One UTF-8 packet.
    pub xmp: Option<Vec<u8>>,
    /// A1111's text on how the picture was generated: a text of a PNG, and the user's comment in the EXIF of others.
    pub parameters: Option<String>,
}

impl Metadata {
    /// What an output of this size and colour may carry, and notes on what was left out.
    ///
    /// The orientation becomes 1, since it has been applied; sizes become the output's; the thumbnail goes, because it
    /// shows the source; the position goes when asked. What cannot be understood is left out rather than passed on.
    pub fn for_output(&self, width: u32, height: u32, gps: GpsPolicy, color: Color) -> (Self, Vec<String>) {
        let edit = Edit { width, height, strip_gps: gps == GpsPolicy::Strip };
        let mut notes = Vec::new();
        let exif = self.exif.as_deref().and_then(|block| exif::edit(block, edit));
        if let Some((_, more)) = &exif {
            notes.extend_from_slice(more);
        } else if self.exif.is_some() {
            notes.push("The EXIF data is damaged and was left out.".into());
        }
        let exif = exif.map(|(block, _)| block);
        let xmp = self.xmp.as_deref().and_then(|packet| xmp::edit(packet, edit));
        if self.xmp.is_some() && xmp.is_none() {
            notes.push("The XMP cannot be changed safely and was left out.".into());
        }
        let mut output = Self { exif, icc: self.icc.clone(), xmp, parameters: self.parameters.clone() };
        notes.extend(output.drop_foreign_profile(color));
        (output, notes)
    }

    /// Leaves out a profile that describes another colour space than the pixels have: it would turn every colour.
    pub(crate) fn drop_foreign_profile(&mut self, color: Color) -> Option<String> {
        let profile = self.icc.as_deref()?;
        let note = match Space::of(profile) {
            Some(space) if space == color.space() => return None,
            Some(space) => {
                format!(
                    "The {} colour profile does not fit a {} picture and was left out.",
                    space.name(),
                    color.space().name()
                )
            }
            None => "The colour profile is damaged and was left out.".into(),
        };
        self.icc = None;
        Some(note)
    }
}
