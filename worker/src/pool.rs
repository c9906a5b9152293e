//! The device pool: OS threads that own the device, and one queue in front of them.
//!
//! All libtorch work of the process runs here and nowhere else; async code never touches libtorch. Runs that wait at the
//! same time take turns task by task, so a stage that scores thousands of rows does not hold up another one's steps. A
//! task that panics (libtorch reports its exceptions as panics) is a [`TaskFailed`] of its own run: the thread and the
//! process live on. Which thread computes a task never changes a byte (invariant 5): each thread has one libtorch thread.

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
    /// Tasks of each run, none of them empty; the run in front is served next and then goes to the back.
    runs: VecDeque<VecDeque<Job>>,
    /// No more runs will come.
    closed: bool,
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
        self.queue.add(tasks.into_iter().enumerate().map(job).collect());
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
        self.queue.add(VecDeque::from([Box::new(job) as Job]));
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

    fn add(&self, run: VecDeque<Job>) {
        if !run.is_empty() {
            self.lock().runs.push_back(run);
            self.changed.notify_all();
        }
    }

    /// The next task, one of the run whose turn it is; `None` when there will be none.
    fn next(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            if let Some(mut run) = waiting.runs.pop_front() {
                let job = run.pop_front();
                if !run.is_empty() {
                    waiting.runs.push_back(run);
                }
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
        pool.run_while(tasks, || ())
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
        let met = Arc::new(std::sync::Barrier::new(2));
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

    #[test]
    fn runs_take_turns_task_by_task() {
        let pool = Arc::new(Pool::start(1, || ()).unwrap());
        let order = Arc::new(Mutex::new(Vec::new()));
        let (blocked, open) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
        thread::scope(|scope| {
            let (first, second) = (Arc::clone(&blocked), Arc::clone(&open));
            // Keeps the only thread until both runs wait.
            scope.spawn(|| {
                let wait = move || {
                    first.wait();
                    second.wait();
                };
                all(&pool, vec![Box::new(wait)]).unwrap();
            });
            blocked.wait();
            for (run, count) in [("long", 5), ("short", 2)] {
                let (pool, order) = (&pool, Arc::clone(&order));
                scope.spawn(move || all(pool, tasks(count, move |_| order.lock().unwrap().push(run))).unwrap());
                while pool.queue.lock().runs.len() < if run == "long" { 1 } else { 2 } {
                    thread::yield_now();
                }
            }
            open.wait();
        });
        assert_eq!(*order.lock().unwrap(), ["long", "short", "long", "short", "long", "long", "long"]);
    }

    #[test]
    fn too_little_memory_is_the_jobs_fault_and_other_panics_are_the_machines() {
        let words =
            "Torch(\"[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried\")";
        assert_eq!(failure_of(words).blame, Blame::User);
        assert_eq!(failure_of("index out of bounds").blame, Blame::Machine);
    }
}
