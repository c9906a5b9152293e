//! Stages that several members train: whoever joins, leaves or dies after whichever update, the result is that of one.
//!
//! Members are threads with device threads of their own; the test is their coordinator. Faults are placed by the number
//! of the question that a member asks its host, one for each update and each wave of scoring, never by a clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use graftwork_collective::{Aborter, Backend, FormRequest, MemoryRendezvous, form};
use graftwork_shared::training::Reduction;

use super::{
    super::membership::{Adopted, Halt, Membership, Standing},
    *,
};

/// What a member tells its coordinator.
pub(super) enum Said {
    Prepared,
    Broken(u64),
    Updated(Counted),
}

/// What happens to a member at one of its questions.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Dies,
    Leaves,
    /// The coordinator takes this one in, which has loaded everything.
    Admits(usize),
    /// The same, and the member dies before it has heard of it.
    DiesAsOneJoins(usize),
}

/// Unwinds the thread of a member that was killed or dismissed.
struct Gone;

/// The coordinator and what it knows.
#[derive(Default)]
pub(super) struct Circle {
    rendezvous: MemoryRendezvous,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    epoch: u64,
    members: Vec<usize>,
    prepared: BTreeSet<usize>,
    told: BTreeMap<usize, Formation>,
    aborters: BTreeMap<usize, (u64, Aborter)>,
    dismissed: bool,
    /// All members have as many lanes, if that can be.
    pub(super) even: bool,
    pub(super) updates: BTreeMap<usize, Vec<Counted>>,
}

impl State {
    /// Tells the members of their next formation.
    fn form(&mut self, at_once: bool) {
        self.epoch += 1;
        let ranks = u32::try_from(self.members.len()).unwrap();
        for (rank, &member) in (0..).zip(&self.members) {
            // Whoever is slower gets fewer lanes; here that is another one with every epoch, and some get none.
            let weight = |rank: u32| (u32::try_from(self.epoch).unwrap() + 3 * rank) % 4;
            let weights: Vec<u32> = (0..ranks).map(weight).collect();
            let even = self.even || weights.iter().all(|weight| *weight == 0);
            let shares = if even { Vec::new() } else { weights };
            let formation = Formation { epoch: self.epoch, rank, ranks, at_once, checkpointed: 0, shares };
            self.told.insert(member, formation);
            if let Some((epoch, aborter)) = self.aborters.get(&member).filter(|_| at_once) {
                assert!(*epoch < self.epoch);
                aborter.abort();
            }
        }
    }

    fn lose(&mut self, member: usize) {
        let before = self.members.len();
        self.members.retain(|other| *other != member);
        if self.members.len() < before && !self.members.is_empty() {
            self.form(true);
        }
    }
}

impl Circle {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Takes a member in once it has loaded everything.
    fn admit(&self, member: usize) {
        let mut state = self.state();
        while !state.prepared.contains(&member) {
            state = self.changed.wait(state).unwrap();
        }
        state.members.push(member);
        state.form(false);
        drop(state);
        self.changed.notify_all();
    }
}

/// A member's place in a circle.
pub(super) struct Seat {
    circle: Arc<Circle>,
    member: usize,
    questions: AtomicU32,
    fate: Option<(u32, Fate)>,
}

impl Seat {
    /// Whether the member's number is odd.
    pub(super) fn is_odd(&self) -> bool {
        self.member % 2 == 1
    }

    pub(super) fn formation(&self) -> Formation {
        self.circle.state().told.get(&self.member).cloned().unwrap_or(Formation::ALONE)
    }

    pub(super) fn next_formation(&self, after: u64) -> Option<Formation> {
        let mut state = self.circle.state();
        loop {
            if state.dismissed {
                drop(state);
                resume_unwind(Box::new(Gone));
            }
            if let Some(told) = state.told.get(&self.member).filter(|told| told.epoch > after) {
                return Some(told.clone());
            }
            state = self.circle.changed.wait(state).unwrap();
        }
    }

    pub(super) fn form(&self, formation: Formation) -> Result<Box<dyn Group>, CollectiveError> {
        let aborter = Aborter::new();
        {
            let mut state = self.circle.state();
            if state.dismissed || state.epoch > formation.epoch {
                aborter.abort();
            }
            state.aborters.insert(self.member, (formation.epoch, aborter.clone()));
        }
        let (rank, ranks) = (formation.rank as usize, formation.ranks as usize);
        let request = FormRequest {
            backend: Backend::InProcess,
            aborter,
            ..FormRequest::new("stage", formation.epoch, rank, ranks)
        };
        form(request, Arc::new(self.circle.rendezvous.clone()))
    }

