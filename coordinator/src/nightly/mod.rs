//! `graftwork nightly`: the same job night after night, and whether anything got worse.
//!
//! A night is the job with every task and fusion once for each seed, trained through the same code as `graftwork run`.
//! Its scores, answers and costs are kept in a folder; then it is compared with the last good night by
//! `graftwork_verdict`, and everything that is said is drawn from one `NightlyView`. A night that was killed goes on
//! with the same command. Nothing here computes a probability.
//!
//! ```text
//! expand · tonight · night · curves    what is trained, and what is kept of it
//! history · pruned · kept · aside      where it is kept, for how long, with a state in a database, and how it is put aside
//! scores · costs · compare             verdicts of the crate graftwork-verdict over what is kept
//! texts                                what was asked in rows whose answers got worse
//! conclude · output · webhook · export what is said
//! due · by_itself · passing            a coordinator runs nights when they are due, and what it tries once more
//! repeat                               one measurement of a night once more
//! versions · beside · bisect           programs of other versions: side by side, and which commit it was
//! ```

mod answers;
mod aside;
mod beside;
mod bisect;
mod by_itself;
mod compare;
mod conclude;
mod costs;
mod curves;
mod due;
mod expand;
mod export;
mod history;
mod kept;
mod night;
mod output;
mod passing;
mod pruned;
mod repeat;
mod scores;
#[cfg(test)]
mod tests;
mod texts;
mod tonight;
mod versions;
mod webhook;

use std::path::{Path, PathBuf};

use anyhow::anyhow;
pub(crate) use aside::{AsideError, put_aside};
pub(crate) use by_itself::ByItself;
use graftwork_shared::job::Spans;
pub(crate) use kept::{listed, place};

use self::{
    compare::Commands,
    conclude::{Concluded, Wanted, conclude},
    expand::expand,
    history::History,
    night::{Code, Night},
    tonight::{Prepared, keep, prepare},
    versions::Compiling,
};
use crate::{
    cli::{DONE, Failure, INPUT, INTERRUPTED, JobFile, Output, Refused, Servers, pasted, print, show_problems},
    run::{self, End, Training},
    server::{Held, Home},
};

/// Folder of histories, unless `--history` names another.
const HISTORIES: &str = ".graftwork/nightly";

/// Folder of copies of those that a database holds, likewise.
const COPIES: &str = ".graftwork/copies";

/// How often a state is looked into where files of a history are lost.
const LOOKS: u32 = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The job file; its table `[nightly]` says with which seeds, how strictly, and which changes are expected.
    file: PathBuf,
    /// The folder of this nightly's history; by default `.graftwork/nightly/` and the job's name.
    #[arg(long, value_name = "FOLDER")]
    history: Option<PathBuf>,
    /// Train no night; look at the history that coordinators keep in this database, postgres://USER@HOST:PORT/NAME. A copy of
    /// it is made in the folder of --history, by default `.graftwork/copies/` and the job's name.
    #[arg(long, value_name = "ADDRESS")]
    state: Option<String>,
    #[command(flatten)]
    servers: Servers,
    /// Compare with this stored night instead of the last good one; or, side by side and outside of the history, with the
    /// programs in a folder, or with those of a git revision of the repository in which the job file lies.
    #[arg(long, value_name = "NIGHT|FOLDER|REVISION")]
    against: Option<String>,
    /// Side by side: only this task or fusion; may be given again.
    #[arg(long, value_name = "NAME", requires = "against")]
    only: Vec<String>,
    #[command(flatten)]
    build: Compiling,
    /// What to call the code that is measured, such as a commit; by default a digest of the programs.
    #[arg(long, value_name = "TEXT", env = "GRAFTWORK_CODE")]
    code: Option<String>,
    /// Start the night over, if one was interrupted. One that was trained and not compared yet stays, without a verdict.
    #[arg(long)]
    again: bool,
    /// Train nothing; compare this stored night once more.
    #[arg(long, value_name = "NIGHT", conflicts_with_all = ["repeat", "export", "bisect", "only"])]
    compare: Option<u64>,
    /// Train one task or fusion of a stored night again, exactly as it was, and compare the answers.
    #[arg(long, value_name = "NIGHT:NAME", conflicts_with_all = ["export", "bisect", "only"])]
    repeat: Option<String>,
    /// Find the commits between which this measurement of a stored night got worse: measure it at commits between that
    /// night's and the one's that it was compared with, by halves.
    #[arg(long, value_name = "NIGHT:NAME", conflicts_with_all = ["export", "only"])]
    bisect: Option<String>,
    /// Train nothing; write the history as JSON and Parquet into this folder.
    #[arg(long, value_name = "FOLDER")]
    export: Option<PathBuf>,
    #[command(flatten)]
    processes: run::Processes,
    /// How the summary is printed on stdout.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
}

