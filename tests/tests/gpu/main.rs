//! What a machine with an NVIDIA GPU shows: recorded numbers and steps are met there, what was trained on the processor
//! says the same there, and nearly the same in fewer bits, and a job trained there twice gives the same bytes, in whatever
//! numbers and lanes.
//!
//! Where `graftwork doctor` finds no CUDA device these are ignored, and the reason is printed. `make test-gpu` runs them
//! together with the collectives over NCCL, which take one GPU for each rank.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{Cluster, Run, Story, World, program, tensor_digests};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// Largest difference of a probability, or of a value, between processor and GPU.
const TOLERANCE: f64 = 1e-4;

const ON_THE_GPU: &str = "[resources]\ndevice = \"cuda\"\n";

/// How far apart answers in fp32 and in these numbers may be: a bf16 factor is off by up to 1/512 of itself, an fp16 one by
/// 1/4096, in every product on the way to a probability or a value.
const FEWER_BITS: [(&str, f64); 2] = [("bf16", 0.15), ("fp16", 0.02)];

/// Why there is no GPU to test on; `None` where there is one.
fn missing() -> Result<Option<String>> {
    let output = Command::new(program()).args(["doctor", "--output", "json"]).output()?;
    let findings: Value = serde_json::from_slice(&output.stdout).context("doctor prints an object")?;
    let cuda = &findings["worker"]["cuda"];
    Ok(if cuda["available"].is_u64() { None } else { Some(cuda["unavailable"].as_str().unwrap_or("?").to_owned()) })
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/engine/fixtures")
}

fn said(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program()).current_dir(folder).args(arguments).output()?;
    let (out, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{arguments:?} ended with {}: {log}\n{out}", output.status);
    Ok(out.into_owned())
}

fn recorded_numbers_are_met() -> Result<()> {
    let report = said(&fixtures(), &["golden", "peer", "--device", "cuda"])?;
    ensure!(report.contains("22 passed, 0 failed"), "{report}");
    Ok(())
}

fn recorded_steps_are_followed() -> Result<()> {
    for recording in ["followed/lora", "followed/fusion"] {
        let report = said(&fixtures(), &["follow", recording, "--base-model", "tiny_bert", "--device", "cuda"])?;
        ensure!(report.contains("30 of 30 checks passed"), "{report}");
    }
    Ok(())
}

/// Every number that a prediction of these adapters says, in order.
fn predicted(world: &World, what: &[&str], on: &[&str]) -> Result<Vec<f64>> {
    let texts = "the film is great and very fine\nwho is the awful the\na river in the city was not poor\n";
    std::fs::write(world.path().join("texts.txt"), texts.repeat(20))?;
    let words = ["predict", "--base-model", "base", "--output", "json", "--file", "texts.txt"];
    let answers: Value = serde_json::from_str(&said(world.path(), &[&words[..], on, what].concat())?)?;
    let mut numbers = Vec::new();
    collect(&answers, &mut numbers);
    Ok(numbers)
}

fn collect(value: &Value, numbers: &mut Vec<f64>) {
    match value {
        Value::Number(number) => numbers.extend(number.as_f64()),
        Value::Array(values) => values.iter().for_each(|value| collect(value, numbers)),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, numbers)),
        _ => {}
    }
}

fn what_the_processor_trained_says_the_same_on_the_gpu() -> Result<()> {
    let world = World::new()?;
    Run::start(&world.job("job.toml", "hub", "")?, &["--state", "state"])?.finish(0)?;
    let names = ["topic", "mood", "strength"];
    let adapters: Vec<String> = names.iter().map(|name| format!("--adapter={name}=hub/tests/{name}")).collect();
    let mut several: Vec<&str> = adapters.iter().map(String::as_str).collect();
    several.push("--compose=Parallel[topic, mood, strength]");
    for what in [&["--setup=hub/tests/mood_fused"][..], &several[..]] {
        let cpu = predicted(&world, what, &["--device", "cpu"])?;
        let near = |on: &[&str], tolerance: f64| -> Result<f64> {
            let gpu = predicted(&world, what, &[&["--device", "cuda"][..], on].concat())?;
            ensure!(cpu.len() == gpu.len() && cpu.len() > 120, "{} and {} numbers", cpu.len(), gpu.len());
            let apart = cpu.iter().zip(&gpu).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            ensure!(apart <= tolerance, "{what:?} {on:?}: {apart} apart");
            Ok(apart)
        };
        let exact = near(&[], TOLERANCE)?;
        for (precision, tolerance) in FEWER_BITS {
            let apart = near(&["--precision", precision], tolerance)?;
            ensure!(apart > exact, "{what:?}: {precision} gives the numbers of fp32");
        }
    }
    Ok(())
}

