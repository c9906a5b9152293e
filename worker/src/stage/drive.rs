//! The training loop of one stage: rows in, updates, evaluations, checkpoints, and at the end the result.
//!
//! ```text
//! assemble ─► evaluate if due ─► finished? ─► checkpoint if due ─► halted? ─► update ─┐
//!    ▲               ▲               │                                │               │
//!    │               └───────────────┼────────────────────────────────┼───────────────┘
//!    │                               ▼                                ▼
//!    │                     score, upload, result           StageEnd::Interrupted
//!    └── the group changes: from anywhere                  (or a new formation)
//! ```
//!
//! A trial of a sweep leaves the loop at its rung (`pause.rs`).
//!
//! What is due follows from the trainer's state alone, so a run that goes on from any checkpoint does what the
//! undisturbed run does. The controller thread never computes with libtorch: lanes and updates are device tasks.
//!
//! Members of a group ([`Membership`]) all run this loop over the same state. They leave it together, form anew, compare
//! states and enter it again; only rank 0 uploads and has a result.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use graftwork_dataset::{Access, DEFAULT_WINDOW_BYTES, GroupDigests, Order, ReadRequest};
use graftwork_engine::{Input, InputCost, InputRequest, Network, Parts, Scored, TextEncoder, TrainError, Trainer};
use graftwork_shared::{
    assignment::{Assignment, Evaluation, Failure, StageResult, Usage},
    data::{Split, SplitManifest},
    digest::Digest,
    event::StepReport,
    recipe::{Method, NumericClass},
};

use super::{
    Counted, Host, StageEnd,
    compute::Ahead,
    failure,
    membership::{Adopted, Halt, Membership, Standing},
    meter::{Meter, Place, Waits, measured},
    network::{acting, run_one, set_parameters},
    score::{ScoredSplit, Scorer},
};
use crate::pool::Turn;

/// Everything a stage's loop works with.
pub(super) struct Driver<'a, H> {
    pub(super) assignment: &'a Assignment,
    pub(super) host: &'a H,
    pub(super) access: Access,
    pub(super) encoder: Arc<TextEncoder>,
    pub(super) network: Network,
    /// The parts in which gradients travel.
    pub(super) parts: Arc<Parts>,
    /// `None` only while it is on a device thread.
    pub(super) trainer: Option<Trainer>,
    pub(super) membership: Membership,
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
    /// An update that was taken from there before its turn.
    pub(super) ahead: Option<Ahead>,
    /// What reading the training rows has cost in this attempt.
    input_cost: InputCost,
    /// The update of the last durable checkpoint. A stage that started over uploads nothing before it is beyond it:
    /// the coordinator takes checkpoints in growing order.
    checkpointed: u64,
    /// What training had waited for when its last update was counted.
    waited: Waits,
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

