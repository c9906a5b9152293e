//! Commands about jobs of a coordinator, or of the local state folder.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use futures::StreamExt as _;
use graftwork_shared::{event::Outcome, id::JobId, view::JobView};

use super::{
    Connection, DONE, Failure, INPUT, JobFile, MISSED, OURS,
    plan::{Output, Refused},
    print, secret, show_problems,
};
use crate::{
    client::Client,
    progress::{Mode, Progress},
    report, run,
    server::{self, Listen},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Submit {
    /// The job file. Places in it must be reachable for coordinator and workers under the same paths.
    file: PathBuf,
    #[command(flatten)]
    at: Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// The job; all jobs without it.
    job: Option<JobId>,
    /// How it is printed.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    #[command(flatten)]
    at: Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// The job.
    job: JobId,
    /// How progress is shown; JSON lines go to stdout.
    #[arg(long, value_enum, default_value = "auto")]
    progress: Mode,
    #[command(flatten)]
    at: Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// The job, one of the state folder.
    job: JobId,
    /// Folder with the states of local jobs.
    #[arg(long, value_name = "FOLDER", default_value = run::STATE)]
    state: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// The job.
    job: JobId,
    /// How it is printed.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    #[command(flatten)]
    at: Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Cancel {
    /// The job.
    job: JobId,
    #[command(flatten)]
    at: Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    /// The job.
    job: JobId,
    /// Write the page to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the JSON document instead of the table.
    #[arg(long)]
    json: bool,
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
    let Some(address) = &arguments.at.coordinator else {
        return Err(Failure::input(anyhow!(
            "no coordinator is named: use --coordinator or {}, or `graftwork run` to train on this machine",
            crate::client::ADDRESS_VARIABLE
        )));
    };
    let mut client = Client::connect(address, secret(arguments.at.token_env.as_deref())?.as_deref()).await?;
    let (id, attached) = client.submit(&file.job).await?;
    if attached {
        eprintln!("the job was there already");
    }
    print(&format!("{id}\n"));
    Ok(DONE)
}

/// A coordinator that knows the job: the one that is named, else the one that leads the job's state folder now.
async fn connect(at: &Connection, job: &JobId) -> Result<Option<Client>, Failure> {
    let token = secret(at.token_env.as_deref())?;
    if let Some(address) = &at.coordinator {
        return Ok(Some(Client::connect(address, token.as_deref()).await?));
    }
    live(&at.state.join(job.as_str())).await
}

/// The coordinator that leads a state folder now.
async fn live(folder: &Path) -> Result<Option<Client>, Failure> {
    let holder = server::holder(folder).with_context(|| format!("reading the lock of {}", folder.display()))?;
    let Some(holder) = holder else { return Ok(None) };
    let Some(address) = holder.addresses.iter().find(|address| matches!(address, Listen::Unix(_))) else {
        return Ok(None);
    };
    Ok(Some(Client::connect(&address.to_string(), None).await?))
}

async fn connected(at: &Connection, job: &JobId) -> Result<Client, Failure> {
    connect(at, job).await?.ok_or_else(|| {
        let words = format!(
            "no coordinator of job {job} is running under {}: start it with `graftwork run`, or name one with --coordinator",
            at.state.display()
        );
        Failure::input(anyhow!(words))
    })
}

/// A job as a coordinator sees it, or as it ended in the state folder.
async fn view(at: &Connection, job: &JobId) -> Result<JobView, Failure> {
    if let Some(mut client) = connect(at, job).await? {
        return Ok(client.view(job).await?);
    }
    ended(&at.state.join(job.as_str()))?.ok_or_else(|| {
        Failure::input(anyhow!("there is no job {job} in {} that runs or has ended", at.state.display()))
    })
}

/// The report that a local job left.
fn ended(folder: &Path) -> Result<Option<JobView>, Failure> {
    let path = folder.join(report::REPORT_JSON);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(anyhow!("{}: {error}", path.display()).into()),
    }
}

pub(super) async fn status(arguments: Status) -> Result<u8, Failure> {
    let json = arguments.output == Output::Json;
    if let Some(job) = &arguments.job {
        let view = view(&arguments.at, job).await?;
        print(&if json { report::json(&view)? } else { report::table(&view, false) });
        return Ok(DONE);
    }
    let views = match &arguments.at.coordinator {
        Some(address) => {
            Client::connect(address, secret(arguments.at.token_env.as_deref())?.as_deref()).await?.all().await?
        }
        None => local(&arguments.at.state).await?,
    };
    if json {
        print(&(serde_json::to_string_pretty(&views)? + "\n"));
    } else if views.is_empty() {
        eprintln!("no jobs");
    } else {
        print(&views.iter().map(|view| report::status_line(view) + "\n").collect::<String>());
    }
    Ok(DONE)
}

/// Jobs of the state folder, newest first; those that neither run nor have ended are told on stderr.
async fn local(state: &Path) -> Result<Vec<JobView>, Failure> {
    let mut views = Vec::new();
    let Ok(entries) = std::fs::read_dir(state) else { return Ok(views) };
    for entry in entries.flatten() {
        let Some(job) = entry.file_name().to_str().and_then(|name| name.parse::<JobId>().ok()) else { continue };
        if let Some(mut client) = live(&entry.path()).await? {
            views.push(client.view(&job).await?);
        } else if let Some(view) = ended(&entry.path())? {
            views.push(view);
        } else {
            eprintln!("{job} was interrupted; `graftwork run` with its file goes on");
        }
    }
    views.sort_by_key(|view| std::cmp::Reverse(view.submitted_ms));
    Ok(views)
}

pub(super) async fn watch(arguments: Watch) -> Result<u8, Failure> {
    let mut client = connected(&arguments.at, &arguments.job).await?;
    let view = client.view(&arguments.job).await?;
    let mut progress = Progress::for_stdout(arguments.progress, &view);
    let mut events = client.watch(&arguments.job).await?;
    while let Some(event) = events.next().await {
        progress.on_event(&event?);
    }
    progress.finish();
    let view = client.view(&arguments.job).await?;
    Ok(exit_code(&view))
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

pub(super) fn logs(arguments: &Logs) -> Result<u8, Failure> {
    let path = arguments.state.join(arguments.job.as_str()).join(run::LOG);
    let mut file = std::fs::File::open(&path).map_err(|error| {
        Failure::input(anyhow!("{}: {error}; workers of a coordinator elsewhere log where they run", path.display()))
    })?;
    // A reader that has gone away is no error.
    let _ = std::io::copy(&mut file, &mut std::io::stdout().lock());
    Ok(DONE)
}

pub(super) async fn explain(arguments: Explain) -> Result<u8, Failure> {
    let explanation = connected(&arguments.at, &arguments.job).await?.explain(&arguments.job).await?;
    if arguments.output == Output::Json {
        print(&(serde_json::to_string_pretty(&explanation)? + "\n"));
    } else {
        print(&explanation.to_string());
    }
    Ok(DONE)
}

pub(super) async fn cancel(arguments: Cancel) -> Result<u8, Failure> {
    connected(&arguments.at, &arguments.job).await?.cancel(&arguments.job).await?;
    eprintln!("job {} is cancelled; what is published stays", arguments.job);
    Ok(DONE)
}

pub(super) async fn report(arguments: Report) -> Result<u8, Failure> {
    let view = view(&arguments.at, &arguments.job).await?;
    if let Some(path) = &arguments.html {
        graftwork_store::write_atomically(path, graftwork_web::report_page(&view).as_bytes())?;
        eprintln!("{}", path.display());
    }
    if arguments.json {
        print(&report::json(&view)?);
    } else if arguments.html.is_none() {
        use std::io::IsTerminal as _;
        print(&report::table(&view, std::io::stdout().is_terminal()));
    }
    Ok(DONE)
}
