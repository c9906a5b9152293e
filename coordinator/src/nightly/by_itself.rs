//! Nights that a coordinator runs by itself, each when the cron line of its job file is due.
//!
//! One night at a time: a second one waits until the first has ended. What trains a night is a job of this coordinator
//! like any other, with uploads, so its workers may be anywhere; whoever is interrupted goes on with it at the next start.
//! Where job, rows or this program are other ones by then, the night starts over as another job, and the coordinator
//! cancels and forgets the one that was begun. A night that cannot be run is told, and the next one is due at its time:
//! nothing here ends the coordinator.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::anyhow;
use futures::StreamExt as _;
use graftwork_shared::{diagnostic, event::Outcome, id::JobId, job::Job, view::JobView};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    HISTORIES,
    compare::Commands,
    conclude::{Wanted, conclude, without_verdict},
    due::{Past, due, pause_ms},
    expand::expand,
    history::{History, numbers_in},
    night::Code,
    output,
    passing::may_pass,
    slug,
    tonight::{keep, now_ms, prepare},
};
use crate::{
    cli::{Failure, JobFile, Refused, pasted},
    client::{self, Client, ClientError},
    run::{Recoveries, Recovery},
    upload::{self, Upload},
};

/// How long it sleeps at most before it looks at clock and job files again: either may be set anew.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

/// How often, and after how long each time, it is looked whether a cancelled job has ended.
const LOOKS: u32 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a coordinator runs by itself.
#[derive(Clone, Debug)]
pub(crate) struct ByItself {
    /// Job files with a cron line.
    pub(crate) files: Vec<PathBuf>,
    /// Folder in which each has its history.
    pub(crate) histories: PathBuf,
    /// What to call the code that is measured.
    pub(crate) code: Option<String>,
}

/// A job file that is watched, and what is known of its nights.
struct Watched {
    file: PathBuf,
    past: Past,
    /// How often in a row something passing kept its night from its end.
    tries: u32,
    /// What was said of it last, so that nothing is said each time.
    said: String,
}

