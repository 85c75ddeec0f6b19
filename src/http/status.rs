//! Codes to HTTP status: the one place that decides.

use atelier_domain::ErrorCode;
use axum::http::StatusCode;

/// The status of a request that ends with `code`. Also what a failed job's code would be, though a failed job is
/// itself answered with 200.
pub(crate) const fn of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::ImageUnsupported => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorCode::UploadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::ImageEmpty
        | ErrorCode::ImageTruncated
        | ErrorCode::ImageCorrupt
        | ErrorCode::ImageTooLarge
        | ErrorCode::InvalidRequest
        | ErrorCode::InvalidParams
        | ErrorCode::UnknownModel
        | ErrorCode::UnknownPreset
        | ErrorCode::UnknownKind
        | ErrorCode::UnknownInstruction
        | ErrorCode::KindNotSupported
        | ErrorCode::SidecarInvalid
        | ErrorCode::IdempotencyMismatch => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Conflict | ErrorCode::InputMissing => StatusCode::CONFLICT,
        ErrorCode::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::NotAvailable => StatusCode::NOT_IMPLEMENTED,
        ErrorCode::ModelIncomplete | ErrorCode::ModelPullFailed | ErrorCode::WorkerUnavailable => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorCode::PermissionDenied
        | ErrorCode::IoError
        | ErrorCode::SigningFailed
        | ErrorCode::WorkerCrashed
        | ErrorCode::WorkerStalled
        | ErrorCode::WorkerProtocol
        | ErrorCode::CrashedRepeatedly
        | ErrorCode::OutOfMemory
        | ErrorCode::DeviceError
        | ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What only a conversation over HTTP can get wrong; jobs never fail so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpCode {
    MalformedJson,
    /// A body or a header that does not follow its own grammar.
    MalformedRequest,
    MethodNotAllowed,
    RequestTimeout,
    BodyTooLarge,
    UnsupportedMediaType,
    RangeNotSatisfiable,
    NotAcceptable,
    UpgradeRequired,
    /// Too much of this kind at once.
    Busy,
    NotReady,
    ShuttingDown,
    /// Too often by the same.
    RateLimited,
    /// The answer took too long.
    Timeout,
    /// The model that a route stands for is not installed, or not whole.
    ModelMissing,
}

impl HttpCode {
    #[cfg(test)]
    const ALL: [Self; 15] = [
        Self::MalformedJson,
        Self::MalformedRequest,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::RangeNotSatisfiable,
        Self::NotAcceptable,
        Self::UpgradeRequired,
        Self::Busy,
        Self::NotReady,
        Self::ShuttingDown,
        Self::RateLimited,
        Self::Timeout,
        Self::ModelMissing,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::MalformedJson => "malformed_json",
            Self::MalformedRequest => "malformed_request",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::RangeNotSatisfiable => "range_not_satisfiable",
            Self::NotAcceptable => "not_acceptable",
            Self::UpgradeRequired => "upgrade_required",
            Self::Busy => "busy",
            Self::NotReady => "not_ready",
            Self::ShuttingDown => "shutting_down",
            Self::RateLimited => "rate_limited",
            Self::Timeout => "timeout",
            Self::ModelMissing => "model_missing",
        }
    }

    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::MalformedJson | Self::MalformedRequest => StatusCode::BAD_REQUEST,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
            Self::Busy | Self::NotReady | Self::ShuttingDown | Self::Timeout | Self::ModelMissing => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_an_error_status_and_no_name_means_two_things() {
        for code in ErrorCode::ALL {
            assert!(of(*code).as_u16() >= 400, "{code}");
        }
        for code in HttpCode::ALL {
            assert!(code.status().as_u16() >= 400, "{code:?}");
            assert_eq!(ErrorCode::parse(code.as_str()), None, "{code:?} is a job's code too");
        }
    }
}
