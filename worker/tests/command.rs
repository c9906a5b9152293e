//! The worker's other verbs as a user calls them: what they print, and how they end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Command, Output},
    sync::mpsc,
    thread,
};

fn worker(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_graftwork-worker")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(arguments: &[&str], words: &str) {
    let output = worker(arguments);
    let log = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {log}");
    assert!(log.contains(words), "{arguments:?}: {log}");
    assert!(log.matches("os error").count() <= 1, "said twice: {log}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

#[test]
fn the_version_names_libtorch() {
    let output = worker(&["--version"]);
    let line = text(&output.stdout);
    assert!(line.starts_with("graftwork-worker (libtorch 2."), "{line}");
    assert_eq!(line.split_whitespace().last(), Some(graftwork_shared::VERSION));
}

#[test]
fn the_doctor_finds_every_part_or_says_why_not() {
    let output = worker(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found["libtorch"].as_str().unwrap().starts_with("2."));
    assert!(found["threads"].as_u64().unwrap() >= 1);
    assert!(found["memory"]["total_bytes"].as_u64().unwrap() > 0);
    let cuda = found["cuda"].as_object().unwrap();
    assert!(cuda.contains_key("available") || !cuda["unavailable"].as_str().unwrap().is_empty());
    let nccl = found["nccl"].as_object().unwrap();
    assert!(nccl["refusal"].is_null() || !nccl["refusal"].as_str().unwrap().is_empty());
    assert_eq!(nccl["version"].is_null(), nccl["library"].is_null(), "what is loaded tells its version: {nccl:?}");
    let lines = text(&worker(&["doctor"]).stdout);
    assert!(lines.lines().any(|line| line.starts_with("numeric class")), "{lines}");
    // `make test` fetches the library.
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.graftwork/libtorch/nvidia/nccl/lib/libnccl.so.2");
    if !fetched.exists() && nccl["library"].is_null() {
        return eprintln!("skipped: NCCL is not here; `make nccl` fetches it");
    }
    assert!(!nccl["library"].is_null(), "{} is not found: {nccl:?}", fetched.display());
    assert_eq!(nccl["unique_id"], true, "{nccl:?}");
    if !cuda.contains_key("available") {
        let (version, refusal) = (nccl["version"].as_str().unwrap(), nccl["refusal"].as_str().unwrap());
        assert!(refusal.contains("CUDA driver version is insufficient"), "{refusal}");
        let shown = format!("version {version} is loaded, but cannot be used: {refusal}");
        assert!(lines.lines().any(|line| line.starts_with("NCCL") && line.ends_with(&shown)), "{lines}");
    }
}

#[test]
fn what_cannot_be_predicted_is_refused_with_its_mend() {
    let text_of = |more: &[&'static str]| -> Vec<&'static str> {
        [&["predict", "--base-model", "/nowhere/base", "--adapter", "a=/nowhere/a"], more].concat()
    };
    refused(&text_of(&["--text", " "]), "the text is empty");
    refused(&text_of(&["--text", "x"]), "/nowhere/base");
    refused(
        &text_of(&["--text", "x", "--precision", "bf16"]),
        "--precision bf16: the processor multiplies in fp32 alone",
    );
    refused(&text_of(&["--text", "x", "--precision", "fp32"]), "/nowhere/base");
    refused(&text_of(&["--file", "/nowhere/rows.csv"]), "name the one with the text by --column");
    refused(&text_of(&["--file", "/nowhere/rows.csv", "--column", "c"]), "/nowhere/rows.csv");
    refused(&["worker", "--coordinator", "http://10.0.0.1:1"], "plain text beyond loopback would show tokens");
    refused(
        &["worker", "--coordinator", "https://x:1", "--group-address", "10.0.0.8"],
        "without --group-tls members of a group exchange in plain text; if that network is yours alone, say so with \
         --private-network",
    );
    refused(
        &["worker", "--coordinator", "https://x:1", "--group-address", "10.0.0.8", "--group-tls", "/nowhere"],
        "/nowhere/ca.pem: No such file or directory (os error 2); `graftwork cert FOLDER --host NAME` makes certificates",
    );
    refused(&["worker", "--coordinator", "nowhere"], "write unix:///path/to/socket");
    refused(
        &["worker", "--coordinator", "https://x:1", "--tls-ca", "/nowhere/ca.pem"],
        "/nowhere/ca.pem: No such file",
    );
    refused(&["golden", "/nowhere"], "/nowhere");
    refused(&["follow", "/nowhere", "--base-model", "/nowhere/base"], "/nowhere");
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let found: serde_json::Value = serde_json::from_slice(&worker(&["doctor", "--json"]).stdout).unwrap();
    if found["cuda"].get("available").is_none() {
        refused(&["worker", "--coordinator", "unix:///x", "--device", "cuda"], "leave out --device cuda");
        refused(&["golden", "/nowhere", "--device", "cuda"], "leave out --device cuda");
        refused(&["follow", "/nowhere", "--base-model", "/nowhere", "--device", "cuda"], "leave out --device cuda");
    }
}

/// A hub that holds nothing; gives its address and the requests that it gets.
fn empty_hub() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (requests, received) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).unwrap();
            let _ = requests.send(text(&bytes[..count]).to_lowercase());
            let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer);
        }
    });
    (address, received)
}

#[test]
fn each_secret_is_shown_at_its_own_place_alone() {
    let (address, requests) = empty_hub();
    let cache = tempfile::tempdir().unwrap();
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/fixtures/tiny_bert");
    let asked = |base: &str, options: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_graftwork-worker"))
            .args(["predict", "--base-model", base, "--adapter", "hf://lab/x@main", "--text", "x", "--cache"])
            .arg(cache.path())
            .args(options)
            .envs([("HF_ENDPOINT", address.as_str()), ("OF_BASE", "base-secret"), ("OF_ADAPTER", "adapter-secret")])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        let all: String = requests.try_iter().collect();
        assert!(!all.is_empty(), "{}", text(&output.stderr));
        ["base-secret", "adapter-secret"].map(|secret| all.contains(secret))
    };
    let of_base = ["--base-model-credentials-env", "OF_BASE"];
    let of_adapter = ["--adapter-credentials-env", "OF_ADAPTER"];
    assert_eq!(asked(base, &[of_base, of_adapter].concat()), [false, true], "the adapter is asked for");
    assert_eq!(asked(base, &of_base), [false, false], "the adapter, without a secret of its own");
    assert_eq!(asked("hf://lab/base@main", &[of_base, of_adapter].concat()), [true, false], "the base model");
    assert_eq!(asked("hf://lab/base@main", &of_adapter), [false, false], "the base model, without its own");
}
