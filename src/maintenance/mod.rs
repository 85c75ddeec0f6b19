//! What keeps a long-running daemon tidy: files of jobs that are over, rows past their time, repairs at start-up.

pub mod cleanup;
pub mod files;
pub mod reconcile;
