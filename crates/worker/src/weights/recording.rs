//! A network's list of tensors, without any weights.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
};

use super::{LoadOptions, Mismatch, Weights};

impl Weights {
    /// Weights of no file: every tensor that a network asks for is noted, and an empty one given.
    pub fn recording() -> Self {
        Self {
            named: "recording".into(),
            shards: Vec::new(),
            entries: RefCell::default(),
            mismatch: RefCell::new(Mismatch::default()),
            options: LoadOptions::cpu(),
            deltas: None,
            done_bytes: Cell::new(0),
            total_bytes: 0,
            held_bytes: 0,
            metadata: HashMap::new(),
            recorded: Some(RefCell::default()),
        }
    }

    /// Names and shapes of all tensors that were asked for; nothing where these are weights of a file.
    pub fn recorded(self) -> BTreeMap<String, Vec<i64>> {
        self.recorded.map(RefCell::into_inner).unwrap_or_default()
    }
}
