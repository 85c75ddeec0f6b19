//! Keys and values of the tokens that a language model has seen.

use tch::Tensor;

use crate::torch::TorchError;

/// Room is made for so many tokens at once.
const STEP: i64 = 256;

/// One layer's: (B, heads, room, size) each, of which the first `length` are filled.
#[derive(Debug)]
struct Layer {
    keys: Tensor,
    values: Tensor,
    length: i64,
}

/// All layers'. Empty at first.
#[derive(Debug, Default)]
pub struct KeyValues {
    layers: Vec<Layer>,
}

impl KeyValues {
    /// Tokens that every layer has seen.
    pub fn length(&self) -> i64 {
        self.layers.first().map_or(0, |layer| layer.length)
    }

    /// Adds the keys and values (B, heads, L, size) of `layer`'s next tokens, and gives those of all tokens.
    ///
    /// # Errors
    /// No memory, or a layer whose predecessor has none yet.
    pub(super) fn extend(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor), TorchError> {
        let (batch, heads, count, size) = keys.size4()?;
        if layer == self.layers.len() {
            let room = [batch, heads, 0, size];
            let empty = |like: &Tensor| like.f_new_empty(room, (like.f_kind()?, like.device()));
            self.layers.push(Layer { keys: empty(keys)?, values: empty(values)?, length: 0 });
        }
        let layer = self.layers.get_mut(layer).ok_or_else(|| TorchError::Other("a layer was left out".into()))?;
        let length = layer.length + count;
        let room = layer.keys.size4()?.2;
        if length > room {
            let more = [batch, heads, (length - room).max(STEP), size];
            let grown = |held: &Tensor| -> Result<Tensor, TorchError> {
                let more = held.f_new_empty(more, (held.f_kind()?, held.device()))?;
                Ok(Tensor::f_cat(&[held, &more], 2)?)
            };
            (layer.keys, layer.values) = (grown(&layer.keys)?, grown(&layer.values)?);
        }
        for (held, new) in [(&layer.keys, keys), (&layer.values, values)] {
            held.f_narrow(2, layer.length, count)?.f_copy_(new)?;
        }
        layer.length = length;
        Ok((layer.keys.f_narrow(2, 0, length)?, layer.values.f_narrow(2, 0, length)?))
    }
}
