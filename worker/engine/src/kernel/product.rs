//! Products of activations with a packed right factor.
//!
//! A tile of up to 12 rows and 32 columns keeps its sums in registers while the index runs from front to back. Each
//! element is one chain of multiply-adds in the order of the index, so it is the same whatever tile it falls into.

use std::ops::Range;

use super::{Instructions, panels::WIDE};
use crate::kernel::Panels;

/// A left factor: element (row, k) lies at `row · self.row + k · self.column`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl<'a> Left<'a> {
    /// A matrix with rows of `width` values, one after the other.
    pub(crate) fn rows(values: &'a [f32], width: usize) -> Self {
        Self { values, row: width, column: 1 }
    }

    /// The transpose of such a matrix.
    pub(crate) fn turned(values: &'a [f32], width: usize) -> Self {
        Self { values, row: 1, column: width }
    }
}

/// What the sums begin with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a> {
    Zero,
    /// The same for each row.
    Bias(&'a [f32]),
    /// A matrix of the result's size.
    Matrix(&'a [f32]),
    /// What the result holds already.
    Out,
}

/// `out = start + left right` for `rows` rows; `out` is `[rows, columns]` without gaps.
///
/// # Panics
/// When slices are not as long as the sizes say.
pub(crate) fn product(left: Left, rows: usize, right: &Panels, start: Start, out: &mut [f32]) {
    count(rows * right.sums() * right.columns());
    run(Instructions::here(), left, rows, right, start, out);
}

/// Counts multiplications with a frozen weight, for products that do not do so themselves.
pub(crate) fn count(multiplications: usize) {
    super::MULTIPLIED.set(super::MULTIPLIED.get() + multiplications as u64);
}

/// A right factor that is not packed: `[sums, columns]`, rows this far apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Right<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row: usize,
}

/// `out = left right` for small factors that are read once, `[rows, sums] × [sums, columns]`; `out` comes with the
/// distance between its rows. Columns beyond whole vectors of 16 are computed one by one, so they should be few.
///
/// # Panics
/// When slices are not as long as the sizes say.
pub(crate) fn product_once(
    [rows, sums, columns]: [usize; 3],
    left: Left,
    right: Right,
    (out, out_row): (&mut [f32], usize),
) {
    let instructions = Instructions::here();
    if rows == 0 || columns == 0 {
        return;
    }
    left.check(rows, sums);
    assert!(sums == 0 || (sums - 1) * right.row + columns <= right.values.len());
    let mut column = 0;
    while column + HALF <= columns {
        let halves = (columns - column).div_euclid(HALF).min(2);
        let values = right.values.get(column..).unwrap_or(&[]);
        for (row, height) in instructions.tiles(rows, halves) {
            let factors = Factors { left: left.below(row), right: values, right_row: right.row, sums, ahead: &[] };
            tile(
                instructions,
                [height, halves],
                factors,
                From::Here(&ZEROS, 0),
                (&mut out[row * out_row + column..], out_row),
            );
        }
        column += HALF * halves;
    }
    for row in 0..rows {
        for column in column..columns {
            let factors = left.values[row * left.row..].iter().step_by(left.column.max(1)).take(sums);
            let rights = right.values[column..].iter().step_by(right.row.max(1));
            out[row * out_row + column] = factors.zip(rights).fold(0.0, |sum, (a, b)| sum + a * b);
        }
    }
}

fn run(instructions: Instructions, left: Left, rows: usize, right: &Panels, start: Start, out: &mut [f32]) {
    let (sums, columns) = (right.sums(), right.columns());
    assert_eq!(out.len(), rows * columns, "a result has as many values as its sizes say");
    if rows == 0 || columns == 0 {
        return;
    }
    left.check(rows, sums);
    match start {
        Start::Bias(bias) => assert_eq!(bias.len(), columns, "a bias has a value for each column"),
        Start::Matrix(matrix) => assert_eq!(matrix.len(), out.len(), "a start has the result's size"),
        Start::Zero | Start::Out => {}
    }
    // Rows that stay in the cache while all panels pass by.
    let chunk = (CHUNK / sums.max(1) / TALLEST).max(2) * TALLEST;
    let block = instructions.block().min(sums.max(1));
    for first in (0..rows).step_by(chunk) {
        let rows = first..rows.min(first + chunk);
        for panel in 0..columns.div_ceil(WIDE) {
            for term in (0..sums.max(1)).step_by(block) {
                let start = if term == 0 { start } else { Start::Out };
                let terms = term..sums.min(term + block);
                run_panel(instructions, left, rows.clone(), (right, panel, terms), start, out);
            }
        }
    }
}

