//! `graftwork nightly`: the same job night after night, and whether anything got worse.
//!
//! A night is the job with every task and fusion once for each seed, trained through the same code as `graftwork run`.
//! Its scores, answers and costs are kept in a folder; then it is compared with the last good night by
//! `graftwork_verdict`, and everything that is said is drawn from one `NightlyView`. A night that was killed goes on
//! with the same command. Nothing here computes a probability.

mod answers;
mod compare;
mod costs;
mod expand;
mod export;
mod history;
mod night;
mod output;
mod repeat;
mod scores;
#[cfg(test)]
mod tests;
mod webhook;

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::anyhow;
use graftwork_shared::{
    digest::Digest,
    event::Outcome,
    job::{Job, Nightly, Spans},
    view::JobView,
};
use graftwork_web::{NightOutcome, NightlyView, nightly_page};

use crate::{
    cli::{DONE, Failure, INPUT, INTERRUPTED, JobFile, MISSED, Output, Refused, print, show_problems},
    run::{self, End, Training},
};
use history::{History, Tonight};
use night::{Code, LAYOUT, Night, gather};
use scores::Opened;

/// Folder of histories, unless `--history` names another.
const HISTORIES: &str = ".graftwork/nightly";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The job file; its table `[nightly]` says with which seeds, how strictly, and which changes are expected.
    file: PathBuf,
    /// The folder of this nightly's history; by default `.graftwork/nightly/` and the job's name.
    #[arg(long, value_name = "FOLDER")]
    history: Option<PathBuf>,
    /// Compare with this stored night instead of the last good one.
    #[arg(long, value_name = "NIGHT")]
    against: Option<u64>,
    /// What to call the code that is measured, such as a commit; by default a digest of the programs.
    #[arg(long, value_name = "TEXT", env = "GRAFTWORK_CODE")]
    code: Option<String>,
    /// Start the night over, if one was interrupted.
    #[arg(long)]
    again: bool,
    /// Train nothing; compare this stored night once more.
    #[arg(long, value_name = "NIGHT", conflicts_with_all = ["repeat", "export"])]
    compare: Option<u64>,
    /// Train one task or fusion of a stored night again, exactly as it was, and compare the answers.
    #[arg(long, value_name = "NIGHT:NAME", conflicts_with = "export")]
    repeat: Option<String>,
    /// Train nothing; write the history as JSON and Parquet into this folder.
    #[arg(long, value_name = "FOLDER")]
    export: Option<PathBuf>,
    #[command(flatten)]
    processes: run::Processes,
    /// How the summary is printed on stdout.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<u8, Failure> {
    let file = match JobFile::read(&arguments.file)? {
        Ok(file) => file,
        Err(refused) => {
            let Refused { name, text, problems } = refused.with_data_problems(&arguments.file).await?;
            show_problems(&text, &name, &problems);
            return Ok(INPUT);
        }
    };
    show_problems(&file.text, &file.name, &file.warnings);
    let folder = arguments.history.clone().unwrap_or_else(|| Path::new(HISTORIES).join(slug(&file.job.name)));
    let history = History::open(std::path::absolute(&folder)?)?;
    let nightly = file.job.nightly.clone();
    if let Some(target) = &arguments.export {
        let nights = export::export(&history, target)?;
        eprintln!("{nights} nights in {}", target.display());
        return Ok(DONE);
    }
    if let Some(repeated) = &arguments.repeat {
        let (number, task) = repeated
            .split_once(':')
            .and_then(|(number, task)| Some((number.parse().ok()?, task)))
            .ok_or_else(|| {
                Failure::input(anyhow!(
                    "--repeat {repeated}: write a night's number and a name, such as 12:question_type"
                ))
            })?;
        return repeat::repeat(&history, history.night(number)?, task, &arguments).await;
    }
    let number = match arguments.compare {
        Some(number) => history.night(number)?.number,
        None => match train(&history, file, &arguments).await? {
            Trained::Kept(number) => number,
            Trained::Ended(code) => return Ok(code),
        },
    };
    conclude(&history, number, &nightly, &arguments).await
}

/// What training a night came to.
enum Trained {
    /// The night is whole and kept.
    Kept(u64),
    /// The command ends here with this code.
    Ended(u8),
}

async fn train(history: &History, file: JobFile, arguments: &Arguments) -> Result<Trained, Failure> {
    let JobFile { name, text, mut job, spans: _, .. } = file;
    if let Some(against) = arguments.against {
        history.night(against)?;
    }
    if let Some(kept) = history.nights()?.last().filter(|night| night.judged.is_none()) {
        eprintln!("night {} is trained and was not compared yet", kept.number);
        history.forget_tonight()?;
        return Ok(Trained::Kept(kept.number));
    }
    if arguments.again {
        history.forget_tonight()?;
    }
    job.resources.workers = arguments.processes.workers.unwrap_or(job.resources.workers);
    let hub = history.tonight_folder().join("hub");
    let expanded = expand::expand(&job, &hub.display().to_string())?;
    let code = Code::now(arguments.code.as_deref())?;
    // The programs belong to it: a night is measured by one code from its beginning to its end.
    let digest = Digest::of_value("graftwork night", &(expanded.digest(), &code.version, code.numerics, &code.name));
    let tonight = history.begin(digest, now_ms())?;
    if tonight.resumed > 0 {
        eprintln!("night {} goes on where it was interrupted", tonight.number);
    }
    let training = Training {
        workers: expanded.resources.workers,
        threads: run::threads(&expanded, arguments.processes.threads),
        job: expanded.clone(),
        spans: Spans::default(),
        folder: history.tonight_folder().join("state"),
        progress: arguments.processes.progress,
        again: false,
        reuse: false,
        go_on: again(arguments),
    };
    match run::train(training).await? {
        End::Interrupted => Ok(Trained::Ended(INTERRUPTED)),
        End::Refused(problems) => {
            // Nothing was trained, so there is nothing to go on with.
            history.forget_tonight()?;
            show_problems(&text, &name, &problems);
            Ok(Trained::Ended(INPUT))
        }
        End::Ended(view) => {
            keep(history, &tonight, code, expanded, &view)?;
            Ok(Trained::Kept(tonight.number))
        }
    }
}

