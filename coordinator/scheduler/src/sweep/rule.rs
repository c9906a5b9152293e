//! Who goes on: a pure function of what is known of the trials.
//!
//! Whole rungs: as long as one trial that is to reach the highest rung has no score there, nothing is decided; then the
//! best `entrants / factor` of them, at least one, go on. What is decided thus depends on scores and failures alone, and
//! not on their order. Where all trials that went on failed, the next best of the rung below go on in their place.
//!
//! Asynchronous (ASHA): a trial goes on as soon as it is among the best `scored / factor` of its rung so far.

use std::cmp::Ordering;

use graftwork_shared::sweep::RungScore;

/// What is known of one trial.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Trial<'s> {
    /// The rung to which it may train.
    pub(crate) rung: u32,
    /// It does not go on.
    pub(crate) stopped: bool,
    /// It failed for good.
    pub(crate) failed: bool,
    /// By rung.
    pub(crate) scores: &'s [RungScore],
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    /// Scores are on their way.
    Wait,
    /// These trials, by position, go on to rung `to`; those that are stopped do not.
    Promote {
        /// The rung that was compared.
        rung: u32,
        to: u32,
        promoted: Vec<usize>,
        stopped: Vec<usize>,
    },
    /// This trial is the best.
    Choose(usize),
    /// All trials failed.
    Exhausted,
}

impl Trial<'_> {
    pub(crate) fn score_at(&self, rung: u32) -> Option<&RungScore> {
        self.scores.iter().find(|score| score.rung == rung)
    }

    /// Whether it trains, or is to, before its rung can be compared.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.failed && !self.stopped && self.score_at(self.rung).is_none()
    }

    fn is_open(&self) -> bool {
        !self.failed && !self.stopped
    }
}

