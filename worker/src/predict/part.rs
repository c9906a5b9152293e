//! What one location holds: an adapter with its head, or a whole setup, ready to stand in a composition.
//!
//! Nothing is taken on trust: type, width and every shape are checked against the base model before use.

use std::{collections::BTreeMap, path::Path};

use graftwork_engine::Setup;
use graftwork_model::{
    ModelError, Tensors, TrunkDescription,
    hub::{AdapterFolder, FusionFolder, HeadFolder, SetupFolder},
    rename,
};
use graftwork_shared::{composition::Composition, head::Head, id::Name};

use super::PredictError;

/// An adapter or a setup.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// What stands for it in a composition.
    pub(crate) composition: Composition,
    /// Its adapters and fusions; composition and heads are left empty here.
    pub(crate) modules: Setup,
    /// Heads, one for each result of the composition; empty where nothing is predicted.
    pub(crate) heads: Vec<(Name, Head)>,
    /// All weights.
    pub(crate) tensors: Tensors,
    /// Layers without adapters, as the record of a release says.
    pub(crate) skip_layers: Option<Vec<u32>>,
    /// Longest row in training, as the record of a release says.
    pub(crate) max_length: Option<u32>,
}

impl Part {
    /// Reads what lies in a folder. A given name replaces the one that an adapter was stored under.
    pub(crate) fn read(
        location: &str,
        folder: &Path,
        name: Option<&Name>,
        trunk: &TrunkDescription,
    ) -> Result<Self, PredictError> {
        let wrong = |error: ModelError| PredictError::Model { location: location.to_owned(), error };
        let mut part = if folder.join("adapter_setup.json").is_file() {
            Self::of_setup(SetupFolder::read(folder).map_err(wrong)?, location, trunk)?
        } else if folder.join("adapter_config.json").is_file() {
            Self::of_adapter(AdapterFolder::read(folder).map_err(wrong)?, location, name, trunk)?
        } else {
            return Err(PredictError::Usage(format!(
                "{location} holds neither adapter_setup.json nor adapter_config.json; a fusion is loaded by the folder of \
                 its setup, since it needs its adapters"
            )));
        };
        let record = folder.join(graftwork_store::RECORD_FILE);
        if record.is_file() {
            part.read_record(&record)?;
        }
        Ok(part)
    }

    fn of_adapter(
        adapter: AdapterFolder,
        location: &str,
        name: Option<&Name>,
        trunk: &TrunkDescription,
    ) -> Result<Self, PredictError> {
        adapter.check(trunk).map_err(|error| PredictError::Model { location: location.to_owned(), error })?;
        let name = match name {
            Some(name) => name.clone(),
            None => adapter.name.parse().map_err(|_| {
                PredictError::Usage(format!(
                    "the adapter in {location} is called {:?}; give it another name by --adapter NAME={location}",
                    adapter.name
                ))
            })?,
        };
        let mut tensors = rename(adapter.tensors, &adapter.name, name.as_str());
        let mut heads = Vec::new();
        if let Some(head) = adapter.head {
            tensors.extend(rename(head.tensors, &head.name, name.as_str()));
            heads.push((name.clone(), head.head));
        }
        let modules = Setup { adapters: [(name.clone(), adapter.config)].into(), ..Setup::default() };
        Ok(Self {
            composition: Composition::single(name),
            modules,
            heads,
            tensors,
            skip_layers: None,
            max_length: None,
        })
    }

