//! Atelier's daemon and command line.
//!
//! The way of a job is a straight line: `http` or `inbox` → `admission` → `queue` → `engine` → `outbox`. Only `store`
//! speaks SQL, only `store` and `queue` know apalis, and nothing here links libtorch: that is `atelier-worker`'s.

pub mod admission;
pub mod app;
pub mod beneath;
pub mod cli;
pub mod config;
pub mod daemon_note;
pub mod data_lock;
pub mod egress;
pub mod engine;
pub mod failpoint;
pub mod http;
pub mod hub;
pub mod inbox;
pub mod liveness;
pub mod maintenance;
pub mod models;
pub mod on_demand;
pub mod outbox;
pub mod prediction;
pub mod queue;
pub mod serve;
pub mod signing;
pub mod store;
pub mod systemd;
pub mod telemetry;