/// Values of the left factor that are read again for each panel: half a megabyte.
const CHUNK: usize = 1 << 17;

/// Sums from which on panels are long enough to be asked for.
const LONG: usize = 64;

fn run_panel(
    instructions: Instructions,
    left: Left,
    rows: Range<usize>,
    (right, panel, terms): (&Panels, usize, Range<usize>),
    start: Start,
    out: &mut [f32],
) {
    let (sums, columns) = (terms.len(), right.columns());
    let column = panel * WIDE;
    let width = WIDE.min(columns - column);
    let halves = width.div_ceil(HALF);
    // Each tile asks for its share of what comes next, so that few tiles wait for it.
    let (here, behind) = right.panel(panel)[terms.start * WIDE..].split_at(sums * WIDE);
    let last = columns.div_ceil(WIDE) - 1;
    let next = if behind.is_empty() { right.panel(last.min(panel + 1)) } else { behind };
    let next = if sums < LONG { &[] } else { &next[..next.len().min(sums * WIDE)] };
    let left = left.from_term(terms.start);
    for (row, height) in instructions.tiles(rows.len(), halves) {
        let ahead = &next[next.len() * row / rows.len()..next.len() * (row + height) / rows.len()];
        let row = rows.start + row;
        let at = row * columns + column;
        let factors = Factors { left: left.below(row), right: here, right_row: WIDE, sums, ahead };
        if width == WIDE {
            let from = match start {
                Start::Zero => From::Here(&ZEROS, 0),
                Start::Bias(bias) => From::Here(&bias[column..], 0),
                Start::Matrix(matrix) => From::Here(&matrix[at..], columns),
                Start::Out => From::Out,
            };
            tile(instructions, [height, 2], factors, from, (&mut out[at..], columns));
            continue;
        }
        let mut edge = [[0.0; WIDE]; TALLEST];
        for (line, edge) in edge[..height].iter_mut().enumerate() {
            let begin = match start {
                Start::Zero => continue,
                Start::Bias(bias) => &bias[column..],
                Start::Matrix(matrix) => &matrix[at + line * columns..],
                Start::Out => &out[at + line * columns..],
            };
            edge[..width].copy_from_slice(&begin[..width]);
        }
        tile(instructions, [height, halves], factors, From::Out, (edge.as_flattened_mut(), WIDE));
        for (out, edge) in out[at..].chunks_mut(columns).zip(&edge[..height]) {
            out[..width].copy_from_slice(&edge[..width]);
        }
    }
}

/// Columns of one vector of 16.
const HALF: usize = WIDE / 2;
/// Most rows of a tile, whatever the instructions.
const TALLEST: usize = 12;
static ZEROS: [f32; WIDE] = [0.0; WIDE];

impl Instructions {
    /// Terms of a sum after which a tile lays its sums down and the next one begins. With vectors of 8 tiles are low, and
    /// long panels would leave the nearest cache between two of them.
    fn block(self) -> usize {
        if self == Self::Avx2 { 384 } else { usize::MAX }
    }

    /// First row and number of rows of each tile of one or two halves. Tiles are of about the same height: a last tile of
    /// one or two rows would leave the adders idle.
    fn tiles(self, rows: usize, halves: usize) -> impl Iterator<Item = (usize, usize)> {
        let tallest = match self {
            Self::Avx512 => TALLEST,
            Self::Avx2 => 6 / halves,
            Self::Plain => 4,
        };
        let count = rows.div_ceil(tallest);
        (0..count).map(move |number| {
            let first = number * rows / count;
            (first, (number + 1) * rows / count - first)
        })
    }
}

