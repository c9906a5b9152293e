//! What speaks for one worker rather than another that stands equal otherwise: speed, the base model, the rows.
//!
//! All of it is of the moment. A worker of which no speed is known counts as the middle one of those that are, so a new one
//! is neither preferred nor avoided.

use std::{cmp::Reverse, fmt};

use graftwork_shared::{assignment::Holdings, digest::Digest, id::WorkerId};
use serde::{Deserialize, Serialize};

use crate::{
    index::Demand,
    machine::Scheduler,
    pace::{SpeedOf, speed_step},
    plan::PlannedStage,
    serve::Head,
    worker::Worker,
};

/// Why a stage runs where it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// The worker that it was handed to.
    pub worker: WorkerId,
    /// Stages that the worker had then.
    pub stages: u32,
    /// Workers that had room for it, this one included.
    pub of: u32,
    /// Measured tokens a second of one of the worker's cores, on this base model and kind of stage.
    pub speed: Option<f64>,
    /// It had the base model loaded.
    pub base_model_loaded: bool,
    /// It had read the rows before.
    pub rows_read: bool,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.of {
            0 | 1 => write!(f, "{} was the only worker with room", self.worker)?,
            of => write!(f, "{} was chosen of {of} workers with room", self.worker)?,
        }
        let mut reasons = vec![match self.stages {
            0 => "it had nothing else to do".to_owned(),
            1 => "it had 1 other stage".to_owned(),
            stages => format!("it had {stages} other stages"),
        }];
        reasons.extend(self.speed.map(|speed| format!("{speed:.0} tokens a second on a core")));
        reasons.extend(self.base_model_loaded.then(|| "the base model was loaded".to_owned()));
        reasons.extend(self.rows_read.then(|| "the rows were there".to_owned()));
        write!(f, ": {}", reasons.join(", "))
    }
}

/// What speaks for a worker, the most important first.
pub(crate) type Merit = (i64, bool, bool);

impl PlannedStage {
    pub(crate) fn speed_of(&self) -> SpeedOf {
        (self.recipe.base_model, self.kind)
    }

    /// What its rows are known by: the footer of their first file.
    pub(crate) fn rows_id(&self) -> Option<Digest> {
        self.train.files.first().map(|file| file.content.footer)
    }
}

impl Worker {
    pub(crate) fn merit(&self, stage: &PlannedStage, usual: i64) -> Merit {
        let speed = self.speed(&stage.speed_of()).map_or(usual, speed_step);
        (speed, self.trunks.contains(&stage.recipe.base_model), self.has_rows(stage))
    }

    fn has_rows(&self, stage: &PlannedStage) -> bool {
        stage.rows_id().is_some_and(|rows| self.data.contains(&rows))
    }

    pub(crate) fn hold(&mut self, holdings: Holdings) {
        (self.trunks, self.data) = (holdings.base_models, holdings.rows);
    }

    /// It will have the stage's base model and rows.
    pub(crate) fn take_in(&mut self, stage: &PlannedStage) {
        self.trunks.insert(stage.recipe.base_model);
        self.data.extend(stage.rows_id());
    }
}

/// The speed that a worker counts with of which none is known.
pub(crate) fn usual_speed(stage: &PlannedStage, workers: &[(WorkerId, &Worker)]) -> i64 {
    let of = stage.speed_of();
    let mut known: Vec<i64> = workers.iter().filter_map(|(_, worker)| worker.speed(&of)).map(speed_step).collect();
    known.sort_unstable();
    known.get(known.len() / 2).copied().unwrap_or(0)
}

impl Scheduler {
    /// What a worker says it has, and what it was handed and may not have loaded yet.
    pub(crate) fn on_holds(&mut self, worker: WorkerId, holdings: Holdings) {
        self.hear(worker);
        let Some(known) = self.workers.get_mut(&worker) else { return };
        known.hold(holdings);
        for key in known.leases.keys().filter_map(|lease| self.state.live().get(lease)).cloned().collect::<Vec<_>>() {
            let stage = self.state.record(&key).map(|(job, position)| &job.plan.stages[position]);
            if let (Some(known), Some(stage)) = (self.workers.get_mut(&worker), stage) {
                known.take_in(stage);
            }
        }
    }

    /// Stages that a worker has of its own, and all that it has. Whoever only helps is asked to leave its group once it has
    /// a stage of its own; whoever is needed there stays, so that counts as one.
    pub(crate) fn load(&self, worker: WorkerId) -> (usize, usize) {
        let leases = self.workers.get(&worker).map_or(0, |worker| worker.leases.len());
        let helping = self.board.fleet.seats.get(&worker).into_iter().flat_map(|seat| &seat.helping);
        let helps = helping.filter(|lease| !self.is_needed(worker, **lease)).count();
        (leases - helps, leases)
    }

    /// The worker for a stage whose turn it is, and why: of those with room the one with the fewest stages of its own, then
    /// the fewest at all, then the one for which most speaks, then the lowest number.
    pub(crate) fn best_worker(&mut self, head: &Head, kept: &[Demand]) -> Option<Chosen> {
        let roomy = self.roomy(head, kept);
        self.count(roomy.len());
        let load = |id: &WorkerId| self.load(*id);
        let least = roomy.iter().map(load).min()?;
        let mut best: Vec<WorkerId> = roomy.iter().copied().filter(|id| load(id) == least).collect();
        best.sort_unstable();
        let job = self.state.jobs().get(&head.spot.0)?;
        let stage = &job.plan.stages[head.spot.1];
        let of = stage.speed_of();
        let known = |id: &WorkerId| self.workers.get(id).is_some_and(|worker| worker.speed(&of).is_some());
        let knowing = best.iter().filter(|id| known(id)).count();
        // Only against workers whose speed is known it matters what the others count with.
        let compared = best.len() > 1 && (1..best.len()).contains(&knowing);
        let suited = if compared { self.suited(job, head.spot.1).ok()? } else { Vec::new() };
        let usual = usual_speed(stage, &suited);
        let looked_at = suited.len();
        let merit = |id: &WorkerId| self.workers.get(id).map(|worker| worker.merit(stage, usual));
        let worker = best.iter().copied().min_by_key(|id| (Reverse(merit(id)), *id))?;
        let known = self.workers.get(&worker)?;
        let chosen = Chosen {
            worker,
            stages: u32::try_from(known.leases.len()).unwrap_or(u32::MAX),
            of: u32::try_from(roomy.len()).unwrap_or(u32::MAX),
            speed: known.speed(&of),
            base_model_loaded: known.trunks.contains(&stage.recipe.base_model),
            rows_read: known.has_rows(stage),
        };
        self.count(looked_at);
        Some(chosen)
    }
}
