//! The stage of one task.

use graftwork_model::Footprint;
use graftwork_scheduler::PlannedStage;
use graftwork_shared::{
    NUMERICS_VERSION,
    adapter::AdapterConfig,
    diagnostic::Diagnostic,
    head::Head,
    job::{Job, Task},
    metric::Metric,
    recipe::{Method, Recipe},
    training::{AdapterDrop, Training, Warmup},
    view::StageKind,
};

use super::{Base, head, memory, method, problems::Problems, rows::Rows, sweep};

/// What fusions need of a task, even when its own stage has a problem.
pub(super) struct PlannedTask {
    pub(super) rows: Rows,
    pub(super) head: Head,
    pub(super) metric: Option<Metric>,
    pub(super) stage: Option<PlannedStage>,
    /// Of a task that is swept.
    pub(super) trials: Vec<PlannedStage>,
}

pub(super) fn plan(
    job: &Job,
    task: &Task,
    rows: Rows,
    base: Option<&Base>,
    problems: &Problems<'_>,
) -> Option<PlannedTask> {
    let head = head::head(task, rows.output.clone());
    let metric = head::metric(task, &head, problems);
    let (mut planned, mut trials) = (None, Vec::new());
    if let Some((base, metric)) = base.zip(metric) {
        let of = Of { job, rows: &rows, head: &head, metric, base };
        match &task.sweep {
            None => planned = stage(task, &of, problems),
            Some(swept) => {
                if let Some((own, of_trials)) = sweep::plan(task, swept, &of, problems) {
                    (planned, trials) = (Some(own), of_trials);
                }
            }
        }
    }
    Some(PlannedTask { rows, head, metric, stage: planned, trials })
}

/// What the stages of one task have in common.
pub(super) struct Of<'a> {
    pub(super) job: &'a Job,
    pub(super) rows: &'a Rows,
    pub(super) head: &'a Head,
    pub(super) metric: Metric,
    pub(super) base: &'a Base,
}

/// The stage of a task, or of one of its trials.
pub(super) fn stage(task: &Task, of: &Of<'_>, problems: &Problems<'_>) -> Option<PlannedStage> {
    let Of { job, rows, head, metric, base } = *of;
    let at = format!("tasks.{}", task.name);
    let fits = check_training(&at, &task.training, &task.skip_layers, base, problems);
    let warms_up = check_warmup(&at, &task.training, rows.train.rows, problems);
    if !check_left_out(&at, task, base, problems) || !fits || !warms_up {
        return None;
    }
    if !check_sites(&at, &format!("task {}", task.name), &[&task.adapter], &task.training, base, problems) {
        return None;
    }
    let method = Method::Adapter(task.adapter.clone());
    let footprint = Footprint::of(&method, head, &base.model.description)
        .map_err(|error| problems.error(&format!("{at}.adapter"), "adapter", format!("task {}: {error}", task.name)))
        .ok()?;
    let recipe = Recipe {
        numerics_version: NUMERICS_VERSION,
        base_model: base.digest,
        method,
        head: head.clone(),
        metric,
        training: task.training.clone(),
        columns: task.data.columns.clone(),
        train: rows.train.content(),
        validation: rows.validation.content(),
        test: rows.test.as_ref().map(graftwork_shared::data::SplitManifest::content),
        skip_layers: task.skip_layers.clone(),
    };
    Some(PlannedStage {
        name: task.name.clone(),
        kind: StageKind::Adapter,
        needs: Vec::new(),
        task: None,
        fused: Vec::new(),
        recipe_digest: recipe.digest(),
        base_model: job.base_model.location.clone(),
        train: rows.train.clone(),
        validation: rows.validation.clone(),
        test: rows.test.clone(),
        total_steps: task.training.total_steps(rows.train.rows),
        trained_parameters: footprint.trained_parameters,
        memory_bytes: memory::Stage {
            footprint: &footprint,
            training: &task.training,
            rows: &rows.train,
            trunk: &base.model.description,
            threads: job.resources.threads,
        }
        .bytes(),
        expect: task.expect,
        publish_as: task.publish_as.clone(),
        method: method::adapter_line(&task.adapter),
        sweep: None,
        trial: None,
        data_credentials: task.data.credentials.clone(),
        base_model_credentials: job.base_model.credentials.clone(),
        recipe,
    })
}