impl Left<'_> {
    fn check(&self, rows: usize, sums: usize) {
        let last = (rows - 1) * self.row + sums.saturating_sub(1) * self.column;
        assert!(sums == 0 || last < self.values.len(), "a left factor has all values that the product reads");
    }

    /// The factor from a term of its sums on.
    fn from_term(self, term: usize) -> Self {
        Self { values: self.values.get(term * self.column..).unwrap_or(&[]), ..self }
    }

    /// The factor from a row on.
    fn below(self, row: usize) -> Self {
        Self { values: self.values.get(row * self.row..).unwrap_or(&[]), ..self }
    }
}

/// Both factors of one tile.
#[derive(Clone, Copy)]
struct Factors<'a> {
    left: Left<'a>,
    /// `[sums, 16 or 32]`, rows this far apart.
    right: &'a [f32],
    right_row: usize,
    sums: usize,
    /// What a later tile reads.
    ahead: &'a [f32],
}

/// Where a tile's sums begin: rows of a matrix this far apart, or what the result holds.
#[derive(Clone, Copy)]
enum From<'a> {
    Here(&'a [f32], usize),
    Out,
}

fn tile(
    instructions: Instructions,
    [height, halves]: [usize; 2],
    factors: Factors,
    from: From,
    (out, out_row): (&mut [f32], usize),
) {
    let Factors { left, right, right_row, sums, ahead } = factors;
    let width = HALF * halves;
    let reach = |stride: usize| (height - 1) * stride + width;
    left.check(height, sums);
    assert!(out.len() >= reach(out_row) && (sums == 0 || (sums - 1) * right_row + width <= right.len()));
    if let From::Here(values, row) = from {
        assert!(values.len() >= reach(row));
    }
    #[cfg(target_arch = "x86_64")]
    if instructions != Instructions::Plain {
        use super::tiles::{Tile, avx2, avx512};
        let out = out.as_mut_ptr();
        let (begin, begin_row) = match from {
            From::Here(values, row) => (values.as_ptr(), row),
            From::Out => (out.cast_const(), out_row),
        };
        let (left, row, column) = (left.values.as_ptr(), left.row, left.column);
        let right = right.as_ptr();
        let (ahead, ahead_length) = (ahead.as_ptr(), ahead.len());
        let tile =
            Tile { left, row, column, right, right_row, sums, begin, begin_row, out, out_row, ahead, ahead_length };
        // SAFETY: the machine has these instructions, and the assertions above hold every element that the tile reads
        // or writes inside its slice.
        unsafe {
            match instructions {
                Instructions::Avx512 => avx512(height, halves, &tile),
                _ => avx2(height, halves, &tile),
            }
        }
        return;
    }
    let _ = (instructions, ahead);
    for line in 0..height {
        let out = &mut out[line * out_row..][..width];
        if let From::Here(values, row) = from {
            out.copy_from_slice(&values[line * row..][..width]);
        }
        for k in 0..sums {
            let factor = left.values[line * left.row + k * left.column];
            let right = &right[k * right_row..][..width];
            out.iter_mut().zip(right).for_each(|(sum, right)| *sum += factor * right);
        }
    }
}

