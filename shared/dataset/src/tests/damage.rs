//! Truncated and damaged files are errors with their own message, never a panic of the caller.

use super::{Folder, request};
use crate::{DataError, Order};

#[test]
fn a_truncated_file_says_its_size_and_what_is_missing() {
    let folder = Folder::new();
    let path = folder.shard("a.parquet", 0, 500, 100);
    let whole = std::fs::read(&path).unwrap();
    for (kept, missing) in
        [(0, "smallest"), (7, "smallest"), (12, "PAR1"), (whole.len() / 2, "PAR1"), (whole.len() - 1, "PAR1")]
    {
        std::fs::write(&path, &whole[..kept]).unwrap();
        let error = folder.open(&["a.parquet"]).unwrap_err();
        assert!(matches!(error, DataError::Truncated { .. }), "{kept}: {error}");
        let message = error.to_string();
        assert!(message.contains(&format!("is {kept} bytes")) && message.contains(missing), "{message}");
    }
    // The head is missing and the footer is whole.
    std::fs::write(&path, &whole[whole.len() / 2..]).unwrap();
    let error = folder.open(&["a.parquet"]).unwrap_err().to_string();
    assert!(error.contains("but the footer begins at byte") || error.contains("its footer alone has"), "{error}");
}

#[test]
fn a_damaged_page_names_file_and_row_group() {
    let folder = Folder::new();
    let path = folder.shard("a.parquet", 0, 500, 100);
    let manifest = folder.manifest(&["a.parquet"]);
    let mut bytes = std::fs::read(&path).unwrap();
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    for byte in &mut bytes[4..60] {
        *byte = 0xff;
    }
    std::fs::write(&path, &bytes).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    let error = folder.rows(request(manifest, Order::Sequential)).unwrap_err();
    assert!(matches!(&error, DataError::DamagedPage { row_group: 0, .. }), "{error}");
    assert!(error.to_string().contains("a.parquet is damaged in row group 0"), "{error}");
}

/// Deterministic damage: every tenth byte position, three kinds of change, footer and pages alike.
#[test]
fn no_damage_panics_or_hangs() {
    let folder = Folder::new();
    let path = folder.shard("a.parquet", 0, 300, 100);
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(5) {
        let mut bytes = whole.clone();
        bytes[at] = match at % 3 {
            0 => !bytes[at],
            1 => bytes[at].wrapping_add(1),
            _ => 0x7f,
        };
        std::fs::write(&path, &bytes).unwrap();
        let Ok(files) = folder.open(&["a.parquet"]) else {
            refused += 1;
            continue;
        };
        let anonymous = crate::Access::anonymous();
        let Ok(manifest) = folder.runtime.block_on(crate::select(&files, None, None, &anonymous)) else { continue };
        let order = Order::Shuffled { seed: 1, window_bytes: 4096 };
        refused += usize::from(folder.rows(request(manifest, order)).is_err());
    }
    assert!(refused > 20, "only {refused} damaged files were noticed");
}

#[test]
fn rows_that_change_after_the_first_epoch_are_noticed_by_their_digest() {
    let folder = Folder::new();
    let path = folder.shard("a.parquet", 0, 300, 100);
    let manifest = folder.manifest(&["a.parquet"]);
    let mut first = folder.start(request(manifest, Order::Sequential));
    assert_eq!(first.by_ref().flatten().count(), 300);
    // Another file with the same shape, taken for the planned one: only row 250 differs.
    let groups = first.groups();
    let texts: arrow_array::StringArray = (0..300)
        .map(|n| Some(if n == 250 { "text number 999".to_owned() } else { format!("text number {n}") }))
        .collect();
    let labels = arrow_array::Int64Array::from_iter_values((0..300).map(|n| n % 2));
    let columns: Vec<(&str, arrow_array::ArrayRef)> =
        vec![("text", std::sync::Arc::new(texts)), ("label", std::sync::Arc::new(labels))];
    std::fs::remove_file(path).unwrap();
    folder.write("a.parquet", columns, 100);
    let manifest = folder.manifest(&["a.parquet"]);
    let second = crate::ReadRequest { epoch: 1, groups, ..request(manifest, Order::Sequential) };
    let error = folder.rows(second).unwrap_err();
    assert!(matches!(error, DataError::ChangedRows { row_group: 2, .. }), "{error}");
}
