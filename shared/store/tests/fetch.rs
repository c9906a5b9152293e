//! Downloads from a server that speaks a hub's protocol, and what happens when it lies, breaks off or is gone.
//!
//! `HF_ENDPOINT` is one for the whole process, so these behaviours share one test server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use graftwork_shared::digest::Digest;
use graftwork_store::{Cache, Fetched, NoUploads, StoreError, fetch_adapter, fetch_base_model};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does wrong, by repository name.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Every first body breaks off in the middle.
    BreaksOff,
    /// Announces another SHA-256 than the body's.
    Lies,
    /// Lists a file outside the repository.
    Escapes,
    NotAModel,
    /// Weights as PyTorch writes them alone.
    OldWeights,
    /// The same, in a store that refuses to say what is not there, as S3 does without the right to list.
    Unlisted,
    /// Such a store that lets nothing be read but the configuration.
    AllRefused,
}

#[derive(Default)]
struct Counts {
    bodies: AtomicUsize,
    ranges: AtomicUsize,
}

fn files(fault: Fault) -> BTreeMap<&'static str, Vec<u8>> {
    let mut files = BTreeMap::from([
        ("README.md", b"not wanted".to_vec()),
        ("pytorch_model.bin", b"not wanted either".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.safetensors", (0..200_000_u32).flat_map(u32::to_le_bytes).collect()),
    ]);
    match fault {
        Fault::NotAModel => {}
        Fault::OldWeights | Fault::Unlisted => {
            files.insert("config.json", b"{}".to_vec());
            files.remove("model.safetensors");
        }
        Fault::AllRefused => {
            files = BTreeMap::from([("config.json", b"{}".to_vec())]);
        }
        Fault::Escapes => {
            files.insert("config.json", b"{}".to_vec());
            files.insert("../adapter_config.json", b"{}".to_vec());
            files.insert("adapter_config.json", b"{}".to_vec());
        }
        _ => {
            files.insert("config.json", b"{\"model_type\":\"bert\"}".to_vec());
        }
    }
    files
}

fn fault_of(path: &str) -> Fault {
    match () {
        () if path.contains("/breaks") => Fault::BreaksOff,
        () if path.contains("/lies") => Fault::Lies,
        () if path.contains("/escapes") => Fault::Escapes,
        () if path.contains("/notamodel") => Fault::NotAModel,
        () if path.contains("oldweights") => Fault::OldWeights,
        () if path.contains("/unlisted") => Fault::Unlisted,
        () if path.contains("/allrefused") => Fault::AllRefused,
        () => Fault::None,
    }
}

async fn answer(mut stream: TcpStream, counts: Arc<Counts>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let fault = fault_of(path);
    let refuse = |status: &str| {
        format!("HTTP/1.1 {status}\r\nX-Error-Code: RepoNotFound\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    };
    if path.contains("/private") && header("authorization").as_deref() != Some("Bearer open sesame") {
        return stream.write_all(refuse("401 Unauthorized").as_bytes()).await;
    }
    if path.starts_with("/api/models/") {
        if path.contains("/absent") {
            return stream.write_all(refuse("404 Not Found").as_bytes()).await;
        }
        let siblings: Vec<String> = files(fault).keys().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
        let body = format!("{{\"id\":\"x\",\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", siblings.join(","));
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        return stream.write_all((head + &body).as_bytes()).await;
    }
    let plain = path.trim_start_matches('/').split_once('/').map_or("", |(_, name)| name);
    let name = path.split(&format!("/resolve/{COMMIT}/")).nth(1).unwrap_or(plain);
    if !files(fault).contains_key(name) {
        if matches!(fault, Fault::Unlisted | Fault::AllRefused) {
            return stream.write_all(refuse("403 Forbidden").as_bytes()).await;
        }
        return stream.write_all(refuse("404 Not Found").as_bytes()).await;
    }
    let body = files(fault)[name].clone();
    let sha = if fault == Fault::Lies { Digest::of(b"other") } else { Digest::of(&body) };
    let from =
        header("range").map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let length = body.len() - from;
    let head = format!(
        "HTTP/1.1 {status}\r\nX-Repo-Commit: {COMMIT}\r\nETag: \"{sha}\"\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    if method == "HEAD" {
        return Ok(());
    }
    counts.bodies.fetch_add(1, Ordering::SeqCst);
    counts.ranges.fetch_add(usize::from(from > 0), Ordering::SeqCst);
    let end = if fault == Fault::BreaksOff && from == 0 { body.len() / 2 } else { body.len() };
    stream.write_all(&body[from..end]).await?;
    stream.shutdown().await
}

/// The server of this process, on a thread and a runtime of its own.
fn server() -> Arc<Counts> {
    static SERVER: OnceLock<Arc<Counts>> = OnceLock::new();
    let start = || {
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(answer(stream, shared.clone()));
                }
            });
        });
        let address = told.recv().unwrap();
        // SAFETY: every test calls this before it reads the environment, and nothing else writes it.
        unsafe {
            std::env::set_var("HF_ENDPOINT", format!("http://{address}"));
            std::env::set_var("TEST_TOKEN_OF_A_HUB", "open sesame");
        }
        counts
    };
    SERVER.get_or_init(start).clone()
}

