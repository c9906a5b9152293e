//! Puts parts into one composition: which adapters, which heads, which weights.

use std::collections::BTreeMap;

use graftwork_engine::Setup;
use graftwork_model::Tensors;
use graftwork_shared::{composition::Composition, head::Head, id::Name};

use super::{
    PredictError, compose,
    part::{Part, last_adapter, results},
};

/// All that a network is made of, but the trunk.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) setup: Setup,
    pub(crate) tensors: Tensors,
    pub(crate) skip_layers: Vec<u32>,
    /// Longest row that a part was trained with, where one says so.
    pub(crate) max_length: Option<u32>,
    /// Rows that go together, where the composition cuts batches.
    pub(crate) batch_rows: Option<usize>,
}

/// Wishes of the command line.
#[derive(Debug, Default)]
pub(crate) struct Wishes<'a> {
    /// The composition, with parts in the places of adapters.
    pub(crate) compose: Option<&'a str>,
    /// The part whose head reads the result.
    pub(crate) head: Option<&'a Name>,
    /// Layers without adapters.
    pub(crate) skip_layers: Option<&'a [u32]>,
}

/// Combines parts by name.
pub(crate) fn assemble(parts: &BTreeMap<Name, Part>, wishes: &Wishes) -> Result<Assembled, PredictError> {
    let outline = outline(parts, wishes.compose)?;
    refuse_unused(parts, &outline)?;
    let heads = heads(parts, &outline, wishes.head)?;
    let composition = splice(&outline, parts)?;
    composition.check()?;
    let mut setup = Setup { composition: Some(composition), heads, ..Setup::default() };
    let mut tensors = Tensors::new();
    for (name, part) in parts {
        for (adapter, config) in &part.modules.adapters {
            if setup.adapters.insert(adapter.clone(), config.clone()).is_some() {
                return Err(PredictError::Usage(format!(
                    "two of the locations hold an adapter called {adapter} (the second is {name}); load one of them under \
                     another name"
                )));
            }
        }
        setup.fusions.extend(part.modules.fusions.clone());
        tensors.extend(part.tensors.clone());
    }
    // Only heads that are used may have weights in the network.
    tensors.retain(|tensor, _| match tensor.strip_prefix("heads.") {
        None => true,
        Some(rest) => setup.heads.iter().any(|(head, _)| rest.split('.').next() == Some(head.as_str())),
    });
    Ok(Assembled {
        batch_rows: setup.composition.as_ref().and_then(batch_rows),
        setup,
        tensors,
        skip_layers: skip_layers(parts, wishes.skip_layers)?,
        max_length: parts.values().filter_map(|part| part.max_length).max(),
    })
}

/// The composition of parts: as wished, or the only part there is.
fn outline(parts: &BTreeMap<Name, Part>, wished: Option<&str>) -> Result<Composition, PredictError> {
    if let Some(text) = wished {
        return Ok(compose::parse(text)?);
    }
    let mut names = parts.keys();
    match (names.next(), names.next()) {
        (Some(only), None) => Ok(Composition::single(only.clone())),
        _ => Err(PredictError::Usage(format!(
            "there are {} adapters; say how they work together, for example --compose 'Parallel[{}]'",
            parts.len(),
            list(parts.keys())
        ))),
    }
}

fn list<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    names.map(Name::as_str).collect::<Vec<_>>().join(", ")
}

fn refuse_unused(parts: &BTreeMap<Name, Part>, outline: &Composition) -> Result<(), PredictError> {
    let used = outline.adapters();
    match parts.keys().find(|name| !used.contains(name)) {
        Some(unused) => Err(PredictError::Usage(format!("adapter {unused} is loaded, but {outline} does not use it"))),
        None => Ok(()),
    }
}

fn part<'a>(parts: &'a BTreeMap<Name, Part>, name: &Name) -> Result<&'a Part, PredictError> {
    parts.get(name).ok_or_else(|| {
        PredictError::Usage(format!(
            "there is no adapter {name}; there are {}; load it by --adapter {name}=LOCATION",
            list(parts.keys())
        ))
    })
}

/// Puts each part's own composition in the place of its name.
fn splice(outline: &Composition, parts: &BTreeMap<Name, Part>) -> Result<Composition, PredictError> {
    let all = |children: &[Composition]| children.iter().map(|child| splice(child, parts)).collect::<Result<_, _>>();
    Ok(match outline {
        Composition::Single { adapter } => part(parts, adapter)?.composition.clone(),
        Composition::Fuse { .. } => {
            return Err(PredictError::Usage(
                "a Fuse has weights of its own: load the release of the fusion by --setup or --adapter NAME=LOCATION, and \
                 use its name"
                    .to_owned(),
            ));
        }
        Composition::Stack { children } => Composition::Stack { children: all(children)? },
        Composition::Parallel { children } => Composition::Parallel { children: all(children)? },
        Composition::Average { children, weights, normalize } => {
            Composition::Average { children: all(children)?, weights: weights.clone(), normalize: *normalize }
        }
        Composition::Split { children, splits } => {
            Composition::Split { children: all(children)?, splits: splits.clone() }
        }
        Composition::BatchSplit { children, batch_sizes } => {
            Composition::BatchSplit { children: all(children)?, batch_sizes: batch_sizes.clone() }
        }
    })
}

