//! Texts to predict for: from the command line, or row by row from a file, so that a large file never lies in memory.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use arrow_array::{Array, RecordBatch, StringArray};
use arrow_schema::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::PredictError;

/// One row's texts: one, or a pair.
pub(crate) type Texts = Vec<String>;

/// Rows in order.
pub(crate) type Rows = Box<dyn Iterator<Item = Result<Texts, PredictError>>>;

/// Rows of the command line.
pub(crate) fn given(text: &str, pair: Option<&str>) -> Result<Rows, PredictError> {
    let texts: Texts = std::iter::once(text).chain(pair).map(str::to_owned).collect();
    check("the text given with --text or --text-pair", &texts)?;
    Ok(Box::new(std::iter::once(Ok(texts))))
}

/// Rows of a file, whose form its ending tells. `columns` are those of the text, or of the pair of texts.
pub(crate) fn from_file(path: &Path, columns: &[String]) -> Result<Rows, PredictError> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    if ending != "txt" && columns.is_empty() {
        return Err(PredictError::Usage(format!(
            "{} has columns: name the one with the text by --column",
            path.display()
        )));
    }
    match ending.as_str() {
        "txt" if columns.is_empty() => lines(path),
        "txt" => Err(PredictError::Usage(format!("{} is plain text and has no columns", path.display()))),
        "csv" => separated(path, columns, b','),
        "tsv" => separated(path, columns, b'\t'),
        "jsonl" => objects(path, columns),
        "parquet" => parquet_rows(path, columns),
        _ => Err(PredictError::Usage(format!(
            "{}: the ending must be one of .txt, .csv, .tsv, .jsonl, .parquet",
            path.display()
        ))),
    }
}

fn open(path: &Path) -> Result<File, PredictError> {
    File::open(path).map_err(|error| PredictError::File { path: path.to_owned(), problem: error.to_string() })
}

fn row_error(path: &Path, row: u64, problem: impl Into<String>) -> PredictError {
    PredictError::Row { place: format!("{}, row {row} (from 0)", path.display()), problem: problem.into() }
}

fn check(place: &str, texts: &[String]) -> Result<(), PredictError> {
    match texts.iter().position(|text| text.trim().is_empty()) {
        None => Ok(()),
        Some(position) => {
            let which = if position == 0 { "the text is empty" } else { "the second text is empty" };
            Err(PredictError::Row { place: place.to_owned(), problem: which.to_owned() })
        }
    }
}

/// Counts rows from 0, as answers do, and refuses empty texts.
fn counted(path: PathBuf, rows: impl Iterator<Item = Result<Texts, String>> + 'static) -> Rows {
    Box::new((0..).zip(rows).map(move |(number, texts)| {
        let texts = texts.map_err(|problem| row_error(&path, number, problem))?;
        check(&format!("{}, row {number} (from 0)", path.display()), &texts)?;
        Ok(texts)
    }))
}

fn lines(path: &Path) -> Result<Rows, PredictError> {
    let lines = BufReader::new(open(path)?).lines();
    Ok(counted(path.to_owned(), lines.map(|line| Ok(vec![line.map_err(|error| error.to_string())?]))))
}

fn missing(path: &Path, column: &str, there: &[String]) -> PredictError {
    PredictError::File {
        path: path.to_owned(),
        problem: format!("there is no column {column:?}; the columns are {}", there.join(", ")),
    }
}

fn separated(path: &Path, columns: &[String], delimiter: u8) -> Result<Rows, PredictError> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(open(path)?);
    let wrong = |error: csv::Error| PredictError::File { path: path.to_owned(), problem: error.to_string() };
    let header: Vec<String> = reader.headers().map_err(wrong)?.iter().map(str::to_owned).collect();
    let position = |column: &String| header.iter().position(|name| name == column);
    let places = columns.iter().map(|column| position(column).ok_or_else(|| missing(path, column, &header)));
    let places = places.collect::<Result<Vec<usize>, _>>()?;
    let rows = reader.into_records().map(move |record| {
        let record = record.map_err(|error| error.to_string())?;
        Ok(places.iter().map(|&place| record.get(place).unwrap_or_default().to_owned()).collect())
    });
    Ok(counted(path.to_owned(), rows))
}

fn objects(path: &Path, columns: &[String]) -> Result<Rows, PredictError> {
    let columns = columns.to_vec();
    let rows = BufReader::new(open(path)?).lines().map(move |line| {
        let line = line.map_err(|error| error.to_string())?;
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&line).map_err(|error| format!("not a JSON object: {error}"))?;
        let text = |column: &String| match object.get(column) {
            Some(serde_json::Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("{column:?} is {other}, but a text is needed")),
            None => Err(format!("there is no {column:?}; there are {}", names(&object))),
        };
        columns.iter().map(text).collect()
    });
    Ok(counted(path.to_owned(), rows))
}

