//! What each model answered, row by row: read from a release, kept as Parquet.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc};

use anyhow::{Context as _, anyhow, ensure};
use arrow_array::{
    Array as _, ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array,
    cast::AsArray as _,
    types::{Float64Type, UInt64Type},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use graftwork_shared::id::Name;
use graftwork_verdict::Answers;
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use serde::Deserialize;

/// One model's answers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    /// Numbers of the rows in their split.
    pub(super) rows: Vec<u64>,
    /// What is right.
    pub(super) right: Answers,
    /// What it said.
    pub(super) given: Answers,
}

/// All answers of a night by task and seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Book(pub(super) BTreeMap<(Name, u64), Asked>);

#[derive(Deserialize)]
struct Line {
    row: u64,
    label: serde_json::Value,
    prediction: serde_json::Value,
}

impl Asked {
    /// Reads the JSON lines of a release.
    pub(super) fn read(bytes: &[u8], labels: &[String]) -> anyhow::Result<Self> {
        let mut asked = Self::empty(labels);
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let line: Line = serde_json::from_slice(line).with_context(|| format!("line {}", number + 1))?;
            let (label, prediction) = (&line.label, &line.prediction);
            asked
                .push(line.row, value(label), value(prediction), labels)
                .with_context(|| format!("line {}", number + 1))?;
        }
        Ok(asked)
    }

    fn empty(labels: &[String]) -> Self {
        let none = || if labels.is_empty() { Answers::Numbers(Vec::new()) } else { Answers::Classes(Vec::new()) };
        Self { rows: Vec::new(), right: none(), given: none() }
    }

    fn push(&mut self, row: u64, right: Value<'_>, given: Value<'_>, labels: &[String]) -> anyhow::Result<()> {
        self.rows.push(row);
        add(&mut self.right, right, labels)?;
        add(&mut self.given, given, labels)
    }
}

/// A class name or a number.
#[derive(Clone, Copy, Debug)]
enum Value<'v> {
    Class(&'v str),
    Number(f64),
    Neither,
}

fn value(value: &serde_json::Value) -> Value<'_> {
    match value {
        serde_json::Value::String(class) => Value::Class(class),
        serde_json::Value::Number(number) => number.as_f64().map_or(Value::Neither, Value::Number),
        // A number that is none has no other word in JSON.
        serde_json::Value::Null => Value::Number(f64::NAN),
        _ => Value::Neither,
    }
}

fn add(answers: &mut Answers, value: Value<'_>, labels: &[String]) -> anyhow::Result<()> {
    match (answers, value) {
        (Answers::Classes(ids), Value::Class(class)) => {
            let id = labels.iter().position(|label| label == class);
            let id = id.ok_or_else(|| anyhow!("{class:?} is none of the classes {}", labels.join(", ")))?;
            ids.push(u32::try_from(id)?);
        }
        (Answers::Numbers(numbers), Value::Number(number)) => numbers.push(number),
        (_, found) => return Err(anyhow!("{found:?} is not what the task's head answers")),
    }
    Ok(())
}

/// One answer as people read it.
pub(super) fn shown(answers: &Answers, row: usize, labels: &[String]) -> String {
    match answers {
        Answers::Classes(ids) => labels.get(ids[row] as usize).cloned().unwrap_or_default(),
        Answers::Numbers(numbers) => format!("{:.3}", numbers[row]),
    }
}

/// Rows of a row group.
const GROUP: usize = 65_536;

/// Columns of a file of answers; `right` and `answer` for classes, the other two for numbers.
fn schema() -> SchemaRef {
    let column = |name: &str, kind: DataType, nullable| Field::new(name, kind, nullable);
    Arc::new(Schema::new(vec![
        column("night", DataType::UInt64, false),
        column("task", DataType::Utf8, false),
        column("seed", DataType::UInt64, false),
        column("row", DataType::UInt64, false),
        column("right", DataType::Utf8, true),
        column("answer", DataType::Utf8, true),
        column("right_number", DataType::Float64, true),
        column("answer_number", DataType::Float64, true),
    ]))
}

/// A Parquet file of answers that grows night by night.
pub(super) struct Writer(ArrowWriter<File>);

