//! Records of one input: CSV, TSV, lines with a bounded number of fields, JSON lines, or a document.
//!
//! Each record is handed on as the wanted fields by name, decoded and trimmed, with its line number for messages.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Read},
};

use super::{Encoding, Format, ImportError, Options, input::Input};
use crate::error::{did_you_mean, list_names};

/// Wanted fields of a record by name.
pub(crate) type Values<'a> = BTreeMap<&'a str, String>;

/// What is done with a record: its line, from 1, and its values.
pub(crate) type Each<'a> = dyn FnMut(u64, &Values<'_>) -> Result<(), ImportError> + 'a;

/// Fields that every input has besides its own.
const SOURCE: &str = "source";
const FOLDER: &str = "folder";

/// Reads an input record by record.
pub(crate) fn read(input: &Input, options: &Options, each: &mut Each<'_>) -> Result<(), ImportError> {
    let format = format_of(input, options)?;
    let reader = input.read()?;
    let mut tail = Tail { kept: VecDeque::new(), last: options.last };
    {
        let mut take = |line: u64, values: Values<'_>| tail.take(line, values, each);
        match format {
            Format::Documents => read_document(input, options, reader, &mut take)?,
            Format::JsonLines => read_json(input, options, reader, &mut take)?,
            Format::Csv | Format::Tsv if options.fields.is_some() => read_lines(input, options, reader, &mut take)?,
            Format::Csv | Format::Tsv => read_table(input, options, format, reader, &mut take)?,
        }
    }
    tail.kept.iter().try_for_each(|(line, values)| {
        each(*line, &values.iter().map(|(name, value)| (name.as_str(), value.clone())).collect())
    })
}

/// Passes records on, or keeps the last ones until the end.
struct Tail {
    kept: VecDeque<(u64, BTreeMap<String, String>)>,
    last: Option<u64>,
}

impl Tail {
    fn take(&mut self, line: u64, values: Values<'_>, each: &mut Each<'_>) -> Result<(), ImportError> {
        let Some(last) = self.last else { return each(line, &values) };
        self.kept.push_back((line, values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()));
        if self.kept.len() as u64 > last {
            self.kept.pop_front();
        }
        Ok(())
    }
}

type Take<'a> = dyn FnMut(u64, Values<'_>) -> Result<(), ImportError> + 'a;

fn format_of(input: &Input, options: &Options) -> Result<Format, ImportError> {
    if let Some(format) = options.format {
        return Ok(format);
    }
    let name = input.plain_name().to_lowercase();
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    match ending {
        "csv" => Ok(Format::Csv),
        "tsv" | "tab" => Ok(Format::Tsv),
        "jsonl" | "ndjson" => Ok(Format::JsonLines),
        _ => Err(ImportError::UnknownFormat { file: input.name.clone() }),
    }
}

/// Bytes as text, trimmed.
fn decode(input: &Input, options: &Options, line: u64, bytes: &[u8]) -> Result<String, ImportError> {
    match (std::str::from_utf8(bytes), options.encoding) {
        (Ok(text), _) => Ok(text.trim().trim_start_matches('\u{feff}').to_owned()),
        // Latin-1 is the first 256 code points.
        (Err(_), Encoding::Utf8OrLatin1) => {
            Ok(bytes.iter().map(|byte| char::from(*byte)).collect::<String>().trim().to_owned())
        }
        (Err(_), Encoding::Utf8) => Err(ImportError::NotUtf8 { file: input.name.clone(), line }),
    }
}

/// Where each wanted field lies in a record.
struct Places<'a> {
    own: Vec<(&'a str, usize)>,
    fixed: Vec<(&'a str, String)>,
}

impl<'a> Places<'a> {
    fn new(input: &Input, options: &'a Options, names: &[String]) -> Result<Self, ImportError> {
        let mut places = Self { own: Vec::new(), fixed: Vec::new() };
        for wanted in options.wanted() {
            match names.iter().position(|name| name == wanted) {
                Some(index) => places.own.push((wanted, index)),
                None if wanted == SOURCE => places.fixed.push((wanted, input.plain_name())),
                None if wanted == FOLDER => places.fixed.push((wanted, input.folder_name())),
                None => return Err(missing(input.name.clone(), wanted, names)),
            }
        }
        Ok(places)
    }

    fn values<'b>(
        &self,
        decode: impl Fn(&'b [u8]) -> Result<String, ImportError>,
        field: impl Fn(usize) -> &'b [u8],
    ) -> Result<Values<'a>, ImportError> {
        let mut values: Values<'a> = self.fixed.iter().map(|(name, value)| (*name, value.clone())).collect();
        for (name, index) in &self.own {
            values.insert(name, decode(field(*index))?);
        }
        Ok(values)
    }
}

