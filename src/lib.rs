//! Atelier's daemon and command line, as a library so that tests and benches reach the parts.

pub mod config;
