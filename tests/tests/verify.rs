//! A release against its record, against a training from that record alone, and against what its card promises.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{Run, World, program};

/// The tiny world's job, trained and published.
fn trained() -> Result<World> {
    let world = World::new()?;
    let job = world.job("job.toml", "hub", "")?;
    Run::start(&job, &["--threads", "2"])?.finish(0)?;
    Ok(world)
}

fn graftwork(world: &World, arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(program()).current_dir(world.path()).args(arguments).stdin(Stdio::null()).output()?)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The folder of a published name.
fn release(world: &World, name: &str) -> Result<PathBuf> {
    world.path().join("hub/tests").join(name).canonicalize().context("the release is there")
}

/// Its record, which is another one for every other release.
fn record(world: &World, name: &str) -> Result<Vec<u8>> {
    Ok(std::fs::read(release(world, name)?.join("graftwork.json"))?)
}

fn flip_a_byte(file: &Path) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    let last = bytes.last_mut().context("the file has bytes")?;
    *last ^= 1;
    std::fs::write(file, bytes)?;
    Ok(())
}

#[test]
fn a_release_is_trained_again_from_its_record_alone_with_equal_tensors() -> Result<()> {
    let world = trained()?;
    for name in ["topic", "mood_fused"] {
        let output = graftwork(&world, &["verify", "--retrain", &format!("hub/tests/{name}"), "--threads", "1"])?;
        let said = said(&output);
        ensure!(output.status.code() == Some(0), "{said}");
        assert!(said.contains(&format!("equal: training {name} again gave the same tensors")), "{said}");
        assert!(said.contains("✓ ") && !said.contains('✗'), "{said}");
    }
    Ok(())
}

#[test]
fn one_flipped_byte_of_a_release_is_named() -> Result<()> {
    let world = trained()?;
    flip_a_byte(&release(&world, "topic")?.join("adapter.safetensors"))?;
    for more in [&[][..], &["--retrain"]] {
        let output = graftwork(&world, &[&["verify", "hub/tests/topic"], more].concat())?;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("adapter.safetensors: SHA-256 is ") && said.contains("but the record says"), "{said}");
    }
    Ok(())
}

#[test]
fn other_rows_or_another_base_model_are_told_before_anything_is_trained() -> Result<()> {
    let world = trained()?;
    let data = world.path().join("data/topic");
    std::fs::rename(data.join("train.parquet"), data.join("kept.parquet"))?;
    std::fs::copy(data.join("validation.parquet"), data.join("train.parquet"))?;
    let output = graftwork(&world, &["verify", "--retrain", "hub/tests/topic"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("topic is another recipe today: its training rows changed since"),
        "{}",
        said(&output)
    );
    std::fs::rename(data.join("kept.parquet"), data.join("train.parquet"))?;
    // One letter of a text: size and footer stay.
    let mut bytes = std::fs::read(data.join("train.parquet"))?;
    let at = bytes.windows(4).position(|window| window == b"the ").context("a text begins with it")?;
    bytes[at] = b'T';
    std::fs::write(data.join("train.parquet"), bytes)?;
    let output = graftwork(&world, &["verify", "--retrain", "hub/tests/topic"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("the rows of topic are not those of the record"), "{}", said(&output));
    Ok(())
}

/// The same command again after an edit that keeps size and footer.
#[test]
fn an_edit_that_a_footer_does_not_show_trains_what_it_concerns_again() -> Result<()> {
    let world = trained()?;
    let before = ["topic", "mood", "mood_fused"].map(|name| record(&world, name));
    let path = world.path().join("data/topic/train.parquet");
    let mut bytes = std::fs::read(&path)?;
    // A word that the tokenizer knows for one that it knows.
    let at = bytes.windows(4).position(|window| window == b"film").context("a text speaks of films")?;
    bytes[at..at + 4].copy_from_slice(b"book");
    std::fs::write(&path, bytes)?;
    Run::start(&world.path().join("job.toml"), &["--threads", "2"])?.finish(0)?;
    let after = ["topic", "mood", "mood_fused"].map(|name| record(&world, name));
    let changed: Vec<bool> = before.into_iter().zip(after).map(|(a, b)| Ok(a? != b?)).collect::<Result<_>>()?;
    assert_eq!(changed, [true, false, true], "the task and the fusion that reads its adapter");
    Ok(())
}

/// A file that was copied over itself is the same data: the same command goes on.
#[test]
fn a_touched_file_does_not_fail_an_interrupted_job() -> Result<()> {
    let world = World::new()?;
    let job = world.job("job.toml", "hub", "")?;
    let mut run = Run::start(&job, &["--threads", "2"])?;
    run.wait_for_checkpoint("mood_fused", 4)?;
    run.kill()?;
    for split in ["train", "validation", "test"] {
        let path = world.path().join(format!("data/mood/{split}.parquet"));
        let bytes = std::fs::read(&path)?;
        std::fs::write(&path, bytes)?;
    }
    Run::start(&job, &["--threads", "2"])?.finish(0)?;
    Ok(())
}

#[test]
fn the_command_on_a_card_runs_as_it_stands_there() -> Result<()> {
    let world = trained()?;
    for name in ["topic", "mood_fused"] {
        let card = std::fs::read_to_string(release(&world, name)?.join("README.md"))?;
        let command = card.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).context("a command")?;
        let help = graftwork(&world, &["predict", "--help"])?;
        let help = said(&help);
        for option in command.split_whitespace().filter(|word| word.starts_with("--")) {
            assert!(help.contains(&format!("{option} ")), "{option} is no option of\n{help}");
        }
        let typed = command
            .replace("path/to/base", "base")
            .replace("path/to/tests", "hub/tests")
            .replace("graftwork ", &format!("{} ", program().display()));
        let output = Command::new("sh").args(["-c", &typed]).current_dir(world.path()).output()?;
        ensure!(output.status.success(), "{typed}\n{}", said(&output));
        assert!(!output.stdout.is_empty());
    }
    Ok(())
}

#[test]
fn layers_that_training_drops_are_in_no_release() -> Result<()> {
    let world = World::new()?;
    let dropped = |table: &str| format!("[{table}.training]\nadapter_drop = {{ layers = [0] }}\n");
    let more = format!("{}{}", dropped("tasks.topic"), dropped("fusions.mood_fused"));
    let job = world.job("job.toml", "hub", &more)?;
    Run::start(&job, &["--threads", "2"])?.finish(0)?;
    let config = |folder: PathBuf| -> Result<Vec<u64>> {
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json"))?)?;
        let layers = config["config"]["leave_out"].as_array().context("leave_out is a list")?;
        Ok(layers.iter().filter_map(serde_json::Value::as_u64).collect())
    };
    assert_eq!(config(release(&world, "topic")?)?, [0]);
    assert_eq!(config(release(&world, "mood")?)?, Vec::<u64>::new());
    assert_eq!(config(release(&world, "mood_fused")?.join("mood"))?, [0], "as the fusion reads it");
    for (name, sound) in [("topic", true), ("mood", false), ("mood_fused", true)] {
        for (path, bytes) in tensor_files(&release(&world, name)?)? {
            let layer = b"encoder.layer.0.";
            let found = bytes.windows(layer.len()).any(|window| window == layer);
            assert!(!(sound && found), "{} has tensors of layer 0", path.display());
        }
    }
    Ok(())
}

/// Every safetensors file below a folder.
fn tensor_files(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(tensor_files(&path)?);
        } else if path.extension().is_some_and(|end| end == "safetensors") {
            files.push((path.clone(), std::fs::read(&path)?));
        }
    }
    Ok(files)
}
