//! Prediction heads: `head_config.json` and its weights, in the folder of an adapter or in one of their own.
//!
//! Flexible classification heads are read and written; the fixed heads of `…ForSequenceClassification` are read and
//! become flexible ones. A head with one output is a regression, as in the peer.

use std::path::Path;

use graftwork_shared::head::{Head, HeadActivation, HeadOutput};
use serde_json::{Map, Value, json};

use super::{
    Files, ModelReference,
    options::Options,
    source::{Source, WeightFiles},
};
use crate::{
    error::ModelError,
    names::{head_shapes, head_sizes},
    python_json::{self, Keys},
    rename::owner,
    safetensors,
    tensor::{Tensors, check_tensors},
    torch_file,
    trunk::TrunkDescription,
};

pub(crate) const CONFIG: &str = "head_config.json";
const WEIGHTS: WeightFiles = WeightFiles { safetensors: "model_head.safetensors", torch: "pytorch_model_head.bin" };

/// A prediction head as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadFolder {
    /// Its name, which is part of its tensors' names.
    pub name: String,
    /// The base model it was trained on.
    pub model: ModelReference,
    /// Its options.
    pub head: Head,
    /// Its weights, `heads.NAME.…`.
    pub tensors: Tensors,
}

impl HeadFolder {
    /// Reads a folder that holds a head.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        Self::needed(Source::Folder(folder))
    }

    pub(crate) fn needed(source: Source) -> Result<Self, ModelError> {
        source.needed_json(CONFIG, "this folder does not hold a head")?;
        Ok(Self::load(source, None)?.expect("its configuration was found"))
    }

    /// The head of a folder, or `None` when it has none. `fallback` names a fixed head, which has no name of its own.
    pub(crate) fn load(source: Source, fallback: Option<&str>) -> Result<Option<Self>, ModelError> {
        let Some(value) = source.json(CONFIG)? else { return Ok(None) };
        let file = source.label(CONFIG);
        let envelope = Options::of(&value, &file)?;
        let model = ModelReference::parse(&envelope)?;
        let (tensors, weights_file) = source.weights(&WEIGHTS)?;
        let (name, head, mut tensors) = match envelope.get("config") {
            Some(config) => {
                let head = parse_head(&Options::of(config, &file)?)?;
                (envelope.text("name")?.to_owned(), head, tensors)
            }
            None => fixed_head(&envelope, &model, tensors, fallback.unwrap_or("head"))?,
        };
        // The peer selects by a text inside the name, so that a file for "a" may hold tensors of "a2" too.
        tensors.retain(|tensor, _| owner(tensor) == Some(&name));
        let shapes = head_sizes(&head, model.hidden_size as usize, &name)?;
        check_tensors(&tensors, &shapes, &weights_file, &format!("head \"{name}\""))?;
        Ok(Some(Self { name, model, head, tensors }))
    }

    /// Checks type, width and shapes against a trunk.
    pub fn check(&self, trunk: &TrunkDescription) -> Result<(), ModelError> {
        self.model.check(trunk, CONFIG)?;
        let shapes = head_shapes(&self.head, trunk, &self.name)?;
        check_tensors(&self.tensors, &shapes, WEIGHTS.safetensors, &format!("head \"{}\"", self.name))
    }

    /// The folder's files, weights in both formats.
    pub fn files(&self) -> Result<Files, ModelError> {
        let shapes = head_sizes(&self.head, self.model.hidden_size as usize, &self.name)?;
        check_tensors(&self.tensors, &shapes, WEIGHTS.safetensors, &format!("head \"{}\"", self.name))?;
        let envelope = self.model.envelope(&self.name, &write_head(&self.head));
        let config = python_json::to_bytes(&Value::Object(envelope), Keys::Sorted);
        let torch = torch_file::write(&self.tensors, &[].into(), "pytorch_model_head");
        Ok(vec![
            (CONFIG.to_owned(), config),
            (WEIGHTS.safetensors.to_owned(), safetensors::write(&self.tensors, &[].into())),
            (WEIGHTS.torch.to_owned(), torch.map_err(|source| source.of(WEIGHTS.torch))?),
        ])
    }
}

