//! Comparison with numbers that the Python peer computed: hidden states, logits, loss and gradients, case by case.
//!
//! A folder holds `index.json` and, for each family, `base/` and one folder for each case with `config.json`,
//! `tensors.safetensors` and `io.safetensors`. Cases that this engine does not have are listed as skipped with the
//! reason; they neither pass nor fail.

mod case;
mod compare;

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use graftwork_model::{BaseModel, FormatError, ModelError};
use serde_json::Value;

use crate::{EngineError, trunk::Trunk};

/// Why a comparison cannot be made at all.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// A file is missing or not what it should be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A weight file is damaged.
    #[error("{}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<FormatError>,
    },
    /// A base model cannot be read.
    #[error(transparent)]
    Model(Box<ModelError>),
    /// The engine refuses a case that it should know.
    #[error("{case}: {source}")]
    Engine {
        /// Which case.
        case: String,
        /// Why.
        source: Box<EngineError>,
    },
    /// The report cannot be written.
    #[error("cannot write the report: {0}")]
    Write(#[from] std::io::Error),
}

impl From<ModelError> for GoldenError {
    fn from(error: ModelError) -> Self {
        Self::Model(Box::new(error))
    }
}

/// Runs every case of a folder and writes a line for each. `true` when no case was beyond tolerance and one was run.
///
/// Tolerances: hidden states of real tokens, logits and loss 1e-5; each gradient 1e-6 + 1e-4 of its largest reference
/// value, and a cosine of at least 0.99999 where the reference is not zero.
///
/// # Errors
/// When files are missing or damaged, or the report cannot be written.
pub fn golden(folder: &Path, out: &mut dyn Write) -> Result<bool, GoldenError> {
    // A plus in a name of a case is a p in the name of its folder.
    let mut trunks: BTreeMap<String, Result<Trunk, String>> = BTreeMap::new();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, value) in index(folder)? {
        let (family, case) = name.split_once('/').unwrap_or((name.as_str(), ""));
        let trunk = trunks.entry(family.to_owned()).or_insert_with(|| open(&folder.join(family).join("base")));
        let ready = match (value, trunk) {
            (Value::String(error), _) => Err(error),
            (_, Err(reason)) => Err(reason.clone()),
            (_, Ok(trunk)) => {
                case::read(&folder.join(family).join(case.replace('+', "p")), &name)?.map(|case| (case, trunk))
            }
        };
        match ready {
            Err(reason) => {
                skipped += 1;
                writeln!(out, "{name:<28} skipped: {reason}")?;
            }
            Ok((case, trunk)) => {
                let report = compare::run(&case, trunk);
                let report =
                    report.map_err(|source| GoldenError::Engine { case: name.clone(), source: Box::new(source) })?;
                if report.passes() {
                    passed += 1;
                } else {
                    failed += 1;
                }
                writeln!(out, "{name:<28} {report}")?;
            }
        }
    }
    writeln!(out, "{passed} passed, {failed} failed, {skipped} skipped")?;
    Ok(failed == 0 && passed > 0)
}

fn open(base: &Path) -> Result<Trunk, String> {
    let model = BaseModel::open_without_tokenizer(base).map_err(|error| error.to_string())?;
    Trunk::open(&model, tch::Device::Cpu).map_err(|error| error.to_string())
}

fn index(folder: &Path) -> Result<serde_json::Map<String, Value>, GoldenError> {
    match json(&folder.join("index.json"))? {
        Value::Object(map) => Ok(map),
        _ => Err(GoldenError::File { path: folder.join("index.json"), what: "not a JSON object".to_owned() }),
    }
}

fn json(path: &Path) -> Result<Value, GoldenError> {
    let wrong = |what: String| GoldenError::File { path: path.to_owned(), what };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/peer")
    }

    fn run(folder: &Path) -> (bool, String) {
        let mut out = Vec::new();
        let passes = golden(folder, &mut out).unwrap();
        (passes, String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_peers_numbers_are_met() {
        let (passes, report) = run(&fixtures());
        assert!(passes, "{report}");
    }

    #[test]
    fn cases_that_the_peer_cannot_do_are_skipped_with_its_reason() {
        let (_, report) = run(&fixtures());
        assert!(report.contains("skipped: peer error: NotImplementedError"), "{report}");
    }

    #[test]
    fn a_gradient_beyond_tolerance_fails_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let copy = |path: &str| {
            let to = folder.path().join(path);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(fixtures().join(path), to).unwrap();
        };
        for file in ["bert/base/config.json", "bert/base/model.safetensors", "bert/seq_bn/config.json"] {
            copy(file);
        }
        copy("bert/seq_bn/tensors.safetensors");
        std::fs::write(folder.path().join("index.json"), r#"{"bert/seq_bn": {}}"#).unwrap();
        let path = "bert/seq_bn/io.safetensors";
        let mut bytes = std::fs::read(fixtures().join(path)).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let text = String::from_utf8(bytes[8..8 + usize::try_from(header).unwrap()].to_vec()).unwrap();
        let info: Value = serde_json::from_str(&text).unwrap();
        let key = "grad.bert.encoder.layer.0.output.adapters.a.adapter_up.weight";
        let start = usize::try_from(info[key]["data_offsets"][0].as_u64().unwrap() + 8 + header).unwrap();
        bytes[start..start + 4].copy_from_slice(&0.5f32.to_le_bytes());
        std::fs::write(folder.path().join(path), bytes).unwrap();
        let (passes, report) = run(folder.path());
        assert!(!passes && report.contains("adapter_up.weight"), "{report}");
    }

    #[test]
    fn a_folder_without_an_index_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = golden(folder.path(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("index.json"), "{error}");
    }
}
