//! Two versions side by side: the same job, seeds and data in one run, each by its own programs, outside of the history.
//!
//! What is kept of the last comparison lies in `beside`; an interrupted one goes on with the same command.

use std::path::Path;

use anyhow::anyhow;
use graftwork_shared::{
    digest::Digest,
    id::Name,
    job::{Nightly, resolved_place},
};
use graftwork_web::Curves;

use super::{
    Arguments, again,
    compare::{self, Commands},
    conclude::{self, Concluded},
    curves,
    history::{History, keep_in, remove},
    say,
    scores::Opened,
    texts,
    versions::{Built, Measured, Parts, Repository, Side, Version, job_text, measure},
};
use crate::{
    cli::{Failure, INTERRUPTED, JobFile, pasted},
    run::Signals,
};

pub(super) async fn beside(
    history: &History,
    file: &JobFile,
    other: &str,
    arguments: &Arguments,
) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let Some(other_version) = find(history, other, arguments, &mut signals).await? else { return Ok(INTERRUPTED) };
    let versions = [other_version, Version::now(arguments.code.as_deref())?];
    let texts = texts(history, file, arguments)?;
    let folder = history.beside_folder();
    let names = versions.each_ref().map(|version| &version.name);
    let build: Vec<String> = arguments.build.words().collect();
    go_on_or_begin(&folder, &(&texts, names, build), arguments.again)?;
    let mut sides = Vec::new();
    for ((version, text), name) in versions.iter().zip(&texts).zip(NAMES) {
        eprintln!("measuring {}", version.name);
        let side = Side { version, text, job: &file.job, folder: &folder.join(name), processes: &arguments.processes };
        match measure(side, &mut signals).await? {
            Some(measured) => sides.push(measured),
            None => {
                eprintln!("stopped; the same command goes on");
                return Ok(INTERRUPTED);
            }
        }
    }
    let [before, after] = sides.try_into().map_err(|_| anyhow!("two versions were measured"))?;
    let concluded = conclude_both(history, [&before, &after], &file.job.nightly, &commands(other, arguments)).await?;
    say(&concluded, arguments.output)?;
    Ok(concluded.code())
}

/// Folders of the two sides.
const NAMES: [&str; 2] = ["before", "after"];

/// The other version's programs; a revision is built. `None` when the user stopped it.
async fn find(
    history: &History,
    other: &str,
    arguments: &Arguments,
    signals: &mut Signals,
) -> Result<Option<Version>, Failure> {
    let repository = Repository::of(&arguments.file).map_err(|failure| Failure {
        error: anyhow!("--against {other} is no night's number and no folder with programs, and {}", failure.error),
        ..failure
    });
    let revision = repository.and_then(|repository| Ok((repository.commit(other)?, repository)));
    let (commit, repository) = if Path::new(other).is_dir() {
        match (Version::in_folder(Path::new(other)), revision) {
            (Ok(_), Ok(_)) => {
                let words = format!(
                    "--against {other}: a folder with programs and a revision have this name: write ./{other} for the \
                     folder, or refs/heads/{other} for the branch"
                );
                return Err(Failure::input(anyhow!(words)));
            }
            // A folder without programs hides no branch of its name.
            (Err(_), Ok(revision)) => revision,
            (folder, Err(_)) => return folder.map(Some),
        }
    } else {
        revision?
    };
    let title = repository.title(&commit);
    let tree = repository.tree(&history.versions_folder(), &commit)?;
    eprintln!("building {title}");
    match arguments.build.build(&tree, title.clone(), signals).await? {
        Built::Programs(version) => Ok(Some(version)),
        Built::Interrupted => Ok(None),
        Built::Not(problem) => Err(Failure::input(anyhow!("{title} {problem}"))),
    }
}

/// The job file of each side, which differ in the hub alone.
fn texts(history: &History, file: &JobFile, arguments: &Arguments) -> Result<[String; 2], Failure> {
    let absolute = std::path::absolute(&arguments.file)?;
    let here = absolute.parent().unwrap_or(Path::new("/"));
    let only = arguments.only.iter().map(|name| name.parse::<Name>()).collect::<Result<Vec<_>, _>>();
    let only = only.map_err(|error| Failure::input(anyhow!("--only: {error}")))?;
    let text = |name: &str| {
        let hub = history.beside_folder().join(name).join("hub").display().to_string();
        let parts = Parts { seeds: &file.job.nightly.seeds, only: &only, hub: &hub };
        job_text(&file.text, &file.job, parts, &|place| resolved_place(here, place))
    };
    Ok([text(NAMES[0])?, text(NAMES[1])?])
}

/// Keeps what the same comparison has trained so far, and removes what another one left.
fn go_on_or_begin(folder: &Path, of: &impl serde::Serialize, again: bool) -> Result<(), Failure> {
    let digest = Digest::of_value("graftwork side by side", of).to_string();
    let path = folder.join("begun");
    let begun = std::fs::read_to_string(&path).unwrap_or_default();
    if begun == digest && !again {
        eprintln!("going on where it was interrupted");
        return Ok(());
    }
    remove(folder)?;
    Ok(graftwork_store::write_atomically(&path, digest.as_bytes())?)
}

fn commands(other: &str, arguments: &Arguments) -> Commands {
    let mut words = vec![again(arguments), format!("--against {}", pasted(other))];
    words.extend(arguments.build.words());
    let again = words.join(" ");
    Commands { file: arguments.file.clone(), repeat: format!("{again} --only "), again, bisect: None }
}

/// Compares both, and writes it all; what was trained is removed.
async fn conclude_both(
    history: &History,
    [before, after]: [&Measured; 2],
    nightly: &Nightly,
    commands: &Commands,
) -> Result<Concluded, Failure> {
    let opened = [before, after].map(|side| Opened { night: &side.night, book: &side.book });
    let mut view = compare::beside(opened, &history.known()?, nightly, commands);
    texts::show(&mut view, &after.night).await;
    let curves = Curves { now: curves::of(&after.view), before: curves::of(&before.view) };
    let folder = history.beside_folder();
    for ((side, name), page) in [before, after].into_iter().zip(NAMES).zip(["before.html", "job.html"]) {
        graftwork_store::write_atomically(&folder.join(page), graftwork_web::report_page(&side.view).as_bytes())?;
        keep_in(&folder.join(name), &side.night, &side.book)?;
    }
    let page = conclude::write(&folder, &view, &curves)?;
    for name in NAMES {
        remove(&folder.join(name).join("state"))?;
        remove(&folder.join(name).join("hub"))?;
    }
    // It is whole: the same command measures anew.
    std::fs::remove_file(folder.join("begun"))?;
    Ok(Concluded::new(view, page, after.night.missed))
}
