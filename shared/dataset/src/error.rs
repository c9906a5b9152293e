//! What can be wrong with data: each error names its place, what was found, what is allowed and how to mend it.
//!
//! No message may hold a secret: locations with credentials inside are refused before they can reach a message.

use graftwork_shared::{assignment::Blame, credentials::CredentialError};

/// What can be wrong with data. Rows are counted from 0 within their file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// A glob without a match.
    #[error("no file matches {pattern:?}; {nearby}")]
    NoMatch {
        /// The glob.
        pattern: String,
        /// What there is instead.
        nearby: String,
    },
    /// A source list without entries.
    #[error("the source names no file; give at least one path, glob, folder or URL")]
    NoSource,
    /// A path or URL that names nothing.
    #[error("{location} does not exist; {nearby}")]
    MissingFile {
        /// The path or URL.
        location: String,
        /// What there is instead.
        nearby: String,
    },
    /// A folder without shards.
    #[error("folder {location} holds no .parquet file directly; {nearby}")]
    EmptyFolder {
        /// The folder.
        location: String,
        /// What there is instead.
        nearby: String,
    },
    /// One file named by two entries: its rows would be trained twice.
    #[error("{location} is named twice by the source, so its rows would count twice; name it once")]
    NamedTwice {
        /// The path or URL.
        location: String,
    },
    /// A location that cannot be read as one.
    #[error("{location:?} is not a place for data: {reason}")]
    Location {
        /// The location, without credentials.
        location: String,
        /// What is wrong and how to mend it.
        reason: String,
    },
    /// Credentials that are missing or malformed; never holds them.
    #[error("environment variable {variable} {found}; for {scheme}:// it must hold {expected}")]
    Credentials {
        /// The variable's name.
        variable: String,
        /// What was found.
        found: String,
        /// The URL scheme.
        scheme: String,
        /// What is allowed.
        expected: String,
    },
    /// A variable that the job may not name.
    #[error("{0}")]
    Forbidden(CredentialError),
    /// A store refused access.
    #[error("access to {location} was refused; {help}")]
    Refused {
        /// The URL.
        location: String,
        /// How to mend it.
        help: String,
    },
    /// A store or disk that does not answer; trying again can help.
    #[error("cannot read {location}: {detail}")]
    Unreachable {
        /// The path or URL.
        location: String,
        /// What the store said.
        detail: String,
    },
    /// A file without rows.
    #[error("{location} is an empty shard: 0 rows; remove it from the source or write it again")]
    EmptyShard {
        /// The file.
        location: String,
    },
    /// Shards that do not fit together.
    #[error("{second} has another schema than {first}: {difference}; all shards of a source need the same columns")]
    SchemaDiffers {
        /// The file whose schema counts.
        first: String,
        /// The file that differs.
        second: String,
        /// The first difference.
        difference: String,
    },
    /// A file that was cut off, or is no Parquet file.
    #[error("{location} is {bytes} bytes and not a whole Parquet file: {missing}; copy or write it again")]
    Truncated {
        /// The file.
        location: String,
        /// Its size.
        bytes: u64,
        /// What is missing.
        missing: String,
    },
    /// A footer that cannot be read.
    #[error("{location} has a damaged Parquet footer: {detail}; copy or write the file again")]
    DamagedFooter {
        /// The file.
        location: String,
        /// What the decoder said.
        detail: String,
    },
    /// A page that cannot be read.
    #[error("{location} is damaged in row group {row_group} (from 0): {detail}; copy or write the file again")]
    DamagedPage {
        /// The file.
        location: String,
        /// The row group.
        row_group: usize,
        /// What the decoder said.
        detail: String,
    },
    /// A column that is not there.
    #[error("{location} has no {role} column {column:?}; it has {columns}{hint}")]
    MissingColumn {
        /// The file.
        location: String,
        /// `text`, `label` or `group`.
        role: String,
        /// The column that was asked for.
        column: String,
        /// The columns there are.
        columns: String,
        /// A did-you-mean, or nothing.
        hint: String,
    },
    /// A column of a type that does not fit its use.
    #[error("{role} column {column:?} of {location} holds {found}, but {wanted}; {help}")]
    ColumnType {
        /// The file.
        location: String,
        /// `text`, `label` or `group`.
        role: String,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// What is allowed.
        wanted: String,
        /// How to mend it.
        help: String,
    },
    /// A null where a value must be.
    #[error("row {row} (from 0) of {location} has no value in {role} column {column:?}; fill the row or drop it")]
    Null {
        /// The file.
        location: String,
        /// The row in the file.
        row: u64,
        /// `text`, `label` or `group`.
        role: String,
        /// The column.
        column: String,
    },
    /// A label that the head does not know.
    #[error("row {row} (from 0) of {location} has label {value} in column {column:?}; allowed are {allowed}")]
    UnknownLabel {
        /// The file.
        location: String,
        /// The row in the file.
        row: u64,
        /// The column.
        column: String,
        /// The label, quoted when it is a text.
        value: String,
        /// The label set.
        allowed: String,
    },
    /// A regression target that is no number.
    #[error(
        "row {row} (from 0) of {location} has {value} in label column {column:?}; a regression needs a finite number"
    )]
    NotFinite {
        /// The file.
        location: String,
        /// The row in the file.
        row: u64,
        /// The column.
        column: String,
        /// The value.
        value: String,
    },
    /// More classes than a classification can mean.
    #[error("label column {column:?} has more than {bound} different values, the first ones {examples}; {help}")]
    TooManyLabels {
        /// The column.
        column: String,
        /// The bound.
        bound: usize,
        /// Some of them.
        examples: String,
        /// How to mend it.
        help: String,
    },
    /// A split rule that cannot be followed.
    #[error(
        "split shares are validation {validation} and test {test}; each must be at least 0 and both together below 1"
    )]
    SplitShares {
        /// Share of validation, as text.
        validation: String,
        /// Share of test, as text.
        test: String,
    },
    /// A split without rows.
    #[error("the {split} split holds none of {rows} rows; {help}")]
    EmptySplit {
        /// The split's name, or `selected`.
        split: String,
        /// Rows before the rule.
        rows: u64,
        /// How to mend it.
        help: String,
    },
    /// A file that is another one than planning saw.
    #[error("{location} changed since planning: {change}; plan the job again to train on the new data")]
    Changed {
        /// The file.
        location: String,
        /// Old and new size, time or footer.
        change: String,
    },
    /// Rows that are others than in the first epoch although size, time and footer are the same.
    #[error(
        "rows of row group {row_group} (from 0) of {location} changed since the first epoch; train from the start on the data as it is now, with `graftwork run --again`"
    )]
    ChangedRows {
        /// The file.
        location: String,
        /// The row group.
        row_group: usize,
    },
    /// A manifest whose row count is not what its files hold.
    #[error("an epoch ended after {found} rows, but planning counted {expected}; plan the job again")]
    RowCount {
        /// Rows read.
        found: u64,
        /// Rows planned.
        expected: u64,
    },
    /// A cursor behind the last row.
    #[error("the checkpoint stands at row {cursor} of an epoch of {rows} rows; it belongs to other data")]
    Cursor {
        /// The cursor.
        cursor: u64,
        /// Rows of the epoch.
        rows: u64,
    },
    /// Row-group digests that were taken at another cursor.
    #[error("the checkpoint stands at row {cursor}, its row-group digests at row {consumed}; it was not written whole")]
    GroupsDoNotFit {
        /// The cursor.
        cursor: u64,
        /// Rows that the digests cover.
        consumed: u64,
    },
    /// A defect of this program.
    #[error("the reading task ended without a word; please report this")]
    TaskLost,
}

