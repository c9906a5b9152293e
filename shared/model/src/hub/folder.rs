//! Folders of one adapter or one fusion, each with an optional head.

use std::{collections::BTreeMap, path::Path};

use graftwork_shared::adapter::{AdapterConfig, FusionConfig};
use serde_json::{Value, json};

use super::{
    Files, HeadFolder, ModelReference,
    config::{self, Age},
    options::Options,
    source::{Source, WeightFiles},
};
use crate::{
    error::ModelError,
    names::{adapter_shapes, fusion_shapes, norm_alias},
    python_json::{self, Keys},
    rename::owner,
    safetensors,
    tensor::{Tensors, check_tensors},
    torch_file,
    trunk::TrunkDescription,
};

pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER: WeightFiles = WeightFiles { safetensors: "adapter.safetensors", torch: "pytorch_adapter.bin" };
pub(crate) const FUSION_CONFIG: &str = "adapter_fusion_config.json";
const FUSION: WeightFiles =
    WeightFiles { safetensors: "model_adapter_fusion.safetensors", torch: "pytorch_model_adapter_fusion.bin" };

/// Components of tensor names in the first releases, and what they are now.
const OLD_COMPONENTS: [(&str, &str); 5] = [
    ("attention_text_task_adapters", "adapters"),
    ("attention_text_lang_adapters", "adapters"),
    ("layer_text_task_adapters", "adapters"),
    ("layer_text_lang_adapters", "adapters"),
    ("invertible_lang_adapters", "invertible_adapters"),
];

/// An adapter as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFolder {
    /// Its name, which is part of its tensors' names.
    pub name: String,
    /// The base model it was trained on.
    pub model: ModelReference,
    /// Its method and options.
    pub config: AdapterConfig,
    /// Its weights under the names of [`adapter_shapes`].
    pub tensors: Tensors,
    /// The head that was trained with it.
    pub head: Option<HeadFolder>,
}

impl AdapterFolder {
    /// Reads a folder that holds an adapter.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        Self::load(Source::Folder(folder))
    }

    /// Reads an adapter from files in memory.
    pub fn parse(files: &[(String, Vec<u8>)]) -> Result<Self, ModelError> {
        Self::load(Source::Memory(files, ""))
    }

    pub(crate) fn load(source: Source) -> Result<Self, ModelError> {
        let value = source.needed_json(ADAPTER_CONFIG, "this folder does not hold an adapter")?;
        let file = source.label(ADAPTER_CONFIG);
        let envelope = Options::of(&value, &file)?;
        let model = ModelReference::parse(&envelope)?;
        let name = envelope.text("name")?.to_owned();
        let config =
            envelope.get("config").ok_or_else(|| envelope.missing("config", "it holds the adapter's options"))?;
        let options = Options::of(config, &file)?;
        // Options are read first as if an invertible adapter were there, so that a method which is not implemented is
        // named before its weights, which may be of a kind that is not read.
        let assumed = Age::of(&envelope, false);
        config::parse_adapter(&options, assumed)?;
        let (tensors, weights_file) = source.weights(&ADAPTER)?;
        let tensors = modern_names(tensors, model.prefix());
        let invertible = tensors.keys().any(|tensor| tensor.split('.').any(|part| part == "invertible_adapters"));
        let config = config::parse_adapter(&options, Age::of(&envelope, invertible))?;
        let tensors = without_aliases(tensors, &config, &weights_file)?;
        refuse_others(&tensors, &name, &weights_file)?;
        let head = HeadFolder::load(source, Some(&name))?;
        Ok(Self { name, model, config, tensors, head })
    }

    /// Checks type, width and every tensor's shape against a trunk, the head's too.
    pub fn check(&self, trunk: &TrunkDescription) -> Result<(), ModelError> {
        self.model.check(trunk, ADAPTER_CONFIG)?;
        let shapes = adapter_shapes(&self.config, trunk, &self.name)?;
        check_tensors(&self.tensors, &shapes, ADAPTER.safetensors, &format!("adapter \"{}\"", self.name))?;
        self.head.as_ref().map_or(Ok(()), |head| head.check(trunk))
    }

    /// The folder's files, weights in both formats, with the head's where there is one.
    pub fn files(&self) -> Result<Files, ModelError> {
        refuse_others(&self.tensors, &self.name, ADAPTER.safetensors)?;
        let envelope = self.model.envelope(&self.name, &config::write_adapter(&self.config)?);
        let config = python_json::to_bytes(&Value::Object(envelope), Keys::Sorted);
        let mut files = vec![(ADAPTER_CONFIG.to_owned(), config)];
        files.extend(weight_files(&self.tensors, &ADAPTER)?);
        if let Some(head) = &self.head {
            files.extend(head.files()?);
        }
        Ok(files)
    }
}

/// A fusion layer as it is stored. The adapters it reads are stored on their own.
#[derive(Clone, Debug, PartialEq)]
pub struct FusionFolder {
    /// Its name, which is part of its tensors' names: the adapters' names joined by commas, or one of its own.
    pub name: String,
    /// The adapters that it reads, in the order of attention.
    pub adapter_names: Vec<String>,
    /// The base model it was trained on.
    pub model: ModelReference,
    /// Its options.
    pub config: FusionConfig,
    /// Its weights under the names of [`fusion_shapes`].
    pub tensors: Tensors,
    /// The head that was trained with it.
    pub head: Option<HeadFolder>,
}

