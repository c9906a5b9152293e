//! Between which commits a measurement got worse: it is repeated at commits between two nights, by halves.
//!
//! A commit is measured with what it carries: its job file and rows where the repository holds them, and its programs. What
//! it does not carry is taken as it is now. Whether a commit is as good as the good night is asked of the same verdicts.

mod search;

use std::path::Path;

use anyhow::anyhow;
use graftwork_shared::{
    id::Name,
    job::{Job, is_address, parse, resolved_place},
};
use graftwork_verdict::{Finding, judge};

use self::search::{Search, Tried};
use super::{
    Arguments, compare,
    history::{History, remove},
    known_task,
    night::Night,
    scores::{Opened, pair, seeds},
    versions::{Built, Measured, Parts, Repository, Side, Tree, Version, job_text, measure},
};
use crate::{
    cli::{DONE, Failure, INPUT, INTERRUPTED, JobFile, print},
    run::Signals,
};

pub(super) async fn bisect(
    history: &History,
    night: Night,
    task: &str,
    file: &JobFile,
    arguments: &Arguments,
) -> Result<u8, Failure> {
    let task = known_task(&night, task)?;
    let good = baseline(history, &night, arguments)?;
    let repository = Repository::of(&arguments.file)?;
    let ends = [commit_of(&repository, &good)?, commit_of(&repository, &night)?];
    let commits = repository.between(&ends[0], &ends[1])?;
    if commits.is_empty() {
        let words = format!(
            "there is no commit after {} up to {}: the code of {} is not a later one",
            repository.title(&ends[0]),
            repository.title(&ends[1]),
            night.title()
        );
        return Err(Failure::input(anyhow!(words)));
    }
    let book = history.book(&good).map_err(Failure::input)?;
    let mut work = Work {
        history,
        arguments,
        file,
        repository,
        task,
        good: Opened { night: &good, book: &book },
        signals: Signals::listen()?,
    };
    let tried = work.search(&ends[0], &commits).await;
    remove(&work.folder())?;
    let Some(search) = tried? else {
        eprintln!("stopped; the same command starts the search over");
        return Ok(INTERRUPTED);
    };
    work.tell(&search, &ends[0], &commits)
}

/// The night that counts as good: the one that is named, or that it was compared with.
fn baseline(history: &History, night: &Night, arguments: &Arguments) -> Result<Night, Failure> {
    let number = match &arguments.against {
        Some(text) => text.parse().map_err(|_| {
            Failure::input(anyhow!("--against {text}: with --bisect, write the number of a good night"))
        })?,
        None => night.judged.as_ref().and_then(|judged| judged.baseline).ok_or_else(|| {
            Failure::input(anyhow!("{} was compared with no other one: name a good one with --against", night.title()))
        })?,
    };
    history.night(number)
}

/// The commit that a night measured.
fn commit_of(repository: &Repository, night: &Night) -> Result<String, Failure> {
    repository.commit(&night.code.name).map_err(|failure| {
        let words = format!(
            "{} does not say which commit it measured ({}): name it with --code, or with GRAFTWORK_CODE, such as \
             GRAFTWORK_CODE=$(git rev-parse HEAD)",
            night.title(),
            failure.error
        );
        Failure::input(anyhow!(words))
    })
}

struct Work<'w> {
    history: &'w History,
    arguments: &'w Arguments,
    file: &'w JobFile,
    repository: Repository,
    task: Name,
    good: Opened<'w>,
    signals: Signals,
}