impl ByItself {
    /// Refuses job files that cannot be run by themselves; to be called before the coordinator starts.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let mut named = BTreeMap::new();
        for file in &self.files {
            let read = JobFile::read(file)?.map_err(|Refused { name, text, problems }| {
                crate::cli::show_problems(&text, &name, &problems);
                Failure::input(anyhow!("--nightly {name}: the job file has errors"))
            })?;
            if read.job.nightly.cron.is_none() {
                let words = format!(
                    "--nightly {}: it does not say when: add `cron = \"0 2 * * *\"` to its table [nightly], for two at night \
                     in UTC",
                    file.display()
                );
                return Err(Failure::input(anyhow!(words)));
            }
            if let Some(other) = named.insert(slug(&read.job.name), file) {
                let words = format!(
                    "--nightly {} and --nightly {} would share one history, which is named after the job: give one of \
                     them another `name`",
                    other.display(),
                    file.display()
                );
                return Err(Failure::input(anyhow!(words)));
            }
        }
        Ok(())
    }

    /// Runs nights as long as the coordinator behind this socket leads, on a thread of its own: comparing two of them takes
    /// seconds. They end when what is given back is dropped, and what is under way goes on with the next start.
    pub(crate) fn start(self, socket: PathBuf) -> Result<DropGuard, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let end = CancellationToken::new();
        let ended = end.clone();
        let nights = move || runtime.block_on(ended.run_until_cancelled(self.run(socket)));
        std::thread::Builder::new().name("nights".to_owned()).spawn(nights)?;
        Ok(end.drop_guard())
    }

    async fn run(self, socket: PathBuf) {
        let began_ms = now_ms();
        let mut watched = Vec::new();
        for file in &self.files {
            // One whose history another process holds is looked at when it is due.
            let past = self.past(file, began_ms).unwrap_or(Past::ended(began_ms));
            if let Some(words) = self.elsewhere(file, Path::new(HISTORIES)) {
                tracing::warn!(file = %file.display(), "{words}");
            }
            watched.push(Watched { file: file.clone(), past, tries: 0, said: String::new() });
        }
        loop {
            let mut wait = LOOK_AGAIN;
            for watched in &mut watched {
                let now = now_ms();
                match watched.due(now) {
                    Some(due) if due <= now => {
                        let pause_ms = pause_ms(watched.tries.saturating_add(1));
                        let ended = self.night(&watched.file, &socket, pause_ms).await;
                        (watched.past, watched.tries) = if ended {
                            (Past::ended(now), 0)
                        } else {
                            let not_before_ms = now_ms() + pause_ms;
                            (Past { unfinished: true, not_before_ms, ..watched.past }, watched.tries.saturating_add(1))
                        };
                        wait = Duration::ZERO;
                    }
                    Some(due) => wait = wait.min(Duration::from_millis(due - now)),
                    None => {}
                }
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// What the history knows of a job's nights.
    fn past(&self, file: &Path, began_ms: u64) -> Result<Past, Failure> {
        let history = self.history(file)?;
        let nights = history.nights()?;
        let last = nights.last();
        let unjudged = last.is_some_and(|night| night.judged.is_none());
        let last_ms = last.map_or(began_ms, |night| night.began_ms);
        Ok(Past { unfinished: unjudged || history.is_under_way(), ..Past::ended(last_ms) })
    }

    /// That nights of a job lie in `histories`, where an earlier version and `graftwork nightly` keep them, while its history
    /// here has none.
    fn elsewhere(&self, file: &Path, histories: &Path) -> Option<String> {
        let name = slug(&JobFile::read(file).ok()?.ok()?.job.name);
        let from = std::path::absolute(histories.join(&name)).ok()?;
        let to = std::path::absolute(self.histories.join(&name)).ok()?;
        let nights = |folder: &Path| numbers_in(folder).unwrap_or_default().len();
        if from == to || nights(&to) > 0 || nights(&from) == 0 {
            return None;
        }
        let copy = format!("mkdir -p {1} && cp -R {0}/. {1}", pasted(&from), pasted(&to));
        Some(format!(
            "an older history of {} nights lies in {}, and none in {}: nights begin anew unless you stop this coordinator, \
             run `{copy}` and start it again",
            nights(&from),
            from.display(),
            to.display()
        ))
    }

    fn history(&self, file: &Path) -> Result<History, Failure> {
        let read = JobFile::read(file)?;
        let name = match &read {
            Ok(file) => slug(&file.job.name),
            Err(_) => return Err(Failure::input(anyhow!("{} has errors", file.display()))),
        };
        History::open(std::path::absolute(self.histories.join(name))?, |words| tracing::info!("{words}"))
    }

    /// One night of a job file, from its beginning or its interruption to its end. False: it is to go on after that pause.
    async fn night(&self, file: &Path, socket: &Path, pause_ms: u64) -> bool {
        let name = file.display().to_string();
        tracing::info!(file = name, "a night begins");
        let told = |failure: &Failure| graftwork_shared::cause::told(failure.error.as_ref());
        match self.train(file, socket).await {
            Ok(()) => true,
            Err(Trouble::Final(failure)) => {
                tracing::error!(file = name, error = told(&failure), "the night was not run to its end");
                true
            }
            Err(Trouble::Passing(failure)) => {
                let minutes = pause_ms / 60_000;
                tracing::warn!(file = name, error = told(&failure), "the night goes on in {minutes} minutes");
                false
            }
        }
    }

    async fn train(&self, file: &Path, socket: &Path) -> Result<(), Trouble> {
        let history = self.history(file)?;
        let refused = |refused: Refused| Trouble::Final(errors(&refused.text, &refused.name, &refused.problems));
        let read = JobFile::read(file)?.map_err(refused)?;
        let mut client = Client::local(socket).await?;
        let waiting = history.nights()?.last().filter(|night| night.judged.is_none()).map(|night| night.number);
        let number = match waiting {
            // It was trained, and whoever trained it ended before it was compared.
            Some(number) => Ok(number),
            None => self.measure(&history, &read, &mut client).await,
        };
        // Only what passes is gone on with; of what is kept or given up the coordinator needs no job.
        if matches!(number, Ok(_) | Err(Trouble::Final(_))) {
            history.forget_tonight()?;
        }
        if let Err(failure) = forget_abandoned(&history, &mut client).await {
            let error = graftwork_shared::cause::told(failure.error.as_ref());
            tracing::warn!(error, "a job of a night is still there: it is forgotten with the next night");
        }
        let number = number?;
        let folder = self.histories.join(slug(&read.job.name));
        let again = format!("graftwork nightly --history {} {}", pasted(&folder), pasted(file));
        let commands = Commands::of_night(&again, number);
        let wanted = Wanted { number, against: None, again: false };
        let concluded = match conclude(&history, wanted, &read.job.nightly, &commands).await.map_err(Trouble::of) {
            // The next one is not to wait for it for ever.
            Err(Trouble::Final(failure)) => {
                without_verdict(&history, number)?;
                return Err(Trouble::Final(failure));
            }
            concluded => concluded?,
        };
        let (headline, page) = (output::headline(&concluded.view), concluded.page.display().to_string());
        if concluded.code() == crate::cli::DONE {
            tracing::info!(page, "{headline}");
        } else {
            tracing::warn!(page, "{headline}");
        }
        for problem in concluded.view.problems.iter().filter(|problem| problem.fails) {
            tracing::warn!(page, "{} {}", problem.name, problem.message);
        }
        Ok(())
    }

    /// Trains a night, and keeps what came of it.
    async fn measure(&self, history: &History, file: &JobFile, client: &mut Client) -> Result<u64, Trouble> {
        let code = Code::of_coordinator(self.code.as_deref())?;
        let job = expand(&file.job).map_err(Trouble::Final)?;
        // In it each file is named by its digest, so its own digest is that of all that is measured.
        let read = read_files(job.clone(), file).await;
        // A place that is not there for a moment ends no night that is under way.
        let under_way = matches!(history.tonight(), Ok(Some(_)));
        let mut upload = read.map_err(|trouble| match trouble {
            Trouble::Final(failure) if under_way => Trouble::Passing(failure),
            trouble => trouble,
        })?;
        let mut prepared = prepare(history, job, upload.job.digest(), code)?;
        upload.job.publish.hub.clone_from(&prepared.job.publish.hub);
        // Whatever an earlier attempt left at the coordinator goes first: nothing of it gets into this night.
        forget_abandoned(history, client).await?;
        history.submits(&mut prepared.tonight, JobId::of(&upload.job.digest()))?;
        let (view, recoveries) = serve(&upload, file, client).await?;
        keep(history, prepared, &view, recoveries).map_err(Trouble::of)
    }
}

impl Watched {
    /// When its next night begins; `None` while its file does not say so, which is told once.
    fn due(&mut self, now_ms: u64) -> Option<u64> {
        let (due, said) = match JobFile::read(&self.file) {
            Ok(Ok(file)) => match &file.job.nightly.cron {
                Some(schedule) => (due(schedule, self.past, now_ms), format!("nights are due at {schedule} in UTC")),
                None => (None, "no night is due: its table [nightly] has no `cron`".to_owned()),
            },
            Ok(Err(refused)) => {
                let problems = diagnostic::render(&refused.text, &refused.name, &refused.problems, false);
                (None, format!("no night is due, since the job file has errors:\n{problems}"))
            }
            Err(failure) => (None, format!("no night is due: {}", failure.error)),
        };
        if said != self.said {
            tracing::info!(file = %self.file.display(), "{said}");
            self.said = said;
        }
        due
    }
}

/// Why a night has no end.
enum Trouble {
    /// The same would happen again.
    Final(Failure),
    /// It goes on where it stands.
    Passing(Failure),
}

impl Trouble {
    /// Of a night that has ended: only what the disk or a store refuses for now may be tried once more.
    fn of(failure: Failure) -> Self {
        if may_pass(&failure.error) { Self::Passing(failure) } else { Self::Final(failure) }
    }
}

/// Whatever is not said to be final may pass: a coordinator that is not there, a quota, a history that another process holds.
impl<E: Into<Failure>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Passing(error.into())
    }
}

