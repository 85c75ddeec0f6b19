//! A network's list of tensors, without any weights.

use std::{cell::RefCell, collections::BTreeMap};

use super::{LoadOptions, Purpose, Source, Weights};

impl Weights {
    /// Weights of no file: every tensor that a network asks for is noted, and an empty one given.
    pub fn recording() -> Self {
        let source = Source::new(Vec::new(), LoadOptions::cpu());
        Self::of("recording".into(), source, BTreeMap::new(), Purpose::Record(RefCell::default()))
    }

    /// Names and shapes of all tensors that were asked for; nothing where these are weights of a file.
    pub fn recorded(self) -> BTreeMap<String, Vec<i64>> {
        match self.purpose {
            Purpose::Record(recorded) => recorded.into_inner(),
            Purpose::Load | Purpose::Rehearse(_) => BTreeMap::new(),
        }
    }
}
