//! Replicate's predictions and files, for the `replicate` packages.
//!
//! A prediction is a job; its id is the job's. Errors are `application/problem+json` there as here.

pub(crate) mod files;
pub(crate) mod predictions;
mod shape;
mod store;
mod wish;