/// Reads all local files that a night's job names; blocks no other night meanwhile, as there is none.
async fn read_files(job: Job, file: &JobFile) -> Result<Upload, Trouble> {
    let spans = file.spans.clone();
    let reading = tokio::task::spawn_blocking(move || Upload::prepare(job, &spans, &[]));
    let read = reading.await.map_err(anyhow::Error::from)?;
    read.map_err(|problems| Trouble::Final(errors(&file.text, &file.name, &problems)))
}

/// Has the coordinator train what was read; gives its job as it ended.
async fn serve(upload: &Upload, file: &JobFile, client: &mut Client) -> Result<(JobView, Vec<Recovery>), Trouble> {
    let refused = |problems: &[_]| Trouble::Final(errors(&file.text, &file.name, problems));
    let submission = client::submission();
    let sent = upload::send(upload, client, submission.context()).await;
    if let Some(said) = sent.map_err(anyhow::Error::from)? {
        tracing::info!("{said}");
    }
    let submitted = client.submit(&upload.job, &file.spans, submission.context()).await;
    drop(submission);
    let (id, _) = match submitted {
        Err(ClientError::Plan(problems)) => return Err(refused(&upload.with_paths(problems))),
        submitted => submitted?,
    };
    let (view, recoveries) = ended(client, &id).await?;
    if view.outcome.is_none() {
        return Err(anyhow!("nothing more is heard of its job {id}, which has not ended").into());
    }
    if view.outcome == Some(Outcome::Cancelled) {
        return Err(Trouble::Final(Failure::input(anyhow!("somebody cancelled its job {id}"))));
    }
    Ok((view, recoveries))
}

