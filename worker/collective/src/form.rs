//! Forming a group: claim the rank, meet the others, agree, connect, and say hello over the connection itself.
//!
//! ```text
//! graftwork/GROUP/EPOCH/claim/RANK     a number: 1 for the first to come, who alone may go on
//!                      /member/RANK    what this rank asks for, and a random number of its
//!                      /…              the transport's own: addresses, NCCL's id
//! ```
//! All keys hold name and epoch, and every message later carries rank 0's random number: a member of an old epoch meets
//! nobody, and whatever it still sends is refused. An epoch is formed once; a failed attempt needs a new one.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    Aborter, CollectiveError, Group, Rendezvous, RendezvousError,
    member::{Member, Place},
    rendezvous::whole_ms,
    tls::Identity,
    transport::{gloo, in_process, left, nccl, tls},
};

/// What members say to each other in an update and about their states, in which order, and how lanes and gradients are cut
/// for it. Raise it with any change of that: workers tell it to their coordinator, which puts no two of them into one group,
/// and a member of another version meets a disagreement instead of messages that it would misread.
pub const EXCHANGE: u32 = 2;

/// How long one question to the rendezvous lasts: an abort is noticed within this time.
const PATIENCE: Duration = Duration::from_millis(100);

/// What carries a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Threads of one process; for tests.
    InProcess,
    /// Gloo over TCP, out of libtorch's own library.
    Gloo {
        /// Address of the interface to listen on; the others must reach it.
        address: IpAddr,
    },
    /// TCP with TLS, both sides of which show certificates of workers.
    Tls {
        /// As Gloo's.
        address: IpAddr,
        /// This member's certificate, and the CA by which it knows others.
        identity: Identity,
    },
    /// NCCL between GPUs; buffers are staged through device memory. Loaded at run time.
    Nccl {
        /// This rank's CUDA device.
        device: u32,
        /// `libnccl.so.2` or its folder; `None` searches as [`crate::nccl::probe`] says.
        library: Option<PathBuf>,
    },
}

/// Which group to form, as whom, over what, and how long to wait.
#[derive(Clone, Debug)]
pub struct FormRequest {
    /// The group's name, the same for all its members.
    pub group: String,
    /// The epoch: a number that is never used twice for a name.
    pub epoch: u64,
    /// This member's rank, below `size`.
    pub rank: usize,
    /// How many members there are.
    pub size: usize,
    /// What carries it. Default: Gloo on 127.0.0.1.
    pub backend: Backend,
    /// How long forming waits for the others. Default: one minute.
    pub form_deadline: Duration,
    /// How long connecting may take once all members have come. Default: 20 seconds.
    pub connect_deadline: Duration,
    /// How long one operation may take, waiting for a rank that computes included. Default: half an hour; the aborter
    /// ends a wait earlier.
    pub deadline: Duration,
    /// Ends forming and every later wait.
    pub aborter: Aborter,
}

impl FormRequest {
    /// A request with the defaults.
    pub fn new(group: impl Into<String>, epoch: u64, rank: usize, size: usize) -> Self {
        Self {
            group: group.into(),
            epoch,
            rank,
            size,
            backend: Backend::Gloo { address: Ipv4Addr::LOCALHOST.into() },
            form_deadline: Duration::from_mins(1),
            connect_deadline: Duration::from_secs(20),
            deadline: Duration::from_mins(30),
            aborter: Aborter::new(),
        }
    }

    /// What all members must ask for alike.
    fn terms(&self) -> String {
        let backend = match self.backend {
            Backend::InProcess => "in-process",
            Backend::Gloo { .. } => "gloo",
            Backend::Tls { .. } => "TLS",
            Backend::Nccl { .. } => "nccl",
        };
        format!("{} ranks over {backend}, exchange {EXCHANGE}", self.size)
    }
}

/// Forms the group, or says why not: at the latest at the form deadline, and promptly at an abort. When it returns a
/// group, all members are connected.
pub fn form(request: FormRequest, rendezvous: Arc<dyn Rendezvous>) -> Result<Box<dyn Group>, CollectiveError> {
    form_member(request, rendezvous).map(|member| Box::new(member) as Box<dyn Group>)
}