/// Two lanes as ever, four, and fewer bits: each has bytes of its own, the same every time.
fn a_job_trained_twice_on_the_gpu_gives_the_same_bytes() -> Result<()> {
    let world = World::new()?;
    let mut known = Vec::new();
    for (name, training) in [
        ("two", "lanes = 2\n"),
        ("four", "lanes = 4\n"),
        ("bf16", "lanes = 2\nprecision = \"bf16\"\n"),
        ("fp16", "lanes = 2\nprecision = \"fp16\"\n"),
    ] {
        let trained = |hub: &str| {
            let job = world.job(&format!("{hub}.toml"), hub, ON_THE_GPU)?;
            let text = std::fs::read_to_string(&job)?;
            ensure!(text.contains("lanes = 2\n"), "the job has two lanes: {text}");
            std::fs::write(&job, text.replacen("lanes = 2\n", training, 1))?;
            Run::start(&job, &["--state", &format!("state-{hub}")])?.finish(0)?;
            tensor_digests(&world.path().join(hub))
        };
        let [first, second] = [trained(&format!("{name}-a"))?, trained(&format!("{name}-b"))?];
        ensure!(first == second, "{name}: {first:?}\n{second:?}");
        ensure!(!known.contains(&first), "{name}: the bytes of another way");
        known.push(first);
    }
    Ok(())
}

/// Workers that share the first GPU. NCCL takes one rank of a host on a GPU, so each says it is a host of its own, and
/// they meet over the loopback interface.
fn two_workers_over_nccl_publish_what_one_does() -> Result<()> {
    let world = World::new()?;
    let trained = |workers: usize| -> Result<_> {
        let mut cluster = Cluster::in_a_folder()?;
        let hub = cluster.path().join("hub");
        let job = world.long_job("job.toml", &hub.display().to_string(), ON_THE_GPU)?;
        // A quarter of it is long enough for the second worker to come, and takes as long as all of it on a processor.
        std::fs::write(&job, std::fs::read_to_string(&job)?.replacen("epochs = 120", "epochs = 30", 1))?;
        let (job, _) = cluster.ask(&world, &["submit", "job.toml"], 0)?;
        let mut watch = Run::watch(&cluster.address(), &job)?;
        for name in ["first", "second"].iter().take(workers) {
            let environment = [("NCCL_HOSTID", *name), ("NCCL_SOCKET_IFNAME", "lo")];
            let address = cluster.address();
            cluster.start_worker_in(&environment, &address, &["--device", "cuda"])?;
        }
        let mut story = Story::default();
        while let Some(event) = watch.next_event()? {
            story.note(&event)?;
        }
        watch.finish(0)?;
        ensure!(workers == 1 || story.largest.get("mood_fused") == Some(&workers), "{:?}", story.largest);
        tensor_digests(&hub)
    };
    let (alone, together) = (trained(1)?, trained(2)?);
    ensure!(alone == together, "{alone:?}\n{together:?}");
    Ok(())
}

/// A trial and its name.
type Named = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    let missing = missing().unwrap_or_else(|error| Some(format!("{error:#}")));
    if let Some(reason) = &missing {
        eprintln!("skipped: no CUDA device: {reason}");
    }
    let trials: [Named; 5] = [
        ("recorded_numbers_are_met", recorded_numbers_are_met),
        ("recorded_steps_are_followed", recorded_steps_are_followed),
        ("what_the_processor_trained_says_the_same_on_the_gpu", what_the_processor_trained_says_the_same_on_the_gpu),
        ("a_job_trained_twice_on_the_gpu_gives_the_same_bytes", a_job_trained_twice_on_the_gpu_gives_the_same_bytes),
        ("two_workers_over_nccl_publish_what_one_does", two_workers_over_nccl_publish_what_one_does),
    ];
    let trial = |(name, run): (&str, fn() -> Result<()>)| {
        let run = move || run().map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&Arguments::from_args(), trials.into_iter().map(trial).collect()).exit_code()
}
