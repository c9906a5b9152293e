//! Commands about jobs of a coordinator, or of the local state folder.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use graftwork_scheduler::Explanation;
use graftwork_shared::{
    diagnostic::Diagnostic,
    event::Outcome,
    id::JobId,
    view::{JobView, Refusal, StageState},
};

use super::{
    Connection, DONE, Failure, INPUT, JobFile, MISSED, OURS,
    plan::{Output, Refused},
    print, show_problems,
    which::{Which, local_ids},
};
use crate::{
    client::{self, Client, ClientError},
    report, run, server,
    upload::{self, Upload, UploadError},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Submit {
    /// The job file. What it names on this disk (rows, a base model, adapters) is uploaded, each file once; the hub is
    /// a folder of the coordinator's machine.
    file: PathBuf,
    /// A folder that the coordinator and its workers see under the same path: what lies below it is not uploaded. May
    /// be given again.
    #[arg(long = "shared-root", value_name = "FOLDER")]
    shared_roots: Vec<PathBuf>,
    #[command(flatten)]
    at: Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// The job, or the first digits of it; all jobs without it.
    job: Option<Which>,
    /// How it is printed.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    #[command(flatten)]
    at: Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// The job, one of the state folder, or the first digits of it.
    job: Which,
    /// Go on with what comes until the job ends or is interrupted.
    #[arg(long, short)]
    follow: bool,
    /// Folder with the states of local jobs.
    #[arg(long, value_name = "FOLDER", default_value = run::STATE)]
    state: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// The job, or the first digits of it.
    job: Which,
    /// How it is printed.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    #[command(flatten)]
    at: Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Cancel {
    /// The job, or the first digits of it.
    job: Which,
    #[command(flatten)]
    at: Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Forget {
    /// The job, or the first digits of it; it must have ended.
    job: Which,
    #[command(flatten)]
    at: Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    /// The job, or the first digits of it.
    job: Which,
    /// Write the page to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// How it is printed.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    #[command(flatten)]
    at: Connection,
}

pub(super) async fn submit(arguments: Submit) -> Result<u8, Failure> {
    let file = match JobFile::read(&arguments.file)? {
        Ok(file) => file,
        Err(Refused { name, text, problems }) => {
            show_problems(&text, &name, &problems);
            return Ok(INPUT);
        }
    };
    show_problems(&file.text, &file.name, &file.warnings);
    let unnamed = || {
        let variable = crate::client::ADDRESS_VARIABLE;
        Failure::input(anyhow!(
            "no coordinator is named: use --coordinator or {variable}, or `graftwork run` to train on this machine"
        ))
    };
    let shared_roots = arguments.shared_roots.iter().map(|root| shared_root(root)).collect::<Result<Vec<_>, _>>()?;
    let mut client = arguments.at.client().await?.ok_or_else(unnamed)?;
    let JobFile { name, text, job, spans, .. } = file;
    let refuse = |problems: &[Diagnostic]| {
        show_problems(&text, &name, problems);
        Ok(INPUT)
    };
    let job_spans = spans.clone();
    let prepared = tokio::task::spawn_blocking(move || Upload::prepare(job, &job_spans, &shared_roots)).await?;
    let upload = match prepared {
        Ok(upload) => upload,
        Err(problems) => return refuse(&problems),
    };
    let submission = client::submission();
    let said = upload::send(&upload, &mut client, submission.context()).await.map_err(|error| match error {
        UploadError::Client(error) => Failure::from(error),
        other => Failure::from(other),
    })?;
    said.iter().for_each(|said| eprintln!("{said}"));
    let submitted = client.submit(&upload.job, &spans, submission.context()).await;
    drop(submission);
    let (id, attached) = match submitted {
        Err(ClientError::Plan(problems)) => return refuse(&upload.with_paths(problems)),
        submitted => submitted?,
    };
    if attached {
        eprintln!("the job was there already");
    }
    print(&format!("{id}\n"));
    Ok(DONE)
}

/// A folder that exists, as job files name what lies below it.
fn shared_root(root: &Path) -> Result<PathBuf, Failure> {
    let wrong = |problem: &str| Failure::input(anyhow!("--shared-root {}: {problem}", root.display()));
    if !root.is_dir() {
        return Err(wrong("it is no folder; name one that the coordinator and its workers see under the same path"));
    }
    // Links are kept: places of a job are compared as texts, as they will be opened elsewhere.
    let has_dots = root.components().any(|part| part == std::path::Component::ParentDir);
    let plain = if has_dots { root.canonicalize() } else { std::path::absolute(root) };
    plain.map_err(|error| wrong(&error.to_string()))
}

/// A coordinator that knows the job: the one that is named, else the one that leads the job's state folder now.
async fn connect(at: &Connection, job: &JobId) -> Result<Option<Client>, Failure> {
    if let Some(client) = at.client().await? {
        return Ok(Some(client));
    }
    live(&at.state.join(job.as_str())).await
}

/// The coordinator that leads a state folder now.
async fn live(folder: &Path) -> Result<Option<Client>, Failure> {
    let holder = server::holder(folder).with_context(|| format!("reading the lock of {}", folder.display()))?;
    let Some(holder) = holder else { return Ok(None) };
    let Some(socket) = holder.socket() else { return Ok(None) };
    Ok(Some(Client::local(socket).await?))
}

pub(super) async fn connected(at: &Connection, job: &JobId) -> Result<Client, Failure> {
    if let Some(client) = connect(at, job).await? {
        return Ok(client);
    }
    let over = ended(&at.state.join(job.as_str()))?.is_some();
    let words = if over {
        format!("job {job} has ended; `graftwork report {job}` shows how")
    } else {
        format!(
            "no coordinator of job {job} is running under {}: start it with `graftwork run`, or name one with \
             --coordinator; `graftwork status` lists the jobs",
            at.state.display()
        )
    };
    Err(Failure::input(anyhow!(words)))
}

/// A job as a coordinator sees it, or as it ended or rests in the state folder; and whether it rests.
async fn view(at: &Connection, job: &JobId) -> Result<(JobView, bool), Failure> {
    if let Some(mut client) = connect(at, job).await? {
        return Ok((client.view(job).await?, false));
    }
    let folder = at.state.join(job.as_str());
    if let Some(view) = ended(&folder)? {
        return Ok((view, false));
    }
    let resting = server::resting(&folder)?.and_then(|machine| machine.view(job));
    resting.map(|view| (view, true)).ok_or_else(|| {
        Failure::input(anyhow!("there is no job {job} in {}; `graftwork status` lists the jobs", at.state.display()))
    })
}

/// The report that a local job left.
fn ended(folder: &Path) -> Result<Option<JobView>, Failure> {
    let path = folder.join(report::REPORT_JSON);
    match std::fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(view) => Ok(Some(view)),
            Err(error) => {
                eprintln!("{} is damaged and left out: {error}", path.display());
                Ok(None)
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(anyhow!("{}: {error}", path.display()).into()),
    }
}

pub(super) async fn status(arguments: Status) -> Result<u8, Failure> {
    let json = arguments.output == Output::Json;
    if let Some(job) = &arguments.job {
        let job = job.find(&arguments.at).await?;
        let (view, rests) = view(&arguments.at, &job).await?;
        print(&if json { report::json(&view)? } else { report::table(&view, rests, false) });
        return Ok(DONE);
    }
    let views = match arguments.at.client().await? {
        Some(mut client) => client.all().await?,
        None => local(&arguments.at.state).await?,
    };
    let rests = |view: &JobView| arguments.at.coordinator.is_empty() && view.outcome.is_none();
    if json {
        print(&(serde_json::to_string_pretty(&views)? + "\n"));
    } else if views.is_empty() {
        eprintln!("no jobs");
    } else {
        let mut lines = String::new();
        for view in &views {
            let led = server::holder(&arguments.at.state.join(view.id.as_str()))?.is_some();
            lines.push_str(&report::status_line(view, rests(view) && !led));
            lines.push('\n');
        }
        print(&lines);
    }
    Ok(DONE)
}

/// Jobs of the state folder, newest first.
async fn local(state: &Path) -> Result<Vec<JobView>, Failure> {
    let mut views = Vec::new();
    for job in local_ids(state) {
        let folder = state.join(job.as_str());
        if let Some(mut client) = live(&folder).await? {
            views.push(client.view(&job).await?);
        } else if let Some(view) = ended(&folder)? {
            views.push(view);
        } else if let Some(view) = server::resting(&folder)?.and_then(|machine| machine.view(&job)) {
            views.push(view);
        }
    }
    views.sort_by_key(|view| std::cmp::Reverse(view.submitted_ms));
    Ok(views)
}

/// What a job's end means for a command that waited for it.
pub(crate) fn exit_code(view: &JobView) -> u8 {
    match view.outcome {
        Some(Outcome::Succeeded) => DONE,
        Some(Outcome::ExpectationMissed) => MISSED,
        Some(Outcome::Failed) if by_user(view) => INPUT,
        Some(Outcome::Cancelled) => INPUT,
        Some(Outcome::Failed) | None => OURS,
    }
}

/// Whether each failure is one that the user can mend.
fn by_user(view: &JobView) -> bool {
    use graftwork_shared::{assignment::Blame, view::StageState};
    view.stages
        .iter()
        .all(|stage| !matches!(&stage.state, StageState::Failed { failure } if failure.blame == Blame::Machine))
}

/// How often a log that is followed is looked at.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

/// How long a job that writes its log already may take until somebody leads it: it is planned first.
const BEGINS_WITHIN: std::time::Duration = std::time::Duration::from_secs(3);

pub(super) fn logs(arguments: &Logs) -> Result<u8, Failure> {
    let folder = arguments.state.join(arguments.job.find_local(&arguments.state)?.as_str());
    let path = folder.join(run::LOG);
    let mut file = std::fs::File::open(&path).map_err(|error| {
        Failure::input(anyhow!(
            "{}: {error}; `graftwork status` lists the jobs, and workers of a coordinator elsewhere log where they run",
            path.display()
        ))
    })?;
    let started = std::time::Instant::now();
    loop {
        // Asked before the log is read, so that the last words of a job that ends meanwhile are read as well.
        let begins = started.elapsed() < BEGINS_WITHIN && !folder.join(report::REPORT_JSON).exists();
        let goes_on = arguments.follow && (begins || server::holder(&folder)?.is_some());
        let mut out = std::io::stdout().lock();
        let copied = std::io::copy(&mut file, &mut out).and_then(|_| std::io::Write::flush(&mut out));
        // A reader that has gone away is no error.
        if copied.is_err() || !goes_on {
            return Ok(DONE);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

pub(super) async fn explain(arguments: Explain) -> Result<u8, Failure> {
    let at = &arguments.at;
    let job = &arguments.job.find(at).await?;
    let explanation = match connect(at, job).await? {
        Some(mut client) => client.explain(job).await?,
        None => at_rest(&at.state.join(job.as_str()), job)?.ok_or_else(|| {
            Failure::input(anyhow!(
                "there is no job {job} in {}; `graftwork status` lists the jobs",
                at.state.display()
            ))
        })?,
    };
    if arguments.output == Output::Json {
        print(&(serde_json::to_string_pretty(&explanation)? + "\n"));
    } else {
        print(&explanation.to_string());
    }
    Ok(DONE)
}

/// Where the stages of a job stand that nobody leads: what lacks a worker lacks the command alone.
fn at_rest(folder: &Path, job: &JobId) -> Result<Option<Explanation>, Failure> {
    let Some(mut explanation) = server::resting(folder)?.and_then(|machine| machine.explain(job)) else {
        return Ok(None);
    };
    for stage in &mut explanation.stages {
        if matches!(stage.data, StageState::Ready { refusal: Refusal::NoWorker }) {
            report::RESTS.clone_into(&mut stage.sentence);
        }
    }
    Ok(Some(explanation))
}

pub(super) async fn cancel(arguments: Cancel) -> Result<u8, Failure> {
    let job = arguments.job.find(&arguments.at).await?;
    connected(&arguments.at, &job).await?.cancel(&job).await?;
    eprintln!("job {job} is cancelled; what is published stays");
    Ok(DONE)
}

pub(super) async fn forget(arguments: Forget) -> Result<u8, Failure> {
    let job = arguments.job.find(&arguments.at).await?;
    connected(&arguments.at, &job).await?.forget(&job).await?;
    eprintln!("job {job} is forgotten, with its results and uploads; what is published stays");
    Ok(DONE)
}

pub(super) async fn report(arguments: Report) -> Result<u8, Failure> {
    let job = arguments.job.find(&arguments.at).await?;
    let (view, rests) = view(&arguments.at, &job).await?;
    if let Some(path) = &arguments.html {
        graftwork_store::write_atomically(path, graftwork_web::report_page(&view).as_bytes())?;
        eprintln!("{}", path.display());
    }
    if arguments.output == Output::Json {
        print(&report::json(&view)?);
    } else if arguments.html.is_none() {
        use std::io::IsTerminal as _;
        print(&report::table(&view, rests, std::io::stdout().is_terminal()));
    }
    Ok(DONE)
}
