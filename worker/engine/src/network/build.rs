//! Building a network: checks of the setup, and tensors sorted into sites.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, RwLock},
};

use graftwork_model::{Tensors, TrunkDescription, adapter_shapes, fusion_shapes, head_shapes};
use graftwork_shared::{
    adapter::AdapterConfig,
    composition::{BlockKind, Composition},
    id::Name,
};
use tch::{Device, Tensor};

use super::{Network, below::Below};
use crate::{
    EngineError,
    bottleneck::{BottleneckSite, BottleneckWeights},
    dropout::Place,
    fusion::FusionWeights,
    head::{HeadWeights, final_block},
    lora::{LoraSite, LoraWeights},
    parameters::{Layout, Parameter},
    setup::{ModuleShapes, Setup},
    sites::LayerSites,
    spans::signed,
    trunk::Trunk,
};

pub(super) fn network(trunk: Trunk, setup: Setup, weights: Tensors) -> Result<Network, EngineError> {
    check(&setup, &trunk)?;
    let mut store = Store::load(&setup.module_shapes(trunk.description())?, weights, trunk.device())?;
    let description = trunk.description().clone();
    let mut layers = Vec::new();
    for layer in 0..description.layers {
        let sites = match &setup.composition {
            Some(composition) => {
                let sites =
                    Sites { setup: &setup, composition, description: &description, layer, store: &mut store }.all();
                check_averages(composition, &sites, layer)?;
                sites
            }
            None => LayerSites::default(),
        };
        layers.push(sites);
    }
    let mut heads = Vec::new();
    for (name, config) in &setup.heads {
        let head = HeadWeights::new(name, config, description.head_dropout(), |tensor| store.take(tensor));
        heads.push(head.ok_or_else(|| EngineError::Setup(format!("head {name} has no layers")))?);
    }
    let flat = Tensor::from_slice(&store.flat).to_device(trunk.device());
    let below = Below::new(&layers, trunk.device()).map(Arc::new);
    Ok(Network {
        trunk,
        setup: Arc::new(setup),
        layout: Arc::new(store.layout),
        flat,
        flat_lock: Arc::new(RwLock::new(())),
        layers,
        heads,
        below,
        rows_return: true,
    })
}

/// Everything about a setup that does not need tensors.
fn check(setup: &Setup, trunk: &Trunk) -> Result<(), EngineError> {
    let wrong = |what: String| Err(EngineError::Setup(what));
    let mut heads = 1;
    let mut fusions = HashSet::new();
    if let Some(composition) = &setup.composition {
        composition.check()?;
        if let Some(name) = composition.adapters().into_iter().find(|name| !setup.adapters.contains_key(*name)) {
            return wrong(format!("the composition names adapter {name}, which the setup does not describe"));
        }
        check_block(composition, setup, true, trunk.description())?;
        collect_fusions(composition, &mut fusions);
        heads = match final_block(Some(composition)) {
            Some(Composition::Parallel { children } | Composition::BatchSplit { children, .. }) => children.len(),
            _ => 1,
        };
    }
    if let Some(name) = setup.fusions.keys().find(|name| !fusions.contains(*name)) {
        return wrong(format!("the setup describes fusion {name}, which the composition does not name"));
    }
    if setup.heads.len() != heads {
        return wrong(format!("the composition needs {heads} heads, the setup has {}", setup.heads.len()));
    }
    let unique: HashSet<&Name> = setup.heads.iter().map(|(name, _)| name).collect();
    if unique.len() != setup.heads.len() {
        return wrong("two heads have the same name".to_owned());
    }
    if setup.heads.iter().any(|(_, head)| head.use_pooler) && trunk.pooler.is_none() {
        return wrong("a head reads the pooler, but the base model has no tensor pooler.dense.weight".to_owned());
    }
    Ok(())
}

