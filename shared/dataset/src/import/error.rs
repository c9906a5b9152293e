//! What can go wrong while importing; file and line wherever there is one.

/// What can go wrong while importing. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// Options that contradict each other or are out of range.
    #[error("the import cannot run: {reason}")]
    Options {
        /// What is wrong.
        reason: String,
    },
    /// An input that names nothing.
    #[error("input {input:?} matches nothing; {nearby}")]
    NoMatch {
        /// The path, glob or member.
        input: String,
        /// What there is instead.
        nearby: String,
    },
    /// An input or archive that cannot be read.
    #[error("cannot read {file}: {detail}")]
    Unreadable {
        /// The file.
        file: String,
        /// What went wrong.
        detail: String,
    },
    /// An ending that tells no format.
    #[error(
        "cannot tell the format of {file} by its ending; name the format: csv, tsv, json_lines or documents, and for an archive its member, as in FILE.zip!MEMBER"
    )]
    UnknownFormat {
        /// The file.
        file: String,
    },
    /// A record that is no record.
    #[error("{file} line {line} is malformed: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// The line.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// Bytes that are no UTF-8.
    #[error("{file} line {line} is not UTF-8; use encoding utf-8-or-latin-1 if it may be Latin-1")]
    NotUtf8 {
        /// The file.
        file: String,
        /// The line.
        line: u64,
    },
    /// A field that is not there.
    #[error("{file} has no field {column:?}; it has {columns}{hint}")]
    MissingColumn {
        /// The file.
        file: String,
        /// The field.
        column: String,
        /// The fields there are.
        columns: String,
        /// A did-you-mean, or nothing.
        hint: String,
    },
    /// A label that the options do not provide for.
    #[error("{file} line {line} has label {value:?} in field {column:?}; {allowed}")]
    Label {
        /// The file.
        file: String,
        /// The line.
        line: u64,
        /// The field.
        column: String,
        /// The value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// A class of the stated order that no row has.
    #[error("no row has class {label:?}, although the order of classes names it; correct its spelling or remove it")]
    UnusedLabel {
        /// The class.
        label: String,
    },
    /// A split name that is none.
    #[error(
        "{file} line {line} is of split {value:?}; allowed are \"train\", \"validation\", \"valid\", \"dev\" and \"test\""
    )]
    Split {
        /// The file.
        file: String,
        /// The line.
        line: u64,
        /// The value.
        value: String,
    },
    /// A split without rows.
    #[error("the {split} split holds none of {rows} rows; change its share, the seed or the group column")]
    EmptySplit {
        /// The split.
        split: String,
        /// Rows in all.
        rows: u64,
    },
    /// A target folder that is not ours to replace.
    #[error("{folder} exists and holds no import; choose another folder or remove it")]
    FolderInUse {
        /// The folder.
        folder: String,
    },
    /// A file that cannot be written.
    #[error("cannot write {file}: {detail}")]
    Unwritable {
        /// The file.
        file: String,
        /// What went wrong.
        detail: String,
    },
    /// A recipe file that cannot be read as one.
    #[error("recipe file {file} is not one: {detail}")]
    RecipeFile {
        /// The file.
        file: String,
        /// What is wrong, with line and column.
        detail: String,
    },
    /// A recipe that the file does not have.
    #[error("there is no recipe {name:?}; there are {names}{hint}")]
    NoRecipe {
        /// The name.
        name: String,
        /// The names there are.
        names: String,
        /// A did-you-mean, or nothing.
        hint: String,
    },
}

impl ImportError {
    pub(crate) fn unreadable(file: &str, error: impl std::fmt::Display) -> Self {
        Self::Unreadable { file: file.to_owned(), detail: error.to_string() }
    }

    pub(crate) fn unwritable(file: &std::path::Path, error: impl std::fmt::Display) -> Self {
        Self::Unwritable { file: file.display().to_string(), detail: error.to_string() }
    }
}
