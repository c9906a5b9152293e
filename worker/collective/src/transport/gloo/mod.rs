//! Gloo over TCP, as it lies in libtorch's own library.
//!
//! Debian's Gloo exports the same symbols and must never be linked beside it. Connecting blocks inside Gloo, so it runs
//! on a thread of its own that an abort or the deadline leaves behind; it ends by itself, at the latest at the deadline.

mod binding;

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use binding::{Handle, Move};

use super::{Fault, Incoming, Outgoing, Transport};
use crate::{CollectiveError, abort::Registration, form::Meeting};

/// How soon an abort is noticed while Gloo connects.
const GLANCE: Duration = Duration::from_millis(20);

struct Gloo {
    // Before the handle, so that no abort comes after the connections are freed.
    _wake: Registration,
    handle: Arc<Handle>,
}

/// Connects to all members, listening on the address.
pub(crate) fn connect(meeting: &Meeting, address: IpAddr) -> Result<Box<dyn Transport>, CollectiveError> {
    let (sender, receiver) = sync_channel(1);
    let theirs = meeting.clone();
    let connecting = move || {
        // Nobody listens any more when forming was aborted; the connections are then dropped.
        let _ = sender.send(binding::form(&theirs, &address.to_string()));
    };
    let started = thread::Builder::new().name("gloo-connect".to_owned()).spawn(connecting);
    started.map_err(|error| CollectiveError::Refused {
        library: "the system",
        operation: "a thread",
        reason: error.to_string(),
    })?;
    let handle = loop {
        match receiver.recv_timeout(GLANCE) {
            Ok(handle) => break Arc::new(handle?),
            Err(RecvTimeoutError::Timeout) => meeting.check()?,
            Err(RecvTimeoutError::Disconnected) => return Err(meeting.lost("the connecting thread ended")),
        }
    };
    let theirs = Arc::downgrade(&handle);
    let wake = meeting.aborter.on_abort(move || {
        if let Some(handle) = theirs.upgrade() {
            handle.abort();
        }
    });
    Ok(Box::new(Gloo { _wake: wake, handle }))
}

/// The libtorch that is in use, beside which other libraries lie.
pub(crate) fn libtorch() -> Option<PathBuf> {
    binding::library()
}

fn bounded(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

impl Transport for Gloo {
    fn exchange(
        &mut self,
        outgoing: &[Outgoing<'_>],
        incoming: &mut [Incoming<'_>],
        until: Instant,
    ) -> Result<(), Fault> {
        let sends: Vec<_> = outgoing
            .iter()
            .map(|Outgoing { to, tag, bytes }| Move {
                peer: bounded(*to),
                tag: bounded(*tag),
                bytes: bytes.as_ptr().cast_mut(),
                size: bytes.len(),
            })
            .collect();
        let receives: Vec<_> = incoming
            .iter_mut()
            .map(|Incoming { from, tag, bytes }| Move {
                peer: bounded(*from),
                tag: bounded(*tag),
                bytes: bytes.as_mut_ptr(),
                size: bytes.len(),
            })
            .collect();
        self.handle.exchange(&sends, &receives, until)
    }

    fn all_reduce(&mut self, numbers: &mut [f32], until: Instant) -> Result<(), Fault> {
        self.handle.all_reduce(numbers, until)
    }
}
