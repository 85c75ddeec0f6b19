//! From pixels to a file: PNG, JPEG or WebP, with metadata, the same bytes for the same input.
//!
//! Samples may be a memory map of a file much larger than memory: PNG and JPEG take them row by row.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use atelier_domain::OutputFormat;
use sha2::{Digest, Sha256};

use crate::{Color, ImageError, Metadata, decode::channels, exif};

mod jpeg;
mod png;
mod webp;

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct EncodeSpec<'a> {
    pub format: OutputFormat,
    /// 1 to 100 for JPEG and WebP; PNG is lossless.
    pub quality: u8,
    pub width: u32,
    pub height: u32,
    pub color: Color,
    pub alpha: bool,
    /// Written as it is; `Metadata::for_output` prepares it.
    pub metadata: &'a Metadata,
}

/// Interleaved samples, rows from top to bottom, nothing between the rows.
#[derive(Clone, Copy, Debug)]
pub enum Samples<'a> {
    U8(&'a [u8]),
    U16(&'a [u16]),
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub bytes: u64,
    /// Of the file, in hexadecimal digits.
    pub sha256: String,
    /// What was left out or changed, for the job's record.
    pub notes: Vec<String>,
}

/// Writes the file at `path`, whatever was there before. It is not made durable; that is the caller's.
///
/// 16 bits a sample are kept by PNG and rounded to 8 for the others. JPEG has no alpha: the picture is laid over white.
///
/// # Errors
/// A side longer than the format allows, a file system's error, or samples that do not make the picture.
pub fn encode(samples: Samples<'_>, spec: &EncodeSpec<'_>, path: &Path) -> Result<Encoded, ImageError> {
    check_sides(spec)?;
    let rows = Rows::new(samples, spec)?;
    let mut metadata = spec.metadata.clone();
    let mut notes = Vec::from_iter(metadata.drop_foreign_profile(spec.color));
    if spec.format != OutputFormat::Png
        && let Some(parameters) = metadata.parameters.take()
    {
        metadata.exif = Some(exif::with_user_comment(metadata.exif.as_deref(), &parameters));
    }
    let mut file = BufWriter::with_capacity(256 << 10, Hashing::new(File::create(path)?));
    notes.extend(match spec.format {
        OutputFormat::Png => png::write(&rows, spec, &metadata, &mut file)?,
        OutputFormat::Jpeg => jpeg::write(&rows, spec, &metadata, &mut file)?,
        OutputFormat::Webp => webp::write(&rows, spec, &metadata, &mut file)?,
    });
    let hashing = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    let (bytes, sha256) = hashing.finish();
    Ok(Encoded { bytes, sha256, notes })
}

/// Rounds instead of cutting off: 65535 / 255 is 257.
pub(crate) fn to_u8(sample: u16) -> u8 {
    u8::try_from((u32::from(sample) + 128) / 257).unwrap_or(u8::MAX)
}

fn check_sides(spec: &EncodeSpec<'_>) -> Result<(), ImageError> {
    let (format, max_side, instead) = match spec.format {
        OutputFormat::Png => ("PNG", i32::MAX.unsigned_abs(), "png"),
        OutputFormat::Jpeg => ("JPEG", 65_535, "png"),
        OutputFormat::Webp if spec.width.max(spec.height) <= 65_535 => ("WebP", 16_383, "jpeg\" or \"png"),
        OutputFormat::Webp => ("WebP", 16_383, "png"),
    };
    if spec.width.max(spec.height) > max_side {
        return Err(ImageError::SideTooLong { format, width: spec.width, height: spec.height, max_side, instead });
    }
    Ok(())
}

/// The picture row by row.
struct Rows<'a> {
    samples: Samples<'a>,
    /// Samples of one row.
    row: usize,
    height: usize,
}

impl<'a> Rows<'a> {
    fn new(samples: Samples<'a>, spec: &EncodeSpec<'_>) -> Result<Self, ImageError> {
        let row = spec.width as usize * channels(spec.color, spec.alpha);
        let height = spec.height as usize;
        let actual = match samples {
            Samples::U8(samples) => samples.len(),
            Samples::U16(samples) => samples.len(),
        };
        if row == 0 || height == 0 || row.checked_mul(height) != Some(actual) {
            let detail = format!("{actual} samples do not make {} x {} pixels", spec.width, spec.height);
            return Err(ImageError::Encoder { detail });
        }
        Ok(Self { samples, row, height })
    }

    fn row(&self, y: usize) -> Samples<'a> {
        let range = y * self.row..(y + 1) * self.row;
        match self.samples {
            Samples::U8(samples) => Samples::U8(&samples[range]),
            Samples::U16(samples) => Samples::U16(&samples[range]),
        }
    }

    /// A row with 8 bits a sample; `buffer` holds it where it had to be converted.
    fn row_u8<'b>(&self, y: usize, buffer: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        match self.row(y) {
            Samples::U8(row) => row,
            Samples::U16(row) => {
                buffer.clear();
                buffer.extend(row.iter().map(|&sample| to_u8(sample)));
                buffer
            }
        }
    }
}

/// Counts and hashes what passes through.
struct Hashing<W> {
    writer: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn new(writer: W) -> Self {
        Self { writer, hash: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (u64, String) {
        (self.bytes, format!("{:x}", self.hash.finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