fn names(object: &serde_json::Map<String, serde_json::Value>) -> String {
    object.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn parquet_rows(path: &Path, columns: &[String]) -> Result<Rows, PredictError> {
    let wrong = |problem: String| PredictError::File { path: path.to_owned(), problem };
    let builder = ParquetRecordBatchReaderBuilder::try_new(open(path)?);
    let builder = builder.map_err(|error| wrong(format!("cannot be read as Parquet: {error}")))?;
    let there: Vec<String> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
    for column in columns {
        let field = builder.schema().field_with_name(column).map_err(|_| missing(path, column, &there))?;
        if !matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
            return Err(wrong(format!(
                "column {column:?} holds {}, but a text is needed",
                graftwork_dataset::type_in_words(field.data_type())
            )));
        }
    }
    let mask = parquet::arrow::ProjectionMask::columns(builder.parquet_schema(), columns.iter().map(String::as_str));
    let reader = builder.with_projection(mask).with_batch_size(1024).build();
    let reader = reader.map_err(|error| wrong(format!("cannot be read as Parquet: {error}")))?;
    let columns = columns.to_vec();
    let rows = reader.flat_map(move |batch| match batch {
        Ok(batch) => batch_rows(&batch, &columns),
        Err(error) => vec![Err(error.to_string())],
    });
    Ok(counted(path.to_owned(), rows))
}

fn batch_rows(batch: &RecordBatch, columns: &[String]) -> Vec<Result<Texts, String>> {
    let text_column = |name: &String| {
        let column = batch.column_by_name(name).ok_or_else(|| format!("there is no column {name:?}"))?;
        arrow_cast::cast(column, &DataType::Utf8).map_err(|error| error.to_string())
    };
    let columns = match columns.iter().map(text_column).collect::<Result<Vec<_>, String>>() {
        Ok(columns) => columns,
        Err(problem) => return vec![Err(problem)],
    };
    let cell = |column: &arrow_array::ArrayRef, row: usize| {
        let texts = column.as_any().downcast_ref::<StringArray>().ok_or("not a column of texts")?;
        if texts.is_null(row) { Err("the text is null".to_owned()) } else { Ok(texts.value(row).to_owned()) }
    };
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| cell(column, row)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_schema::{Field, Schema};

    use super::*;

    fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn read(path: &Path, columns: &[&str]) -> Result<Vec<Texts>, String> {
        let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
        let rows = from_file(path, &columns).map_err(|error| error.to_string())?;
        rows.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_gives_the_same_rows() {
        let expected = vec![vec!["one, two".to_owned()], vec!["drei".to_owned()]];
        let (_folder, path) = written("x.txt", b"one, two\ndrei\n");
        assert_eq!(read(&path, &[]).unwrap(), expected);
        let (_folder, path) = written("x.csv", b"id,text\n1,\"one, two\"\n2,drei\n");
        assert_eq!(read(&path, &["text"]).unwrap(), expected);
        let (_folder, path) = written("x.tsv", b"id\ttext\n1\tone, two\n2\tdrei\n");
        assert_eq!(read(&path, &["text"]).unwrap(), expected);
        let (_folder, path) = written("x.jsonl", b"{\"text\":\"one, two\"}\n{\"text\":\"drei\",\"n\":2}\n");
        assert_eq!(read(&path, &["text"]).unwrap(), expected);
        let (_folder, path) = written("x.parquet", &parquet_file(&[Some("one, two"), Some("drei")]));
        assert_eq!(read(&path, &["text"]).unwrap(), expected);
    }

    fn parquet_file(texts: &[Option<&str>]) -> Vec<u8> {
        let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)]));
        let column = Arc::new(StringArray::from(texts.to_vec()));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, schema, None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    #[test]
    fn bad_rows_and_columns_are_named() {
        let (_folder, path) = written("x.txt", b"one\n  \n");
        assert!(read(&path, &[]).unwrap_err().ends_with("x.txt, row 1 (from 0): the text is empty"));
        let (_folder, path) = written("x.csv", b"id,text\n1,a\n");
        assert!(read(&path, &["texts"]).unwrap_err().contains("no column \"texts\"; the columns are id, text"));
        assert!(read(&path, &[]).unwrap_err().contains("--column"));
        let (_folder, path) = written("x.csv", b"id,text\n1\n");
        assert!(read(&path, &["text"]).unwrap_err().contains("row 0"));
        let (_folder, path) = written("x.jsonl", b"{\"text\": 3}\n");
        assert!(read(&path, &["text"]).unwrap_err().contains("\"text\" is 3, but a text is needed"));
        let (_folder, path) = written("x.parquet", &parquet_file(&[Some("a"), None]));
        assert!(read(&path, &["text"]).unwrap_err().ends_with("row 1 (from 0): the text is null"));
        let (_folder, path) = written("x.parquet", b"PAR1 truncated");
        assert!(read(&path, &["text"]).unwrap_err().contains("cannot be read as Parquet"));
        let (_folder, path) = written("x.doc", b"");
        assert!(read(&path, &["text"]).unwrap_err().contains("the ending must be one of"));
    }

    #[test]
    fn a_text_of_spaces_is_empty() {
        assert!(given(" \t", None).is_err());
        assert!(given("a", Some("")).is_err());
        assert_eq!(given("a", Some("b")).unwrap().next().unwrap().unwrap(), ["a", "b"]);
    }
}
