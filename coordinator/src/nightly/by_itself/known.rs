//! What is known of the nights of a job, and who holds their history.

use std::path::PathBuf;

use super::super::{
    due::{Past, pause_ms},
    history::History,
    night::Night,
};
use crate::{cli::Failure, server::LastNight};

/// What is known of the nights of a job.
pub(super) struct Known {
    /// The folder of their history, which is another one once the job has another name.
    pub(super) folder: PathBuf,
    pub(super) past: Past,
    /// How the last one ended that did.
    pub(super) ended: Option<LastNight>,
    /// How often in a row something passing kept its night from its end.
    pub(super) tries: u32,
    /// Held as long as a night is under way.
    pub(super) history: Option<History>,
}

impl Known {
    /// Reads a history, which stays held where a night is under way in it. Without a night in it, the last one is taken to have
    /// begun at `since_ms`.
    pub(super) fn read(folder: PathBuf, history: History, since_ms: u64) -> Result<Self, Failure> {
        let nights = history.nights()?;
        let last = nights.last();
        let ended = nights.iter().rev().find(|night| night.judged.is_some()).map(last_night);
        let unfinished = history.is_under_way() || last.is_some_and(|night| night.judged.is_none());
        let last_ms = last.map_or(since_ms, |night| night.began_ms);
        let past = Past { unfinished, ..Past::ended(last_ms) };
        Ok(Self { folder, past, ended, tries: 0, history: unfinished.then_some(history) })
    }

    /// What its history is called.
    pub(super) fn name(&self) -> String {
        self.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// A night came to its end that began then. Others may look at the history, or run a night by hand.
    pub(super) fn ends(&mut self, began_ms: u64, ended: LastNight) {
        (self.past, self.ended, self.tries, self.history) = (Past::ended(began_ms), Some(ended), 0, None);
    }

    /// Something that may pass kept a night from its end; gives after how many milliseconds it goes on.
    pub(super) fn pauses(&mut self, now_ms: u64) -> u64 {
        self.tries = self.tries.saturating_add(1);
        let pause_ms = pause_ms(self.tries);
        self.past = Past { unfinished: true, not_before_ms: now_ms + pause_ms, ..self.past };
        pause_ms
    }
}

/// How a stored night ended.
pub(super) fn last_night(night: &Night) -> LastNight {
    let judged = night.judged.as_ref();
    LastNight {
        ended_ms: night.ended_ms,
        took_ms: night.ended_ms.saturating_sub(night.began_ms),
        good: judged.is_some_and(|judged| judged.good),
        regressions: judged.map_or(0, |judged| judged.regressions),
    }
}
