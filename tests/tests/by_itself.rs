//! A coordinator runs nights by itself when the cron line of their job file is due: the second one is interrupted by a
//! kill -9 and goes on with the next start, and a polite kill ends it all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_tests::{Cluster, Pair, World, program, servers_run};
use serde_json::Value;

/// How long a night of this test may take on a machine that others use too.
const PATIENCE: Duration = Duration::from_mins(4);

fn write_job(world: &World, cron: &str, epochs: u32) -> Result<PathBuf> {
    let text = format!(
        "name = \"By itself\"\n[base_model]\nlocation = \"base\"\n[publish]\norganisation = \"tests\"\n\
         [defaults.training]\nepochs = {epochs}\nbatch_size = 8\nlanes = 2\nlearning_rate = 5e-3\nmax_length = 32\n\
         checkpoint_every = 4\n[defaults.adapter]\nmethod = \"seq_bn\"\nreduction_factor = 4\n\
         [tasks.topic]\ntrain = \"data/topic/train.parquet\"\nvalidation = \"data/topic/validation.parquet\"\n\
         test = \"data/topic/test.parquet\"\n[nightly]\nseeds = [1, 2]\ncron = \"{cron}\"\n"
    );
    let path = world.path().join("nightly.toml");
    // At once whole: a coordinator may be reading it.
    fs::write(path.with_extension("new"), text)?;
    fs::rename(path.with_extension("new"), &path)?;
    Ok(path)
}

/// The tests of one coordinator look into the folder of the histories, which beside a database is to be named for that.
fn nightly(job: &str) -> Vec<&str> {
    let history: &[&str] = if servers_run() { &["--nightly-history", "state/nightly"] } else { &[] };
    [&["--nightly", job], history].concat()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if holds() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("{what} did not come within {PATIENCE:?}")
}

fn json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

/// Jobs that the coordinator knows, as `status` lists them.
fn jobs(cluster: &Cluster) -> Option<Vec<Value>> {
    jobs_at(&cluster.address())
}

fn jobs_at(addresses: &str) -> Option<Vec<Value>> {
    let words = ["status", "--output", "json", "--coordinator", addresses];
    let listed = Command::new(program()).args(words).output().ok()?;
    serde_json::from_slice(&listed.stdout).ok()
}

#[test]
fn a_coordinator_runs_nights_when_they_are_due_and_goes_on_with_one_that_was_interrupted() -> Result<()> {
    let world = World::new()?;
    // Due each second; a night takes longer, so the next one follows at once.
    let job = write_job(&world, "* * * * * *", 6)?.display().to_string();
    let mut cluster = Cluster::with_options(&nightly(&job))?;
    cluster.start_worker()?;
    // In the state folder: a service may write nowhere else.
    let history = cluster.path().join("state/nightly/by-itself");
    let night = |number: u32, file: &str| history.join(format!("nights/{number:06}/{file}"));
    wait_until("the first night", || night(1, "nightly.html").exists())?;

    // The second one is under way when the coordinator is killed, and no further one is due from then on.
    let tonight = history.join("tonight/night.json");
    let second = || json(&tonight).is_ok_and(|tonight| tonight["number"] == 2);
    wait_until("the second night", second)?;
    let trains = || {
        let listed = Command::new(program()).args(["status", "--coordinator", &cluster.address()]).output();
        listed.is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains("By itself"))
    };
    wait_until("its job", trains)?;
    cluster.kill_coordinator();
    ensure!(second() && !night(2, "night.json").exists(), "the second night was interrupted");
    write_job(&world, "0 0 1 1 *", 6)?;
    cluster.start_coordinator()?;
    // Its verdict is written behind its page.
    let ended = || json(&night(2, "night.json")).is_ok_and(|night| !night["judged"].is_null());
    wait_until("the end of the second night", ended)?;

    let (first, second) = (json(&night(1, "night.json"))?, json(&night(2, "night.json"))?);
    ensure!(first["resumed"] == 0 && second["resumed"] == 1, "{} {}", first["resumed"], second["resumed"]);
    ensure!(first["shared"] == true && second["shared"] == true, "their workers serve other jobs too");
    let costs = json(&night(1, "nightly.json"))?["costs"].to_string();
    ensure!(costs.contains("the night: core-seconds") && !costs.contains("the night: wall seconds"), "{costs}");
    let recovery = &second["recoveries"][0];
    ensure!(recovery["lost"] == "coordinator" && recovery["seconds"].as_f64().is_some(), "{}", second["recoveries"]);
    ensure!(second["began_ms"].as_u64() >= first["ended_ms"].as_u64(), "one night at a time");
    ensure!(second["judged"]["good"] == true && second["judged"]["baseline"] == 1, "{}", second["judged"]);
    let said = json(&night(2, "nightly.json"))?;
    let same = said["scores"].as_array().context("scores")?;
    ensure!(!same.is_empty() && same.iter().all(|row| row["verdict"]["finding"] == "same"), "{said}");
    // Its job is forgotten, its training gone, and nothing else is due.
    wait_until("an empty list of jobs", || jobs(&cluster).is_some_and(|jobs| jobs.is_empty()))?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!history.join("tonight").exists() && !night(3, "night.json").exists(), "no third night began");
    // The history is the same that the command looks at.
    let words = ["nightly", &job, "--history", &history.display().to_string(), "--compare", "2"];
    let looked = Command::new(program()).current_dir(world.path()).args(words).output()?;
    let stdout = String::from_utf8_lossy(&looked.stdout);
    ensure!(looked.status.code() == Some(0) && stdout.contains("night 2 against night 1: no regression"), "{stdout}");

    let ended = cluster.stop_coordinator()?;
    ensure!(ended.code() == Some(0), "SIGTERM ends it cleanly: {ended}");
    Ok(())
}

