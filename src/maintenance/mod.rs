//! What keeps a long-running daemon tidy: files of jobs that are over, rows past their time, repairs at start-up.

pub mod backup;
pub mod cleanup;
mod copies;
pub mod files;
pub mod reconcile;
pub mod restore;
