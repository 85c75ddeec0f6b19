//! The files of a component: which there are, mapped and checked as a whole before anything is loaded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::Kind;

use super::{FileStamp, WeightsError};

/// Where a tensor lies, and what it is.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// As the file spells it.
    pub key: String,
    pub shape: Vec<i64>,
    pub kind: Kind,
    /// Index into the component's shards.
    pub shard: usize,
    /// Where it starts in the shard's map.
    pub offset: usize,
    pub bytes: usize,
    /// What it is multiplied with.
    pub scale: Option<Box<Self>>,
}

/// One mapped file.
pub(super) struct Shard {
    pub path: PathBuf,
    pub map: Arc<Mmap>,
    pub stamp: FileStamp,
    /// What the file says beside its tensors.
    pub metadata: HashMap<String, String>,
}

impl Shard {
    /// Maps the file and reads its header. The length of the file is checked too: a tensor cannot lie outside it.
    pub(super) fn open(path: &Path, index: usize) -> Result<(Self, Vec<Entry>), WeightsError> {
        let io = |error| WeightsError::Io { path: path.into(), error };
        let format = |detail| WeightsError::Format { path: path.into(), detail };
        let file = File::open(path).map_err(io)?;
        let stamp = FileStamp::of(path, &file.metadata().map_err(io)?);
        // SAFETY: model files are replaced by renaming, never changed in place.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        let tensors = SafeTensors::deserialize(&map).map_err(|error| format(error.to_string()))?;
        let mut entries = Vec::with_capacity(tensors.len());
        for (key, view) in tensors.iter() {
            let kind = kind(view.dtype()).ok_or_else(|| format(format!("{key} has the type {:?}", view.dtype())))?;
            let shape = view.shape().iter().map(|&size| i64::try_from(size)).collect::<Result<_, _>>();
            let shape = shape.map_err(|error| format(format!("{key}: {error}")))?;
            let offset = view.data().as_ptr().addr() - map.as_ptr().addr();
            let (key, bytes) = (key.to_owned(), view.data().len());
            entries.push(Entry { key, shape, kind, shard: index, offset, bytes, scale: None });
        }
        let (_, metadata) = SafeTensors::read_metadata(&map).map_err(|error| format(error.to_string()))?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        Ok((Self { path: path.into(), map, stamp, metadata }, entries))
    }

    pub(super) fn range(&self, entry: &Entry) -> Range {
        Range { map: self.map.clone(), offset: entry.offset, bytes: entry.bytes }
    }

    /// Reads the tensor into memory now, so that the first forward pass does not wait for the disk page by page.
    pub(super) fn populate(&self, entry: &Entry) {
        self.range(entry).populate();
    }

    /// Gives the tensor's pages back: what was made of it lies elsewhere.
    pub(super) fn release(&self, entry: &Entry) {
        self.range(entry).release();
    }
}

/// Bytes that are read in one go: others of the process's mappings cannot be changed in the meantime.
const READ_AT_ONCE: usize = 4 << 20;

/// A part of a mapped file.
#[derive(Debug)]
pub(super) struct Range {
    map: Arc<Mmap>,
    offset: usize,
    bytes: usize,
}

impl Range {
    pub(super) fn populate(&self) {
        let end = self.offset + self.bytes;
        for start in (self.offset..end).step_by(READ_AT_ONCE) {
            let bytes = READ_AT_ONCE.min(end - start);
            // Kernels before 5.14 know only the hint. Neither is needed for the result to be right.
            if self.map.advise_range(Advice::PopulateRead, start, bytes).is_err() {
                let _ = self.map.advise_range(Advice::WillNeed, start, bytes);
            }
        }
    }

    pub(super) fn release(&self) {
        // SAFETY: the map is of a file and never written, so a page that is dropped is read again when it is needed.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.offset, self.bytes) };
    }
}

/// The part of a file that a tensor was made of; nothing where there is no file.
#[derive(Debug)]
pub struct Pages(pub(super) Option<Range>);

