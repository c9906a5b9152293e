//! Rows that only training reads: what is wrong with them is told with file, row and mend, and other tasks go on.

use std::{fs::File, sync::Arc};

use anyhow::{Result, ensure};
use arrow_array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use graftwork_tests::{Run, World};
use parquet::arrow::ArrowWriter;

#[test]
fn a_null_text_ends_its_task_with_the_row_and_no_other() -> Result<()> {
    let world = World::new()?;
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("good film"), Some("bad film"), None, Some("a book")]));
    let labels: ArrayRef = Arc::new(Int32Array::from(vec![1, 0, 1, 0]));
    let batch = RecordBatch::try_from_iter([("text", texts), ("label", labels)])?;
    let path = world.path().join("data/mood/train.parquet");
    let mut writer = ArrowWriter::try_new(File::create(&path)?, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    let job = world.job("job.toml", "hub", "")?;
    let finished = Run::start(&job, &["--state", "state"])?.finish(1)?;
    let words =
        format!("row 2 (from 0) of {} has no value in text column \"text\"; fill the row or drop it", path.display());
    ensure!(finished.stdout.contains(&words), "{}", finished.stdout);
    let hub = world.path().join("hub/tests");
    ensure!(hub.join("topic").exists() && !hub.join("mood").exists(), "{}", finished.stdout);
    Ok(())
}
