//! A stage's place in the group that trains it: alone, one of many, or waiting to be formed.
//!
//! Every member runs the same driver over the same state. Each computes its own lanes; sums travel along the fixed tree
//! (invariant 5), so who is a member never shows in a byte. With each exchange travels one word of each member: whether
//! it has to leave, and which formation it was told of; all members hear all words, so all change over after the same
//! update. A member that is lost breaks the exchange for the others, and none of them applies the update.
//!
//! ```text
//!            formation of one                    leave, or a new formation
//!   Alone ◄──────────────────── Waiting ◄─────────────────────────────────── Formed
//!     │       a joiner begins here │ ▲            or the exchange breaks        ▲
//!     └── a new formation ─────────┼─┘                                          │
//!                                  └──── formation of many, states compared ────┘
//! ```

use std::{ops::Range, time::Duration};

use graftwork_collective::{CollectiveError, ExchangePlan, Group, Partial, Way, reduce_lanes};
use graftwork_proto::Formation;
use graftwork_shared::assignment::Failure;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Host, failure, meter::Waits};
use crate::waiting::{For, Waiting};

/// Why a stage's loop leaves what it is doing.
#[derive(Debug)]
pub(super) enum Halt {
    /// The stage failed.
    Failed(Failure),
    /// This member has to stop; what was under way starts over when the stage goes on.
    Stopped,
    /// The group changes over before anything else is done.
    Regroup,
    /// The group failed under this member.
    Broken(String),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Whatever a group meets is the group's: a stage can be trained by one worker alone, and is in the end.
impl From<CollectiveError> for Halt {
    fn from(error: CollectiveError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// See the module's documentation.
pub(super) struct Membership {
    epoch: u64,
    rank: usize,
    ranks: usize,
    /// It was to join, and never had the state of those that train.
    new: bool,
    place: Place,
    waits: Waits,
    waiting: Waiting,
}

enum Place {
    Alone,
    Formed(Box<Formed>),
    /// The older group failed, with the reason if nobody was told of it.
    Waiting(Option<String>),
}

struct Formed {
    group: Box<dyn Group>,
    plan: ExchangePlan,
    /// Whose state all took up.
    source: usize,
    /// Somebody leaves, or was told of a newer formation.
    changes: bool,
}

/// What a member says with every exchange.
#[derive(Serialize, Deserialize)]
struct Word {
    leaving: bool,
    epoch: u64,
    /// Bits of the losses of its own lanes; `None` for a lane without rows.
    losses: Vec<Option<u64>>,
}

/// What members compare when they are formed: the one that is furthest is followed. In this order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Standing {
    /// Updates done.
    pub(super) step: u64,
    /// Evaluations recorded.
    pub(super) evaluations: usize,
    /// Digest of the whole state.
    pub(super) digest: String,
}

/// What a member adopts.
pub(super) enum Adopted {
    /// It is as far as any, with the same state.
    Nothing,
    /// The state of a member that is further.
    State(Vec<u8>),
}

impl Membership {
    /// Whoever begins a stage.
    pub(super) fn alone() -> Self {
        Self {
            epoch: 0,
            rank: 0,
            ranks: 1,
            new: false,
            place: Place::Alone,
            waits: Waits::default(),
            waiting: Waiting::default(),
        }
    }

    /// Whoever joins a stage that others train: it waits to be formed.
    pub(super) fn joining() -> Self {
        Self { place: Place::Waiting(None), rank: usize::MAX, new: true, ..Self::alone() }
    }

    /// Whether this member was to join, and never had the state of those that train.
    pub(super) fn is_new(&self) -> bool {
        self.new
    }

    /// Whether this member speaks for the stage.
    pub(super) fn leads(&self) -> bool {
        self.rank == 0
    }

    /// The formation that this member was last told of and took its place in; 0 for whoever began the stage alone.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The lanes of an update, of so many, that this member computes.
    pub(super) fn lanes(&self, lanes: usize) -> Range<usize> {
        match &self.place {
            Place::Formed(formed) => formed.plan.lanes(self.rank),
            Place::Alone | Place::Waiting(_) => 0..lanes,
        }
    }

    /// The exchange that sums this member's lanes with the others'; `None` for a member that has them all.
    pub(super) fn plan(&self) -> Option<&ExchangePlan> {
        match &self.place {
            Place::Formed(formed) => Some(&formed.plan),
            Place::Alone | Place::Waiting(_) => None,
        }
    }

    /// This member's rank and the number of members, for work that is divided by count.
    pub(super) fn part(&self) -> (usize, usize) {
        match self.place {
            Place::Formed(_) => (self.rank, self.ranks),
            Place::Alone | Place::Waiting(_) => (0, 1),
        }
    }

    /// Where it is kept whether this member waits for the others.
    pub(super) fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// What exchanges have cost this member, and how long it has waited for rows.
    pub(super) fn waits(&self, rows: Duration) -> Waits {
        Waits { rows, ..self.waits }
    }

