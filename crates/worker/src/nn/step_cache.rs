//! First-block caching: where the first block of a transformer changes the picture nearly as it did a step ago, the
//! others are taken to do so too, and are left out.
//!
//! Source: diffusers 0.42.1, `hooks/first_block_cache.py`, after ParaAttention's first-block cache.

use std::{cell::RefCell, collections::BTreeMap};

use tch::{Device, Kind, Tensor};

use crate::torch::TorchError;

/// What one row of a guidance remembers of the last step for which all blocks ran.
#[derive(Debug)]
pub struct StepCache {
    /// The largest relative difference for which the others are left out.
    threshold: f64,
    kept: RefCell<Option<Kept>>,
}

/// Changes to the picture's tokens (1, L, D).
#[derive(Debug)]
struct Kept {
    /// By the first block.
    first: Tensor,
    /// By all others.
    rest: Tensor,
}

impl StepCache {
    const fn new(threshold: f64) -> Self {
        Self { threshold, kept: RefCell::new(None) }
    }

    /// The picture's tokens after all blocks, from those `before` and `after` the first one, where the others may be
    /// left out.
    pub fn reuse(&self, before: &Tensor, after: &Tensor) -> Result<Option<Tensor>, TorchError> {
        let kept = self.kept.borrow();
        let Some(kept) = kept.as_ref().filter(|kept| kept.first.size() == after.size()) else { return Ok(None) };
        let change = after.f_sub(before)?;
        let mean = |tensor: &Tensor| Ok::<_, TorchError>(tensor.f_abs()?.f_mean(None)?);
        // In the tensors' own kind, as it is there: it decides.
        let difference = mean(&change.f_sub(&kept.first)?)?.f_div(&mean(&kept.first)?)?.f_double_value(&[])?;
        tracing::debug!(difference, threshold = self.threshold, "the first block's change");
        if difference > self.threshold || difference.is_nan() {
            return Ok(None);
        }
        Ok(Some(kept.rest.f_add(after)?))
    }

    /// Remembers a step for which all blocks ran: the tokens before the first, after it, and after the last.
    pub fn keep(&self, before: &Tensor, after: &Tensor, last: &Tensor) -> Result<(), TorchError> {
        let kept = Kept { first: after.f_sub(before)?, rest: last.f_sub(after)? };
        *self.kept.borrow_mut() = Some(kept);
        Ok(())
    }
}

/// Of all rows of a guidance. They are computed one by one, since each may leave out other steps.
#[derive(Debug)]
pub struct StepCaches(Vec<StepCache>);

impl StepCaches {
    pub fn new(threshold: f64, rows: usize) -> Self {
        Self((0..rows).map(|_| StepCache::new(threshold)).collect())
    }

    pub fn row(&self, row: usize) -> Option<&StepCache> {
        self.0.get(row)
    }

    /// All that is remembered, by name, for a checkpoint.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        for (row, cache) in self.0.iter().enumerate() {
            if let Some(kept) = cache.kept.borrow().as_ref() {
                tensors.insert(format!("step_cache.{row}.first"), kept.first.shallow_clone());
                tensors.insert(format!("step_cache.{row}.rest"), kept.rest.shallow_clone());
            }
        }
        tensors
    }

    /// What [`Self::tensors`] gave. The kind is the one that they had.
    pub fn restore(&self, tensors: &BTreeMap<String, Tensor>, device: Device, kind: Kind) -> Result<(), TorchError> {
        for (row, cache) in self.0.iter().enumerate() {
            let part = |name: &str| {
                let tensor = tensors.get(&format!("step_cache.{row}.{name}"));
                tensor.map(|tensor| tensor.f_to_device_(device, kind, false, true)).transpose()
            };
            let kept = part("first")?.zip(part("rest")?);
            *cache.kept.borrow_mut() = kept.map(|(first, rest)| Kept { first, rest });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: [f32; 2]) -> Tensor {
        Tensor::from_slice(&values).view([1, 2, 1])
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("numbers")
    }

    #[test]
    fn the_others_are_left_out_only_where_the_first_block_does_nearly_the_same() -> Result<(), TorchError> {
        let cache = StepCache::new(0.1);
        let before = tensor([1.0, 2.0]);
        assert!(cache.reuse(&before, &tensor([2.0, 3.0]))?.is_none(), "nothing is remembered");
        // The first block adds (1, 1), the others (10, 20).
        cache.keep(&before, &tensor([2.0, 3.0]), &tensor([12.0, 23.0]))?;
        let near = cache.reuse(&tensor([5.0, 5.0]), &tensor([6.05, 6.0]))?.expect("2.5 % off");
        assert_eq!(values(&near), [16.05, 26.0]);
        assert!(cache.reuse(&tensor([5.0, 5.0]), &tensor([6.5, 6.0]))?.is_none(), "25 % off");
        let other_size = Tensor::from_slice(&[1.0_f32]).view([1, 1, 1]);
        assert!(cache.reuse(&other_size, &other_size)?.is_none());
        Ok(())
    }

    #[test]
    fn what_is_remembered_comes_back_bit_for_bit() -> Result<(), TorchError> {
        let caches = StepCaches::new(0.1, 2);
        let (before, after, last) = (tensor([0.1, 0.7]), tensor([0.4, 0.3]), tensor([2.3, 4.9]));
        let low = |tensor: &Tensor| tensor.to_kind(Kind::BFloat16);
        let row = caches.row(1).expect("two rows");
        row.keep(&low(&before), &low(&after), &low(&last))?;
        let wide: BTreeMap<_, _> =
            caches.tensors().into_iter().map(|(name, tensor)| (name, tensor.to_kind(Kind::Float))).collect();
        assert_eq!(wide.keys().collect::<Vec<_>>(), ["step_cache.1.first", "step_cache.1.rest"]);
        let resumed = StepCaches::new(0.1, 2);
        resumed.restore(&wide, Device::Cpu, Kind::BFloat16)?;
        assert_eq!(resumed.tensors(), caches.tensors());
        Ok(())
    }
}
