//! One assignment from its last checkpoint to its result, as a blocking driver on a controller thread.
//!
//! The driver decides nothing about places, leases or retries, and it never touches a socket: what it needs from the
//! outside it asks of its [`Host`]. Every byte of a result is a function of the assignment's recipe and data alone
//! (invariant 5): the host's number of threads, its speed and interruptions change when a byte is computed, never
//! which.

mod compute;
mod data;
mod drive;
mod exchange;
mod failure;
mod membership;
mod meter;
mod network;
mod pause;
mod score;
#[cfg(test)]
mod tests;

pub(crate) use exchange::Cuts;
pub(crate) use meter::REPORT_EVERY_MS;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use graftwork_collective::{CollectiveError, Group};
use graftwork_dataset::Access;
use graftwork_engine::{Course, Device, Shelves, Trainer, Trunk};
use graftwork_proto::Formation;
use graftwork_shared::{
    NUMERICS_VERSION,
    assignment::{Assignment, Evaluation, Failure, StageResult, Usage},
    data::Split,
    digest::Digest,
    event::StepReport,
    upload::UploadedFile,
};
use graftwork_store::Fetched;

use crate::{computer::numeric_class, meters::Update as Counted, pool::Turn, waiting::Waiting};
use drive::{Driver, DriverState};
use membership::Membership;
use meter::Meter;
use network::Built;

/// What a stage needs from the process that runs it.
pub(crate) trait Host {
    /// Runs the tasks on the device threads and returns what they gave, in the order of the tasks.
    fn run<T: Send + 'static>(&self, turn: Turn, tasks: Vec<Box<dyn FnOnce() -> T + Send>>) -> Vec<T> {
        self.run_while(turn, tasks, || ())
    }

    /// The same, and does something else on the calling thread meanwhile.
    fn run_while<T: Send + 'static>(
        &self,
        turn: Turn,
        tasks: Vec<Box<dyn FnOnce() -> T + Send>>,
        meanwhile: impl FnOnce(),
    ) -> Vec<T>;

    /// How gradients travel in a group.
    fn cuts(&self) -> Cuts {
        Cuts::default()
    }

    /// Whether the lanes of an update are one task, in which the device is waited for once, and not a task each. Changes no
    /// byte.
    fn lanes_together(&self) -> bool {
        false
    }

    /// How many lanes with so many gradients each are computed before they are added up, where there are more. Changes no byte.
    fn lanes_at_once(&self, gradients: usize) -> usize;

    /// How far apart two reports are at least.
    fn report_every(&self) -> Duration {
        Duration::from_millis(REPORT_EVERY_MS)
    }

    /// A blob's bytes.
    fn get_blob(&self, digest: Digest) -> anyhow::Result<Vec<u8>>;

    /// An uploaded file as a file of this machine, fetched once, and kept at least as long as what is given.
    fn uploaded_file(&self, file: UploadedFile) -> anyhow::Result<Fetched>;

    /// Stores a blob durably.
    fn put_blob(&self, bytes: Vec<u8>) -> anyhow::Result<Digest>;

    /// Tells the coordinator of a checkpoint; returns when it acknowledged.
    fn on_checkpoint(&self, step: u64, blob: Digest) -> anyhow::Result<()>;

    /// Passes a report on; never blocks.
    fn on_step(&self, report: StepReport);

    /// Takes note of an update; never blocks.
    fn on_update(&self, _: Counted) {}

    /// Passes a validation score on; never blocks.
    fn on_evaluation(&self, evaluation: &Evaluation);

    /// Takes note of what this attempt has cost so far, without the CPU time of the calling thread and of the host's
    /// device threads, which the host counts itself; never blocks.
    fn on_cost(&self, cost: Usage);

    /// Whether to stop: the driver checkpoints at the next step and returns [`StageEnd::Interrupted`].
    fn interrupted(&self) -> bool;

    /// The latest formation that this stage was told of.
    fn formation(&self) -> Formation;

    /// The first formation after this epoch, once it is told of it; `None` when it is to stop.
    fn next_formation(&self, after: u64) -> Option<Formation>;

    /// Forms the group; it can be aborted from then on.
    fn form(&self, formation: Formation) -> Result<Box<dyn Group>, CollectiveError>;

    /// Where it is kept whether this stage waits for its fellows.
    fn waiting(&self) -> Waiting {
        Waiting::default()
    }

    /// Tells that everything is loaded and the next formation may hold this stage; never blocks for long.
    fn on_prepared(&self);

    /// Tells that the group of this epoch failed for this member, and why; never blocks for long.
    fn on_broken(&self, epoch: u64, reason: String);

    /// The base model at a location, opened once per process and shared. Its digest must be this one.
    fn trunk(&self, location: &str, digest: Digest) -> anyhow::Result<Trunk>;

    /// Where to keep what other stages and later runs would compute again; changes no byte of a result.
    fn shelves(&self) -> Option<Arc<Shelves>>;

    /// The async runtime on which rows are read.
    fn rows(&self) -> &tokio::runtime::Handle;
}

