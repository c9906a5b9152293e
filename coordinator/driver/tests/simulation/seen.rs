//! How often what the worlds are for did happen: worlds in which it never did would show nothing about it.

use std::collections::BTreeMap;

/// Something that happens in some worlds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    /// Whatever was due.
    Turn,
    /// A probe came back.
    Echo,
    /// In a world, workers joined a stage that would hold up its job before others of that started.
    HelpedFirst,
    /// In a world, the members of a group waited for each other in vain.
    StoodStill,
    /// A coordinator took the lead while another one lived.
    Usurped,
    /// A write of a coordinator that led no more was refused.
    WriteRefused,
    /// A worker heard a command of a coordinator that led no more.
    LateCommand,
    /// A trial came to its rung; a rung was decided; a trial became its task; a sweep failed.
    TrialScored,
    RungDecided,
    TrialChosen,
    SweepFailed,
    /// A word came over a session that another one had replaced, or that had ended.
    LateWord,
    /// A member that does not lead sent a checkpoint or a result.
    SpokeAsLeader,
    /// An answer about a blob overtook what was said before it.
    AnswerOvertook,
    /// A word of a worker, or of a coordinator, came twice.
    WordTwice,
    CommandTwice,
    /// A worker refused to be greeted by a coordinator of an older term.
    TermRefused,
    /// A full disk took no blob.
    BlobRefused,
    /// A full disk took no facts.
    FactsRefused,
    /// A coordinator started by a wall clock that had been set.
    ClockSet,
    /// A message, or the end of a connection, was held up since its worker was cut off.
    CutOff,
    /// A coordinator died at a write before the commit.
    DiedBeforeCommit,
    /// A coordinator died at a write behind the commit.
    DiedBehindCommit,
    /// An update was told in a world in which each of them is.
    UpdateTold,
}

/// What must happen, with how often in a thousand worlds at least. That a term is refused takes a coordinator that leads no
/// more, has nothing to write and is asked by one that has left it within its grace, and that a sweep fails takes trials of
/// which none ends: too rare to be counted on.
pub(crate) const WANTED: [(Seen, u64); 22] = [
    (Seen::Turn, 100_000),
    (Seen::Echo, 20_000),
    (Seen::HelpedFirst, 2),
    (Seen::StoodStill, 5),
    (Seen::Usurped, 100),
    (Seen::WriteRefused, 20),
    (Seen::LateCommand, 20),
    (Seen::LateWord, 20),
    (Seen::SpokeAsLeader, 20),
    (Seen::AnswerOvertook, 100),
    (Seen::WordTwice, 1_000),
    (Seen::CommandTwice, 1_000),
    (Seen::TrialScored, 500),
    (Seen::RungDecided, 100),
    (Seen::TrialChosen, 50),
    (Seen::BlobRefused, 20),
    (Seen::FactsRefused, 20),
    (Seen::ClockSet, 50),
    (Seen::CutOff, 500),
    (Seen::DiedBeforeCommit, 50),
    (Seen::DiedBehindCommit, 50),
    (Seen::UpdateTold, 2_000),
];

/// How often, by what.
pub(crate) type Counts = BTreeMap<Seen, u64>;
