//! Where a stage stands durably, and the one table of its changes.
//!
//! Whether a pending stage waits or is ready follows from other stages' results and from the workers of the moment;
//! that part is not kept, it is derived where [`StageState`](graftwork_shared::view::StageState) is made.

use graftwork_shared::{
    assignment::Failure,
    id::{LeaseId, WorkerId},
    recipe::NumericClass,
};
use serde::{Deserialize, Serialize};

/// Where a stage stands.
///
/// ```text
///            Lease             Train             Publish
/// Pending ─────────► Running ─────────► Trained ─────────► Published
///  │  ▲ ▲               │ │                │
///  │  │ └── GiveBack ───┘ │                │
///  │  │                   └──── Fail ──────┴──► Failed
///  │  └ (submitted again: a job that ended; stages that are left to do start from what is kept)
///  │  └ Lose (from Trained and Published: the result's blob is gone while it is needed)
///  ├─── Train (an earlier result is reused) ──► Trained
///  ├─── Cancel (also from Running) ───────────► Cancelled
///  ├─── Compare (a trial, also from Running) ─► Compared
///  └─── Exhaust (a task without a trial left) ► Failed
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Not on a worker.
    Pending,
    /// On a worker.
    Running(Grant),
    /// Has its result.
    Trained,
    /// In the hub.
    Published {
        /// Where.
        release: String,
    },
    /// Failed for good.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// Will not be trained.
    Cancelled {
        /// Why.
        reason: String,
    },
    /// A trial that trains no more: its sweep is over.
    Compared,
}

/// One stage, on one worker or on a group of them, under one lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Grant {
    /// The lease.
    pub(crate) lease: LeaseId,
    /// Who holds it; of a group the member of rank 0, which speaks for the stage.
    pub(crate) worker: WorkerId,
    /// The holder's numeric class, and that of all members.
    pub(crate) class: NumericClass,
    /// Since when, in milliseconds since 1970.
    pub(crate) since_ms: u64,
    /// The other members in the order of their ranks.
    #[serde(default)]
    pub(crate) others: Vec<WorkerId>,
    /// Of the group; 0 for the one worker that the lease began with.
    #[serde(default)]
    pub(crate) epoch: u64,
    /// Lanes of each member by rank; empty: all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) shares: Vec<u32>,
}

impl Grant {
    /// What a lease begins with.
    pub(crate) fn of_one(lease: LeaseId, worker: WorkerId, class: NumericClass, since_ms: u64) -> Self {
        Self { lease, worker, class, since_ms, others: Vec::new(), epoch: 0, shares: Vec::new() }
    }

    /// All members in the order of their ranks.
    pub(crate) fn members(&self) -> Vec<WorkerId> {
        std::iter::once(self.worker).chain(self.others.iter().copied()).collect()
    }
}

/// What happens to a stage.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// It is handed out.
    Lease(Grant),
    /// Its lease ended without a result.
    GiveBack,
    /// It has its result.
    Train,
    /// Its result is gone.
    Lose,
    /// It is in the hub.
    Publish(String),
    /// It failed for good.
    Fail(Failure),
    /// It will not be trained.
    Cancel(String),
    /// Its sweep is over.
    Compare,
    /// None of its trials can become it.
    Exhaust(Failure),
}

impl Phase {
    /// The table. `None` for a change that the phase does not know.
    pub(crate) fn after(&self, change: Change) -> Option<Self> {
        use Change::{Cancel, Compare, Exhaust, Fail, GiveBack, Lease, Lose, Publish, Train};
        match (self, change) {
            (Self::Pending, Lease(grant)) => Some(Self::Running(grant)),
            (Self::Pending | Self::Running(_), Train) => Some(Self::Trained),
            (Self::Pending | Self::Running(_), Cancel(reason)) => Some(Self::Cancelled { reason }),
            (Self::Running(_), GiveBack) | (Self::Trained | Self::Published { .. }, Lose) => Some(Self::Pending),
            (Self::Running(_) | Self::Trained, Fail(failure)) | (Self::Pending, Exhaust(failure)) => {
                Some(Self::Failed { failure })
            }
            (Self::Pending | Self::Running(_), Compare) => Some(Self::Compared),
            (Self::Trained, Publish(release)) => Some(Self::Published { release }),
            (Self::Pending, GiveBack | Lose | Publish(_) | Fail(_))
            | (Self::Running(_), Lease(_) | Lose | Publish(_) | Exhaust(_))
            | (Self::Trained, Lease(_) | GiveBack | Train | Cancel(_) | Compare | Exhaust(_))
            | (
                Self::Published { .. } | Self::Failed { .. } | Self::Cancelled { .. } | Self::Compared,
                Lease(_) | GiveBack | Train | Publish(_) | Fail(_) | Cancel(_) | Compare | Exhaust(_),
            )
            | (Self::Failed { .. } | Self::Cancelled { .. } | Self::Compared, Lose) => None,
        }
    }

    /// Whether nothing more happens to it until the job is submitted again or its result, still needed, is lost.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Pending | Self::Running(_) | Self::Trained => false,
            Self::Published { .. } | Self::Failed { .. } | Self::Cancelled { .. } | Self::Compared => true,
        }
    }

    /// The lease under which it runs.
    pub(crate) fn grant(&self) -> Option<&Grant> {
        match self {
            Self::Running(grant) => Some(grant),
            Self::Pending
            | Self::Trained
            | Self::Published { .. }
            | Self::Failed { .. }
            | Self::Cancelled { .. }
            | Self::Compared => None,
        }
    }

    /// The word for it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running(_) => "running",
            Self::Trained => "trained",
            Self::Published { .. } => "published",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
            Self::Compared => "compared",
        }
    }
}