    /// Whether this member has to stop or to change over, between two updates.
    pub(super) fn check<H: Host>(&self, host: &H) -> Result<(), Halt> {
        match &self.place {
            // Members stop together, after an exchange in which all of them heard of it.
            Place::Formed(formed) if !formed.changes => Ok(()),
            Place::Formed(_) | Place::Alone | Place::Waiting(_) => {
                if host.interrupted() {
                    return Err(Halt::Stopped);
                }
                let changes = matches!(&self.place, Place::Formed(_)) || host.formation().epoch > self.epoch;
                if changes { Err(Halt::Regroup) } else { Ok(()) }
            }
        }
    }

    /// Sums one part of all members' gradients: `partials` are this member's own subtrees, of so many numbers each. `None`
    /// when no lane has rows. Whether it is `early`, while lanes of this member are computed, is counted.
    pub(super) fn sum_part(
        &mut self,
        partials: Vec<Partial>,
        (length, way): (usize, Way),
        early: bool,
    ) -> Result<Option<Vec<f32>>, Halt> {
        let _waits = self.waiting.wait(self.epoch, For::Bytes(length * size_of::<f32>()));
        let formed = self.formed()?;
        let reduced = reduce_lanes(formed.group.as_mut(), &formed.plan, partials, length, way)?;
        self.waits.sent_bytes += reduced.sent_bytes;
        self.waits.parts += 1;
        self.waits.early_parts += u64::from(early);
        Ok(reduced.sum)
    }

    /// Ends an exchange: says this member's word and losses, and hears those of all, in the order of the lanes.
    pub(super) fn end_exchange<H: Host>(
        &mut self,
        host: &H,
        losses: Vec<Option<f64>>,
    ) -> Result<Vec<Option<f64>>, Halt> {
        let word = Word {
            leaving: host.interrupted(),
            epoch: host.formation().epoch,
            losses: losses.into_iter().map(|loss| loss.map(f64::to_bits)).collect(),
        };
        let epoch = self.epoch;
        let _waits = self.waiting.wait(epoch, For::Words);
        let formed = self.formed()?;
        let words: Vec<Word> = gather(formed.group.as_mut(), &word)?;
        formed.changes = words.iter().any(|word| word.leaving || word.epoch > epoch);
        Ok(words.into_iter().flat_map(|word| word.losses).map(|loss| loss.map(f64::from_bits)).collect())
    }

    /// Counts time in which this member had nothing to do but wait for the others.
    pub(super) fn add_wait(&mut self, time: Duration) {
        self.waits.members += time;
    }

    /// Every member's value, by rank. In a group whose members leave all of them halt instead.
    pub(super) fn share<H: Host, T: Serialize + DeserializeOwned>(&mut self, host: &H, own: T) -> Result<Vec<T>, Halt> {
        let leaving = host.interrupted();
        let Place::Formed(formed) = &mut self.place else {
            return if leaving { Err(Halt::Stopped) } else { Ok(vec![own]) };
        };
        let _waits = self.waiting.wait(self.epoch, For::Words);
        let said: Vec<(bool, T)> = gather(formed.group.as_mut(), &(leaving, own))?;
        if said.iter().any(|(leaves, _)| *leaves) {
            return Err(if leaving { Halt::Stopped } else { Halt::Regroup });
        }
        Ok(said.into_iter().map(|(_, value)| value).collect())
    }

    /// Ends this member's part in the group: after the exchange in which all agreed to, or because it broke.
    pub(super) fn dissolve(&mut self, broken: Option<String>) {
        let orderly = broken.is_none();
        let place = std::mem::replace(&mut self.place, Place::Waiting(broken));
        let _waits = self.waiting.wait(self.epoch, For::Words);
        if let (Place::Formed(formed), true) = (place, orderly)
            && let Err(error) = formed.group.leave()
        {
            tracing::debug!(%error, "the others left the group before this member");
        }
    }

    /// Waits for a formation and forms it, if this member is in none; gives it when it did.
    pub(super) fn assemble<H: Host>(&mut self, host: &H, lanes: usize) -> Result<Option<Formation>, Halt> {
        let Place::Waiting(broken) = &mut self.place else { return Ok(None) };
        // Whoever was told of the next formation need not say why it waits for it.
        if let Some(reason) = broken.take().filter(|_| host.formation().epoch <= self.epoch) {
            host.on_broken(self.epoch, reason);
        }
        self.waiting = host.waiting();
        let waits = self.waiting.wait(self.epoch, For::Words);
        let told = host.next_formation(self.epoch);
        drop(waits);
        let Some(formation) = told else { return Err(Halt::Stopped) };
        self.epoch = formation.epoch;
        (self.rank, self.ranks) = (formation.rank as usize, formation.ranks as usize);
        self.place = if self.ranks == 1 {
            Place::Alone
        } else {
            let _waits = self.waiting.wait(self.epoch, For::Group);
            let group = host.form(formation.clone())?;
            let plan = match formation.shares.as_slice() {
                [] => ExchangePlan::new(lanes, self.ranks),
                shares => ExchangePlan::weighted(lanes, shares),
            };
            Place::Formed(Box::new(Formed { group, plan, source: 0, changes: false }))
        };
        tracing::info!(
            epoch = self.epoch, rank = self.rank, ranks = self.ranks, shares = ?formation.shares, "formed"
        );
        Ok(Some(formation))
    }

