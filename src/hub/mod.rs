//! Models from a hub: what a repository holds, which of it a family needs, and fetching that so that a model is there
//! as a whole or not at all.
//!
//! Speaks the HTTP API of the Hugging Face hub and of its mirrors. Knows folders and models; knows no job, no queue
//! and no command line.
//!
//! A pull works in a hidden folder beside the models (`.pull-ORG--NAME`), on the same file system: a locked file, a
//! note of its progress, and the files themselves, each a `.part` with a journal until its hash is right. Whatever
//! ends it, the next pull goes on from there; the last step is one rename.

mod client;
mod error;
mod fetch;
mod folder;
mod journal;
mod listing;
mod manifest;
mod meter;
mod pull;
mod repo;
mod select;

pub use self::{
    error::HubError,
    folder::{PullNote, PullState, discard, pulls_in},
    manifest::{MANIFEST, Manifest, ManifestFile},
    meter::Progress,
    pull::{Pulled, Request, pull},
    repo::{RepoId, Revision},
};

/// How a hub is treated that does not do its best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Tries after the first, each time that something fails and until something arrives again.
    pub retries: u32,
    /// Before the first further try; doubled for each one after that.
    pub pause: std::time::Duration,
    /// Without a byte for so long, a transfer is begun anew.
    pub stall: std::time::Duration,
    /// Requests at the same time.
    pub parallel: usize,
}