impl Writer {
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        let compression = Compression::ZSTD(ZstdLevel::default());
        let properties =
            WriterProperties::builder().set_compression(compression).set_max_row_group_row_count(Some(GROUP));
        Ok(Self(ArrowWriter::try_new(file, schema(), Some(properties.build()))?))
    }

    /// Writes one night; `labels` gives the class names of a task.
    pub(super) fn add(&mut self, night: u64, book: &Book, labels: &dyn Fn(&Name) -> Vec<String>) -> anyhow::Result<()> {
        for ((task, seed), asked) in &book.0 {
            let count = asked.rows.len();
            let names = labels(task);
            let classes = |answers: &Answers| -> StringArray {
                (0..count)
                    .map(|row| matches!(answers, Answers::Classes(_)).then(|| shown(answers, row, &names)))
                    .collect()
            };
            let numbers = |answers: &Answers| -> Float64Array {
                let number =
                    |row: usize| if let Answers::Numbers(numbers) = answers { Some(numbers[row]) } else { None };
                (0..count).map(number).collect()
            };
            let columns: Vec<ArrayRef> = vec![
                Arc::new(UInt64Array::from(vec![night; count])),
                Arc::new(StringArray::from(vec![task.as_str(); count])),
                Arc::new(UInt64Array::from(vec![*seed; count])),
                Arc::new(UInt64Array::from(asked.rows.clone())),
                Arc::new(classes(&asked.right)),
                Arc::new(classes(&asked.given)),
                Arc::new(numbers(&asked.right)),
                Arc::new(numbers(&asked.given)),
            ];
            self.0.write(&RecordBatch::try_new(schema(), columns)?)?;
        }
        Ok(())
    }

    /// Ends the file; it is on the disk when this returns.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        Ok(self.0.into_inner()?.sync_all()?)
    }
}

/// Writes the answers of a night as JSON lines; what is no number has no other word there than `null`.
pub(super) fn write_lines(
    to: &mut impl std::io::Write,
    night: u64,
    book: &Book,
    labels: &dyn Fn(&Name) -> Vec<String>,
) -> anyhow::Result<()> {
    for ((task, seed), asked) in &book.0 {
        let names = labels(task);
        let value = |answers: &Answers, row: usize| match answers {
            Answers::Classes(_) => serde_json::Value::from(shown(answers, row, &names)),
            Answers::Numbers(numbers) => serde_json::Value::from(numbers[row]),
        };
        for (at, row) in asked.rows.iter().enumerate() {
            let (right, answer) = (value(&asked.right, at), value(&asked.given, at));
            let line = serde_json::json!({
                "night": night, "task": task, "seed": seed, "row": row, "right": right, "answer": answer,
            });
            writeln!(to, "{line}")?;
        }
    }
    Ok(())
}

/// Reads the answers of a night back; an error names the file.
pub(super) fn read(path: &Path, labels: &dyn Fn(&Name) -> Vec<String>) -> anyhow::Result<Book> {
    read_all(path, labels).with_context(|| format!("the answers in {} cannot be read", path.display()))
}