fn missing(file: String, wanted: &str, names: &[String]) -> ImportError {
    let all = || names.iter().map(String::as_str).chain([SOURCE, FOLDER]);
    ImportError::MissingColumn {
        file,
        column: wanted.to_owned(),
        columns: list_names(all()),
        hint: did_you_mean(wanted, all()),
    }
}

fn read_table(
    input: &Input,
    options: &Options,
    format: Format,
    reader: Box<dyn Read>,
    take: &mut Take<'_>,
) -> Result<(), ImportError> {
    let mut reader = BufReader::new(reader);
    skip_lines(input, options, &mut reader)?;
    let lines = Lines { skipped: options.skip, crlf: ends_in_crlf(input, &mut reader)? };
    let (delimiter, quote) = if format == Format::Csv { (',', "\"") } else { ('\t', "") };
    let quote = options.quote.as_deref().unwrap_or(quote).bytes().next();
    let mut table = csv::ReaderBuilder::new()
        .delimiter(u8::try_from(options.delimiter.unwrap_or(delimiter)).unwrap_or(b','))
        .quoting(quote.is_some())
        .quote(quote.unwrap_or(b'"'))
        .has_headers(false)
        .from_reader(reader);
    let mut names = options.names.clone();
    let mut places: Option<Places<'_>> = None;
    let mut header = options.header.unwrap_or(names.is_empty());
    let mut record = csv::ByteRecord::new();
    loop {
        let more = table.read_byte_record(&mut record).map_err(|error| malformed(input, lines, &error))?;
        let line = lines.of(record.position());
        if !more {
            break;
        }
        if header {
            header = false;
            if names.is_empty() {
                names = record.iter().map(|field| decode(input, options, line, field)).collect::<Result<_, _>>()?;
            }
            continue;
        }
        let places = match &mut places {
            Some(places) => places,
            None => {
                check_names(input, &names, record.len(), line)?;
                places.insert(Places::new(input, options, &names)?)
            }
        };
        let field = |index: usize| record.get(index).unwrap_or_default();
        take(line, places.values(|bytes| decode(input, options, line, bytes), field)?)?;
    }
    // A table without records must still have the fields that are asked for.
    places.map_or_else(|| Places::new(input, options, &names).map(|_| ()), |_| Ok(()))
}

fn check_names(input: &Input, names: &[String], fields: usize, line: u64) -> Result<(), ImportError> {
    if names.len() == fields {
        return Ok(());
    }
    let reason = format!(
        "it has {fields} fields, but {} names are given: {}",
        names.len(),
        list_names(names.iter().map(String::as_str))
    );
    Err(ImportError::Malformed { file: input.name.clone(), line, reason })
}

/// How positions of the CSV reader become lines of the file.
#[derive(Clone, Copy)]
struct Lines {
    skipped: u64,
    /// The reader counts a line when it meets `\n`, but a record behind `\r\n` starts for it in front of that.
    crlf: bool,
}

impl Lines {
    fn of(self, position: Option<&csv::Position>) -> u64 {
        position.map_or(0, |at| at.line() + u64::from(self.crlf && at.byte() > 0)) + self.skipped
    }
}

fn ends_in_crlf(input: &Input, reader: &mut impl BufRead) -> Result<bool, ImportError> {
    let start = reader.fill_buf().map_err(|error| ImportError::unreadable(&input.name, error))?;
    Ok(start.iter().position(|&byte| byte == b'\n').is_some_and(|at| at > 0 && start[at - 1] == b'\r'))
}

fn malformed(input: &Input, lines: Lines, error: &csv::Error) -> ImportError {
    let line = lines.of(error.position());
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => ImportError::Malformed {
            file: input.name.clone(),
            line,
            reason: format!(
                "it has {len} fields where the lines before have {expected_len}; check delimiter and quotes"
            ),
        },
        csv::ErrorKind::Io(error) => ImportError::unreadable(&input.name, error),
        csv::ErrorKind::Utf8 { .. } => ImportError::NotUtf8 { file: input.name.clone(), line },
        _ => ImportError::Malformed { file: input.name.clone(), line, reason: "check delimiter and quotes".to_owned() },
    }
}