    pub(super) fn say(&self, said: Said) {
        let mut state = self.circle.state();
        match said {
            Said::Prepared => drop(state.prepared.insert(self.member)),
            Said::Broken(epoch) => assert!(epoch <= state.epoch),
            Said::Updated(update) => state.updates.entry(self.member).or_default().push(update),
        }
        self.circle.changed.notify_all();
    }

    /// Whether the member has to leave; one that is to die does so here.
    pub(super) fn on_question(&self) -> bool {
        let question = self.questions.fetch_add(1, Ordering::SeqCst);
        match self.fate {
            Some((at, Fate::Dies)) if question == at => resume_unwind(Box::new(Gone)),
            Some((at, Fate::Leaves)) => question >= at,
            Some((at, Fate::Admits(member))) if question == at => {
                self.circle.admit(member);
                false
            }
            Some((at, Fate::DiesAsOneJoins(member))) if question == at => {
                self.circle.admit(member);
                resume_unwind(Box::new(Gone))
            }
            _ => false,
        }
    }
}

/// What becomes of a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    fate: Option<(u32, Fate)>,
}

pub(super) const STAYS: Member = Member { fate: None };

fn dies(question: u32) -> Member {
    Member { fate: Some((question, Fate::Dies)) }
}

fn leaves(question: u32) -> Member {
    Member { fate: Some((question, Fate::Leaves)) }
}

fn admits(question: u32, member: usize) -> Member {
    Member { fate: Some((question, Fate::Admits(member))) }
}

fn dies_as_one_joins(question: u32, member: usize) -> Member {
    Member { fate: Some((question, Fate::DiesAsOneJoins(member))) }
}

/// Trains a stage with these members; gives the result of whoever leads at the end.
fn together(of: &Assignment, blobs: &LocalHost, members: &[Member]) -> StageResult {
    in_circle(&Arc::new(Circle::default()), of, (blobs, members))
}

/// The same in this circle. All are formed before the first update but for those that are taken in later.
pub(super) fn in_circle(
    circle: &Arc<Circle>,
    of: &Assignment,
    (blobs, members): (&LocalHost, &[Member]),
) -> StageResult {
    let later = |number: &usize| {
        let admits = |fate: Fate| matches!(fate, Fate::Admits(of) | Fate::DiesAsOneJoins(of) if of == *number);
        members.iter().any(|member| member.fate.is_some_and(|(_, fate)| admits(fate)))
    };
    let first: Vec<usize> = (0..members.len()).filter(|number| !later(number)).collect();
    circle.state().members.clone_from(&first);
    if first.len() > 1 {
        circle.state().form(false);
    }
    thread::scope(|scope| {
        let run = |(number, member): (usize, &Member)| {
            let seat =
                Seat { circle: Arc::clone(circle), member: number, questions: AtomicU32::new(0), fate: member.fate };
            let host = LocalHost::seated(blobs, seat);
            let circle = Arc::clone(circle);
            scope.spawn(move || {
                let ended = catch_unwind(AssertUnwindSafe(|| run_stage(of, number > 0, &host)));
                let mut state = circle.state();
                let result = match ended {
                    Ok(Ok(StageEnd::Finished(result))) => {
                        state.dismissed = true;
                        state.aborters.values().for_each(|(_, aborter)| aborter.abort());
                        Some(result)
                    }
                    Ok(Ok(StageEnd::Interrupted)) => {
                        state.lose(number);
                        None
                    }
                    Ok(Ok(paused @ StageEnd::Paused { .. })) => panic!("{paused:?}"),
                    Err(payload) if payload.is::<Gone>() => {
                        if !state.dismissed {
                            state.lose(number);
                        }
                        None
                    }
                    Err(payload) => resume_unwind(payload),
                    Ok(Err(failure)) => panic!("member {number} failed: {}", failure.message),
                };
                drop(state);
                circle.changed.notify_all();
                result
            })
        };
        let threads: Vec<_> = members.iter().enumerate().map(run).collect();
        let results: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        let [result] = results.as_slice() else { panic!("{} members have a result", results.len()) };
        result.clone()
    })
}

/// A stage of four lanes, so that up to four members have work.
pub(super) fn stage(data: &Data, host: &LocalHost) -> Assignment {
    let mut of = assignment(data, host, adapter_recipe(data));
    of.recipe.training.lanes = 4;
    of
}

#[test]
fn one_two_three_four_and_six_members_give_the_same_result() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = stage(&data, &host);
    let alone = bytes_of(&finish(&of, &host));
    for ranks in [2, 3, 4, 6] {
        assert_eq!(bytes_of(&together(&of, &host, &vec![STAYS; ranks])), alone, "{ranks} members");
    }
    let fusion = fusion_of(&data, &host);
    assert_eq!(bytes_of(&together(&fusion, &host, &[STAYS; 2])), bytes_of(&finish(&fusion, &host)));
}

