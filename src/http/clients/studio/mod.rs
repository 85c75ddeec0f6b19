//! The two services that Atelier replaces: one that made pictures, captions and videos with a route per model, and an
//! editor with jobs, a dashboard and a WebSocket. Their clients go on with these routes and these names.

pub(crate) mod dashboard;
pub(crate) mod editor;
mod logs;
pub(crate) mod service;
mod services;
mod settings;
mod shape;
pub(crate) mod socket;
pub(crate) mod status;