/// The rule for trials over rungs `0..=last`.
pub(crate) fn next(trials: &[Trial<'_>], last: u32, factor: u32, asynchronous: bool) -> Next {
    let factor = factor.max(1) as usize;
    if asynchronous { next_as_they_come(trials, last, factor) } else { next_by_rungs(trials, last, factor) }
}

fn next_by_rungs(trials: &[Trial<'_>], last: u32, factor: usize) -> Next {
    let mut candidates = positions(trials, Trial::is_open);
    if candidates.is_empty() {
        candidates = positions(trials, |trial| !trial.failed && trial.score_at(trial.rung).is_some());
    }
    let Some(rung) = candidates.iter().map(|at| trials[*at].rung).max() else { return Next::Exhausted };
    candidates.retain(|at| trials[*at].rung == rung);
    if candidates.iter().any(|at| trials[*at].score_at(rung).is_none()) {
        return Next::Wait;
    }
    let ranked = ranked(trials, candidates, rung);
    if rung == last {
        return Next::Choose(ranked[0]);
    }
    let entrants = trials.iter().filter(|trial| trial.rung >= rung).count();
    let promoted: Vec<usize> = ranked.into_iter().take((entrants / factor).max(1)).collect();
    let stopped = (0..trials.len())
        .filter(|at| trials[*at].rung == rung && !trials[*at].stopped && !promoted.contains(at))
        .collect();
    // One that is alone has nobody to be compared with on the way.
    let to = if promoted.len() == 1 { last } else { rung + 1 };
    Next::Promote { rung, to, promoted: in_order(promoted), stopped }
}

fn next_as_they_come(trials: &[Trial<'_>], last: u32, factor: usize) -> Next {
    for rung in (0..last).rev() {
        let came = positions(trials, |trial| trial.rung >= rung && trial.score_at(rung).is_some());
        let allowed = came.len() / factor;
        let best = ranked(trials, came, rung).into_iter().take(allowed);
        let promoted: Vec<usize> = best.filter(|at| trials[*at].is_open() && trials[*at].rung == rung).collect();
        if !promoted.is_empty() {
            return Next::Promote { rung, to: rung + 1, promoted: in_order(promoted), stopped: Vec::new() };
        }
    }
    if trials.iter().any(Trial::is_awaited) {
        return Next::Wait;
    }
    let mut open = positions(trials, Trial::is_open);
    let Some(rung) = open.iter().map(|at| trials[*at].rung).max() else { return Next::Exhausted };
    open.retain(|at| trials[*at].rung == rung);
    let best = ranked(trials, open, rung)[0];
    if rung == last {
        return Next::Choose(best);
    }
    // Too few came for one to be the best of so many; the best of those that came furthest ends its training.
    Next::Promote { rung, to: last, promoted: vec![best], stopped: Vec::new() }
}

fn positions<'t>(trials: &[Trial<'t>], holds: impl Fn(&Trial<'t>) -> bool) -> Vec<usize> {
    (0..trials.len()).filter(|at| holds(&trials[*at])).collect()
}

fn in_order(mut positions: Vec<usize>) -> Vec<usize> {
    positions.sort_unstable();
    positions
}

/// The best first; of equal scores the earlier trial, and what is no number last.
fn ranked(trials: &[Trial<'_>], mut positions: Vec<usize>, rung: u32) -> Vec<usize> {
    let score = |at: usize| trials[at].score_at(rung).and_then(|score| score.score);
    positions.sort_by(|one, other| {
        let better = match (score(*one), score(*other)) {
            (Some(one), Some(other)) => other.partial_cmp(&one).unwrap_or(Ordering::Equal),
            (one, other) => other.is_some().cmp(&one.is_some()),
        };
        better.then(one.cmp(other))
    });
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(values: &[f64]) -> Vec<RungScore> {
        (0..).zip(values).map(|(rung, score)| RungScore::new(rung, u64::from(rung), Some(*score))).collect()
    }

    fn at(rung: u32, scores: &[RungScore]) -> Trial<'_> {
        Trial { rung, scores, ..Trial::default() }
    }

    #[test]
    fn of_equal_scores_the_lower_number_goes_on_and_no_number_goes_last() {
        let (half, none) = (scores(&[0.5]), [RungScore::new(0, 0, Some(f64::NAN))]);
        let trials = [at(0, &none), at(0, &half), at(0, &half), at(0, &none)];
        let Next::Promote { promoted, stopped, to, rung } = next(&trials, 2, 3, false) else { panic!() };
        assert_eq!((rung, to, promoted, stopped), (0, 2, vec![1], vec![0, 2, 3]));
        let Next::Promote { promoted, .. } = next(&trials, 2, 2, false) else { panic!() };
        assert_eq!(promoted, [1, 2]);
    }

    #[test]
    fn a_rung_waits_for_its_last_score_and_not_for_a_trial_that_failed() {
        let done = scores(&[0.5]);
        let mut trials = [at(0, &done), at(0, &[]), at(0, &done)];
        assert_eq!(next(&trials, 1, 2, false), Next::Wait);
        trials[1].failed = true;
        let Next::Promote { promoted, stopped, .. } = next(&trials, 1, 2, false) else { panic!() };
        assert_eq!((promoted, stopped), (vec![0], vec![1, 2]));
    }

    #[test]
    fn where_all_that_went_on_failed_the_next_best_go_on() {
        let (good, fair, poor) = (scores(&[0.9]), scores(&[0.7]), scores(&[0.1]));
        let failed = Trial { failed: true, ..at(1, &good) };
        let stopped = |scores| Trial { stopped: true, ..at(0, scores) };
        let trials = [stopped(&poor), failed, stopped(&fair)];
        let Next::Promote { rung, to, promoted, stopped } = next(&trials, 1, 3, false) else { panic!() };
        assert_eq!((rung, to, promoted, stopped), (0, 1, vec![2], vec![]));
        let all = [Trial { failed: true, ..Trial::default() }, Trial { failed: true, ..Trial::default() }];
        assert_eq!(next(&all, 1, 3, false), Next::Exhausted);
        assert_eq!(next(&all, 1, 3, true), Next::Exhausted);
    }

    #[test]
    fn asynchronous_halving_promotes_without_waiting_for_the_rung() {
        let (good, fair) = (scores(&[0.9]), scores(&[0.7]));
        let first = [at(0, &fair), at(0, &[]), at(0, &[]), at(0, &[])];
        assert_eq!(next(&first, 1, 2, true), Next::Wait);
        let second = [at(0, &fair), at(0, &good), at(0, &[]), at(0, &[])];
        let Next::Promote { rung, to, promoted, .. } = next(&second, 1, 2, true) else { panic!() };
        assert_eq!((rung, to, promoted), (0, 1, vec![1]));
        assert_eq!(next(&second, 1, 2, false), Next::Wait);
    }

    #[test]
    fn asynchronous_halving_ends_with_the_best_of_those_that_came_furthest() {
        let (good, fair) = (scores(&[0.9]), scores(&[0.7]));
        let few = [at(0, &fair), at(0, &good)];
        let Next::Promote { to, promoted, .. } = next(&few, 2, 3, true) else { panic!() };
        assert_eq!((to, promoted), (2, vec![1]));
        let done = [0, 1, 2].map(|rung| RungScore::new(rung, 0, Some(0.4)));
        assert_eq!(next(&[at(0, &fair), at(2, &done)], 2, 3, true), Next::Choose(1));
    }
}