/// A warm-up must end before the training does; only the rows tell how long that is.
pub(super) fn check_warmup(at: &str, training: &Training, rows: u64, problems: &Problems<'_>) -> bool {
    let total = training.total_steps(rows);
    let Warmup::Steps(warmup) = training.warmup else { return true };
    if warmup < total {
        return true;
    }
    let message = format!("warm-up of {warmup} updates leaves nothing of a training of {total} over {rows} rows");
    let help = format!("set `warmup_steps` below {total}, or write `warmup` as a share");
    problems.add(&format!("{at}.training.warmup_steps"), Diagnostic::error("warmup-too-long", message).help(help));
    false
}

/// Options that only the base model can judge: its positions and its layers.
pub(super) fn check_training(
    at: &str,
    training: &Training,
    skip_layers: &[u32],
    base: &Base,
    problems: &Problems<'_>,
) -> bool {
    let trunk = &base.model.description;
    let mut fits = true;
    if training.max_length > trunk.max_tokens() {
        let message = format!(
            "max_length is {}, but the base model reads at most {} tokens",
            training.max_length,
            trunk.max_tokens()
        );
        let help = format!("use a max_length of at most {}", trunk.max_tokens());
        problems.add(&format!("{at}.training.max_length"), Diagnostic::error("max-length", message).help(help));
        fits = false;
    }
    let dropped = match &training.adapter_drop {
        AdapterDrop::Off => Vec::new(),
        AdapterDrop::Layers(layers) => layers.clone(),
        AdapterDrop::DrawnUpTo(most) => vec![most.saturating_sub(1)],
    };
    for (layers, key) in [(skip_layers, "skip_layers"), (&dropped[..], "training.adapter_drop")] {
        fits &= check_layers(&format!("{at}.{key}"), layers, trunk.layers, problems);
    }
    fits
}

/// Fixed layers of AdapterDrop are left out too, and were looked at already.
fn check_left_out(at: &str, task: &Task, base: &Base, problems: &Problems<'_>) -> bool {
    let fixed = task.training.adapter_drop.fixed();
    let own: Vec<u32> = task.adapter.leave_out().iter().copied().filter(|layer| !fixed.contains(layer)).collect();
    check_layers(&format!("{at}.adapter.leave_out"), &own, base.model.description.layers, problems)
}

/// Whether some layer keeps an adapter. `adapters` have the layers that training drops for good in their `leave_out`.
pub(super) fn check_sites(
    at: &str,
    what: &str,
    adapters: &[&AdapterConfig],
    training: &Training,
    base: &Base,
    problems: &Problems<'_>,
) -> bool {
    let layers = base.model.description.layers;
    let stands = |adapter: &AdapterConfig| (0..layers).any(|layer| !adapter.leave_out().contains(&layer));
    if adapters.iter().all(|adapter| stands(adapter)) {
        return true;
    }
    let (key, word) = match training.adapter_drop.fixed() {
        [] => ("adapter.leave_out", "leave_out"),
        _ => ("training.adapter_drop", "adapter_drop"),
    };
    let message = format!("{what}: `{word}` leaves no layer of {layers} with an adapter, so nothing is left to train");
    let help = format!("keep at least one of the layers 0 to {}", layers - 1);
    problems.add(&format!("{at}.{key}"), Diagnostic::error("no-layer", message).help(help));
    false
}

fn check_layers(path: &str, layers: &[u32], there_are: u32, problems: &Problems<'_>) -> bool {
    let Some(wrong) = layers.iter().find(|layer| **layer >= there_are) else { return true };
    let message = format!("layer {wrong} does not exist: the base model's layers are 0 to {}", there_are - 1);
    problems.error(path, "unknown-layer", message);
    false
}