/// How a stage's run ended, other than by a failure.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each stage")]
pub(crate) enum StageEnd {
    /// Trained, scored, and uploaded.
    Finished(StageResult),
    /// A trial came to the update after which it pauses, or to the end of its training before; its checkpoint is
    /// acknowledged.
    Paused {
        /// Validation scores: of the weights of the update, or of those kept by a training that is over.
        scores: Evaluation,
        /// Its training is over.
        finished: bool,
    },
    /// The host asked to stop, and the last checkpoint is acknowledged; or whoever had the state of the stage is gone, and it
    /// is to go on from the checkpoint that there is.
    Interrupted,
}

/// Trains, scores and uploads one stage. Blocks until then, or until the host interrupts.
///
/// The result's `usage` is that of this attempt, and its `core_seconds` leave out the CPU time of the calling thread and
/// of the host's device threads: the host counts those for all that it runs.
///
/// With `joining`, others train the stage already: this member loads everything, waits to be formed, and takes up their
/// state.
///
/// # Errors
/// A [`Failure`] that says whose fault it is: the job's and its data's, or the machine's.
pub(crate) fn run_stage<H: Host>(assignment: &Assignment, joining: bool, host: &H) -> Result<StageEnd, Failure> {
    let (meter, began) = (Meter::start(host.report_every()), Instant::now());
    if assignment.recipe.numerics_version != NUMERICS_VERSION {
        return Err(failure::of_numerics(assignment.recipe.numerics_version));
    }
    let access = Access::from_environment(assignment.data_credentials.as_deref());
    let access = access.map_err(|error| failure::of_data(&error))?;
    // Held until the stage ends: nobody makes room with what it reads.
    let uploads = data::uploads(assignment, host)?;
    let access = access.with_uploads(uploads.iter().map(|(digest, file)| (*digest, file.to_path_buf())).collect());
    let pinned = data::pin(assignment, &access, host)?;
    if joining && pinned.has_moved() {
        return Err(failure::machine("files were touched since planning, and members must read the same rows"));
    }
    let (assignment, recipe) = (&pinned.assignment, &pinned.assignment.recipe);
    let trunk = host.trunk(&assignment.base_model, recipe.base_model).map_err(|error| failure::of_host(&error))?;
    let trunk = network::in_precision(trunk, recipe.training.precision)?;
    let description = trunk.description();
    let encoder = trunk.encoder(recipe.training.max_length).map_err(|error| failure::of_input(&error))?;
    let encoder = match host.shelves() {
        Some(shelves) => encoder.keeping(&shelves, &data::files_digest(recipe)),
        None => encoder,
    };
    let Built { network, setup } = network::build(assignment, &trunk, host)?;
    network.keep_below(&network::kept(recipe, &trunk, host));
    let course = Course { training: recipe.training.clone(), metric: recipe.metric, rows: assignment.train.rows };
    let untrained =
        Trainer::new(course, &setup, network.layout(), network.parameters()).map_err(failure::of_training)?;
    let mut trainer = untrained.clone();
    let recipe_digest = recipe.digest();
    let mut accepted_step = 0;
    if let Some(blob) = assignment.resume {
        let bytes = host.get_blob(blob).map_err(|error| failure::of_host(&error))?;
        trainer.resume(&bytes, recipe_digest).map_err(failure::of_checkpoint)?;
        accepted_step = trainer.progress().step;
        if pinned.moved(Split::Train) && !data::was_trained_on(assignment, trainer.progress(), &access, host)? {
            tracing::warn!("rows changed behind the checkpoint of step {accepted_step}: the stage starts over");
            trainer = untrained.clone();
        }
        network::set_parameters(host, &network, trainer.parameters());
    }
    let mut driver = Driver {
        assignment,
        host,
        access,
        encoder: Arc::new(encoder),
        meter,
        recipe_digest,
        numeric_class: numeric_class(trunk.device()),
        on_gpu: trunk.device() != Device::Cpu,
        layers: description.layers,
        state: DriverState::after(accepted_step),
        parts: Arc::new(network.parts(host.cuts().part_numbers)),
        network: network.for_rows_that_return(trainer.repeats_rows()),
        trainer: Some(trainer),
        membership: Membership::alone(),
    };
    if pinned.moved(Split::Validation) {
        match driver.scores_again()? {
            None => return Ok(StageEnd::Interrupted),
            Some(true) => {}
            Some(false) => {
                tracing::warn!("validation rows changed since step {accepted_step}: the stage starts over");
                network::set_parameters(host, &driver.network, untrained.parameters());
                driver.trainer = Some(untrained.clone());
            }
        }
    }
    // As large as what is trained, and no longer needed.
    drop(untrained);
    let progress = driver.trainer().progress();
    let trained = [progress.examples, progress.tokens];
    driver.meter.go_on_from(trained);
    // Whoever has loaded for long is not slow for that.
    driver.meter.pause(began);
    if joining {
        driver.membership = Membership::joining();
        host.on_prepared();
    }
    driver.drive()
}