impl FusionFolder {
    /// Reads a folder that holds a fusion.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        Self::load(Source::Folder(folder))
    }

    /// Reads a fusion from files in memory.
    pub fn parse(files: &[(String, Vec<u8>)]) -> Result<Self, ModelError> {
        Self::load(Source::Memory(files, ""))
    }

    pub(crate) fn load(source: Source) -> Result<Self, ModelError> {
        let value = source.needed_json(FUSION_CONFIG, "this folder does not hold a fusion")?;
        let file = source.label(FUSION_CONFIG);
        let envelope = Options::of(&value, &file)?;
        let model = ModelReference::parse(&envelope)?;
        let name = envelope.text("name")?.to_owned();
        let config =
            envelope.get("config").ok_or_else(|| envelope.missing("config", "it holds the fusion's options"))?;
        let config = config::parse_fusion(&Options::of(config, &file)?)?;
        // Older files lack the list; the name is the adapters' names then.
        let by_name = name.split(',').map(str::to_owned).collect();
        let adapter_names = envelope.typed("adapter_names", Some(by_name), "a list of adapter names is needed")?;
        let (tensors, _) = source.weights(&FUSION)?;
        let mut tensors = modern_names(tensors, model.prefix());
        // The peer selects by a text inside the name, so that a file for "a,b" may hold tensors of "a,b,c" too.
        tensors.retain(|tensor, _| owner(tensor) == Some(&name));
        let head = HeadFolder::load(source, Some(&name))?;
        Ok(Self { name, adapter_names, model, config, tensors, head })
    }

    /// Checks type, width and every tensor's shape against a trunk and the fused adapters' options, the head's too.
    pub fn check(&self, adapters: &[&AdapterConfig], trunk: &TrunkDescription) -> Result<(), ModelError> {
        self.model.check(trunk, FUSION_CONFIG)?;
        let shapes = fusion_shapes(&self.config, adapters, trunk, &self.name)?;
        check_tensors(&self.tensors, &shapes, FUSION.safetensors, &format!("fusion \"{}\"", self.name))?;
        self.head.as_ref().map_or(Ok(()), |head| head.check(trunk))
    }

    /// The folder's files, weights in both formats, with the head's where there is one.
    pub fn files(&self) -> Result<Files, ModelError> {
        refuse_others(&self.tensors, &self.name, FUSION.safetensors)?;
        let mut envelope = self.model.envelope(&self.name, &config::write_fusion(&self.config));
        envelope.insert("adapter_names".to_owned(), json!(self.adapter_names));
        let config = python_json::to_bytes(&Value::Object(envelope), Keys::Sorted);
        let mut files = vec![(FUSION_CONFIG.to_owned(), config)];
        files.extend(weight_files(&self.tensors, &FUSION)?);
        if let Some(head) = &self.head {
            files.extend(head.files()?);
        }
        Ok(files)
    }
}

/// Weights in both formats. Layer norms with two names share a storage in torch's format and stand twice in
/// safetensors, which cannot share.
fn weight_files(tensors: &Tensors, names: &WeightFiles) -> Result<Files, ModelError> {
    let aliases: BTreeMap<String, String> =
        tensors.keys().filter_map(|name| Some((norm_alias(name)?, name.clone()))).collect();
    let stem = names.torch.trim_end_matches(".bin");
    let torch = torch_file::write(tensors, &aliases, stem).map_err(|source| source.of(names.torch))?;
    let mut repeated = tensors.clone();
    repeated.extend(aliases.into_iter().map(|(alias, target)| (alias, tensors[&target].clone())));
    Ok(vec![(names.safetensors.to_owned(), safetensors::write(&repeated, &[].into())), (names.torch.to_owned(), torch)])
}

/// Names as they are written today: with the base prefix, and without the first releases' components.
fn modern_names(tensors: Tensors, prefix: &str) -> Tensors {
    let modern = |name: &str| {
        let parts = name
            .split('.')
            .map(|part| OLD_COMPONENTS.iter().find(|(old, _)| *old == part).map_or(part, |(_, new)| new));
        let name = parts.collect::<Vec<_>>().join(".");
        if name.starts_with("encoder.") { format!("{prefix}.{name}") } else { name }
    };
    tensors.into_iter().map(|(name, tensor)| (modern(&name), tensor)).collect()
}

/// Tensors without the second names of trained layer norms, which must agree with the first.
fn without_aliases(mut tensors: Tensors, config: &AdapterConfig, file: &str) -> Result<Tensors, ModelError> {
    let AdapterConfig::Bottleneck(bottleneck) = config else { return Ok(tensors) };
    if !bottleneck.ln_before {
        return Ok(tensors);
    }
    let aliases: Vec<String> = tensors.keys().filter(|name| name.contains(".adapter_down.0.")).cloned().collect();
    for alias in aliases {
        let name = alias.replace(".adapter_down.0.", ".adapter_norm_before.");
        let tensor = tensors.remove(&alias).expect("the key was just listed");
        match tensors.get(&name) {
            Some(first) if *first != tensor => {
                let problem = format!("differs from \"{name}\", which is the same layer norm");
                return Err(ModelError::Tensor { file: file.to_owned(), tensor: alias, problem });
            }
            Some(_) => {}
            None => {
                tensors.insert(name, tensor);
            }
        }
    }
    Ok(tensors)
}

/// Tensors that belong to another adapter or fusion would be lost by whoever loads the folder.
fn refuse_others(tensors: &Tensors, name: &str, file: &str) -> Result<(), ModelError> {
    match tensors.keys().find(|tensor| owner(tensor) != Some(name)) {
        None => Ok(()),
        Some(tensor) => {
            let owner = format!("\"{name}\"");
            Err(ModelError::UnknownTensor { file: file.to_owned(), tensor: tensor.clone(), owner })
        }
    }
}
