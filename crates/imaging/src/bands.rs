//! A picture cut into bands of rows, one for each thread.

/// Cuts `out` into at most `threads` bands of whole rows, each with the number of its first row.
pub(crate) fn bands<T>(out: &mut [T], row: usize, height: usize, threads: usize) -> Vec<(usize, &mut [T])> {
    let rows = height.div_ceil(threads.max(1)).max(1);
    out.chunks_mut(rows * row.max(1)).enumerate().map(|(index, band)| (index * rows, band)).collect()
}
