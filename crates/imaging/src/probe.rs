//! A look at a picture without decoding it: what it is, how large, and whether it is whole.
//!
//! Reads the file once as a stream and keeps no more than its metadata, so that the daemon may probe files of any
//! size beside its other work.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use crate::{
    ImageError, MediaType, Metadata,
    container::{self, Layout, Source},
    exif,
    media::{self, HEAD},
};

/// What is refused before anything is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_pixels: u64,
    pub max_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 179_000_000, max_bytes: 100 << 20 }
    }
}

impl Limits {
    /// # Errors
    /// More pixels than allowed, or none.
    pub(crate) fn check_pixels(&self, media_type: MediaType, width: u32, height: u32) -> Result<(), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Corrupt { media_type, detail: "a side of the picture is 0 pixels long".into() });
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(ImageError::TooLarge { width, height, max_pixels: self.max_pixels });
        }
        Ok(())
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub media_type: MediaType,
    pub bytes: u64,
    /// Pixels, after the orientation has been applied.
    pub width: u32,
    /// Pixels, after the orientation has been applied.
    pub height: u32,
    /// More than one frame; only the first is used.
    pub animated: bool,
}

/// Reads the headers of the picture at `path` and makes sure that its end is there.
///
/// # Errors
/// Whatever `decode` would say of the file too, except damage inside the compressed pixels.
pub fn probe(path: &Path, limits: &Limits) -> Result<Probe, ImageError> {
    let (file, bytes) = open(path, limits)?;
    let (media_type, layout) = inspect(file, bytes, limits)?;
    let (width, height) = exif::oriented(layout.width, layout.height, layout.orientation());
    Ok(Probe { media_type, bytes, width, height, animated: layout.frames > 1 })
}

/// Reads what the picture at `path` carries beside its pixels, without decoding it.
///
/// # Errors
/// As [`probe`].
pub fn metadata(path: &Path, limits: &Limits) -> Result<Metadata, ImageError> {
    let (file, bytes) = open(path, limits)?;
    Ok(inspect(file, bytes, limits)?.1.metadata)
}

/// Opens a regular file of an allowed size.
pub(crate) fn open(path: &Path, limits: &Limits) -> Result<(File, u64), ImageError> {
    // Before opening: to open a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file").into());
    }
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes == 0 {
        return Err(ImageError::Empty);
    }
    if bytes > limits.max_bytes {
        return Err(ImageError::TooManyBytes { bytes, max_bytes: limits.max_bytes });
    }
    Ok((file, bytes))
}

/// Sniffs the type and walks the container, from its first byte to its end.
pub(crate) fn inspect<R: Read + Seek>(
    mut reader: R,
    bytes: u64,
    limits: &Limits,
) -> Result<(MediaType, Layout), ImageError> {
    let mut head = Vec::with_capacity(HEAD);
    reader.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    let Some(media_type) = MediaType::sniff(&head) else {
        return Err(match media::may_become(&head) {
            Some(media_type) => ImageError::Truncated { media_type, detail: format!("it ends after {bytes} bytes") },
            None => ImageError::Unsupported { found: media::describe(&head).into() },
        });
    };
    reader.seek(SeekFrom::Start(0))?;
    let layout = container::walk(&mut Source::new(reader, media_type, bytes), limits)?;
    limits.check_pixels(media_type, layout.width, layout.height)?;
    Ok((media_type, layout))
}
