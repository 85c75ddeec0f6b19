//! A block's tensors that are made when the block is used, and given back after.

use std::{collections::BTreeMap, rc::Rc};

use tch::Kind;

use super::{
    Purpose, Scope, Source, Weights, WeightsError, held_bytes,
    shards::{Entry, Range},
};

/// What a module took below a [`Scope`]: found in the files and checked, but not made.
pub struct Reserved {
    source: Source,
    entries: BTreeMap<String, Entry>,
    /// Of the scope.
    prefix: String,
    kind: Kind,
}

impl Scope<'_> {
    /// Whether blocks are to be reserved rather than made for good. What lies within a reserved block is made with it.
    pub fn streams(&self) -> bool {
        self.weights.streaming.is_some() && self.weights.reserving.borrow().is_none()
    }

    /// Whether a block of so many bytes may stay; what it takes is then spoken for.
    pub fn keeps(&self, bytes: u64) -> bool {
        let Some(left) = &self.weights.streaming else { return true };
        let fits = left.get() >= bytes;
        // All after the first that does not fit are streamed, so that those which stay are one run.
        left.set(if fits { left.get() - bytes } else { 0 });
        fits
    }

    /// Sets what `load` takes aside. `load` is given empty tensors; what is missing or does not fit is noted for
    /// [`Weights::finish`], as ever.
    ///
    /// # Errors
    /// What `load` fails with.
    pub fn reserve<T>(&self, load: impl FnOnce(&Self) -> Result<T, WeightsError>) -> Result<Reserved, WeightsError> {
        *self.weights.reserving.borrow_mut() = Some(BTreeMap::new());
        let result = load(self);
        let entries = self.weights.reserving.take().unwrap_or_default();
        result?;
        let source = self.weights.source.clone();
        let reserved = Reserved { source, entries, prefix: self.prefix.clone(), kind: self.kind };
        if let Purpose::Rehearse(needs) = &self.weights.purpose {
            needs.set(needs.get().with_block(reserved.bytes(), reserved.kept_bytes()));
        }
        Ok(reserved)
    }
}

impl Reserved {
    /// Makes the tensors and what `load` makes of them, exactly as if they had been taken at once. Waits for a fetch.
    ///
    /// # Errors
    /// The device has no room.
    pub fn make<T>(&self, load: impl FnOnce(&Scope<'_>) -> Result<T, WeightsError>) -> Result<T, WeightsError> {
        self.source.fetcher.wait();
        let mut source = self.source.clone();
        source.options.progress = None;
        self.make_of(source, load)
    }

    /// As [`Self::make`], for what stays: while the component is loaded, which can be interrupted.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn keep<T>(&self, load: impl FnOnce(&Scope<'_>) -> Result<T, WeightsError>) -> Result<T, WeightsError> {
        self.make_of(self.source.clone(), load)
    }

    /// Whether some of it is packed in the files, and stays so where it stays.
    pub fn is_packed(&self) -> bool {
        self.entries.values().any(|entry| entry.packing.is_some())
    }

    /// Brings what the files hold to the device, packed as it is, for [`Self::make`] to find it there. While the component
    /// is loaded, which can be interrupted.
    ///
    /// # Errors
    /// The device has no room.
    pub fn hold(mut self) -> Result<Self, WeightsError> {
        let mut held = BTreeMap::new();
        for (name, entry) in &self.entries {
            let path = || self.source.shards[entry.shard].path.clone();
            let tensor = self.source.held(name, entry, self.kind);
            let tensor = tensor.map_err(|error| WeightsError::Torch { path: path(), error })?;
            held.insert(name.clone(), tensor);
            if self.source.report(entry).is_break() {
                return Err(WeightsError::Interrupted { path: path() });
            }
        }
        self.source.held = Rc::new(held);
        Ok(self)
    }

    fn make_of<T>(
        &self,
        source: Source,
        load: impl FnOnce(&Scope<'_>) -> Result<T, WeightsError>,
    ) -> Result<T, WeightsError> {
        let weights = Weights::of(self.prefix.clone().into(), source, self.entries.clone(), Purpose::Load);
        let made = load(&Scope { weights: &weights, prefix: self.prefix.clone(), kind: self.kind })?;
        weights.finish()?;
        Ok(made)
    }

    /// Begins to read the files' pages in the background.
    pub fn fetch(&self) {
        self.source.fetcher.fetch(self.ranges().collect());
    }

    /// Gives the files' pages back, whether they were fetched or used. What was made is gone by now, or is read from the
    /// files again.
    pub fn release(&self) {
        self.source.fetcher.wait();
        self.ranges().for_each(|range| range.release());
    }

    /// That the tensors hold once they are made.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| held_bytes(entry, self.kind)).sum()
    }

    /// That it holds where it stays: packed, what is packed.
    pub fn kept_bytes(&self) -> u64 {
        let kept = |entry: &Entry| entry.packing.map_or_else(|| held_bytes(entry, self.kind), |_| entry.bytes as u64);
        self.entries.values().map(kept).sum()
    }

    fn ranges(&self) -> impl Iterator<Item = Range> {
        self.entries.values().map(|entry| self.source.shards[entry.shard].range(entry))
    }
}
