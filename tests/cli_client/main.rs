//! The command line as people and scripts meet it: the real program against a server that plays the daemon's API,
//! and against nothing at all.

#![allow(clippy::unwrap_used, reason = "tests")]

mod api;
mod config;
mod doctor;
mod jobs;
mod local;
mod program;
mod submit;
