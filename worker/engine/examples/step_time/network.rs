//! The networks that are measured, with initial weights.

use std::{collections::BTreeMap, path::Path};

use graftwork_engine::{Device, Network, Setup, Trained, Trunk, initial_weights};
use graftwork_model::BaseModel;
use graftwork_shared::{
    adapter::{AdapterConfig, FusionConfig},
    composition::Composition,
    head::{Head, HeadOutput},
    id::Name,
    recipe::slot,
};

use super::Failure;

pub(crate) fn network(base: &Path, method: &str, rows: usize) -> Result<Network, Failure> {
    let model = BaseModel::open_without_tokenizer(base)?;
    let trunk = Trunk::open(&model, Device::Cpu)?;
    let setup = setup(method, rows)?;
    let everything = Setup { trained: Trained::all(&setup), ..setup.clone() };
    let weights = initial_weights(&everything, trunk.description(), 17)?;
    Ok(Network::new(trunk, setup, weights)?)
}

fn setup(method: &str, rows: usize) -> Result<Setup, Failure> {
    let labels = ["no", "yes"].map(str::to_owned).to_vec();
    let head = Head::new(HeadOutput::Classification { labels });
    let name: Name = "trained".parse()?;
    let several = ["fusion", "parallel", "split"].iter().find_map(|kind| Some((*kind, method.strip_prefix(kind)?)));
    let Some((kind, count)) = several.filter(|(_, count)| !count.is_empty()) else {
        let (method, without) = method.split_once('@').unwrap_or((method, "0"));
        let without: Vec<u32> = (0..without.parse()?).collect();
        let config = AdapterConfig::preset(method).ok_or_else(|| format!("there is no preset {method}"))?;
        let mut setup = Setup { heads: vec![(name.clone(), head)], ..Setup::default() };
        setup.composition = Some(Composition::single(name.clone()));
        setup.adapters = BTreeMap::from([(name, config.without(&without))]);
        setup.trained = Trained::all(&setup);
        return Ok(setup);
    };
    let slots: Vec<Name> = (0..count.parse()?).map(slot).collect();
    let children: Vec<_> = slots.iter().cloned().map(Composition::single).collect();
    let config = AdapterConfig::preset("seq_bn").ok_or("there is no preset seq_bn")?;
    let adapters = slots.iter().map(|slot| (slot.clone(), config.clone())).collect();
    let mut setup = Setup { adapters, ..Setup::default() };
    if kind == "fusion" {
        setup.heads = vec![(name.clone(), head)];
        setup.composition = Some(Composition::Fuse { children, name: Some(name.to_string()) });
        setup.fusions = BTreeMap::from([(name.to_string(), FusionConfig::default())]);
        setup.trained.fusions.insert(name.to_string());
        setup.trained.heads.insert(name);
        return Ok(setup);
    }
    setup.heads = slots.into_iter().map(|slot| (slot, head.clone())).collect();
    let batch_sizes = vec![rows / children.len(); children.len()];
    setup.composition = Some(match kind {
        "split" => Composition::BatchSplit { children, batch_sizes },
        _ => Composition::Parallel { children },
    });
    setup.trained = Trained::all(&setup);
    Ok(setup)
}
