//! What a job needs besides its request.

use std::sync::Arc;

use atelier_domain::protocol;
use atelier_sampling::Step;
use tch::Tensor;

use crate::{control::Control, events::Reporter, models::Cache};

pub struct Context<'a> {
    pub control: Arc<Control>,
    pub cache: &'a mut Cache,
    pub reporter: Reporter,
    pub device: &'a protocol::Device,
    /// What of a model stays on the device while something else of it works.
    pub offload: protocol::Offload,
    /// Told of every step; for those who hold them to a reference.
    pub on_step: Option<OnStep>,
}

pub type OnStep = Box<dyn Fn(&Stepped<'_>)>;

/// A step of a sampler that was done. The tensors are (1, C, h, w).
pub struct Stepped<'a> {
    /// Of the job's pictures.
    pub image: u32,
    pub index: usize,
    pub step: &'a Step,
    pub sample: &'a Tensor,
    /// The model's, after guidance.
    pub output: &'a Tensor,
    pub next: &'a Tensor,
}