/// Keeps what a night measured, and removes its training.
fn keep(history: &History, tonight: &Tonight, code: Code, job: Job, view: &JobView) -> Result<(), Failure> {
    if view.outcome == Some(Outcome::Cancelled) {
        let words = format!("night {} was cancelled; the same command goes on with it", tonight.number);
        return Err(Failure::input(anyhow!(words)));
    }
    let (measurements, book, failed) = gather(view)?;
    let night = Night {
        layout: LAYOUT,
        number: tonight.number,
        began_ms: tonight.began_ms,
        ended_ms: view.ended_ms.unwrap_or_else(now_ms),
        resumed: tonight.resumed,
        code,
        job,
        measurements,
        failed,
        missed: view.outcome == Some(Outcome::ExpectationMissed),
        usage: view.usage,
        judged: None,
    };
    let folder = history.folder_of(night.number);
    // Learning curves and attention of fusions are on the job's own page.
    graftwork_store::write_atomically(&folder.join("job.html"), graftwork_web::report_page(view).as_bytes())?;
    history.keep(&night, &book)?;
    history.forget_tonight()
}

/// Compares a stored night, says so everywhere, and gives the exit code.
async fn conclude(history: &History, number: u64, nightly: &Nightly, arguments: &Arguments) -> Result<u8, Failure> {
    let mut nights = history.nights()?;
    nights.retain(|night| night.number <= number);
    let Some(night) = nights.last().filter(|night| night.number == number).cloned() else {
        return Err(anyhow!("night {number} is gone from the history").into());
    };
    let baseline = match arguments.against {
        Some(against) if against >= number => {
            return Err(Failure::input(anyhow!("night {against} is no earlier night than {number}")));
        }
        Some(against) => Some(against),
        None => compare::baseline(&nights, number),
    };
    let baseline = baseline.map(|number| history.night(number)).transpose()?;
    let book = history.book(&night)?;
    let baseline_book = baseline.as_ref().map(|night| history.book(night)).transpose()?;
    let opened = baseline.as_ref().zip(baseline_book.as_ref()).map(|(night, book)| Opened { night, book });
    let commands = compare::Commands { again: again(arguments), repeat: repeat_command(arguments, number) };
    let tonight = Opened { night: &night, book: &book };
    let compare::Compared { view, judged } = compare::compare(tonight, opened, &nights, nightly, &commands);
    // Looking at an old night again, or at another baseline, changes nothing of what is remembered.
    if arguments.compare.is_none() {
        history.rewrite(&Night { judged: Some(judged), ..night.clone() })?;
    }
    let page = write(history, &view)?;
    match arguments.output {
        Output::Json => print(&output::json(&view)?),
        Output::Human => {
            use std::io::IsTerminal as _;
            print(&output::terminal(&view, std::io::stdout().is_terminal()));
            eprintln!("report: {}", page.display());
        }
    }
    if arguments.compare.is_none() {
        if let Some(variable) = &nightly.webhook {
            webhook::post(variable, &view).await;
        }
        history.prune(&history.nights()?, nightly.keep)?;
    }
    Ok(match view.outcome {
        NightOutcome::Regressed => INPUT,
        _ if night.missed => MISSED,
        _ => DONE,
    })
}

/// Writes all that is said of a night into its folder; gives the page.
fn write(history: &History, view: &NightlyView) -> Result<PathBuf, Failure> {
    let folder = history.folder_of(view.night.number);
    let page = folder.join("nightly.html");
    let files = [
        (folder.join("nightly.json"), output::json(view)?),
        (folder.join("nightly.md"), output::markdown(view)),
        (folder.join("junit.xml"), output::junit(view)),
        (page.clone(), nightly_page(view)),
    ];
    for (path, text) in files {
        graftwork_store::write_atomically(&path, text.as_bytes())?;
    }
    Ok(page)
}

/// The command as it was typed.
fn again(arguments: &Arguments) -> String {
    let mut words = vec!["graftwork nightly".to_owned()];
    words.extend(arguments.history.iter().map(|folder| format!("--history {}", folder.display())));
    words.extend(arguments.processes.words());
    words.push(arguments.file.display().to_string());
    words.join(" ")
}

/// The command that repeats a measurement of a night; the task's name goes to its end.
fn repeat_command(arguments: &Arguments, number: u64) -> String {
    format!("{} --repeat {number}:", again(arguments))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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
