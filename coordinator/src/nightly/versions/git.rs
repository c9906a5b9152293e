//! The repository of a job file: its commits, and a checkout of one of them beside the user's own.
//!
//! Git's own program does it. The user's checkout, index and branches are never touched: other commits lie in one work tree
//! of Git's in the folder of the history, which moves from commit to commit, so that building the next one is quick.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, anyhow};
use rustix::process::{Pid, Signal, kill_process_group};

use super::Built;
use crate::{cli::Failure, run::Signals};

/// What would make Git look at another repository than the folder's own: a hook or an alias sets it.
const ELSEWHERE: [&str; 4] = ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"];
/// Folder of what Graftwork's own builds have downloaded; a checkout beside the user's shares it.
const DOWNLOADS: &str = ".graftwork";
/// Characters of a commit's name where people read it.
const SHORT: usize = 10;
/// Lines of a build that failed which are told.
const LAST_LINES: usize = 5;

/// A repository, by the folder of its checkout.
#[derive(Clone, Debug)]
pub(in super::super) struct Repository {
    top: PathBuf,
}

impl Repository {
    /// The one that a file lies in.
    pub(in super::super) fn of(file: &Path) -> Result<Self, Failure> {
        let file = file.canonicalize().with_context(|| file.display().to_string())?;
        let folder = file.parent().unwrap_or(Path::new("/")).to_owned();
        let top = git(&folder, &["rev-parse", "--show-toplevel"]).map_err(|problem| {
            Failure::input(anyhow!(
                "{} is in no git repository whose commits could be looked at: {problem}",
                file.display()
            ))
        })?;
        Ok(Self { top: PathBuf::from(top) })
    }

    /// The folder of its checkout.
    pub(in super::super) fn top(&self) -> &Path {
        &self.top
    }

    /// The commit that a revision names, in full.
    pub(in super::super) fn commit(&self, revision: &str) -> Result<String, Failure> {
        let wanted = format!("{revision}^{{commit}}");
        git(&self.top, &["rev-parse", "--verify", "--quiet", "--end-of-options", &wanted])
            .map_err(|_| Failure::input(anyhow!("{revision} names no commit of the repository {}", self.top.display())))
    }

    /// Commits after one up to another, the oldest first: those of the newer one's own line, where a merge stands for all
    /// that it brought.
    pub(in super::super) fn between(&self, after: &str, until: &str) -> Result<Vec<String>, Failure> {
        let range = format!("{after}..{until}");
        let list = self.ask(&["rev-list", "--reverse", "--first-parent", &range])?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    /// All commits after one up to another, the oldest first, a line each as people read them.
    pub(in super::super) fn told(&self, after: &str, until: &str) -> Result<Vec<String>, Failure> {
        let range = format!("{after}..{until}");
        let list = self.ask(&["log", "--reverse", "--no-color", "--format=%H %s", &range])?;
        Ok(list
            .lines()
            .map(|line| format!("{}{}", &line[..SHORT.min(line.len())], line.get(40..).unwrap_or("")))
            .collect())
    }

    /// A commit as people read it.
    pub(in super::super) fn title(&self, commit: &str) -> String {
        let subject = self.ask(&["log", "-1", "--no-color", "--format=%s", commit]).unwrap_or_default();
        format!("{} {subject}", &commit[..SHORT.min(commit.len())]).trim_end().to_owned()
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, Failure> {
        git(&self.top, arguments).map_err(|problem| anyhow!("git {}: {problem}", arguments.join(" ")).into())
    }

    /// A checkout of a commit in this folder, in the place of the one that stood there.
    pub(in super::super) fn tree(&self, folder: &Path, commit: &str) -> Result<Tree, Failure> {
        let place = folder.join("tree");
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let text = place.to_string_lossy().into_owned();
        if place.join(".git").exists() {
            // What a build left stays: only what Git knows of is put back.
            let moved = git(&place, &["checkout", "--quiet", "--force", "--detach", commit]);
            moved.map_err(|problem| anyhow!("checking out {commit} in {text}: {problem}"))?;
        } else {
            self.ask(&["worktree", "prune"])?;
            self.ask(&["worktree", "add", "--quiet", "--force", "--detach", &text, commit])?;
        }
        let (ours, theirs) = (self.top.join(DOWNLOADS), place.join(DOWNLOADS));
        if ours.is_dir() && !theirs.exists() {
            std::os::unix::fs::symlink(&ours, &theirs).with_context(|| format!("linking {}", theirs.display()))?;
        }
        Ok(Tree { place, log: folder.join("build.log") })
    }
}

/// A checkout of one commit.
#[derive(Debug)]
pub(in super::super) struct Tree {
    place: PathBuf,
    log: PathBuf,
}

impl Tree {
    pub(in super::super) fn folder(&self) -> &Path {
        &self.place
    }

    /// Runs a command of the user in it; gives how that went wrong, if it did.
    pub(super) async fn run(&self, command: &str, signals: &mut Signals) -> Result<Option<Built>, Failure> {
        let log = File::create(&self.log).with_context(|| self.log.display().to_string())?;
        let mut build = tokio::process::Command::from(plain("sh"));
        build.args(["-c", command]).current_dir(&self.place).process_group(0).kill_on_drop(true);
        build.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = build.spawn().context("starting a shell for the build")?;
        let status = tokio::select! {
            status = child.wait() => status?,
            () = signals.stop() => {
                if let Some(group) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                    // It may have ended just now.
                    let _ = kill_process_group(group, Signal::TERM);
                }
                child.wait().await?;
                return Ok(Some(Built::Interrupted));
            }
        };
        if status.success() {
            return Ok(None);
        }
        let said = std::fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().rev().take(LAST_LINES).collect();
        let last: Vec<&str> = lines.into_iter().rev().collect();
        Ok(Some(Built::Not(format!("does not build (`{command}`: {status}): {}", last.join(" / ")))))
    }
}

/// A program that looks at the folder in which it runs.
fn plain(program: &str) -> Command {
    let mut command = Command::new(program);
    for variable in ELSEWHERE {
        command.env_remove(variable);
    }
    command
}

/// What Git says, without the last line break; `Err` holds its complaint.
fn git(folder: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = plain("git").arg("-C").arg(folder).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("the program git cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if complaint.is_empty() { output.status.to_string() } else { complaint })
}
