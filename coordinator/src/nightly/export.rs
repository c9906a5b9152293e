//! The whole history as JSON and Parquet, for whoever wants to look at it with other tools.

use std::{fs::File, io::BufWriter, path::Path, sync::Arc};

use anyhow::Context as _;
use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, UInt64Array,
    builder::{Float64Builder, ListBuilder, StringBuilder},
};
use graftwork_shared::id::Name;
use graftwork_web::Curve;
use parquet::arrow::ArrowWriter;
use serde::Serialize;

use super::{
    answers, curves,
    history::{History, labels},
    night::{Measurement, Night},
};
use crate::{
    cli::Failure,
    run::{Lost, Recovery},
};

/// One score of one measurement.
struct Line<'n> {
    night: &'n Night,
    measured: &'n Measurement,
    metric: String,
    score: f64,
}

/// Writes the history into a folder, all of it as JSON and as Parquet; gives the nights. Of nights that are no longer kept
/// there are numbers alone; answers and curves that cannot be read are told and left out.
pub(super) fn export(history: &History, folder: &Path) -> Result<usize, Failure> {
    let nights = history.known()?;
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let json = serde_json::to_vec_pretty(&nights)?;
    graftwork_store::write_atomically(&folder.join("history.json"), &json)?;
    write(&folder.join("nights.parquet"), &whole_nights(&nights)?)?;
    write(&folder.join("measurements.parquet"), &measurements(&nights)?)?;
    let mut writer = answers::Writer::create(&folder.join("answers.parquet"))?;
    let path = folder.join("answers.jsonl");
    let mut lines = BufWriter::new(File::create(&path).with_context(|| path.display().to_string())?);
    let mut trained = Vec::new();
    for night in &history.nights()? {
        let number = night.number;
        let labels = |task: &Name| labels(night, task);
        match history.book(night) {
            Ok(book) => {
                writer.add(number, &book, &labels)?;
                answers::write_lines(&mut lines, number, &book, &labels).with_context(|| path.display().to_string())?;
            }
            Err(error) => {
                let words = graftwork_shared::cause::told(error.as_ref());
                history.tell(&format!("night {number} is exported without its answers: {words}"));
            }
        }
        match curves::read(&history.folder_of(number)) {
            Ok(curves) => trained.push(Trained { night: number, curves }),
            Err(failure) => {
                let words = graftwork_shared::cause::told(failure.error.as_ref());
                history.tell(&format!("night {number} is exported without its learning curves: {words}"));
            }
        }
    }
    writer.finish()?;
    lines.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    graftwork_store::write_atomically(&folder.join("curves.json"), &serde_json::to_vec(&trained)?)?;
    write(&folder.join("curves.parquet"), &points(&trained)?)?;
    Ok(nights.len())
}

/// How a night was trained.
#[derive(Serialize)]
struct Trained {
    night: u64,
    curves: Vec<Curve>,
}

