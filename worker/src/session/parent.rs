//! A worker that lives no longer than the process that started it.
//!
//! The kernel's parent-death signal arrives at once, but it also arrives when only the thread that started this
//! process ends; so it merely wakes a look at the parent's id, and a slow poll looks as well.

use std::{io, thread, time::Duration};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

/// How often the parent's id is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Ends this process as soon as its parent is gone: the process of this id, or for 0 its present parent.
pub(super) fn watch(id: i32) -> io::Result<()> {
    let parent = Pid::from_raw(id).or_else(getppid);
    let mut deaths = signal(SignalKind::user_defined1())?;
    set_parent_process_death_signal(Some(Signal::USR1))?;
    tokio::spawn(async move {
        while deaths.recv().await.is_some() {
            look(parent);
        }
    });
    // A thread of its own, so that nothing that keeps the runtime busy keeps an orphan alive.
    thread::Builder::new().name("parent".to_owned()).spawn(move || {
        loop {
            look(parent);
            thread::sleep(LOOK);
        }
    })?;
    Ok(())
}

/// Process 1 adopts orphans: a worker that process 1 itself started has no parent to follow.
fn look(parent: Option<Pid>) {
    if getppid() != parent {
        graftwork_engine::end_process(0);
    }
}
