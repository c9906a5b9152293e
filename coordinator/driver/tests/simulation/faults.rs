//! What goes wrong in a seed's world. Each seed draws which kinds of fault it has, so that rare ones are not drowned by
//! frequent ones, and worlds with one kind alone are among them.

use crate::dice::Dice;

#[derive(Clone, Debug)]
pub(crate) struct Faults {
    /// Longest way of a message, in milliseconds.
    pub(crate) delay_ms: u64,
    /// Longest write of the journal.
    pub(crate) write_ms: u64,
    /// Of a thousand writes, those at which the coordinator dies, before or after the commit.
    pub(crate) crash_at_write: u64,
    /// The one write at which it dies, and whether after the commit; for the test that tries each of them.
    pub(crate) crash_at: Option<(u64, bool)>,
    /// Mean milliseconds between faults of each kind; 0 for never.
    pub(crate) crash: u64,
    pub(crate) stop: u64,
    pub(crate) stall: u64,
    pub(crate) usurp: u64,
    pub(crate) full: u64,
    pub(crate) lose_blob: u64,
    pub(crate) kill: u64,
    pub(crate) freeze: u64,
    pub(crate) break_link: u64,
    pub(crate) partition: u64,
    pub(crate) part: u64,
    /// Whoever is cut off from the others when all else heals stays so.
    pub(crate) stays_apart: bool,
    pub(crate) fail: u64,
    pub(crate) lie: u64,
    pub(crate) drain: u64,
    pub(crate) wall: u64,
    pub(crate) cancel: u64,
    /// Of a thousand words of workers and coordinators, those that arrive twice.
    pub(crate) twice: u64,
    /// Of a thousand publications, those that fail.
    pub(crate) hub: u64,
    /// Workers are sent home when the coordinator stops.
    pub(crate) sends_home: bool,
    /// Messages that may wait for a worker to read them.
    pub(crate) unread: usize,
    /// Every update is reported, and no report is lost but with its coordinator, or with a worker that is given up, whose
    /// attempt or group begins anew: no connection is broken otherwise, and nobody speaks to a coordinator that leads no more.
    pub(crate) every_update: bool,
}

impl Faults {
    pub(crate) fn none() -> Self {
        Self {
            delay_ms: 2,
            write_ms: 3,
            crash_at_write: 0,
            crash_at: None,
            crash: 0,
            stop: 0,
            stall: 0,
            usurp: 0,
            full: 0,
            lose_blob: 0,
            kill: 0,
            freeze: 0,
            break_link: 0,
            partition: 0,
            part: 0,
            stays_apart: false,
            fail: 0,
            lie: 0,
            drain: 0,
            wall: 0,
            cancel: 0,
            twice: 0,
            hub: 0,
            sends_home: false,
            unread: 256,
            every_update: false,
        }
    }

    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let mut every = |share: u64, least: u64, most: u64| {
            let mean = dice.between(least, most);
            if dice.chance(share) { mean } else { 0 }
        };
        let mut faults = Self {
            crash: every(300, 3_000, 15_000),
            stop: every(100, 8_000, 20_000),
            stall: every(200, 4_000, 15_000),
            full: every(200, 6_000, 20_000),
            lose_blob: every(200, 3_000, 10_000),
            kill: every(400, 3_000, 12_000),
            freeze: every(300, 3_000, 12_000),
            break_link: every(500, 800, 6_000),
            partition: every(300, 3_000, 10_000),
            fail: every(300, 2_000, 10_000),
            lie: every(300, 800, 5_000),
            drain: every(150, 6_000, 20_000),
            wall: every(300, 4_000, 12_000),
            cancel: every(150, 8_000, 30_000),
            ..Self::none()
        };
        faults.delay_ms = [1, 5, 60, 900][usize::try_from(dice.below(4)).unwrap()];
        faults.write_ms = [1, 8, 60, 700][usize::try_from(dice.below(4)).unwrap()];
        faults.crash_at_write = [0, 0, 10, 60][usize::try_from(dice.below(4)).unwrap()];
        faults.twice = [0, 0, 20, 200][usize::try_from(dice.below(4)).unwrap()];
        faults.hub = [0, 0, 100, 400][usize::try_from(dice.below(4)).unwrap()];
        faults.sends_home = dice.chance(300);
        let mean = dice.between(4_000, 15_000);
        faults.usurp = if dice.chance(200) { mean } else { 0 };
        let mean = dice.between(2_000, 10_000);
        faults.part = if dice.chance(100) { mean } else { 0 };
        faults.unread = if dice.chance(150) { 4 } else { 256 };
        // In few worlds: each report is a turn of the scheduler, which is held against all invariants.
        faults.every_update = faults.break_link == 0 && faults.usurp == 0 && dice.chance(125);
        faults
    }

    /// What may happen, with its mean distance in time.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (Fault, u64)> {
        let kinds = [
            (Fault::Crash, self.crash),
            (Fault::Stop, self.stop),
            (Fault::Stall, self.stall),
            (Fault::Usurp, self.usurp),
            (Fault::FillDisk, self.full),
            (Fault::LoseBlob, self.lose_blob),
            (Fault::Kill, self.kill),
            (Fault::Freeze, self.freeze),
            (Fault::BreakLink, self.break_link),
            (Fault::Partition, self.partition),
            (Fault::Part, self.part),
            (Fault::FailStage, self.fail),
            (Fault::Lie, self.lie),
            (Fault::Drain, self.drain),
            (Fault::JumpWall, self.wall),
            (Fault::Cancel, self.cancel),
        ];
        kinds.into_iter().filter(|(_, mean)| *mean > 0)
    }
}

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9 of the coordinator.
    Crash,
    /// It is asked to stop, and started again.
    Stop,
    /// It stands still for a while: for it, the clock jumps forward.
    Stall,
    /// The coordinator stands still, or is cut off from its journal, until another one takes the lead and beyond.
    Usurp,
    /// The coordinator's disk takes nothing more for a while.
    FillDisk,
    /// The disk loses a blob.
    LoseBlob,
    /// kill -9 of a worker.
    Kill,
    /// A worker stands still for a while.
    Freeze,
    /// A connection breaks.
    BreakLink,
    /// Nothing passes to a worker, from it, or both, for a while.
    Partition,
    /// A worker and the others do not reach each other, though all of them reach the coordinator, for a while.
    Part,
    /// An attempt fails.
    FailStage,
    /// A worker speaks under whatever lease is live.
    Lie,
    /// An operator has a worker leave, or its machine does.
    Drain,
    /// The wall clock is set, forward or back; the next coordinator starts with it.
    JumpWall,
    /// A user cancels a job.
    Cancel,
}
