//! Products beside sums in f64 and beside plain chains, and their bytes whatever the tiles, the blocks and the set of
//! instructions.

use proptest::prelude::*;

use super::*;
use crate::testing::cases;

fn wave(length: usize, step: f64) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "test values")]
    (0..length).map(|n| ((n as f64 + 1.0) * step).sin() as f32).collect()
}

fn run(instructions: Instructions, left: Left, rows: usize, right: &Panels, start: Start) -> Vec<f32> {
    let mut out = wave(rows * right.columns(), 0.3);
    super::run(instructions, left, rows, right, start, &mut out);
    out
}

/// Element by element: what the sum begins with, then one term after the other.
fn folded<T>(
    (left, rows): (Left, usize),
    (values, [sums, columns]): (&[f32], [usize; 2]),
    start: Start,
    begin: impl Fn(f32) -> T,
    add: impl Fn(T, f32, f32) -> T,
) -> Vec<T> {
    let held = wave(rows * columns, 0.3);
    let one = |place: usize| {
        let (row, column) = (place / columns, place % columns);
        let first = match start {
            Start::Zero => 0.0,
            Start::Bias(bias) => bias[column],
            Start::Matrix(matrix) => matrix[place],
            Start::Out => held[place],
        };
        let factors = |k: usize| (left.values[row * left.row + k * left.column], values[k * columns + column]);
        (0..sums).map(factors).fold(begin(first), |sum, (a, b)| add(sum, a, b))
    };
    (0..rows * columns).map(one).collect()
}

/// In f64.
fn expected(left: Left, rows: usize, right: (&[f32], [usize; 2]), start: Start) -> Vec<f64> {
    folded((left, rows), right, start, f64::from, |sum, a, b| sum + f64::from(a) * f64::from(b))
}

/// One chain of multiply-adds for each element, which are fused or not.
fn chains(fused: bool, left: (Left, usize), right: (&[f32], [usize; 2]), start: Start) -> Vec<f32> {
    let add = |sum: f32, a: f32, b: f32| if fused { a.mul_add(b, sum) } else { sum + a * b };
    folded(left, right, start, |first| first, add)
}

/// A left factor `[rows, sums]` with gaps behind its lines, as it is or turned.
fn left_of(values: &mut Vec<f32>, [rows, sums]: [usize; 2], gap: usize, is_turned: bool) -> Left<'_> {
    let [lines, length] = if is_turned { [sums, rows] } else { [rows, sums] };
    *values = wave(lines * (length + gap), 0.7);
    if is_turned { Left::turned(values, length + gap) } else { Left::rows(values, length + gap) }
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
                    Instructions::all().iter().map(|&known| run(known, left, rows, &right, start)).collect();
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