#[test]
fn a_fast_reduction_trains_the_same_stage_outside_the_promise() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let mut of = stage(&data, &host);
    let exact = finish(&of, &host);
    of.recipe.training.reduction = Reduction::Fast;
    assert_ne!(of.recipe.digest(), stage(&data, &host).recipe.digest(), "it is another recipe");
    let fast = together(&of, &host, &[STAYS; 3]);
    let (near, exact) = (fast.validation.last().unwrap().loss, exact.validation.last().unwrap().loss);
    assert!((near - exact).abs() < 1e-3 * exact.abs(), "{near} is not near {exact}");
    // Alone there is nothing to reduce over the network.
    assert_eq!(bytes_of(&finish(&of, &host)), bytes_of(&finish(&stage(&data, &host), &host)));
}

#[test]
fn whoever_dies_at_whichever_question_the_result_is_the_same() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = stage(&data, &host);
    let alone = bytes_of(&finish(&of, &host));
    for question in 0..20 {
        for members in [
            [STAYS, dies(question), STAYS],
            [dies(question), STAYS, STAYS],
            [dies(question), dies(question + 2), STAYS],
            [STAYS, dies(question), dies(question)],
        ] {
            assert_eq!(bytes_of(&together(&of, &host, &members)), alone, "{members:?}");
        }
    }
}

#[test]
fn a_newcomer_that_is_left_alone_gives_the_stage_back_and_it_goes_on_from_its_checkpoint() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = stage(&data, &host);
    let alone = finish(&of, &host);
    for (checkpointed, blob) in host.checkpoints() {
        let circle = Arc::new(Circle::default());
        let formation = Formation { epoch: 3, at_once: true, checkpointed, ..Formation::ALONE };
        circle.state().told.insert(0, formation);
        let left = LocalHost::seated(&host, Seat { circle, member: 0, questions: AtomicU32::new(0), fate: None });
        assert!(matches!(run_stage(&of, true, &left).unwrap(), StageEnd::Interrupted), "without blame");
        assert!(left.checkpoints().is_empty() && left.last_report().is_none(), "it trained nothing");
        // As the coordinator hands it out next: nothing but what was since the checkpoint is trained again.
        let again = LocalHost::sharing(&host, 1);
        let of = Assignment { resume: Some(blob), ..of.clone() };
        assert_eq!(bytes_of(&finish(&of, &again)), bytes_of(&alone));
        assert!(again.checkpoints().keys().all(|step| *step > checkpointed), "{:?}", again.checkpoints());
    }
}

/// Rows changed behind the leader's checkpoint, so it had started over, and then a newcomer came.
#[test]
fn members_that_stand_far_behind_the_checkpoint_fail_rather_than_train_it_again_together() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = stage(&data, &host);
    let circle = Arc::new(Circle::default());
    circle.state().told.insert(0, Formation { epoch: 3, at_once: true, checkpointed: 6, ..Formation::ALONE });
    let host = LocalHost::seated(&host, Seat { circle, member: 0, questions: AtomicU32::new(0), fate: None });
    let failure = run_stage(&of, false, &host).unwrap_err();
    assert_eq!(failure.blame, Blame::Machine);
    assert!(failure.message.contains("after update 0, and the checkpoint after update 6"), "{}", failure.message);
}

#[test]
fn whoever_leaves_hands_over_and_the_result_is_the_same() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = stage(&data, &host);
    let alone = bytes_of(&finish(&of, &host));
    for question in (0..20).step_by(3) {
        for members in [[STAYS, leaves(question)], [leaves(question), STAYS]] {
            assert_eq!(bytes_of(&together(&of, &host, &members)), alone, "{members:?}");
        }
    }
}

#[test]
fn whoever_joins_in_the_middle_of_an_epoch_takes_the_state_up_and_the_result_is_the_same() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = stage(&data, &host);
    let alone = bytes_of(&finish(&of, &host));
    for question in 0..12 {
        for (members, newcomer) in [(vec![admits(question, 1), STAYS], 1), (vec![STAYS, admits(question, 2), STAYS], 2)]
        {
            let circle = Arc::new(Circle::default());
            assert_eq!(bytes_of(&in_circle(&circle, &of, (&host, &members))), alone, "{members:?}");
            assert!(circle.state().aborters.contains_key(&newcomer), "it was never in a group: {members:?}");
        }
    }
}

/// Nobody else has the state, and nothing of it is safe.
#[test]
fn a_newcomer_whose_only_fellow_dies_before_it_has_the_state_begins_anew_to_the_same_result() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = stage(&data, &host);
    let alone = bytes_of(&finish(&of, &host));
    for question in [0, 1, 6, 9] {
        let members = [dies_as_one_joins(question, 1), STAYS];
        assert_eq!(bytes_of(&together(&of, &host, &members)), alone, "{members:?}");
    }
}

