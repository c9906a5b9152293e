//! The device pool: OS threads that own the device, and one queue in front of them.
//!
//! All libtorch work of the process runs here and nowhere else; async code never touches libtorch. Runs that wait at the
//! same time take turns of a few tasks, so a stage that scores thousands of rows does not hold up another one's steps, and
//! of many stages with so few lanes only some hold gradients at a time. A task that panics (libtorch reports its exceptions
//! as panics) is a [`TaskFailed`] of its own run: the thread and the process live on. Which thread computes a task never
//! changes a byte (invariant 5): each thread has one libtorch thread.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, channel},
    },
    thread,
    time::Duration,
};

use graftwork_shared::assignment::{Blame, Failure};
use rustix::time::{ClockId, clock_gettime};

type Job = Box<dyn FnOnce() + Send>;

/// How a run takes its place among others that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Before all that wait: what ends an update, and gives its memory back.
    First,
    /// Behind all that wait, and again after so many tasks: lanes of an update, or rows to score.
    Behind,
}

/// Tasks that a run begins before another one's turn comes. Gradients stay until all lanes of an update are there, so
/// turns of single lanes would have every stage hold some.
const TASKS_OF_A_TURN: usize = 8;

/// A task that ended by a panic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct TaskFailed {
    /// What the panic said.
    pub(crate) message: String,
}

/// What a run gave and what it cost.
#[derive(Debug)]
pub(crate) struct Ran<T> {
    /// One value for each task, in the tasks' order.
    pub(crate) values: Vec<T>,
    /// CPU time of the device threads.
    pub(crate) cpu: Duration,
}

/// The device threads. They end when the pool is dropped and the queue is empty.
#[derive(Debug)]
pub(crate) struct Pool {
    queue: Arc<Queue>,
    threads: usize,
}

/// What waits for a device thread.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// None of them empty; the run in front is served next, and goes to the back when its turn is over.
    runs: VecDeque<Run>,
    /// No more runs will come.
    closed: bool,
}

struct Run {
    tasks: VecDeque<Job>,
    /// Tasks that it may still begin in this turn.
    left: usize,
}

impl Pool {
    /// Starts the threads; `prepare` runs first on each of them.
    pub(crate) fn start(threads: usize, prepare: fn()) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let queue = Arc::new(Queue::default());
        // Made first, so that threads which did start end when a later one does not.
        let pool = Self { queue: Arc::clone(&queue), threads };
        for number in 0..threads {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name(format!("device-{number}")).spawn(move || {
                prepare();
                while let Some(job) = queue.next() {
                    job();
                }
            })?;
        }
        Ok(pool)
    }

    /// Number of device threads.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Runs the tasks on the device threads, does something else on the calling thread meanwhile, and waits for all of
    /// them.
    ///
    /// # Errors
    /// The first task, in the tasks' order, that panicked; the others were still run to their end.
    pub(crate) fn run_while<T: Send + 'static>(
        &self,
        turn: Turn,
        tasks: Vec<Box<dyn FnOnce() -> T + Send>>,
        meanwhile: impl FnOnce(),
    ) -> Result<Ran<T>, TaskFailed> {
        let count = tasks.len();
        let (done, results) = channel();
        let job = |(position, task): (usize, Box<dyn FnOnce() -> T + Send>)| -> Job {
            let done = done.clone();
            Box::new(move || {
                let before = thread_cpu_time();
                let result = catch_unwind(AssertUnwindSafe(task)).map_err(|panic| panic_message(panic.as_ref()));
                let cpu = thread_cpu_time().saturating_sub(before);
                // Nobody listens any more only when the caller itself is unwinding.
                drop(done.send((position, result, cpu)));
            })
        };
        self.queue.add(turn, tasks.into_iter().enumerate().map(job).collect());
        drop(done);
        meanwhile();
        let mut finished: Vec<_> = results.iter().collect();
        finished.sort_by_key(|(position, ..)| *position);
        let cpu = finished.iter().map(|(_, _, cpu)| *cpu).sum();
        let values = finished.into_iter().map(|(_, result, _)| result).collect::<Result<Vec<T>, String>>();
        let values = values.map_err(|message| TaskFailed { message })?;
        if values.len() == count {
            Ok(Ran { values, cpu })
        } else {
            Err(TaskFailed { message: "a device thread ended in the middle of a task".to_owned() })
        }
    }
}

