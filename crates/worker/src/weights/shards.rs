//! The files of a component: which there are, mapped and checked as a whole before anything is loaded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    ops,
    path::{Path, PathBuf},
    sync::Arc,
};

use atelier_gguf::{Architecture, Packing, gguf_files};
use memmap2::{Advice, Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;
use tch::Kind;

use super::{FileStamp, WeightsError, gguf, original};

/// Where a tensor lies, and what it is.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// As the file spells it.
    pub key: String,
    pub shape: Vec<i64>,
    /// Of its elements, once they are unpacked.
    pub kind: Kind,
    /// How they are packed, where they are.
    pub packing: Option<Packing>,
    /// Whether the second half of its rows is to come first.
    pub swapped: bool,
    /// Index into the component's shards.
    pub shard: usize,
    /// Where it starts in the shard's map.
    pub offset: usize,
    pub bytes: usize,
    /// What it is multiplied with.
    pub scale: Option<Box<Self>>,
}

/// An entry, and the name that diffusers would give it.
pub(super) type Named = (String, Entry);

impl Entry {
    /// A tensor whose elements lie in `range` of the shard, one by one.
    pub(super) fn plain(key: String, shape: Vec<i64>, kind: Kind, shard: usize, range: ops::Range<usize>) -> Self {
        let (offset, bytes) = (range.start, range.len());
        Self { key, shape, kind, packing: None, swapped: false, shard, offset, bytes, scale: None }
    }

    /// Some of its rows, as a tensor; none where it has not so many, or they do not begin and end with a block.
    pub(super) fn rows(&self, rows: ops::Range<i64>) -> Option<Self> {
        let count = *self.shape.first().filter(|_| self.scale.is_none() && !self.swapped)?;
        if rows.is_empty() || rows.start < 0 || rows.end > count {
            return None;
        }
        let row: i64 = self.shape[1..].iter().product();
        let block = self.packing.map_or(1, |packing| packing.block_elements().cast_signed());
        if row % block != 0 {
            return None;
        }
        let bytes = self.bytes / usize::try_from(count).ok()?;
        let (start, end) = (usize::try_from(rows.start).ok()? * bytes, usize::try_from(rows.end).ok()? * bytes);
        let shape = std::iter::once(rows.end - rows.start).chain(self.shape[1..].iter().copied()).collect();
        Some(Self { shape, offset: self.offset + start, bytes: end - start, ..self.clone() })
    }
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
    fn open(path: &Path, index: usize, container: Container) -> Result<(Self, Vec<Entry>), WeightsError> {
        let io = |error| WeightsError::Io { path: path.into(), error };
        let format = |detail| WeightsError::Format { path: path.into(), detail };
        let file = File::open(path).map_err(io)?;
        let stamp = FileStamp::of(path, &file.metadata().map_err(io)?);
        // SAFETY: model files are replaced by renaming, never changed in place.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        if let Container::Gguf(architecture) = container {
            let entries = gguf::entries(&map, index, architecture);
            let entries = entries.map_err(|detail| WeightsError::Gguf { path: path.into(), detail })?;
            return Ok((Self { path: path.into(), map, stamp, metadata: HashMap::new() }, entries));
        }
        let tensors = SafeTensors::deserialize(&map).map_err(|error| format(error.to_string()))?;
        let mut entries = Vec::with_capacity(tensors.len());
        for (key, view) in tensors.iter() {
            let kind = kind(view.dtype()).ok_or_else(|| format(format!("{key} has the type {:?}", view.dtype())))?;
            let shape = view.shape().iter().map(|&size| i64::try_from(size)).collect::<Result<_, _>>();
            let shape = shape.map_err(|error| format(format!("{key}: {error}")))?;
            let offset = view.data().as_ptr().addr() - map.as_ptr().addr();
            entries.push(Entry::plain(key.to_owned(), shape, kind, index, offset..offset + view.data().len()));
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
    container: Container,
    /// The network that the folder is of, where its tensors may have other names than diffusers'.
    network: Option<Architecture>,
}

/// What holds the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Safetensors,
    /// Of this network.
    Gguf(Architecture),
}

impl Layout {
    pub(super) fn single(path: &Path) -> Self {
        Self {
            named: path.into(),
            files: vec![path.into()],
            promised: BTreeMap::new(),
            container: Container::Safetensors,
            network: None,
        }
    }

    /// The first of the variants that the folder has; "" is the one without a name. A GGUF file takes their place where
    /// the network is one whose weights come in such files.
    pub(super) fn find(folder: &Path, stem: &str, variants: &[&str]) -> Result<Self, WeightsError> {
        let (network, files) = (architecture_of(folder), gguf_files(folder));
        let found = Self::find_safetensors(folder, stem, variants).map(|found| Self { network, ..found });
        let Some(file) = files.first() else { return found };
        let gguf = |path: PathBuf, detail: String| Err(WeightsError::Gguf { path, detail });
        match (network, found) {
            (Some(architecture), Err(WeightsError::Absent { .. })) => {
                if files.len() > 1 {
                    let detail = format!("it holds {}, and only one can be used; leave that one", files.join(", "));
                    return gguf(folder.into(), detail);
                }
                let container = Container::Gguf(architecture);
                Ok(Self { container, network, ..Self::single(&folder.join(file)) })
            }
            (Some(_), Ok(found)) => {
                let other = file_name(&found.named);
                gguf(folder.into(), format!("it holds {file} and {other}, and only one can be used; leave that one"))
            }
            (None, Err(WeightsError::Absent { .. })) => gguf(
                folder.join(file),
                "GGUF files are read for the transformers of FLUX.1, Qwen-Image, Stable Diffusion 3 and AuraFlow only; \
                 this part's weights must be safetensors"
                    .into(),
            ),
            (_, found) => found,
        }
    }

    fn find_safetensors(folder: &Path, stem: &str, variants: &[&str]) -> Result<Self, WeightsError> {
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
        let files = promised.keys().cloned().collect();
        Ok(Self { named: path.into(), files, promised, container: Container::Safetensors, network: None })
    }

    /// Maps all files. The entries are as the files order them, file by file.
    pub(super) fn open(&self) -> Result<(Vec<Shard>, Vec<Named>), WeightsError> {
        let mut shards = Vec::with_capacity(self.files.len());
        let mut entries = Vec::new();
        for path in &self.files {
            let (shard, found) = Shard::open(path, shards.len(), self.container)?;
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
        let named = match self.network {
            None => entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect(),
            Some(network) => original::renamed(entries, network),
        };
        Ok((shards, named))
    }
}

/// Of the network whose configuration lies in the folder.
fn architecture_of(folder: &Path) -> Option<Architecture> {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).ok()?).ok()?;
    Architecture::of_class(config.get("_class_name")?.as_str()?)
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