/// What is wrong with one line of JSON; its place is the column alone.
fn in_line(error: &serde_json::Error) -> String {
    let words = error.to_string();
    let what = words.split(" at line ").next().unwrap_or_default();
    if error.column() == 0 { what.to_owned() } else { format!("{what} at column {}", error.column()) }
}

fn skip_lines(input: &Input, options: &Options, reader: &mut impl BufRead) -> Result<(), ImportError> {
    let mut skipped = Vec::new();
    for _ in 0..options.skip {
        skipped.clear();
        reader.read_until(b'\n', &mut skipped).map_err(|error| ImportError::unreadable(&input.name, error))?;
    }
    Ok(())
}

/// Calls `each` with every line that is not empty, after `skip`.
fn lines(
    input: &Input,
    options: &Options,
    reader: Box<dyn Read>,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let mut reader = BufReader::new(reader);
    skip_lines(input, options, &mut reader)?;
    let mut bytes = Vec::new();
    for line in options.skip + 1.. {
        bytes.clear();
        let read = reader.read_until(b'\n', &mut bytes).map_err(|error| ImportError::unreadable(&input.name, error))?;
        if read == 0 {
            break;
        }
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if !text.iter().all(u8::is_ascii_whitespace) {
            each(line, text)?;
        }
    }
    Ok(())
}

fn read_lines(input: &Input, options: &Options, reader: Box<dyn Read>, take: &mut Take<'_>) -> Result<(), ImportError> {
    let delimiter = u8::try_from(options.delimiter.unwrap_or('\t')).unwrap_or(b'\t');
    let most = options.fields.unwrap_or(1);
    let mut names = options.names.clone();
    let mut header = options.header.unwrap_or(names.is_empty());
    let mut places: Option<Places<'_>> = None;
    lines(input, options, reader, |line, bytes| {
        let fields: Vec<&[u8]> = bytes.splitn(most, |byte| *byte == delimiter).collect();
        if header {
            header = false;
            if names.is_empty() {
                names = fields.iter().map(|field| decode(input, options, line, field)).collect::<Result<_, _>>()?;
            }
            return Ok(());
        }
        if fields.len() != most {
            let reason = format!("it has {} fields where {most} are asked for", fields.len());
            return Err(ImportError::Malformed { file: input.name.clone(), line, reason });
        }
        if places.is_none() {
            check_names(input, &names, most, line)?;
            places = Some(Places::new(input, options, &names)?);
        }
        let Some(places) = &places else { return Ok(()) };
        take(line, places.values(|bytes| decode(input, options, line, bytes), |index| fields[index])?)
    })
}

fn read_json(input: &Input, options: &Options, reader: Box<dyn Read>, take: &mut Take<'_>) -> Result<(), ImportError> {
    let wanted = options.wanted();
    lines(input, options, reader, |line, bytes| {
        let broken = |reason: String| ImportError::Malformed { file: input.name.clone(), line, reason };
        let text = decode(input, options, line, bytes)?;
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text)
            .map_err(|error| broken(format!("{}; each line must be one JSON object", in_line(&error))))?;
        let mut values = Values::new();
        for name in &wanted {
            let value = match object.get(*name) {
                None if *name == SOURCE => input.plain_name(),
                None if *name == FOLDER => input.folder_name(),
                None => {
                    let names: Vec<String> = object.keys().cloned().collect();
                    return Err(missing(format!("{} line {line}", input.name), name, &names));
                }
                Some(serde_json::Value::Null) => String::new(),
                Some(serde_json::Value::String(text)) => text.trim().to_owned(),
                Some(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => value.to_string(),
                Some(_) => {
                    return Err(broken(format!(
                        "field {name:?} is a list or an object; a text, number or boolean is allowed"
                    )));
                }
            };
            values.insert(name, value);
        }
        take(line, values)
    })
}

fn read_document(
    input: &Input,
    options: &Options,
    mut reader: Box<dyn Read>,
    take: &mut Take<'_>,
) -> Result<(), ImportError> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|error| ImportError::unreadable(&input.name, error))?;
    let names = ["text".to_owned()];
    let places = Places::new(input, options, &names)?;
    take(1, places.values(|bytes| decode(input, options, 1, bytes), |_| &bytes)?)
}
