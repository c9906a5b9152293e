//! Products of activations with a packed right factor.
//!
//! A strip is all rows of 32 columns. Tiles of up to 12 of its rows keep their sums in registers while the index runs from
//! front to back, or through one block of it after the other. Each element is one chain of multiply-adds in the order of the
//! index, so it is the same whatever tile it falls into, and however many blocks there are.

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
        let factors = Factors { left, right: values, right_row: right.row, sums, ahead: &[] };
        strip(instructions, [rows, halves], factors, From::Here(&ZEROS, 0), (&mut out[column..], out_row));
        column += HALF * halves;
    }
    for row in 0..rows {
        for column in column..columns {
            let factors = left.values[row * left.row..].iter().step_by(left.column.max(1)).take(sums);
            let rights = right.values.get(column..).unwrap_or(&[]).iter().step_by(right.row.max(1));
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
    let block = sums.div_ceil(sums.div_ceil(instructions.block()).max(1)).max(1);
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
    let left = left.behind(terms.start);
    if width == WIDE {
        let at = rows.start * columns + column;
        let from = match start {
            Start::Zero => From::Here(&ZEROS, 0),
            Start::Bias(bias) => From::Here(&bias[column..], 0),
            Start::Matrix(matrix) => From::Here(&matrix[at..], columns),
            Start::Out => From::Out,
        };
        let factors = Factors { left: left.below(rows.start), right: here, right_row: WIDE, sums, ahead: next };
        strip(instructions, [rows.len(), halves], factors, from, (&mut out[at..], columns));
        return;
    }
    // Through rows of a whole panel, of which the last columns are left behind.
    for first in rows.clone().step_by(TALLEST) {
        let height = TALLEST.min(rows.end - first);
        let at = first * columns + column;
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
        let share = |row: usize| next.len() * (row - rows.start) / rows.len();
        let ahead = &next[share(first)..share(first + height)];
        let factors = Factors { left: left.below(first), right: here, right_row: WIDE, sums, ahead };
        strip(instructions, [height, halves], factors, From::Out, (edge.as_flattened_mut(), WIDE));
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
    /// Most terms of a sum after which a tile lays its sums down and the next one begins. With vectors of 8 tiles are low, and
    /// long panels would leave the nearest cache between two of them.
    fn block(self) -> usize {
        if self == Self::Avx2 { 384 } else { usize::MAX }
    }
}

impl Left<'_> {
    fn check(&self, rows: usize, sums: usize) {
        let last = (rows - 1) * self.row + sums.saturating_sub(1) * self.column;
        assert!(sums == 0 || last < self.values.len(), "a left factor has all values that the product reads");
    }

    /// The factor from a term of its sums on.
    fn behind(self, term: usize) -> Self {
        Self { values: self.values.get(term * self.column..).unwrap_or(&[]), ..self }
    }

    /// The factor from a row on.
    fn below(self, row: usize) -> Self {
        Self { values: self.values.get(row * self.row..).unwrap_or(&[]), ..self }
    }
}

/// Both factors of a strip.
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

/// Where a strip's sums begin: rows of a matrix this far apart, or what the result holds.
#[derive(Clone, Copy)]
enum From<'a> {
    Here(&'a [f32], usize),
    Out,
}

/// All rows of one panel, or of a half of one, tile after tile.
fn strip(
    instructions: Instructions,
    [rows, halves]: [usize; 2],
    factors: Factors,
    from: From,
    (out, out_row): (&mut [f32], usize),
) {
    let Factors { left, right, right_row, sums, ahead } = factors;
    let width = HALF * halves;
    let reach = |stride: usize| (rows - 1) * stride + width;
    left.check(rows, sums);
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
        let whole =
            Tile { left, row, column, right, right_row, sums, begin, begin_row, out, out_row, ahead, ahead_length };
        // SAFETY: the machine has these instructions, and the assertions above hold every element that the strip reads
        // or writes inside its slice.
        unsafe {
            match instructions {
                Instructions::Avx512 => avx512(rows, halves, &whole),
                _ => avx2(rows, halves, &whole),
            }
        }
        return;
    }
    let _ = (instructions, ahead);
    for line in 0..rows {
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
mod tests;
