//! The store of every released version, opened by the programs of now: its jobs and nights are told, what was begun goes on,
//! and new jobs are taken.
//!
//! A store is a backup in `tests/fixtures/stores/VERSION`, with `store.json` beside, which says what is in it: one job that
//! had ended, and one that was killed behind a snapshot of the journal. A history of one night lies in it too, but in the
//! three oldest. `GRAFTWORK_WRITE_STORE=1` writes that of this version; how that belongs to a release stands
//! in `tests/fixtures/stores/README.md`. The store of this version has facts and numerics of this version, so whoever gives
//! one of them another leaves a store of the old ones behind.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_scheduler::FACT_VERSION;
use graftwork_shared::{NUMERICS_VERSION, VERSION, event::EventKind};
use graftwork_tests::{Run, Servers, World};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    moved::Place,
    process::{Process, ask, coordinator, graftwork, socket, until, worker},
    root,
};

/// Jobs name the hub by its whole path, so it is the same one whenever a store is opened.
const PLACE: &str = "/tmp/graftwork-stores";

/// The job of the nights, by which their history is named.
const NIGHT: &str = "night";

/// What is in a store.
#[derive(Debug, Serialize, Deserialize)]
struct Store {
    version: String,
    /// The version of the facts in its journal.
    facts: u32,
    /// The numerics version of its checkpoints; 0 where it was not written down.
    #[serde(default)]
    numerics: u32,
    /// A job that had ended, by its id.
    whole: String,
    /// One that had not.
    begun: String,
    /// From which step it goes on at the earliest.
    step: u64,
}

fn stores() -> PathBuf {
    root().join("tests/fixtures/stores")
}

/// An empty hub at its place; nobody else uses it as long as the file is kept.
fn hub() -> Result<(File, PathBuf)> {
    fs::create_dir_all(PLACE)?;
    let lock = File::create(Path::new(PLACE).join("lock"))?;
    lock.lock()?;
    let hub = Path::new(PLACE).join("hub");
    if hub.exists() {
        fs::remove_dir_all(&hub)?;
    }
    Ok((lock, hub))
}

fn led(folder: &Path) -> Result<Process> {
    let leader = Process::start(&mut coordinator(folder, &[]))?;
    leader.wait_for("listens on")?;
    Ok(leader)
}

/// Writes a job of one task that writes a checkpoint, a fact each, with every update; `more` is put at its end.
fn write_job(world: &World, name: &str, hub: &Path, epochs: u32, more: &str) -> Result<()> {
    let text = format!(
        "name = \"{name}\"\n[base_model]\nlocation = \"base\"\n[publish]\nhub = \"{}\"\norganisation = \"tests\"\n\
         [defaults.training]\nepochs = {epochs}\nbatch_size = 8\nlanes = 2\nlearning_rate = 1e-3\nmax_length = 32\n\
         checkpoint_every = 1\nevaluate_every = 400\n[defaults.adapter]\nmethod = \"seq_bn\"\nreduction_factor = 8\n\
         [tasks.topic]\ntrain = \"data/topic/train.parquet\"\nvalidation = \"data/topic/validation.parquet\"\n\
         text = \"text\"\nlabel = \"label\"\nhead = \"classification\"\n{more}",
        hub.display()
    );
    Ok(fs::write(world.path().join(format!("{name}.toml")), text)?)
}

/// The job whose nights a store has.
fn write_night(world: &World, hub: &Path) -> Result<()> {
    write_job(world, NIGHT, hub, 1, "test = \"data/topic/test.parquet\"\n[nightly]\nseeds = [1]\n")
}

/// Writes the store of this version, if it is not there.
pub(crate) fn the_store_of_this_version_is_written() -> Result<()> {
    let place = stores().join(VERSION);
    ensure!(!place.exists(), "{} is there already: a store that was released stays as it is", place.display());
    let (_lock, hub) = hub()?;
    let (world, folder) = (World::new()?, tempfile::tempdir()?);
    let folder = folder.path();
    let mut leader = led(folder)?;
    let mut working = Process::start(&mut worker(folder, &[]))?;
    world.job("whole.toml", &hub.display().to_string(), "")?;
    let whole = ask(&world, folder, &["submit", "whole.toml"], &[])?;
    Run::watch(&socket(folder), &whole)?.finish(0)?;
    write_job(&world, "begun", &hub, 120, "")?;
    let begun = ask(&world, folder, &["submit", "begun.toml"], &[])?;
    let step = 1_100;
    Run::watch(&socket(folder), &begun)?.wait_for_checkpoint("topic", step)?;
    working.kill();
    leader.kill();
    write_night(&world, &hub)?;
    let history = history(&folder.join("state")).display().to_string();
    let trained = ["nightly", "night.toml", "--history", &history, "--threads", "2", "--progress", "none"];
    graftwork(world.path(), &trained, 0)?;
    graftwork(folder, &["backup", "--state", "state", "--to", "store"], 0)?;
    let journal = folder.join("store/journal.sqlite");
    let (snapshots, behind) = rows(&journal)?;
    ensure!(snapshots == 1 && behind > 0, "a store needs a snapshot and facts behind it: {snapshots} and {behind}");
    let facts = latest(&journal)?;
    let store = Store { version: VERSION.to_owned(), facts, numerics: NUMERICS_VERSION, whole, begun, step };
    fs::write(folder.join("store/store.json"), serde_json::to_string_pretty(&store)? + "\n")?;
    copy(&folder.join("store"), &place)
}

