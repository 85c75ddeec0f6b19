//! A load that makes nothing: whether the files fit the network, and what it will hold.

use std::cell::Cell;

use super::{Purpose, Weights, WeightsError};

/// Blocks that are held at once: the one at work, and the pages of the next.
const BLOCKS_HELD: u64 = 2;

/// What a component holds where its blocks are made at their use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Outside of the blocks.
    pub resident_bytes: u64,
    pub largest_block_bytes: u64,
    /// What all blocks would hold if they stayed, those that are packed as they are.
    pub kept_bytes: u64,
}

impl Needs {
    /// The least that it can run with.
    pub const fn least_bytes(self) -> u64 {
        self.resident_bytes + BLOCKS_HELD * self.largest_block_bytes
    }

    pub(super) const fn with_resident(self, bytes: u64) -> Self {
        Self { resident_bytes: self.resident_bytes + bytes, ..self }
    }

    pub(super) fn with_block(self, bytes: u64, kept_bytes: u64) -> Self {
        let largest_block_bytes = self.largest_block_bytes.max(bytes);
        Self { largest_block_bytes, kept_bytes: self.kept_bytes + kept_bytes, ..self }
    }
}

impl Weights {
    /// Loads with `load`, but no tensors: what the component will hold if its blocks are made at their use.
    ///
    /// # Errors
    /// Everything in which files and network differ, which is thus told before anything is loaded.
    pub fn rehearse<T>(&self, load: impl FnOnce(&Self) -> Result<T, WeightsError>) -> Result<Needs, WeightsError> {
        let mut source = self.source.clone();
        source.options.progress = None;
        let purpose = Purpose::Rehearse(Cell::default());
        let mut weights = Self::of(self.named.clone(), source, self.entries.borrow().clone(), purpose);
        weights.set_streaming(0);
        load(&weights)?;
        let needs = if let Purpose::Rehearse(needs) = &weights.purpose { needs.get() } else { Needs::default() };
        weights.finish()?;
        Ok(needs)
    }
}
