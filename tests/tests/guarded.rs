//! Training over TLS with a token for each part, by the commands that a user types; and who is sent away.

use std::{
    fs,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{Cluster, Guarded, Run, Story, World, tensor_digests};

/// A job of the user that publishes into the cluster's folder.
fn job(world: &World, cluster: &Guarded) -> Result<()> {
    world.job("job.toml", &cluster.path().join("hub").display().to_string(), "").map(drop)
}

#[test]
fn a_job_trains_over_tls_with_a_token_for_each_part() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Guarded::new("debug")?);
    job(&world, &cluster)?;
    let (id, said) = cluster.ask(&world, "ann", &["submit", "job.toml"], 0)?;
    ensure!(said.contains("uploaded 13 files"), "{said}");
    the_log_says_what_explain_says(&world, &cluster, &id)?;
    cluster.start_worker("worker")?;
    cluster.ask(&world, "reader", &["watch", &id], 0)?;
    let (status, _) = cluster.ask(&world, "reader", &["status", "--output", "json"], 0)?;
    ensure!(status.contains("\"owner\": \"ann\""), "{status}");
    ensure!(fs::read_dir(cluster.path().join("hub/tests"))?.count() >= 4, "three adapters and a fusion are published");

    let (_, said) = cluster.ask(&world, "bob", &["cancel", &id], 1)?;
    ensure!(said.contains("the job is \"ann\"'s, and token \"bob\" of the role submit"), "{said}");
    let (_, said) = cluster.ask(&world, "reader", &["submit", "job.toml"], 1)?;
    ensure!(
        said.contains("token \"reader\" has the role read, but asking what is uploaded needs submit or admin"),
        "{said}"
    );
    nothing_secret(&cluster, &[&said])
}

