//! The inside of products and transposes in vectors of 16 and of 8. The only intrinsics of the kernels stand here.
//!
//! Written with pointers: the compiler keeps sums in registers only where it sees every index.

use std::arch::x86_64::{
    __m256, _MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_permute2f128_ps,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::panels::WIDE;

/// Rows of 16 or 32 columns: `out[r] = begin[r] + Σ left[r · row + k · column] right[k]`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) left: *const f32,
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) right: *const f32,
    /// Distance between rows of the right factor.
    pub(super) right_row: usize,
    pub(super) sums: usize,
    pub(super) begin: *const f32,
    pub(super) begin_row: usize,
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
    /// Values that later tiles read, and how many: vectors of 8 ask for them between their sums. Vectors of 16 do
    /// not, the processors that have them were slower for it.
    pub(super) ahead: *const f32,
    pub(super) ahead_length: usize,
}

impl Tile {
    /// Hands these rows to `compute` in tiles of at most so many, which are of about the same height: a last tile of one
    /// or two rows would leave the adders idle. Each gets its share of what comes next.
    ///
    /// # Safety
    /// What `compute` asks for, for all rows.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
    unsafe fn cut(&self, rows: usize, tallest: usize, compute: impl Fn(usize, &Self)) {
        let count = rows.div_ceil(tallest);
        let mut first = 0;
        for number in 1..=count {
            let end = number * rows / count;
            let share = |row: usize| self.ahead_length * row / rows;
            compute(
                end - first,
                &Self {
                    left: self.left.wrapping_add(first * self.row),
                    begin: self.begin.wrapping_add(first * self.begin_row),
                    out: self.out.wrapping_add(first * self.out_row),
                    ahead: self.ahead.wrapping_add(share(first)),
                    ahead_length: share(end) - share(first),
                    ..*self
                },
            );
            first = end;
        }
    }
}

/// All rows of `16 · halves` columns.
///
/// # Safety
/// The machine has AVX-512F, `halves` is 1 or 2, and every element that the formula names for so many rows and columns
/// may be read, or written where it belongs to `out`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn avx512(rows: usize, halves: usize, whole: &Tile) {
    // SAFETY: what the caller promises for all rows and `halves` vectors; tiles are of 12 rows at most.
    unsafe {
        if halves == 1 {
            whole.cut(rows, 12, |height, tile| tall::<1>(height, tile));
        } else {
            whole.cut(rows, 12, |height, tile| tall::<2>(height, tile));
        }
    }
}

/// # Safety
/// As for [`avx512`], with `HALVES` vectors and `height` from 1 to 12.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn tall<const HALVES: usize>(height: usize, tile: &Tile) {
    // SAFETY: what the caller promises for `height` rows.
    unsafe {
        match height {
            1 => wide::<1, HALVES>(tile),
            2 => wide::<2, HALVES>(tile),
            3 => wide::<3, HALVES>(tile),
            4 => wide::<4, HALVES>(tile),
            5 => wide::<5, HALVES>(tile),
            6 => wide::<6, HALVES>(tile),
            7 => wide::<7, HALVES>(tile),
            8 => wide::<8, HALVES>(tile),
            9 => wide::<9, HALVES>(tile),
            10 => wide::<10, HALVES>(tile),
            11 => wide::<11, HALVES>(tile),
            _ => wide::<12, HALVES>(tile),
        }
    }
}

/// # Safety
/// As for [`avx512`], with AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2(rows: usize, halves: usize, whole: &Tile) {
    let packed = whole.column == 1 && whole.right_row == WIDE && whole.ahead_length > 0;
    // SAFETY: what the caller promises for all rows and `halves` times 16 columns; these are the distances.
    unsafe {
        match (halves, packed) {
            (1, true) => whole.cut(rows, 6, |height, tile| of_half::<true>(height, tile)),
            (1, false) => whole.cut(rows, 6, |height, tile| of_half::<false>(height, tile)),
            (_, true) => whole.cut(rows, 3, |height, tile| of_panel::<true>(height, tile)),
            (_, false) => whole.cut(rows, 3, |height, tile| of_panel::<false>(height, tile)),
        }
    }
}

/// # Safety
/// As for [`avx2`], for 16 columns and `height` from 1 to 6; if `PACKED`, values of a left row lie side by side and right
/// rows are those of a panel.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn of_half<const PACKED: bool>(height: usize, tile: &Tile) {
    // SAFETY: what the caller promises for `height` rows.
    unsafe {
        match height {
            1 => narrow::<1, 2, PACKED>(tile),
            2 => narrow::<2, 2, PACKED>(tile),
            3 => narrow::<3, 2, PACKED>(tile),
            4 => narrow::<4, 2, PACKED>(tile),
            5 => narrow::<5, 2, PACKED>(tile),
            _ => narrow::<6, 2, PACKED>(tile),
        }
    }
}

/// # Safety
/// As for [`of_half`], for 32 columns and `height` from 1 to 3.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn of_panel<const PACKED: bool>(height: usize, tile: &Tile) {
    // SAFETY: what the caller promises for `height` rows.
    unsafe {
        match height {
            1 => narrow::<1, 4, PACKED>(tile),
            2 => narrow::<2, 4, PACKED>(tile),
            _ => narrow::<3, 4, PACKED>(tile),
        }
    }
}

