//! What a job is expected to take, from stated rates. Estimates are for people; nothing decides by them but the checks
//! for too little memory or disk.

use std::path::PathBuf;

use graftwork_model::TrunkDescription;
use graftwork_scheduler::PlannedStage;
use graftwork_shared::{data::SplitManifest, diagnostic::Diagnostic, job::Job, training::Training};

use super::{Planning, memory, problems::Problems};

/// Sustained floating-point operations a second of one trainer thread on packed rows of a small model: two thirds of what
/// the `step_time` example of the engine reached on a server core of 2.5 GHz (60e9), since jobs also read and score.
pub(crate) const OPERATIONS_PER_SECOND: f64 = 40e9;
/// Forward, and backward with respect to the input, for each weight and token.
const OPERATIONS_PER_WEIGHT: f64 = 4.0;
/// Copies of trained numbers that a state folder and a hub hold at a time: two checkpoints with moments and best
/// weights, the result, and both weight formats of the release, four bytes each.
const BYTES_ON_DISK_FOR_EACH_TRAINED: u64 = (2 * 4 + 1 + 2) * 4;

/// The machine that trains.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Memory that programs can have now.
    pub(crate) memory_bytes: u64,
    /// Trainer threads in all.
    pub(crate) threads: u32,
    /// Worker processes.
    pub(crate) workers: u32,
    /// The state folder.
    pub(crate) state: PathBuf,
}

/// What a job is expected to take.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub(crate) struct Estimate {
    /// Memory of all processes together: the sum of the three below.
    pub(crate) memory_bytes: u64,
    /// Of that, the base model, which they share.
    pub(crate) base_model_bytes: u64,
    /// Of that, the workers before any stage.
    pub(crate) process_bytes: u64,
    /// Of that, the stages that may run at the same time.
    pub(crate) stages_bytes: u64,
    /// Space in the state folder and the hub.
    pub(crate) disk_bytes: u64,
    /// Seconds of training on the threads below.
    pub(crate) seconds: f64,
    /// Seconds by stage, in the plan's order.
    pub(crate) stage_seconds: Vec<f64>,
    /// Trainer threads that this assumes.
    pub(crate) threads: u32,
}

/// Tokens of a row, special tokens included, from the stored size of its columns.
pub(super) fn tokens_per_row(rows: &SplitManifest, training: &Training) -> f64 {
    let bytes: u64 = rows.files.iter().flat_map(|file| &file.content.row_group_bytes).sum();
    let all: u64 = rows.files.iter().map(|file| file.content.rows()).sum();
    // English text has about four bytes a token.
    let tokens = 2.0 + bytes as f64 / all.max(1) as f64 / 4.0;
    tokens.min(f64::from(training.max_length))
}

/// Adds up what the stages take.
pub(super) fn estimate(stages: &[PlannedStage], trunk: &TrunkDescription, job: &Job, planning: &Planning) -> Estimate {
    let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
    let wished = job.resources.workers * job.resources.threads.unwrap_or(cores);
    let threads = planning.machine.as_ref().map_or(wished, |machine| machine.threads).max(1);
    let workers = planning.machine.as_ref().map_or(job.resources.workers, |machine| machine.workers).max(1);
    let (hidden, inner) = (f64::from(trunk.hidden_size), f64::from(trunk.intermediate_size));
    let weights = f64::from(trunk.layers) * (4.0 * hidden * hidden + 2.0 * hidden * inner);
    let used = f64::from(threads.min(cores));
    let seconds = |stage: &PlannedStage| {
        let training = &stage.recipe.training;
        let batch = f64::from(training.batch_size) * f64::from(training.accumulation);
        let trained = (stage.total_steps as f64 * batch).min(trained_rows(stage));
        // Scoring costs the forward half: validation once an epoch or so, the test rows at the end.
        let validated = stage.validation.rows as f64 * (trained / stage.train.rows.max(1) as f64).ceil();
        let scored = 0.5 * (validated + stage.test.as_ref().map_or(0.0, |test| test.rows as f64));
        let tokens = (trained + scored) * tokens_per_row(&stage.train, training);
        tokens * weights * OPERATIONS_PER_WEIGHT / (OPERATIONS_PER_SECOND * used)
    };
    let stage_seconds: Vec<f64> = stages.iter().map(|stage| seconds(stage) * sweep_share(stage, stages)).collect();
    // The largest stages may run at the same time, one on each thread.
    let mut memory: Vec<u64> = stages.iter().map(|stage| stage.memory_bytes).collect();
    memory.sort_unstable_by(|a, b| b.cmp(a));
    let stages_bytes: u64 = memory.iter().take(threads as usize).sum();
    let (base_model_bytes, process_bytes) = (memory::trunk(trunk), u64::from(workers) * memory::process());
    Estimate {
        memory_bytes: base_model_bytes + process_bytes + stages_bytes,
        base_model_bytes,
        process_bytes,
        stages_bytes,
        disk_bytes: stages.iter().map(|stage| stage.trained_parameters * BYTES_ON_DISK_FOR_EACH_TRAINED).sum(),
        seconds: stage_seconds.iter().sum(),
        stage_seconds,
        threads,
    }
}