impl Work<'_> {
    fn folder(&self) -> std::path::PathBuf {
        self.history.versions_folder().join("measured")
    }

    /// Measures both ends and then by halves; `None` when the user stopped it.
    async fn search(&mut self, good: &str, commits: &[String]) -> Result<Option<Search>, Failure> {
        let mut search = Search::new(commits.len());
        self.take_stored(&mut search, good, commits)?;
        while let Some(at) = search.next() {
            let commit = if at == 0 { good } else { &commits[at - 1] };
            let title = self.repository.title(commit);
            eprintln!("{title}: measuring");
            let Some(tried) = self.measure_at(commit, &title).await? else { return Ok(None) };
            eprintln!("{title}: {}", tried.words());
            search.set(at, tried);
        }
        Ok(Some(search))
    }

    /// Nights in between whose code is one of the commits need no training.
    fn take_stored(&self, search: &mut Search, good: &str, commits: &[String]) -> Result<(), Failure> {
        for night in self.history.nights()? {
            let known = night.code.is_commit().then(|| self.repository.commit(&night.code.name).ok()).flatten();
            let at = known.and_then(|commit| {
                if commit == good { None } else { commits.iter().position(|other| *other == commit).map(|at| at + 1) }
            });
            // The ends are measured again, so that what no commit carries is not blamed on one.
            let Some(at) = at.filter(|at| *at < commits.len()) else { continue };
            if seeds(&night, &self.task).is_empty() {
                continue;
            }
            let book = match self.history.book(&night) {
                Ok(book) => book,
                Err(error) => {
                    let words = graftwork_shared::cause::told(error.as_ref());
                    eprintln!("{} is measured again: {words}", self.repository.title(&commits[at - 1]));
                    continue;
                }
            };
            if let Some(tried) = self.verdict(Opened { night: &night, book: &book }) {
                eprintln!("{}: {} ({})", self.repository.title(&commits[at - 1]), tried.words(), night.title());
                search.set(at, tried);
            }
        }
        Ok(())
    }

    /// Measures one commit; `None` when the user stopped it.
    async fn measure_at(&mut self, commit: &str, title: &str) -> Result<Option<Tried>, Failure> {
        let tree = self.repository.tree(&self.history.versions_folder(), commit)?;
        let version = match self.arguments.build.build(&tree, title.to_owned(), &mut self.signals).await? {
            Built::Programs(version) => version,
            Built::Not(problem) => return Ok(Some(Tried::Not(problem))),
            Built::Interrupted => return Ok(None),
        };
        let (text, job) = match self.text(&tree) {
            Ok(written) => written,
            Err(problem) => return Ok(Some(Tried::Not(problem))),
        };
        let folder = self.folder();
        remove(&folder)?;
        match self.run(&version, &text, &job).await {
            Ok(Some(measured)) => {
                if let Some(problem) = measured.night.failed.first() {
                    let words = format!("cannot be measured: {} {}", problem.name, problem.message);
                    return Ok(Some(Tried::Not(words)));
                }
                let opened = Opened { night: &measured.night, book: &measured.book };
                let none = || Tried::Not("cannot be compared: its held-out rows or classes are other ones".to_owned());
                Ok(Some(self.verdict(opened).unwrap_or_else(none)))
            }
            Ok(None) => Ok(None),
            Err(failure) => Ok(Some(Tried::Not(format!("cannot be measured: {}", failure.error)))),
        }
    }

    async fn run(&mut self, version: &Version, text: &str, job: &Job) -> Result<Option<Measured>, Failure> {
        let folder = self.folder();
        let side = Side { version, text, job, folder: &folder, processes: &self.arguments.processes };
        measure(side, &mut self.signals).await
    }

    /// The job file of a commit for this one task or fusion, and what it resolves to; `Err` says why there is none.
    fn text(&self, tree: &Tree) -> Result<(String, Job), String> {
        let told = |error: anyhow::Error| graftwork_shared::cause::told(error.as_ref());
        let file = self.arguments.file.canonicalize().map_err(|error| error.to_string())?;
        let here = file.parent().unwrap_or(Path::new("/")).to_owned();
        let inside = file.strip_prefix(self.repository.top()).map_err(|error| error.to_string())?;
        let carried = tree.folder().join(inside);
        // A job file that the repository does not hold is the user's own, at every commit.
        let text = std::fs::read_to_string(&carried).unwrap_or_else(|_| self.file.text.clone());
        let there = carried.parent().unwrap_or(Path::new("/")).to_owned();
        let place = |text: &str| {
            let (carried, ours) = (resolved_place(&there, text), resolved_place(&here, text));
            if is_address(text) || Path::new(before_wildcards(&carried)).exists() { carried } else { ours }
        };
        let job = parse(&text, &there).job.ok_or("has a job file with errors")?;
        let stored: Vec<u64> = seeds(self.good.night, &self.task).iter().map(|measured| measured.seed).collect();
        let hub = self.folder().join("hub").display().to_string();
        let parts = Parts { seeds: &stored, only: std::slice::from_ref(&self.task), hub: &hub };
        let text = job_text(&text, &job, parts, &place).map_err(|failure| told(failure.error))?;
        Ok((text, self.good.night.job.clone()))
    }

    /// Whether it is as good as the good night; `None` where they cannot be compared.
    fn verdict(&self, measured: Opened<'_>) -> Option<Tried> {
        let nights = self.history.known().unwrap_or_default();
        let (pairs, _) = pair(self.good, measured, &nights);
        let comparisons: Vec<_> =
            pairs.iter().filter(|pair| pair.task == self.task).map(|pair| pair.comparison.clone()).collect();
        let verdicts = judge(&comparisons, &compare::settings(&self.file.job.nightly));
        let first = verdicts.first()?;
        let score = format!("{} {:.4} → {:.4}", first.name, first.means[0], first.means[1]);
        let worse = verdicts.iter().any(|verdict| verdict.finding == Finding::Regressed);
        Some(if worse { Tried::Worse(score) } else { Tried::Good(score) })
    }

    /// Says between which commits it got worse.
    fn tell(&self, search: &Search, good: &str, commits: &[String]) -> Result<u8, Failure> {
        let commit = |at: usize| if at == 0 { good } else { commits[at - 1].as_str() };
        let Some((last_good, first_bad)) = search.found() else {
            let last = commits.len();
            let words = match (search.at(0), search.at(last)) {
                (_, Some(Tried::Good(score))) => format!(
                    "{} is not worse now ({score}): what made {} worse is nothing that commits carry",
                    self.repository.title(commit(last)),
                    self.task
                ),
                (Some(Tried::Worse(score)), _) => format!(
                    "{} is as bad now ({score}): what made {} worse is nothing that commits carry, but data, machine or \
                     libraries outside of the repository",
                    self.repository.title(commit(0)),
                    self.task
                ),
                (Some(Tried::Not(problem)), _) => format!("{} {problem}", self.repository.title(commit(0))),
                (_, Some(Tried::Not(problem))) => format!("{} {problem}", self.repository.title(commit(last))),
                _ => "no commit was measured".to_owned(),
            };
            print(&format!("{words}\n"));
            return Ok(INPUT);
        };
        let between = self.repository.told(commit(last_good), commit(first_bad))?;
        let mut text = format!(
            "{} got worse after {}, with {}:\n",
            self.task,
            self.repository.title(commit(last_good)),
            if between.len() == 1 {
                "this commit".to_owned()
            } else {
                format!("one of these {} commits", between.len())
            },
        );
        between.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        for (at, problem) in search.not_tried() {
            text.push_str(&format!("not measured: {} {problem}\n", self.repository.title(commit(at))));
        }
        print(&text);
        Ok(DONE)
    }
}

/// A path up to the first part that holds a wildcard.
fn before_wildcards(path: &str) -> &str {
    match path.find(['*', '?', '[']) {
        Some(at) => path[..at].rfind('/').map_or("", |slash| &path[..slash]),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_a_wildcard_is_a_folder() {
        for (path, before) in [("/a/b/c.parquet", "/a/b/c.parquet"), ("/a/b/*.parquet", "/a/b"), ("/a/x[0-9]/c", "/a")]
        {
            assert_eq!(before_wildcards(path), before);
        }
    }
}
