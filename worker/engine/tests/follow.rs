//! Recorded runs of the Python peer are followed, and a run that differs is not.

#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use graftwork_engine::{Device, FollowError, follow};
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn followed(folder: &Path) -> Result<(bool, String), FollowError> {
    let mut report = Vec::new();
    let passed = follow(folder, &fixtures().join("tiny_bert"), Device::Cpu, &mut report)?;
    Ok((passed, String::from_utf8(report).unwrap()))
}

/// A copy of a recording with one file changed.
fn changed(name: &str, file: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(fixtures().join("followed").join(name)).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if path.ends_with(file) {
            bytes = change(bytes);
        }
        fs::write(copy.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    copy
}

fn replace(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.contains(from), "{from} is not there");
    text.replacen(from, to, 1).into_bytes()
}

#[test]
fn the_peers_steps_are_followed() {
    for (name, left_out) in [("lora", 0), ("fusion", 2)] {
        let (passed, report) = followed(&fixtures().join("followed").join(name)).unwrap();
        assert!(passed, "{report}");
        // A fusion's key biases, one a layer, have no gradient but rounding.
        assert_eq!(report.lines().filter(|line| line.contains("left out")).count(), left_out, "{report}");
        assert!(report.lines().last().unwrap().ends_with("30 of 30 checks passed"), "{report}");
    }
}

#[test]
fn other_settings_are_not_followed() {
    for (from, to) in [("\"decay\": 0.01", "\"decay\": 0.9"), ("\"clip\": 1.0", "\"clip\": 0.01"), ("0.999", "0.9")] {
        let copy = changed("lora", "settings.json", |bytes| replace(&bytes, from, to));
        let (passed, report) = followed(copy.path()).unwrap();
        assert!(!passed && report.contains("FAIL"), "{from} -> {to}\n{report}");
    }
}

type Damage = fn(Vec<u8>) -> Vec<u8>;

#[test]
fn a_damaged_recording_is_an_error_with_its_file() {
    let cases: [(&str, Damage); 4] = [
        ("settings.json", |bytes| replace(&bytes, "\"lora\"", "\"compacter\"")),
        ("steps.json", |bytes| bytes[..bytes.len() / 2].to_vec()),
        ("batches.safetensors", |bytes| bytes[..bytes.len() - 8].to_vec()),
        ("end.safetensors", |_| Vec::new()),
    ];
    for (file, damage) in cases {
        let error = followed(changed("lora", file, damage).path()).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
    }
    let error = followed(Path::new("/nowhere")).unwrap_err();
    assert!(matches!(error, FollowError::Read { .. }), "{error}");
}