async fn fetch(name: &str, cache: &Path) -> Result<Fetched, StoreError> {
    fetch_base_model(&format!("hf://lab/{name}@main"), None, cache, &NoUploads).await
}

fn listed(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_base_model_comes_with_the_files_that_are_needed_and_no_others() {
    server();
    let cache = tempfile::tempdir().unwrap();
    let folder = fetch("fine", cache.path()).await.unwrap();
    assert_eq!(listed(&folder), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), files(Fault::None)["model.safetensors"]);
    // A commit that is complete needs no server.
    let pinned = fetch_base_model(&format!("hf://lab/fine@{COMMIT}"), None, cache.path(), &NoUploads).await.unwrap();
    assert_eq!(pinned.to_path_buf(), folder.to_path_buf());
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let counts = server();
    let cache = tempfile::tempdir().unwrap();
    let before = counts.ranges.load(Ordering::SeqCst);
    let folder = fetch("breaks", cache.path()).await.unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), files(Fault::None)["model.safetensors"]);
    assert!(counts.ranges.load(Ordering::SeqCst) >= before + 3, "each file is asked for from the break on");
}

#[tokio::test]
async fn a_cache_with_a_bound_lets_go_of_what_nobody_uses_and_fetches_it_again() {
    server();
    let cache = tempfile::tempdir().unwrap();
    // Less than one of them takes: what is in use stays all the same.
    let bounded = || Cache::bounded(cache.path(), 10);
    let plain = format!("{}/plain", std::env::var("HF_ENDPOINT").unwrap());
    let first = fetch_base_model("hf://lab/fine@main", None, bounded(), &NoUploads).await.unwrap();
    let second = fetch_base_model(&plain, None, bounded(), &NoUploads).await.unwrap();
    assert!(first.is_dir() && second.is_dir());
    let (first_place, second_place) = (first.to_path_buf(), second.to_path_buf());
    drop((first, second));
    // What is there is found, whatever the bound is.
    let second = fetch_base_model(&plain, None, bounded(), &NoUploads).await.unwrap();
    let third = fetch_base_model("hf://lab/oldweights@main", None, bounded(), &NoUploads).await.unwrap();
    assert!(!first_place.exists() && second_place.is_dir() && third.is_dir());
    drop((second, third));
    let again = fetch_base_model("hf://lab/fine@main", None, bounded(), &NoUploads).await.unwrap();
    assert_eq!(std::fs::read(again.join("model.safetensors")).unwrap(), files(Fault::None)["model.safetensors"]);
    assert!(!second_place.exists());
}

#[tokio::test]
async fn bytes_that_are_not_what_was_announced_never_become_visible() {
    server();
    let cache = tempfile::tempdir().unwrap();
    let error = fetch("lies", cache.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert!(!cache.path().join("models/hub/lab--lies").join(COMMIT).exists());
}

#[tokio::test]
async fn a_repository_without_a_model_says_so() {
    server();
    let cache = tempfile::tempdir().unwrap();
    let error = fetch("notamodel", cache.path()).await.unwrap_err();
    assert!(error.to_string().contains("holds no config.json"), "{error}");
    let error = fetch("absent", cache.path()).await.unwrap_err();
    assert!(error.to_string().contains("404 (RepoNotFound)"), "{error}");
}

#[tokio::test]
async fn a_listed_file_cannot_leave_the_cache() {
    server();
    let cache = tempfile::tempdir().unwrap();
    let error = fetch_adapter("hf://lab/escapes", None, cache.path(), &NoUploads).await.unwrap_err();
    assert!(error.to_string().contains("outside its repository"), "{error}");
}

#[tokio::test]
async fn a_token_comes_from_the_named_variable() {
    server();
    let cache = tempfile::tempdir().unwrap();
    let error = fetch("private", cache.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { status: 401, .. }), "{error}");
    let error =
        fetch_base_model("hf://lab/private", Some("GRAFTWORK_NO_SUCH"), cache.path(), &NoUploads).await.unwrap_err();
    assert!(error.to_string().contains("GRAFTWORK_NO_SUCH"), "{error}");
    fetch_base_model("hf://lab/private", Some("TEST_TOKEN_OF_A_HUB"), cache.path(), &NoUploads).await.unwrap();
}

