//! Weights from safetensors files: mapped, not read; each tensor checked by name and shape.
//!
//! A network asks for what it needs with [`Weights::take`]; [`Weights::finish`] then lists everything that was
//! missing, of another shape or not asked for. Knows no network.
#![expect(unsafe_code, reason = "maps files, and makes tensors over the maps")]

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest as _, Sha256};
use tch::{Device, Kind, Tensor};

use crate::torch::{self, TorchError};

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: not a safetensors file: {detail}", path.display())]
    Format { path: PathBuf, detail: String },
    #[error("{}: {}", path.display(), mismatch(missing, unexpected, misshaped))]
    Mismatch { path: PathBuf, missing: Vec<String>, unexpected: Vec<String>, misshaped: Vec<String> },
    #[error("{}: {error}", path.display())]
    Torch { path: PathBuf, error: TorchError },
}

fn mismatch(missing: &[String], unexpected: &[String], misshaped: &[String]) -> String {
    [("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what}: {}", names.join(", ")))
        .collect::<Vec<_>>()
        .join("; ")
}

struct Entry {
    shape: Vec<i64>,
    kind: Kind,
    /// Where it starts in the map.
    offset: usize,
    bytes: usize,
}

/// The tensors of one file.
pub struct Weights {
    path: PathBuf,
    map: Arc<Mmap>,
    entries: BTreeMap<String, Entry>,
    device: Device,
    missing: Vec<String>,
    misshaped: Vec<String>,
}

impl Weights {
    /// Reads the header of the file at `path`. Floating-point tensors will be given in f32 on `device`.
    ///
    /// # Errors
    /// No such file, or one that is no whole safetensors file.
    pub fn open(path: &Path, device: Device) -> Result<Self, WeightsError> {
        let io = |error| WeightsError::Io { path: path.into(), error };
        let format = |detail| WeightsError::Format { path: path.into(), detail };
        let file = File::open(path).map_err(io)?;
        // SAFETY: model files are replaced by renaming, never changed in place.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        let tensors = SafeTensors::deserialize(&map).map_err(|error| format(error.to_string()))?;
        let mut entries = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let kind = kind(view.dtype()).ok_or_else(|| format(format!("{name} has the type {:?}", view.dtype())))?;
            let shape = view.shape().iter().map(|&size| i64::try_from(size)).collect::<Result<_, _>>();
            let shape = shape.map_err(|error| format(format!("{name}: {error}")))?;
            let offset = view.data().as_ptr().addr() - map.as_ptr().addr();
            entries.insert(name.to_owned(), Entry { shape, kind, offset, bytes: view.data().len() });
        }
        Ok(Self { path: path.into(), map, entries, device, missing: Vec::new(), misshaped: Vec::new() })
    }

    /// Bytes that all tensors will hold once they are taken.
    pub fn bytes(&self) -> u64 {
        self.entries
            .values()
            .map(|entry| (entry.bytes / entry.kind.elt_size_in_bytes() * target(entry.kind).elt_size_in_bytes()) as u64)
            .sum()
    }

    /// Where the tensors are put.
    pub const fn device(&self) -> Device {
        self.device
    }

    /// Of the file, in hexadecimal digits.
    pub fn sha256(&self) -> String {
        format!("{:x}", Sha256::digest(&self.map[..]))
    }

    /// The tensor `name`, which must have this shape. Where it does not, that is noted for [`Self::finish`], and the
    /// answer is an empty tensor.
    ///
    /// # Errors
    /// The device has no room.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        let Some(entry) = self.entries.remove(name) else {
            self.missing.push(name.into());
            return Ok(Tensor::new());
        };
        if entry.shape != shape {
            self.misshaped.push(format!("{name} is {:?}, not {shape:?}", entry.shape));
            return Ok(Tensor::new());
        }
        self.tensor(&entry).map_err(|error| WeightsError::Torch { path: self.path.clone(), error })
    }

    fn tensor(&self, entry: &Entry) -> Result<Tensor, TorchError> {
        let data = &self.map[entry.offset..entry.offset + entry.bytes];
        let mapped = if data.as_ptr().addr().is_multiple_of(entry.kind.elt_size_in_bytes()) {
            // SAFETY: safetensors has checked that the shape fits the bytes; the map is the owner.
            unsafe { torch::tensor_over(data.as_ptr(), &entry.shape, entry.kind, Box::new(self.map.clone())) }?
        } else {
            Tensor::f_from_data_size(data, &entry.shape, entry.kind)?
        };
        // Half precision is a hundred times slower on a CPU. Where nothing changes, this is the map itself.
        Ok(mapped.f_to_device_(self.device, target(entry.kind), false, false)?)
    }

    /// # Errors
    /// What did not fit, all of it.
    pub fn finish(self) -> Result<(), WeightsError> {
        let unexpected: Vec<_> = self.entries.into_keys().collect();
        if self.missing.is_empty() && self.misshaped.is_empty() && unexpected.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Mismatch { path: self.path, missing: self.missing, unexpected, misshaped: self.misshaped })
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "no others are needed yet")]
fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
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

/// What a tensor of this kind is computed with.
const fn target(kind: Kind) -> Kind {
    if matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Double) { Kind::Float } else { kind }
}
