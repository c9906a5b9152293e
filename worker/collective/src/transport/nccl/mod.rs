//! NCCL between GPUs, loaded at run time; host buffers are staged through device memory.
//!
//! No call of NCCL blocks here: its communicators are non-blocking, and the stream is asked instead of waited for. A
//! deadline or an abort therefore ends every wait, by `ncclCommAbort`. Without a driver everything up to the unique id
//! works and the rest is refused in the libraries' own words.

mod device;
mod library;
mod probe;
mod search;

use std::{ffi::c_void, path::Path, ptr, thread, time::Duration, time::Instant};

use device::Device;
use library::{Communicator, Nccl, State, UniqueId};
pub use probe::{Report, probe};

use super::{Fault, Incoming, Native, Outgoing, Part, Transport, left};
use crate::{Aborter, CollectiveError, bytes, form::Meeting};

/// How often a state is asked for without a pause, before pauses begin: small moves take some 20 us.
const EAGER: u32 = 2_000;
const PAUSE: Duration = Duration::from_micros(50);
/// How long a peaceful end may take before it is forced.
const FAREWELL: Duration = Duration::from_secs(1);

/// One rank's communicator and device.
struct Communication {
    /// `None` once it has ended.
    communicator: Option<Communicator>,
    device: Device,
    rank: usize,
    size: usize,
    number: u32,
    aborter: Aborter,
}

// The communicator goes before the stream that it works on.
impl Drop for Communication {
    fn drop(&mut self) {
        let current = self.device.make_current().is_ok();
        let Some(communicator) = self.communicator.take() else { return };
        let until = Instant::now() + FAREWELL;
        let at_peace = current && !self.aborter.is_aborted() && self.device.is_idle() == Ok(true);
        if at_peace && communicator.finalize().is_ok() && settle(&communicator, &self.aborter, until).is_ok() {
            communicator.destroy();
        }
    }
}

/// Meets the others through rank 0's unique id, and connects.
pub(crate) fn connect(
    meeting: &Meeting,
    number: u32,
    library: Option<&Path>,
) -> Result<Box<dyn Transport>, CollectiveError> {
    let nccl = Nccl::load(library)?;
    let id = if meeting.rank == 0 {
        let id = nccl.unique_id()?;
        meeting.set("nccl", &id.0)?;
        id
    } else {
        let said = <[u8; 128]>::try_from(meeting.get("nccl")?);
        UniqueId(said.map_err(|_| meeting.lost("rank 0 gave no unique id"))?)
    };
    let device = Device::open(number)?;
    let bound = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let communicator = nccl.init(id, bound(meeting.rank), bound(meeting.size))?;
    settle(&communicator, &meeting.aborter, meeting.until).map_err(|fault| match fault {
        Fault::Aborted => CollectiveError::Aborted { operation: "forming" },
        Fault::Deadline => meeting.late(),
        Fault::PeerLost(reason) | Fault::Refused(_, reason) => {
            CollectiveError::Refused { library: "NCCL", operation: "a communicator", reason }
        }
    })?;
    let (rank, size, aborter) = (meeting.rank, meeting.size, meeting.aborter.clone());
    Ok(Box::new(Communication { communicator: Some(communicator), device, rank, size, number, aborter }))
}

/// Asks until something is done.
fn wait(aborter: &Aborter, until: Instant, mut is_done: impl FnMut() -> Result<bool, Fault>) -> Result<(), Fault> {
    let mut turns = 0_u32;
    loop {
        if is_done()? {
            return Ok(());
        }
        if aborter.is_aborted() {
            return Err(Fault::Aborted);
        }
        if left(until).is_zero() {
            return Err(Fault::Deadline);
        }
        turns = turns.saturating_add(1);
        if turns < EAGER {
            std::hint::spin_loop();
        } else {
            thread::sleep(PAUSE);
        }
    }
}

/// Waits until the communicator has taken in what was asked of it.
fn settle(communicator: &Communicator, aborter: &Aborter, until: Instant) -> Result<(), Fault> {
    wait(aborter, until, || match communicator.state() {
        State::Done => Ok(true),
        State::InProgress => Ok(false),
        State::Failed(reason) => Err(Fault::PeerLost(reason)),
    })
}

/// Errors of CUDA are no peer's fault: another epoch on this device would meet them again.
fn cuda(reason: String) -> Fault {
    Fault::Refused("CUDA", reason)
}

impl Communication {
    fn communicator(&self) -> Result<&Communicator, Fault> {
        self.communicator.as_ref().ok_or_else(|| Fault::PeerLost("the communicator has ended".to_owned()))
    }

    /// Waits for the communicator and the stream, while both are asked for errors.
    fn finish(&self, until: Instant) -> Result<(), Fault> {
        let communicator = self.communicator()?;
        settle(communicator, &self.aborter, until)?;
        wait(&self.aborter, until, || {
            if let State::Failed(reason) = communicator.state() {
                return Err(Fault::PeerLost(reason));
            }
            self.device.is_idle().map_err(cuda)
        })
    }