impl Pool {
    /// Puts a task behind all that wait.
    pub(crate) fn submit<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
        let (done, result) = channel();
        let job = move || {
            let result = catch_unwind(AssertUnwindSafe(task)).map_err(|panic| panic_message(panic.as_ref()));
            // Whoever submitted it may have gone.
            drop(done.send(result));
        };
        self.queue.add(Turn::Behind, VecDeque::from([Box::new(job) as Job]));
        Pending(result)
    }
}

/// A task that was submitted.
#[derive(Debug)]
pub(crate) struct Pending<T>(Receiver<Result<T, String>>);

impl<T> Pending<T> {
    /// Waits for the task's value.
    ///
    /// # Errors
    /// When it panicked.
    pub(crate) fn wait(self) -> Result<T, TaskFailed> {
        let ended = |_| Err("a device thread ended in the middle of a task".to_owned());
        self.0.recv().unwrap_or_else(ended).map_err(|message| TaskFailed { message })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, turn: Turn, tasks: VecDeque<Job>) {
        if tasks.is_empty() {
            return;
        }
        let run = Run { tasks, left: TASKS_OF_A_TURN };
        let mut waiting = self.lock();
        match turn {
            Turn::First => waiting.runs.push_front(run),
            Turn::Behind => waiting.runs.push_back(run),
        }
        self.changed.notify_all();
    }

    /// The next task, one of the run whose turn it is; `None` when there will be none.
    fn next(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            if let Some(mut run) = waiting.runs.pop_front() {
                let job = run.tasks.pop_front();
                run.left -= 1;
                if run.left == 0 {
                    run.left = TASKS_OF_A_TURN;
                    waiting.runs.push_back(run);
                } else {
                    waiting.runs.push_front(run);
                }
                waiting.runs.retain(|run| !run.tasks.is_empty());
                return job;
            }
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("runs", &self.runs.len()).field("closed", &self.closed).finish()
    }
}

/// CPU time that the calling thread has used.
pub(crate) fn thread_cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// What a panic said, as far as it said it in words.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}

