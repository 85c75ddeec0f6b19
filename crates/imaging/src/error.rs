//! What can be wrong with a picture, told so that a person knows what to do about it.

use std::io;

use atelier_domain::{ErrorCode, ErrorInfo};

use crate::MediaType;

/// Why a picture was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("the file is empty")]
    Empty,
    /// The beginning is fine and the end is missing: perhaps it is still being written.
    #[error("the {} file is cut short: {detail}", media_type.name())]
    Truncated { media_type: MediaType, detail: String },
    #[error("the {} file is damaged: {detail}", media_type.name())]
    Corrupt { media_type: MediaType, detail: String },
    /// None of the supported types, or a variant of one that is not supported. `found` completes "this is …".
    #[error("this is {found}, which Atelier does not read")]
    Unsupported { found: String },
    /// More pixels than the limit.
    #[error("the picture has {width} x {height} pixels; the limit is {max_pixels} pixels")]
    TooLarge { width: u32, height: u32, max_pixels: u64 },
    /// More bytes than the limit.
    #[error("the file has {bytes} bytes; the limit is {max_bytes}")]
    TooManyBytes { bytes: u64, max_bytes: u64 },
    /// A side that the output format cannot express.
    #[error("a picture of {width} x {height} pixels does not fit into {format}, whose sides end at {max_side}")]
    SideTooLong { format: &'static str, width: u32, height: u32, max_side: u32, instead: &'static str },
    /// The caller's mistake, or an encoder's: no fault of the picture's.
    #[error("writing the picture failed: {detail}")]
    Encoder { detail: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ImageError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Empty => ErrorCode::ImageEmpty,
            Self::Truncated { .. } => ErrorCode::ImageTruncated,
            Self::Corrupt { .. } => ErrorCode::ImageCorrupt,
            Self::Unsupported { .. } => ErrorCode::ImageUnsupported,
            Self::TooLarge { .. } => ErrorCode::ImageTooLarge,
            Self::TooManyBytes { .. } => ErrorCode::UploadTooLarge,
            Self::SideTooLong { .. } => ErrorCode::InvalidParams,
            Self::Encoder { .. } => ErrorCode::Internal,
            Self::Io(error) => io_code(error),
        }
    }

    /// Whether more bytes may still come: an empty file is one whose writer has not begun.
    pub fn is_truncated(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::Empty)
    }

    /// For the job that works on the file `name`.
    pub fn info(&self, name: &str) -> ErrorInfo {
        ErrorInfo::new(self.code(), format!("{name}: {self}")).with_hint(self.hint())
    }

    fn hint(&self) -> String {
        match self {
            Self::Empty | Self::Truncated { .. } => "Copy or upload the file again; what is here is incomplete.".into(),
            Self::Corrupt { .. } => "Check that the file opens elsewhere, and export or copy it again.".into(),
            Self::Unsupported { .. } => "Send a JPEG, PNG, WebP, BMP, TIFF or GIF.".into(),
            Self::TooLarge { .. } => "Scale the picture down or cut it up, or raise limits.pixels.".into(),
            Self::TooManyBytes { .. } => "Send a smaller file, or raise limits.upload.".into(),
            Self::SideTooLong { instead, .. } => format!("Ask for format = \"{instead}\"."),
            Self::Io(error) if io_code(error) == ErrorCode::DiskFull => {
                "Make room on the disk; the job goes on by itself.".into()
            }
            Self::Io(error) if io_code(error) == ErrorCode::PermissionDenied => {
                "Give the user that Atelier runs as access to the file.".into()
            }
            Self::Encoder { .. } | Self::Io(_) => String::new(),
        }
    }
}

fn io_code(error: &io::Error) -> ErrorCode {
    use io::ErrorKind as Kind;
    const CODES: [(Kind, ErrorCode); 7] = [
        (Kind::NotFound, ErrorCode::InputMissing),
        (Kind::NotADirectory, ErrorCode::InputMissing),
        (Kind::PermissionDenied, ErrorCode::PermissionDenied),
        (Kind::ReadOnlyFilesystem, ErrorCode::PermissionDenied),
        (Kind::StorageFull, ErrorCode::DiskFull),
        (Kind::QuotaExceeded, ErrorCode::DiskFull),
        (Kind::OutOfMemory, ErrorCode::OutOfMemory),
    ];
    CODES.into_iter().find(|(kind, _)| *kind == error.kind()).map_or(ErrorCode::IoError, |(_, code)| code)
}
