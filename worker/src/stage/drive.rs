//! The training loop of one stage: rows in, updates, evaluations, checkpoints, and at the end the result.
//!
//! ```text
//!        ┌────────────────────────────────────────────────────────────┐
//!        ▼                                                            │
//! evaluate if due ─► finished? ─► checkpoint if due ─► interrupted? ─► update
//!                       │                                 │
//!                       ▼                                 ▼
//!              score, upload, result               StageEnd::Interrupted
//! ```
//!
//! What is due follows from the trainer's state alone, so a run that goes on from any checkpoint does what the
//! undisturbed run does. The controller thread never computes with libtorch: lanes and updates are device tasks.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use graftwork_dataset::{Access, DEFAULT_WINDOW_BYTES, GroupDigests, Order, ReadRequest};
use graftwork_engine::{
    Consumed, EngineError, Input, InputCost, InputRequest, Lane, LaneOutput, Network, Scored, StepOptions, StepOutcome,
    TextEncoder, Trainer,
};
use graftwork_shared::{
    assignment::{Assignment, Failure, StageResult},
    data::{Split, SplitManifest},
    digest::Digest,
    recipe::{Method, NumericClass},
};

use super::{
    Host, StageEnd, failure,
    meter::{Meter, Place, TaskCost, measured},
    network::{acting, run_one, set_parameters},
    score::{ScoredSplit, Scorer},
};

/// Everything a stage's loop works with.
pub(super) struct Driver<'a, H> {
    pub(super) assignment: &'a Assignment,
    pub(super) host: &'a H,
    pub(super) access: Access,
    pub(super) encoder: Arc<TextEncoder>,
    pub(super) network: Network,
    pub(super) meter: Meter,
    pub(super) recipe_digest: Digest,
    pub(super) numeric_class: NumericClass,
    pub(super) on_gpu: bool,
    pub(super) layers: u32,
    pub(super) state: DriverState,
}

/// What the loop remembers between updates; none of it decides a byte.
#[derive(Default)]
pub(super) struct DriverState {
    /// The rows, once training asked for one.
    input: Option<Input>,
    /// What reading the training rows has cost in this attempt.
    input_cost: InputCost,
    /// The update of the last durable checkpoint. A stage that started over uploads nothing before it is beyond it:
    /// the coordinator takes checkpoints in growing order.
    checkpointed: u64,
    /// Validation scores of the weights that would be published, when this attempt computed them.
    kept: Option<(u64, Scored)>,
    /// Row digests of the scored splits.
    groups: BTreeMap<Split, GroupDigests>,
}

impl DriverState {
    /// A loop that goes on from a durable checkpoint after so many updates.
    pub(super) fn after(step: u64) -> Self {
        Self { checkpointed: step, ..Self::default() }
    }
}

/// The host asked to stop in the middle of something that starts over when the stage goes on.
struct Stopped;

