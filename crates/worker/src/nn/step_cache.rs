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
    fn reuse(&self, before: &Tensor, after: &Tensor) -> Result<Option<Tensor>, TorchError> {
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
    fn keep(&self, before: &Tensor, after: &Tensor, last: &Tensor) -> Result<(), TorchError> {
        let kept = Kept { first: after.f_sub(before)?, rest: last.f_sub(after)? };
        *self.kept.borrow_mut() = Some(kept);
        Ok(())
    }
}

/// One forward pass through a network's blocks.
pub struct Pass<'a> {
    /// With the picture's tokens before the first block.
    cache: Option<(&'a StepCache, Tensor)>,
    /// And after it.
    after: Option<Tensor>,
    is_whole: bool,
}

impl<'a> Pass<'a> {
    /// `picture`: its tokens (1, L, D) before the first block. Without a cache, all blocks run.
    pub fn begin(cache: Option<&'a StepCache>, picture: &Tensor) -> Self {
        let cache = cache.map(|cache| (cache, picture.shallow_clone()));
        Self { cache, after: None, is_whole: true }
    }

    /// To be asked after each block, which has made a new `picture`: false means that no further block need run, since
    /// `picture` is now what they would make of it.
    pub fn goes_on(&mut self, picture: &mut Tensor) -> Result<bool, TorchError> {
        let (Some((cache, before)), None) = (&self.cache, &self.after) else { return Ok(true) };
        if let Some(last) = cache.reuse(before, picture)? {
            *picture = last;
            self.is_whole = false;
        }
        self.after = Some(picture.shallow_clone());
        Ok(self.is_whole)
    }

    /// Whether all blocks are to run.
    pub const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The picture's tokens after the last block, where all have run.
    pub fn end(self, picture: &Tensor) -> Result<(), TorchError> {
        match (self.cache, self.after) {
            (Some((cache, before)), Some(after)) if self.is_whole => cache.keep(&before, &after, picture),
            (_, _) => Ok(()),
        }
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

    /// A network whose first block adds `first`, and whose others add (10, 20). Says whether those ran.
    fn pass(cache: &StepCache, picture: [f32; 2], first: [f32; 2]) -> Result<(Vec<f32>, bool), TorchError> {
        let mut picture = tensor(picture);
        let mut pass = Pass::begin(Some(cache), &picture);
        picture = picture.f_add(&tensor(first))?;
        let goes_on = pass.goes_on(&mut picture)?;
        assert_eq!(goes_on, pass.is_whole());
        if goes_on {
            picture = picture.f_add(&tensor([10.0, 20.0]))?;
            assert!(pass.goes_on(&mut picture)?, "asked after the first only");
        }
        pass.end(&picture)?;
        Ok((values(&picture), goes_on))
    }

    #[test]
    fn the_others_are_left_out_only_where_the_first_block_does_nearly_the_same() -> Result<(), TorchError> {
        let cache = StepCache::new(0.1);
        assert_eq!(pass(&cache, [1.0, 2.0], [1.0, 1.0])?, (vec![12.0, 23.0], true), "nothing is remembered");
        assert_eq!(pass(&cache, [5.0, 5.0], [1.0, 1.125])?, (vec![16.0, 26.125], false), "6 % off");
        assert_eq!(pass(&cache, [5.0, 5.0], [1.25, 1.0])?, (vec![16.25, 26.0], true), "12.5 % off");
        // What the last whole step did counts, not what was reused.
        assert_eq!(pass(&cache, [5.0, 5.0], [1.25, 1.0])?, (vec![16.25, 26.0], false), "the same again");
        let never = StepCache::new(0.0);
        assert!(pass(&never, [0.0, 0.0], [0.0, 0.0])?.1 && pass(&never, [0.0, 0.0], [0.0, 0.0])?.1, "0 of 0");
        Ok(())
    }

    #[test]
    fn another_size_is_not_compared() -> Result<(), TorchError> {
        let cache = StepCache::new(1.0);
        pass(&cache, [1.0, 2.0], [1.0, 1.0])?;
        let one = Tensor::from_slice(&[1.0_f32]).view([1, 1, 1]);
        assert!(cache.reuse(&one, &one)?.is_none());
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
