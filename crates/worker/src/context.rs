//! What a job needs besides its request.

use std::sync::Arc;

use atelier_domain::protocol;

use crate::{control::Control, events::Reporter, models::Cache};

pub struct Context<'a> {
    pub control: Arc<Control>,
    pub cache: &'a mut Cache,
    pub reporter: Reporter,
    pub device: &'a protocol::Device,
    /// What of a model stays on the device while something else of it works.
    pub offload: protocol::Offload,
}
