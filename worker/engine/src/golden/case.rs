//! Reading one case: setup, inputs and the peer's results.

use std::{collections::BTreeMap, path::Path};

use graftwork_model::{Tensors, safetensors};
use graftwork_shared::{
    adapter::{AdapterConfig, Bottleneck, FusionConfig, Lora},
    composition::Composition,
    head::{Head, HeadOutput},
    id::Name,
};
use serde_json::{Map, Value};

use super::{GoldenError, json};
use crate::setup::{Setup, Trained};

/// One case as the peer ran it: four rows of at most eleven tokens, padded.
pub(super) struct Case {
    pub(super) setup: Setup,
    pub(super) skip_layers: Vec<u32>,
    pub(super) weights: Tensors,
    /// `[rows][padded length]`
    pub(super) ids: Vec<Vec<i64>>,
    /// Real tokens of each row.
    pub(super) lengths: Vec<usize>,
    pub(super) labels: Vec<i64>,
    /// `last_hidden_state`, `logits.N`, `loss` and `grad.NAME`.
    pub(super) results: Tensors,
}

/// Why a case has no setup here.
#[derive(Debug, PartialEq, Eq)]
enum NoSetup {
    /// A method that this engine does not have, which is no failure.
    NotImplemented(String),
    /// A description that cannot be read, which is.
    Wrong(String),
}