impl DataError {
    /// Whose fault it is: decides whether a retry can help.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Unreachable { .. } | Self::TaskLost => Blame::Machine,
            _ => Blame::User,
        }
    }
}

/// What a decoder says of bytes that it cannot read, without the names of its layers.
pub(crate) fn undecodable(error: &impl std::fmt::Display) -> String {
    const LAYERS: [&str; 6] =
        ["External: ", "Parquet error: ", "Parquet argument error: ", "Arrow: ", "EOF: ", "NYI: "];
    let text = error.to_string();
    let mut words = text.as_str();
    while let Some(rest) = LAYERS.iter().find_map(|layer| words.strip_prefix(layer)) {
        words = rest;
    }
    let mut letters = words.chars();
    // The first word of a sentence, not a name such as UTF-8.
    let lower = letters.next().filter(|_| letters.clone().next().is_some_and(char::is_lowercase));
    let words = lower.map_or_else(|| words.to_owned(), |first| format!("{}{}", first.to_lowercase(), letters.as_str()));
    format!("its bytes cannot be decoded ({words})")
}

/// Names in a list for people: quoted, at most twelve.
pub(crate) fn list_names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 12;
    let names: Vec<&str> = names.into_iter().collect();
    let mut shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    if names.len() > SHOWN {
        shown.push(format!("and {} more", names.len() - SHOWN));
    }
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

/// `; did you mean "x"?` for the nearest of the allowed words, or nothing.
pub(crate) fn did_you_mean<'a>(word: &str, allowed: impl IntoIterator<Item = &'a str>) -> String {
    let lower = word.to_lowercase();
    allowed
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, candidate)| format!("; did you mean {candidate:?}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_suggested_and_a_far_one_is_not() {
        assert_eq!(did_you_mean("lable", ["text", "label"]), "; did you mean \"label\"?");
        assert_eq!(did_you_mean("price", ["text", "label"]), "");
    }

    #[test]
    fn a_decoders_words_are_told_without_its_layers() {
        assert_eq!(
            undecodable(&"External: Data corruption detected"),
            "its bytes cannot be decoded (data corruption detected)"
        );
        assert_eq!(undecodable(&"Parquet error: EOF: eof"), "its bytes cannot be decoded (eof)");
        assert_eq!(undecodable(&"Arrow: UTF-8 ends early"), "its bytes cannot be decoded (UTF-8 ends early)");
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        assert!(list_names(names.iter().map(String::as_str)).ends_with("and 8 more"));
        assert_eq!(list_names([]), "none");
    }
}