#[test]
fn a_night_of_another_job_or_other_rows_or_with_a_damaged_file_starts_over_and_its_first_job_is_forgotten() -> Result<()>
{
    let world = World::new()?;
    let job = write_job(&world, "* * * * * *", 6)?.display().to_string();
    // Without a worker a night stays under way.
    let mut cluster = Cluster::with_options(&nightly(&job))?;
    let history = cluster.path().join("state/nightly/by-itself");
    let tonight = history.join("tonight/night.json");
    let submitted = || Some(json(&tonight).ok()?["submitted"].as_str()?.to_owned());
    let only = |cluster: &Cluster, job: &Option<String>| {
        jobs(cluster).is_some_and(|jobs| jobs.len() == 1 && jobs[0]["id"].as_str() == job.as_deref())
    };
    let mut begun = Vec::new();
    for change in ["nothing yet", "the job", "the rows", "its file and the job"] {
        match change {
            "the job" => drop(write_job(&world, "0 0 1 1 *", 5)?),
            "the rows" => world.write_split("topic", "train", 0..240, true)?,
            // Nobody can read any more which job trained it.
            "its file and the job" => {
                fs::write(&tonight, b"{\"number\": 1,")?;
                write_job(&world, "0 0 1 1 *", 4)?;
            }
            _ => {}
        }
        if !begun.is_empty() {
            cluster.start_coordinator()?;
        }
        wait_until("another job of the first night", || submitted().is_some_and(|job| !begun.contains(&Some(job))))?;
        let now = submitted();
        wait_until("that job alone at the coordinator", || only(&cluster, &now))?;
        begun.push(now);
        cluster.kill_coordinator();
    }
    cluster.start_coordinator()?;
    cluster.start_worker()?;
    let night = history.join("nights/000001");
    wait_until("the first night", || night.join("nightly.html").exists())?;
    let first = json(&night.join("night.json"))?;
    // It went on once, with the last of its jobs, and measured what is there now.
    ensure!(first["resumed"] == 1 && first["measurements"].as_array().is_some_and(|all| all.len() == 2), "{first}");
    ensure!(first["job"]["tasks"][0]["training"]["length"]["epochs"] == 4, "{}", first["job"]["tasks"][0]);
    wait_until("an empty list of jobs", || jobs(&cluster).is_some_and(|jobs| jobs.is_empty()))?;
    let left = fs::read_dir(history.join("abandoned"))?.count();
    ensure!(left == 0 && !history.join("tonight").exists(), "{left} jobs are still to be forgotten");
    Ok(())
}

#[test]
fn a_job_without_a_cron_line_is_refused_at_the_start() -> Result<()> {
    let world = World::new()?;
    let job = world.job("job.toml", "hub", "")?;
    let words = ["coordinator", "--nightly", &job.display().to_string()];
    let refused = Command::new(program()).current_dir(world.path()).args(words).output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        refused.status.code() == Some(1) && said.contains("add `cron = \"0 2 * * *\"` to its table [nightly]"),
        "{said}"
    );
    Ok(())
}