/// One head for each result: that of the part which comes last in it, or the one wished for.
fn heads(
    parts: &BTreeMap<Name, Part>,
    outline: &Composition,
    wished: Option<&Name>,
) -> Result<Vec<(Name, Head)>, PredictError> {
    let results = results(outline);
    if let Some(name) = wished.filter(|_| results.len() > 1) {
        return Err(PredictError::Usage(format!(
            "--head {name} names one head, but {outline} gives {} results, each with the head of its own adapter",
            results.len()
        )));
    }
    let mut heads = Vec::new();
    for result in results {
        let last = last_adapter(result).and_then(|name| name.parse().ok());
        let name: Name =
            wished.cloned().or(last).ok_or_else(|| PredictError::Usage(format!("{outline} names no adapter")))?;
        let part = part(parts, &name)?;
        if part.heads.is_empty() {
            return Err(PredictError::Usage(format!(
                "adapter {name} was stored without a head, and a prediction needs one; choose the head of another adapter \
                 by --head NAME"
            )));
        }
        heads.extend(part.heads.clone());
    }
    Ok(heads)
}

fn skip_layers(parts: &BTreeMap<Name, Part>, wished: Option<&[u32]>) -> Result<Vec<u32>, PredictError> {
    if let Some(layers) = wished {
        return Ok(layers.to_vec());
    }
    let mut recorded = parts.values().map(|part| part.skip_layers.clone().unwrap_or_default());
    let first = recorded.next().unwrap_or_default();
    if recorded.all(|layers| layers == first) {
        return Ok(first);
    }
    Err(PredictError::Usage(
        "the adapters were made for different skipped layers; say by --skip-layers which to skip, 'none' for none"
            .to_owned(),
    ))
}

/// Rows of a batch that the composition cuts; the same for every `BatchSplit` in it.
fn batch_rows(composition: &Composition) -> Option<usize> {
    match composition {
        Composition::BatchSplit { batch_sizes, .. } => Some(batch_sizes.iter().sum()),
        block => block.children().iter().find_map(batch_rows),
    }
}

#[cfg(test)]
mod tests {
    use graftwork_shared::{adapter::AdapterConfig, head::HeadOutput};

    use super::*;

    fn parts(names: &[&str]) -> BTreeMap<Name, Part> {
        let part = |name: &Name| Part {
            composition: Composition::single(name.clone()),
            modules: Setup {
                adapters: [(name.clone(), AdapterConfig::preset("seq_bn").unwrap())].into(),
                ..Setup::default()
            },
            heads: vec![(name.clone(), Head::new(HeadOutput::Regression))],
            tensors: Tensors::new(),
            skip_layers: None,
            max_length: Some(64),
        };
        names.iter().map(|name| name.parse().unwrap()).map(|name: Name| (name.clone(), part(&name))).collect()
    }

    fn refusal(parts: &BTreeMap<Name, Part>, wishes: &Wishes) -> String {
        assemble(parts, wishes).unwrap_err().to_string()
    }

    #[test]
    fn a_composition_brings_its_heads_and_batches() {
        let parts = parts(&["a", "b"]);
        let wishes = Wishes { compose: Some("BatchSplit[a:1, b:3]"), ..Wishes::default() };
        let assembled = assemble(&parts, &wishes).unwrap();
        assert_eq!(assembled.batch_rows, Some(4));
        assert_eq!(list(assembled.setup.heads.iter().map(|(name, _)| name)), "a, b");
        assert_eq!(assembled.max_length, Some(64));
        let head: Name = "a".parse().unwrap();
        let wishes = Wishes { compose: Some("Average[a, b]"), head: Some(&head), ..Wishes::default() };
        assert_eq!(list(assemble(&parts, &wishes).unwrap().setup.heads.iter().map(|(name, _)| name)), "a");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_mend() {
        let mut two = parts(&["a", "b"]);
        let compose = |text| Wishes { compose: Some(text), ..Wishes::default() };
        assert!(refusal(&two, &Wishes::default()).contains("--compose 'Parallel[a, b]'"));
        assert!(refusal(&two, &compose("Stack[a, c]")).contains("does not use it"));
        assert!(refusal(&two, &compose("Parallel[a, b, c]")).contains("load it by --adapter c=LOCATION"));
        assert!(refusal(&two, &compose("Fuse[a, b]")).contains("weights of its own"));
        assert!(refusal(&two, &compose("Average[Parallel[a], b]")).contains("cannot stand directly inside"));
        two.get_mut(&"b".parse::<Name>().unwrap()).unwrap().heads.clear();
        assert!(refusal(&two, &compose("Stack[a, b]")).contains("without a head"));
        two.get_mut(&"b".parse::<Name>().unwrap()).unwrap().skip_layers = Some(vec![0]);
        assert!(refusal(&two, &compose("Stack[b, a]")).contains("--skip-layers"));
    }

    #[test]
    fn the_same_adapter_from_two_places_is_refused() {
        let mut two = parts(&["a", "b"]);
        let twin = two[&"a".parse::<Name>().unwrap()].clone();
        two.insert("b".parse().unwrap(), twin);
        let wishes = Wishes { compose: Some("Parallel[a, b]"), ..Wishes::default() };
        assert!(refusal(&two, &wishes).contains("another name"));
    }
}
