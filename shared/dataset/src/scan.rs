//! One column of a manifest's files, in row order: for split rules by group and for finding labels.

use arrow_array::Array;
use futures::{StreamExt, TryStreamExt};
use graftwork_shared::data::SplitManifest;

use crate::{
    Access, DataError,
    columns::Role,
    shard::{Shards, texts},
};

/// Row groups fetched at the same time.
const PARALLEL_READS: usize = 4;

/// Calls `each` with the number and the text of every row below the manifest's limit; the rule is not applied.
pub(crate) async fn scan_texts(
    manifest: &SplitManifest,
    (column, role): (&str, Role),
    access: &Access,
    mut each: impl FnMut(u64, &str),
) -> Result<(), DataError> {
    let shards = Shards::new(manifest, vec![column.to_owned()], access, |_, _| Ok(()));
    let end = manifest.limit.unwrap_or(u64::MAX);
    let mut number = 0;
    let mut wanted = Vec::new();
    for (file, identity) in (0_u32..).zip(&manifest.files) {
        let first = number;
        for (group, rows) in (0_u32..).zip(&identity.content.row_group_rows) {
            let taken = (*rows).min(end.saturating_sub(number));
            if taken > 0 {
                wanted.push((file, group, number, number - first, taken));
            }
            number += rows;
        }
    }
    let mut reads = futures::stream::iter(wanted)
        .map(|(file, group, number, row, taken)| {
            let shards = &shards;
            async move { Ok((file, number, row, shards.read(file, group, &[(0, taken)]).await?)) }
        })
        .buffered(PARALLEL_READS);
    while let Some((file, mut number, mut row, batches)) = reads.try_next().await? {
        for batch in batches.iter().flatten() {
            let location = &manifest.files[file as usize].location;
            let values = texts(batch.column(0)).map_err(|detail| DataError::ColumnType {
                location: location.clone(),
                role: role.name().to_owned(),
                column: column.to_owned(),
                found: detail,
                wanted: "it must have a text form".to_owned(),
                help: "name another column".to_owned(),
            })?;
            for index in 0..values.len() {
                if values.is_null(index) {
                    return Err(DataError::Null {
                        location: location.clone(),
                        row,
                        role: role.name().to_owned(),
                        column: column.to_owned(),
                    });
                }
                each(number, values.value(index));
                (number, row) = (number + 1, row + 1);
            }
        }
    }
    Ok(())
}
