//! The daemon's parts as a library, so that tests and benchmarks reach them; `main.rs` is a thin shell.

pub mod failpoint;
pub mod inbox;
