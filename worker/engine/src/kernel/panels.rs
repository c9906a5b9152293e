//! The right factor of a product, packed: panels of 32 columns, each one row of 32 after the other, so that a tile reads
//! it from front to back.

use std::sync::Arc;

use memmap2::Mmap;

/// Columns of a panel: two vectors of 16.
pub(crate) const WIDE: usize = 32;

/// One line of the cache, so that vectors never straddle two.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A packed matrix `[sums, columns]`; what is missing from the last panel is 0.
#[derive(Debug)]
pub(crate) struct Panels {
    lines: Lines,
    sums: usize,
    columns: usize,
}

/// Where the lines lie.
#[derive(Debug)]
enum Lines {
    Own(Vec<Line>),
    /// From this byte of a file on, which is a multiple of a line.
    Mapped(Arc<Mmap>, usize),
}

impl Panels {
    /// Packs `[sums, columns]`, rows one after the other: a weight `[o, i]` for `g W`.
    ///
    /// # Panics
    /// When there are not as many values.
    pub(crate) fn of_rows(values: &[f32], [sums, columns]: [usize; 2]) -> Self {
        assert_eq!(values.len(), sums * columns, "a matrix has as many values as its sizes say");
        let mut lines = zeros([sums, columns]);
        for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
            for (panel, values) in values.chunks(WIDE).enumerate() {
                let at = 2 * (panel * sums + row);
                for (line, values) in lines[at..at + 2].iter_mut().zip(values.chunks(16)) {
                    line.0[..values.len()].copy_from_slice(values);
                }
            }
        }
        Self { lines: Lines::Own(lines), sums, columns }
    }

    /// Packs the transpose of `[columns, sums]`: a weight `[o, i]` for `x Wᵀ`.
    ///
    /// # Panics
    /// When there are not as many values.
    pub(crate) fn of_columns(values: &[f32], [sums, columns]: [usize; 2]) -> Self {
        assert_eq!(values.len(), sums * columns, "a matrix has as many values as its sizes say");
        let mut lines = zeros([sums, columns]);
        if sums > 0 {
            for (panel, values) in values.chunks(WIDE * sums).enumerate() {
                let out = floats_mut(&mut lines[2 * sums * panel..2 * sums * (panel + 1)]);
                super::turned([values.len() / sums, sums], (values, sums), (out, WIDE));
            }
        }
        Self { lines: Lines::Own(lines), sums, columns }
    }

    /// Panels that lie packed in a mapped file, from this byte on; `None` where the file is too short or the place is
    /// not that of a line.
    #[expect(clippy::cast_ptr_alignment, reason = "the place is asked whether it is aligned")]
    pub(crate) fn mapped(map: &Arc<Mmap>, first: usize, sizes: [usize; 2]) -> Option<Self> {
        let bytes = map.get(first..first.checked_add(Self::bytes_of(sizes))?)?;
        let [sums, columns] = sizes;
        let lines = Lines::Mapped(Arc::clone(map), first);
        bytes.as_ptr().cast::<Line>().is_aligned().then_some(Self { lines, sums, columns })
    }

    /// Whether it lies in a file.
    #[cfg(test)]
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.lines, Lines::Mapped(..))
    }

    /// Bytes of a packed matrix.
    pub(crate) fn bytes_of([sums, columns]: [usize; 2]) -> usize {
        lines_of([sums, columns]) * size_of::<Line>()
    }

    /// The packed matrix as it lies in memory.
    pub(crate) fn bytes(&self) -> &[u8] {
        let lines = self.lines();
        // SAFETY: lines are floats without padding, and the borrow keeps them alive and unchanged.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast::<u8>(), size_of_val(lines)) }
    }

    #[expect(clippy::cast_ptr_alignment, reason = "`mapped` refuses places that are not aligned")]
    fn lines(&self) -> &[Line] {
        match &self.lines {
            Lines::Own(lines) => lines,
            Lines::Mapped(map, first) => {
                let start = map[*first..].as_ptr().cast::<Line>();
                // SAFETY: `mapped` has checked that so many lines lie there and that the place is one of a line; any
                // bytes are floats, and the map is read-only and lives as long as this.
                unsafe { std::slice::from_raw_parts(start, lines_of([self.sums, self.columns])) }
            }
        }
    }

    /// Length of the sums.
    pub(crate) fn sums(&self) -> usize {
        self.sums
    }

    /// Columns of the product.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The panel that holds columns `32·number..`: `[sums, 32]`.
    pub(super) fn panel(&self, number: usize) -> &[f32] {
        let lines = &self.lines()[2 * self.sums * number..2 * self.sums * (number + 1)];
        // SAFETY: a line is 16 floats without padding, and the borrow keeps the lines alive and unchanged.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast::<f32>(), 16 * lines.len()) }
    }
}

fn lines_of([sums, columns]: [usize; 2]) -> usize {
    2 * sums * columns.div_ceil(WIDE)
}

fn zeros(sizes: [usize; 2]) -> Vec<Line> {
    vec![Line([0.0; 16]); lines_of(sizes)]
}

fn floats_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is 16 floats without padding, and the borrow keeps everyone else from the lines.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), 16 * lines.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_packing_agree_and_fill_with_zeros() {
        for [sums, columns] in [[1, 1], [5, 32], [7, 33], [16, 70], [3, 16], [4, 50]] {
            let rows: Vec<f32> = (1..=sums * columns).map(|n| n as f32).collect();
            let turned: Vec<f32> = (0..sums * columns).map(|n| rows[n % sums * columns + n / sums]).collect();
            let (a, b) = (Panels::of_rows(&rows, [sums, columns]), Panels::of_columns(&turned, [sums, columns]));
            for panel in 0..columns.div_ceil(WIDE) {
                assert_eq!(a.panel(panel), b.panel(panel), "{sums} {columns}");
                for (place, value) in a.panel(panel).iter().enumerate() {
                    let (row, column) = (place / WIDE, panel * WIDE + place % WIDE);
                    let expected = if column < columns { rows[row * columns + column] } else { 0.0 };
                    assert!((value - expected).abs() < f32::EPSILON, "{row} {column}");
                }
            }
        }
    }
}
