//! A base model in a folder: configuration, weights and tokenizer, checked before anything is trained on them.
//!
//! Opening reads headers only. Weights are `model.safetensors`, the shards of `model.safetensors.index.json`, or
//! `pytorch_model.bin`, in this order of preference. Tensor names may carry the base prefix (`bert.`) or not, and
//! layer norms may have the names of the first releases (`gamma`, `beta`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use graftwork_shared::digest::{Digest, Hasher};
use serde_json::Value;

use crate::{
    error::{FormatError, ModelError},
    safetensors, torch_file,
    trunk::TrunkDescription,
    weights::{Mapped, MappedWeights, TrunkTensor},
};

const SAFETENSORS: &str = "model.safetensors";
const SAFETENSORS_INDEX: &str = "model.safetensors.index.json";
const TORCH: &str = "pytorch_model.bin";
const TOKENIZER: &str = "tokenizer.json";

/// A base model whose files are present and fit its configuration.
#[derive(Clone, Debug)]
pub struct BaseModel {
    /// Where it lies.
    pub folder: PathBuf,
    /// Its sizes.
    pub description: TrunkDescription,
    /// Its weight files.
    pub weights: Vec<PathBuf>,
    /// Its tokenizer.
    pub tokenizer: PathBuf,
    tensors: Vec<TrunkTensor>,
}

impl BaseModel {
    /// Opens a model folder and checks the architecture, the files, and every tensor's presence, type and shape.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let model = Self::open_without_tokenizer(folder)?;
        if !model.tokenizer.is_file() {
            let help = "write it with AutoTokenizer.from_pretrained(…).save_pretrained(folder) of transformers";
            return Err(ModelError::MissingFile { folder: folder.to_owned(), wanted: TOKENIZER.into(), help });
        }
        Ok(model)
    }

    /// Like [`Self::open`], for callers that bring token ids and need no tokenizer.
    pub fn open_without_tokenizer(folder: &Path) -> Result<Self, ModelError> {
        let description = TrunkDescription::read(folder)?;
        let weights = weight_files(folder)?;
        let tensors = locate(&description, &weights)?;
        let tokenizer = folder.join(TOKENIZER);
        Ok(Self { folder: folder.to_owned(), description, weights, tokenizer, tensors })
    }

    /// Whether `tokenizer.json` is one that Hugging Face's library reads. Reads the whole file.
    pub fn check_tokenizer(&self) -> Result<(), ModelError> {
        let read = tokenizers::Tokenizer::from_file(&self.tokenizer);
        read.map(drop).map_err(|error| ModelError::Tokenizer {
            file: self.tokenizer.display().to_string(),
            problem: error.to_string(),
        })
    }

    /// Every tensor of the trunk in the order of computation; the pooler's two come last where the model has one.
    pub fn tensors(&self) -> &[TrunkTensor] {
        &self.tensors
    }

    /// One tensor by its canonical name.
    pub fn tensor(&self, name: &str) -> Option<&TrunkTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Whether the model has a pooler, which heads with `use_pooler` read.
    pub fn has_pooler(&self) -> bool {
        self.tensor("pooler.dense.weight").is_some()
    }

    /// Maps the weight files.
    pub fn map(&self) -> Result<MappedWeights, ModelError> {
        Ok(MappedWeights::new(self.weights.iter().map(|path| Mapped::open(path)).collect::<Result<_, _>>()?))
    }

    /// Identity of the base model: SHA-256 over `"graftwork base model"`, a zero byte, and the JSON list of
    /// `[role, SHA-256 of the file]` with the roles `config.json`, `tokenizer.json` and, in the order of
    /// [`Self::weights`], the names of the weight files. Reads every byte of them.
    pub fn digest(&self) -> Result<Digest, ModelError> {
        let mut files = vec![self.folder.join("config.json"), self.tokenizer.clone()];
        files.extend(self.weights.iter().cloned());
        let mut parts = Vec::new();
        for path in files {
            let role = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let mut file = std::fs::File::open(&path).map_err(ModelError::io(&path))?;
            let mut hasher = Hasher::new();
            std::io::copy(&mut file, &mut hasher).map_err(ModelError::io(&path))?;
            parts.push((role, hasher.finish()));
        }
        Ok(Digest::of_value("graftwork base model", &parts))
    }
}

