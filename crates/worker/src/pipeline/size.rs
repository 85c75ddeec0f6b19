//! The size in pixels that a job is worked at.

use atelier_domain::{ErrorCode, Params};

use super::{
    Mode,
    task::{MOST_LATENTS, refuse},
};
use crate::error::JobError;

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub width: i64,
    pub height: i64,
}

impl Size {
    pub const fn square(side: i64) -> Self {
        Self { width: side, height: side }
    }

    pub const fn area(self) -> i64 {
        self.width * self.height
    }
}

/// Which sizes a model can work in.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Sides of a picture made from a text must be multiples of this, as diffusers asks for.
    pub multiple: i64,
    /// Sides that follow a source are brought down to multiples of this.
    pub unit: i64,
    /// Of what is made from a text alone, where a job does not say.
    pub native: Size,
    /// Sources of more pixels are brought down to as many, where a job does not say otherwise.
    pub most_pixels: i64,
    /// No side may be shorter.
    pub shortest: i64,
}

impl Geometry {
    /// As diffusers decides it; large sources are brought down to what the model was made for.
    ///
    /// # Errors
    /// Sides that are no multiples, too small, or too large.
    pub fn size(&self, mode: Mode, source: Option<Size>, params: &Params) -> Result<Size, JobError> {
        let asked = (params.width.map(i64::from), params.height.map(i64::from));
        let size = match (mode, source) {
            (Mode::Text, _) | (_, None) => {
                let size =
                    Size { width: asked.0.unwrap_or(self.native.width), height: asked.1.unwrap_or(self.native.height) };
                let step = self.multiple;
                for (name, side) in [("width", size.width), ("height", size.height)] {
                    if side % step != 0 {
                        let (below, above) = (side / step * step, (side / step + 1) * step);
                        return Err(refuse(
                            name,
                            &format!("{side} is no multiple of {step}, which this model needs; try {below} or {above}"),
                        ));
                    }
                }
                size
            }
            (_, Some(source)) => {
                let fitted = match asked {
                    (Some(width), Some(height)) => Size { width, height },
                    (Some(width), None) => Size { width, height: follow(width, source.width, source.height) },
                    (None, Some(height)) => Size { width: follow(height, source.height, source.width), height },
                    (None, None) => brought_down(source, self.most_pixels),
                };
                let unit = self.unit;
                Size { width: fitted.width / unit * unit, height: fitted.height / unit * unit }
            }
        };
        self.check(size)?;
        Ok(size)
    }

    /// # Errors
    /// Too small or too large.
    pub fn check(&self, size: Size) -> Result<(), JobError> {
        if size.width < self.shortest || size.height < self.shortest {
            return Err(JobError::refused(
                ErrorCode::InvalidParams,
                format!("{} x {} pixels is too small for this model", size.width, size.height),
                format!(
                    "It needs {} pixels or more on each side, and proportions that are not extreme.",
                    self.shortest
                ),
            ));
        }
        if size.width.max(size.height) > MOST_LATENTS * self.unit {
            return Err(refuse("width", &format!("{} x {} pixels is too large", size.width, size.height)));
        }
        Ok(())
    }
}

const fn follow(side: i64, of: i64, other: i64) -> i64 {
    (side * other + of / 2) / of
}

/// The largest size of the same proportions with at most so many pixels; never larger than it is.
fn brought_down(size: Size, most_pixels: i64) -> Size {
    if size.area() <= most_pixels {
        return size;
    }
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "sides of pictures")]
    let side = |side: i64, other: i64| (most_pixels as f64 * side as f64 / other as f64).sqrt() as i64;
    Size { width: side(size.width, size.height), height: side(size.height, size.width) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pictures_come_down_with_their_proportions_and_small_ones_stay() {
        let size = |width, height| Size { width, height };
        assert_eq!(brought_down(size(4000, 3000), 256 * 256), size(295, 221));
        assert_eq!(brought_down(size(100, 90), 256 * 256), size(100, 90));
        assert_eq!(brought_down(size(1024, 1024), 512 * 512), size(512, 512));
        assert_eq!(follow(512, 3000, 2000), 341);
    }
}