/// Why the stages of a job wait: the log has the sentences of `explain`.
fn the_log_says_what_explain_says(world: &World, cluster: &Guarded, job: &str) -> Result<()> {
    let (explained, _) = cluster.ask(world, "reader", &["explain", job, "--output", "json"], 0)?;
    let explained: serde_json::Value = serde_json::from_str(&explained)?;
    let stages = explained["stages"].as_array().context("stages")?;
    let ready = stages.iter().filter(|stage| stage["data"]["state"] == "ready");
    let ready: Vec<_> =
        ready.filter_map(|stage| Some((stage["stage"].as_str()?, stage["sentence"].as_str()?))).collect();
    ensure!(!ready.is_empty(), "{explained}");
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let logs = cluster.logs()?;
        let told = |(stage, sentence): &(&str, &str)| {
            logs.lines().any(|line| {
                line.contains("stage explained") && line.contains(&format!("stage={stage}")) && line.contains(sentence)
            })
        };
        if ready.iter().all(told) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{ready:?} is not in the log: {logs}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn whoever_is_not_let_in_learns_why_and_ends_at_once() -> Result<()> {
    let (world, cluster, stranger) = (World::new()?, Guarded::new("trace")?, Guarded::new("warn")?);
    job(&world, &cluster)?;
    let strange_ca = stranger.path().join("tls/ca.pem");
    let began = Instant::now();
    let mut said = Vec::new();
    for (change, words) in [
        (("GRAFTWORK_TOKEN", "graftwork-join-of-nobody"), "the token is none of this coordinator's"),
        (("GRAFTWORK_TOKEN", ""), "this coordinator wants a token"),
        (("GRAFTWORK_CA", strange_ca.to_str().unwrap_or_default()), "of a CA that is not trusted here"),
    ] {
        for mut command in [cluster.worker("worker")?, cluster.with("ann")?] {
            if command.get_args().next().is_none() {
                command.current_dir(world.path()).args(["submit", "job.toml", "--coordinator", cluster.address()]);
            }
            let Output { status, stderr, .. } =
                command.env(change.0, change.1).env("GRAFTWORK_LOG", "trace").output()?;
            let text = String::from_utf8(stderr)?;
            ensure!(status.code() == Some(1) && text.contains(words), "{words}: {status}: {text}");
            said.push(text);
        }
    }
    let Output { status, stderr, .. } = cluster.worker("reader")?.env("GRAFTWORK_LOG", "trace").output()?;
    let text = String::from_utf8(stderr)?;
    ensure!(status.code() == Some(1), "{status}: {text}");
    ensure!(text.contains("token \"reader\" has the role read, but working needs join"), "{text}");
    said.push(text);
    ensure!(began.elapsed().as_secs() < 30, "nobody waits for what does not change: {:?}", began.elapsed());
    nothing_secret(&cluster, &said.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Watches a job to its end as a reader, who sees all of it.
fn watched(cluster: &Guarded, job: &str, mut at: impl FnMut() -> Result<()>) -> Result<Story> {
    let mut command = cluster.with("reader")?;
    command.args(["watch", job, "--progress", "json", "--coordinator", cluster.address()]);
    let (mut watch, mut story) = (Run::watching(command, cluster.path().join("state"))?, Story::default());
    while let Some(event) = watch.next_event()? {
        story.note(&event)?;
        at()?;
    }
    watch.finish(0)?;
    Ok(story)
}

#[test]
fn members_that_exchange_over_tls_publish_the_same_bytes() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Guarded::new("info")?);
    let alone = Cluster::undisturbed(&world)?;
    let hub = cluster.path().join("hub");
    world.long_job("job.toml", &hub.display().to_string(), "[resources]\ngang = 2\n")?;
    let (id, _) = cluster.ask(&world, "ann", &["submit", "job.toml"], 0)?;
    for _ in 0..2 {
        cluster.start_worker("worker")?;
    }
    let story = watched(&cluster, &id, || Ok(()))?;
    ensure!(story.largest.get("mood_fused") == Some(&2), "both train every stage: {:?}", story.largest);
    assert_eq!(tensor_digests(&hub)?, alone);
    let logs = cluster.logs()?;
    ensure!(logs.matches("members of a group exchange over TLS").count() == 2, "{logs}");
    nothing_secret(&cluster, &[])
}

/// One of two workers exchanges over TLS: each trains alone, and whoever asks learns why.
#[test]
fn workers_of_which_one_exchanges_plainly_train_alone_and_say_why() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Guarded::new("info")?);
    world.long_job("job.toml", &cluster.path().join("hub").display().to_string(), "")?;
    let (id, _) = cluster.ask(&world, "ann", &["submit", "job.toml"], 0)?;
    cluster.start_worker("worker")?;
    cluster.start_worker_with("worker", &[])?;
    let mut told = false;
    let story = watched(&cluster, &id, || {
        if !told {
            let (explained, _) = cluster.ask(&world, "reader", &["explain", &id], 0)?;
            told = explained.contains("is idle and may not help: other members reach it on");
        }
        Ok(())
    })?;
    ensure!(told, "the fusion is trained by one, while the other is idle");
    ensure!(story.largest.is_empty() && story.failures == 0, "{:?} {}", story.largest, story.failures);
    Ok(())
}

/// No token and no key stands in any log, in what commands said, or in the state folder.
fn nothing_secret(cluster: &Guarded, said: &[&str]) -> Result<()> {
    let logs = cluster.logs()?;
    ensure!(logs.contains("listens on https://127.0.0.1:"), "there are logs: {logs}");
    for secret in cluster.secrets()? {
        ensure!(!logs.contains(&secret), "a log holds a secret");
        ensure!(said.iter().all(|text| !text.contains(&secret)), "a message holds a secret");
        no_file_holds(&cluster.path().join("state"), secret.as_bytes())?;
    }
    Ok(())
}

fn no_file_holds(folder: &Path, secret: &[u8]) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            no_file_holds(&path, secret)?;
        } else if path.is_file() {
            let holds = fs::read(&path)?.windows(secret.len()).any(|window| window == secret);
            ensure!(!holds, "{} holds a secret", path.display());
        }
    }
    Ok(())
}