/// The weight files of a folder, in the order of preference.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = folder.join(SAFETENSORS);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join(SAFETENSORS_INDEX);
    if index.is_file() {
        return shards(folder, &index);
    }
    let torch = folder.join(TORCH);
    if torch.is_file() {
        return Ok(vec![torch]);
    }
    let wanted = format!("weights ({SAFETENSORS}, {SAFETENSORS_INDEX} or {TORCH})");
    let help = "download the model's weight file into it";
    Err(ModelError::MissingFile { folder: folder.to_owned(), wanted, help })
}

/// The files that an index of shards names.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let file = index.display().to_string();
    let bytes = std::fs::read(index).map_err(ModelError::io(index))?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|error| ModelError::Json { file: file.clone(), error })?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        let help = "an index of shards maps each tensor to its file there";
        return Err(ModelError::MissingKey { file, key: "weight_map".into(), help });
    };
    let mut names = BTreeSet::new();
    for value in map.values() {
        let name = value.as_str().filter(|name| Path::new(name).file_name().is_some_and(|base| base == *name));
        let Some(name) = name else {
            let allowed = "a shard is a file name without folders".to_owned();
            return Err(ModelError::Value { file, key: "weight_map".into(), found: value.to_string(), allowed });
        };
        names.insert(name.to_owned());
    }
    for name in &names {
        if !folder.join(name).is_file() {
            let help = "the index names it; download all shards";
            return Err(ModelError::MissingFile { folder: folder.to_owned(), wanted: name.clone(), help });
        }
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Finds every tensor that the trunk needs in the weight files.
fn locate(description: &TrunkDescription, weights: &[PathBuf]) -> Result<Vec<TrunkTensor>, ModelError> {
    let mut found = BTreeMap::new();
    let mut names = Vec::new();
    for (file, path) in weights.iter().enumerate() {
        let mapped = Mapped::open(path)?;
        let torch = path.extension().is_some_and(|extension| extension == "bin");
        let header = if torch { torch_file::header(&mapped.bytes) } else { safetensors::header(&mapped.bytes) };
        for (key, place) in header.map_err(|source| source.of(mapped.name.as_str()))? {
            let name = canonical(&key, description.prefix);
            if found.contains_key(&name) {
                let problem = format!("stands twice, the second time as \"{key}\"");
                return Err(ModelError::Tensor { file: mapped.name, tensor: name, problem });
            }
            found.insert(name, (file, key, place));
        }
        names.push(mapped.name);
    }
    let all = names.join(", ");
    let pooler = found.keys().any(|name| name.starts_with("pooler.dense."));
    let mut tensors = Vec::new();
    for needed in description.needed_tensors() {
        let Some((file, key, place)) = found.remove(&needed.name) else {
            if needed.optional && !pooler {
                continue;
            }
            let of = format!("of shape {:?}; the weights do not belong to this config.json", needed.shape);
            return Err(ModelError::MissingTensor { file: all, tensor: needed.name, of });
        };
        let file_name = &names[file];
        if place.shape != needed.shape {
            let (found, wanted) = (place.shape, needed.shape);
            return Err(ModelError::Shape { file: file_name.clone(), tensor: key, found, wanted });
        }
        let Some(dtype) = place.dtype.filter(|dtype| dtype.is_float()) else {
            let allowed = "F32, F16, BF16 and F64";
            return Err(FormatError::Dtype { tensor: key, found: place.dtype_name, allowed }.of(file_name.as_str()));
        };
        let (range, strides) = (place.range, place.strides);
        tensors.push(TrunkTensor { name: needed.name, shape: needed.shape, dtype, file, range, strides });
    }
    Ok(tensors)
}

/// A tensor's name without base prefix, with the modern names of layer norms.
fn canonical(key: &str, prefix: &str) -> String {
    let key = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or(key);
    match (key.strip_suffix("LayerNorm.gamma"), key.strip_suffix("LayerNorm.beta")) {
        (Some(stem), _) => format!("{stem}LayerNorm.weight"),
        (_, Some(stem)) => format!("{stem}LayerNorm.bias"),
        _ => key.to_owned(),
    }
}
