//! How much of a tensor lies around the piece that matters.

use tch::Tensor;

use crate::torch::TorchError;

/// Pixels on each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Margins {
    pub left: u32,
    pub top: u32,
    pub right: u32,
    pub bottom: u32,
}

impl Margins {
    #[must_use]
    pub const fn at_most(self, most: u32) -> Self {
        const fn min(a: u32, b: u32) -> u32 {
            if a < b { a } else { b }
        }
        Self {
            left: min(self.left, most),
            top: min(self.top, most),
            right: min(self.right, most),
            bottom: min(self.bottom, most),
        }
    }

    /// A view of `tensor` (B, C, H, W), which has these margins, with the margins `to`, none of which is larger.
    pub fn crop(self, tensor: &Tensor, to: Self) -> Result<Tensor, TorchError> {
        let size = tensor.size();
        let [_, _, height, width] = size[..] else {
            return Err(TorchError::Other(format!("a tensor of the shape {size:?} is no picture")));
        };
        let (left, top) = (i64::from(self.left) - i64::from(to.left), i64::from(self.top) - i64::from(to.top));
        let right = i64::from(self.right) - i64::from(to.right);
        let bottom = i64::from(self.bottom) - i64::from(to.bottom);
        if (left, top, right, bottom) == (0, 0, 0, 0) {
            return Ok(tensor.shallow_clone());
        }
        Ok(tensor.f_narrow(2, top, height - top - bottom)?.f_narrow(3, left, width - left - right)?)
    }
}