/// # Safety
/// As for [`avx512`], for `ROWS` rows.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn wide<const ROWS: usize, const HALVES: usize>(tile: &Tile) {
    let &Tile { mut left, row, column, mut right, right_row, sums, begin, begin_row, out, out_row, .. } = tile;
    let mut sum = [[_mm512_setzero_ps(); HALVES]; ROWS];
    // SAFETY: every address is one that the caller promises; `left` and `right` are not read behind the last sum.
    unsafe {
        for (line, sum) in sum.iter_mut().enumerate() {
            for (half, sum) in sum.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(begin.add(line * begin_row + 16 * half));
                // The sums go there in the end, and would wait for it.
                _mm_prefetch::<_MM_HINT_ET0>(out.add(line * out_row + 16 * half).cast());
            }
        }
        for _ in 0..sums {
            let mut values = [_mm512_setzero_ps(); HALVES];
            for (half, values) in values.iter_mut().enumerate() {
                *values = _mm512_loadu_ps(right.add(16 * half));
            }
            for (line, sum) in sum.iter_mut().enumerate() {
                let factor = _mm512_set1_ps(*left.add(line * row));
                for (sum, values) in sum.iter_mut().zip(values) {
                    *sum = _mm512_fmadd_ps(factor, values, *sum);
                }
            }
            left = left.wrapping_add(column);
            right = right.wrapping_add(right_row);
        }
        for (line, sum) in sum.iter().enumerate() {
            for (half, sum) in sum.iter().enumerate() {
                _mm512_storeu_ps(out.add(line * out_row + 16 * half), *sum);
            }
        }
    }
}

/// Terms of a sum between two requests for what comes next.
const STRIDE: usize = 4;

/// Twelve sums, at most, beside the fewer of a term's factors and values: three rows of 32 columns ask for 7 values of
/// memory for 12 multiply-adds, six of 16 columns for 8, of which six lie a row apart each.
///
/// # Safety
/// As for [`of_half`], for `ROWS` rows of `VECTORS` times 8 columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn narrow<const ROWS: usize, const VECTORS: usize, const PACKED: bool>(tile: &Tile) {
    let &Tile { mut left, row, column, mut right, right_row, sums, begin, begin_row, out, out_row, .. } = tile;
    let &Tile { mut ahead, ahead_length, .. } = tile;
    // Known distances are parts of the instructions.
    let (column, right_row) = if PACKED { (1, WIDE) } else { (column, right_row) };
    let mut sum = [[_mm256_setzero_ps(); VECTORS]; ROWS];
    // SAFETY: every address is one that the caller promises; `left` and `right` are not read behind the last sum.
    // What is only asked for may lie anywhere.
    unsafe {
        let step = if PACKED { ahead_length / (sums / STRIDE).max(1) } else { 0 };
        for (line, sum) in sum.iter_mut().enumerate() {
            for (vector, sum) in sum.iter_mut().enumerate() {
                *sum = _mm256_loadu_ps(begin.add(line * begin_row + 8 * vector));
            }
            for half in 0..VECTORS / 2 {
                _mm_prefetch::<_MM_HINT_ET0>(out.add(line * out_row + 16 * half).cast());
            }
        }
        let mut term = |left: *const f32, right: *const f32| {
            let factor = |line: usize| _mm256_set1_ps(*left.add(line * row));
            let value = |vector: usize| _mm256_loadu_ps(right.add(8 * vector));
            if ROWS < VECTORS {
                let factors: [__m256; ROWS] = std::array::from_fn(factor);
                for vector in 0..VECTORS {
                    let value = value(vector);
                    for (sum, factor) in sum.iter_mut().zip(factors) {
                        sum[vector] = _mm256_fmadd_ps(factor, value, sum[vector]);
                    }
                }
            } else {
                let values: [__m256; VECTORS] = std::array::from_fn(value);
                for (line, sum) in sum.iter_mut().enumerate() {
                    let factor = factor(line);
                    for (sum, value) in sum.iter_mut().zip(values) {
                        *sum = _mm256_fmadd_ps(factor, value, *sum);
                    }
                }
            }
        };
        let strides = if PACKED { sums / STRIDE } else { 0 };
        for _ in 0..strides {
            // Two lines, and a step of less: so each is asked for twice, since one that is asked for while many others are
            // on their way may be forgotten.
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(16).cast());
            ahead = ahead.wrapping_add(step);
            for _ in 0..STRIDE {
                term(left, right);
                left = left.wrapping_add(column);
                right = right.wrapping_add(right_row);
            }
        }
        for _ in STRIDE * strides..sums {
            term(left, right);
            left = left.wrapping_add(column);
            right = right.wrapping_add(right_row);
        }
        for (line, sum) in sum.iter().enumerate() {
            for (vector, sum) in sum.iter().enumerate() {
                _mm256_storeu_ps(out.add(line * out_row + 8 * vector), *sum);
            }
        }
    }
}

/// Turns a block of 8 by 8: `out[c][r] = from[r][c]`, rows this far apart.
///
/// # Safety
/// The machine has AVX, and 8 values may be read at each of 8 rows of `from` and written at each of 8 rows of `out`.
#[inline]
#[target_feature(enable = "avx")]
pub(super) unsafe fn turn(from: *const f32, from_row: usize, out: *mut f32, out_row: usize) {
    let pair = |a: __m256, b: __m256| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let cross = |(a, b): (__m256, __m256), (c, d): (__m256, __m256)| {
        [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xee>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xee>(b, d),
        ]
    };
    // SAFETY: what the caller promises.
    unsafe {
        let row = |row: usize| _mm256_loadu_ps(from.add(row * from_row));
        let upper = cross(pair(row(0), row(1)), pair(row(2), row(3)));
        let lower = cross(pair(row(4), row(5)), pair(row(6), row(7)));
        for (column, (a, b)) in upper.into_iter().zip(lower).enumerate() {
            _mm256_storeu_ps(out.add(column * out_row), _mm256_permute2f128_ps::<0x20>(a, b));
            _mm256_storeu_ps(out.add((column + 4) * out_row), _mm256_permute2f128_ps::<0x31>(a, b));
        }
    }
}