impl Pages {
    /// Of no file.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Gives the memory back. A tensor that still lies there stays right, and is read from the file again.
    pub fn release(&mut self) {
        if let Some(range) = self.0.take() {
            range.release();
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "no others are needed yet")]
const fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F8_E4M3 => Kind::Float8e4m3fn,
        Dtype::F8_E5M2 => Kind::Float8e5m2,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

/// The files that make up a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// What an error about the component as a whole names: the only file, or the index.
    pub named: PathBuf,
    pub files: Vec<PathBuf>,
    /// By file, the tensors that the index promises; empty for a single file.
    pub promised: BTreeMap<PathBuf, Vec<String>>,
}

impl Layout {
    pub(super) fn single(path: &Path) -> Self {
        Self { named: path.into(), files: vec![path.into()], promised: BTreeMap::new() }
    }

    /// The first of the variants that the folder has; "" is the one without a name.
    pub(super) fn find(folder: &Path, stem: &str, variants: &[&str]) -> Result<Self, WeightsError> {
        let mut looked_for = Vec::new();
        for variant in variants {
            let (single, indices) = names(stem, variant);
            for index in indices {
                let path = folder.join(&index);
                if path.is_file() {
                    return Self::from_index(folder, &path);
                }
                looked_for.push(index);
            }
            let path = folder.join(&single);
            if path.is_file() {
                return Ok(Self::single(&path));
            }
            looked_for.push(single);
        }
        Err(WeightsError::Absent { folder: folder.into(), looked_for, pickles: pickles(folder) })
    }

    fn from_index(folder: &Path, path: &Path) -> Result<Self, WeightsError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let wrong = |detail| WeightsError::Index { path: path.into(), detail };
        let text = fs::read(path).map_err(|error| WeightsError::Io { path: path.into(), error })?;
        let index: Index = serde_json::from_slice(&text).map_err(|error| wrong(format!("not an index: {error}")))?;
        let mut promised: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for (key, file) in index.weight_map {
            if Path::new(&file).file_name().is_none_or(|name| name != file.as_str()) {
                return Err(wrong(format!("{file:?}, the file of {key}, is not the name of a file")));
            }
            promised.entry(folder.join(file)).or_default().push(key);
        }
        let absent: Vec<_> = promised.keys().filter(|file| !file.is_file()).map(|file| file_name(file)).collect();
        if !absent.is_empty() {
            return Err(wrong(format!("it names {}, which the folder does not have", super::error::some_of(&absent))));
        }
        if promised.is_empty() {
            return Err(wrong("it names no tensors".into()));
        }
        Ok(Self { named: path.into(), files: promised.keys().cloned().collect(), promised })
    }

    /// Maps all files. The entries are as the files order them, file by file.
    pub(super) fn open(&self) -> Result<(Vec<Shard>, Vec<Entry>), WeightsError> {
        let mut shards = Vec::with_capacity(self.files.len());
        let mut entries = Vec::new();
        for path in &self.files {
            let (shard, found) = Shard::open(path, shards.len())?;
            let keys: BTreeSet<_> = found.iter().map(|entry| entry.key.as_str()).collect();
            let lacking = self.promised.get(path).into_iter().flatten().filter(|key| !keys.contains(key.as_str()));
            let lacking: Vec<_> = lacking.cloned().collect();
            if !lacking.is_empty() {
                let detail = format!("{} does not hold {}", file_name(path), super::error::some_of(&lacking));
                return Err(WeightsError::Index { path: self.named.clone(), detail });
            }
            shards.push(shard);
            entries.extend(found);
        }
        Ok((shards, entries))
    }
}

/// The name of the single file, and the names that an index of shards has had.
fn names(stem: &str, variant: &str) -> (String, Vec<String>) {
    if variant.is_empty() {
        return (format!("{stem}.safetensors"), vec![format!("{stem}.safetensors.index.json")]);
    }
    let indices =
        vec![format!("{stem}.safetensors.index.{variant}.json"), format!("{stem}.{variant}.safetensors.index.json")];
    (format!("{stem}.{variant}.safetensors"), indices)
}

fn pickles(folder: &Path) -> Vec<String> {
    let Ok(files) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = files
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            extension.is_some_and(|extension| ["bin", "pt", "pth", "ckpt"].contains(&extension))
        })
        .map(|path| file_name(&path))
        .collect();
    names.sort();
    names
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