pub(crate) async fn run(mut arguments: Arguments) -> Result<u8, Failure> {
    let file = match JobFile::read(&arguments.file)? {
        Ok(file) => file,
        Err(refused) => {
            let Refused { name, text, problems } = refused.with_data_problems(&arguments.file).await?;
            show_problems(&text, &name, &problems);
            return Ok(INPUT);
        }
    };
    show_problems(&file.text, &file.name, &file.warnings);
    let name = slug(&file.job.name);
    if arguments.state.is_some() {
        // Commands that are told name the copy.
        arguments.history.get_or_insert_with(|| Path::new(COPIES).join(&name));
    }
    let history = open(&arguments, &name).await?;
    if let Some(target) = &arguments.export {
        let nights = export::export(&history, target)?;
        eprintln!("{nights} nights in {}", target.display());
        return Ok(DONE);
    }
    if let Some(repeated) = &arguments.repeat {
        let (number, task) = measurement("--repeat", repeated)?;
        return Box::pin(repeat::repeat(&history, history.night(number)?, task, &arguments)).await;
    }
    if let Some(searched) = &arguments.bisect {
        let (number, task) = measurement("--bisect", searched)?;
        return bisect::bisect(&history, history.night(number)?, task, &file, &arguments).await;
    }
    let against = match &arguments.against {
        Some(text) => match text.parse() {
            Ok(number) => Some(number),
            Err(_) if arguments.compare.is_some() => {
                return Err(Failure::input(anyhow!(
                    "--compare {text}: stored nights are compared with stored nights; write a number"
                )));
            }
            Err(_) => return beside::beside(&history, &file, text, &arguments).await,
        },
        None => None,
    };
    if !arguments.only.is_empty() {
        return Err(Failure::input(anyhow!("--only is for two versions side by side: a night measures the whole job")));
    }
    let nightly = file.job.nightly.clone();
    let number = match arguments.compare {
        Some(number) => history.night(number)?.number,
        None => match Box::pin(train(&history, file, against, &arguments)).await? {
            Trained::Kept(number) => number,
            Trained::Ended(code) => return Ok(code),
        },
    };
    let commands = commands(&arguments, number);
    let wanted = Wanted { number, against, again: arguments.compare.is_some() };
    let concluded = conclude(&history, wanted, &nightly, &commands).await?;
    say(&concluded, arguments.output)?;
    Ok(concluded.code())
}

/// The history that is asked about: that of a folder, or a copy of one that a database holds.
async fn open(arguments: &Arguments, name: &str) -> Result<History, Failure> {
    if arguments.state.is_none()
        && let Some(option) = arguments.servers.named()
    {
        return Err(Failure::input(anyhow!("{option} is for a history that a database holds: name it with --state")));
    }
    let folder = arguments.history.clone().unwrap_or_else(|| Path::new(HISTORIES).join(name));
    let history = History::open(std::path::absolute(&folder)?, |words| eprintln!("{words}"))?;
    let Some(state) = &arguments.state else { return Ok(history) };
    let home = arguments.servers.home(state)?;
    if let Some(folder) = home.nights(None) {
        let own = folder.join(name);
        let words = format!(
            "--state {state}: the histories of a state in a folder are files in it: give --history {}",
            own.display()
        );
        return Err(Failure::input(anyhow!(words)));
    }
    let name = name.to_owned();
    let looked = tokio::task::spawn_blocking(move || look(&home, &name, history));
    looked.await.map_err(anyhow::Error::from)?
}

/// Makes a history a copy of one that a database holds. Whoever leads meanwhile lets go of files and renames others, so what
/// is lost at first is looked for once more.
fn look(home: &Home, name: &str, history: History) -> Result<History, Failure> {
    let mut looks = 0;
    loop {
        let held = Held::look(home, name).map_err(Failure::input)?;
        if held.files.is_empty() {
            return Err(Failure::input(anyhow!("the state holds no history of nights that is called {name}")));
        }
        let lost = history.copy(&held)?;
        looks += 1;
        if lost.is_empty() || looks == LOOKS {
            history.tell_lost(&lost);
            return Ok(history);
        }
    }
}

/// Prints what a night came to.
fn say(Concluded { view, page, .. }: &Concluded, output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => print(&output::json(view)?),
        Output::Human => {
            use std::io::IsTerminal as _;
            print(&output::terminal(view, std::io::stdout().is_terminal()));
            eprintln!("report: {}", page.display());
        }
    }
    Ok(())
}

