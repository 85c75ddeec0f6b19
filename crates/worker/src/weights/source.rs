//! How the tensors of a component are made of its files.

use std::{cell::Cell, collections::BTreeMap, ops::ControlFlow, rc::Rc};

use tch::{Device, Kind, Tensor};

use super::{
    Deltas, LoadOptions, LoadProgress,
    fetch::Fetcher,
    float8, gguf,
    shards::{Entry, Shard},
};
use crate::torch::{self, TorchError};

/// The mapped files, and what is done to their tensors. Cheap to clone.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) shards: Rc<[Shard]>,
    pub(super) options: LoadOptions,
    pub(super) deltas: Option<Rc<dyn Deltas>>,
    /// What is on the device already, by canonical name: packed, what is packed, and all else as it was asked for.
    pub(super) held: Rc<BTreeMap<String, Tensor>>,
    pub(super) fetcher: Rc<Fetcher>,
    /// Of the files.
    pub(super) total_bytes: u64,
    pub(super) done_bytes: Rc<Cell<u64>>,
}

impl Source {
    pub(super) fn new(shards: Vec<Shard>, options: LoadOptions) -> Self {
        let (fetcher, done_bytes, held) = (Rc::default(), Rc::default(), Rc::default());
        Self { shards: shards.into(), options, deltas: None, held, fetcher, total_bytes: 0, done_bytes }
    }

    /// Tells that the tensor was loaded, and hears whether to go on.
    pub(super) fn report(&self, entry: &Entry) -> ControlFlow<()> {
        let Some(report) = &self.options.progress else { return ControlFlow::Continue(()) };
        self.done_bytes.set(self.done_bytes.get() + entry.bytes as u64);
        report(LoadProgress { done_bytes: self.done_bytes.get(), total_bytes: self.total_bytes })
    }

    /// What is to be kept of the tensor on the device, for [`Self::tensor`] to find it there.
    pub(super) fn held(&self, name: &str, entry: &Entry, kind: Kind) -> Result<Tensor, TorchError> {
        if entry.packing.is_none() {
            return self.tensor(name, entry, kind);
        }
        let _mappings = torch::OwnMappings::enter();
        let shard = &self.shards[entry.shard];
        if self.options.device == Device::Cpu {
            shard.populate(entry);
        }
        let held = mapped(shard, entry)?.0.f_to_device(self.options.device)?;
        if self.options.device != Device::Cpu {
            shard.release(entry);
        }
        Ok(held)
    }

    /// The tensor in `kind` on the device, with what is added to it.
    pub(super) fn tensor(&self, name: &str, entry: &Entry, kind: Kind) -> Result<Tensor, TorchError> {
        let _mappings = torch::OwnMappings::enter();
        let device = self.options.device;
        let shard = &self.shards[entry.shard];
        let deltas = self.deltas.as_ref().filter(|deltas| deltas.touches(name));
        let held = self.held.get(name);
        let tensor = if let Some(packing) = entry.packing {
            let packed = match held {
                Some(held) => held.shallow_clone(),
                None => mapped(shard, entry)?.0.f_to_device(device)?,
            };
            let to = if deltas.is_some() { Kind::Float } else { kind };
            gguf::unpack(&packed, packing, to)?.f_view(entry.shape.as_slice())?
        } else {
            if let Some(held) = held
                && held.f_kind()? == kind
            {
                return Ok(held.shallow_clone());
            }
            let (mapped, is_aligned) = mapped(shard, entry)?;
            let as_stored = deltas.is_none() && entry.scale.is_none() && !entry.swapped;
            if is_aligned && as_stored && device == Device::Cpu && entry.kind == kind {
                shard.populate(entry);
                return Ok(mapped);
            }
            onto(&mapped, device, if as_stored { kind } else { Kind::Float })?
        };
        let tensor = match &entry.scale {
            None => tensor,
            Some(scale) => {
                let stored = mapped(&self.shards[scale.shard], scale)?.0;
                float8::scaled(tensor, &onto(&stored, device, Kind::Float)?)?
            }
        };
        let tensor = if entry.swapped { swapped(&tensor)? } else { tensor };
        let tensor = match deltas {
            None => tensor,
            Some(deltas) => deltas.apply(name, tensor)?,
        };
        if held.is_none() {
            shard.release(entry);
        }
        Ok(tensor.f_to_kind(kind)?)
    }
}

/// The tensor as it is stored (packed, its bytes in a row), over the map where it is aligned there (the second value),
/// else a copy.
fn mapped(shard: &Shard, entry: &Entry) -> Result<(Tensor, bool), TorchError> {
    let data = &shard.map[entry.offset..entry.offset + entry.bytes];
    // Blocks begin with halves.
    let (bytes, half) = ([i64::try_from(entry.bytes).unwrap_or(i64::MAX)], Kind::Half.elt_size_in_bytes());
    let (shape, kind, align) = match entry.packing {
        None => (entry.shape.as_slice(), entry.kind, entry.kind.elt_size_in_bytes()),
        Some(_) => (bytes.as_slice(), Kind::Uint8, half),
    };
    let is_aligned = data.as_ptr().addr().is_multiple_of(align);
    let tensor = if is_aligned {
        // SAFETY: the shape fits the bytes, as the reader of the file's format has checked; the map is the owner.
        unsafe { torch::tensor_over(data.as_ptr(), shape, kind, Box::new(shard.map.clone())) }?
    } else {
        Tensor::f_from_data_size(data, shape, kind)?
    };
    Ok((tensor, is_aligned))
}

/// The second half of the rows, then the first.
fn swapped(tensor: &Tensor) -> Result<Tensor, TorchError> {
    let half = tensor.size()[0] / 2;
    Ok(Tensor::f_cat(&[tensor.f_narrow(0, half, half)?, tensor.f_narrow(0, 0, half)?], 0)?)
}

/// Cast on the side where fewer bytes have to travel for it.
fn onto(tensor: &Tensor, device: Device, kind: Kind) -> Result<Tensor, TorchError> {
    if tensor.f_kind()?.elt_size_in_bytes() < kind.elt_size_in_bytes() {
        return Ok(tensor.f_to_device(device)?.f_to_kind(kind)?);
    }
    Ok(tensor.f_to_device_(device, kind, false, false)?)
}
