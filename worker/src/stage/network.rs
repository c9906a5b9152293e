//! From a recipe to a network: its setup, its first weights, and for a fusion the adapters that it reads.
//!
//! The stage's own adapter or fusion, and its head, are called `trained`; what a fusion reads is called by its
//! position. Weights are a function of the recipe and of the blobs that the assignment names, nothing else.

use std::collections::BTreeSet;

use graftwork_engine::{Device, Keep, Network, Setup, Trained, Trunk, initial_weights};
use graftwork_model::{Tensors, adapter_shapes, check_tensors, rename, safetensors};
use graftwork_shared::{
    adapter::AdapterConfig,
    assignment::{Assignment, Failure},
    composition::Composition,
    digest::Digest,
    id::Name,
    recipe::{FusedAdapter, Method, Recipe, slot, trained_slot},
    training::Precision,
};

use super::{Host, failure};
use crate::{
    computer::{numeric_class, program},
    pool::Turn,
};

/// A stage's network and what it was made of.
pub(super) struct Built {
    pub(super) network: Network,
    pub(super) setup: Setup,
}

/// The trunk with products in these numbers. The processor has those of fp32 alone: other ones would depend on
/// instructions that its numeric class does not tell.
pub(super) fn in_precision(trunk: Trunk, precision: Precision) -> Result<Trunk, Failure> {
    if precision != Precision::Fp32 && trunk.device() == Device::Cpu {
        return Err(failure::user(format!(
            "the recipe asks for products in {precision}, which workers without a GPU do not compute; plan the job for \
             device = \"cuda\", or leave out precision"
        )));
    }
    Ok(trunk.in_precision(precision))
}

/// Fetches what the stage reads and builds its network on a device thread.
pub(super) fn build<H: Host>(assignment: &Assignment, trunk: &Trunk, host: &H) -> Result<Built, Failure> {
    let recipe = &assignment.recipe;
    let description = trunk.description();
    let setup = setup(recipe);
    let mut fused = Vec::new();
    if let Method::Fusion { adapters, .. } = &recipe.method {
        if assignment.adapters.len() != adapters.len() {
            let (given, needed) = (assignment.adapters.len(), adapters.len());
            return Err(failure::machine(format!("the assignment names {given} adapters, its recipe fuses {needed}")));
        }
        for (position, (adapter, &blob)) in adapters.iter().zip(&assignment.adapters).enumerate() {
            fused.push((slot(position), adapter.config.clone(), blob, fetch(host, blob)?));
        }
    }
    let mut weights = initial_weights(&setup, description, recipe.training.seed).map_err(failure::of_engine)?;
    for (name, config, blob, tensors) in fused {
        let tensors = fused_tensors(tensors, &name, &config);
        let shapes = adapter_shapes(&config, description, name.as_str()).map_err(failure::user)?;
        check_tensors(&tensors, &shapes, &format!("adapter blob {}", blob.short()), &format!("the fusion's {name}"))
            .map_err(failure::user)?;
        weights.extend(tensors);
    }
    let (trunk, made) = (trunk.share(), setup.clone());
    let network = run_one(host, Turn::First, move || Network::new(trunk, made, weights));
    Ok(Built { network: network.map_err(failure::of_engine)?, setup })
}

/// Where what lies below the first adapter is kept: on a shelf for all stages that compute the same there, never in this
/// process's own memory.
pub(super) fn kept<H: Host>(recipe: &Recipe, trunk: &Trunk, host: &H) -> Keep {
    let of = (recipe.base_model, numeric_class(trunk.device()), recipe.numerics_version, program());
    let shelves = host.shelves().map(|shelves| (shelves, Digest::of_value("graftwork values of a trunk", &of)));
    Keep { memory_bytes: 0, shelves }
}

/// Runs one task on a device thread.
pub(super) fn run_one<H: Host, T: Send + 'static>(
    host: &H,
    turn: Turn,
    task: impl FnOnce() -> T + Send + 'static,
) -> T {
    let mut done = host.run(turn, vec![Box::new(task) as Box<dyn FnOnce() -> T + Send>]);
    done.pop().expect("a host returns one value for each task")
}

/// Puts other numbers into the network, on a device thread.
pub(super) fn set_parameters<H: Host>(host: &H, network: &Network, parameters: &[f32]) {
    let (network, parameters) = (network.share(), parameters.to_vec());
    run_one(host, Turn::First, move || network.set_parameters(&parameters));
}

fn fetch<H: Host>(host: &H, blob: Digest) -> Result<Tensors, Failure> {
    let bytes = host.get_blob(blob).map_err(|error| failure::of_host(&error))?;
    let of_blob = |error| failure::user(format!("adapter blob {}: {error}", blob.short()));
    safetensors::read(&bytes).map_err(of_blob)
}

/// The adapter of another stage's result under its position's name, without that stage's head and without the layers
/// that this fusion leaves out.
fn fused_tensors(tensors: Tensors, slot: &Name, config: &AdapterConfig) -> Tensors {
    let kept = |name: &String| !name.starts_with("heads.") && !config.leaves_out(name);
    let body = tensors.into_iter().filter(|(name, _)| kept(name)).collect();
    rename(body, trained_slot().as_str(), slot.as_str())
}

/// What a recipe trains, and around what.
pub(super) fn setup(recipe: &Recipe) -> Setup {
    let own = trained_slot();
    let heads = vec![(own.clone(), recipe.head.clone())];
    let mut trained = Trained { heads: BTreeSet::from([own.clone()]), ..Trained::default() };
    match &recipe.method {
        Method::Adapter(config) => {
            trained.adapters.insert(own.clone());
            Setup {
                composition: Some(Composition::single(own.clone())),
                adapters: [(own, config.clone())].into(),
                heads,
                trained,
                ..Setup::default()
            }
        }
        Method::Fusion { config, adapters } => {
            trained.fusions.insert(own.to_string());
            let children = (0..adapters.len()).map(|position| Composition::single(slot(position))).collect();
            let adapters = adapters.iter().enumerate().map(|(position, of)| (slot(position), of.config.clone()));
            Setup {
                composition: Some(Composition::Fuse { children, name: Some(own.to_string()) }),
                adapters: adapters.collect(),
                fusions: [(own.to_string(), config.clone())].into(),
                heads,
                trained,
            }
        }
    }
}

/// Positions of the fused adapters that have a site in a layer, in order: to whom attention of that layer goes.
pub(super) fn acting(adapters: &[FusedAdapter], layer: u32) -> Vec<usize> {
    let acts = |config: &AdapterConfig| !config.leave_out().contains(&layer);
    adapters.iter().enumerate().filter(|(_, of)| acts(&of.config)).map(|(position, _)| position).collect()
}
