//! Keys and values of the tokens so far.

use tch::{Kind, Tensor};

use crate::torch::TorchError;

/// Of every layer of one text. Room for all tokens is taken at the first, so that none is copied again.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Option<Entry>>,
    capacity: i64,
    length: i64,
}

#[derive(Debug)]
struct Entry {
    /// (B, heads, capacity, head)
    key: Tensor,
    value: Tensor,
}

impl KvCache {
    /// For `capacity` tokens in each of so many layers.
    pub fn new(layers: usize, capacity: i64) -> Self {
        Self { layers: (0..layers).map(|_| None).collect(), capacity, length: 0 }
    }

    /// Tokens that all layers have seen.
    pub const fn length(&self) -> i64 {
        self.length
    }

    /// Adds what a layer makes of further tokens, `key` and `value` (B, heads, L, head), to what it made before; gives
    /// all of it, (B, heads, S, head).
    ///
    /// # Errors
    /// No room, no such layer, or a device's failure.
    pub fn append(&mut self, layer: usize, key: &Tensor, value: &Tensor) -> Result<(Tensor, Tensor), TorchError> {
        let (batch, heads, added, width) = key.size4()?;
        let (start, end, capacity) = (self.length, self.length + added, self.capacity);
        let slot = self.layers.get_mut(layer).ok_or_else(|| TorchError::Other(format!("there is no layer {layer}")))?;
        if end > capacity {
            return Err(TorchError::Other(format!("{end} tokens, and there is room for {capacity}")));
        }
        let entry = match slot {
            Some(entry) => entry,
            None => {
                let empty = |kind: Kind, like: &Tensor| -> Result<Tensor, TorchError> {
                    Ok(Tensor::f_empty([batch, heads, capacity, width], (kind, like.device()))?)
                };
                slot.insert(Entry { key: empty(key.f_kind()?, key)?, value: empty(value.f_kind()?, value)? })
            }
        };
        let store = |whole: &Tensor, part: &Tensor| -> Result<Tensor, TorchError> {
            whole.f_narrow(2, start, added)?.f_copy_(part)?;
            Ok(whole.f_narrow(2, 0, end)?)
        };
        Ok((store(&entry.key, key)?, store(&entry.value, value)?))
    }

    /// All layers have seen `added` more tokens.
    pub const fn advance(&mut self, added: i64) {
        self.length += added;
    }
}
