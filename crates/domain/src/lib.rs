//! What Atelier talks about: jobs, their states and parameters, errors, and the protocol between the
//! daemon and its worker process.
//!
//! Plain types without I/O. Nothing here knows SQL, HTTP, files or tensors; everything else depends on it.

pub mod error;
pub mod id;
pub mod job;
pub mod kind;
pub mod model;
pub mod params;
pub mod protocol;
pub mod request;
pub mod signing;
pub mod status;
pub mod time;
pub mod webhook;

pub use error::{Disposition, ErrorCode, ErrorInfo};
pub use id::JobId;
pub use job::{Input, Job, Output, Progress, Source, SourceType};
pub use kind::JobKind;
pub use params::{ControlMode, Denoise, Detail, Fit, LoraUse, Loras, OutputFormat, Params, ParamsError, Preprocessor};
pub use request::JobSpec;
pub use status::{JobEvent, JobStatus};
pub use time::Timestamp;
pub use webhook::Webhook;