/// The night and the task of an option's value, such as `12:question_type`.
fn measurement<'v>(option: &str, value: &'v str) -> Result<(u64, &'v str), Failure> {
    let parts = value.split_once(':').and_then(|(number, task)| Some((number.parse().ok()?, task)));
    parts.ok_or_else(|| {
        Failure::input(anyhow!("{option} {value}: write a night's number and a name, such as 12:question_type"))
    })
}

/// The task or fusion of this name in a night.
fn known_task(night: &Night, task: &str) -> Result<graftwork_shared::id::Name, Failure> {
    let known = scores::tasks(night);
    let names = || known.iter().map(graftwork_shared::id::Name::as_str).collect::<Vec<_>>().join(", ");
    known
        .iter()
        .find(|name| name.as_str() == task)
        .cloned()
        .ok_or_else(|| Failure::input(anyhow!("night {} did not measure {task}: it has {}", night.number, names())))
}

/// What training a night came to.
enum Trained {
    /// The night is whole and kept.
    Kept(u64),
    /// The command ends here with this code.
    Ended(u8),
}

async fn train(
    history: &History,
    file: JobFile,
    against: Option<u64>,
    arguments: &Arguments,
) -> Result<Trained, Failure> {
    history.check_own()?;
    let JobFile { name, text, mut job, spans: _, .. } = file;
    if let Some(against) = against {
        // What cannot be compared with is told before hours of training.
        history.book(&history.night(against)?).map_err(Failure::input)?;
    }
    if let Some(number) = waiting(history, arguments.again)? {
        return Ok(Trained::Kept(number));
    }
    job.resources.workers = arguments.processes.workers.unwrap_or(job.resources.workers);
    let (job, code) = (expand(&job)?, Code::now(arguments.code.as_deref())?);
    loop {
        // What the planner reads of the rows decides whether they are still those that the night began with.
        let prepared: Prepared = prepare(history, job.clone(), job.digest(), code.clone())?;
        let training = Training {
            workers: prepared.job.resources.workers,
            threads: run::threads(&prepared.job, arguments.processes.threads),
            job: prepared.job.clone(),
            spans: Spans::default(),
            folder: history.tonight_folder().join("state"),
            progress: arguments.processes.progress,
            again: false,
            reuse: false,
            go_on: again(arguments),
        };
        match run::train(training).await? {
            End::Interrupted => return Ok(Trained::Ended(INTERRUPTED)),
            End::Refused(problems) => {
                // Nothing was trained, so there is nothing to go on with.
                history.forget_tonight()?;
                show_problems(&text, &name, &problems);
                return Ok(Trained::Ended(INPUT));
            }
            End::Changed(words) => {
                eprintln!("{words}: night {} starts over", prepared.tonight.number);
                history.forget_tonight()?;
            }
            End::Ended(view, recoveries) => return Ok(Trained::Kept(keep(history, prepared, &view, recoveries)?)),
        }
    }
}

/// The night that was trained and not compared yet, if it is to be compared now. What is under way is forgotten where
/// another night is to begin.
fn waiting(history: &History, again: bool) -> Result<Option<u64>, Failure> {
    let nights = history.nights()?;
    let Some(kept) = nights.last().filter(|night| night.judged.is_none()) else {
        if again {
            history.forget_tonight()?;
        }
        return Ok(None);
    };
    history.forget_tonight()?;
    if !again {
        eprintln!("night {} is trained and was not compared yet", kept.number);
        return Ok(Some(kept.number));
    }
    eprintln!("night {} stays as it was trained, without a verdict: another one begins", kept.number);
    conclude::without_verdict(history, kept.number)?;
    Ok(None)
}

/// The command as it was typed.
fn again(arguments: &Arguments) -> String {
    let mut words = vec!["graftwork nightly".to_owned()];
    words.extend(arguments.history.iter().map(|folder| format!("--history {}", pasted(folder))));
    words.extend(arguments.processes.words());
    words.push(pasted(&arguments.file));
    words.join(" ")
}

/// Commands to be told with the verdicts of a night.
fn commands(arguments: &Arguments, number: u64) -> Commands {
    let again = again(arguments);
    Commands::of_night(&arguments.file, &again, number)
}

/// A folder's name from a job's.
fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let slug: String = name.chars().map(plain).collect();
    let slug = slug.trim_matches('-').to_owned();
    if slug.is_empty() { "job".to_owned() } else { slug }
}

#[cfg(test)]
mod names {
    use super::*;

    #[test]
    fn names_become_folders() {
        assert_eq!(slug("Two tasks & a fusion"), "two-tasks---a-fusion");
        assert_eq!(slug("../../x"), "x");
        assert_eq!(slug("…"), "job");
    }
}
