//! Weights from safetensors and GGUF files: mapped, not read; each tensor checked by name and shape.
//!
//! A component is one file, or shards with an index. A network asks for what it needs through a [`Scope`] (or
//! [`Weights::take`]); [`Weights::finish`] then lists everything that was missing, of another shape or type, or not
//! asked for. Tensors are cast one by one to the kind that is computed with; one that need not be cast on the CPU is
//! the mapped file itself. Where a network is larger than the device, what its blocks take is checked and
//! [`Reserved`], and made anew at each use. Knows no network.
#![expect(unsafe_code, reason = "maps files, and makes tensors over the maps")]

mod alias;
mod digest;
mod error;
mod fetch;
mod float8;
mod gguf;
mod options;
pub(crate) mod original;
mod recording;
mod rehearsal;
mod reserved;
mod scope;
mod shards;
mod source;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    rc::Rc,
};

use sha2::{Digest as _, Sha256};
use tch::{Device, Kind, Tensor};

pub(crate) use self::error::some_of;
pub use self::{
    alias::Alias,
    digest::{Digests, FileStamp},
    error::{Mismatch, WeightsError},
    options::{LoadOptions, LoadProgress, OnProgress, compute_kind},
    rehearsal::Needs,
    reserved::Reserved,
    scope::Scope,
    shards::Pages,
};
use self::{
    shards::{Entry, Layout, file_name},
    source::Source,
};
use crate::torch::TorchError;

/// Ends of names of tensors that hold nothing which is not known anyway: what older versions stored, and what ComfyUI
/// tells Qwen-Image-Edit-2511 by (`zero_cond_t` of the configuration).
pub const HARMLESS: &[&str] = &["embeddings.position_ids", "__index_timestep_zero__"];

/// What is added to tensors as they are taken.
pub trait Deltas {
    /// `weight`, in f32 on the device, with what is added to the tensor of this canonical name; unchanged where
    /// nothing is. Must not write into `weight`, which may be the mapped file.
    fn apply(&self, name: &str, weight: Tensor) -> Result<Tensor, TorchError>;

    fn touches(&self, name: &str) -> bool;
}

/// The tensors of one component.
pub struct Weights {
    /// What errors about the whole name.
    named: PathBuf,
    source: Source,
    /// By canonical name, those that nobody has taken.
    entries: RefCell<BTreeMap<String, Entry>>,
    mismatch: RefCell<Mismatch>,
    /// Where blocks are made at their use: bytes of those that may stay nevertheless.
    streaming: Option<Cell<u64>>,
    /// What was asked for while a block is reserved.
    reserving: RefCell<Option<BTreeMap<String, Entry>>>,
    held_bytes: u64,
    metadata: HashMap<String, String>,
    purpose: Purpose,
}

/// What becomes of the tensors that are asked for.
enum Purpose {
    /// They are made.
    Load,
    /// They are checked and counted, and empty ones given.
    Rehearse(Cell<Needs>),
    /// There is no file. Names and shapes are noted.
    Record(RefCell<BTreeMap<String, Vec<i64>>>),
}

impl Weights {
    /// Maps the file at `path`. Floating-point tensors will be given in f32 on `device`.
    ///
    /// # Errors
    /// No such file, or one that is no whole safetensors file.
    pub fn open(path: &Path, device: Device) -> Result<Self, WeightsError> {
        Self::open_file(path, &LoadOptions::new(device, Kind::Float))
    }

    /// As [`Self::open`], with options.
    pub fn open_file(path: &Path, options: &LoadOptions) -> Result<Self, WeightsError> {
        Self::from_layout(&Layout::single(path), options)
    }

    /// Maps the component in `folder`: `STEM.safetensors`, shards with `STEM.safetensors.index.json`, or either's
    /// variant (`STEM.fp16.safetensors`); or, for a diffusion transformer, the only GGUF file. The stem is
    /// `diffusion_pytorch_model` in diffusers' folders, `model` in transformers'.
    ///
    /// # Errors
    /// No weights, an index that does not fit the files, or a file that is not whole. Nothing is loaded then.
    pub fn open_folder(folder: &Path, stem: &str, options: &LoadOptions) -> Result<Self, WeightsError> {
        Self::from_layout(&Layout::find(folder, stem, &options.variants())?, options)
    }