fn parse_head(options: &Options) -> Result<Head, ModelError> {
    if options.get("head_type").and_then(Value::as_str) != Some("classification") {
        return Err(options.wrong("head_type", "implemented is \"classification\" (with one label it is a regression)"));
    }
    let layers = options.size("layers", Some(2))?;
    let activation = match options.get("activation_function") {
        None if layers == 1 => HeadActivation::Tanh,
        _ => options.typed("activation_function", None, "implemented are \"tanh\", \"relu\" and \"gelu\"")?,
    };
    Ok(Head {
        output: parse_output(options)?,
        layers,
        activation,
        dropout: options.dropout("dropout_prob")?,
        use_pooler: options.flag("use_pooler", Some(false))?,
        bias: options.flag("bias", Some(true))?,
    })
}

/// `num_labels` and `label2id`: names in the order of their ids.
fn parse_output(options: &Options) -> Result<HeadOutput, ModelError> {
    let map = options.get("label2id").map(|value| value.as_object().ok_or_else(|| options.wrong("label2id", NEEDED)));
    let map = map.transpose()?;
    let count = match (options.get("num_labels"), map) {
        (None, Some(map)) => map.len(),
        (None, None) => 2,
        _ => options.size("num_labels", None)? as usize,
    };
    if count == 1 {
        return Ok(HeadOutput::Regression);
    }
    let Some(map) = map else {
        return Ok(HeadOutput::Classification { labels: (0..count).map(|id| format!("LABEL_{id}")).collect() });
    };
    if map.len() != count {
        return Err(options.wrong("label2id", &format!("num_labels is {count}, as many labels are needed")));
    }
    let mut labels = vec![None; count];
    for (label, id) in map {
        let id = id.as_u64().or_else(|| id.as_str()?.parse().ok()).and_then(|id| usize::try_from(id).ok());
        let slot = id.and_then(|id| labels.get_mut(id)).filter(|slot| slot.is_none());
        *slot.ok_or_else(|| options.wrong("label2id", NEEDED))? = Some(label.clone());
    }
    let labels = labels.into_iter().map(|label| label.expect("as many labels as ids, and none twice")).collect();
    Ok(HeadOutput::Classification { labels })
}

const NEEDED: &str = "labels with the ids from 0, each once, are needed";

fn write_head(head: &Head) -> Value {
    let labels: Map<String, Value> = match &head.output {
        HeadOutput::Classification { labels } => {
            labels.iter().zip(0..).map(|(l, id): (_, u64)| (l.clone(), id.into())).collect()
        }
        HeadOutput::Regression => [("LABEL_0".to_owned(), Value::from(0))].into_iter().collect(),
    };
    json!({
        "activation_function": head.activation,
        "bias": head.bias,
        "dropout_prob": head.dropout,
        "head_type": "classification",
        "label2id": labels,
        "layers": head.layers,
        "num_labels": head.outputs(),
        "use_pooler": head.use_pooler,
    })
}

/// A head of a model class with one fixed head, as a flexible head called `name`.
fn fixed_head(
    envelope: &Options,
    model: &ModelReference,
    tensors: Tensors,
    name: &str,
) -> Result<(String, Head, Tensors), ModelError> {
    let (layers, modules, use_pooler): (u32, &[(&str, u32)], bool) = match model.model_class.as_str() {
        "BertForSequenceClassification" => (1, &[("classifier", 1)], true),
        "RobertaForSequenceClassification" => (2, &[("classifier.dense", 1), ("classifier.out_proj", 4)], false),
        _ => {
            let allowed =
                "without \"config\" it must be BertForSequenceClassification or RobertaForSequenceClassification";
            return Err(envelope.wrong("model_class", allowed));
        }
    };
    let head = Head { layers, use_pooler, ..Head::new(parse_output(envelope)?) };
    let renamed = |tensor: String| {
        modules.iter().find_map(|(module, index)| {
            let rest = tensor.strip_prefix(module)?.strip_prefix('.')?;
            Some(format!("heads.{name}.{index}.{rest}"))
        })
    };
    let tensors = tensors.into_iter().filter_map(|(tensor, values)| Some((renamed(tensor)?, values))).collect();
    Ok((name.to_owned(), head, tensors))
}
