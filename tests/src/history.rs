//! Every run's history is read when its world ends: journals, what was told while it ran, and the rows behind its results.
//!
//! Nobody has to ask for it. A world, and a cluster, look for the journals in their folders when they go; whoever watched
//! has left here what they heard, by the state folder in which it came about. A history that cannot be fails the test
//! that made it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_scheduler::{
    Fact,
    history::{self, History},
};
use graftwork_shared::{digest::Digest, event::Event};
use rusqlite::{Connection, OptionalExtension as _};

use crate::rows;

/// What was heard of each state folder, listener by listener.
static HEARD: Mutex<BTreeMap<PathBuf, Vec<Vec<Event>>>> = Mutex::new(BTreeMap::new());

/// Leaves what one listener heard of the jobs in a state folder.
pub(crate) fn heard(state: &Path, events: Vec<Event>) {
    HEARD.lock().unwrap_or_else(PoisonError::into_inner).entry(state.to_owned()).or_default().push(events);
}

/// Forgets what was heard of a state folder that is removed, or begun anew.
pub(crate) fn forget(state: &Path) {
    HEARD.lock().unwrap_or_else(PoisonError::into_inner).remove(state);
}

/// Fails the test if anything below this folder cannot be, unless it has failed already.
pub(crate) fn check_at_the_end(folder: &Path) {
    if !std::thread::panicking() {
        check(folder).expect("a sound history");
    }
}

/// The same of facts that lay in a database.
pub(crate) fn check_facts_at_the_end(facts: Result<Vec<Fact>>, state: &Path) {
    if !std::thread::panicking() {
        let check = |facts: Vec<Fact>| {
            ensure!(!facts.is_empty(), "the database holds no facts");
            check_facts(&facts, state)
        };
        facts.and_then(check).expect("a sound history");
    }
}

/// Reads one history: these facts, and what was heard of the state folder.
pub(crate) fn check_facts(facts: &[Fact], state: &Path) -> Result<()> {
    check_one(facts, state, &expected_rows(facts))
}

/// Reads the histories of all state folders below this one. Results of one recipe have the same rows in all of them,
/// those of undisturbed runs among them.
pub(crate) fn check(folder: &Path) -> Result<()> {
    for journal in journals(folder)? {
        let facts = facts(&journal).with_context(|| format!("cannot read {}", journal.display()))?;
        check_facts(&facts, journal.parent().context("a journal lies in a folder")?)?;
    }
    Ok(())
}

/// Reads one history, with what was heard of it.
fn check_one(facts: &[Fact], state: &Path, rows: &BTreeMap<Digest, Vec<Digest>>) -> Result<()> {
    let heard = HEARD.lock().unwrap_or_else(PoisonError::into_inner);
    // A run's own folder lies below the one that its command names.
    let of_state = heard.iter().filter(|(of, _)| state.starts_with(of)).flat_map(|(_, listeners)| listeners);
    let nothing = Vec::new();
    for told in of_state.chain([&nothing]) {
        // Workers report every update, but reports give way while a session is busy, are lost with a connection, and pass
        // by whoever watches too slowly: nothing that is told shows it.
        let found = history::check(&History { facts, told, rows, in_lockstep: true, every_update: false });
        ensure!(found.is_empty(), "the history in {} cannot be: {found:#?}", state.display());
    }
    Ok(())
}

/// Rows of the first result of each recipe whose rows cannot be computed, in whatever world of this process that was: each
/// world is held to the others, undisturbed ones among them.
static ROWS: Mutex<BTreeMap<Digest, Vec<Digest>>> = Mutex::new(BTreeMap::new());

/// The rows that each recipe must have been trained on: computed from the files of worlds, and of other files those of
/// the first run. Of files that were touched between two submissions nothing is said: an edit can keep a recipe.
fn expected_rows(facts: &[Fact]) -> BTreeMap<Digest, Vec<Digest>> {
    let touched = touched(facts);
    let mut expected = BTreeMap::new();
    let mut known = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut plans = BTreeMap::new();
    for fact in facts {
        match fact {
            Fact::JobSubmitted { plan, .. } | Fact::JobReopened { plan, .. } => {
                plans.insert(plan.id(), (**plan).clone());
            }
            Fact::TrialChosen { job, task, trial, .. } => {
                // That it fits is the checker's to say.
                let _ = plans.get_mut(job).map(|plan| plan.choose_trial(task, *trial));
            }
            Fact::StageTrained { job, stage, result, .. } => {
                let Some(stage) = plans.get(job).and_then(|plan| plan.stage(stage)) else { continue };
                let recipe = stage.recipe_digest;
                if touched.contains(&recipe) {
                    continue;
                }
                // Only early stopping ends before the last update; the checker holds the number to that.
                let stops_early = stage.recipe.training.early_stopping.is_some();
                let updates = if stops_early { result.steps } else { stage.total_steps };
                let first = || known.entry(recipe).or_insert_with(|| result.epochs.clone()).clone();
                expected.insert(recipe, rows::expected(stage, updates).unwrap_or_else(first));
            }
            _ => {}
        }
    }
    expected
}

/// Recipes whose files were submitted in several versions.
fn touched(facts: &[Fact]) -> BTreeSet<Digest> {
    let mut files = BTreeMap::new();
    let mut touched = BTreeSet::new();
    for fact in facts {
        if let Fact::JobSubmitted { plan, .. } | Fact::JobReopened { plan, .. } = fact {
            for stage in &plan.stages {
                let versions: Vec<&str> = stage.train.files.iter().map(|file| file.version.as_str()).collect();
                if files.insert(stage.recipe_digest, versions.clone()).is_some_and(|earlier| earlier != versions) {
                    touched.insert(stage.recipe_digest);
                }
            }
        }
    }
    touched
}

/// Journals below a folder, oldest first, so that the first run of a test gives the rows that the others are held to.
fn journals(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("cannot list {}", next.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if entry.file_name() == "journal.sqlite" {
                found.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// All facts of a journal. It is read in a copy, since its owner may have been killed and reading mends what is left.
fn facts(journal: &Path) -> Result<Vec<Fact>> {
    let copy = tempfile::tempdir()?;
    for ending in ["", "-wal"] {
        let from = PathBuf::from(format!("{}{ending}", journal.display()));
        if from.exists() {
            fs::copy(&from, copy.path().join(format!("journal.sqlite{ending}")))?;
        }
    }
    let connection = Connection::open(copy.path().join("journal.sqlite"))?;
    let snapshot = connection.query_row("SELECT number FROM snapshot", [], |row| row.get::<_, i64>(0)).optional()?;
    ensure!(snapshot.is_none(), "a snapshot took the place of the facts up to {snapshot:?}: the run was too long");
    let mut query = connection.prepare("SELECT fact FROM facts ORDER BY number")?;
    let texts = query.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    texts.iter().map(|text| Ok(serde_json::from_str(text)?)).collect()
}

/// All facts in a database.
pub(crate) fn facts_in(config: &tokio_postgres::Config) -> Result<Vec<Fact>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        let snapshots = client.query("SELECT number FROM graftwork.snapshot", &[]).await?;
        ensure!(snapshots.is_empty(), "a snapshot took the place of the first facts: the run was too long");
        let rows = client.query("SELECT fact FROM graftwork.facts ORDER BY number", &[]).await?;
        rows.iter().map(|row| Ok(serde_json::from_str(row.get(0))?)).collect()
    })
}
