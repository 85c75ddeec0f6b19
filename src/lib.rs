//! Atelier's daemon and command line.
//!
//! The way of a job is a straight line: `http` or `inbox` → `admission` → `queue` → `engine` → `outbox`. Only `store`
//! speaks SQL, only `store` and `queue` know apalis, and nothing here links libtorch: that is `atelier-worker`'s.

pub mod failpoint;
pub mod models;
pub mod store;
