//! The Groups service: a few small values under names, by which the members of a group find each other.
//!
//! One task owns all values. Requests reach it over a bounded channel, and it waits for nobody: whoever waits for a value
//! waits in its own request. The driver says which epoch of which lease is open, before its members hear of it; of every
//! other epoch nothing is kept or answered. Nothing here is durable, as a group is not.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use graftwork_proto::v1::{self, meet_request::What};
use graftwork_shared::id::{LeaseId, Term};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response, Status};

use super::workers::stopped;

/// Requests that wait for the task.
const REQUESTS: usize = 256;

/// Bytes of a name.
const NAME_BYTES: usize = 256;

/// Bytes of a value: an address, or the identity of a communicator.
const VALUE_BYTES: usize = 64 << 10;

/// Bytes of a request: a value, its name, and their wrapping.
pub(super) const MESSAGE_BYTES: usize = VALUE_BYTES + 1_024;

/// Names of one epoch. Members connect in pairs, each with a name, and a lane has one member at most.
const NAMES: usize = 4_096;

/// Requests that wait for one name.
const WAITING: usize = 1_024;

/// Longest wait for a value.
const WAIT_MS: u64 = 60_000;

/// The open epoch of each lease that a group holds, as the driver says it.
pub(super) type Epochs = BTreeMap<LeaseId, u64>;

type Reply = Result<v1::MeetReply, Status>;

/// Serves requests of members.
#[derive(Clone)]
pub(super) struct Meet {
    asked: mpsc::Sender<Asked>,
    /// Of this coordinator: who meets in another one's name meets nobody.
    term: Term,
}

/// A checked request on its way to the task.
struct Asked {
    lease: LeaseId,
    epoch: u64,
    name: String,
    what: What,
    to: oneshot::Sender<Result<Answer, Status>>,
}

/// What the task answers at once.
enum Answer {
    Now(v1::MeetReply),
    /// The value is not there yet; what comes of it.
    Later(oneshot::Receiver<Reply>),
}

/// One lease's values.
#[derive(Default)]
struct Room {
    epoch: u64,
    places: HashMap<String, Place>,
}

/// What has one name: a value and a number, neither of which is the other.
#[derive(Default)]
struct Place {
    value: Option<Vec<u8>>,
    sum: i64,
    waiting: Vec<oneshot::Sender<Reply>>,
}

/// The task's own.
struct Rooms {
    epochs: watch::Receiver<Epochs>,
    rooms: HashMap<LeaseId, Room>,
}

/// Starts the task; it ends with the driver, or with the last service.
pub(super) fn start(epochs: watch::Receiver<Epochs>, term: Term) -> Meet {
    let (asked, waiting) = mpsc::channel(REQUESTS);
    tokio::spawn(Rooms { epochs, rooms: HashMap::new() }.run(waiting));
    Meet { asked, term }
}

fn closed(lease: LeaseId, epoch: u64) -> Status {
    Status::failed_precondition(format!("epoch {epoch} of {lease} is not that of its group now"))
}

fn full(what: &str, most: usize) -> Status {
    Status::resource_exhausted(format!("there are {most} {what} already, which is the most that are kept"))
}

impl Rooms {
    async fn run(mut self, mut asked: mpsc::Receiver<Asked>) {
        loop {
            tokio::select! {
                biased;
                changed = self.epochs.changed() => match changed {
                    Ok(()) => self.sweep(),
                    Err(_) => return,
                },
                next = asked.recv() => match next {
                    Some(Asked { lease, epoch, name, what, to }) => {
                        // Whoever asked may have gone.
                        let _ = to.send(self.answer((lease, epoch), name, what));
                    }
                    None => return,
                },
            }
        }
    }