    fn from_layout(layout: &Layout, options: &LoadOptions) -> Result<Self, WeightsError> {
        let (mut shards, found) = layout.open()?;
        let total_bytes = found.iter().map(|(_, entry)| entry.bytes as u64).sum();
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for (name, entry) in found {
            let name = alias::canonical(&name, options.aliases);
            if let Some(other) = entries.get(&name) {
                let detail = format!("{} and {} are the same tensor", other.key, entry.key);
                return Err(WeightsError::Format { path: shards[entry.shard].path.clone(), detail });
            }
            entries.insert(name, entry);
        }
        let format =
            |(shard, detail): (usize, String)| WeightsError::Format { path: shards[shard].path.clone(), detail };
        float8::attach_scales(&shards, &mut entries).map_err(format)?;
        let held_bytes = entries.values().map(|entry| held_bytes(entry, options.kind)).sum();
        let metadata = shards.first_mut().map(|shard| std::mem::take(&mut shard.metadata)).unwrap_or_default();
        let source = Source { total_bytes, ..Source::new(shards, options.clone()) };
        Ok(Self { held_bytes, metadata, ..Self::of(layout.named.clone(), source, entries, Purpose::Load) })
    }

    fn of(named: PathBuf, source: Source, entries: BTreeMap<String, Entry>, purpose: Purpose) -> Self {
        Self {
            named,
            source,
            entries: RefCell::new(entries),
            mismatch: RefCell::default(),
            streaming: None,
            reserving: RefCell::default(),
            held_bytes: 0,
            metadata: HashMap::new(),
            purpose,
        }
    }

    /// Has `deltas` added to the tensors that are taken from now on.
    pub fn set_deltas(&mut self, deltas: Rc<dyn Deltas>) {
        self.source.deltas = Some(deltas);
    }

    /// Has blocks made at each use from now on, instead of at once and for good. The first ones stay, as many as fit
    /// `keep_bytes`.
    pub const fn set_streaming(&mut self, keep_bytes: u64) {
        self.streaming = Some(Cell::new(keep_bytes));
    }

    pub const fn streams(&self) -> bool {
        self.streaming.is_some()
    }

