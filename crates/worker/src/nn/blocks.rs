//! The repeated blocks of a network.

use std::fmt;

use crate::{
    torch::TorchError,
    weights::{Reserved, Scope, WeightsError},
};

/// Blocks that run one after the other: the one part of a large network that need not be on the device all at once.
/// Where the weights are streamed, those that find no room are made at their use and dropped after, while the next
/// one's pages are read. Of weights that are packed, those that find room stay packed, and are made at their use too.
pub struct Blocks<B> {
    places: Vec<Place<B>>,
    load: Load<B>,
}

enum Place<B> {
    Resident(B),
    /// On the device, but packed.
    Packed(Reserved),
    Streamed(Reserved),
}

type Load<B> = Box<dyn Fn(usize, &Scope<'_>) -> Result<B, WeightsError>>;

impl<B: 'static> Blocks<B> {
    /// `count` blocks, named `0`, `1`, … below `scope`. `load` owns what it needs to make a block at any later time.
    pub fn load(
        scope: &Scope<'_>,
        count: usize,
        load: impl Fn(usize, &Scope<'_>) -> Result<B, WeightsError> + 'static,
    ) -> Result<Self, WeightsError> {
        let place = |index| {
            let scope = scope.at(index);
            if !scope.streams() {
                return load(index, &scope).map(Place::Resident);
            }
            let reserved = scope.reserve(|scope| load(index, scope))?;
            if !scope.keeps(reserved.kept_bytes()) {
                return Ok(Place::Streamed(reserved));
            }
            if reserved.is_packed() {
                return reserved.hold().map(Place::Packed);
            }
            reserved.keep(|scope| load(index, scope)).map(Place::Resident)
        };
        let places = (0..count).map(place).collect::<Result<_, _>>()?;
        Ok(Self { places, load: Box::new(load) })
    }
}

impl<B> Blocks<B> {
    pub const fn len(&self) -> usize {
        self.places.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Calls `run` with each block in its order.
    pub fn each(&self, mut run: impl FnMut(usize, &B) -> Result<(), TorchError>) -> Result<(), TorchError> {
        self.each_while(|index, block| run(index, block).map(|()| true))
    }

    /// As [`Self::each`], as long as the answer is true.
    pub fn each_while(&self, mut run: impl FnMut(usize, &B) -> Result<bool, TorchError>) -> Result<(), TorchError> {
        for index in 0..self.len() {
            let next = self.reserved(index + 1);
            let result = self.with(index, next, &mut run);
            if !matches!(result, Ok(true)) {
                next.into_iter().for_each(Reserved::release);
                return result.map(|_| ());
            }
        }
        Ok(())
    }

    /// Has the pages of `next` read while the block runs.
    fn with(
        &self,
        index: usize,
        next: Option<&Reserved>,
        run: &mut impl FnMut(usize, &B) -> Result<bool, TorchError>,
    ) -> Result<bool, TorchError> {
        let fetch = || next.into_iter().for_each(Reserved::fetch);
        match self.places.get(index) {
            None => Err(TorchError::Other(format!("block {index} of {}", self.len()))),
            Some(Place::Resident(block)) => {
                fetch();
                run(index, block)
            }
            Some(Place::Packed(reserved)) => {
                let block = reserved.make(|scope| (self.load)(index, scope))?;
                fetch();
                run(index, &block)
            }
            Some(Place::Streamed(reserved)) => {
                let block = reserved.make(|scope| (self.load)(index, scope))?;
                fetch();
                let result = run(index, &block);
                drop(block);
                reserved.release();
                result
            }
        }
    }

    fn reserved(&self, index: usize) -> Option<&Reserved> {
        match self.places.get(index) {
            Some(Place::Streamed(reserved)) => Some(reserved),
            Some(Place::Resident(_) | Place::Packed(_)) | None => None,
        }
    }
}

impl<B> fmt::Debug for Blocks<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streamed = (0..self.len()).filter(|index| self.reserved(*index).is_some()).count();
        let packed = self.places.iter().filter(|place| matches!(place, Place::Packed(_))).count();
        write!(f, "Blocks({}, {streamed} of them streamed, {packed} packed)", self.len())
    }
}
