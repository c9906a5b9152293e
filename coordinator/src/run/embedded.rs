//! The embedded coordinator: plan, serve, train, stop.

use std::{
    collections::BTreeMap,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow};
use futures::StreamExt as _;
use graftwork_scheduler::Plan;
use graftwork_shared::{
    event::{EventKind, Outcome},
    id::{JobId, Name},
    job::Device,
    view::{JobView, Refusal, StageState},
};

use super::{
    End, LOG, Recoveries, Recovery, Signals, Training, attach,
    workers::{Pool, Start},
};
use crate::{
    cli::{Failure, Worker, cache_folder, show_problems},
    client::{self, Client},
    planner::{Machine, Planned, PlannerDoor, Planning, plan_with_spans},
    progress::{Progress, stuck_words},
    publish::PublisherDoor,
    report::{REPORT_HTML, REPORT_JSON},
    server::{self, Listen, Options, Running, ServerError},
};

/// Longest path that a socket may have, with room for the system's own end mark.
const LONGEST_SOCKET: usize = 100;

/// What one try came to.
enum Tried {
    End(End),
    /// The job ended before, over other data: its state was removed.
    StartOver,
}

pub(super) async fn train(training: Training, signals: &mut Signals) -> Result<End, Failure> {
    if training.again && training.folder.join(REPORT_JSON).exists() {
        remove(&training.folder)?;
    }
    loop {
        private_folder(&training.folder)?;
        let socket = Socket::for_state(&training.folder)?;
        let start = Start {
            worker: Worker::find()?,
            socket: socket.path.clone(),
            threads: training.threads,
            cuda: training.job.resources.device == Device::Cuda,
            cache: cache_folder(),
            log: training.folder.join(LOG),
        };
        let mut pool = Pool::start(start, training.workers)?;
        // It is large, and so would be the future of whoever awaits it.
        let tried = Box::pin(try_once(&training, &socket.path, &mut pool, signals)).await;
        pool.leave().await;
        match tried? {
            Tried::End(end) => return Ok(end),
            Tried::StartOver => remove(&training.folder)?,
        }
    }
}

async fn try_once(
    training: &Training,
    socket: &Path,
    pool: &mut Pool,
    signals: &mut Signals,
) -> Result<Tried, Failure> {
    let threads = training.threads * training.workers;
    let machine = Machine::here(threads, training.workers, training.folder.clone());
    let planning = Planning { cache: cache_folder().into(), machine: Some(machine), uploads: None, nights: None };
    let planned = tokio::select! {
        planned = plan_with_spans(training.job.clone(), training.spans.clone(), planning.clone()) => planned,
        () = signals.stop() => {
            pool.kill().await;
            return Ok(Tried::End(End::Interrupted));
        }
    };
    let planned = match planned {
        Ok(planned) => planned,
        Err(problems) => {
            pool.kill().await;
            return Ok(Tried::End(End::Refused(problems)));
        }
    };
    show_problems("", "the job", &planned.warnings);
    let plan = planned.plan.clone();
    let mut running = match serve(training, planning, planned, socket).await {
        Ok(running) => running,
        // Another process was faster: watch it.
        Err(ServerError::Locked { holder, .. }) => {
            pool.kill().await;
            return attach::watch(training, &holder, signals).await.map(Tried::End);
        }
        Err(error) => {
            pool.kill().await;
            return Err(error.into());
        }
    };
    let mut led = Led { training, running: &mut running, pool, signals };
    let tried = led.lead(&plan, socket).await;
    match &tried {
        Ok(Tried::End(End::Interrupted)) => {
            tokio::select! {
                stopped = running.stop("interrupted by the user") => stopped?,
                () = signals.stop() => eprintln!("stopping at once; the last checkpoints are safe"),
            }
            eprintln!("stopped; this goes on where it stopped: {}", training.go_on);
        }
        Ok(_) => running.stop("the job has ended").await?,
        // A coordinator that ended by itself (its disk is full, for one) knows why its clients got no answer.
        Err(_) => match running.stop("trouble").await {
            Err(own) if !matches!(own, ServerError::Ended(_)) => return Err(own.into()),
            Ok(()) | Err(_) => {}
        },
    }
    tried
}

async fn serve(
    training: &Training,
    planning: Planning,
    planned: Planned,
    socket: &Path,
) -> Result<Running, ServerError> {
    let planner = Arc::new(PlannerDoor::new(planning, Some(planned)));
    let publisher =
        Arc::new(PublisherDoor { cache: cache_folder().into(), reuse: training.reuse, by_owner: false, nights: None });
    let mut options = Options::new(training.folder.clone(), planner, publisher);
    options.listen = vec![Listen::Unix(socket.to_owned())];
    // A worker of this process whose connection is gone is gone itself.
    options.grace_ms = 0;
    options.sends_home = true;
    server::start(options).await
}

enum Followed {
    Ended(Vec<Recovery>),
    Interrupted,
    /// Nothing of it can run on the workers here.
    Stuck(BTreeMap<Name, Refusal>),
}

/// What is at work while a job is led.
struct Led<'a> {
    training: &'a Training,
    running: &'a mut Running,
    pool: &'a mut Pool,
    signals: &'a mut Signals,
}

