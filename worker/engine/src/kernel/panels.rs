//! The right factor of a product, packed: panels of 32 columns, each one row of 32 after the other, so that a tile reads
//! it from front to back.

/// Columns of a panel: two vectors of 16.
pub(super) const WIDE: usize = 32;

/// One line of the cache, so that vectors never straddle two.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A packed matrix `[sums, columns]`; what is missing from the last panel is 0.
#[derive(Debug)]
pub(crate) struct Panels {
    lines: Vec<Line>,
    sums: usize,
    columns: usize,
}

impl Panels {
    /// Packs `[sums, columns]`, rows one after the other: a weight `[o, i]` for `g W`.
    ///
    /// # Panics
    /// When there are not as many values.
    pub(crate) fn of_rows(values: &[f32], [sums, columns]: [usize; 2]) -> Self {
        assert_eq!(values.len(), sums * columns, "a matrix has as many values as its sizes say");
        let mut panels = Self::zeros([sums, columns]);
        for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
            for (panel, values) in values.chunks(WIDE).enumerate() {
                let at = 2 * (panel * sums + row);
                for (line, values) in panels.lines[at..at + 2].iter_mut().zip(values.chunks(16)) {
                    line.0[..values.len()].copy_from_slice(values);
                }
            }
        }
        panels
    }

    /// Packs the transpose of `[columns, sums]`: a weight `[o, i]` for `x Wᵀ`.
    ///
    /// # Panics
    /// When there are not as many values.
    pub(crate) fn of_columns(values: &[f32], [sums, columns]: [usize; 2]) -> Self {
        assert_eq!(values.len(), sums * columns, "a matrix has as many values as its sizes say");
        let mut panels = Self::zeros([sums, columns]);
        if sums > 0 {
            for (panel, values) in values.chunks(WIDE * sums).enumerate() {
                let out = panels.panel_mut(panel);
                super::turned([values.len() / sums, sums], (values, sums), (out, WIDE));
            }
        }
        panels
    }

    fn zeros([sums, columns]: [usize; 2]) -> Self {
        Self { lines: vec![Line([0.0; 16]); 2 * sums * columns.div_ceil(WIDE)], sums, columns }
    }

    /// Length of the sums.
    pub(crate) fn sums(&self) -> usize {
        self.sums
    }

    /// Columns of the product.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    fn panel_mut(&mut self, number: usize) -> &mut [f32] {
        let lines = &mut self.lines[2 * self.sums * number..2 * self.sums * (number + 1)];
        // SAFETY: a line is 16 floats without padding, and the borrow keeps everyone else from the lines.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), 16 * lines.len()) }
    }

    /// The panel that holds columns `32·number..`: `[sums, 32]`.
    pub(super) fn panel(&self, number: usize) -> &[f32] {
        let lines = &self.lines[2 * self.sums * number..2 * self.sums * (number + 1)];
        // SAFETY: a line is 16 floats without padding, and the borrow keeps the lines alive and unchanged.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast::<f32>(), 16 * lines.len()) }
    }
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
