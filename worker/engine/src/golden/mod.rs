//! Comparison with numbers that the Python peer computed: hidden states, logits, loss and gradients, case by case.
//!
//! A folder holds `index.json` and, for each family, `base/` and one folder for each case with `config.json`,
//! `tensors.safetensors` and `io.safetensors`. Cases of an architecture or a method that this engine does not have, and
//! those that the peer itself cannot do, are listed as skipped with the reason; whatever else cannot be run is an error.

mod case;
mod compare;

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use graftwork_model::{BaseModel, FormatError, ModelError};
use serde_json::Value;
use tch::Device;

use crate::{EngineError, Keep, trunk::Trunk};

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
    #[error("{}: {error}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Box<FormatError>,
    },
    /// A base model cannot be read.
    #[error(transparent)]
    Model(Box<ModelError>),
    /// The engine refuses a case that it should know.
    #[error("{case}: {error}")]
    Engine {
        /// Which case.
        case: String,
        /// Why.
        error: Box<EngineError>,
    },
    /// The report cannot be written.
    #[error("cannot write the report: {0}")]
    Write(std::io::Error),
}

impl From<std::io::Error> for GoldenError {
    fn from(error: std::io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<ModelError> for GoldenError {
    fn from(error: ModelError) -> Self {
        Self::Model(Box::new(error))
    }
}

/// Bytes of memory for what a case keeps below its adapters: more than any of them takes.
const KEPT_BYTES: u64 = 1 << 24;

/// Runs every case of a folder on a device and writes a line for each. `true` when no case was beyond tolerance and one was run.
/// Cases without padding are also run from what was kept below their adapters, where anything is.
///
/// Tolerances: hidden states of real tokens, logits and loss 1e-5; each gradient 1e-6 + 1e-4 of its largest reference
/// value, and a cosine of at least 0.99999 where the reference is not zero.
///
/// # Errors
/// When files are missing or damaged, or the report cannot be written.
pub fn golden(folder: &Path, device: Device, out: &mut dyn Write) -> Result<bool, GoldenError> {
    // A plus in a name of a case is a p in the name of its folder.
    let mut trunks: BTreeMap<String, Result<Trunk, String>> = BTreeMap::new();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, value) in index(folder)? {
        let (family, case) = name.split_once('/').unwrap_or((name.as_str(), ""));
        if !trunks.contains_key(family) {
            trunks.insert(family.to_owned(), open(&folder.join(family).join("base"), device)?);
        }
        let trunk = &trunks[family];
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
                let report = compare::run(&case, trunk, &Keep { memory_bytes: KEPT_BYTES, shelves: None });
                let report =
                    report.map_err(|error| GoldenError::Engine { case: name.clone(), error: Box::new(error) })?;
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

/// Opens a base model; the inner error is the architecture that this engine does not have.
fn open(base: &Path, device: Device) -> Result<Result<Trunk, String>, GoldenError> {
    let model = match BaseModel::open_without_tokenizer(base) {
        Err(ModelError::Value { key, found, .. }) if key == "model_type" => {
            return Ok(Err(format!("architecture {found} is not implemented")));
        }
        model => model?,
    };
    let case = base.display().to_string();
    let refused = |error| GoldenError::Engine { case, error: Box::new(error) };
    Trunk::open(&model, device).map(Ok).map_err(refused)
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
    use std::sync::Arc;

    use graftwork_shared::{digest::Digest, training::Precision};

    use super::*;
    use crate::Shelves;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/peer")
    }

    fn run(folder: &Path) -> (bool, String) {
        let mut out = Vec::new();
        let passes = golden(folder, Device::Cpu, &mut out).unwrap();
        (passes, String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_peers_numbers_are_met() {
        let (passes, report) = run(&fixtures());
        assert!(passes, "{report}");
        assert!(report.contains("22 passed, 0 failed, 1 skipped"), "{report}");
    }

    /// Every recorded case with its base model.
    fn cases() -> Vec<(String, case::Case, Trunk)> {
        let run = index(&fixtures()).unwrap().into_iter().filter(|(_, value)| !value.is_string());
        let open = |(name, _): (String, Value)| {
            let (family, case) = name.split_once('/').unwrap();
            let folder = fixtures().join(family);
            let trunk = open(&folder.join("base"), Device::Cpu).unwrap().unwrap();
            let case = case::read(&folder.join(case.replace('+', "p")), &name).unwrap().unwrap();
            (name, case, trunk)
        };
        run.map(open).collect()
    }

    #[test]
    fn the_peers_numbers_are_met_from_shelves() {
        let folder = tempfile::tempdir().unwrap();
        let shelves = Arc::new(Shelves::new(folder.path().to_owned(), 1 << 26));
        let (mut from_shelves, mut from_memory) = (0, 0);
        for (name, case, trunk) in cases() {
            let shelves = Some((Arc::clone(&shelves), Digest::of(name.as_bytes())));
            let on_disk = compare::run(&case, &trunk, &Keep { memory_bytes: 0, shelves }).unwrap();
            let in_memory = Keep { memory_bytes: KEPT_BYTES, shelves: None };
            let in_memory = compare::run(&case, &trunk, &in_memory).unwrap();
            assert!(on_disk.passes() && in_memory.passes(), "{name}: {on_disk}\n{in_memory}");
            assert_eq!(on_disk.spared, in_memory.spared, "{name}");
            from_shelves += u32::from(on_disk.spared > 0);
            from_memory += u32::from(in_memory.spared > 0);
        }
        // Those whose lowest adapter stands at the end of its layer, without padding.
        assert!(from_shelves == from_memory && from_shelves >= 10, "{from_shelves} {from_memory}");
    }

    /// Largest differences from the peer's fp32 over all cases, and the smallest cosine of a gradient.
    fn apart(precision: Precision) -> ([f64; 3], f64) {
        let (mut largest, mut cosine, mut cases) = ([0.0_f64; 3], 1.0_f64, 0);
        for (name, case, trunk) in self::cases() {
            let trunk = trunk.in_precision(precision);
            let report = compare::run(&case, &trunk, &Keep::default()).unwrap();
            for (largest, found) in largest.iter_mut().zip([report.hidden, report.logits, report.loss]) {
                assert!(found.is_finite(), "{name}");
                *largest = largest.max(found);
            }
            cosine = cosine.min(report.cosine);
            cases += 1;
        }
        assert_eq!(cases, 22);
        (largest, cosine)
    }

    /// Hidden states are of about 1 behind a layer norm, and a bf16 factor is off by up to 1/512 of itself, an fp16 one by
    /// 1/4096.
    #[test]
    fn the_peers_numbers_are_near_in_fewer_bits() {
        for (precision, hidden, logits, direction) in
            [(Precision::Bf16, 6e-2, 2e-2, 0.99), (Precision::Fp16, 8e-3, 3e-3, 0.9999)]
        {
            let ([of_hidden, of_logits, of_loss], cosine) = apart(precision);
            let found =
                format!("{precision}: hidden {of_hidden:.1e} logits {of_logits:.1e} loss {of_loss:.1e} {cosine}");
            assert!(of_hidden > 1e-5, "computed in fp32? {found}");
            assert!(of_hidden < hidden && of_logits < logits && of_loss < logits && cosine > direction, "{found}");
        }
    }

    #[test]
    fn cases_that_the_peer_cannot_do_are_skipped_with_its_reason() {
        let (_, report) = run(&fixtures());
        assert!(report.contains("skipped: peer error: NotImplementedError"), "{report}");
    }

    /// A folder with one case, some bytes of one recorded tensor replaced.
    fn damaged(tensor: &str, bytes: &[u8]) -> tempfile::TempDir {
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
        let mut file = std::fs::read(fixtures().join(path)).unwrap();
        let header = u64::from_le_bytes(file[..8].try_into().unwrap());
        let text = String::from_utf8(file[8..8 + usize::try_from(header).unwrap()].to_vec()).unwrap();
        let info: Value = serde_json::from_str(&text).unwrap();
        let start = usize::try_from(info[tensor]["data_offsets"][0].as_u64().unwrap() + 8 + header).unwrap();
        file[start..start + bytes.len()].copy_from_slice(bytes);
        std::fs::write(folder.path().join(path), file).unwrap();
        folder
    }

    #[test]
    fn numbers_beyond_tolerance_and_nan_fail_the_folder() {
        let gradient = "grad.bert.encoder.layer.0.output.adapters.a.adapter_up.weight";
        for (tensor, value, said) in [
            (gradient, 0.5f32, "adapter_up.weight"),
            (gradient, f32::NAN, "adapter_up.weight"),
            ("last_hidden_state", f32::NAN, "hidden states differ by NaN"),
            ("logits.0", f32::NAN, "logits differ by NaN"),
            ("loss", f32::NAN, "loss differ by NaN"),
        ] {
            let (passes, report) = run(damaged(tensor, &value.to_le_bytes()).path());
            assert!(!passes && report.contains(said), "{tensor} {value}: {report}");
        }
    }

    #[test]
    fn a_base_model_that_cannot_be_read_is_an_error_and_an_unknown_architecture_is_not() {
        let folder = damaged("loss", &[]);
        let base = folder.path().join("bert/base");
        std::fs::remove_file(base.join("model.safetensors")).unwrap();
        assert!(golden(folder.path(), Device::Cpu, &mut Vec::new()).is_err());
        let config = std::fs::read_to_string(base.join("config.json")).unwrap();
        std::fs::write(base.join("config.json"), config.replace("\"bert\"", "\"gpt2\"")).unwrap();
        let (passes, report) = run(folder.path());
        assert!(!passes && report.contains("architecture \"gpt2\" is not implemented"), "{report}");
    }

    #[test]
    fn a_folder_without_an_index_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = golden(folder.path(), Device::Cpu, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("index.json"), "{error}");
    }
}