    /// The top of the tree of names.
    pub fn root(&self) -> Scope<'_> {
        Scope::root(self, self.source.options.kind)
    }

    /// Bytes that all tensors will hold once they are taken.
    pub const fn bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Where the tensors are put.
    pub fn device(&self) -> Device {
        self.source.options.device
    }

    /// The files, in the order in which [`Self::sha256`] reads them.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.source.shards.iter().map(|shard| shard.path.as_path())
    }

    /// What tells the files from others that replace them.
    pub fn stamps(&self) -> Vec<FileStamp> {
        self.source.shards.iter().map(|shard| shard.stamp.clone()).collect()
    }

    /// Of all files, one after the other in the order of their names, in hexadecimal digits. Reads them whole; [`Digests`] keeps
    /// the answer.
    pub fn sha256(&self) -> String {
        let hash = self.source.shards.iter().fold(Sha256::new(), |hash, shard| hash.chain_update(&shard.map[..]));
        format!("{:x}", hash.finalize())
    }

    /// What the first file says beside its tensors.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The canonical spelling of a name.
    pub fn canonical(&self, name: &str) -> String {
        alias::canonical(name, self.source.options.aliases)
    }

    /// Canonical names and shapes of all tensors that nobody has taken.
    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        self.entries.borrow().iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.entries.borrow().contains_key(name)
    }

    /// Forgets the tensors whose names begin with `prefix`: a part that is not needed.
    pub fn leave(&self, prefix: &str) {
        self.entries.borrow_mut().retain(|name, _| !name.starts_with(prefix));
    }

    /// The tensor of this whole name; see [`Scope::take`].
    pub fn take(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        self.take_as(name, shape, self.source.options.kind)
    }

    /// As [`Self::take`], but integers are cast too.
    pub fn take_number(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        self.take_checked(name, shape, self.source.options.kind, |_| true)
    }

    fn take_as(&self, name: &str, shape: &[i64], kind: Kind) -> Result<Tensor, WeightsError> {
        self.take_checked(name, shape, kind, is_floating)
    }

    fn take_checked(
        &self,
        name: &str,
        shape: &[i64],
        kind: Kind,
        is_right: fn(Kind) -> bool,
    ) -> Result<Tensor, WeightsError> {
        if let Purpose::Record(recorded) = &self.purpose {
            recorded.borrow_mut().insert(name.into(), shape.to_vec());
            return Ok(Tensor::new());
        }
        let Some(entry) = self.entries.borrow_mut().remove(name) else {
            self.mismatch.borrow_mut().missing.push(name.into());
            return Ok(Tensor::new());
        };
        if entry.shape != shape {
            let detail = format!("{} is {:?}, not {shape:?}", self.place(&entry), entry.shape);
            self.mismatch.borrow_mut().misshaped.push(detail);
            return Ok(Tensor::new());
        }
        if !is_right(entry.kind) {
            let detail = format!("{} is {:?}, not a floating-point type", self.place(&entry), entry.kind);
            self.mismatch.borrow_mut().mistyped.push(detail);
            return Ok(Tensor::new());
        }
        if let Some(reserved) = self.reserving.borrow_mut().as_mut() {
            reserved.insert(name.into(), entry);
            return Ok(Tensor::new());
        }
        if let Purpose::Rehearse(needs) = &self.purpose {
            needs.set(needs.get().with_resident(held_bytes(&entry, kind)));
            return Ok(Tensor::new());
        }
        let tensor = self.source.tensor(name, &entry, kind);
        let tensor = tensor.map_err(|error| WeightsError::Torch { path: self.path_of(&entry).into(), error })?;
        if self.source.report(&entry).is_break() {
            return Err(WeightsError::Interrupted { path: self.path_of(&entry).into() });
        }
        Ok(tensor)
    }

    fn path_of(&self, entry: &Entry) -> &Path {
        &self.source.shards[entry.shard].path
    }

    /// A tensor's name for a message, with its file where there are several.
    fn place(&self, entry: &Entry) -> String {
        if self.source.shards.len() == 1 {
            return entry.key.clone();
        }
        format!("{} (in {})", entry.key, file_name(self.path_of(entry)))
    }

    /// # Errors
    /// What did not fit, all of it.
    pub fn finish(self) -> Result<(), WeightsError> {
        let mut mismatch = self.mismatch.take();
        let harmless = |key: &str| HARMLESS.iter().chain(self.source.options.ignored).any(|end| key.ends_with(end));
        let entries = self.entries.borrow();
        mismatch.unexpected =
            entries.values().filter(|entry| !harmless(&entry.key)).map(|entry| self.place(entry)).collect();
        drop(entries);
        if mismatch.is_empty() { Ok(()) } else { Err(WeightsError::Mismatch { path: self.named, mismatch }) }
    }
}

/// Bytes of the tensor that is made of it.
fn held_bytes(entry: &Entry, kind: Kind) -> u64 {
    let stored = entry.kind.elt_size_in_bytes() as u64;
    let held = if is_floating(entry.kind) { kind.elt_size_in_bytes() as u64 } else { stored };
    let bytes = entry.bytes as u64;
    let elements = match entry.packing {
        None => bytes / stored,
        Some(packing) => bytes / packing.block_bytes() * packing.block_elements(),
    };
    elements * held
}

const fn is_floating(kind: Kind) -> bool {
    matches!(kind, Kind::Float8e4m3fn | Kind::Float8e5m2 | Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double)
}
