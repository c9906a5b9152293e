//! Who may ask what, and how much of it: tokens with roles, rates, and patience with those who guess.
//!
//! ```text
//! tokens   the file of tokens: names, roles, owners, digests; never a token itself
//! role     roles, and which of them each request wants
//! places   where jobs with a token may publish
//! limits   every bound on requests, connections and guesses, in one place
//! rate     buckets that those bounds fill
//! gate     what every request passes before a service hears of it
//! ```
//! A private socket is its user's alone, by its folder: whoever enters it may do everything.

mod gate;
mod limits;
mod places;
mod rate;
mod role;
mod tokens;

use std::sync::Arc;

use graftwork_shared::job::Job;
use tonic::{Request, Status};

pub(super) use self::{
    gate::{Gate, Peer},
    limits::Rate,
    rate::{Failures, Pace, Rates},
};
pub(crate) use self::{
    limits::Limits,
    places::Places,
    role::Role,
    tokens::{NewToken, Tokens},
};

/// Who must show what on a listener.
#[derive(Clone)]
pub(super) enum Keys {
    /// Nobody anything: only this user gets in.
    Open,
    /// Everyone a token.
    Tokens(Arc<Tokens>),
}

/// Whoever sent a request, as the gate found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// Name of the token; never the token.
    pub(super) name: Arc<str>,
    /// `None` may do everything.
    pub(super) role: Option<Role>,
    /// Whose jobs its are.
    pub(super) owner: Option<Arc<str>>,
    /// The highest priority that its jobs may have.
    pub(super) most_priority: i32,
}

/// The owner that a job has when its file names none.
const NOBODY: &str = "local";

impl Caller {
    /// Whoever the gate let pass with this request.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::internal("the request did not come through the gate"))
    }

    /// Whether it may act on jobs of this owner.
    pub(super) fn may_act_for(&self, owner: &str) -> bool {
        match (&self.role, &self.owner) {
            (None | Some(Role::Admin), _) => true,
            (Some(_), Some(own)) => **own == *owner,
            (Some(_), None) => false,
        }
    }

    /// Refuses to act on another owner's job.
    pub(super) fn act_for(&self, owner: &str, what: &str) -> Result<(), Status> {
        if self.may_act_for(owner) {
            return Ok(());
        }
        let Self { name, .. } = self;
        let role = self.role.map_or("every", Role::name);
        Err(Status::permission_denied(format!(
            "the job is {owner:?}'s, and token {name:?} of the role {role} may {what} {} jobs alone: the role admin is \
             needed for it",
            self.owner.as_deref().map_or("nobody's".to_owned(), |own| format!("{own:?}'s"))
        )))
    }

    /// The job as this caller submits it: its own where the file names no owner. It goes before nobody's whom it may not
    /// go before, and is published where the caller may publish. Looks at the disk for that.
    pub(super) fn submits(&self, mut job: Job, places: &Places) -> Result<Job, Status> {
        if let Some(own) = &self.owner
            && job.owner == NOBODY
        {
            job.owner = own.to_string();
        }
        self.act_for(&job.owner, "submit")?;
        let (name, most) = (&self.name, self.most_priority);
        if job.priority > most {
            return Err(Status::permission_denied(format!(
                "priority: {}, but the jobs of token {name:?} have {most} at most; its most_priority in the file of tokens \
                 says so",
                job.priority
            )));
        }
        places.check(self, &job.publish)?;
        Ok(job)
    }
}
