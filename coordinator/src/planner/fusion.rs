//! The stage of one fusion: whose rows and head, which adapters, in which order.

use std::collections::BTreeSet;

use graftwork_model::{Footprint, portable_order};
use graftwork_scheduler::{FusedSource, PlannedStage};
use graftwork_shared::{
    NUMERICS_VERSION,
    diagnostic::Diagnostic,
    id::Name,
    job::{AdapterRef, Fusion, Job},
    recipe::{FusedAdapter, Method, Recipe},
    view::StageKind,
};

use super::{
    Base, memory, method,
    outside::Outside,
    problems::Problems,
    sweep,
    task::{self, PlannedTask},
};

/// What fusions are made of.
pub(super) struct Parts<'a> {
    /// In the order of the job's tasks; `None` for a task whose rows have a problem.
    pub(super) tasks: &'a [Option<PlannedTask>],
    pub(super) outside: &'a Outside,
    pub(super) base: Option<&'a Base>,
}

impl<'a> Parts<'a> {
    fn task(&self, job: &Job, name: &Name) -> Option<&'a PlannedTask> {
        let position = job.tasks.iter().position(|task| task.name == *name)?;
        self.tasks.get(position)?.as_ref()
    }
}

/// `None` when something that it needs has a problem, which was told already, or when it has one itself.
pub(super) fn plan(job: &Job, fusion: &Fusion, parts: &Parts<'_>, problems: &Problems<'_>) -> Option<PlannedStage> {
    let at = format!("fusions.{}", fusion.name);
    let base = parts.base?;
    let fits = task::check_training(&at, &fusion.training, &fusion.skip_layers, base, problems);
    let dropped = fusion.training.adapter_drop.fixed();
    let mut adapters = Vec::new();
    let mut fused = Vec::new();
    let mut tasks = Vec::new();
    let mut needs: Vec<Name> = Vec::new();
    for adapter in &fusion.adapters {
        let (source, part) = match adapter {
            AdapterRef::Task(name) => {
                let task = parts.task(job, name)?;
                let stage = task.stage.as_ref()?;
                tasks.push(Some(task));
                let config = job.task(name)?.adapter.clone().without(dropped);
                if !needs.contains(name) {
                    needs.push(name.clone());
                }
                (FusedSource::Stage(name.clone()), FusedAdapter { config, origin: stage.recipe_digest })
            }
            AdapterRef::Folder(location) | AdapterRef::Hub(location) => {
                let found = parts.outside.get(location)?;
                tasks.push(None);
                let source = FusedSource::External { blob: found.blob, name: found.name.clone() };
                (source, FusedAdapter { config: found.config.clone().without(dropped), origin: found.blob })
            }
        };
        fused.push(source);
        adapters.push(part);
    }
    let target = parts.task(job, &fusion.task)?;
    let (task, metric) = (job.task(&fusion.task)?, target.metric?);
    if !task::check_warmup(&at, &fusion.training, target.rows.train.rows, problems) || !fits {
        return None;
    }
    let mut footprints = Vec::new();
    for variant in sweep::variants(&adapters, &tasks, dropped) {
        footprints.push(footprint(fusion, &variant, target, base, problems)?);
    }
    let method = Method::Fusion { config: fusion.config.clone(), adapters };
    let memory = |footprint: &Footprint| {
        let (training, rows, trunk) = (&fusion.training, &target.rows.train, &base.model.description);
        memory::Stage { footprint, training, rows, trunk, threads: job.resources.threads }.bytes()
    };
    let rows = &target.rows;
    let recipe = Recipe {
        numerics_version: NUMERICS_VERSION,
        base_model: base.digest,
        method,
        head: target.head.clone(),
        metric,
        training: fusion.training.clone(),
        columns: task.data.columns.clone(),
        train: rows.train.content(),
        validation: rows.validation.content(),
        test: rows.test.as_ref().map(graftwork_shared::data::SplitManifest::content),
        skip_layers: union(&fusion.skip_layers, dropped),
    };
    Some(PlannedStage {
        name: fusion.name.clone(),
        kind: StageKind::Fusion,
        needs,
        task: Some(fusion.task.clone()),
        method: method::fusion_line(&fusion.config, &fused),
        fused,
        recipe_digest: recipe.digest(),
        base_model: job.base_model.location.clone(),
        train: rows.train.clone(),
        validation: rows.validation.clone(),
        test: rows.test.clone(),
        total_steps: fusion.training.total_steps(rows.train.rows),
        trained_parameters: footprints.first().map_or(0, |footprint| footprint.trained_parameters),
        memory_bytes: footprints.iter().map(memory).max().unwrap_or_default(),
        sweep: None,
        trial: None,
        expect: fusion.expect,
        publish_as: fusion.publish_as.clone(),
        data_credentials: task.data.credentials.clone(),
        base_model_credentials: job.base_model.credentials.clone(),
        recipe,
    })
}

/// What a fusion of these adapters needs; `None` when they cannot be fused, which is told.
fn footprint(
    fusion: &Fusion,
    adapters: &[FusedAdapter],
    target: &PlannedTask,
    base: &Base,
    problems: &Problems<'_>,
) -> Option<Footprint> {
    let at = format!("fusions.{}", fusion.name);
    let configs: Vec<_> = adapters.iter().map(|adapter| &adapter.config).collect();
    if !task::check_sites(&at, &format!("fusion {}", fusion.name), &configs, &fusion.training, base, problems) {
        return None;
    }
    if portable_order(&configs, base.model.description.layers).is_none() {
        let message = format!(
            "fusion {}: AdapterHub's Python library will not be able to use it: there the last adapter decides for all, so \
             one of them must stand in every layer in which another one does, and stand alike",
            fusion.name
        );
        let problem = Diagnostic::warning("not-for-python", message);
        let help = "graftwork itself uses it all the same; for the library, let one adapter leave out no layer that another \
                    one has";
        problems.add(&format!("{at}.adapters"), problem.help(help));
    }
    let method = Method::Fusion { config: fusion.config.clone(), adapters: adapters.to_vec() };
    Footprint::of(&method, &target.head, &base.model.description)
        .map_err(|error| problems.error(&at, "fusion", format!("fusion {}: {error}", fusion.name)))
        .ok()
}

/// Layer numbers of both, in order, each once.
fn union(first: &[u32], second: &[u32]) -> Vec<u32> {
    let layers: BTreeSet<u32> = first.iter().chain(second).copied().collect();
    layers.into_iter().collect()
}