/// As [`form()`], for the sub-groups that a member makes.
pub(crate) fn form_member(request: FormRequest, rendezvous: Arc<dyn Rendezvous>) -> Result<Member, CollectiveError> {
    if request.rank >= request.size {
        return Err(CollectiveError::Rank { rank: request.rank, size: request.size });
    }
    let mut meeting = Meeting::new(&request, rendezvous.clone());
    let token = meet(&request, &meeting)?;
    // Whoever has come computes nothing any more: who cannot be reached now has a wrong address, or is cut off.
    meeting.until = meeting.until.min(Instant::now() + request.connect_deadline);
    let transport = match &request.backend {
        Backend::InProcess => in_process::connect(&meeting)?,
        Backend::Gloo { address } => gloo::connect(&meeting, *address)?,
        Backend::Tls { address, identity } => tls::connect(&meeting, *address, identity)?,
        Backend::Nccl { device, library } => nccl::connect(&meeting, *device, library.as_deref())?,
    };
    let mut member = Member::new(Place { request, rendezvous, token }, transport);
    member.hello(meeting.until, whole_ms(meeting.limit))?;
    Ok(member)
}

/// Claims this rank, waits for all the others and compares terms. Gives rank 0's random number.
fn meet(request: &FormRequest, meeting: &Meeting) -> Result<u64, CollectiveError> {
    let rank = request.rank;
    if meeting.add(&format!("claim/{rank}"), 1)? != 1 {
        return Err(CollectiveError::EpochUsed { group: request.group.clone(), epoch: request.epoch, rank });
    }
    let terms = request.terms();
    let mut said = RandomState::new().build_hasher().finish().to_le_bytes().to_vec();
    said.extend(terms.as_bytes());
    meeting.set(&format!("member/{rank}"), &said)?;
    let mut token = 0;
    for other in 0..request.size {
        let said = meeting.get(&format!("member/{other}"))?;
        let (number, found) = said.split_at_checked(8).unwrap_or_default();
        if found != terms.as_bytes() {
            let found = String::from_utf8_lossy(found).into_owned();
            return Err(CollectiveError::Disagreement { rank: other, expected: terms, found });
        }
        if other == 0 {
            token = number.iter().rev().fold(0, |token, byte| token << 8 | u64::from(*byte));
        }
    }
    Ok(token)
}

/// One member's view of the rendezvous while its group forms: keys of this group and epoch alone, one deadline.
#[derive(Clone)]
pub(crate) struct Meeting {
    rendezvous: Arc<dyn Rendezvous>,
    prefix: String,
    limit: Duration,
    pub(crate) rank: usize,
    pub(crate) size: usize,
    pub(crate) until: Instant,
    pub(crate) aborter: Aborter,
}

impl Meeting {
    fn new(request: &FormRequest, rendezvous: Arc<dyn Rendezvous>) -> Self {
        Self {
            rendezvous,
            prefix: format!("graftwork/{}/{}/", request.group, request.epoch),
            limit: request.form_deadline,
            rank: request.rank,
            size: request.size,
            until: Instant::now() + request.form_deadline,
            aborter: request.aborter.clone(),
        }
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), CollectiveError> {
        self.rendezvous.set(&self.key(key), value).map_err(unreachable)
    }

    /// Waits for a key, in short questions, until it is there, or the deadline, or an abort.
    pub(crate) fn get(&self, key: &str) -> Result<Vec<u8>, CollectiveError> {
        let key = self.key(key);
        loop {
            self.check()?;
            match self.rendezvous.get(&key, PATIENCE.min(left(self.until))) {
                Err(RendezvousError::Deadline { .. }) => {}
                answer => return answer.map_err(unreachable),
            }
        }
    }

    pub(crate) fn add(&self, key: &str, amount: i64) -> Result<i64, CollectiveError> {
        self.rendezvous.add(&self.key(key), amount).map_err(unreachable)
    }

    /// Whether forming may still go on.
    pub(crate) fn check(&self) -> Result<(), CollectiveError> {
        if self.aborter.is_aborted() {
            return Err(CollectiveError::Aborted { operation: "forming" });
        }
        if left(self.until).is_zero() {
            return Err(self.late());
        }
        Ok(())
    }

    /// The name that all members of this group and epoch share, and nobody else.
    pub(crate) fn name(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn late(&self) -> CollectiveError {
        CollectiveError::Deadline { operation: "forming", limit_ms: whole_ms(self.limit) }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// A member that was there while the group formed, and is no more.
pub(crate) fn lost(reason: impl Into<String>) -> CollectiveError {
    CollectiveError::PeerLost { operation: "forming", reason: reason.into() }
}

fn unreachable(error: RendezvousError) -> CollectiveError {
    CollectiveError::Rendezvous(error.to_string())
}
