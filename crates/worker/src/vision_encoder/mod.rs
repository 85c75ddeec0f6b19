//! Vision encoders: pictures to hidden states. Know no prompts, and no sizes but their own.

pub mod clip;

pub use self::clip::{ClipVision, ClipVisionConfig};
