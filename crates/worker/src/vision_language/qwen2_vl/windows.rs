//! How Qwen2.5-VL's vision tower cuts a picture into windows.
//!
//! *Source*: transformers 5.23.0, `get_vision_window_index` in `vision_utils.py`.

use super::{
    config::{Reach, VisionConfig},
    image::Grid,
};

/// The order of the tokens' patches within the tower, and who attends to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    /// For each place in the tower, the token that stands there.
    pub(super) order: Vec<i64>,
    /// How many patches each window has, in the order of the tower.
    pub(super) windows: Vec<i64>,
}

impl Windows {
    /// None where every block sees the whole picture.
    pub(super) fn of(grids: &[Grid], config: &VisionConfig) -> Option<Self> {
        let Reach::Window { pixels, .. } = &config.reach else { return None };
        let merge = config.spatial_merge_size;
        let side = pixels / merge / config.patch_size;
        let (mut order, mut windows) = (Vec::new(), Vec::new());
        let mut first = 0;
        for grid in grids {
            let (rows, columns) = (grid.height / merge, grid.width / merge);
            for start in (0..grid.time).map(|moment| first + moment * rows * columns) {
                for top in (0..rows).step_by(step(side)) {
                    for left in (0..columns).step_by(step(side)) {
                        let (bottom, right) = ((top + side).min(rows), (left + side).min(columns));
                        let tokens = (top..bottom).flat_map(|row| (left..right).map(move |column| (row, column)));
                        order.extend(tokens.map(|(row, column)| start + row * columns + column));
                        windows.push((bottom - top) * (right - left) * config.merge_unit());
                    }
                }
            }
            first += grid.time * rows * columns;
        }
        Some(Self { order, windows })
    }

    /// For each token, its place in the tower.
    pub(super) fn places(&self) -> Vec<i64> {
        let mut places: Vec<(i64, i64)> = self.order.iter().copied().zip(0..).collect();
        places.sort_unstable();
        places.into_iter().map(|(_, place)| place).collect()
    }
}

/// A window holds at least one token; the configuration's check sees to it.
fn step(side: i64) -> usize {
    usize::try_from(side).unwrap_or(1).max(1)
}

/// Patches that see each other where a block sees the whole picture: those of a moment.
pub(super) fn pictures(grids: &[Grid]) -> Vec<i64> {
    let moments = |grid: &Grid| usize::try_from(grid.time).unwrap_or(0);
    grids.iter().flat_map(|grid| std::iter::repeat_n(grid.height * grid.width, moments(grid))).collect()
}

/// The row and column of each patch, in the order in which pictures are cut.
pub(super) fn places(grids: &[Grid], merge: i64) -> (Vec<i64>, Vec<i64>) {
    let mut places = (Vec::new(), Vec::new());
    for grid in grids {
        for _ in 0..grid.time {
            for top in (0..grid.height).step_by(step(merge)) {
                for left in (0..grid.width).step_by(step(merge)) {
                    for (row, column) in (0..merge * merge).map(|i| (i / merge, i % merge)) {
                        places.0.push(top + row);
                        places.1.push(left + column);
                    }
                }
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{text_encoder::Activation, vision_language::qwen2_vl::config::VisionMlp};

    fn config() -> VisionConfig {
        VisionConfig {
            depth: 1,
            features: 16,
            intermediate_size: 16,
            num_heads: 2,
            hidden_act: Activation::Silu,
            mlp: VisionMlp::Gated,
            reach: Reach::Window { pixels: 56, whole: Vec::new() },
            in_channels: 3,
            patch_size: 14,
            temporal_patch_size: 2,
            spatial_merge_size: 2,
            rope_theta: 1e4,
            out_features: 16,
        }
    }

    #[test]
    fn a_window_that_is_cut_by_the_edge_is_smaller() {
        // 3 x 3 tokens in windows of 2 x 2, then one token.
        let grids = [Grid { time: 1, height: 6, width: 6 }, Grid { time: 1, height: 2, width: 2 }];
        let windows = Windows::of(&grids, &config()).expect("windows");
        assert_eq!(windows.order, [0, 1, 3, 4, 2, 5, 6, 7, 8, 9]);
        assert_eq!(windows.windows, [16, 8, 8, 4, 4]);
        assert_eq!(windows.places(), [0, 1, 4, 2, 3, 5, 6, 7, 8, 9]);
        assert_eq!(pictures(&grids), [36, 4]);
    }

    #[test]
    fn patches_of_a_token_are_neighbours() {
        let (rows, columns) = places(&[Grid { time: 1, height: 2, width: 4 }], 2);
        assert_eq!(rows, [0, 0, 1, 1, 0, 0, 1, 1]);
        assert_eq!(columns, [0, 1, 0, 1, 2, 3, 2, 3]);
    }
}