// Sums of one block, of a second one of one term, of three uneven ones and of four, and a panel of eight columns.
#[test]
fn blocks_of_a_sum_are_one_chain() {
    for sums in [384, 385, 1000, 1536] {
        let [rows, columns] = [5, 72];
        let (a, b, bias) = (wave(rows * sums, 0.7), wave(sums * columns, 1.3), wave(columns, 0.9));
        let right = Panels::of_rows(&b, [sums, columns]);
        let left = Left::rows(&a, sums);
        let chains = chains(true, (left, rows), (&b, [sums, columns]), Start::Bias(&bias));
        for instructions in Instructions::all().into_iter().filter(|known| *known != Instructions::Plain) {
            let found = run(instructions, left, rows, &right, Start::Bias(&bias));
            assert_eq!(found, chains, "{instructions:?} {sums}");
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
    for instructions in Instructions::all() {
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
    for instructions in Instructions::all() {
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
    for instructions in Instructions::all() {
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

fn check_turned([rows, columns]: [usize; 2], gap: usize, out_gap: usize) {
    let from = wave(rows * (columns + gap), 0.7);
    for instructions in Instructions::all() {
        let mut out = vec![9.0; columns * (rows + out_gap)];
        instructions.with(|| turned([rows, columns], (&from, columns + gap), (&mut out, rows + out_gap)));
        for (column, out) in out.chunks(rows + out_gap).enumerate() {
            let mut expected: Vec<f32> = (0..rows).map(|row| from[row * (columns + gap) + column]).collect();
            expected.resize(rows + out_gap, 9.0);
            assert_eq!(out, expected, "{instructions:?} column {column}");
        }
    }
}

#[test]
fn turning_moves_every_element() {
    for sizes in [[1, 1], [8, 8], [20, 32], [9, 17], [16, 5]] {
        check_turned(sizes, 1, 2);
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

/// Lengths of sums that are short, that end near a block, or that have several.
fn lengths_of_sums() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..80_usize, 1 => 380..390_usize, 1 => 760..800_usize]
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn products_are_plain_chains(
        (rows, sums, columns) in (1..30_usize, lengths_of_sums(), 1..100_usize),
        (gap, is_turned, packs_turned) in (0..4_usize, any::<bool>(), any::<bool>()),
        start in 0..4_usize,
    ) {
        let mut a = Vec::new();
        let left = left_of(&mut a, [rows, sums], gap, is_turned);
        let (b, bias, matrix) = (wave(sums * columns, 1.3), wave(columns, 0.9), wave(rows * columns, 1.9));
        let right = if packs_turned {
            let turned: Vec<f32> = (0..b.len()).map(|n| b[n % sums * columns + n / sums]).collect();
            Panels::of_columns(&turned, [sums, columns])
        } else {
            Panels::of_rows(&b, [sums, columns])
        };
        let start = [Start::Zero, Start::Bias(&bias), Start::Matrix(&matrix), Start::Out][start];
        for instructions in Instructions::all() {
            let fused = instructions != Instructions::Plain;
            let expected = chains(fused, (left, rows), (&b, [sums, columns]), start);
            prop_assert_eq!(run(instructions, left, rows, &right, start), expected, "{:?}", instructions);
        }
    }

    #[test]
    fn factors_that_are_not_packed_give_plain_chains(
        (rows, sums, columns) in (1..30_usize, 1..80_usize, 1..100_usize),
        (gap, is_turned) in (0..4_usize, any::<bool>()),
        (right_gap, out_gap) in (0..4_usize, 0..4_usize),
    ) {
        let mut a = Vec::new();
        let left = left_of(&mut a, [rows, sums], gap, is_turned);
        let b = wave(sums * (columns + right_gap), 1.3);
        let dense: Vec<f32> = b.chunks(columns + right_gap).flat_map(|row| row[..columns].to_vec()).collect();
        let chains = |fused| chains(fused, (left, rows), (&dense, [sums, columns]), Start::Zero);
        let right = Right { values: &b, row: columns + right_gap };
        for instructions in Instructions::all() {
            let mut out = vec![9.0; rows * (columns + out_gap)];
            instructions.with(|| product_once([rows, sums, columns], left, right, (&mut out, columns + out_gap)));
            let (of_vectors, of_ends) = (chains(instructions != Instructions::Plain), chains(false));
            let whole = columns / HALF * HALF;
            for (row, out) in out.chunks(columns + out_gap).enumerate() {
                let own = row * columns..(row + 1) * columns;
                prop_assert_eq!(&out[..whole], &of_vectors[own.clone()][..whole], "{:?}", instructions);
                prop_assert_eq!(&out[whole..columns], &of_ends[own][whole..], "{:?}", instructions);
                prop_assert!(out[columns..].iter().all(|value| value.to_bits() == 9.0_f32.to_bits()));
            }
        }
    }

    #[test]
    fn turning_moves_elements_of_any_matrix(
        (rows, columns) in (1..40_usize, 1..40_usize),
        (gap, out_gap) in (0..4_usize, 0..4_usize),
    ) {
        check_turned([rows, columns], gap, out_gap);
    }
}
