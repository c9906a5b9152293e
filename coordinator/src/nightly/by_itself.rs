//! Nights that a coordinator runs by itself, each when the cron line of its job file is due.
//!
//! One night at a time: a second one waits until the first has ended. What trains a night is a job of this coordinator
//! like any other, with uploads, so its workers may be anywhere; whoever is interrupted goes on with it at the next start.
//! Where job, rows or this program are other ones by then, the night starts over as another job, and the coordinator
//! cancels and forgets the one that was begun. A night that cannot be run is told, and the next one is due at its time:
//! nothing here ends the coordinator. The history of a night under way stays held, also while it waits to go on, so that no
//! `graftwork nightly` begins another one beside it.

mod known;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::anyhow;
use futures::StreamExt as _;
use graftwork_shared::{diagnostic, event::Outcome, id::JobId, job::Job, view::JobView};
use tokio_util::sync::{CancellationToken, DropGuard};

use known::{Known, last_night};

use super::{
    HISTORIES,
    compare::Commands,
    conclude::{Wanted, conclude, without_verdict},
    due::{Past, due},
    expand::expand,
    history::{History, numbers_in},
    night::{Code, Night},
    output,
    passing::may_pass,
    slug,
    tonight::{keep, now_ms, prepare},
};
use crate::{
    cli::{Failure, JobFile, Refused, pasted},
    client::{self, Client, ClientError},
    run::{Recoveries, Recovery},
    server::{Gauges, Histories, LastNight, NIGHTS, Nights},
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
    /// Whoever asks how nights stand.
    pub(crate) gauges: Gauges,
    /// Where the histories are kept, if what lies in the folder are copies of them.
    pub(crate) kept: Option<Histories>,
}

/// A job file that is watched.
struct Watched {
    file: PathBuf,
    /// Since when, under its name of now.
    since_ms: u64,
    /// `None` until its history could be read, which another process may hold.
    known: Option<Known>,
    /// What was said of it last, so that nothing is said each time.
    said: String,
}

