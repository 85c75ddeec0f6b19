//! Pictures of any shape for an encoder of one: a small one of the whole, and tiles of a larger one.
//!
//! Source: transformers 5.23.0, image_processing_utils.py, models/llava_next/image_processing_pil_llava_next.py and
//! models/llava_next/modeling_llava_next.py.

use crate::{caption::preprocessor::Preprocessor, diffusion::pixels::Rgb};

/// Height and width.
pub type Sides = [usize; 2];

/// The resolution out of `pinpoints` that shows the most of a picture of `size`, and of those the one that wastes least.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as there")]
pub fn best_resolution(size: Sides, pinpoints: &[Sides]) -> Option<Sides> {
    let [height, width] = size.map(|side| side as f64);
    let mut best: Option<(usize, usize, Sides)> = None;
    for &[high, wide] in pinpoints {
        let scale = (wide as f64 / width).min(high as f64 / height);
        let shown = ((width * scale) as usize * (height * scale) as usize).min(size[0] * size[1]);
        let wasted = high * wide - shown;
        let is_better = best.is_none_or(|(most, least, _)| shown > most || shown == most && wasted < least);
        // One that shows nothing is none.
        if is_better && (shown > 0 || best.is_some()) {
            best = Some((shown, wasted, [high, wide]));
        }
    }
    best.map(|(_, _, sides)| sides)
}

/// The size of a picture that is made to fit into `target`.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as there")]
pub fn fitted(size: Sides, target: Sides) -> Sides {
    let [height, width] = size.map(|side| side as f64);
    let (scale_width, scale_height) = (target[1] as f64 / width, target[0] as f64 / height);
    if scale_width < scale_height {
        [((height * scale_width).ceil() as usize).min(target[0]), target[1]]
    } else {
        [target[0], ((width * scale_height).ceil() as usize).min(target[1])]
    }
}

/// The part of a grid of features that shows the picture, without what was added to fill the tiles: where rows and
/// columns begin, and how many there are.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as there")]
pub fn without_margins(size: Sides, grid: Sides) -> [(usize, usize); 2] {
    // Seven decimals, so that a whole number stays one.
    let whole = |value: f64| ((value * 1e7).round_ties_even() / 1e7) as usize;
    let [height, width] = size.map(|side| side as f64);
    let [rows, columns] = grid.map(|side| side as f64);
    let cut = |all: usize, kept: usize| {
        let margin = all.saturating_sub(kept) / 2;
        (margin, all - 2 * margin)
    };
    if width / height > columns / rows {
        [cut(grid[0], whole(height * (columns / width))), (0, grid[1])]
    } else {
        [(0, grid[0]), cut(grid[1], whole(width * (rows / height)))]
    }
}

/// The picture as a whole in `tile` x `tile`, then the tiles of `resolution`, row by row, with black at its edges.
pub fn tiles(picture: &Rgb, resolution: Sides, tile: usize, preprocessor: &Preprocessor) -> Vec<Rgb> {
    let whole = preprocessor.resized(picture, [tile, tile]);
    let [height, width] = fitted([picture.height, picture.width], resolution);
    let shown = preprocessor.resized(picture, [height, width]);
    let (top, left) = ((resolution[0] - height) / 2, (resolution[1] - width) / 2);
    let mut canvas = vec![0; resolution[0] * resolution[1] * 3];
    let row = |row: usize| (top + row) * resolution[1] + left;
    for (index, samples) in shown.samples.chunks_exact(width * 3).enumerate() {
        let start = row(index) * 3;
        canvas[start..start + width * 3].copy_from_slice(samples);
    }
    let rows = (0..resolution[0] / tile).flat_map(|row| (0..resolution[1] / tile).map(move |column| (row, column)));
    let cut = |(row, column): (usize, usize)| {
        let lines = (0..tile).flat_map(|line| {
            let start = ((row * tile + line) * resolution[1] + column * tile) * 3;
            canvas[start..start + tile * 3].iter().copied()
        });
        Rgb { width: tile, height: tile, samples: lines.collect() }
    };
    std::iter::once(whole).chain(rows.map(cut)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: [Sides; 5] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

    #[test]
    fn a_resolution_shows_much_of_the_picture_and_wastes_little() {
        // transformers.image_processing_utils.select_best_resolution, and get_patch_output_size
        for (size, resolution, inner) in [
            ([480, 640], [672, 672], [504, 672]),
            ([640, 480], [672, 672], [672, 504]),
            ([300, 900], [336, 1008], [336, 1008]),
            ([1200, 200], [1008, 336], [1008, 168]),
            ([100, 100], [336, 672], [336, 336]),
            ([333, 500], [336, 672], [336, 505]),
        ] {
            assert_eq!(best_resolution(size, &REAL), Some(resolution), "{size:?}");
            assert_eq!(fitted(size, resolution), inner, "{size:?}");
        }
        assert_eq!(best_resolution([5, 5], &[]), None);
    }

    #[test]
    fn margins_are_cut_off_evenly() {
        assert_eq!(without_margins([480, 640], [48, 48]), [(6, 36), (0, 48)]);
        assert_eq!(without_margins([640, 480], [48, 48]), [(0, 48), (6, 36)]);
        assert_eq!(without_margins([100, 100], [24, 48]), [(0, 24), (12, 24)]);
        assert_eq!(without_margins([333, 500], [48, 48]), [(8, 32), (0, 48)]);
        assert_eq!(without_margins([48, 48], [48, 48]), [(0, 48), (0, 48)]);
    }

    #[test]
    fn tiles_show_the_picture_in_the_middle_of_black() {
        let picture = Rgb { width: 4, height: 2, samples: vec![200; 4 * 2 * 3] };
        let tiles = tiles(&picture, [4, 4], 2, &Preprocessor::default());
        assert_eq!(tiles.len(), 5);
        assert_eq!(tiles[0].samples, [200; 12]);
        let [dark, bright] = [[0; 6], [200; 6]];
        for (index, (first, second)) in
            [(dark, bright), (dark, bright), (bright, dark), (bright, dark)].into_iter().enumerate()
        {
            assert_eq!(tiles[index + 1].samples, [first, second].concat(), "{index}");
        }
    }
}