impl Led<'_> {
    /// From submission to the end of the job.
    async fn lead(&mut self, plan: &Plan, socket: &Path) -> Result<Tried, Failure> {
        let training = self.training;
        let mut client = Client::local(socket).await?;
        let id = JobId::of(&training.job.digest());
        if client.view(&id).await.is_ok_and(|view| view.outcome == Some(Outcome::Cancelled)) {
            eprintln!("this job was cancelled; it goes on now");
        }
        // What an earlier end left says nothing of the job that is opened now.
        forget_end(&training.folder)?;
        let submission = client::submission();
        let (id, attached) = client.submit(&training.job, &training.spans, submission.context()).await?;
        drop(submission);
        let view = client.view(&id).await?;
        if attached && let Some(changed) = changed_stage(&view, plan) {
            if view.outcome.is_some() || training.again {
                return Ok(Tried::StartOver);
            }
            let words =
                format!("the data, the base model or the program of {changed} changed since this job was planned");
            return Ok(Tried::End(End::Changed(words)));
        }
        let mut progress = Progress::new(training.progress, &view);
        let followed = self.follow(&mut client, &id, &mut progress).await;
        progress.finish();
        match followed? {
            Followed::Ended(recoveries) => Ok(Tried::End(End::Ended(Box::new(client.view(&id).await?), recoveries))),
            Followed::Stuck(refusals) => self.stuck(&refusals),
            Followed::Interrupted => {
                eprintln!("stopping: workers finish their step and checkpoint");
                Ok(Tried::End(End::Interrupted))
            }
        }
    }

    /// Other workers will not come by themselves, so there is nothing to wait for.
    fn stuck(&self, refusals: &BTreeMap<Name, Refusal>) -> Result<Tried, Failure> {
        let begun_elsewhere = refusals
            .values()
            .any(|refusal| matches!(refusal, Refusal::NumericClass { .. } | Refusal::NumericsVersion { .. }));
        if begun_elsewhere && self.training.again {
            return Ok(Tried::StartOver);
        }
        let start_over = if begun_elsewhere { ", or with --again to start over here" } else { "" };
        let words = stuck_words(refusals);
        Err(Failure::input(anyhow!("{words}\nits state is kept; run it where it can go on{start_over}")))
    }

    /// A gang that is whole once all workers that this command starts are there.
    fn waits_for_own(&self, refusals: &BTreeMap<Name, Refusal>) -> bool {
        let workers = self.training.workers;
        refusals.values().any(|refusal| matches!(refusal, Refusal::Gang { needs, .. } if *needs <= workers))
    }

    async fn follow(&mut self, client: &mut Client, id: &JobId, progress: &mut Progress) -> Result<Followed, Failure> {
        let (mut events, mut recoveries) = (client.watch(id).await?, Recoveries::default());
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        recoveries.on_event(&event);
                        if matches!(event.kind, EventKind::Checkpointed { .. } | EventKind::StageFinished { .. }) {
                            self.pool.on_progress();
                        }
                        match event.kind {
                            EventKind::Stuck { refusals } => {
                                if !self.waits_for_own(&refusals) && still_stuck(&client.view(id).await?, &refusals) {
                                    return Ok(Followed::Stuck(refusals));
                                }
                            }
                            _ => progress.on_event(&event),
                        }
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => return Ok(Followed::Ended(recoveries.done())),
                },
                error = self.running.wait() => return Err(error.into()),
                () = self.signals.stop() => return Ok(Followed::Interrupted),
                change = self.pool.changed() => self.pool.on_change(change)?,
            }
        }
    }
}

/// Whether what was told still holds: it may have been told before this submission brought its own wishes for machines.
fn still_stuck(view: &JobView, told: &BTreeMap<Name, Refusal>) -> bool {
    let lasts = |state: &StageState| matches!(state, StageState::Ready { refusal } if refusal.lasts());
    view.stages.iter().filter(|stage| told.contains_key(&stage.name)).all(|stage| lasts(&stage.state))
}

/// A stage that would be planned otherwise today.
fn changed_stage(view: &JobView, plan: &Plan) -> Option<Name> {
    let mut plan = plan.clone();
    for stage in &view.stages {
        if let Some(trial) = stage.sweep.as_ref().and_then(|sweep| sweep.chosen) {
            // A plan without that trial differs in the stages of trials too.
            let _ = plan.choose_trial(&stage.name, trial);
        }
    }
    let same = |stage: &&graftwork_shared::view::StageView| {
        plan.stage(&stage.name).is_some_and(|planned| planned.recipe_digest == stage.recipe)
    };
    view.stages.iter().find(|stage| !same(stage)).map(|stage| stage.name.clone())
}

/// Removes the reports of an earlier end: their presence says that the job has ended.
fn forget_end(folder: &Path) -> Result<(), Failure> {
    for name in [REPORT_JSON, REPORT_HTML] {
        match std::fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(anyhow!("removing {name} of {}: {error}", folder.display()).into());
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(anyhow!("removing {}: {error}", folder.display()).into())
        }
        _ => Ok(()),
    }
}

fn private_folder(folder: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    Ok(made.with_context(|| format!("making the state folder {}", folder.display()))?)
}

/// A socket's path in a folder that only this user enters: inside the state folder, or where that path would be too
/// long for a socket, in a temporary folder that goes with this value.
struct Socket {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl Socket {
    fn for_state(state: &Path) -> Result<Self, Failure> {
        let path = state.join("door").join("socket");
        if path.as_os_str().len() <= LONGEST_SOCKET {
            private_folder(&state.join("door"))?;
            return Ok(Self { path, temporary: None });
        }
        let folder = std::env::temp_dir().join(format!("graftwork-{}", std::process::id()));
        private_folder(&folder)?;
        Ok(Self { path: folder.join("socket"), temporary: Some(folder) })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(folder) = &self.temporary {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_end_is_forgotten_when_a_job_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        forget_end(folder.path()).unwrap();
        for name in [REPORT_JSON, REPORT_HTML, "journal.sqlite"] {
            std::fs::write(folder.path().join(name), b"x").unwrap();
        }
        forget_end(folder.path()).unwrap();
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["journal.sqlite"]);
    }
}
