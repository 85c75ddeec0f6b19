//! The containers of the six types: where the metadata lies, how large the picture is, and whether the end is there.
//!
//! One file per type. A walker reads headers and skips pixels; it never decodes. It trusts no length in the file.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

use crate::{ImageError, Limits, MediaType, Metadata, exif};

mod bmp;
mod gif;
pub(crate) mod jpeg;
mod png;
mod tiff;
mod webp;

/// What a container says about its picture.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Pixels, as stored: before the orientation is applied.
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Frames or pages; a walker may stop counting at two.
    pub(crate) frames: u32,
    pub(crate) metadata: Metadata,
    /// From where the container keeps it outside of EXIF.
    pub(crate) own_orientation: Option<u8>,
    /// TIFF only: the samples are indices into a palette.
    pub(crate) palette: bool,
    /// What the decoder must find in the file instead of what is there, and where.
    pub(crate) patch: Option<(usize, Vec<u8>)>,
    /// JPEG only.
    pub(crate) jpeg: Option<jpeg::Jpeg>,
    pub(crate) notes: Vec<String>,
}

impl Layout {
    /// 1 to 8, 1 when nothing is said.
    pub(crate) fn orientation(&self) -> u8 {
        self.own_orientation.or_else(|| self.metadata.exif.as_deref().and_then(exif::orientation)).unwrap_or(1)
    }

    fn sized(width: u32, height: u32) -> Self {
        Self { width, height, frames: 1, ..Self::default() }
    }
}

/// Larger metadata than this is left behind, with a note.
const MAX_METADATA: u64 = 16 << 20;

pub(crate) fn walk<R: Read + Seek>(source: &mut Source<R>, limits: &Limits) -> Result<Layout, ImageError> {
    match source.media_type {
        MediaType::Jpeg => jpeg::walk(source),
        MediaType::Png => png::walk(source),
        MediaType::WebP => webp::walk(source),
        MediaType::Bmp => bmp::walk(source, limits),
        MediaType::Tiff => tiff::walk(source),
        MediaType::Gif => gif::walk(source),
    }
}

/// A file being walked: buffered, of known length; running off its end is the error `Truncated`.
pub(crate) struct Source<R> {
    reader: BufReader<R>,
    media_type: MediaType,
    length: u64,
    position: u64,
}

impl<R: Read + Seek> Source<R> {
    pub(crate) fn new(reader: R, media_type: MediaType, length: u64) -> Self {
        Self { reader: BufReader::with_capacity(64 << 10, reader), media_type, length, position: 0 }
    }

    fn remaining(&self) -> u64 {
        self.length.saturating_sub(self.position)
    }

    fn truncated(&self, expected: &str) -> ImageError {
        let detail = format!("it ends after {} bytes, before {expected}", self.length);
        ImageError::Truncated { media_type: self.media_type, detail }
    }

    fn corrupt(&self, detail: impl Into<String>) -> ImageError {
        ImageError::Corrupt { media_type: self.media_type, detail: detail.into() }
    }

    fn fill(&mut self, buffer: &mut [u8], expected: &str) -> Result<(), ImageError> {
        match self.reader.read_exact(buffer) {
            Ok(()) => {
                self.position += buffer.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(self.truncated(expected)),
            Err(error) => Err(error.into()),
        }
    }

    fn array<const N: usize>(&mut self, expected: &str) -> Result<[u8; N], ImageError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, expected)?;
        Ok(bytes)
    }

    /// `count` bytes, which must be there: nothing is allocated on a length that the file does not have.
    fn bytes(&mut self, count: u64, expected: &str) -> Result<Vec<u8>, ImageError> {
        if count > self.remaining() {
            return Err(self.truncated(expected));
        }
        let mut bytes = vec![0; usize::try_from(count).map_err(|_| self.truncated(expected))?];
        self.fill(&mut bytes, expected)?;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64, expected: &str) -> Result<(), ImageError> {
        if count > self.remaining() {
            return Err(self.truncated(expected));
        }
        self.reader.seek_relative(i64::try_from(count).map_err(|_| self.truncated(expected))?)?;
        self.position += count;
        Ok(())
    }

    fn seek(&mut self, position: u64, expected: &str) -> Result<(), ImageError> {
        if position > self.length {
            return Err(self.truncated(expected));
        }
        self.reader.seek(SeekFrom::Start(position))?;
        self.position = position;
        Ok(())
    }

    /// The bytes up to and including the next `byte`; false at the end of the file.
    fn skip_past(&mut self, byte: u8) -> Result<bool, ImageError> {
        let skipped = self.reader.skip_until(byte)?;
        self.position += skipped as u64;
        // What was skipped ends with the byte itself, unless the file ended first.
        Ok(skipped > 0 && (self.position < self.length || self.ends_with(byte)?))
    }

    /// Whether the last byte of the file, which has just been read, is `byte`.
    fn ends_with(&mut self, byte: u8) -> Result<bool, ImageError> {
        self.reader.seek_relative(-1)?;
        let mut last = [0];
        self.reader.read_exact(&mut last)?;
        Ok(last[0] == byte)
    }
}

/// `found` completes "this is …".
fn unsupported(found: impl Into<String>) -> ImageError {
    ImageError::Unsupported { found: found.into() }
}
