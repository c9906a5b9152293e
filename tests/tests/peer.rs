//! Releases read by AdapterHub's own library, and its adapters read by us: probabilities (or values) within 1e-5 both
//! ways.
//!
//! The library is installed by `make test-all` (scripts/peer.sh); without it these tests are skipped and say so.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{Run, World, program};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

const TEXTS: [&str; 3] =
    ["the film is great and very fine", "who is the awful the", "a river in the city was not poor"];
/// Ids of [`TEXTS`] under the tiny world's vocabulary: five special tokens, then its words in order.
const WORDS: [&str; 24] = [
    "who", "what", "where", "when", "film", "book", "city", "river", "good", "great", "fine", "bad", "awful", "poor",
    "the", "a", "of", "in", "is", "was", "very", "quite", "not", "and",
];

fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.graftwork/peer/bin/python")
}

fn ids() -> Vec<Vec<usize>> {
    let id = |word: &str| 5 + WORDS.iter().position(|known| *known == word).expect("the texts use known words");
    let row = |text: &str| [2].into_iter().chain(text.split(' ').map(id)).chain([3]).collect();
    TEXTS.iter().map(|text| row(text)).collect()
}

fn peer(arguments: &[&str]) -> Result<Vec<Vec<f64>>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peer/peer.py");
    let mut child =
        Command::new(python()).arg(script).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin is piped")?.write_all(serde_json::to_string(&ids())?.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the peer failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn ours(world: &World, arguments: &[&str]) -> Result<Vec<Vec<f64>>> {
    let file = world.path().join("texts.txt");
    std::fs::write(&file, TEXTS.join("\n") + "\n")?;
    let output = Command::new(program())
        .current_dir(world.path())
        .args(["predict", "--base-model", "base", "--output", "json", "--file"])
        .arg(&file)
        .args(arguments)
        .output()?;
    ensure!(output.status.success(), "predict failed: {}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    answers.iter().map(|answer| said(&answer["predictions"][0])).collect()
}

/// Probabilities in the order of class ids, or the one value of a regression.
fn said(head: &Value) -> Result<Vec<f64>> {
    if let Some(value) = head["value"].as_f64() {
        return Ok(vec![value]);
    }
    let probabilities = head["probabilities"].as_object().context("a prediction has a value or probabilities")?;
    probabilities.values().map(|value| value.as_f64().context("a probability is a number")).collect()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    if logits.len() == 1 {
        return logits.to_vec();
    }
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn compare(ours: &[Vec<f64>], peer: &[Vec<f64>]) -> Result<()> {
    ensure!(ours.len() == peer.len(), "{} rows against {}", ours.len(), peer.len());
    for (a, b) in ours.iter().zip(peer.iter().map(|logits| softmax(logits))) {
        ensure!(a.len() == b.len(), "{} logits against {}", a.len(), b.len());
        let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        ensure!(worst <= 1e-5, "predictions differ by {worst}: {a:?} against {b:?}");
    }
    Ok(())
}

fn releases_load_in_the_peer() -> Result<()> {
    let world = World::new()?;
    let job = world.job(
        "job.toml",
        "hub",
        "[tasks.mood.adapter]\nmethod = \"lora\"\n[tasks.strength.adapter]\nmethod = \"seq_bn\"\n",
    )?;
    // A fusion takes bottleneck adapters only, so the LoRA task is trained beside it and left out.
    let text = std::fs::read_to_string(&job)?.replace("\"topic\", \"mood\", \"strength\"", "\"topic\", \"strength\"");
    std::fs::write(&job, text)?;
    Run::start(&job, &[])?.finish(0)?;
    loads(&world, &["topic", "mood", "strength"], &["mood_fused"])
}

/// Releases of adapters and of fusions, read there and here.
fn loads(world: &World, adapters: &[&str], fusions: &[&str]) -> Result<()> {
    let adapters = adapters.iter().map(|name| (name, None));
    for (release, more) in adapters.chain(fusions.iter().map(|name| (name, Some("--setup")))) {
        let folder = world.path().join("hub/tests").join(release);
        let folder = folder.to_str().context("a temporary path is text")?;
        let base = world.path().join("base");
        let mut arguments = vec!["logits", base.to_str().context("a temporary path is text")?, folder];
        arguments.extend(more);
        let option = if more.is_some() { "--setup" } else { "--adapter" };
        compare(&ours(world, &[option, folder])?, &peer(&arguments)?).with_context(|| (*release).to_owned())?;
    }
    Ok(())
}

/// The library takes the last adapter of a fusion to stand in every layer; the release puts one there that does.
fn fusions_with_layers_left_out_load_in_the_peer() -> Result<()> {
    let world = World::new()?;
    let more = "[tasks.mood.adapter]\nleave_out = [1]\n[tasks.strength.adapter]\nleave_out = [0]\n\
                [fusions.dropped]\nadapters = [\"topic\", \"mood\"]\ntask = \"mood\"\n\
                [fusions.dropped.training]\nadapter_drop = { layers = [1] }\n";
    let job = world.job("job.toml", "hub", more)?;
    let text = std::fs::read_to_string(&job)?.replace("\"topic\", \"mood\", \"strength\"", "\"topic\", \"strength\"");
    std::fs::write(&job, text)?;
    Run::start(&job, &[])?.finish(0)?;
    loads(&world, &["strength"], &["mood_fused", "dropped"])
}

fn the_peers_adapters_load_here() -> Result<()> {
    let world = World::new()?;
    for method in ["seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn", "lora"] {
        let folder = world.path().join(format!("made-{method}"));
        let folder = folder.to_str().context("a temporary path is text")?;
        let base = world.path().join("base");
        let expected = peer(&["make", base.to_str().context("a temporary path is text")?, folder, method])?;
        compare(&ours(&world, &["--adapter", folder])?, &expected).with_context(|| method.to_owned())?;
    }
    Ok(())
}

fn main() -> ExitCode {
    // Who asks for it wants to hear that it cannot run.
    let missing = !python().exists() && std::env::var_os("GRAFTWORK_LONG_TESTS").is_none();
    if missing {
        eprintln!("skipped: AdapterHub's library is not installed; `make test-all` installs it into .graftwork/peer");
    }
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}")))).with_ignored_flag(missing)
    };
    let trials = vec![
        trial("releases_load_in_the_peer", releases_load_in_the_peer),
        trial("fusions_with_layers_left_out_load_in_the_peer", fusions_with_layers_left_out_load_in_the_peer),
        trial("the_peers_adapters_load_here", the_peers_adapters_load_here),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
