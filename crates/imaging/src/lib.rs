//! Pictures: what a file is, whether it is whole, its pixels and its metadata, and the way back into a file.
//!
//! `probe` looks at headers only and suits the daemon; `decode` and `encode` are the worker's. Content decides what a
//! file is, never its name. Limits hold before anything is decoded, and a file that is cut short is refused, which
//! decoders alone do not do.
//!
//! Nothing here knows jobs, queues, models or tensors, and nothing is async.
#![forbid(unsafe_code)]

mod bands;
pub mod canny;
pub mod classic;
mod color;
mod container;
mod decode;
mod degradation;
mod encode;
mod error;
mod exif;
mod guided;
mod media;
mod metadata;
mod probe;
mod provenance;
pub mod resize;
mod xmp;

pub(crate) use bands::bands;
pub use decode::{Color, Picture, Pixels, decode};
pub use degradation::{Advice, Degradation, advise, measure_degradation};
pub use encode::{EncodeSpec, Encoded, Samples, encode};
pub use error::ImageError;
pub use guided::ColorMaps;
pub use media::MediaType;
pub use metadata::Metadata;
pub use probe::{Limits, Probe, metadata, probe};
pub use provenance::{DigitalSource, Generation};