fn read_all(path: &Path, labels: &dyn Fn(&Name) -> Vec<String>) -> anyhow::Result<Book> {
    let file = File::open(path)?;
    let mut book = Book::default();
    for batch in ParquetRecordBatchReaderBuilder::try_new(file)?.build()? {
        let batch = batch?;
        ensure!(batch.schema().fields() == schema().fields(), "it has other columns than answers have");
        let texts = |at: usize| batch.column(at).as_string::<i32>();
        let whole = |at: usize| batch.column(at).as_primitive::<UInt64Type>();
        let numbers = |at: usize| batch.column(at).as_primitive::<Float64Type>();
        for row in 0..batch.num_rows() {
            let task: Name = texts(1).value(row).parse().map_err(|error| anyhow!("{error}"))?;
            let value = |at: usize| {
                if texts(at).is_valid(row) {
                    Value::Class(texts(at).value(row))
                } else {
                    Value::Number(numbers(at + 2).value(row))
                }
            };
            let names = labels(&task);
            let asked = book.0.entry((task, whole(2).value(row))).or_insert_with(|| Asked::empty(&names));
            asked.push(whole(3).value(row), value(4), value(5), &names)?;
        }
    }
    Ok(book)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_as_they_were_written() {
        let labels = ["ham", "spam"].map(str::to_owned).to_vec();
        let classes = b"{\"row\":3,\"label\":\"spam\",\"prediction\":\"ham\",\"logits\":[0.1,0.2]}\n\
                        {\"row\":5,\"label\":\"ham\",\"prediction\":\"ham\",\"logits\":[1,0]}\n";
        let numbers = b"{\"row\":0,\"label\":1.5,\"prediction\":1.25,\"logits\":[1.25]}\n{\"row\":1,\"label\":-2,\"prediction\":null,\"logits\":[]}\n";
        let asked = Asked::read(classes, &labels).unwrap();
        assert_eq!((&asked.right, &asked.given), (&Answers::Classes(vec![1, 0]), &Answers::Classes(vec![0, 0])));
        let mut book = Book::default();
        book.0.insert(("mail".parse().unwrap(), 2), asked);
        book.0.insert(("warmth".parse().unwrap(), 1), Asked::read(numbers, &[]).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.parquet");
        let of = |task: &Name| if task.as_str() == "mail" { labels.clone() } else { Vec::new() };
        let mut writer = Writer::create(&path).unwrap();
        writer.add(7, &book, &of).unwrap();
        writer.finish().unwrap();
        let mut lines = Vec::new();
        write_lines(&mut lines, 7, &book, &of).unwrap();
        let lines: Vec<serde_json::Value> = lines
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        let line = |task, seed, row, right: serde_json::Value, answer: serde_json::Value| serde_json::json!({ "night": 7, "task": task, "seed": seed, "row": row, "right": right, "answer": answer });
        let null = serde_json::Value::Null;
        assert_eq!(
            lines[..2],
            [line("mail", 2, 3, "spam".into(), "ham".into()), line("mail", 2, 5, "ham".into(), "ham".into())]
        );
        assert_eq!(
            lines[2..],
            [line("warmth", 1, 0, 1.5.into(), 1.25.into()), line("warmth", 1, 1, (-2.0).into(), null)]
        );
        let again = read(&path, &of).unwrap();
        assert_eq!(again.0[&("mail".parse().unwrap(), 2)], book.0[&("mail".parse().unwrap(), 2)]);
        let Answers::Numbers(given) = &again.0[&("warmth".parse().unwrap(), 1)].given else { panic!("numbers") };
        assert!((given[0] - 1.25).abs() < 1e-12 && given[1].is_nan());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.parquet");
        let told = || graftwork_shared::cause::told(read(&path, &|_| Vec::new()).unwrap_err().as_ref());
        assert!(told().contains("answers.parquet cannot be read"), "{}", told());
        let mut book = Book::default();
        let numbers: String =
            (0..500).map(|row| format!("{{\"row\":{row},\"label\":{row}.5,\"prediction\":{row}.25}}\n")).collect();
        book.0.insert(("warmth".parse().unwrap(), 1), Asked::read(numbers.as_bytes(), &[]).unwrap());
        let mut writer = Writer::create(&path).unwrap();
        writer.add(7, &book, &|_| Vec::new()).unwrap();
        writer.finish().unwrap();
        assert_eq!(read(&path, &|_| Vec::new()).unwrap(), book);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(told().contains("answers.parquet cannot be read: "), "{}", told());
    }

    #[test]
    fn a_damaged_line_is_named() {
        let labels = vec!["ham".to_owned()];
        let broken =
            Asked::read(b"{\"row\":0,\"label\":\"ham\",\"prediction\":\"ham\"}\n{\"row\"", &labels).unwrap_err();
        assert_eq!(broken.to_string(), "line 2");
        let strange = Asked::read(b"{\"row\":0,\"label\":\"eggs\",\"prediction\":\"ham\"}\n", &labels).unwrap_err();
        assert!(format!("{strange:#}").contains("\"eggs\" is none of the classes ham"), "{strange:#}");
        assert!(Asked::read(b"{\"row\":0,\"label\":1,\"prediction\":\"ham\"}\n", &labels).is_err());
    }
}