    /// Drops what is of an older epoch, and says so to those who wait for it.
    fn sweep(&mut self) {
        let epochs = self.epochs.borrow_and_update().clone();
        let old = self.rooms.iter().filter(|(lease, room)| epochs.get(lease) != Some(&room.epoch));
        let old: Vec<LeaseId> = old.map(|(lease, _)| *lease).collect();
        for lease in old {
            let Some(room) = self.rooms.remove(&lease) else { continue };
            for waiting in room.places.into_values().flat_map(|place| place.waiting) {
                let _ = waiting.send(Err(closed(lease, room.epoch)));
            }
        }
    }

    fn answer(&mut self, (lease, epoch): (LeaseId, u64), name: String, what: What) -> Result<Answer, Status> {
        if self.epochs.has_changed().unwrap_or(false) {
            self.sweep();
        }
        if self.epochs.borrow().get(&lease) != Some(&epoch) {
            return Err(closed(lease, epoch));
        }
        let room = self.rooms.entry(lease).or_default();
        room.epoch = epoch;
        if room.places.len() >= NAMES && !room.places.contains_key(&name) {
            return Err(full("names", NAMES));
        }
        room.places.entry(name).or_default().answer(what)
    }
}

impl Place {
    fn answer(&mut self, what: What) -> Result<Answer, Status> {
        self.waiting.retain(|waiting| !waiting.is_closed());
        match what {
            What::Set(value) => {
                for waiting in self.waiting.drain(..) {
                    let _ = waiting.send(Ok(v1::MeetReply { value: value.clone(), sum: 0 }));
                }
                self.value = Some(value);
                Ok(Answer::Now(v1::MeetReply::default()))
            }
            What::Add(number) => {
                self.sum = self.sum.wrapping_add(number);
                Ok(Answer::Now(v1::MeetReply { value: Vec::new(), sum: self.sum }))
            }
            What::WaitMs(_) => match &self.value {
                Some(value) => Ok(Answer::Now(v1::MeetReply { value: value.clone(), sum: 0 })),
                None if self.waiting.len() >= WAITING => Err(full("requests waiting for this name", WAITING)),
                None => {
                    let (to, later) = oneshot::channel();
                    self.waiting.push(to);
                    Ok(Answer::Later(later))
                }
            },
        }
    }
}

/// The name, and what is wanted of it, within the bounds.
fn check(name: &str, what: Option<What>) -> Result<What, Status> {
    if name.is_empty() || name.len() > NAME_BYTES {
        let length = name.len();
        return Err(Status::invalid_argument(format!("name: {length} bytes, but 1 to {NAME_BYTES} are allowed")));
    }
    match what {
        Some(What::Set(value)) if value.len() > VALUE_BYTES => {
            let length = value.len();
            Err(Status::invalid_argument(format!("set: {length} bytes, but at most {VALUE_BYTES} are kept")))
        }
        Some(what) => Ok(what),
        None => Err(Status::invalid_argument("what is missing: one of set, wait_ms and add")),
    }
}

#[tonic::async_trait]
impl v1::groups_server::Groups for Meet {
    async fn meet(&self, request: Request<v1::MeetRequest>) -> Result<Response<v1::MeetReply>, Status> {
        let v1::MeetRequest { lease, epoch, name, what, term } = request.into_inner();
        if term != self.term.0 {
            let refused = format!("a coordinator of {} opened it, and this is one of {}", Term(term), self.term);
            return Err(Status::failed_precondition(refused));
        }
        let what = check(&name, what)?;
        let wait_ms = if let What::WaitMs(wait_ms) = what { wait_ms.min(WAIT_MS) } else { 0 };
        let missing = Status::not_found(format!("name: nothing was set as {name:?} within {wait_ms} ms"));
        let (to, answer) = oneshot::channel();
        let asked = Asked { lease: LeaseId(lease), epoch, name, what, to };
        self.asked.send(asked).await.map_err(|_| stopped())?;
        let reply = match answer.await.map_err(|_| stopped())?? {
            Answer::Now(reply) => reply,
            Answer::Later(later) => match tokio::time::timeout(Duration::from_millis(wait_ms), later).await {
                Ok(reply) => reply.map_err(|_| stopped())??,
                Err(_) => return Err(missing),
            },
        };
        Ok(Response::new(reply))
    }
}