fn check_block(
    block: &Composition,
    setup: &Setup,
    outermost: bool,
    description: &TrunkDescription,
) -> Result<(), EngineError> {
    let wrong = |what: String| Err(EngineError::Setup(what));
    let loras: Vec<(&Name, &AdapterConfig)> = block
        .adapters()
        .into_iter()
        .filter_map(|name| setup.adapters.get_key_value(name))
        .filter(|(_, config)| matches!(config, AdapterConfig::Lora(_)))
        .collect();
    match block {
        Composition::Fuse { .. } | Composition::Split { .. } if !loras.is_empty() => {
            return wrong(format!(
                "{} is LoRA, which {} cannot hold; use bottleneck adapters",
                loras[0].0,
                block.kind()
            ));
        }
        Composition::Fuse { .. } => {
            let name = block.fusion_name().expect("a fusion has a name");
            if !setup.fusions.contains_key(&name) {
                return wrong(format!("the composition names fusion {name}, which the setup does not describe"));
            }
        }
        Composition::Stack { children } => {
            if !outermost && children.iter().any(|child| child.kind() != BlockKind::Single) {
                return wrong("a Stack inside another block holds single adapters only".to_owned());
            }
            let last = children.len() - 1;
            if children[..last].iter().any(|child| child.kind() == BlockKind::Parallel) {
                return wrong("Parallel must be the last block of a Stack, since its rows have a head each".to_owned());
            }
            let wide = |config: &AdapterConfig| matches!(config, AdapterConfig::Lora(lora) if lora.intermediate_lora || lora.output_lora);
            let square = description.hidden_size == description.intermediate_size;
            if !square && loras.iter().filter(|(_, config)| wide(config)).count() > 1 {
                return wrong(
                    "stacked LoRA adapters feed each other, so none may stand at the feed-forward projections"
                        .to_owned(),
                );
            }
        }
        _ => {}
    }
    block.children().iter().try_for_each(|child| check_block(child, setup, false, description))
}

/// Outputs can be averaged only where all children serve, and where they stand alike in the block.
fn check_averages(block: &Composition, sites: &LayerSites, layer: u32) -> Result<(), EngineError> {
    if let Composition::Average { children, .. } = block {
        let of_children = |here: HashMap<&Name, [bool; 4]>| {
            let standings = children.iter().map(move |child| {
                let adapters = child.adapters().into_iter();
                adapters.filter_map(|adapter| here.get(adapter).copied()).collect::<HashSet<_>>()
            });
            standings.collect::<Vec<_>>()
        };
        let alike = |standings: Vec<HashSet<[bool; 4]>>| standings.windows(2).all(|pair| pair[0] == pair[1]);
        if !sites.standings().into_iter().map(of_children).all(alike) {
            return Err(EngineError::Setup(format!(
                "{block} averages adapters that do not stand at the same places of layer {layer} in the same way;                  average adapters of one method with the same places"
            )));
        }
    }
    block.children().iter().try_for_each(|child| check_averages(child, sites, layer))
}

fn collect_fusions(block: &Composition, names: &mut HashSet<String>) {
    names.extend(block.fusion_name());
    block.children().iter().for_each(|child| collect_fusions(child, names));
}

impl Setup {
    /// Tensors of every module in the order of the layout: adapters, fusions, heads.
    pub(crate) fn module_shapes(&self, description: &TrunkDescription) -> Result<Vec<ModuleShapes>, EngineError> {
        let mut modules = Vec::new();
        for (name, config) in &self.adapters {
            let shapes = adapter_shapes(config, description, name.as_str())?;
            modules.push(ModuleShapes {
                shapes,
                name: name.to_string(),
                trained: self.trained.adapters.contains(name),
            });
        }
        for (name, config) in &self.fusions {
            let configs = self.composition.as_ref().and_then(|composition| self.fused(composition, name));
            let shapes = fusion_shapes(config, &configs.unwrap_or_default(), description, name)?;
            modules.push(ModuleShapes { shapes, name: name.clone(), trained: self.trained.fusions.contains(name) });
        }
        for (name, head) in &self.heads {
            let shapes = head_shapes(head, description, name.as_str())?;
            modules.push(ModuleShapes { shapes, name: name.to_string(), trained: self.trained.heads.contains(name) });
        }
        Ok(modules)
    }

    /// Options of the adapters that a fusion reads: the last one of each child.
    fn fused(&self, block: &Composition, name: &str) -> Option<Vec<&AdapterConfig>> {
        if block.fusion_name().as_deref() == Some(name) {
            let last = |child: &Composition| child.adapters().last().and_then(|last| self.adapters.get(*last));
            return block.children().iter().map(last).collect();
        }
        block.children().iter().find_map(|child| self.fused(child, name))
    }
}

/// Tensors by name, handed out once each.
struct Store {
    layout: Layout,
    flat: Vec<f32>,
    parameters: HashMap<String, Parameter>,
}

