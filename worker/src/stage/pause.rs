//! A trial at its rung: it says how good it is, makes its state durable, and stops for a while or for good.
//!
//! Nothing of it may change what the trial publishes if it goes on. The scores of a rung are taken beside the training:
//! they are not recorded, so neither the choice of the best weights nor an early stop knows of them, and the checkpoint
//! has the bytes that it would have had without a pause. A trial that goes on from it thus ends with the bytes of one
//! that was never compared.

use std::time::Instant;

use graftwork_shared::{assignment::Evaluation, data::Split};

use super::{
    Host, StageEnd,
    drive::{Driver, check_loss},
    failure,
    membership::Halt,
};

impl<H: Host> Driver<'_, H> {
    /// Whether the assignment ends here: at its update, or where training was over before.
    pub(super) fn pauses(&self) -> bool {
        let until = self.assignment.until;
        until.is_some_and(|until| self.trainer().is_finished() || self.trainer().progress().step >= until)
    }

    /// The end of a trial's rung, which rank 0 has.
    pub(super) fn pause(&mut self) -> Result<Option<StageEnd>, Halt> {
        self.drop_input();
        self.report_rest();
        let finished = self.trainer().is_finished();
        let scores = if finished { self.kept_scores()? } else { self.present_scores()? };
        self.host.on_cost(self.cost());
        self.checkpoint()?;
        if !self.membership.leads() {
            return Ok(None);
        }
        self.membership.dissolve(None);
        Ok(Some(StageEnd::Paused { scores, finished }))
    }

    /// The recorded scores of the weights that would be published, as those of the training's last update.
    fn kept_scores(&self) -> Result<Evaluation, Halt> {
        let (progress, kept) = (self.trainer().progress(), self.trainer().kept_step());
        let scores = progress.evaluations.iter().find(|evaluation| evaluation.step == kept);
        let scores = scores.ok_or_else(|| {
            failure::machine(format!("a training of {} updates ended without scores of its weights", progress.step))
        })?;
        Ok(Evaluation { step: progress.step, ..scores.clone() })
    }

    /// The scores of the weights of now, computed anew unless they are on record.
    fn present_scores(&mut self) -> Result<Evaluation, Halt> {
        let progress = self.trainer().progress();
        let step = progress.step;
        if let Some(recorded) = progress.evaluations.last().filter(|evaluation| evaluation.step == step) {
            return Ok(recorded.clone());
        }
        let began = Instant::now();
        let scored = self.score(Split::Validation)?;
        let scored = scored.ok_or_else(|| failure::machine("a stage without validation rows has no score"))?;
        let scores = scored.evaluation(step);
        check_loss(&scores)?;
        self.meter.pause(began);
        Ok(scores)
    }
}