/// Members of a circle of three take up one state, and say that they hold these; what becomes of each.
fn confirmed(digests: [&'static str; 3]) -> Vec<Result<(), Halt>> {
    let circle = Arc::new(Circle::default());
    circle.state().members = vec![0, 1, 2];
    circle.state().form(false);
    let blobs = LocalHost::new(1);
    thread::scope(|scope| {
        let member = |(number, digest): (usize, &'static str)| {
            let seat = Seat { circle: Arc::clone(&circle), member: number, questions: AtomicU32::new(0), fate: None };
            let host = LocalHost::seated(&blobs, seat);
            scope.spawn(move || {
                let mut membership = Membership::joining();
                membership.assemble(&host, 4).unwrap();
                // Rank 1 is furthest.
                let (step, digest_before) = if number == 1 { (5, "copied") } else { (0, "untrained") };
                let standing = Standing { step, evaluations: 0, digest: digest_before.to_owned() };
                let adopted = membership.adopt((&standing, 1), || Ok(vec![7])).unwrap();
                assert_eq!(matches!(adopted, Adopted::State(bytes) if bytes == [7]), number != 1);
                // The group stays until all have answered.
                (membership.confirm(digest), membership)
            })
        };
        let threads: Vec<_> = (0..).zip(digests).map(member).collect();
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        ended.into_iter().map(|(confirmed, _)| confirmed).collect()
    })
}

/// The other member came, and says no word of an update.
#[test]
fn a_member_that_waits_for_another_ones_word_tells_it_until_the_word_comes() {
    let circle = Arc::new(Circle::default());
    circle.state().members = vec![0, 1];
    circle.state().form(false);
    let blobs = LocalHost::new(1);
    let [one, other] = [0, 1].map(|number| {
        let seat = Seat { circle: Arc::clone(&circle), member: number, questions: AtomicU32::new(0), fate: None };
        LocalHost::seated(&blobs, seat)
    });
    let in_seconds = |seconds| Instant::now() + Duration::from_secs(seconds);
    let waiting = one.waiting();
    thread::scope(|scope| {
        let member = |host: LocalHost| {
            let mut membership = Membership::joining();
            membership.assemble(&host, 4).unwrap();
            membership.waiting().after(5);
            (membership, host)
        };
        let first = scope.spawn(move || {
            let (mut membership, host) = member(one);
            // The group stays until both have heard.
            membership.end_exchange(&host, vec![None]).map(|_| membership)
        });
        let (mut second, other) = member(other);
        let began = Instant::now();
        while waiting.too_long(in_seconds(60)) != Some((1, 5)) {
            assert!(began.elapsed() < Duration::from_secs(30), "it waits, and does not say so");
            thread::yield_now();
        }
        assert_eq!(waiting.too_long(in_seconds(3)), None, "not at once");
        second.end_exchange(&other, vec![None]).unwrap();
        first.join().unwrap().unwrap();
        assert_eq!(waiting.too_long(in_seconds(86_400)), None);
    });
}

#[test]
fn a_newcomer_with_another_state_than_it_copied_takes_no_lanes_and_the_others_form_anew() {
    assert!(confirmed(["copied"; 3]).iter().all(Result::is_ok));
    let ended = confirmed(["copied", "copied", "other"]);
    let reason = "rank 2 holds another state than rank 1 after copying it";
    assert!(ended[..2].iter().all(|end| matches!(end, Err(Halt::Broken(why)) if why == reason)), "{ended:?}");
    let Err(Halt::Failed(failure)) = &ended[2] else { panic!("{ended:?}") };
    assert_eq!(failure.blame, Blame::Machine);
    assert!(failure.message.ends_with("after copying it: other, not copied"), "{}", failure.message);
}

#[test]
fn members_that_stand_at_one_update_with_different_states_train_nothing_together() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = stage(&data, &host);
    let mut other = of.clone();
    other.recipe.training.seed += 1;
    let circle = Arc::new(Circle::default());
    circle.state().members = vec![0, 1];
    circle.state().form(false);
    let ended: Vec<_> = thread::scope(|scope| {
        let run = |(number, of): (usize, &'_ Assignment)| {
            let seat = Seat { circle: Arc::clone(&circle), member: number, questions: AtomicU32::new(0), fate: None };
            let (of, host) = (of.clone(), LocalHost::seated(&host, seat));
            scope.spawn(move || run_stage(&of, number > 0, &host).unwrap_err())
        };
        let threads: Vec<_> = (0..).zip([&of, &other]).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for failure in ended {
        assert_eq!(failure.blame, Blame::Machine);
        assert!(failure.message.contains("hold different states after update 0"), "{}", failure.message);
    }
}
