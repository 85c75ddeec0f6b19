//! Models that read pictures and texts.

pub mod qwen2_vl;
