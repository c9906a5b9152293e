//! What is said of a sweep while it runs.

use graftwork_shared::{event::EventKind, metric::Metric};

/// The words for a score, a comparison or a choice; `None` for any other event.
pub(super) fn sweep_words(kind: &EventKind, metric: Option<Metric>) -> Option<String> {
    let metric = metric.map(|metric| format!("{metric} ")).unwrap_or_default();
    let early = |asynchronous: bool| if asynchronous { ", before the whole rung was there" } else { "" };
    Some(match kind {
        EventKind::TrialScored { score, reused } => {
            let from = if *reused { ", of an earlier result of the same recipe" } else { "" };
            format!("pauses at rung {} (step {}): validation {metric}{score}{from}", score.rung + 1, score.step)
        }
        EventKind::RungDecided { rung, to, promoted, stopped, asynchronous } => {
            let (go, stop) =
                (if promoted.len() == 1 { "goes" } else { "go" }, if stopped.len() == 1 { "stops" } else { "stop" });
            let stopped = if stopped.is_empty() { String::new() } else { format!(", {} {stop}", trials(stopped)) };
            let early = early(*asynchronous);
            format!("rung {}: {} {go} on to rung {}{stopped}{early}", rung + 1, trials(promoted), to + 1)
        }
        EventKind::TrialChosen { trial, score, asynchronous } => {
            let score = score.map(|score| format!(", validation {metric}{score:.4}")).unwrap_or_default();
            let timing = if *asynchronous { " (asynchronous halving: timing had a part in it)" } else { "" };
            format!("trial {trial} is chosen{score}{timing}")
        }
        _ => return None,
    })
}

/// `trials 1, 4 and 7`, or `trial 4`.
fn trials(numbers: &[u32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    match numbers.as_slice() {
        [one] => format!("trial {one}"),
        [before @ .., last] => format!("trials {} and {last}", before.join(", ")),
        [] => "no trial".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use graftwork_shared::sweep::RungScore;

    use super::*;

    #[test]
    fn decisions_are_told_with_their_trials() {
        let scored = EventKind::TrialScored { score: RungScore::new(0, 25, Some(0.5)), reused: false };
        let words = sweep_words(&scored, Some(Metric::F1)).unwrap();
        assert_eq!(words, "pauses at rung 1 (step 25): validation f1 0.5000");
        let decided = |promoted: &[u32], stopped: &[u32], asynchronous| {
            let (promoted, stopped) = (promoted.to_vec(), stopped.to_vec());
            sweep_words(&EventKind::RungDecided { rung: 0, to: 1, promoted, stopped, asynchronous }, None).unwrap()
        };
        assert_eq!(
            decided(&[1, 4], &[2, 3, 5], false),
            "rung 1: trials 1 and 4 go on to rung 2, trials 2, 3 and 5 stop"
        );
        assert_eq!(decided(&[2], &[], true), "rung 1: trial 2 goes on to rung 2, before the whole rung was there");
        assert_eq!(decided(&[2], &[1], false), "rung 1: trial 2 goes on to rung 2, trial 1 stops");
        let chosen = |asynchronous| {
            let chosen = EventKind::TrialChosen { trial: 4, score: Some(0.75), asynchronous };
            sweep_words(&chosen, Some(Metric::F1)).unwrap()
        };
        assert_eq!(chosen(false), "trial 4 is chosen, validation f1 0.7500");
        assert_eq!(
            chosen(true),
            "trial 4 is chosen, validation f1 0.7500 (asynchronous halving: timing had a part in it)"
        );
    }
}
