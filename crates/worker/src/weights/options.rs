//! How a component is loaded.

use std::{ops::ControlFlow, rc::Rc};

use tch::{Device, Kind};

use super::Alias;

/// Bytes of the files, not of what is made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// Called after each tensor. `Break` ends the load with [`super::WeightsError::Interrupted`].
pub type OnProgress = Rc<dyn Fn(LoadProgress) -> ControlFlow<()>>;

#[derive(Clone)]
pub struct LoadOptions {
    pub device: Device,
    /// What floating-point tensors become.
    pub kind: Kind,
    /// Other spellings of the component's names.
    pub aliases: &'static [Alias],
    /// Ends of names that may be left over, besides [`super::HARMLESS`].
    pub ignored: &'static [&'static str],
    pub progress: Option<OnProgress>,
}

impl LoadOptions {
    pub const fn new(device: Device, kind: Kind) -> Self {
        Self { device, kind, aliases: &[], ignored: &[], progress: None }
    }

    /// In f32 on the CPU.
    pub const fn cpu() -> Self {
        Self::new(Device::Cpu, Kind::Float)
    }

    #[must_use]
    pub const fn with_aliases(mut self, aliases: &'static [Alias]) -> Self {
        self.aliases = aliases;
        self
    }

    #[must_use]
    pub const fn with_ignored(mut self, ignored: &'static [&'static str]) -> Self {
        self.ignored = ignored;
        self
    }

    #[must_use]
    pub fn with_progress(mut self, progress: OnProgress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// The variants of a file, best first. The unnamed one is usually f32; a cast from it is never worse than from a
    /// narrower one, but reads twice as much.
    pub(super) const fn variants(&self) -> [&'static str; 3] {
        if matches!(self.kind, Kind::Half) { ["fp16", "", "bf16"] } else { ["", "bf16", "fp16"] }
    }
}

/// What to compute in where the model's files may be in `stored`: half precision is a hundred times slower than f32 on
/// a CPU, so that it becomes f32 there. bfloat16 is kept where it is asked for.
pub const fn compute_kind(device: Device, wanted: Kind) -> Kind {
    match (device, wanted) {
        (_, Kind::BFloat16) => Kind::BFloat16,
        (Device::Cpu, _) => Kind::Float,
        (_, wanted) => wanted,
    }
}
