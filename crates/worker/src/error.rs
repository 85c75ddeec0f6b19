//! Why a job ended without an output, and what the daemon is told.

use std::{
    io,
    path::{Path, PathBuf},
};

use atelier_domain::{ErrorCode, ErrorInfo, protocol::Stop};
use atelier_imaging::ImageError;

use crate::{models::ModelError, torch::TorchError};

#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// What was asked cannot be done.
    #[error("{0}")]
    Refused(ErrorInfo),
    #[error("{name}: {error}")]
    Image { name: String, error: ImageError },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("{0}")]
    Torch(#[from] TorchError),
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    /// No failure: the daemon has stopped the job. `step` is where a restart would go on.
    #[error("stopped at step {step}")]
    Stopped { how: Stop, step: u32 },
}

impl JobError {
    pub fn refused(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused(ErrorInfo::new(code, message).with_hint(hint))
    }

    /// For `map_err`, with the file that it is about.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { path: path.into(), error }
    }

    pub const fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Torch(TorchError::OutOfMemory(_)) => true,
            Self::Model(error) => error.is_out_of_memory(),
            Self::Torch(TorchError::Other(_))
            | Self::Refused(_)
            | Self::Image { .. }
            | Self::Io { .. }
            | Self::Stopped { .. } => false,
        }
    }

    /// The same error; a stop is one at `step`.
    #[must_use]
    pub fn stopped_at(self, step: u32) -> Self {
        if let Self::Stopped { how, .. } = self { Self::Stopped { how, step } } else { self }
    }

    /// For the daemon. `device` is `cpu` or `cuda:N`.
    pub fn info(&self, device: &str) -> ErrorInfo {
        match self {
            Self::Refused(info) => info.clone(),
            Self::Image { name, error } => error.info(name),
            Self::Model(error) => error.info(),
            Self::Torch(TorchError::OutOfMemory(detail)) => {
                let hint = if device == "cpu" {
                    "Free memory, or give the service more of it; smaller pictures need less."
                } else {
                    "Close other programs that use the card, or set worker.device = \"cpu\"."
                };
                ErrorInfo::new(ErrorCode::OutOfMemory, format!("{device} is out of memory: {detail}")).with_hint(hint)
            }
            // On the CPU torch fails on our mistakes only; a card also fails by itself.
            Self::Torch(TorchError::Other(detail)) if device == "cpu" => {
                ErrorInfo::new(ErrorCode::Internal, format!("libtorch: {detail}"))
            }
            Self::Torch(TorchError::Other(detail)) => {
                ErrorInfo::new(ErrorCode::DeviceError, format!("{device} failed: {detail}"))
                    .with_hint("The worker starts afresh for the next attempt. Where it comes again, check the driver.")
            }
            Self::Io { error, .. } => {
                let (code, hint) = io_code(error);
                ErrorInfo::new(code, self.to_string()).with_hint(hint)
            }
            Self::Stopped { .. } => ErrorInfo::new(ErrorCode::Internal, self.to_string()),
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all others are one to us")]
fn io_code(error: &io::Error) -> (ErrorCode, &'static str) {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => {
            (ErrorCode::PermissionDenied, "Give the user that Atelier runs as access to it.")
        }
        Kind::StorageFull | Kind::QuotaExceeded => {
            (ErrorCode::DiskFull, "Make room on the disk; the job goes on by itself.")
        }
        Kind::OutOfMemory => (ErrorCode::OutOfMemory, "Free memory, or give the service more of it."),
        _ => (ErrorCode::IoError, "Check the disk and the file system."),
    }
}