fn rows(journal: &Path) -> Result<(i64, i64)> {
    let connection = rusqlite::Connection::open(journal)?;
    let count = |table: &str| connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0));
    Ok((count("snapshot")?, count("facts")?))
}

/// The version of what was written last into a journal.
fn latest(journal: &Path) -> Result<u32> {
    let connection = rusqlite::Connection::open(journal)?;
    let latest = "SELECT version FROM facts ORDER BY number DESC LIMIT 1";
    Ok(connection.query_row(latest, [], |row| row.get(0))?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Where a state folder, or a backup, has the nights.
fn history(state: &Path) -> PathBuf {
    state.join("nightly").join(NIGHT)
}

/// All stores by their names: their folders, and what is in them.
fn released() -> Result<BTreeMap<String, (PathBuf, Store)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(stores())? {
        let entry = entry?;
        let path = entry.path();
        if path.is_dir() {
            let text = fs::read_to_string(path.join("store.json"))?;
            let store: Store =
                serde_json::from_str(&text).with_context(|| format!("{}: store.json", path.display()))?;
            found.insert(entry.file_name().to_string_lossy().into_owned(), (path, store));
        }
    }
    Ok(found)
}

pub(crate) fn every_released_store_opens() -> Result<()> {
    let found = released()?;
    let versions = found.get(VERSION).map(|(_, store)| (store.facts, store.numerics));
    ensure!(
        versions == Some((FACT_VERSION, NUMERICS_VERSION)),
        "the store of version {VERSION} with facts of version {FACT_VERSION} and numerics of version {NUMERICS_VERSION} is \
         missing among {:?} ({versions:?} is there): tests/fixtures/stores/README.md says how it is written",
        found.keys()
    );
    let path = stores().join(VERSION);
    ensure!(history(&path).is_dir(), "no night lies in {}, which is of this version", path.display());
    let older = found.values().filter(|(_, store)| store.facts < FACT_VERSION).count();
    ensure!(older > 0, "no store is older than facts of version {FACT_VERSION}: {:?}", found.keys());
    let (_lock, hub) = hub()?;
    for (name, (path, store)) in found {
        println!("{name}");
        opens(&path, &store, &hub).with_context(|| format!("the store {name}"))?;
        fs::remove_dir_all(&hub)?;
    }
    Ok(())
}

fn opens(path: &Path, store: &Store, hub: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    // As it is left to a later version by an upgrade, and as a backup.
    copy(path, &folder.join("state"))?;
    let facts = latest(&folder.join("state/journal.sqlite"))?;
    ensure!(facts == store.facts, "its facts have version {facts}, and store.json says {}", store.facts);
    graftwork(folder, &["restore", &path.display().to_string(), "--state", "restored"], 0)?;
    let world = World::new()?;
    if history(path).exists() {
        for state in ["state", "restored"] {
            let history = history(&folder.join(state)).display().to_string();
            let look = |words: &[&str]| {
                let nightly = ["nightly", "night.toml", "--history", &history];
                graftwork(world.path(), &[&nightly[..], words].concat(), 0)
            };
            tells_its_night(&world, hub, look).with_context(|| format!("the nights in {state}"))?;
        }
    }
    let _leader = led(folder)?;
    tells_its_jobs(&world, folder, store)?;
    let told = |words: &[&str]| ask(&world, folder, words, &[]);
    for words in [&["report"][..], &["status"], &["explain"]] {
        let said = told(&[words, &[store.whole.as_str()]].concat())?;
        ensure!(said.contains("mood_fused") && said.contains("strength"), "{words:?}: {said}");
    }
    let page = folder.join("page.html");
    told(&["report", &store.whole, "--html", &page.display().to_string()])?;
    ensure!(fs::read_to_string(page)?.contains("mood_fused"), "the page of the job that had ended");
    // The lease of the worker that was killed must end before a stage on a worker can be one on ours.
    let freed =
        until(Duration::from_mins(1), || (begun(&world, folder, store).ok()?["state"] == "ready").then_some(()));
    freed.with_context(|| format!("nobody took it back: {:?}", begun(&world, folder, store)))?;
    let _worker = Process::start(&mut worker(folder, &[]))?;
    goes_on(&world, folder, store, hub)?;
    // Another job than the one that had ended.
    let path = world.job("new.toml", &hub.display().to_string(), "")?;
    fs::write(&path, fs::read_to_string(&path)?.replace("epochs = 2\n", "epochs = 1\n"))?;
    let new = told(&["submit", "new.toml"])?;
    Run::watch(&socket(folder), &new)?.finish(0).map(drop)
}

fn tells_its_jobs(world: &World, folder: &Path, store: &Store) -> Result<()> {
    let jobs: Vec<Value> = serde_json::from_str(&ask(world, folder, &["status", "--output", "json"], &[])?)?;
    let outcomes: BTreeMap<&str, &Value> =
        jobs.iter().filter_map(|job| Some((job["id"].as_str()?, &job["outcome"]))).collect();
    ensure!(outcomes.len() == 2, "jobs: {outcomes:?}");
    ensure!(outcomes[store.whole.as_str()] == "succeeded", "the job that had ended: {outcomes:?}");
    ensure!(outcomes[store.begun.as_str()].is_null(), "the job that had not: {outcomes:?}");
    Ok(())
}

/// The only night of a history is compared once more and exported; `look` runs `graftwork nightly` over it.
fn tells_its_night(world: &World, hub: &Path, look: impl Fn(&[&str]) -> Result<String>) -> Result<()> {
    write_night(world, hub)?;
    let said = look(&["--compare", "1"])?;
    ensure!(said.contains("night, night 1: the first one") && said.contains("topic accuracy"), "{said}");
    let said = look(&["--export", "exported"])?;
    ensure!(said.contains("1 nights in exported") && !said.contains("without its"), "{said}");
    let nights: Value = serde_json::from_slice(&fs::read(world.path().join("exported/history.json"))?)?;
    let measured = &nights[0]["measurements"][0];
    ensure!(measured["task"] == "topic" && measured["seed"] == 1, "{nights}");
    Ok(())
}

/// Every store is restored into a database and an object store; a coordinator leads it there, and tells what is in it.
pub(crate) fn every_released_store_moves_to_servers() -> Result<()> {
    let servers = Servers::find()?;
    for (name, (path, store)) in released()? {
        let place = Place::make(&servers, &format!("store_{}_{}", name.replace(['.', '-'], "_"), std::process::id()))?;
        moves_to_servers(&path, &store, &place).with_context(|| format!("the store {name}"))?;
    }
    Ok(())
}

fn moves_to_servers(path: &Path, store: &Store, place: &Place<'_>) -> Result<()> {
    let (world, folder) = (World::new()?, tempfile::tempdir()?);
    let folder = folder.path();
    place.run(folder, &["restore", &path.display().to_string()], 0)?;
    let listen = socket(folder);
    let mut leads = place.command(folder, &["coordinator", "--listen", &listen, "--folder", "own"]);
    let leader = Process::start(&mut leads)?;
    leader.wait_for("listens on")?;
    tells_its_jobs(&world, folder, store)?;
    if history(path).exists() {
        let look = |words: &[&str]| place.run(world.path(), &[&["nightly", "night.toml"][..], words].concat(), 0);
        tells_its_night(&world, Path::new("hub"), look)?;
    }
    Ok(())
}

/// How the stage stands that had not ended.
fn begun(world: &World, folder: &Path, store: &Store) -> Result<Value> {
    let told = ask(world, folder, &["explain", &store.begun, "--output", "json"], &[])?;
    Ok(serde_json::from_str::<Value>(&told)?["stages"][0]["data"].clone())
}

/// What was begun goes on from its checkpoint, or says why it may not: other numerics, or a machine of another class, would
/// give other bytes.
fn goes_on(world: &World, folder: &Path, store: &Store, hub: &Path) -> Result<()> {
    let stage = || begun(world, folder, store);
    let decided = until(Duration::from_secs(30), || {
        let data = stage().ok()?;
        let waits = data["state"] == "ready";
        let lasts = matches!(data["refusal"]["refusal"].as_str(), Some("numerics_version" | "numeric_class"));
        (!waits || lasts).then_some(data)
    });
    let data = decided.with_context(|| format!("it neither runs nor says why: {:?}", stage()))?;
    if data["state"] == "ready" {
        let other_numerics = data["refusal"]["refusal"] == "numerics_version";
        ensure!(!other_numerics || store.numerics != NUMERICS_VERSION, "it has our numerics: {}", data["refusal"]);
        println!("what was begun waits for its own kind of worker: {}", data["refusal"]);
        return Ok(());
    }
    let mut watch = Run::watch(&socket(folder), &store.begun)?;
    let event = watch.wait_for("the stage", |event| matches!(event.kind, EventKind::StageStarted { .. }))?;
    match event.kind {
        EventKind::StageStarted { from_step, .. } if from_step >= store.step => {}
        other => bail!("it did not go on from step {}: {other:?}", store.step),
    }
    watch.finish(0)?;
    ensure!(hub.join("tests/topic").exists(), "it published nothing");
    Ok(())
}