#[tokio::test]
async fn a_base_model_behind_plain_http_needs_no_list() {
    server();
    let cache = tempfile::tempdir().unwrap();
    let location = format!("{}/plain", std::env::var("HF_ENDPOINT").unwrap());
    let folder = fetch_base_model(&location, None, cache.path(), &NoUploads).await.unwrap();
    assert_eq!(listed(&folder), ["config.json", "model.safetensors", "tokenizer.json"]);
    let again = fetch_base_model(&location, None, cache.path(), &NoUploads).await.unwrap();
    assert_eq!(again.to_path_buf(), folder.to_path_buf());
}

#[tokio::test]
async fn weights_that_only_pytorch_wrote_come_too() {
    server();
    let cache = tempfile::tempdir().unwrap();
    let wanted = ["config.json", "pytorch_model.bin", "tokenizer.json"];
    assert_eq!(listed(&fetch("oldweights", cache.path()).await.unwrap()), wanted);
    let location = format!("{}/oldweights", std::env::var("HF_ENDPOINT").unwrap());
    assert_eq!(listed(&fetch_base_model(&location, None, cache.path(), &NoUploads).await.unwrap()), wanted);
}

#[tokio::test]
async fn a_store_that_refuses_to_say_what_is_absent_can_be_read() {
    server();
    let cache = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", std::env::var("HF_ENDPOINT").unwrap());
    let folder = fetch_base_model(&at("unlisted"), None, cache.path(), &NoUploads).await.unwrap();
    assert_eq!(listed(&folder), ["config.json", "pytorch_model.bin", "tokenizer.json"]);
    // Without any weights the refusal is what is wrong.
    let error = fetch_base_model(&at("allrefused"), None, cache.path(), &NoUploads).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { status: 403, .. }), "{error}");
}

#[tokio::test]
async fn keys_of_an_object_store_have_one_form() {
    server();
    let cache = tempfile::tempdir().unwrap();
    let error =
        fetch_base_model("s3://bucket/model", Some("TEST_TOKEN_OF_A_HUB"), cache.path(), &NoUploads).await.unwrap_err();
    assert!(error.to_string().contains("ACCESS_KEY:SECRET_KEY"), "{error}");
    assert!(!error.to_string().contains("sesame"), "a message never shows the secret");
}

#[tokio::test]
async fn local_folders_are_taken_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().to_str().unwrap();
    let error = fetch_base_model(at, None, folder.path(), &NoUploads).await.unwrap_err();
    assert!(error.to_string().contains("holds no config.json"), "{error}");
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert_eq!(
        fetch_base_model(at, None, folder.path(), &NoUploads).await.unwrap().to_path_buf(),
        folder.path().canonicalize().unwrap()
    );
    let error = fetch_base_model("/no/such/folder", None, folder.path(), &NoUploads).await.unwrap_err();
    assert!(matches!(error, StoreError::Missing(_)), "{error}");
}

#[tokio::test]
async fn a_release_whose_bytes_changed_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().to_str().unwrap();
    let write = |name: &str, bytes: &str| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("adapter_config.json", "{}");
    write("adapter.safetensors", "weights");
    let [config, weights] = ["{}", "weights"].map(|text| Digest::of(text.as_bytes()));
    let record = format!(r#"{{"files":{{"adapter_config.json":"{config}","adapter.safetensors":"{weights}"}}}}"#);
    write("graftwork.json", &record);
    assert!(fetch_adapter(at, None, folder.path(), &NoUploads).await.is_ok());
    write("adapter.safetensors", "weightz");
    let error = fetch_adapter(at, None, folder.path(), &NoUploads).await.unwrap_err();
    assert!(error.to_string().contains("adapter.safetensors: its SHA-256 is "), "{error}");
}

#[tokio::test]
async fn addresses_are_checked_before_anything_is_asked() {
    let cache = tempfile::tempdir().unwrap();
    for wrong in ["hf://model", "hf://a/b/c", "hf://a/../b", "hf://a/b@", "hf://a/b@../x", "ftp//:x", "nothing://a/b"] {
        let error = fetch_base_model(wrong, None, cache.path(), &NoUploads).await.unwrap_err();
        assert!(matches!(error, StoreError::Location { .. } | StoreError::Missing(_)), "{wrong}: {error}");
    }
}
