//! Error codes: stable names that programs rely on, each with what becomes of the job.

use serde::{Deserialize, Serialize};

/// What an error does to its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Worth another attempt after a pause.
    Retry,
    /// Trying again cannot help.
    Permanent,
    /// Not the job's fault: the queue waits and no attempt is spent.
    Wait,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $disposition:ident;)+) => {
        /// Why something failed. The wire name is stable `snake_case`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[$doc])* $variant,)+ }

        impl ErrorCode {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What becomes of a job that fails so.
            pub const fn disposition(self) -> Disposition {
                match self { $(Self::$variant => Disposition::$disposition,)+ }
            }
        }
    };
}

error_codes! {
    // Pictures
    ImageEmpty = "image_empty", Permanent;
    ImageTruncated = "image_truncated", Permanent;
    ImageCorrupt = "image_corrupt", Permanent;
    /// The content is none of the supported types, whatever the name says.
    ImageUnsupported = "image_unsupported", Permanent;
    /// More pixels than `limits.pixels`.
    ImageTooLarge = "image_too_large", Permanent;
    /// More bytes than `limits.upload`.
    UploadTooLarge = "upload_too_large", Permanent;
    // Requests
    InvalidRequest = "invalid_request", Permanent;
    InvalidParams = "invalid_params", Permanent;
    UnknownModel = "unknown_model", Permanent;
    UnknownPreset = "unknown_preset", Permanent;
    UnknownKind = "unknown_kind", Permanent;
    /// The model follows a list of instructions only, and this is none of them.
    UnknownInstruction = "unknown_instruction", Permanent;
    /// The model is there, but does not do what was asked.
    KindNotSupported = "kind_not_supported", Permanent;
    ModelIncomplete = "model_incomplete", Permanent;
    /// The model was to be fetched from a hub first, and that failed for good.
    ModelPullFailed = "model_pull_failed", Permanent;
    SidecarInvalid = "sidecar_invalid", Permanent;
    NotFound = "not_found", Permanent;
    Conflict = "conflict", Permanent;
    IdempotencyMismatch = "idempotency_mismatch", Permanent;
    Unauthorized = "unauthorized", Permanent;
    Forbidden = "forbidden", Permanent;
    QueueFull = "queue_full", Permanent;
    NotAvailable = "not_available", Permanent;
    // Files
    InputMissing = "input_missing", Permanent;
    PermissionDenied = "permission_denied", Retry;
    IoError = "io_error", Retry;
    DiskFull = "disk_full", Wait;
    /// The result is there, but the configured signature cannot be given.
    SigningFailed = "signing_failed", Retry;
    // The worker
    WorkerUnavailable = "worker_unavailable", Retry;
    WorkerCrashed = "worker_crashed", Retry;
    WorkerStalled = "worker_stalled", Retry;
    WorkerProtocol = "worker_protocol", Retry;
    CrashedRepeatedly = "crashed_repeatedly", Permanent;
    OutOfMemory = "out_of_memory", Permanent;
    DeviceError = "device_error", Retry;
    Internal = "internal", Retry;
}

impl ErrorCode {
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == name)
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        // A newer worker may know codes that this daemon does not.
        Ok(Self::parse(&name).unwrap_or(Self::Internal))
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a person or a program is told about a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorInfo {
    pub code: ErrorCode,
    /// What happened, and to which file.
    pub message: String,
    /// What to do about it; empty where there is nothing to say.
    #[serde(default)]
    pub hint: String,
}

impl ErrorInfo {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: String::new() }
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_snake_case_and_parse_back() {
        let mut seen = std::collections::BTreeSet::new();
        for code in ErrorCode::ALL {
            let name = code.as_str();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(seen.insert(name), "{name} twice");
            assert_eq!(ErrorCode::parse(name), Some(*code));
        }
    }

    #[test]
    fn a_code_from_the_future_becomes_internal() {
        let info: ErrorInfo = serde_json::from_str(r#"{"code":"made_up","message":"m"}"#).expect("parses");
        assert_eq!(info.code, ErrorCode::Internal);
    }
}