impl From<String> for NoSetup {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

/// Reads a case; the inner error is the method that this engine does not have.
pub(super) fn read(folder: &Path, name: &str) -> Result<Result<Case, String>, GoldenError> {
    let path = folder.join("config.json");
    let config = json(&path)?;
    let wrong = |what: String| GoldenError::File { path: path.clone(), what };
    let text = |key: &str| config.get(key).and_then(Value::as_str).ok_or_else(|| wrong(format!("no text {key:?}")));
    let (kind, composition) = (text("kind")?, text("composition")?);
    let adapters = config.get("adapters").and_then(Value::as_object).ok_or_else(|| wrong("no adapters".to_owned()))?;
    let setup = match setup(kind, composition, adapters) {
        Ok(setup) => setup,
        Err(NoSetup::NotImplemented(reason)) => return Ok(Err(reason)),
        Err(NoSetup::Wrong(what)) => return Err(wrong(what)),
    };
    let skip_layers = if kind == "skip" { vec![0] } else { Vec::new() };
    let io = folder.join("io.safetensors");
    let bytes = std::fs::read(&io).map_err(|error| GoldenError::File { path: io.clone(), what: error.to_string() })?;
    let format = |error| GoldenError::Format { path: io.clone(), error: Box::new(error) };
    let raw = safetensors::read_raw(&bytes).map_err(format)?;
    let whole = |key: &str| {
        let missing = || GoldenError::File { path: io.clone(), what: format!("no tensor {key:?} in case {name}") };
        let tensor = raw.get(key).ok_or_else(missing)?;
        let words = tensor.bytes.chunks_exact(8).map(|word| i64::from_le_bytes(word.try_into().expect("8 bytes")));
        Ok::<_, GoldenError>((tensor.shape.clone(), words.collect::<Vec<i64>>()))
    };
    let (shape, ids) = whole("input_ids")?;
    let (_, mask) = whole("attention_mask")?;
    let (_, labels) = whole("labels")?;
    let width = shape.last().copied().unwrap_or(1).max(1);
    let lengths = mask.chunks(width).map(|row| row.iter().filter(|&&bit| bit != 0).count()).collect();
    let floats = raw.iter().filter(|(_, tensor)| tensor.dtype.is_float());
    let results = floats.map(|(key, tensor)| {
        let values = tensor.dtype.to_f32(tensor.bytes).unwrap_or_default();
        (key.clone(), graftwork_model::HostTensor { shape: tensor.shape.clone(), values })
    });
    let results = results.collect();
    let weights = safetensors::read_file(&folder.join("tensors.safetensors"))?;
    let ids = ids.chunks(width).map(<[i64]>::to_vec).collect();
    Ok(Ok(Case { setup, skip_layers, weights, ids, lengths, labels, results }))
}

fn setup(kind: &str, composition: &str, configs: &Map<String, Value>) -> Result<Setup, NoSetup> {
    let composition = Parser { rest: composition }.block()?;
    let mut adapters = BTreeMap::new();
    for adapter in composition.adapters() {
        let config = configs.get(adapter.as_str()).ok_or_else(|| format!("adapter {adapter} is not described"))?;
        adapters.insert(adapter.clone(), adapter_config(config)?);
    }
    let mut fusions = BTreeMap::new();
    note_fusions(&composition, &mut fusions);
    let names: &[&str] = match kind {
        "parallel" => &["a", "b", "c"],
        "batchsplit" => &["a", "b"],
        _ => &["a"],
    };
    let labels = || ["0", "1", "2"].map(str::to_owned).to_vec();
    let head = || Head::new(HeadOutput::Classification { labels: labels() });
    let heads = names.iter().map(|name| Ok((name.parse::<Name>().map_err(|error| error.to_string())?, head())));
    let heads = heads.collect::<Result<Vec<_>, String>>()?;
    let mut setup = Setup { composition: Some(composition), adapters, fusions, heads, trained: Trained::default() };
    setup.trained = Trained::all(&setup);
    Ok(setup)
}

fn note_fusions(block: &Composition, fusions: &mut BTreeMap<String, FusionConfig>) {
    fusions.extend(block.fusion_name().map(|name| (name, FusionConfig::default())));
    block.children().iter().for_each(|child| note_fusions(child, fusions));
}

/// The peer's options as ours, or why this engine has no such method.
fn adapter_config(value: &Value) -> Result<AdapterConfig, NoSetup> {
    let get = |key: &str| value.get(key).filter(|value| !value.is_null());
    let typed = |error: serde_json::Error| format!("options that cannot be read ({error})");
    let lacks = |what: String| Err(NoSetup::NotImplemented(format!("{what} is not implemented")));
    match get("architecture").and_then(Value::as_str) {
        None => {
            let harmless = [Value::Bool(false), Value::from(0.0)];
            for key in ["phm_layer", "inv_adapter", "stochastic_depth", "cross_adapter"] {
                if let Some(set) = get(key).filter(|set| !harmless.contains(set)) {
                    return lacks(format!("{key} = {set}"));
                }
            }
            let bottleneck: Bottleneck = serde_json::from_value(value.clone()).map_err(typed)?;
            Ok(AdapterConfig::Bottleneck(bottleneck))
        }
        Some("lora") => {
            for key in ["vera_d", "vera_b"] {
                if get(key).is_some() {
                    return lacks("VeRA".to_owned());
                }
            }
            if get("use_dora").is_some_and(|flag| flag != false) {
                return lacks("DoRA".to_owned());
            }
            if get("composition_mode").is_some_and(|mode| mode != "add") {
                return lacks("IA3".to_owned());
            }
            let lora: Lora = serde_json::from_value(value.clone()).map_err(typed)?;
            Ok(AdapterConfig::Lora(lora))
        }
        Some(other) => lacks(format!("method {other}")),
    }
}

/// Reads a composition as the peer prints it, such as `Stack[c, Fuse[a, b]]`. Options that are not printed are those
/// of the script that makes the cases.
struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn block(&mut self) -> Result<Composition, String> {
        self.rest = self.rest.trim_start_matches([' ', '\'']);
        let end = self.rest.find(['[', ']', ',', '\'']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start_matches('\'');
        if !self.eat('[') {
            return Ok(Composition::single(word.trim().parse().map_err(|error| format!("{error}"))?));
        }
        let mut children = vec![self.block()?];
        while self.eat(',') {
            children.push(self.block()?);
        }
        if !self.eat(']') {
            return Err(format!("a composition that does not end: {:?}", self.rest));
        }
        Ok(match word {
            "Stack" => Composition::Stack { children },
            "Fuse" => Composition::Fuse { children, name: None },
            "Parallel" => Composition::Parallel { children },
            "Average" => Composition::Average { children, weights: vec![0.3, 0.7], normalize: true },
            "BatchSplit" => Composition::BatchSplit { children, batch_sizes: vec![1, 3] },
            other => return Err(format!("block {other} is not known")),
        })
    }

    fn eat(&mut self, mark: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(mark) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compositions_are_read_as_the_peer_prints_them() {
        let read = |text: &'static str| Parser { rest: text }.block().unwrap().to_string();
        assert_eq!(read("'a'"), "a");
        assert_eq!(read("Stack[c, Fuse[a, b]]"), "Stack[c, Fuse[a, b]]");
        assert!(Parser { rest: "Stack[a" }.block().is_err());
    }

    #[test]
    fn methods_without_an_implementation_are_named() {
        let reason = |text: &str| adapter_config(&serde_json::from_str(text).unwrap()).unwrap_err();
        let lacks = |what: &str| NoSetup::NotImplemented(format!("{what} is not implemented"));
        assert_eq!(reason(r#"{"architecture": "prefix_tuning"}"#), lacks("method prefix_tuning"));
        assert_eq!(reason(r#"{"phm_layer": true}"#), lacks("phm_layer = true"));
        assert_eq!(reason(r#"{"architecture": "lora", "use_dora": true}"#), lacks("DoRA"));
        assert!(matches!(reason(r#"{"architecture": "lora", "r": "many"}"#), NoSetup::Wrong(_)));
    }
}