/// Has the coordinator forget the jobs of nights that were given up or are kept, which it ends before where they go on.
async fn forget_abandoned(history: &History, client: &mut Client) -> Result<(), Failure> {
    for job in history.abandoned()? {
        match end(client, &job).await {
            Ok(()) => client.forget(&job).await?,
            // It is not there: it was never submitted, or somebody forgot it.
            Err(ClientError::Refused(words)) => tracing::info!(%job, words, "a job of a night is gone already"),
            Err(error) => return Err(error.into()),
        }
        history.forgotten(&job)?;
    }
    Ok(())
}

/// Waits until a job has ended, which is cancelled.
async fn end(client: &mut Client, job: &JobId) -> Result<(), ClientError> {
    let mut looks = 0;
    while client.view(job).await?.outcome.is_none() {
        if looks == 0 {
            tracing::info!(%job, "the job of a night that starts over is cancelled");
            match client.cancel(job).await {
                // It may have ended just now.
                Ok(()) | Err(ClientError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        } else if looks == LOOKS {
            return Err(ClientError::Other(format!("the cancelled job {job} has not ended yet")));
        } else {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        looks += 1;
    }
    Ok(())
}

async fn ended(client: &mut Client, id: &JobId) -> Result<(JobView, Vec<Recovery>), ClientError> {
    let (mut events, mut recoveries) = (client.watch(id).await?, Recoveries::default());
    while let Some(event) = events.next().await {
        recoveries.on_event(&event?);
    }
    Ok((client.view(id).await?, recoveries.done()))
}

/// Problems of a job file as one error.
fn errors(text: &str, name: &str, problems: &[diagnostic::Diagnostic]) -> Failure {
    Failure::input(anyhow!("{}", diagnostic::render(text, name, problems, false).trim_end()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fixture::{TASK, World};

    #[test]
    fn an_older_history_elsewhere_is_told_until_there_is_one_here() {
        let world = World::new();
        let file = world.path("job.toml");
        fs::write(&file, world.parse(TASK).0).unwrap();
        let (old, new) = (world.path("an old place"), world.path("state/nightly"));
        let nights = ByItself { files: vec![file.clone()], histories: new.clone(), code: None };
        assert_eq!(nights.elsewhere(&file, &old), None, "there is none");
        for night in ["000003", "000004"] {
            fs::create_dir_all(old.join("tiny/nights").join(night)).unwrap();
            fs::write(old.join("tiny/nights").join(night).join("night.json"), b"{}").unwrap();
        }
        assert_eq!(nights.elsewhere(&file, &new), None, "it is the same place");
        drop(nights.history(&file).unwrap());
        let words = nights.elsewhere(&file, &old).unwrap();
        assert!(words.starts_with("an older history of 2 nights lies in "), "{words}");
        // What it says to do brings the nights here, though the folder was made already.
        let command = words.split('`').nth(1).unwrap();
        assert!(std::process::Command::new("sh").args(["-ec", command]).status().unwrap().success(), "{command}");
        assert_eq!(numbers_in(&new.join("tiny")).unwrap(), [3, 4]);
        assert_eq!(nights.elsewhere(&file, &old), None);
    }

    #[test]
    fn only_what_may_pass_is_tried_once_more() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert!(matches!(Trouble::of(full.into()), Trouble::Passing(_)));
        assert!(matches!(Trouble::of(anyhow!("the answers are damaged").into()), Trouble::Final(_)));
    }
}
