//! Why a model or an adapter cannot be read or written.
//!
//! Messages name the file, the tensor or the key, say what was found and what is allowed, and how to mend it.
//! Nothing here is worth a retry: the same bytes fail again. Only [`ModelError::Io`] may pass by itself.

use std::{io, path::PathBuf};

use graftwork_shared::composition::CompositionError;

/// A base model, adapter or fusion that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file system refused.
    #[error("cannot read or write {}: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A folder lacks a file.
    #[error("{} has no {wanted}; {help}", folder.display())]
    MissingFile {
        /// Which folder.
        folder: PathBuf,
        /// Which file or files.
        wanted: String,
        /// How to mend it.
        help: &'static str,
    },
    /// A weight file is damaged, or of a kind that is not read.
    #[error("{file}: {error}")]
    Format {
        /// Which file.
        file: String,
        /// What is wrong with its bytes.
        error: FormatError,
    },
    /// A JSON file cannot be parsed.
    #[error("{file} is not valid JSON: {error}")]
    Json {
        /// Which file.
        file: String,
        /// What the parser said.
        error: serde_json::Error,
    },
    /// A tokenizer that Hugging Face's library does not read.
    #[error("{file} is not a tokenizer: {problem}")]
    Tokenizer {
        /// Which file.
        file: String,
        /// What the library said.
        problem: String,
    },
    /// A JSON file lacks a key.
    #[error("{file} has no \"{key}\"; {help}")]
    MissingKey {
        /// Which file.
        file: String,
        /// Which key.
        key: String,
        /// What it should say.
        help: &'static str,
    },
    /// A key has a value that is not allowed or not implemented.
    #[error("{file}: \"{key}\" is {found}; {allowed}")]
    Value {
        /// Which file.
        file: String,
        /// Which key.
        key: String,
        /// Its value, as JSON.
        found: String,
        /// What is allowed, and how to mend it.
        allowed: String,
    },
    /// A tensor that the configuration asks for is absent.
    #[error("{file} has no tensor \"{tensor}\" {of}")]
    MissingTensor {
        /// Which file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Its shape, or what needs it.
        of: String,
    },
    /// A tensor that nothing asks for.
    #[error("{file} has the tensor \"{tensor}\", which {owner} has no place for")]
    UnknownTensor {
        /// Which file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The method or head.
        owner: String,
    },
    /// A tensor of another shape than the configuration asks for.
    #[error("{file}: tensor \"{tensor}\" has shape {found:?}, the configuration asks for {wanted:?}")]
    Shape {
        /// Which file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape asked for.
        wanted: Vec<usize>,
    },
    /// A tensor whose numbers cannot be used.
    #[error("{file}: tensor \"{tensor}\": {problem}")]
    Tensor {
        /// Which file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// Options that do not fit the trunk or each other.
    #[error("{0}")]
    Options(String),
    /// A composition that is not legal or cannot be stored.
    #[error("the composition cannot be used: {0}")]
    Composition(CompositionError),
}

impl From<CompositionError> for ModelError {
    fn from(error: CompositionError) -> Self {
        Self::Composition(error)
    }
}

/// What is wrong with the bytes of a weight file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the file itself announces.
    #[error("truncated: {what} needs {needed} bytes, there are {found}")]
    Truncated {
        /// Which part.
        what: String,
        /// Bytes announced.
        needed: u64,
        /// Bytes present.
        found: u64,
    },
    /// More bytes than the file itself announces.
    #[error("{extra} bytes follow the last tensor; the file is damaged or two files were joined")]
    Trailing {
        /// How many.
        extra: u64,
    },
    /// The header of a safetensors file.
    #[error("damaged safetensors header: {0}")]
    Header(String),
    /// A zip archive that cannot be read, or not a zip archive.
    #[error("not a readable torch file: {0}; save it again with torch.save of torch 1.6 or later")]
    Archive(String),
    /// A pickle that is damaged.
    #[error("damaged pickle at byte {position}: {problem}")]
    Pickle {
        /// Where.
        position: usize,
        /// What.
        problem: String,
    },
    /// A pickle instruction that state dictionaries do not need.
    #[error(
        "the pickle uses instruction {opcode:#04x} at byte {position}, which state dictionaries do not need; it is not executed"
    )]
    Opcode {
        /// Where.
        position: usize,
        /// The instruction's byte.
        opcode: u8,
    },
    /// A Python object that state dictionaries do not need.
    #[error("the pickle asks for the Python object {0}, which state dictionaries do not need; it is not executed")]
    Global(String),
    /// A tensor of a type that is not read.
    #[error("tensor \"{tensor}\" has type {found}; allowed are {allowed}")]
    Dtype {
        /// The tensor's name.
        tensor: String,
        /// Its type.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A tensor that lies outside of its storage or has an impossible shape.
    #[error("tensor \"{tensor}\": {problem}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
}

impl FormatError {
    /// The error of a file.
    pub fn of(self, file: impl Into<String>) -> ModelError {
        ModelError::Format { file: file.into(), error: self }
    }
}

impl ModelError {
    /// How to mend it, where the message does not say so itself.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Format { error: FormatError::Dtype { .. }, .. } => Some("save the weights in a type that is allowed"),
            Self::Format { .. } | Self::Json { .. } | Self::Tokenizer { .. } => Some("copy or download the file again"),
            Self::MissingTensor { .. } | Self::UnknownTensor { .. } | Self::Shape { .. } => {
                Some("copy or download the whole folder again: configuration and weights must be of one model")
            }
            Self::Value { key, .. } if key == "model_type" => Some("use a base model of one of these architectures"),
            _ => None,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, error }
    }
}
