//! The order is a permutation, windows keep their bound, and mixing is measured.

use graftwork_shared::{
    data::{FileContent, FileIdentity},
    digest::Digest,
};
use proptest::prelude::*;

use super::*;

fn manifest(files: &[Vec<(u64, u64)>], limit: Option<u64>) -> SplitManifest {
    let files: Vec<FileIdentity> = files
        .iter()
        .enumerate()
        .map(|(index, groups)| FileIdentity {
            location: format!("/{index}"),
            version: String::new(),
            content: FileContent {
                bytes: 1,
                footer: Digest::of(b""),
                row_group_rows: groups.iter().map(|(rows, _)| *rows).collect(),
                row_group_bytes: groups.iter().map(|(_, bytes)| *bytes).collect(),
            },
        })
        .collect();
    let all: u64 = files.iter().map(|file| file.content.rows()).sum();
    SplitManifest { files, rule: None, limit, rows: all.min(limit.unwrap_or(u64::MAX)) }
}

fn numbers(plan: &Plan) -> Vec<u64> {
    let mut out = Vec::new();
    for window in &plan.windows {
        let blocks = &plan.blocks[window.blocks.clone()];
        let mut rows: Vec<u64> = blocks.iter().flat_map(|block| block.number..block.number + block.rows).collect();
        plan.shuffle_window(window, &mut rows);
        assert_eq!(window.first_slot, out.len() as u64);
        out.extend(rows);
    }
    out
}

proptest! {
    #[test]
    fn every_order_is_a_permutation(
        files in proptest::collection::vec(proptest::collection::vec((0_u64..3000, 0_u64..200_000), 0..4), 1..5),
        limit in proptest::option::of(0_u64..5000),
        window in 1_u64..200_000,
        seed: u64,
        epoch: u32,
    ) {
        let manifest = manifest(&files, limit);
        for order in [Order::Sequential, Order::Shuffled { seed, window_bytes: window }] {
            let plan = Plan::new(&manifest, order, epoch);
            let mut found = numbers(&plan);
            if order == Order::Sequential {
                prop_assert!(found.is_sorted());
            }
            found.sort_unstable();
            prop_assert_eq!(found, (0..manifest.rows).collect::<Vec<_>>());
            if let Order::Shuffled { window_bytes, .. } = order {
                for window in &plan.windows {
                    let blocks = &plan.blocks[window.blocks.clone()];
                    let bytes: u64 = blocks.iter().map(|block| block.bytes).sum();
                    prop_assert!(bytes <= window_bytes || blocks.len() == 1, "{bytes} over {window_bytes}");
                }
            }
        }
    }
}

/// Pearson correlation of two equally long series.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let pairs = || a.iter().zip(b).map(|(x, y)| (x - mean_a, y - mean_b));
    let (sum, left, right) = pairs().fold((0.0, 0.0, 0.0), |(s, l, r), (x, y)| (s + x * y, l + x * x, r + y * y));
    sum / f64::sqrt(left * right)
}

/// Position of each row in the order.
fn positions(order: &[u64]) -> Vec<f64> {
    let mut positions = vec![0.0; order.len()];
    for (position, number) in order.iter().enumerate() {
        positions[usize::try_from(*number).unwrap()] = position as f64;
    }
    positions
}

/// Half a million rows of 100 bytes in 10 shards sorted by label, windows of 4 MiB: the worst case that the docs quote.
#[test]
fn the_order_mixes_a_file_that_is_sorted_by_label() {
    let rows = 500_000_u64;
    let groups: Vec<(u64, u64)> = vec![(10_000, 1_000_000); 5];
    let manifest = manifest(&vec![groups; 10], None);
    let order = Order::Shuffled { seed: 17, window_bytes: 4 << 20 };
    let plans: Vec<Plan> = (0..2).map(|epoch| Plan::new(&manifest, order, epoch)).collect();
    let (first, second) = (numbers(&plans[0]), numbers(&plans[1]));
    let (one, two) = (positions(&first), positions(&second));
    let file: Vec<f64> = (0..rows).map(|n| n as f64).collect();
    let displacement: f64 = one.iter().zip(&file).map(|(a, b)| (a - b).abs()).sum::<f64>() / rows as f64;
    let label = |number: &u64| f64::from(u8::from(*number >= rows / 2));
    let shares: Vec<f64> = first.chunks(16).map(|batch| batch.iter().map(label).sum::<f64>() / 16.0).collect();
    let one_sided = shares.iter().filter(|share| !(1e-9..=1.0 - 1e-9).contains(*share)).count();
    let spread = (shares.iter().map(|share| (share - 0.5).powi(2)).sum::<f64>() / shares.len() as f64).sqrt();
    let neighbours = first.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
    println!(
        "windows {} blocks {} displacement {:.4} n, correlation with file {:.4}, between epochs {:.4}, \
         spread of label share in batches of 16: {spread:.4} (draws without order: 0.1250), one-sided batches \
         {one_sided} of {}, neighbours {neighbours}",
        plans[0].windows.len(),
        plans[0].blocks.len(),
        displacement / rows as f64,
        correlation(&one, &file),
        correlation(&one, &two),
        shares.len(),
    );
    // A true shuffle has displacement n/3, correlations of 0 and a spread of sqrt(0.25 / 16) = 0.125.
    assert!((displacement / rows as f64 - 1.0 / 3.0).abs() < 0.02);
    assert!(correlation(&one, &file).abs() < 0.05 && correlation(&one, &two).abs() < 0.05);
    assert!(spread < 0.14, "{spread}");
    assert!(one_sided * 1000 < shares.len(), "{one_sided}");
}

#[test]
fn the_default_order_of_many_windows_changes_only_with_the_numerics_version() {
    // Three windows of the default size. A published byte depends on this order, and recipes hold only the seed.
    let manifest = manifest(&[vec![(40_000, 40 << 20), (20_000, 9 << 20)], vec![(30_000, 20 << 20)]], None);
    let plan = Plan::new(&manifest, Order::Shuffled { seed: 17, window_bytes: DEFAULT_WINDOW_BYTES }, 1);
    assert!(plan.windows.len() >= 3, "{} windows", plan.windows.len());
    let bytes: Vec<u8> = numbers(&plan).into_iter().flat_map(u64::to_le_bytes).collect();
    let digest = Digest::of(&bytes).to_string();
    assert_eq!(
        (graftwork_shared::NUMERICS_VERSION, digest.as_str()),
        (5, "579a36b5d420cfa8aa8e37a84b279f3a0bc52cf571420d646a7b3a25c942dfab"),
        "the order changed: raise NUMERICS_VERSION, then write down the new digest"
    );
}