#[test]
fn nights_in_a_database_go_on_with_whoever_takes_over_on_another_host() -> Result<()> {
    if !servers_run() {
        eprintln!("skipped: this needs PostgreSQL and an object store (make test-servers)");
        return Ok(());
    }
    let world = World::new()?;
    let job = write_job(&world, "* * * * * *", 20)?.display().to_string();
    let mut pair = Pair::with_options(&["--nightly", &job])?;
    // One stage after the other, so that one is published while the other still trains.
    pair.start_worker_of(1)?;
    let history = |host: &str| pair_history(pair.path(), host);
    let night = |host: &str, number: u32, file: &str| history(host).join(format!("nights/{number:06}/{file}"));
    wait_until("the first night", || night("a", 1, "nightly.html").exists())?;
    // One of the second night's stages is published where only the first host sees it.
    let tonight = history("a").join("tonight");
    wait_until("a release of the second night", || {
        json(&tonight.join("night.json")).is_ok_and(|tonight| tonight["number"] == 2)
            && fs::read_dir(tonight.join("hub")).into_iter().flatten().flatten().any(|hub| {
                fs::read_dir(hub.path().join(".releases")).is_ok_and(|mut releases| releases.next().is_some())
            })
    })?;
    ensure!(!night("a", 2, "night.json").exists(), "the second night was interrupted");
    let (path, addresses) = (pair.path().to_owned(), pair.addresses());
    pair.coordinator(0).signal("-9")?;
    fs::rename(path.join("a"), path.join("gone"))?;
    write_job(&world, "0 0 1 1 *", 20)?;

    let night = |number: u32, file: &str| pair_history(&path, "b").join(format!("nights/{number:06}/{file}"));
    let ended = || json(&night(2, "night.json")).is_ok_and(|night| !night["judged"].is_null());
    wait_until("the end of the second night", ended)?;
    let (first, second) = (json(&night(1, "night.json"))?, json(&night(2, "night.json"))?);
    ensure!(first["resumed"] == 0 && second["resumed"] == 1, "{} {}", first["resumed"], second["resumed"]);
    ensure!(second["judged"]["good"] == true && second["judged"]["baseline"] == 1, "{}", second["judged"]);
    ensure!(second["measurements"].as_array().is_some_and(|all| all.len() == 2), "{second}");
    let said = json(&night(2, "nightly.json"))?;
    let same = said["scores"].as_array().context("scores")?;
    ensure!(!same.is_empty() && same.iter().all(|row| row["verdict"]["finding"] == "same"), "{said}");
    wait_until("an empty list of jobs", || jobs_at(&addresses).is_some_and(|jobs| jobs.is_empty()))?;

    // Whoever has neither folder looks at the state.
    let look = |words: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = Command::new(program());
        command.current_dir(world.path()).args(["nightly", &job]).args(words);
        let looked = pair.name(&mut command).output()?;
        let said = [looked.stdout, looked.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        Ok((looked.status.code(), said))
    };
    let (code, said) = look(&["--compare", "2"])?;
    ensure!(code == Some(0) && said.contains("night 2 against night 1: no regression"), "{said}");
    let (code, said) = look(&["--export", "exported"])?;
    ensure!(code == Some(0) && said.contains("2 nights in exported"), "{said}");
    let exported = json(&world.path().join("exported/history.json"))?;
    ensure!(exported[1]["answers"] == second["answers"], "{exported}");
    let (code, said) = look(&[])?;
    ensure!(
        code == Some(1) && said.contains("is a copy of a history that coordinators keep with their state"),
        "{said}"
    );

    // Brought back to a folder, it is what nights in a folder are.
    let mut backup = Command::new(program());
    let output = pair.name(backup.current_dir(&path).args(["backup", "--to", "aside"])).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("2 nights"), "{said}");
    let mut restore = Command::new(program());
    let output = restore.current_dir(&path).args(["restore", "aside", "--state", "folder"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = |history: &Path| fs::read(history.join("nights/000002/answers.parquet"));
    ensure!(answers(&path.join("folder/nightly/by-itself"))? == answers(&pair_history(&path, "b"))?, "its answers");
    Ok(())
}

/// The copy of the history that the coordinator of this folder works on.
fn pair_history(path: &Path, host: &str) -> PathBuf {
    path.join(host).join("histories/by-itself")
}
