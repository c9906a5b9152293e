//! Ctrl-C, a polite kill, and a terminal that went away.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// The wishes to stop so far. Listens from its making on, so that none is lost between two waits.
#[derive(Clone, Debug)]
pub(crate) struct Signals {
    wishes: watch::Receiver<u32>,
    seen: u32,
}

impl Signals {
    /// Starts to listen, on a task of the runtime.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let (tell, wishes) = watch::channel(0);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
                tell.send_modify(|wishes| *wishes += 1);
            }
        });
        Ok(Self { wishes, seen: 0 })
    }

    /// Returns at the next wish to stop; may be dropped and called again.
    pub(crate) async fn stop(&mut self) {
        let seen = self.seen;
        match self.wishes.wait_for(|wishes| *wishes > seen).await {
            Ok(wishes) => self.seen = *wishes,
            // The listening task ends with the runtime alone.
            Err(_) => std::future::pending().await,
        }
    }
}