    /// Stages one buffer, lets NCCL work on it in place, and fetches it back.
    fn in_place(
        &mut self,
        bytes: &mut [u8],
        until: Instant,
        act: impl FnOnce(&Communicator, *mut c_void, *mut c_void) -> Result<(), String>,
    ) -> Result<(), Fault> {
        self.device.make_current().map_err(cuda)?;
        let buffer = self.device.buffers(std::iter::once(bytes.len())).map_err(cuda)?[0];
        // SAFETY: the buffer was made for this length.
        unsafe { self.device.stage(buffer, bytes) }.map_err(cuda)?;
        act(self.communicator()?, buffer, self.device.stream).map_err(Fault::PeerLost)?;
        self.finish(until)?;
        // SAFETY: as above, on an idle stream.
        unsafe { self.device.fetch(bytes, buffer) }.map_err(cuda)?;
        self.finish(until)
    }
}

impl Transport for Communication {
    fn exchange(
        &mut self,
        outgoing: &[Outgoing<'_>],
        incoming: &mut [Incoming<'_>],
        until: Instant,
    ) -> Result<(), Fault> {
        if outgoing.is_empty() && incoming.is_empty() {
            return Ok(());
        }
        self.device.make_current().map_err(cuda)?;
        let lengths = outgoing.iter().map(|out| out.bytes.len()).chain(incoming.iter().map(|into| into.bytes.len()));
        let buffers = self.device.buffers(lengths).map_err(cuda)?;
        let (out_buffers, in_buffers) = buffers.split_at(outgoing.len());
        let peer = |rank: usize| i32::try_from(rank).unwrap_or(i32::MAX);
        let sends = outgoing.iter().zip(out_buffers).map(|(out, &buffer)| (buffer, out.bytes.len(), peer(out.to)));
        let sends: Vec<_> = sends.collect();
        let receives =
            incoming.iter().zip(in_buffers).map(|(into, &buffer)| (buffer, into.bytes.len(), peer(into.from)));
        let receives: Vec<_> = receives.collect();
        for (out, &buffer) in outgoing.iter().zip(out_buffers) {
            // SAFETY: the buffer was made for this length.
            unsafe { self.device.stage(buffer, out.bytes) }.map_err(cuda)?;
        }
        // SAFETY: the buffers stay until the next move, which comes after this one's end.
        unsafe { self.communicator()?.exchange(&sends, &receives, self.device.stream) }.map_err(Fault::PeerLost)?;
        self.finish(until)?;
        for (into, &buffer) in incoming.iter_mut().zip(in_buffers) {
            // SAFETY: as above, on an idle stream.
            unsafe { self.device.fetch(into.bytes, buffer) }.map_err(cuda)?;
        }
        self.finish(until)
    }

    fn all_reduce(&mut self, numbers: &mut [f32], until: Instant) -> Result<(), Fault> {
        let count = numbers.len();
        // The host's numbers are written after the sum succeeded.
        self.in_place(bytes::of_mut(numbers), until, |communicator, buffer, stream| {
            // SAFETY: the buffer holds the numbers until the stream is idle.
            unsafe { communicator.all_reduce(buffer, count, stream) }
        })
    }

    fn native(&mut self) -> Option<&mut dyn Native> {
        Some(self)
    }
}

impl Native for Communication {
    fn broadcast(&mut self, bytes: &mut [u8], root: usize, until: Instant) -> Result<(), Fault> {
        let (count, root) = (bytes.len(), i32::try_from(root).unwrap_or(i32::MAX));
        self.in_place(bytes, until, |communicator, buffer, stream| {
            // SAFETY: the buffer holds the bytes until the stream is idle.
            unsafe { communicator.broadcast(buffer, count, root, stream) }
        })
    }

    fn all_gather(&mut self, parts: &mut [u8], until: Instant) -> Result<(), Fault> {
        let share = parts.len() / self.size;
        let start = self.rank * share;
        self.in_place(parts, until, |communicator, buffer, stream| {
            // SAFETY: the buffer holds all parts until the stream is idle.
            unsafe { communicator.all_gather(buffer.wrapping_byte_add(start), buffer, share, stream) }
        })
    }

    fn split(&mut self, part: Part, until: Instant) -> Result<Box<dyn Transport>, Fault> {
        let reason = |what: &str| Fault::Refused("NCCL", format!("a {what} above {}", i32::MAX));
        let color = i32::try_from(part.color).map_err(|_| reason("color"))?;
        let key = i32::try_from(part.key).map_err(|_| reason("key"))?;
        self.device.make_current().map_err(cuda)?;
        let device = Device::open(self.number).map_err(|error| cuda(error.to_string()))?;
        let mut made = ptr::null_mut();
        let communicator = self.communicator()?;
        communicator.split(color, key, &mut made).map_err(Fault::PeerLost)?;
        settle(communicator, &self.aborter, until)?;
        let communicator = communicator.adopt(made);
        settle(&communicator, &self.aborter, until)?;
        let (rank, size, aborter) = (part.rank, part.size, self.aborter.clone());
        let number = self.number;
        Ok(Box::new(Communication { communicator: Some(communicator), device, rank, size, number, aborter }))
    }
}
