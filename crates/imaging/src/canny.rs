//! Canny's edge detector on 8-bit pictures, as ControlNets for edges were trained on.
//!
//! *Source*: Canny 1986, with the choices of the usual implementation: Sobel 3 × 3, the gradient's length as the sum
//! of both absolute values, no smoothing before, the strongest channel's gradient taken.

/// Edges are white on black: `(height, width)`.
///
/// *Shapes*: `rgb` `(height, width, 3)`. *Units*: thresholds in steps of 8 bits times Sobel's weight; 100 and 200 are
/// the usual ones.
///
/// # Panics
/// When `rgb` has another length than that.
pub fn canny(rgb: &[u8], width: usize, height: usize, low: i32, high: i32) -> Vec<u8> {
    assert_eq!(rgb.len(), width * height * 3, "the samples do not make the picture");
    let gradients = gradients(rgb, width, height);
    let length = |x: usize, y: usize| {
        let (dx, dy) = gradients[y * width + x];
        dx.abs() + dy.abs()
    };
    let beside = |x: usize, y: usize, dx: isize, dy: isize| match (x.checked_add_signed(dx), y.checked_add_signed(dy)) {
        (Some(x), Some(y)) if x < width && y < height => length(x, y),
        _ => 0,
    };
    let mut strong = Vec::new();
    let mut weak = vec![false; width * height];
    for y in 0..height {
        for x in 0..width {
            let here = length(x, y);
            let (before, after) = across(gradients[y * width + x]);
            // A ridge two pixels wide keeps one of them.
            let is_ridge = here > beside(x, y, before.0, before.1) && here >= beside(x, y, after.0, after.1);
            if here > low && is_ridge {
                weak[y * width + x] = true;
                if here > high {
                    strong.push((x, y));
                }
            }
        }
    }
    let mut edges = vec![0; width * height];
    while let Some((x, y)) = strong.pop() {
        if !std::mem::replace(&mut weak[y * width + x], false) {
            continue;
        }
        edges[y * width + x] = u8::MAX;
        for ny in y.saturating_sub(1)..=(y + 1).min(height - 1) {
            strong.extend((x.saturating_sub(1)..=(x + 1).min(width - 1)).map(|nx| (nx, ny)));
        }
    }
    edges
}

/// The neighbours before and after a pixel in the direction of its gradient.
fn across((dx, dy): (i32, i32)) -> ((isize, isize), (isize, isize)) {
    // tan 22.5° and tan 67.5°, without a division.
    let (x, y) = (i64::from(dx.abs()), i64::from(dy.abs()));
    if y * 100_000 < x * 41_421 {
        ((-1, 0), (1, 0))
    } else if y * 100_000 > x * 241_421 {
        ((0, -1), (0, 1))
    } else if (dx < 0) == (dy < 0) {
        ((-1, -1), (1, 1))
    } else {
        ((1, -1), (-1, 1))
    }
}

/// Sobel's derivatives of the channel in which they are largest; beyond an edge lies the edge's pixel.
fn gradients(rgb: &[u8], width: usize, height: usize) -> Vec<(i32, i32)> {
    let mut all = Vec::with_capacity(width * height);
    for y in 0..height {
        let lines = [y.saturating_sub(1), y, (y + 1).min(height - 1)];
        for x in 0..width {
            let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
            let of_channel = |c: usize| {
                let at = |line: usize, column: usize| i32::from(rgb[(lines[line] * width + columns[column]) * 3 + c]);
                let dx = (at(0, 2) + 2 * at(1, 2) + at(2, 2)) - (at(0, 0) + 2 * at(1, 0) + at(2, 0));
                let dy = (at(2, 0) + 2 * at(2, 1) + at(2, 2)) - (at(0, 0) + 2 * at(0, 1) + at(0, 2));
                (dx, dy)
            };
            let strongest = (0..3).map(of_channel).max_by_key(|(dx, dy)| dx.abs() + dy.abs());
            all.push(strongest.unwrap_or_default());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Black on the left of column `x`, `level` from there on.
    fn step(width: usize, height: usize, x: usize, level: u8) -> Vec<u8> {
        (0..width * height).flat_map(|n| [if n % width < x { 0 } else { level }; 3]).collect()
    }

    #[test]
    fn a_step_is_one_line_a_pixel_wide() {
        let edges = canny(&step(9, 5, 4, 255), 9, 5, 100, 200);
        for row in edges.chunks_exact(9) {
            assert_eq!(row, [0, 0, 0, 255, 0, 0, 0, 0, 0], "{row:?}");
        }
    }

    #[test]
    fn what_lies_between_the_thresholds_counts_only_beside_a_strong_edge() {
        // 4 times 40 is between 100 and 200.
        assert!(canny(&step(9, 5, 4, 40), 9, 5, 100, 200).iter().all(|&v| v == 0));
        let mut rgb = step(9, 5, 4, 40);
        // The topmost line is stronger; the rest hangs on it.
        for pixel in rgb.chunks_exact_mut(3).take(9).filter(|pixel| pixel[0] > 0) {
            pixel.fill(255);
        }
        let edges = canny(&rgb, 9, 5, 100, 200);
        assert_eq!(edges[4 * 9 + 3], 255, "{edges:?}");
    }

    #[test]
    fn flat_pictures_and_single_pixels_have_no_edges() {
        assert!(canny(&[90; 5 * 4 * 3], 5, 4, 100, 200).iter().all(|&v| v == 0));
        assert_eq!(canny(&[1, 2, 3], 1, 1, 100, 200), [0]);
    }
}
