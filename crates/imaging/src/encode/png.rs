//! PNG output, streamed row by row.

use std::{borrow::Cow, io::Write};

use png::{
    BitDepth, ColorType, DeflateCompression, Encoder, EncodingError, Filter, Info,
    text_metadata::{ITXtChunk, TEXtChunk},
};

use super::{EncodeSpec, Rows, Samples};
use crate::{Color, ImageError, Metadata};

/// Bytes of one IDAT chunk.
const CHUNK: usize = 256 << 10;

pub(super) fn write(
    rows: &Rows<'_>,
    spec: &EncodeSpec<'_>,
    metadata: &Metadata,
    writer: &mut impl Write,
) -> Result<Vec<String>, ImageError> {
    let mut notes = Vec::new();
    let mut info = Info::with_size(spec.width, spec.height);
    info.icc_profile = metadata.icc.as_deref().map(Cow::Borrowed);
    info.exif_metadata = metadata.exif.as_deref().map(Cow::Borrowed);
    match metadata.xmp.as_deref().map(std::str::from_utf8) {
        Some(Ok(xmp)) => info.utf8_text.push(ITXtChunk::new("XML:com.adobe.xmp", xmp)),
        Some(Err(_)) => notes.push("The XMP is no UTF-8 text and was left out.".into()),
        None => {}
    }
    if let Some(parameters) = metadata.parameters.as_deref() {
        // Plain text where it can be, for readers that know nothing else.
        if parameters.is_ascii() {
            info.uncompressed_latin1_text.push(TEXtChunk::new("parameters", parameters));
        } else {
            info.utf8_text.push(ITXtChunk::new("parameters", parameters));
        }
    }
    info.color_type = match (spec.color, spec.alpha) {
        (Color::Gray, false) => ColorType::Grayscale,
        (Color::Gray, true) => ColorType::GrayscaleAlpha,
        (Color::Rgb, false) => ColorType::Rgb,
        (Color::Rgb, true) => ColorType::Rgba,
    };
    info.bit_depth = match rows.samples {
        Samples::U8(_) => BitDepth::Eight,
        Samples::U16(_) => BitDepth::Sixteen,
    };
    let mut encoder = Encoder::with_info(writer, info).map_err(fail)?;
    // Measured on 12 megapixels: level 6 takes half as long again for 6 % less, the fast mode a quarter for 70 % more.
    encoder.set_deflate_compression(DeflateCompression::Level(3));
    encoder.set_filter(Filter::Adaptive);
    let mut encoder = encoder.write_header().map_err(fail)?;
    let mut stream = encoder.stream_writer_with_size(CHUNK).map_err(fail)?;
    let mut big_endian = Vec::new();
    for y in 0..rows.height {
        match rows.row(y) {
            Samples::U8(row) => stream.write_all(row)?,
            Samples::U16(row) => {
                big_endian.clear();
                big_endian.extend(row.iter().flat_map(|sample| sample.to_be_bytes()));
                stream.write_all(&big_endian)?;
            }
        }
    }
    stream.finish().map_err(fail)?;
    encoder.finish().map_err(fail)?;
    Ok(notes)
}

fn fail(error: EncodingError) -> ImageError {
    if let EncodingError::IoError(error) = error {
        return error.into();
    }
    ImageError::Encoder { detail: error.to_string() }
}