impl<H: Host> Driver<'_, H> {
    /// Trains to the end, or until the host interrupts.
    pub(super) fn drive(mut self) -> Result<StageEnd, Failure> {
        loop {
            match self.train() {
                Ok(Some(end)) => return Ok(end),
                // Whoever does not lead stays until it is dismissed, to take the lead if that is lost.
                Ok(None) | Err(Halt::Regroup) => self.membership.dissolve(None),
                Err(Halt::Broken(reason)) => {
                    tracing::warn!(reason, "the group broke");
                    self.membership.dissolve(Some(reason));
                    // The rows of the update that nobody applied are read again.
                    self.drop_input();
                }
                Err(Halt::Stopped) => return self.interrupt(),
                Err(Halt::Failed(failure)) => return Err(failure),
            }
        }
    }

    /// From wherever the state stands to the end, which rank 0 has: the result, or a trial's scores at its rung.
    fn train(&mut self) -> Result<Option<StageEnd>, Halt> {
        self.assemble()?;
        loop {
            if self.trainer().evaluation_is_due() {
                self.evaluate()?;
            }
            if self.pauses() {
                return self.pause();
            }
            if self.trainer().is_finished() {
                break;
            }
            if self.trainer().checkpoint_is_due() {
                self.checkpoint()?;
            }
            self.membership.check(self.host)?;
            self.membership.waiting().after(self.trainer().progress().step);
            self.update()?;
        }
        let late = self.state.input.take().map_or(0, |input| input.late());
        tracing::debug!(late, tokenised = self.encoder.tokenised(), "updates whose rows were waited for");
        self.report_rest();
        Ok(self.finish()?.map(StageEnd::Finished))
    }

    pub(super) fn trainer(&self) -> &Trainer {
        self.trainer.as_ref().expect("it is back from the device thread")
    }

    /// Forms the group this member was told of, if it is in none, and takes up the state of whoever is furthest.
    fn assemble(&mut self) -> Result<(), Halt> {
        let began = Instant::now();
        let (shape, led) = (self.trainer().shape(), self.membership.leads());
        let Some(formation) = self.membership.assemble(self.host, shape.lanes * shape.accumulation)? else {
            return Ok(());
        };
        let (standing, state_bytes) = self.standing()?;
        let recipe = self.recipe_digest;
        let trainer = self.trainer.as_ref().expect("it is back from the device thread");
        let state = || trainer.checkpoint(recipe).map_err(failure::of_checkpoint);
        // A member that was alone before knows the scores of the weights it keeps, another one does not.
        let adopted = self.membership.adopt((&standing, state_bytes), state)?;
        self.state.kept = None;
        self.state.checkpointed = formation.checkpointed.max(if led { self.state.checkpointed } else { 0 });
        let copied = matches!(adopted, Adopted::State(_));
        if let Adopted::State(bytes) = adopted {
            self.drop_input();
            let trainer = self.trainer.as_mut().expect("it is back from the device thread");
            trainer.resume(&bytes, recipe).map_err(failure::of_checkpoint)?;
            set_parameters(self.host, &self.network, trainer.parameters());
        }
        let (step, checkpointed) = (self.trainer().progress().step, formation.checkpointed);
        // Whoever trained is gone, and nobody here had their state: the lease goes back without blame, and the stage is
        // handed out again with its checkpoint.
        if self.membership.is_new() && !copied && step < checkpointed {
            tracing::warn!(
                checkpointed,
                "whoever trained this stage is gone, and this worker had just come: it gives it back"
            );
            return Err(Halt::Stopped);
        }
        // A member may be one update behind what the leader made durable before it was lost.
        if step + 1 < checkpointed {
            let message = format!(
                "the members of the group stand after update {step}, and the checkpoint after update {checkpointed}: \
                 another attempt goes on from there"
            );
            return Err(failure::machine(message).into());
        }
        if self.membership.leads() && !led {
            // What was trained before is counted by whoever led then.
            let progress = self.trainer().progress();
            let trained = [progress.examples, progress.tokens];
            self.meter.go_on_from(trained);
        }
        let (standing, _) = self.standing()?;
        self.membership.confirm(&standing.digest)?;
        self.meter.pause(began);
        Ok(())
    }

    /// Reading goes on from the trainer's place with the next update.
    pub(super) fn drop_input(&mut self) {
        self.state.input = None;
        self.state.ahead = None;
        self.meter.add_input(std::mem::take(&mut self.state.input_cost));
    }

    /// How far this member is, and how many bytes that are.
    fn standing(&self) -> Result<(Standing, usize), Failure> {
        let trainer = self.trainer();
        let bytes = trainer.checkpoint(self.recipe_digest).map_err(failure::of_checkpoint)?;
        let progress = trainer.progress();
        let digest = Digest::of(&bytes).to_string();
        let standing = Standing { step: progress.step, evaluations: progress.evaluations.len(), digest };
        Ok((standing, bytes.len()))
    }

    /// Whether the validation rows give the kept weights the very score that is on record. `None` when the host
    /// interrupted.
    pub(super) fn scores_again(&mut self) -> Result<Option<bool>, Failure> {
        let trainer = self.trainer();
        let (step, evaluations) = (trainer.kept_step(), &trainer.progress().evaluations);
        let Some(recorded) = evaluations.iter().find(|evaluation| evaluation.step == step).cloned() else {
            return Ok(Some(evaluations.is_empty()));
        };
        set_parameters(self.host, &self.network, trainer.kept_parameters());
        let scored = match self.score(Split::Validation) {
            Ok(scored) => scored,
            Err(Halt::Failed(failure)) => return Err(failure),
            Err(Halt::Stopped | Halt::Regroup | Halt::Broken(_)) => return Ok(None),
        };
        set_parameters(self.host, &self.network, self.trainer().parameters());
        Ok(Some(scored.is_some_and(|scored| scored.evaluation(step) == recorded)))
    }

    fn interrupt(mut self) -> Result<StageEnd, Failure> {
        self.report_rest();
        self.membership.dissolve(None);
        self.host.on_cost(self.cost());
        self.checkpoint()?;
        Ok(StageEnd::Interrupted)
    }

    /// What this attempt has cost so far, the host's own part aside.
    pub(super) fn cost(&self) -> Usage {
        let progress = self.trainer().progress();
        let cost = self.meter.cost(self.state.input_cost, [progress.examples, progress.tokens]);
        // The stage's examples, tokens and time are counted once.
        if self.membership.leads() { cost } else { Usage { wall_seconds: 0.0, examples: 0, tokens: 0, ..cost } }
    }

    pub(super) fn report_rest(&mut self) {
        if let Some(report) = self.meter.last_report()
            && self.membership.leads()
        {
            self.host.on_step(report);
        }
    }

    /// One optimizer update: its lanes on the device threads, then the update itself on one of them.
    fn update(&mut self) -> Result<(), Halt> {
        let (own, consumed) = self.next_update()?;
        let (rows, tokens) = (consumed.rows, consumed.tokens);
        self.state.input_cost = consumed.cost;
        let options = self.trainer().step_options(rows);
        let (computed, ahead) = (u32::try_from(own.lanes.len()).unwrap_or(u32::MAX), own.are_staged());
        let outcome = match self.membership.plan().cloned() {
            None => {
                let (mut sums, rest) = self.compute(own, options)?;
                self.on_trainer(move |trainer| {
                    sums.extend(rest);
                    trainer.apply(sums, consumed)
                })?
            }
            Some(plan) => {
                let sum = self.compute_and_exchange(&plan, own, options)?;
                self.on_trainer(move |trainer| trainer.apply_sum(sum, consumed))?
            }
        };
        let progress = self.trainer().progress();
        let place = Place {
            step: progress.step,
            total_steps: self.trainer().total_steps(),
            epoch: progress.epochs_done(self.assignment.train.rows),
            group: self.membership.epoch(),
        };
        let waited = self.membership.waits(self.state.input.as_ref().map_or(Duration::ZERO, Input::waited));
        self.count([rows, tokens], waited, ahead);
        if let Some(report) = self.meter.report(outcome, [rows, tokens], waited, place) {
            // Of a group all say how fast they are; rank 0's report is the stage's.
            self.host.on_step(StepReport { lanes: computed, ..report });
            self.host.on_cost(self.cost());
        }
        Ok(())
    }

    /// Tells the host of an update. Rows and tokens of a group are counted once, by whoever leads it.
    fn count(&mut self, [rows, tokens]: [u64; 2], waited: Waits, ahead: bool) {
        let before = std::mem::replace(&mut self.state.waited, waited);
        let [rows, tokens] = if self.membership.leads() { [rows, tokens] } else { [0, 0] };
        self.host.on_update(Counted {
            rows,
            tokens,
            input_wait: waited.rows.saturating_sub(before.rows),
            exchange_wait: waited.members.saturating_sub(before.members),
            sent_bytes: waited.sent_bytes.saturating_sub(before.sent_bytes),
            parts: waited.parts.saturating_sub(before.parts),
            early_parts: waited.early_parts.saturating_sub(before.early_parts),
            ahead,
        });
    }

    pub(super) fn input(&mut self) -> &mut Input {
        let trainer = self.trainer.as_ref().expect("it is back from the device thread");
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

    /// The trainer travels to a device thread and back, so that the sum and the optimizer take turns with the lanes of
    /// other stages instead of competing with them for the cores.
    fn on_trainer<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Trainer) -> Result<T, TrainError> + Send + 'static,
    ) -> Result<T, Failure> {
        let network = self.network.share();
        let mut trainer = self.trainer.take().expect("it is back from the device thread");
        let ((trainer, outcome), cost) = run_one(self.host, Turn::First, move || {
            measured(move || {
                let outcome = work(&mut trainer);
                network.set_parameters(trainer.parameters());
                (trainer, outcome)
            })
        });
        self.trainer = Some(trainer);
        self.meter.add_task(cost, self.on_gpu);
        outcome.map_err(failure::of_training)
    }

    /// Makes the state durable, unless it is already. Of a group rank 0 does it; the others take its word.
    pub(super) fn checkpoint(&mut self) -> Result<(), Failure> {
        let step = self.trainer().progress().step;
        if step <= self.state.checkpointed {
            return Ok(());
        }
        self.state.checkpointed = step;
        if !self.membership.leads() {
            return Ok(());
        }
        let began = Instant::now();
        self.host.on_cost(self.cost());
        let bytes = self.trainer().checkpoint(self.recipe_digest).map_err(failure::of_checkpoint)?;
        let blob = self.host.put_blob(bytes).map_err(|error| failure::of_host(&error))?;
        self.host.on_checkpoint(step, blob).map_err(|error| failure::of_host(&error))?;
        self.meter.pause(began);
        Ok(())
    }

    /// Scores validation with the current weights and records it.
    fn evaluate(&mut self) -> Result<(), Halt> {
        let began = Instant::now();
        let Some(scored) = self.score(Split::Validation)? else { return Ok(()) };
        let step = self.trainer().progress().step;
        let evaluation = scored.evaluation(step);
        check_loss(&evaluation)?;
        if self.membership.leads() {
            self.host.on_evaluation(&evaluation);
        }
        self.host.on_cost(self.cost());
        let trainer = self.trainer.as_mut().expect("it is back from the device thread");
        trainer.record(evaluation);
        if trainer.kept_step() == step {
            self.state.kept = Some((step, scored));
        }
        self.meter.pause(began);
        Ok(())
    }

    fn manifest(&self, split: Split) -> Option<&SplitManifest> {
        match split {
            Split::Train => Some(&self.assignment.train),
            Split::Validation => Some(&self.assignment.validation),
            Split::Test => self.assignment.test.as_ref(),
        }
    }

    /// Scores a split with the network's weights, every member its share; `None` for a split that there is not.
    pub(super) fn score(&mut self, split: Split) -> Result<Option<Scored>, Halt> {
        let Some(manifest) = self.manifest(split).cloned() else { return Ok(None) };
        let known = self.state.groups.get(&split).cloned().unwrap_or_default();
        let scorer = Scorer {
            assignment: self.assignment,
            host: self.host,
            access: &self.access,
            encoder: &self.encoder,
            network: &self.network,
            rows_return: split == Split::Validation && self.trainer().evaluations() > 1,
            on_gpu: self.on_gpu,
        };
        let ScoredSplit { scored, groups } = scorer.score(&manifest, &known, &mut self.membership, &mut self.meter)?;
        self.state.groups.insert(split, groups);
        Ok(Some(scored))
    }

    /// Scores the weights to publish, and, as rank 0, uploads everything.
    fn finish(&mut self) -> Result<Option<StageResult>, Halt> {
        let step = self.trainer().kept_step();
        set_parameters(self.host, &self.network, self.trainer().kept_parameters());
        let mut splits = BTreeMap::new();
        let validation = match self.state.kept.take() {
            Some((kept, scored)) if kept == step => Some(scored),
            _ => self.score(Split::Validation)?,
        };
        splits.extend(validation.map(|scored| (Split::Validation, scored)));
        splits.extend(self.score(Split::Test)?.map(|scored| (Split::Test, scored)));
        if !self.membership.leads() {
            return Ok(None);
        }
        self.membership.dissolve(None);
        let attention = splits.get(&Split::Validation).map(|scored| self.attention(scored)).unwrap_or_default();
        let upload = |bytes| self.host.put_blob(bytes).map_err(|error| failure::of_host(&error));
        let mut predictions = BTreeMap::new();
        for (split, scored) in &splits {
            predictions.insert(*split, upload(scored.lines())?);
        }
        let trainer = self.trainer();
        let weights = upload(graftwork_model::safetensors::write(&trainer.kept_tensors(), &BTreeMap::new()))?;
        let progress = trainer.progress();
        let groups = self.state.groups.iter().map(|(&split, groups)| (split, groups.digest()));
        Ok(Some(StageResult {
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
            usage: self.cost(),
            peak: None,
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

/// Scores without a finite loss are those of a training that came apart.
pub(super) fn check_loss(evaluation: &Evaluation) -> Result<(), Failure> {
    if evaluation.loss.is_finite() {
        return Ok(());
    }
    let Evaluation { step, loss, .. } = evaluation;
    let message = format!("training diverged: the validation loss after update {step} is {loss}");
    Err(failure::user(format!("{message}; lower learning_rate or set clip_norm")))
}