/// The failure that a panic's message stands for.
///
/// Memory that the device does not have is the job's fault, since the same batch meets the same end elsewhere.
pub(crate) fn failure_of(message: &str) -> Failure {
    // The words of libtorch's CPU allocator, of its CUDA allocator, and of the C++ runtime.
    const OUT_OF_MEMORY: [&str; 4] =
        ["can't allocate memory", "not enough memory", "CUDA out of memory", "std::bad_alloc"];
    let first_lines = message.lines().take(4).collect::<Vec<_>>().join(" / ");
    if OUT_OF_MEMORY.iter().any(|words| message.contains(words)) {
        let message = format!(
            "the device has too little memory for this stage ({first_lines}); lower the batch or max_length, or use \
             more lanes"
        );
        return Failure { blame: Blame::User, message };
    }
    Failure { blame: Blame::Machine, message: format!("the trainer broke down: {first_lines}") }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn tasks<T: Send + 'static>(
        count: usize,
        task: impl Fn(usize) -> T + Clone + Send + 'static,
    ) -> Vec<Box<dyn FnOnce() -> T + Send>> {
        let boxed = |number| {
            let task = task.clone();
            Box::new(move || task(number)) as Box<dyn FnOnce() -> T + Send>
        };
        (0..count).map(boxed).collect()
    }

    fn all<T: Send + 'static>(pool: &Pool, tasks: Vec<Box<dyn FnOnce() -> T + Send>>) -> Result<Ran<T>, TaskFailed> {
        pool.run_while(Turn::Behind, tasks, || ())
    }

    #[test]
    fn values_come_in_the_order_of_the_tasks() {
        let pool = Pool::start(3, || ()).unwrap();
        let ran = all(
            &pool,
            tasks(40, |number| {
                thread::sleep(Duration::from_millis(u64::try_from(40 - number).unwrap() / 10));
                number * number
            }),
        )
        .unwrap();
        assert_eq!(ran.values, (0..40).map(|number| number * number).collect::<Vec<_>>());
    }

    #[test]
    fn submitted_tasks_run_side_by_side_and_a_panic_is_its_own() {
        let pool = Pool::start(2, || ()).unwrap();
        let met = Arc::new(Barrier::new(2));
        let pending: Vec<_> = (0..2)
            .map(|number| {
                let met = Arc::clone(&met);
                pool.submit(move || {
                    met.wait();
                    number
                })
            })
            .collect();
        let broken = pool.submit(|| -> u8 { panic!("no task of mine") });
        let after = pool.submit(|| 7);
        assert_eq!(pending.into_iter().map(|pending| pending.wait().unwrap()).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(broken.wait().unwrap_err().message, "no task of mine");
        assert_eq!(after.wait().unwrap(), 7);
    }

    #[test]
    fn many_tasks_and_none_are_all_run() {
        let pool = Pool::start(1, || ()).unwrap();
        assert_eq!(all(&pool, tasks(80, |number| number)).unwrap().values.len(), 80);
        assert!(all(&pool, tasks(0, |number| number)).unwrap().values.is_empty());
    }

    #[test]
    fn a_panic_fails_its_own_run_and_no_other() {
        let pool = Pool::start(2, || ()).unwrap();
        let broken = all(&pool, tasks(6, |number| assert!(number != 3, "lane {number} broke"))).unwrap_err();
        assert_eq!(broken.message, "lane 3 broke");
        assert_eq!(all(&pool, tasks(6, |number| number)).unwrap().values, [0, 1, 2, 3, 4, 5]);
        assert_eq!(pool.threads(), 2);
    }

    #[test]
    fn cpu_time_is_that_of_the_tasks_and_not_of_waiting() {
        let pool = Pool::start(1, || ()).unwrap();
        let asleep = all(&pool, tasks(1, |_| thread::sleep(Duration::from_millis(80)))).unwrap();
        assert!(asleep.cpu < Duration::from_millis(40), "{:?}", asleep.cpu);
        let busy = all(
            &pool,
            tasks(1, |_| {
                let start = thread_cpu_time();
                while thread_cpu_time().saturating_sub(start) < Duration::from_millis(30) {}
            }),
        )
        .unwrap();
        assert!(busy.cpu >= Duration::from_millis(30), "{:?}", busy.cpu);
    }

    /// Adds the runs one by one while the only thread is busy, and says in which order their tasks were begun.
    fn order(runs: &[(&'static str, Turn, usize)]) -> Vec<&'static str> {
        let pool = Pool::start(1, || ()).unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let (blocked, open) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        thread::scope(|scope| {
            let (first, second) = (Arc::clone(&blocked), Arc::clone(&open));
            pool.submit(move || {
                first.wait();
                second.wait();
            });
            blocked.wait();
            for (before, &(name, turn, count)) in runs.iter().enumerate() {
                let (pool, order) = (&pool, Arc::clone(&order));
                let tasks = tasks(count, move |_| order.lock().unwrap().push(name));
                scope.spawn(move || pool.run_while(turn, tasks, || ()).unwrap());
                while pool.queue.lock().runs.len() <= before {
                    thread::yield_now();
                }
            }
            open.wait();
        });
        order.lock().unwrap().clone()
    }

    #[test]
    fn runs_take_turns_of_a_few_tasks_and_what_ends_an_update_comes_first() {
        let runs = [
            ("scores", Turn::Behind, 18),
            ("lanes", Turn::Behind, 3),
            ("others", Turn::Behind, 9),
            ("end", Turn::First, 1),
        ];
        let turns =
            [("end", 1), ("scores", 8), ("lanes", 3), ("others", 8), ("scores", 8), ("others", 1), ("scores", 2)];
        let expected: Vec<_> = turns.into_iter().flat_map(|(name, count)| vec![name; count]).collect();
        assert_eq!(order(&runs), expected);
    }

    #[test]
    fn too_little_memory_is_the_jobs_fault_and_other_panics_are_the_machines() {
        let words =
            "Torch(\"[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried\")";
        assert_eq!(failure_of(words).blame, Blame::User);
        assert_eq!(failure_of("index out of bounds").blame, Blame::Machine);
    }
}