/// A row a point of each curve.
fn points(trained: &[Trained]) -> anyhow::Result<RecordBatch> {
    let mut points = Vec::new();
    for Trained { night, curves } in trained {
        for curve in curves {
            let lines = [("score", &curve.scores), ("loss", &curve.loss), ("validation_loss", &curve.validation)];
            for (line, all) in lines {
                points.extend(all.iter().map(|(step, value)| (*night, curve, line, *step, *value)));
            }
        }
    }
    let night: UInt64Array = points.iter().map(|(night, ..)| *night).collect();
    let task: StringArray = points.iter().map(|(_, curve, ..)| Some(curve.task.as_str())).collect();
    let seed: UInt64Array = points.iter().map(|(_, curve, ..)| curve.seed).collect();
    let metric: StringArray = points.iter().map(|(_, curve, ..)| Some(curve.metric.as_str())).collect();
    let line: StringArray = points.iter().map(|(_, _, line, ..)| Some(*line)).collect();
    let step: UInt64Array = points.iter().map(|(_, _, _, step, _)| *step).collect();
    let value: Float64Array = points.iter().map(|(.., value)| *value).collect();
    let columns: [(&str, ArrayRef); 7] = [
        ("night", Arc::new(night)),
        ("task", Arc::new(task)),
        ("seed", Arc::new(seed)),
        ("metric", Arc::new(metric)),
        ("line", Arc::new(line)),
        ("step", Arc::new(step)),
        ("value", Arc::new(value)),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

/// A row a night: what all of it used, and each loss with the seconds until training went on, in lists beside each other.
fn whole_nights(nights: &[Night]) -> anyhow::Result<RecordBatch> {
    let whole = |of: fn(&Night) -> u64| -> ArrayRef { Arc::new(nights.iter().map(of).collect::<UInt64Array>()) };
    let number = |of: fn(&Night) -> f64| -> ArrayRef { Arc::new(nights.iter().map(of).collect::<Float64Array>()) };
    let text = |of: fn(&Night) -> &str| -> ArrayRef {
        Arc::new(nights.iter().map(|night| Some(of(night))).collect::<StringArray>())
    };
    let good = |night: &Night| night.judged.as_ref().map(|judged| judged.good);
    let good: ArrayRef = Arc::new(nights.iter().map(good).collect::<BooleanArray>());
    let (mut lost, mut stages) = (ListBuilder::new(StringBuilder::new()), ListBuilder::new(StringBuilder::new()));
    let mut seconds = ListBuilder::new(Float64Builder::new());
    for night in nights {
        let word = |recovery: &Recovery| match recovery.lost {
            Lost::Attempt => "attempt",
            Lost::Coordinator => "coordinator",
        };
        lost.append_value(night.recoveries.iter().map(|recovery| Some(word(recovery))));
        stages.append_value(night.recoveries.iter().map(|recovery| Some(recovery.stage.as_str())));
        seconds.append_value(night.recoveries.iter().map(|recovery| Some(recovery.seconds)));
    }
    let recoveries: [ArrayRef; 3] = [Arc::new(lost.finish()), Arc::new(stages.finish()), Arc::new(seconds.finish())];
    let [lost, stages, seconds] = recoveries;
    let batch = RecordBatch::try_from_iter([
        ("night", whole(|night| night.number)),
        ("began_ms", whole(|night| night.began_ms)),
        ("ended_ms", whole(|night| night.ended_ms)),
        ("code", text(|night| &night.code.name)),
        ("version", text(|night| &night.code.version)),
        ("numerics_version", whole(|night| u64::from(night.code.numerics))),
        ("interruptions", whole(|night| u64::from(night.resumed))),
        ("good", good),
        ("wall_seconds", number(|night| night.ended_ms.saturating_sub(night.began_ms) as f64 / 1000.0)),
        ("core_seconds", number(|night| night.usage.core_seconds)),
        ("gpu_seconds", number(|night| night.usage.gpu_seconds)),
        ("bytes_read", whole(|night| night.usage.bytes_read)),
        ("examples", whole(|night| night.usage.examples)),
        ("tokens", whole(|night| night.usage.tokens)),
        ("peak_memory_bytes", whole(|night| night.usage.peak_memory_bytes)),
        ("recovery_lost", lost),
        ("recovery_stage", stages),
        ("recovery_seconds", seconds),
    ])?;
    Ok(batch)
}

/// A row a score of each measurement.
fn measurements(nights: &[Night]) -> anyhow::Result<RecordBatch> {
    let mut lines = Vec::new();
    for night in nights {
        for measured in &night.measurements {
            let of = |(metric, score): (&graftwork_shared::metric::Metric, &f64)| Line {
                night,
                measured,
                metric: metric.to_string(),
                score: *score,
            };
            lines.extend(measured.scores.iter().map(of));
        }
    }
    let whole = |of: fn(&Line<'_>) -> u64| -> ArrayRef { Arc::new(lines.iter().map(of).collect::<UInt64Array>()) };
    let number = |of: fn(&Line<'_>) -> f64| -> ArrayRef { Arc::new(lines.iter().map(of).collect::<Float64Array>()) };
    let text = |of: fn(&Line<'_>) -> String| -> ArrayRef {
        Arc::new(lines.iter().map(|line| Some(of(line))).collect::<StringArray>())
    };
    let digest = |line: &Line<'_>| line.measured.data.map(|digest| digest.to_string());
    let batch = RecordBatch::try_from_iter([
        ("night", whole(|line| line.night.number)),
        ("began_ms", whole(|line| line.night.began_ms)),
        ("code", text(|line| line.night.code.name.clone())),
        ("version", text(|line| line.night.code.version.clone())),
        ("numerics_version", whole(|line| u64::from(line.night.code.numerics))),
        ("interruptions", whole(|line| u64::from(line.night.resumed))),
        ("task", text(|line| line.measured.task.to_string())),
        ("seed", whole(|line| line.measured.seed)),
        ("method", text(|line| line.measured.method.clone())),
        ("metric", text(|line| line.metric.clone())),
        ("score", number(|line| line.score)),
        ("split", text(|line| line.measured.split.to_string())),
        ("rows_digest", Arc::new(lines.iter().map(digest).collect::<StringArray>())),
        ("core_seconds", number(|line| line.measured.usage.core_seconds)),
        ("gpu_seconds", number(|line| line.measured.usage.gpu_seconds)),
        ("wall_seconds", number(|line| line.measured.usage.wall_seconds)),
        ("bytes_read", whole(|line| line.measured.usage.bytes_read)),
        ("examples", whole(|line| line.measured.usage.examples)),
        ("tokens", whole(|line| line.measured.usage.tokens)),
        ("peak_memory_bytes", whole(|line| line.measured.usage.peak_memory_bytes)),
        ("recipe", text(|line| line.measured.recipe.to_string())),
        ("weights", text(|line| line.measured.weights.to_string())),
        ("numeric_class", text(|line| line.measured.numeric_class.to_string())),
    ])?;
    Ok(batch)
}

fn write(path: &Path, batch: &RecordBatch) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None)?;
    writer.write(batch)?;
    writer.into_inner()?.sync_all()?;
    Ok(())
}