/// A night that was trained.
struct Trained {
    number: u64,
    began_ms: u64,
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
        let since_ms = now_ms();
        let mut watched: Vec<Watched> = self.files.iter().map(|file| Watched::new(file, since_ms)).collect();
        for watched in &mut watched {
            // All that is under way is held before the first of it goes on, which may take hours.
            self.due(watched, since_ms);
            let before = [PathBuf::from(HISTORIES), self.histories.with_file_name(NIGHTS)];
            let known = watched.known.is_some();
            for words in
                before.iter().filter(|_| known).filter_map(|histories| self.elsewhere(&watched.file, histories))
            {
                tracing::warn!(file = %watched.file.display(), "{words}");
            }
        }
        loop {
            let mut wait = LOOK_AGAIN;
            for watched in &mut watched {
                let now = now_ms();
                match self.due(watched, now) {
                    Some(due) if due <= now => {
                        self.night(watched, &socket).await;
                        wait = Duration::ZERO;
                    }
                    Some(due) => wait = wait.min(Duration::from_millis(due - now)),
                    None => {}
                }
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// When the next night of a job begins; `None` while its file does not say so or its history cannot be read, which is
    /// told once. Nothing is held then, so that people can run a night themselves.
    fn due(&self, watched: &mut Watched, now_ms: u64) -> Option<u64> {
        let (due, said) = match JobFile::read(&watched.file) {
            Ok(Ok(file)) => match &file.job.nightly.cron {
                Some(schedule) => match self.past(watched, &file.job.name, now_ms) {
                    Ok(past) => {
                        let last = watched.known.as_ref().and_then(|known| known.ended);
                        let nights = Nights { due_ms: schedule.next_after(past.last_ms), last };
                        self.gauges.tell_nights(&slug(&file.job.name), nights);
                        (due(schedule, past, now_ms), format!("nights are due at {schedule} in UTC"))
                    }
                    Err(failure) => {
                        // So that it is noticed where it stays so.
                        self.gauges.await_nights(&slug(&file.job.name), schedule.next_after(watched.since_ms));
                        let why = graftwork_shared::cause::told(failure.error.as_ref());
                        (None, format!("no night is due as long as its history cannot be read: {why}"))
                    }
                },
                None => {
                    // It may have had another name.
                    let known = watched.known.as_ref().map(Known::name);
                    [Some(slug(&file.job.name)), known]
                        .iter()
                        .flatten()
                        .for_each(|name| self.gauges.forget_nights(name));
                    (None, "no night is due: its table [nightly] has no `cron`".to_owned())
                }
            },
            Ok(Err(refused)) => {
                let problems = diagnostic::render(&refused.text, &refused.name, &refused.problems, false);
                (None, format!("no night is due, since the job file has errors:\n{problems}"))
            }
            Err(failure) => (None, format!("no night is due: {}", failure.error)),
        };
        if due.is_none() {
            // One that is under way may be another's by then, so its history is read again.
            watched.known = watched.known.take().filter(|known| !known.past.unfinished);
        }
        if said != watched.said {
            tracing::info!(file = %watched.file.display(), "{said}");
            watched.said = said;
        }
        due
    }

    /// What is known of the nights of a job with this name; its history is read when nothing is.
    fn past(&self, watched: &mut Watched, name: &str, now_ms: u64) -> Result<Past, Failure> {
        let folder = std::path::absolute(self.histories.join(slug(name)))?;
        match &watched.known {
            Some(known) if known.folder == folder => return Ok(known.past),
            Some(known) => {
                watched.since_ms = now_ms;
                // Its name says so no more.
                self.gauges.forget_nights(&known.name());
            }
            None => {}
        }
        watched.known = None;
        let history = self.open(&folder)?;
        let known = Known::read(folder, history, watched.since_ms)?;
        Ok(watched.known.insert(known).past)
    }

    /// Opens the history of a job for this coordinator alone.
    fn open(&self, folder: &Path) -> Result<History, Failure> {
        let tell = |words: &str| tracing::info!("{words}");
        match &self.kept {
            Some(histories) => History::open_kept(folder.to_owned(), tell, histories.clone()),
            None => History::open(folder.to_owned(), tell),
        }
    }

    /// That nights of a job lie in `histories`, where an earlier version or `graftwork nightly` kept them, while its history
    /// here has none.
    fn elsewhere(&self, file: &Path, histories: &Path) -> Option<String> {
        let name = slug(&JobFile::read(file).ok()?.ok()?.job.name);
        let from = std::path::absolute(histories.join(&name)).ok()?;
        let to = std::path::absolute(self.histories.join(&name)).ok()?;
        let nights = |folder: &Path| numbers_in(folder).unwrap_or_default().len();
        if from == to || nights(&to) > 0 || nights(&from) == 0 {
            return None;
        }
        let here = if self.kept.is_some() { "the database".to_owned() } else { to.display().to_string() };
        let mend = if self.kept.is_some() {
            format!("start it again with `--nightly-history {}`", pasted(from.parent()?))
        } else {
            format!("run `mkdir -p {1} && cp -R {0}/. {1}` and start it again", pasted(&from), pasted(&to))
        };
        Some(format!(
            "an older history of {} nights lies in {}, and none in {here}: nights begin anew unless you stop this \
             coordinator and {mend}",
            nights(&from),
            from.display(),
        ))
    }

    /// One night of a job file, from its beginning or its interruption to its end, or until something keeps it from its end
    /// that may pass.
    async fn night(&self, watched: &mut Watched, socket: &Path) {
        let Some(known) = &mut watched.known else { return };
        let name = watched.file.display().to_string();
        tracing::info!(file = name, "a night begins");
        let began_ms = now_ms();
        let told = |failure: &Failure| graftwork_shared::cause::told(failure.error.as_ref());
        let ended = match known.history.take().map_or_else(|| self.open(&known.folder), Ok) {
            Ok(history) => {
                let ended = self.train(&history, &watched.file, socket).await;
                // A copy may be ahead of what is kept, so it is made anew before anything goes on.
                known.history = self.kept.is_none().then_some(history);
                ended
            }
            Err(failure) => Err(Trouble::Passing(failure)),
        };
        match ended {
            Ok((began_ms, ended)) => known.ends(began_ms, ended),
            Err(Trouble::Final(failure)) => {
                tracing::error!(file = name, error = told(&failure), "the night was not run to its end");
                let ended_ms = now_ms();
                let took_ms = ended_ms.saturating_sub(began_ms);
                known.ends(began_ms, LastNight { ended_ms, took_ms, ..LastNight::default() });
            }
            Err(Trouble::Passing(failure)) => {
                let minutes = known.pauses(now_ms()) / 60_000;
                tracing::warn!(file = name, error = told(&failure), "the night goes on in {minutes} minutes");
            }
        }
    }

    /// Trains a night that is due and compares it; gives when it began, and how it ended.
    async fn train(&self, history: &History, file: &Path, socket: &Path) -> Result<(u64, LastNight), Trouble> {
        // A file with errors keeps no night from being run once it is mended.
        let refused = |refused: Refused| Trouble::Passing(errors(&refused.text, &refused.name, &refused.problems));
        let read = JobFile::read(file)?.map_err(refused)?;
        let mut client = Client::local(socket).await?;
        let trained = match history.nights()?.last().filter(|night| night.judged.is_none()) {
            // It was trained, and whoever trained it ended before it was compared.
            Some(Night { number, began_ms, .. }) => Ok(Trained { number: *number, began_ms: *began_ms }),
            None => self.measure(history, &read, &mut client).await,
        };
        // Only what passes is gone on with; of what is kept or given up the coordinator needs no job.
        if matches!(trained, Ok(_) | Err(Trouble::Final(_))) {
            history.forget_tonight()?;
        }
        if let Err(failure) = forget_abandoned(history, &mut client).await {
            let error = graftwork_shared::cause::told(failure.error.as_ref());
            tracing::warn!(error, "a job of a night is still there: it is forgotten with the next night");
        }
        let Trained { number, began_ms } = trained?;
        let folder = self.histories.join(slug(&read.job.name));
        let again = format!("graftwork nightly --history {} {}", pasted(&folder), pasted(file));
        let commands = Commands::of_night(file, &again, number);
        let wanted = Wanted { number, against: None, again: false };
        let concluded = match conclude(history, wanted, &read.job.nightly, &commands).await.map_err(Trouble::of) {
            // The next one is not to wait for it for ever.
            Err(Trouble::Final(failure)) => {
                without_verdict(history, number)?;
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
        let ended = history.night(number).map(|night| last_night(&night));
        Ok((began_ms, ended.map_err(Trouble::Final)?))
    }

    /// Trains a night, and keeps what came of it.
    async fn measure(&self, history: &History, file: &JobFile, client: &mut Client) -> Result<Trained, Trouble> {
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
        prepared.shared = true;
        // Whatever an earlier attempt left at the coordinator goes first: nothing of it gets into this night.
        forget_abandoned(history, client).await?;
        history.submits(&mut prepared.tonight, JobId::of(&upload.job.digest()))?;
        let (mut view, recoveries) = serve(&upload, file, client).await?;
        if view.stages.iter().filter_map(|stage| stage.release.as_ref()).any(|release| !Path::new(release).exists()) {
            // Whoever led before has published on another host: what was trained is published once more.
            (view, _) = serve(&upload, file, client).await?;
        }
        let began_ms = prepared.tonight.began_ms;
        let number = keep(history, prepared, &view, recoveries).map_err(Trouble::of)?;
        Ok(Trained { number, began_ms })
    }
}

impl Watched {
    fn new(file: &Path, since_ms: u64) -> Self {
        Self { file: file.to_owned(), since_ms, known: None, said: String::new() }
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
