//! The repeated blocks of a network.

use crate::{
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// Blocks that run one after the other: the one part of a large network that need not be on the device all at once.
pub struct Blocks<B> {
    blocks: Vec<B>,
}

impl<B: 'static> Blocks<B> {
    /// `count` blocks, named `0`, `1`, … below `scope`. `load` owns what it needs to make a block at any later time.
    pub fn load(
        scope: &Scope<'_>,
        count: usize,
        load: impl Fn(usize, &Scope<'_>) -> Result<B, WeightsError> + 'static,
    ) -> Result<Self, WeightsError> {
        let blocks = (0..count).map(|index| load(index, &scope.at(index))).collect::<Result<_, _>>()?;
        Ok(Self { blocks })
    }

    pub const fn len(&self) -> usize {
        self.blocks.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Calls `run` with each block in its order.
    pub fn each(&self, mut run: impl FnMut(usize, &B) -> Result<(), TorchError>) -> Result<(), TorchError> {
        self.blocks.iter().enumerate().try_for_each(|(index, block)| run(index, block))
    }
}