impl<H: Host> Driver<'_, H> {
    /// Trains to the end, or until the host interrupts.
    pub(super) fn drive(mut self, mut trainer: Trainer) -> Result<StageEnd, Failure> {
        loop {
            if trainer.evaluation_is_due() && self.evaluate(&mut trainer)?.is_err() {
                return self.interrupt(&trainer);
            }
            if trainer.is_finished() {
                break;
            }
            if trainer.checkpoint_is_due() {
                self.checkpoint(&trainer)?;
            }
            if self.host.interrupted() {
                return self.interrupt(&trainer);
            }
            trainer = self.update(trainer)?;
        }
        self.state.input = None;
        self.report_rest();
        match self.finish(&trainer)? {
            Ok(result) => Ok(StageEnd::Finished(result)),
            Err(Stopped) => self.interrupt(&trainer),
        }
    }

    /// Whether the validation rows give the kept weights the very score that is on record. `None` when the host
    /// interrupted.
    pub(super) fn scores_again(&mut self, trainer: &Trainer) -> Result<Option<bool>, Failure> {
        let (step, evaluations) = (trainer.kept_step(), &trainer.progress().evaluations);
        let Some(recorded) = evaluations.iter().find(|evaluation| evaluation.step == step) else {
            return Ok(Some(evaluations.is_empty()));
        };
        set_parameters(self.host, &self.network, trainer.kept_parameters());
        let Some(scored) = self.score(Split::Validation)? else { return Ok(None) };
        set_parameters(self.host, &self.network, trainer.parameters());
        Ok(Some(scored.evaluation(step) == *recorded))
    }

    fn interrupt(&mut self, trainer: &Trainer) -> Result<StageEnd, Failure> {
        self.report_rest();
        self.checkpoint(trainer)?;
        Ok(StageEnd::Interrupted)
    }

    fn report_rest(&mut self) {
        if let Some(report) = self.meter.last_report() {
            self.host.on_step(report);
        }
    }

    /// One optimizer update: its lanes on the device threads, then the update itself on one of them.
    fn update(&mut self, trainer: Trainer) -> Result<Trainer, Failure> {
        let update = self.input(&trainer).next_update().map_err(|error| failure::of_input(&error))?;
        let (rows, tokens) = (update.consumed.rows, update.consumed.tokens);
        self.state.input_cost = update.consumed.cost;
        let outputs = self.compute(update.lanes, trainer.step_options(rows))?;
        let (trainer, outcome) = self.apply(trainer, outputs, update.consumed)?;
        let progress = trainer.progress();
        let place = Place {
            step: progress.step,
            total_steps: trainer.total_steps(),
            epoch: progress.epochs_done(self.assignment.train.rows),
        };
        let waited = self.state.input.as_ref().map_or(Duration::ZERO, Input::waited);
        if let Some(report) = self.meter.report(outcome, [rows, tokens], waited, place) {
            self.host.on_step(report);
        }
        Ok(trainer)
    }

    fn input(&mut self, trainer: &Trainer) -> &mut Input {
        self.state.input.get_or_insert_with(|| {
            let (recipe, position) = (&self.assignment.recipe, trainer.progress().position());
            let read = ReadRequest {
                manifest: self.assignment.train.clone(),
                columns: recipe.columns.clone(),
                output: recipe.head.output.clone(),
                order: Order::Shuffled { seed: recipe.training.seed, window_bytes: DEFAULT_WINDOW_BYTES },
                epoch: position.epoch,
                cursor: position.cursor,
                groups: GroupDigests::default(),
            };
            let updates = trainer.total_steps().saturating_sub(trainer.progress().step);
            let (access, shape) = (self.access.clone(), trainer.shape());
            let request = InputRequest { read, access, shape, position, updates };
            Input::start(self.host.rows(), request, Arc::clone(&self.encoder))
        })
    }

    /// Every lane's loss and gradient, in the order of the lanes.
    fn compute(&mut self, lanes: Vec<Option<Lane>>, options: StepOptions) -> Result<Vec<Option<LaneOutput>>, Failure> {
        let options = Arc::new(options);
        let present: Vec<bool> = lanes.iter().map(Option::is_some).collect();
        let tasks = lanes.into_iter().flatten().map(|lane| lane_task(self.network.share(), lane, Arc::clone(&options)));
        let mut outputs = Vec::with_capacity(present.len());
        for (output, cost) in self.host.run(tasks.collect()) {
            self.meter.add_task(cost, self.on_gpu);
            outputs.push(output.map_err(failure::of_engine)?);
        }
        let mut outputs = outputs.into_iter();
        Ok(present.into_iter().map(|present| if present { outputs.next() } else { None }).collect())
    }

    /// The trainer travels to a device thread and back, so that the sum and the optimizer take turns with the lanes of
    /// other stages instead of competing with them for the cores.
    fn apply(
        &mut self,
        mut trainer: Trainer,
        outputs: Vec<Option<LaneOutput>>,
        consumed: Consumed,
    ) -> Result<(Trainer, StepOutcome), Failure> {
        let network = self.network.share();
        let ((trainer, outcome), cost) = run_one(self.host, move || {
            measured(move || {
                let outcome = trainer.apply(outputs, consumed);
                network.set_parameters(trainer.parameters());
                (trainer, outcome)
            })
        });
        self.meter.add_task(cost, self.on_gpu);
        Ok((trainer, outcome.map_err(failure::of_training)?))
    }

    /// Makes the state durable, unless it is already.
    fn checkpoint(&mut self, trainer: &Trainer) -> Result<(), Failure> {
        let progress = trainer.progress();
        let step = progress.step;
        if step <= self.state.checkpointed {
            return Ok(());
        }
        let began = Instant::now();
        let usage = self.meter.usage(self.state.input_cost, progress.examples, progress.tokens);
        let bytes = trainer.checkpoint(self.recipe_digest, usage).map_err(failure::of_checkpoint)?;
        let blob = self.host.put_blob(bytes).map_err(|error| failure::of_host(&error))?;
        self.host.on_checkpoint(step, blob).map_err(|error| failure::of_host(&error))?;
        self.state.checkpointed = step;
        self.meter.pause(began);
        Ok(())
    }

    /// Scores validation with the current weights and records it.
    fn evaluate(&mut self, trainer: &mut Trainer) -> Result<Result<(), Stopped>, Failure> {
        let began = Instant::now();
        let Some(scored) = self.score(Split::Validation)? else { return Ok(Err(Stopped)) };
        let step = trainer.progress().step;
        let evaluation = scored.evaluation(step);
        if !evaluation.loss.is_finite() {
            let message = format!("training diverged: the validation loss after update {step} is {}", evaluation.loss);
            return Err(failure::user(format!("{message}; lower learning_rate or set clip_norm")));
        }
        self.host.on_evaluation(&evaluation);
        trainer.record(evaluation);
        if trainer.kept_step() == step {
            self.state.kept = Some((step, scored));
        }
        self.meter.pause(began);
        Ok(Ok(()))
    }

    fn manifest(&self, split: Split) -> Option<&SplitManifest> {
        match split {
            Split::Train => Some(&self.assignment.train),
            Split::Validation => Some(&self.assignment.validation),
            Split::Test => self.assignment.test.as_ref(),
        }
    }

    fn score(&mut self, split: Split) -> Result<Option<Scored>, Failure> {
        let Some(manifest) = self.manifest(split).cloned() else { return Ok(None) };
        let known = self.state.groups.get(&split).cloned().unwrap_or_default();
        let scorer = Scorer {
            assignment: self.assignment,
            host: self.host,
            access: &self.access,
            encoder: &self.encoder,
            network: &self.network,
            on_gpu: self.on_gpu,
        };
        let Some(ScoredSplit { scored, groups }) = scorer.score(&manifest, &known, &mut self.meter)? else {
            return Ok(None);
        };
        self.state.groups.insert(split, groups);
        Ok(Some(scored))
    }

    /// Scores the weights to publish and uploads everything.
    fn finish(&mut self, trainer: &Trainer) -> Result<Result<StageResult, Stopped>, Failure> {
        let step = trainer.kept_step();
        set_parameters(self.host, &self.network, trainer.kept_parameters());
        let mut splits = BTreeMap::new();
        let validation = match self.state.kept.take() {
            Some((kept, scored)) if kept == step => Some(scored),
            _ => self.score(Split::Validation)?,
        };
        let Some(validation) = validation else { return Ok(Err(Stopped)) };
        let attention = self.attention(&validation);
        splits.insert(Split::Validation, validation);
        if self.assignment.test.is_some() {
            let Some(test) = self.score(Split::Test)? else { return Ok(Err(Stopped)) };
            splits.insert(Split::Test, test);
        }
        let upload = |bytes| self.host.put_blob(bytes).map_err(|error| failure::of_host(&error));
        let mut predictions = BTreeMap::new();
        for (split, scored) in &splits {
            predictions.insert(*split, upload(scored.lines())?);
        }
        let weights = upload(graftwork_model::safetensors::write(&trainer.kept_tensors(), &BTreeMap::new()))?;
        let progress = trainer.progress();
        let groups = self.state.groups.iter().map(|(&split, groups)| (split, groups.digest()));
        Ok(Ok(StageResult {
            weights,
            steps: progress.step,
            best_step: step,
            validation: progress.evaluations.clone(),
            scores: splits.iter().map(|(&split, scored)| (split, scored.evaluation(step))).collect(),
            predictions,
            data: groups.chain([(Split::Train, progress.groups.digest())]).collect(),
            epochs: progress.epoch_digests(),
            attention,
            trained_parameters: trainer.parameters().len() as u64,
            numeric_class: self.numeric_class.clone(),
            usage: self.meter.usage_beside_the_host(self.state.input_cost, progress.examples, progress.tokens),
        }))
    }

    /// Mean attention `[layer][adapter]`; empty for an adapter stage. An adapter without a site in a layer gets 0.
    fn attention(&self, scored: &Scored) -> Vec<Vec<f64>> {
        let Method::Fusion { adapters, .. } = &self.assignment.recipe.method else { return Vec::new() };
        let measured = scored.attention();
        let row = |layer| {
            let mut row = vec![0.0; adapters.len()];
            let weights = measured.get(&layer).into_iter().flatten();
            acting(adapters, layer).into_iter().zip(weights).for_each(|(position, &weight)| row[position] = weight);
            row
        };
        (0..self.layers).map(row).collect()
    }
}

type LaneTask = Box<dyn FnOnce() -> (Result<LaneOutput, EngineError>, TaskCost) + Send>;

fn lane_task(network: Network, lane: Lane, options: Arc<StepOptions>) -> LaneTask {
    Box::new(move || measured(|| network.lane(&lane, &options.lane())))
}
