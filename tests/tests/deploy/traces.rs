//! Traces of a job, as a receiver of OTLP gets them from all programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{Run, Story, World};
use serde::Deserialize;

use crate::{
    process::{Process, ask, coordinator, socket, until, worker},
    root, tool,
};

#[expect(clippy::struct_field_names, reason = "the protocol's own words")]
#[derive(Clone, Debug, Deserialize)]
struct Span {
    service: String,
    name: String,
    trace: String,
    span: String,
    parent: String,
    seconds: f64,
    attributes: BTreeMap<String, String>,
    error: String,
}

/// A receiver, and the variable that names it.
fn receiver() -> Result<(Process, String)> {
    let python = tool("python").context("python")?;
    let receiver = Process::start(Command::new(python).arg(root().join("tests/deploy/otlp.py")))?;
    let said = until(Duration::from_secs(20), || receiver.said().first().cloned());
    let port: u16 = said.context("the receiver says its port")?.parse()?;
    Ok((receiver, format!("http://127.0.0.1:{port}")))
}

fn spans(receiver: &Process) -> Vec<Span> {
    receiver.said().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

const VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Waits until the job's own span has come, which is the last but for the programs' last words.
fn job_of(receiver: &Process) -> Result<Span> {
    let job = until(Duration::from_secs(20), || spans(receiver).into_iter().find(|span| span.name == "job"));
    job.with_context(|| format!("no span of the job came: {}", receiver.said().join("\n")))
}

struct Traced {
    folder: tempfile::TempDir,
    world: World,
    endpoint: String,
    receiver: Process,
}

impl Traced {
    fn new() -> Result<Self> {
        let (receiver, endpoint) = receiver()?;
        Ok(Self { folder: tempfile::tempdir()?, world: World::new()?, endpoint, receiver })
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn coordinator(&self) -> Result<Process> {
        let mut command = coordinator(self.folder(), &["--log-format", "json"]);
        let started = Process::start(command.env(VARIABLE, &self.endpoint))?;
        started.wait_for("listens on")?;
        Ok(started)
    }

    fn worker(&self) -> Result<Process> {
        let mut command = worker(self.folder(), &["--log-format", "json"]);
        Process::start(command.env(VARIABLE, &self.endpoint))
    }

    fn submit(&self) -> Result<String> {
        ask(&self.world, self.folder(), &["submit", "job.toml"], &[(VARIABLE, &self.endpoint)])
    }

    fn hub(&self) -> String {
        self.folder().join("hub").display().to_string()
    }
}

pub(crate) fn one_trace_goes_through() -> Result<()> {
    let traced = Traced::new()?;
    traced.world.job("job.toml", &traced.hub(), "")?;
    let (mut coordinator, mut worker) = (traced.coordinator()?, traced.worker()?);
    let job = traced.submit()?;
    Run::watch(&socket(traced.folder()), &job)?.finish(0)?;
    let end = job_of(&traced.receiver)?;
    ensure!(end.attributes["job"] == job && end.error.is_empty(), "{end:?}");
    let logged = |said: Vec<String>| said.into_iter().filter(|line| line.contains(&end.trace)).collect::<Vec<_>>();
    let (logged, by_worker) = (logged(coordinator.said()), logged(worker.said()));
    worker.terminate()?;
    coordinator.terminate()?;
    let all = || spans(&traced.receiver).into_iter().filter(|span| span.trace == end.trace).collect::<Vec<_>>();
    // The receiver may still be saying what it got last.
    until(Duration::from_secs(5), || connected(&all()).ok());
    let all = all();
    connected(&all)?;
    let count = |service: &str, name: &str| all.iter().filter(|s| s.service == service && s.name == name).count();
    for (service, name, at_least) in [
        ("graftwork", "submit", 1),
        ("graftwork", "upload", 1),
        ("graftwork-coordinator", "request", 5),
        ("graftwork-coordinator", "plan", 1),
        ("graftwork-coordinator", "job", 1),
        ("graftwork-coordinator", "stage", 4),
        ("graftwork-coordinator", "lease", 4),
        ("graftwork-coordinator", "message checkpoint", 4),
        ("graftwork-coordinator", "message evaluated", 4),
        ("graftwork-coordinator", "message finished", 4),
        ("graftwork-coordinator", "message step", 4),
        ("graftwork-coordinator", "message spent", 4),
        ("graftwork-coordinator", "publish", 4),
        ("graftwork-worker", "train", 4),
        ("graftwork-worker", "message assign", 4),
        ("graftwork-worker", "message accepted", 4),
    ] {
        ensure!(count(service, name) >= at_least, "{name} of {service}: {} of {at_least}", count(service, name));
    }
    ensure!(all.iter().all(|span| span.seconds >= 0.0), "a span ends before it begins");
    let counted = |span: &&Span| span.attributes.get("messages").is_some_and(|messages| messages != "0");
    let reports = all.iter().filter(|span| ["message step", "message spent"].contains(&span.name.as_str()));
    ensure!(reports.clone().all(|span| counted(&span)), "spans of reports that count none");
    // A span each five seconds at most for each of a kind and a lease.
    let lease = all.iter().filter(|span| span.name == "lease").map(|span| span.seconds).fold(0.0, f64::max);
    let most = 2.0 * 4.0 * (lease / 5.0 + 1.0);
    ensure!(reports.clone().count() as f64 <= most, "{} spans of reports, and leases of {lease} s", reports.count());
    uploads_are_told(&all)?;
    for words in ["job submitted", "stage leased", "stage published", "job ended"] {
        ensure!(logged.iter().any(|line| line.contains(words)), "no log line {words:?} has the trace: {logged:?}");
    }
    for words in ["the stage begins", "the stage ends"] {
        let count = by_worker.iter().filter(|line| line.contains(words)).count();
        ensure!(count == 4, "{count} of 4 log lines {words:?} of the worker have the trace: {by_worker:?}");
    }
    let mut all = logged.iter().chain(&by_worker);
    ensure!(all.all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{logged:?} {by_worker:?}");
    Ok(())
}

/// What was uploaded before the job was submitted stands below the submission, request by request.
fn uploads_are_told(spans: &[Span]) -> Result<()> {
    let named = |name: &str| spans.iter().find(|span| span.name == name).with_context(|| format!("no span {name}"));
    let (submit, upload) = (named("submit")?, named("upload")?);
    ensure!(upload.parent == submit.span && upload.error.is_empty(), "{upload:?} is not below {submit:?}");
    let below: Vec<&str> = spans
        .iter()
        .filter(|span| span.name == "request" && span.parent == upload.span)
        .filter_map(|span| span.attributes.get("rpc.method"))
        .filter_map(|method| method.rsplit('/').next())
        .collect();
    let count = |method: &str| below.iter().filter(|found| **found == method).count();
    // Three tasks of three splits each, and the base model: each file is one request.
    ensure!(count("Has") == 1 && count("Put") >= 10, "requests of the upload: {below:?}");
    Ok(())
}

/// One root, and every other span below one that came too.
fn connected(spans: &[Span]) -> Result<()> {
    let known: BTreeSet<&str> = spans.iter().map(|span| span.span.as_str()).collect();
    ensure!(known.len() == spans.len(), "a span came twice");
    let roots: Vec<_> = spans.iter().filter(|span| span.parent.is_empty()).map(|span| &span.name).collect();
    ensure!(roots == ["submit"], "roots: {roots:?}");
    let lost: Vec<_> = spans.iter().filter(|s| !s.parent.is_empty() && !known.contains(s.parent.as_str())).collect();
    ensure!(lost.is_empty(), "spans without their parent: {lost:?}");
    Ok(())
}

/// A group of two, one of which is told to end while both train: what members say and are told stands in the trace too.
pub(crate) fn a_group_stands_in_the_trace() -> Result<()> {
    let traced = Traced::new()?;
    traced.world.long_job("job.toml", &traced.hub(), "[resources]\ngang = 2\n")?;
    let (_coordinator, _first, mut second) = (traced.coordinator()?, traced.worker()?, traced.worker()?);
    let job = traced.submit()?;
    let (mut watch, mut story) = (Run::watch(&socket(traced.folder()), &job)?, Story::default());
    loop {
        let event = watch.next_event()?.context("the job ended before two workers trained together")?;
        story.note(&event)?;
        if story.together(&event).is_some() {
            break;
        }
    }
    second.terminate()?;
    // Later stages want two again.
    let _third = traced.worker()?;
    watch.finish(0)?;
    let end = job_of(&traced.receiver)?;
    for (service, name) in [
        ("graftwork-coordinator", "message prepared"),
        ("graftwork-worker", "message form"),
        ("graftwork-coordinator", "message released"),
    ] {
        let is_it = |span: &Span| span.service == service && span.name == name && span.trace == end.trace;
        let told = until(Duration::from_secs(5), || spans(&traced.receiver).into_iter().find(is_it));
        told.with_context(|| format!("no span {name} of {service} stands in the trace of the job"))?;
    }
    Ok(())
}

/// kill -9 of the coordinator in the middle: what its successor and the worker tell stands in the same trace.
pub(crate) fn the_next_coordinator_goes_on() -> Result<()> {
    let traced = Traced::new()?;
    traced.world.long_job("job.toml", &traced.hub(), "")?;
    let (mut first, _worker) = (traced.coordinator()?, traced.worker()?);
    let job = traced.submit()?;
    Run::watch(&socket(traced.folder()), &job)?.wait_for_checkpoint("topic", 50)?;
    first.kill();
    let _second = traced.coordinator()?;
    Run::watch(&socket(traced.folder()), &job)?.finish(0)?;
    let end = job_of(&traced.receiver)?;
    let all = spans(&traced.receiver);
    let submit = all.iter().find(|span| span.name == "submit").context("the submission's span")?;
    ensure!(submit.trace == end.trace, "the job ended in another trace");
    let stages: Vec<_> = all.iter().filter(|span| span.name == "stage").collect();
    ensure!(stages.len() == 3 && stages.iter().all(|span| span.trace == end.trace), "{stages:?}");
    let trained: Vec<_> = all.iter().filter(|span| span.name == "train").collect();
    for name in ["checkpoint", "message checkpoint"] {
        ensure!(all.iter().any(|span| span.name == name && span.trace == end.trace), "no span {name}");
    }
    ensure!(!trained.is_empty() && trained.iter().all(|span| span.trace == end.trace), "{trained:?}");
    Ok(())
}
