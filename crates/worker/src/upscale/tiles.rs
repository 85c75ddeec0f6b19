//! How a picture is cut into tiles, and what each network must be given for one.

use serde::{Deserialize, Serialize};

use crate::nn::Margins;

/// Pixels from (x0, y0) up to and without (x1, y1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    pub x0: u32,
    pub y0: u32,
    pub x1: u32,
    pub y1: u32,
}

impl Rect {
    pub const fn width(self) -> u32 {
        self.x1 - self.x0
    }

    pub const fn height(self) -> u32 {
        self.y1 - self.y0
    }

    #[must_use]
    pub const fn scaled(self, by: u32) -> Self {
        Self { x0: self.x0 * by, y0: self.y0 * by, x1: self.x1 * by, y1: self.y1 * by }
    }

    /// The smallest rectangle that covers this one once it is scaled.
    const fn unscaled(self, by: u32) -> Self {
        Self { x0: self.x0 / by, y0: self.y0 / by, x1: self.x1.div_ceil(by), y1: self.y1.div_ceil(by) }
    }

    /// With so many pixels around it, as far as the picture goes.
    fn grown(self, by: u32, size: Size) -> Self {
        Self {
            x0: self.x0.saturating_sub(by),
            y0: self.y0.saturating_sub(by),
            x1: (self.x1 + by).min(size.width),
            y1: (self.y1 + by).min(size.height),
        }
    }

    /// What this rectangle has around `inner`.
    pub const fn margins_around(self, inner: Self) -> Margins {
        Margins {
            left: inner.x0 - self.x0,
            top: inner.y0 - self.y0,
            right: self.x1 - inner.x1,
            bottom: self.y1 - inner.y1,
        }
    }
}

/// Of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

impl Size {
    #[must_use]
    pub const fn scaled(self, by: u32) -> Self {
        Self { width: self.width * by, height: self.height * by }
    }
}

/// A picture cut into columns and rows of nearly the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grid {
    pub size: Size,
    pub columns: u32,
    pub rows: u32,
}

impl Grid {
    /// No tile is wider or higher than `tile`.
    pub fn new(size: Size, tile: u32) -> Self {
        Self { size, columns: size.width.div_ceil(tile).max(1), rows: size.height.div_ceil(tile).max(1) }
    }

    pub const fn count(self) -> u32 {
        self.columns * self.rows
    }

    /// The tile `index`: row by row from the top, each from the left.
    pub fn tile(self, index: u32) -> Rect {
        let (row, column) = (index / self.columns, index % self.columns);
        let cut = |length: u32, parts: u32, at: u32| {
            // Never more than `length`, so it fits.
            u32::try_from(u64::from(length) * u64::from(at) / u64::from(parts)).unwrap_or(length)
        };
        Rect {
            x0: cut(self.size.width, self.columns, column),
            x1: cut(self.size.width, self.columns, column + 1),
            y0: cut(self.size.height, self.rows, row),
            y1: cut(self.size.height, self.rows, row + 1),
        }
    }
}

/// A network in the chain, as far as geometry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    pub scale: u32,
    pub halo: u32,
}

/// What a stage does for a tile, in pixels of the stage's own input picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the network is given.
    pub input: Rect,
    /// What it upscales of that.
    pub piece: Rect,
}

impl Step {
    pub const fn margins(self) -> Margins {
        self.input.margins_around(self.piece)
    }
}

/// The steps that lead from a picture of `size` to `tile` (in its pixels) scaled by all stages.
pub fn steps(tile: Rect, size: Size, stages: &[Stage]) -> Vec<Step> {
    let total: u32 = stages.iter().map(|stage| stage.scale).product();
    let mut wanted = tile.scaled(total);
    let mut scale = total;
    let mut steps: Vec<_> = stages
        .iter()
        .rev()
        .map(|stage| {
            scale /= stage.scale;
            let piece = wanted.unscaled(stage.scale);
            let input = piece.grown(stage.halo, size.scaled(scale));
            wanted = input;
            Step { input, piece }
        })
        .collect();
    steps.reverse();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_pixel_once_and_none_is_too_large() {
        for (width, height, tile) in [(1, 1, 64), (64, 64, 64), (65, 200, 64), (1000, 3, 7), (13, 17, 1)] {
            let grid = Grid::new(Size { width, height }, tile);
            let mut covered = vec![0; (width * height) as usize];
            for rect in (0..grid.count()).map(|index| grid.tile(index)) {
                assert!((1..=tile).contains(&rect.width()) && (1..=tile).contains(&rect.height()), "{rect:?}");
                for y in rect.y0..rect.y1 {
                    for x in rect.x0..rect.x1 {
                        covered[(y * width + x) as usize] += 1;
                    }
                }
            }
            assert!(covered.iter().all(|&times| times == 1), "{width} x {height} by {tile}");
        }
    }

    #[test]
    fn a_stage_gives_what_the_next_one_needs_and_no_more() {
        let size = Size { width: 100, height: 80 };
        let stages = [Stage { scale: 2, halo: 7 }, Stage { scale: 2, halo: 21 }];
        let tile = Rect { x0: 40, y0: 0, x1: 60, y1: 30 };
        let [first, second] = steps(tile, size, &stages)[..] else { panic!("two stages") };
        assert_eq!(second.piece, Rect { x0: 80, y0: 0, x1: 120, y1: 60 });
        assert_eq!(second.input, Rect { x0: 59, y0: 0, x1: 141, y1: 81 });
        assert_eq!(first.piece, Rect { x0: 29, y0: 0, x1: 71, y1: 41 });
        assert_eq!(first.input, Rect { x0: 22, y0: 0, x1: 78, y1: 48 });
        assert_eq!(second.margins(), Margins { left: 21, top: 0, right: 21, bottom: 21 });
        let covered = first.piece.scaled(2);
        assert_eq!(covered.margins_around(second.input), Margins { left: 1, top: 0, right: 1, bottom: 1 });
    }
}