    fn of_setup(setup: SetupFolder, location: &str, trunk: &TrunkDescription) -> Result<Self, PredictError> {
        let wrong = |error: ModelError| PredictError::Model { location: location.to_owned(), error };
        let mut found = BTreeMap::new();
        let mut part = Self {
            modules: Setup::default(),
            heads: Vec::new(),
            tensors: Tensors::new(),
            skip_layers: None,
            max_length: None,
            composition: setup.composition,
        };
        for adapter in setup.adapters {
            adapter.check(trunk).map_err(wrong)?;
            part.modules.adapters.insert(stored_name(&adapter.name, location)?, adapter.config);
            part.tensors.extend(adapter.tensors);
            keep_head(&mut found, adapter.head);
        }
        for (name, fusion) in fusion_names(&part.composition).into_iter().zip(setup.fusions) {
            let FusionFolder { name: stored, config, tensors, head, .. } = fusion;
            part.modules.fusions.insert(name.clone(), config);
            part.tensors.extend(rename(tensors, &stored, &name));
            // The head of a fusion is the setup's own, unless the setup names others.
            let last = last_adapter(&part.composition);
            if let (Some(head), Some(last)) = (head, last) {
                found.insert(last, head);
            }
        }
        let own: Vec<HeadFolder> = setup.heads;
        let results = results(&part.composition);
        let chosen = if own.len() == results.len() {
            own
        } else {
            let carried = results.iter().filter_map(|result| found.get(&last_adapter(result)?).cloned());
            carried.collect()
        };
        for head in chosen {
            head.check(trunk).map_err(wrong)?;
            part.heads.push((stored_name(&head.name, location)?, head.head));
            part.tensors.extend(head.tensors);
        }
        Ok(part)
    }

    fn read_record(&mut self, path: &Path) -> Result<(), PredictError> {
        let wrong = |problem: String| PredictError::File { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        // Two values are needed, and a record of a later version still has them.
        let record: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| wrong(format!("not a record: {error}")))?;
        if let Some(layers) = record.pointer("/recipe/skip_layers") {
            let layers = serde_json::from_value(layers.clone());
            self.skip_layers = Some(layers.map_err(|error| wrong(format!("recipe.skip_layers: {error}")))?);
        }
        if let Some(length) = record.pointer("/recipe/training/max_length") {
            let length = serde_json::from_value(length.clone());
            self.max_length = Some(length.map_err(|error| wrong(format!("recipe.training.max_length: {error}")))?);
        }
        Ok(())
    }
}

fn keep_head(found: &mut BTreeMap<String, HeadFolder>, head: Option<HeadFolder>) {
    if let Some(head) = head {
        found.insert(head.name.clone(), head);
    }
}

fn stored_name(name: &str, location: &str) -> Result<Name, PredictError> {
    name.parse().map_err(|error| PredictError::Usage(format!("{location}: {error}")))
}

/// The blocks that give a result each, with a head each: a final `Parallel` or `BatchSplit` gives several.
pub(crate) fn results(composition: &Composition) -> Vec<&Composition> {
    match composition {
        Composition::Parallel { children } | Composition::BatchSplit { children, .. } => {
            children.iter().flat_map(results).collect()
        }
        Composition::Stack { children } => match children.last() {
            Some(last @ (Composition::Parallel { .. } | Composition::BatchSplit { .. })) => results(last),
            _ => vec![composition],
        },
        _ => vec![composition],
    }
}

/// The name of the adapter that comes last, whose head is a block's own.
pub(crate) fn last_adapter(composition: &Composition) -> Option<String> {
    composition.adapters().last().map(ToString::to_string)
}

/// The names of all fusions, each once, from the outside and from the left.
fn fusion_names(composition: &Composition) -> Vec<String> {
    let mut names: Vec<String> = composition.fusion_name().into_iter().collect();
    for name in composition.children().iter().flat_map(fusion_names) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::super::compose::parse;
    use super::*;

    #[test]
    fn each_result_of_a_composition_has_a_head() {
        let heads = |text: &str| -> Vec<String> {
            let composition = parse(text).unwrap();
            results(&composition).iter().filter_map(|result| last_adapter(result)).collect()
        };
        assert_eq!(heads("a"), ["a"]);
        assert_eq!(heads("Stack[a, b]"), ["b"]);
        assert_eq!(heads("Parallel[a, Stack[b, c]]"), ["a", "c"]);
        assert_eq!(heads("Stack[a, BatchSplit[b:1, c:2]]"), ["b", "c"]);
        assert_eq!(heads("Parallel[BatchSplit[a:1, b:1], c]"), ["a", "b", "c"]);
        assert_eq!(heads("Average[a, b]"), ["b"]);
    }
}
