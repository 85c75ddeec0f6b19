//! The real signer, by itself and behind the real daemon. What it has made is read with the reader of the crate `c2pa`;
//! `tests/clients` reads it with c2pa-python.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod credentials;
mod daemon;
mod files;
mod pki;
mod run;
