//! Pulling models: the real program against a hub on this machine that does what hubs and networks do at their worst.
#![allow(clippy::unwrap_used, reason = "tests")]

mod disk;
mod loopback;
mod network;
mod on_demand;
mod owned;
mod refusals;
mod scene;