/// Which share of a stage's training is expected to be done: of trials those are stopped that are worse, and a swept task
/// goes on from the end of its best trial.
fn sweep_share(stage: &PlannedStage, stages: &[PlannedStage]) -> f64 {
    let task = stage.trial.as_ref().and_then(|trial| stages.iter().find(|stage| stage.name == trial.task));
    match task.and_then(|task| task.sweep.as_ref()) {
        Some(sweep) => sweep.trained_share(),
        None if stage.sweep.is_some() => 0.0,
        None => 1.0,
    }
}

fn trained_rows(stage: &PlannedStage) -> f64 {
    match stage.recipe.training.length {
        graftwork_shared::training::Length::Epochs(epochs) => f64::from(epochs) * stage.train.rows as f64,
        graftwork_shared::training::Length::Steps(_) => f64::INFINITY,
    }
}

/// Too little memory or disk is an error: training would be killed half-way.
pub(super) fn check_machine(
    estimate: &Estimate,
    stages: &[PlannedStage],
    machine: &Machine,
    job: &Job,
    problems: &Problems<'_>,
) {
    // Without resources of its own a job needs what its largest stage makes of the defaults.
    let largest = stages.iter().max_by_key(|stage| stage.memory_bytes);
    let largest = largest.map(|stage| {
        let kind = if stage.fused.is_empty() { "tasks" } else { "fusions" };
        format!("{kind}.{}", stage.name)
    });
    let places = ["resources", largest.as_deref().unwrap_or("base_model")];
    let mebibytes = |bytes: u64| format!("{} MiB", bytes.div_ceil(1 << 20));
    if estimate.memory_bytes > machine.memory_bytes {
        let message = format!(
            "training is expected to need {} of memory, but {} are free",
            mebibytes(estimate.memory_bytes),
            mebibytes(machine.memory_bytes)
        );
        let help = "use a smaller batch_size or max_length, fewer threads, or a machine with more memory";
        problems.add_at_first(&places, Diagnostic::error("memory", message).help(help));
    }
    let hub = PathBuf::from(&job.publish.hub);
    for (folder, places) in [(&machine.state, &places[..]), (&hub, &["publish.hub"])] {
        let Ok(free) = graftwork_store::free_bytes(folder) else { continue };
        if free < estimate.disk_bytes {
            let message = format!(
                "training is expected to need {} of disk, but {} are free in {}",
                mebibytes(estimate.disk_bytes),
                mebibytes(free),
                folder.display()
            );
            let help = "free some space, or use another folder";
            problems.add_at_first(places, Diagnostic::error("disk", message).help(help));
        }
    }
}

impl Machine {
    /// This machine, as it is now.
    pub(crate) fn here(threads: u32, workers: u32, state: PathBuf) -> Self {
        let limit = std::fs::read_to_string(CGROUP_LIMIT).ok();
        Self { memory_bytes: available_memory(&meminfo(), limit.as_deref()), threads, workers, state }
    }
}

/// The control group's limit, which the worker keeps to as well (`Memory::read` of its `computer.rs`).
const CGROUP_LIMIT: &str = "/sys/fs/cgroup/memory.max";

fn meminfo() -> String {
    std::fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

/// Memory that programs can have now: what is free, or the control group's limit where that is lower. All there could be
/// where the system does not tell.
fn available_memory(meminfo: &str, limit: Option<&str>) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
    let free = kibibytes.map_or(u64::MAX, |number| number * 1024);
    // Without a limit the file says `max`.
    let limit = limit.and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX);
    free.min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_is_free_within_the_control_groups_limit() {
        let meminfo = "MemTotal:        4096 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(available_memory(meminfo, None), 2048 * 1024);
        assert_eq!(available_memory(meminfo, Some("max\n")), 2048 * 1024);
        assert_eq!(available_memory(meminfo, Some("1048576\n")), 1_048_576);
        assert_eq!(available_memory("", Some("9999999999999\n")), 9_999_999_999_999);
    }
}
