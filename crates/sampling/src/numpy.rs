//! The arithmetic of the reference's tables: numpy's ranges, and f32 where it computes in f32.

/// A count as a number.
pub(crate) fn real(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// The whole part of a number that is not negative; 0 for others.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is what is wanted")]
pub(crate) fn whole(value: f64) -> usize {
    value as usize
}

/// Rounded to f32. After each `+ − × ÷ √` on f32 values this is f32 arithmetic, since an f64 has more than twice the
/// bits.
#[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
pub(crate) fn single(value: f64) -> f64 {
    f64::from(value as f32)
}

/// `numpy.linspace(first, last, count)`.
pub(crate) fn linspace(first: f64, last: f64, count: usize) -> Vec<f64> {
    let Some(intervals) = count.checked_sub(1).filter(|intervals| *intervals > 0) else {
        return vec![first; count];
    };
    let step = (last - first) / real(intervals);
    let mut values: Vec<f64> = (0..count).map(|i| real(i) * step + first).collect();
    values[intervals] = last;
    values
}

/// `torch.linspace(first, last, count, dtype=float32)`: from both ends towards the middle, with a fused multiply-add.
pub(crate) fn linspace_single(first: f64, last: f64, count: usize) -> Vec<f64> {
    let (first, last) = (single(first), single(last));
    let intervals = count.saturating_sub(1);
    let step = if intervals == 0 { 0.0 } else { single(single(last - first) / real(intervals)) };
    (0..count)
        .map(|i| single(if i < count / 2 { first + step * real(i) } else { last - step * real(intervals - i) }))
        .collect()
}

/// `numpy.arange(first, 0, -step)`. The rounding of the second value goes into all that follow, and at times into how
/// many there are.
pub(crate) fn arange_down(first: f64, step: f64) -> Vec<f64> {
    let count = whole((first / step).ceil());
    let delta = (first - step) - first;
    (0..count).map(|i| first + real(i) * delta).collect()
}

/// `numpy.interp(at, 0.., values)`: linear between the entries, constant beyond them.
pub(crate) fn interpolate(at: f64, values: &[f64]) -> f64 {
    let last = values.len().saturating_sub(1);
    let low = whole(at).min(last);
    let Some(next) = values.get(low + 1).filter(|_| at > 0.0) else { return values[low] };
    (next - values[low]) * (at - real(low)) + values[low]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_they_are_told_to() {
        assert_eq!(linspace(0.0, 999.0, 1), [0.0]);
        assert_eq!(linspace(1.0, 0.1, 3), [1.0, 0.55, 0.1]);
        assert_eq!(arange_down(1000.0, 400.0), [1000.0, 600.0, 200.0]);
        // What numpy 2 answers too: a 62nd value of about nothing.
        assert_eq!(arange_down(1000.0, 1000.0 / 61.0).len(), 62);
    }

    #[test]
    fn interpolation_is_constant_beyond_the_ends() {
        let values = [1.0, 3.0, 4.0];
        let at = [-1.0, 0.5, 2.0, 7.5].map(|at| interpolate(at, &values)).to_vec();
        assert_eq!(at, [1.0, 2.0, 4.0, 4.0]);
    }
}