    /// Compares states, of so many bytes, with the other members; a member that is behind gets that of the first one that is
    /// furthest.
    pub(super) fn adopt(
        &mut self,
        (own, state_bytes): (&Standing, usize),
        state: impl FnOnce() -> Result<Vec<u8>, Failure>,
    ) -> Result<Adopted, Halt> {
        let rank = self.rank;
        let Place::Formed(formed) = &mut self.place else { return Ok(Adopted::Nothing) };
        let waits = self.waiting.wait(self.epoch, For::Words);
        let standings: Vec<Standing> = gather(formed.group.as_mut(), own)?;
        drop(waits);
        let Some(furthest) = standings.iter().max_by_key(|standing| (standing.step, standing.evaluations)) else {
            return Ok(Adopted::Nothing);
        };
        let as_far = |other: &Standing| (other.step, other.evaluations) == (furthest.step, furthest.evaluations);
        let source = standings.iter().position(as_far).unwrap_or_default();
        formed.source = source;
        if let Some(other) = standings.iter().find(|other| as_far(other) && other.digest != furthest.digest) {
            let message = format!(
                "members hold different states after update {}, {} and {}: rows or arithmetic are not the same everywhere",
                furthest.step, furthest.digest, other.digest
            );
            return Err(failure::machine(message).into());
        }
        if standings.iter().all(|standing| *standing == standings[source]) {
            return Ok(Adopted::Nothing);
        }
        let mut bytes = if rank == source { state()? } else { Vec::new() };
        let _waits = self.waiting.wait(self.epoch, For::Bytes(state_bytes));
        formed.group.broadcast_bytes(&mut bytes, source)?;
        Ok(if *own == standings[source] { Adopted::Nothing } else { Adopted::State(bytes) })
    }

    /// Holds the digest of this member's state against that of the member that was copied, before any lane is taken. Whoever
    /// holds another state fails; for the others the group is broken, and they form anew without it.
    pub(super) fn confirm(&mut self, digest: &str) -> Result<(), Halt> {
        let rank = self.rank;
        let Place::Formed(formed) = &mut self.place else {
            self.new = false;
            return Ok(());
        };
        let source = formed.source;
        let _waits = self.waiting.wait(self.epoch, For::Words);
        let digests: Vec<String> = gather(formed.group.as_mut(), &digest.to_owned())?;
        match digests.iter().position(|other| *other != digests[source]) {
            None => {
                self.new = false;
                Ok(())
            }
            Some(_) if digests[rank] != digests[source] => {
                let (own, copied) = (&digests[rank], &digests[source]);
                let message =
                    format!("this member holds another state than rank {source} after copying it: {own}, not {copied}");
                Err(failure::machine(message).into())
            }
            Some(other) => {
                Err(Halt::Broken(format!("rank {other} holds another state than rank {source} after copying it")))
            }
        }
    }

    fn formed(&mut self) -> Result<&mut Formed, Halt> {
        match &mut self.place {
            Place::Formed(formed) => Ok(formed),
            Place::Alone | Place::Waiting(_) => Err(failure::machine("lanes are exchanged outside a group").into()),
        }
    }
}

/// One value of every member, by rank.
fn gather<T: Serialize + DeserializeOwned>(group: &mut dyn Group, own: &T) -> Result<Vec<T>, Halt> {
    let unreadable = |error: serde_json::Error| failure::machine(format!("a member's message cannot be read: {error}"));
    let own = serde_json::to_vec(own).map_err(unreadable)?;
    let said = group.all_gather_bytes(&own)?;
    Ok(said.iter().map(|bytes| serde_json::from_slice(bytes)).collect::<Result<_, _>>().map_err(unreadable)?)
}

#[cfg(test)]
mod tests {
    use graftwork_collective::EXCHANGE;

    use super::{super::exchange::Cuts, *};

    /// Members of versions that say the same exchange form groups.
    #[test]
    fn what_members_say_and_how_they_cut_belongs_to_this_exchange() {
        let word = Word { leaving: true, epoch: 3, losses: vec![Some(1.5_f64.to_bits()), None] };
        let standing = Standing { step: 7, evaluations: 2, digest: "x".to_owned() };
        let said = (serde_json::to_string(&word).unwrap(), serde_json::to_string(&standing).unwrap());
        let plans = [ExchangePlan::new(8, 3), ExchangePlan::weighted(8, &[3, 0, 2])];
        let lanes = plans.map(|plan| [0, 1, 2].map(|rank| plan.lanes(rank).end));
        let Cuts { part_numbers, small_numbers, .. } = Cuts::default();
        assert_eq!(
            (EXCHANGE, (said.0.as_str(), said.1.as_str()), lanes, [part_numbers, small_numbers]),
            (
                2,
                (
                    r#"{"leaving":true,"epoch":3,"losses":[4609434218613702656,null]}"#,
                    r#"{"step":7,"evaluations":2,"digest":"x"}"#
                ),
                [[2, 5, 8], [4, 4, 8]],
                [1 << 20, 1 << 16]
            ),
            "a change of these is another exchange"
        );
    }
}
