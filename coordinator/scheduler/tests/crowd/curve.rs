//! What is measured of a crowd.

use graftwork_scheduler::Event;

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Curve {
    pub(crate) assignments: u64,
    pub(crate) events: u64,
    pub(crate) deaths: u64,
    /// Stages that started on several workers at once.
    pub(crate) gangs: u64,
    pub(crate) work: u64,
    /// The most work of one submission, which looks at its whole plan.
    pub(crate) most_of_submissions: u64,
    /// The most of any other event, without the jobs that are told of a worker that comes or goes, and what it was.
    pub(crate) most_work: u64,
    pub(crate) most_by: &'static str,
    /// Nanoseconds of each event, in order.
    pub(crate) times: Vec<u64>,
    pub(crate) virtual_s: u64,
    /// In decisions alone.
    pub(crate) seconds: f64,
    /// Of all decisions.
    pub(crate) digest: u64,
}

impl Curve {
    pub(crate) fn time_us(&self, share: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
        let at = ((self.times.len() - 1) as f64 * share) as usize;
        self.times[at] as f64 / 1000.0
    }
}

/// What an event is called.
pub(crate) fn kind(event: &Event) -> &'static str {
    match event {
        Event::WorkerJoined { .. } => "a worker that joins",
        Event::WorkerLeft { .. } => "a worker that leaves",
        Event::Heartbeat { .. } => "a heartbeat",
        Event::Stepped { .. } => "a report",
        Event::Checkpointed { .. } => "a checkpoint",
        Event::Finished { .. } => "a result",
        Event::Failed { .. } => "a failure",
        Event::Released { .. } => "a lease given back",
        Event::Reusable { .. } => "the hub's answer",
        Event::Published { .. } => "a publication",
        Event::Tick => "time",
        _ => "another event",
    }
}
