//! Where the files of a folder come from (disk or memory), and how its weights are found.

use std::path::Path;

use serde_json::Value;

use crate::{error::ModelError, safetensors, tensor::Tensors, torch_file};

/// Names of one kind of weights.
pub(crate) struct WeightFiles {
    pub(crate) safetensors: &'static str,
    pub(crate) torch: &'static str,
}

/// A folder's files.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Folder(&'a Path),
    /// Files in memory, and the sub-folder that is meant (empty for the top).
    Memory(&'a [(String, Vec<u8>)], &'a str),
}

impl Source<'_> {
    /// A file's name for messages.
    pub(crate) fn label(&self, name: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(name).display().to_string(),
            Self::Memory(_, "") => name.to_owned(),
            Self::Memory(_, folder) => format!("{folder}/{name}"),
        }
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                match std::fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(ModelError::Io { path, error }),
                }
            }
            Self::Memory(files, _) => {
                let wanted = self.label(name);
                Ok(files.iter().find(|(path, _)| *path == wanted).map(|(_, bytes)| bytes.clone()))
            }
        }
    }

    fn missing(&self, wanted: String, help: &'static str) -> ModelError {
        let folder = match self {
            Self::Folder(folder) => folder.to_path_buf(),
            Self::Memory(_, folder) => Path::new(if folder.is_empty() { "the folder" } else { folder }).to_owned(),
        };
        ModelError::MissingFile { folder, wanted, help }
    }

    /// A JSON file, or `None` when the folder has none.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Value>, ModelError> {
        let Some(bytes) = self.get(name)? else { return Ok(None) };
        let value = serde_json::from_slice(&bytes);
        value.map(Some).map_err(|error| ModelError::Json { file: self.label(name), error })
    }

    /// A JSON file that must be there.
    pub(crate) fn needed_json(&self, name: &str, help: &'static str) -> Result<Value, ModelError> {
        self.json(name)?.ok_or_else(|| self.missing(name.to_owned(), help))
    }

    /// Weights from safetensors or, where there are none, from torch's format; and the name of the file.
    pub(crate) fn weights(&self, files: &WeightFiles) -> Result<(Tensors, String), ModelError> {
        if let Some(bytes) = self.get(files.safetensors)? {
            let label = self.label(files.safetensors);
            return Ok((safetensors::read(&bytes).map_err(|source| source.of(label.as_str()))?, label));
        }
        if let Some(bytes) = self.get(files.torch)? {
            let label = self.label(files.torch);
            return Ok((torch_file::read(&bytes).map_err(|source| source.of(label.as_str()))?, label));
        }
        let wanted = format!("{} or {}", files.safetensors, files.torch);
        Err(self.missing(wanted, "copy the whole folder that the library saved"))
    }
}
