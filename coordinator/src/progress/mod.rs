//! What a person watches while a job runs: bars on a terminal, plain lines elsewhere, JSON lines on request.
//!
//! Progress is for eyes: it never decides anything, and losing an event loses a line and nothing else.

mod bars;
mod pace;
mod plain;
mod sweep;

use std::io::IsTerminal as _;

use graftwork_shared::{event::Event, view::JobView};
pub(crate) use plain::stuck_words;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Bars on a terminal, plain lines elsewhere.
    Auto,
    /// Bars that move.
    Bars,
    /// Lines, a few a minute for each task.
    Plain,
    /// Every event as a line of JSON.
    Json,
    /// Nothing.
    None,
}

/// Shows the events of one job.
pub(crate) enum Progress {
    /// On a terminal.
    Bars(bars::Bars),
    /// In a log.
    Plain(plain::Plain),
    /// For programs.
    Json(Box<dyn std::io::Write + Send>),
    /// Not at all.
    Silent,
}

impl Progress {
    /// A display on stderr for the job as it is now; stdout is for the report.
    pub(crate) fn new(mode: Mode, view: &JobView) -> Self {
        Self::with(mode, view, || Box::new(std::io::stderr()))
    }

    /// A display for a command whose data are the events: JSON lines go to stdout.
    pub(crate) fn for_stdout(mode: Mode, view: &JobView) -> Self {
        Self::with(mode, view, || Box::new(std::io::stdout()))
    }

    fn with(mode: Mode, view: &JobView, json: impl FnOnce() -> Box<dyn std::io::Write + Send>) -> Self {
        match mode {
            Mode::Auto if std::io::stderr().is_terminal() => Self::Bars(bars::Bars::new(view)),
            Mode::Bars => Self::Bars(bars::Bars::new(view)),
            Mode::Auto | Mode::Plain => Self::Plain(plain::Plain::new(view)),
            Mode::Json => Self::Json(json()),
            Mode::None => Self::Silent,
        }
    }

    /// Shows one event.
    pub(crate) fn on_event(&mut self, event: &Event) {
        match self {
            Self::Bars(bars) => bars.on_event(event),
            Self::Plain(plain) => {
                if let Some(line) = plain.line(event) {
                    eprintln!("{line}");
                }
            }
            Self::Json(out) => {
                // One write for each line, so that lines of two writers never mix; a reader that has gone away is no
                // reason to stop training.
                if let Ok(line) = serde_json::to_string(event) {
                    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
                }
            }
            Self::Silent => {}
        }
    }

    /// Leaves the screen as it is; nothing is drawn after that.
    pub(crate) fn finish(&mut self) {
        if let Self::Bars(bars) = self {
            bars.finish();
        }
    }
}

/// A time that a person reads at a glance: `45 s`, `3 min 5 s`, `2 h 4 min`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number of seconds")]
    let whole = seconds.round() as u64;
    match whole {
        0..=99 => format!("{whole} s"),
        100..=5999 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn times_are_read_at_a_glance() {
        assert_eq!(duration(44.6), "45 s");
        assert_eq!(duration(185.0), "3 min 5 s");
        assert_eq!(duration(7440.0), "2 h 4 min");
        assert_eq!(duration(f64::INFINITY), "?");
    }
}