/// Turns `[rows, columns]`, rows `from_row` apart, to `[columns, rows]`, rows `out_row` apart.
///
/// # Panics
/// When slices are not as long as the sizes say.
pub(crate) fn turned(
    [rows, columns]: [usize; 2],
    (from, from_row): (&[f32], usize),
    (out, out_row): (&mut [f32], usize),
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * from_row + columns <= from.len() && (columns - 1) * out_row + rows <= out.len());
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "blocks need vectors"))]
    let mut whole = [0, 0];
    #[cfg(target_arch = "x86_64")]
    if Instructions::here() != Instructions::Plain {
        whole = [rows / 8 * 8, columns / 8 * 8];
        for row in (0..whole[0]).step_by(8) {
            for column in (0..whole[1]).step_by(8) {
                let (from, out) = (&from[row * from_row + column..], &mut out[column * out_row + row..]);
                assert!(from.len() >= 7 * from_row + 8 && out.len() >= 7 * out_row + 8);
                // SAFETY: the machine has AVX, and both slices reach to the last of 8 rows, which the line above holds.
                unsafe { super::tiles::turn(from.as_ptr(), from_row, out.as_mut_ptr(), out_row) };
            }
        }
    }
    for row in 0..rows {
        let first = if row < whole[0] { whole[1] } else { 0 };
        for column in first..columns {
            out[column * out_row + row] = from[row * from_row + column];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(length: usize, step: f64) -> Vec<f32> {
        #[expect(clippy::cast_possible_truncation, reason = "test values")]
        (0..length).map(|n| ((n as f64 + 1.0) * step).sin() as f32).collect()
    }

    fn all() -> Vec<Instructions> {
        let all = [Instructions::Plain, Instructions::Avx2, Instructions::Avx512];
        let here = all.iter().position(|known| *known == Instructions::here()).unwrap();
        all[..=here].to_vec()
    }

    fn run(instructions: Instructions, left: Left, rows: usize, right: &Panels, start: Start) -> Vec<f32> {
        let mut out = wave(rows * right.columns(), 0.3);
        super::run(instructions, left, rows, right, start, &mut out);
        out
    }

    /// In f64.
    fn expected(left: Left, rows: usize, right: (&[f32], [usize; 2]), start: Start) -> Vec<f64> {
        let (values, [sums, columns]) = right;
        let held = wave(rows * columns, 0.3);
        let begin = |row: usize, column: usize| match start {
            Start::Zero => 0.0,
            Start::Bias(bias) => bias[column],
            Start::Matrix(matrix) => matrix[row * columns + column],
            Start::Out => held[row * columns + column],
        };
        let one = |place: usize| {
            let (row, column) = (place / columns, place % columns);
            let product = |k: usize| {
                f64::from(left.values[row * left.row + k * left.column]) * f64::from(values[k * columns + column])
            };
            f64::from(begin(row, column)) + (0..sums).map(product).sum::<f64>()
        };
        (0..rows * columns).map(one).collect()
    }

    #[test]
    fn every_set_of_instructions_multiplies() {
        for [rows, sums, columns] in [[1, 1, 1], [5, 7, 31], [13, 40, 32], [25, 33, 65], [3, 16, 96], [37, 9, 24]] {
            let (a, b, bias, matrix) =
                (wave(rows * sums, 0.7), wave(sums * columns, 1.3), wave(columns, 0.9), wave(rows * columns, 1.9));
            let right = Panels::of_rows(&b, [sums, columns]);
            for left in [Left::rows(&a, sums), Left::turned(&a, rows)] {
                for start in [Start::Zero, Start::Bias(&bias), Start::Matrix(&matrix), Start::Out] {
                    let expected = expected(left, rows, (&b, [sums, columns]), start);
                    let results: Vec<Vec<f32>> =
                        all().iter().map(|&instructions| run(instructions, left, rows, &right, start)).collect();
                    for found in &results {
                        let far = found.iter().zip(&expected).any(|(a, b)| (f64::from(*a) - b).abs() > 1e-5);
                        assert!(!far, "{rows} {sums} {columns} {start:?}");
                    }
                    // Both sets with fused multiply-add give the same bytes.
                    assert!(results.get(2).is_none_or(|wide| *wide == results[1]));
                }
            }
        }
    }

    // 1,536 values a row: a chunk has 84 rows, so there are three, the last one of 32.
    #[test]
    fn long_left_factors_are_multiplied_chunk_by_chunk() {
        let [rows, sums, columns] = [200, 1536, 40];
        assert!(rows > 2 * (CHUNK / sums / TALLEST) * TALLEST);
        let (a, b) = (wave(rows * sums, 0.7), wave(sums * columns, 1.3));
        let (bias, matrix) = (wave(columns, 0.9), wave(rows * columns, 1.9));
        let right = Panels::of_rows(&b, [sums, columns]);
        // Row r of this one lies in column r.
        let mut turned_a = vec![0.0; a.len()];
        turned([rows, sums], (&a, sums), (&mut turned_a, rows));
        for instructions in all() {
            for start in [Start::Zero, Start::Bias(&bias), Start::Matrix(&matrix), Start::Out] {
                let whole = run(instructions, Left::rows(&a, sums), rows, &right, start);
                let expected = expected(Left::rows(&a, sums), rows, (&b, [sums, columns]), start);
                let far = whole.iter().zip(&expected).any(|(a, b)| (f64::from(*a) - b).abs() > 1e-3);
                assert!(!far, "{instructions:?} {start:?}");
                // The same values from the other side are the same bytes.
                assert_eq!(run(instructions, Left::turned(&turned_a, rows), rows, &right, start), whole);
            }
            let whole = run(instructions, Left::rows(&a, sums), rows, &right, Start::Zero);
            for first in [0, 83, 84, 168, 199] {
                let alone = run(instructions, Left::rows(&a[first * sums..], sums), 1, &right, Start::Zero);
                assert_eq!(alone, whole[first * columns..(first + 1) * columns], "row {first}");
            }
        }
    }

    #[test]
    fn a_turned_left_factor_is_the_transpose_of_what_lies_there() {
        let (rows, sums) = (5, 3);
        // Element (row, k) lies at k · rows + row.
        let values: Vec<f32> = (0..rows * sums).map(|n| n as f32).collect();
        let left = Left::turned(&values, rows);
        let identity = Panels::of_rows(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], [3, 3]);
        for instructions in all() {
            let out = run(instructions, left, rows, &identity, Start::Zero);
            for (row, out) in out.chunks(sums).enumerate() {
                let expected = [0, 1, 2].map(|k| (k * rows + row) as f32);
                assert_eq!(out, expected, "{instructions:?} row {row}");
            }
        }
    }

    #[test]
    fn a_row_is_the_same_bytes_among_any_number_of_rows() {
        let (sums, columns) = (50, 70);
        let (a, b) = (wave(40 * sums, 0.7), wave(sums * columns, 1.3));
        let right = Panels::of_rows(&b, [sums, columns]);
        for instructions in all() {
            let whole = run(instructions, Left::rows(&a, sums), 40, &right, Start::Zero);
            for (first, rows) in [(0, 1), (3, 2), (7, 5), (11, 12), (20, 13), (1, 39)] {
                let part = run(instructions, Left::rows(&a[first * sums..], sums), rows, &right, Start::Zero);
                assert_eq!(part, whole[first * columns..(first + rows) * columns], "{first} {rows}");
            }
        }
    }

    #[test]
    fn factors_that_are_not_packed_give_the_same_products() {
        for [rows, sums, columns] in [[1, 1, 1], [5, 7, 31], [13, 20, 32], [25, 33, 50], [3, 16, 96]] {
            let (a, b) = (wave(rows * sums, 0.7), wave(sums * (columns + 3), 1.3));
            let dense: Vec<f32> = b.chunks(columns + 3).flat_map(|row| row[..columns].to_vec()).collect();
            let expected = expected(Left::rows(&a, sums), rows, (&dense, [sums, columns]), Start::Zero);
            let mut out = vec![9.0; rows * (columns + 2)];
            let right = Right { values: &b, row: columns + 3 };
            product_once([rows, sums, columns], Left::rows(&a, sums), right, (&mut out, columns + 2));
            for (out, expected) in out.chunks(columns + 2).zip(expected.chunks(columns)) {
                assert!(out.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
                assert_eq!(out[columns..], [9.0, 9.0]);
            }
        }
    }

    #[test]
    fn turning_moves_every_element() {
        for [rows, columns] in [[1, 1], [8, 8], [20, 32], [9, 17], [16, 5]] {
            let from = wave(rows * (columns + 1), 0.7);
            let mut out = vec![9.0; columns * (rows + 2)];
            turned([rows, columns], (&from, columns + 1), (&mut out, rows + 2));
            for row in 0..rows {
                for column in 0..columns {
                    let (moved, value) = (out[column * (rows + 2) + row], from[row * (columns + 1) + column]);
                    assert_eq!(moved.to_bits(), value.to_bits());
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a left factor has all values")]
    fn a_left_factor_that_is_too_short_is_refused() {
        let right = Panels::of_rows(&[0.0; 64], [2, 32]);
        product(Left::rows(&[0.0; 5], 2), 3, &right, Start::Zero, &mut [0.0; 96]);
    }

    #[test]
    fn sums_over_nothing_are_the_start() {
        let right = Panels::of_rows(&[], [0, 3]);
        let mut out = [9.0; 6];
        product(Left::rows(&[], 0), 2, &right, Start::Bias(&[1.0, 2.0, 3.0]), &mut out);
        assert_eq!(out.map(f32::to_bits), [1.0_f32, 2.0, 3.0, 1.0, 2.0, 3.0].map(f32::to_bits));
    }
}