impl Store {
    fn load(modules: &[ModuleShapes], mut weights: Tensors, device: Device) -> Result<Self, EngineError> {
        let present = weights.len();
        let mut store = Self { layout: Layout::default(), flat: Vec::new(), parameters: HashMap::new() };
        for module in modules {
            for (name, shape) in &module.shapes {
                let missing = || EngineError::MissingTensor { name: name.clone(), present };
                let tensor = weights.remove(name).ok_or_else(missing)?;
                if tensor.shape != *shape || tensor.values.len() != shape.iter().product::<usize>() {
                    let (found, expected) = (tensor.shape, shape.clone());
                    return Err(EngineError::Shape { name: name.clone(), found, expected });
                }
                let parameter = if module.trained {
                    store.flat.extend_from_slice(&tensor.values);
                    Parameter::Trained(store.layout.push(name, shape))
                } else {
                    let sizes: Vec<i64> = shape.iter().map(|&size| signed(size)).collect();
                    Parameter::frozen(Tensor::from_slice(&tensor.values).view(sizes.as_slice()).to_device(device))
                };
                store.parameters.insert(name.clone(), parameter);
            }
        }
        Ok(store)
    }

    fn take(&self, name: &str) -> Option<Parameter> {
        self.parameters.get(name).map(Parameter::share)
    }

    /// Takes a tensor and notes it when it is trained.
    fn take_noting(&self, name: &str, leaves: &mut Vec<usize>) -> Option<Parameter> {
        let parameter = self.take(name)?;
        if let Parameter::Trained(index) = parameter {
            leaves.push(index);
        }
        Some(parameter)
    }
}

/// Builds the sites of one layer.
struct Sites<'a> {
    setup: &'a Setup,
    composition: &'a Composition,
    description: &'a TrunkDescription,
    layer: u32,
    store: &'a mut Store,
}

impl Sites<'_> {
    fn all(&self) -> LayerSites {
        let (hidden, inner) = (self.description.hidden_size, self.description.intermediate_size);
        LayerSites {
            query: self.lora("attention.self.query", Place::LoraQuery, hidden),
            key: self.lora("attention.self.key", Place::LoraKey, hidden),
            value: self.lora("attention.self.value", Place::LoraValue, hidden),
            attention_end: self.bottleneck("attention.output", Place::AttentionAdapter),
            intermediate: self.lora("intermediate.dense", Place::LoraIntermediate, inner),
            output: self.lora("output.dense", Place::LoraOutput, hidden),
            output_end: self.bottleneck("output", Place::OutputAdapter),
        }
    }

    /// Adapters of the composition, each once, in order of appearance.
    fn adapters(&self) -> Vec<(&Name, &AdapterConfig)> {
        let mut seen = HashSet::new();
        let names = self.composition.adapters().into_iter().filter(|name| seen.insert(*name));
        names.filter_map(|name| Some((name, self.setup.adapters.get(name)?))).collect()
    }

    fn at(&self, place: &str) -> String {
        format!("{}.encoder.layer.{}.{place}", self.description.prefix, self.layer)
    }

    fn lora(&self, place: &str, dropout: Place, outputs: u32) -> Option<LoraSite> {
        let mut leaves = Vec::new();
        let mut adapters = Vec::new();
        for (name, config) in self.adapters() {
            let AdapterConfig::Lora(config) = config else { continue };
            let at = format!("{}.loras.{name}", self.at(place));
            let take = |tensor: &str| self.store.take_noting(&format!("{at}.{tensor}"), &mut leaves);
            adapters.extend(LoraWeights::new(config, take).map(|weights| (name.clone(), weights)));
        }
        let site = LoraSite { layer: self.layer, place: dropout, adapters, outputs: i64::from(outputs), leaves };
        (!site.adapters.is_empty()).then_some(site)
    }

    fn bottleneck(&self, place: &str, dropout: Place) -> Option<BottleneckSite> {
        let mut leaves = Vec::new();
        let mut adapters = Vec::new();
        for (name, config) in self.adapters() {
            let AdapterConfig::Bottleneck(config) = config else { continue };
            let at = format!("{}.adapters.{name}", self.at(place));
            let take = |tensor: &str| self.store.take_noting(&format!("{at}.{tensor}"), &mut leaves);
            adapters.extend(BottleneckWeights::new(config, take).map(|weights| (name.clone(), weights)));
        }
        let mut fusions = Vec::new();
        for (name, config) in &self.setup.fusions {
            let at = format!("{}.adapter_fusion_layer.{name}", self.at(place));
            let take = |tensor: &str| self.store.take_noting(&format!("{at}.{tensor}"), &mut leaves);
            fusions.push((name.clone(), FusionWeights::new(config, take)));
        }
        let site = BottleneckSite { layer: self.layer, place: dropout, adapters, fusions, leaves };
        (!site.adapters.is_empty()).then_some(site)
    }
}
