//! The command line as users meet it: help, messages, exit codes, and what goes to stdout and to stderr.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::{os::unix::fs::PermissionsExt as _, process::Command};

mod told;

use graftwork_shared::digest::Digest;
use told::{Coordinator, TASK, World, graftwork, told, write_job};

/// Job ids depend on the world's own folder.
fn without_ids(text: &str) -> String {
    let is_id = |word: &str| word.len() == 16 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let word = |c: char| !c.is_ascii_alphanumeric();
    let mut ids: Vec<&str> = text.split(word).filter(|word| is_id(word)).collect();
    ids.dedup();
    ids.iter().fold(text.to_owned(), |text, id| text.replace(id, "JOB"))
}

#[test]
fn help_names_every_verb() {
    let world = World::new();
    insta::assert_snapshot!("help", told(&world, &["--help"]));
    let verbs = [
        "plan",
        "run",
        "nightly",
        "submit",
        "status",
        "watch",
        "logs",
        "explain",
        "cancel",
        "forget",
        "report",
        "import",
        "coordinator",
        "backup",
        "restore",
        "deploy",
        "cert",
        "token",
        "verify",
        "schema",
        "doctor",
        "man",
        "completions",
    ];
    for verb in verbs {
        insta::assert_snapshot!(format!("help_{verb}"), told(&world, &[verb, "--help"]));
    }
}

#[test]
fn a_misspelt_verb_or_flag_is_the_users_input() {
    let world = World::new();
    insta::assert_snapshot!("misspelt_verb", told(&world, &["plam"]));
    insta::assert_snapshot!("misspelt_flag", told(&world, &["plan", "--outptu", "json", "x"]));
    assert!(told(&world, &["--version"]).starts_with("exit 0\n"));
}

#[test]
fn a_job_file_that_is_not_there_is_said_plainly() {
    let world = World::new();
    insta::assert_snapshot!("no_job_file", told(&world, &["plan", "nowhere.toml"]));
}

#[test]
fn problems_are_a_json_document_on_request() {
    let world = World::new();
    write_job(&world, "column.toml", &format!("{TASK}label = \"lable\"\n"));
    let json = graftwork(&world.path(""), &["plan", "column.toml", "--output", "json"]);
    assert_eq!(json.status.code(), Some(1));
    let problems: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(problems[0]["code"], "missing-column", "{problems}");
}

#[test]
fn problems_of_the_file_and_of_the_data_come_at_once() {
    let world = World::new();
    let other = "[tasks.other]\ntrain = \"nowhere.parquet\"\nvalidation = \"validation.parquet\"\n";
    write_job(&world, "both.toml", &format!("{TASK}lable = \"label\"\n{other}"));
    for verb in ["plan", "run"] {
        let said = told(&world, &[verb, "both.toml"]);
        assert!(said.starts_with("exit 1\n"), "{said}");
        assert!(said.contains("did you mean `label`?") && said.contains("nowhere.parquet does not exist"), "{said}");
    }
}

#[test]
fn a_sound_job_is_planned_on_stdout() {
    let world = World::new();
    write_job(&world, "job.toml", &format!("{TASK}[resources]\nthreads = 1\n"));
    insta::assert_snapshot!("plan", without_ids(&told(&world, &["plan", "job.toml"])));
    let json = graftwork(&world.path(""), &["plan", "job.toml", "--output", "json"]);
    let plan: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(plan["plan"]["stages"][0]["total_steps"], 4);
    assert!(!world.path(".graftwork").exists(), "planning leaves no state");
}

#[test]
fn jobs_that_nobody_knows_are_the_users_input() {
    let world = World::new();
    insta::assert_snapshot!("status_without_jobs", told(&world, &["status"]));
    let id = "0123456789abcdef";
    for verb in ["report", "explain", "cancel", "watch", "logs"] {
        insta::assert_snapshot!(format!("unknown_job_{verb}"), told(&world, &[verb, id]));
    }
    insta::assert_snapshot!("no_job_id", told(&world, &["report", "mood"]));
}

#[test]
fn a_coordinator_that_is_not_there_is_named() {
    let world = World::new();
    write_job(&world, "job.toml", TASK);
    insta::assert_snapshot!("no_coordinator_named", told(&world, &["submit", "job.toml"]));
    let nobody = told(&world, &["submit", "job.toml", "--coordinator", "http://127.0.0.1:9"]);
    insta::assert_snapshot!("no_coordinator_answers", nobody);
    let wrong = told(&world, &["submit", "job.toml", "--coordinator", "carrier pigeon"]);
    insta::assert_snapshot!("no_coordinator_address", wrong);
    let open = told(&world, &["submit", "job.toml", "--coordinator", "http://10.0.0.1:7700"]);
    insta::assert_snapshot!("plain_text_beyond_loopback", open);
    let ca = ["submit", "job.toml", "--coordinator", "https://127.0.0.1:9", "--tls-ca", "job.toml"];
    insta::assert_snapshot!("no_ca", told(&world, &ca));
}

#[test]
fn a_port_in_use_or_open_to_the_network_is_refused() {
    let world = World::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // Any variable with a value holds a token for this test.
    let said =
        told(&world, &["coordinator", "--listen", &address, "--token-env", "PATH"]).replace(&address, "127.0.0.1:PORT");
    insta::assert_snapshot!("port_in_use", without_times(&said));
    let said = told(&world, &["coordinator", "--listen", "0.0.0.0:7070"]);
    insta::assert_snapshot!("open_to_the_network", without_times(&said));
    let said = told(&world, &["coordinator", "--listen", "127.0.0.1:0"]);
    insta::assert_snapshot!("without_a_token", without_times(&said));
}

/// Dates are of today.
fn without_dates(text: &str) -> String {
    let is_date = |word: &&str| word.len() == 10 && word.starts_with("20") && word.matches('-').count() == 2;
    let punctuation = |letter: char| !letter.is_ascii_digit() && letter != '-';
    let dates: Vec<&str> = text.split(punctuation).filter(is_date).collect();
    dates.iter().fold(text.to_owned(), |text, date| text.replace(date, "DATE"))
}

#[test]
fn certificates_are_made_once_and_renewed() {
    let world = World::new();
    let mode = |name: &str| std::fs::metadata(world.path(name)).unwrap().permissions().mode() & 0o777;
    insta::assert_snapshot!("cert_without_a_name", told(&world, &["cert", "tls"]));
    let make = ["cert", "tls", "--host", "trainer.example", "--host", "10.0.0.7"];
    insta::assert_snapshot!("cert", without_dates(&told(&world, &make)));
    assert_eq!(["tls/ca.key", "tls/coordinator.key"].map(mode), [0o600; 2]);
    insta::assert_snapshot!("cert_again", told(&world, &make));
    insta::assert_snapshot!("cert_renewed", without_dates(&told(&world, &["cert", "tls", "--renew", "--days", "30"])));
    insta::assert_snapshot!("cert_of_no_folder", told(&world, &["cert", "nowhere", "--renew"]));
}

#[test]
fn a_token_is_printed_once_and_kept_as_a_digest() {
    let world = World::new();
    let made = graftwork(&world.path(""), &["token", "tokens.toml", "ann", "--role", "submit"]);
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    assert!(token.starts_with("graftwork-submit-") && token.len() == 81, "{token}");
    assert!(!String::from_utf8(made.stderr).unwrap().contains(&token));
    let text = std::fs::read_to_string(world.path("tokens.toml")).unwrap();
    let digest = Digest::of(token.as_bytes());
    assert_eq!(text, format!("[[token]]\nname = \"ann\"\nrole = \"submit\"\nowner = \"ann\"\nsha256 = \"{digest}\"\n"));
    insta::assert_snapshot!("token_of_the_same_name", told(&world, &["token", "tokens.toml", "ann", "--role", "join"]));
    let owned = ["token", "tokens.toml", "worker", "--role", "join", "--owner", "ann"];
    insta::assert_snapshot!("token_without_jobs", told(&world, &owned));
    std::fs::set_permissions(world.path("tokens.toml"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = ["coordinator", "--listen", "http://127.0.0.1:0", "--tokens", "tokens.toml"];
    insta::assert_snapshot!("tokens_open_to_others", told(&world, &open));
}

/// Log lines begin with the time.
fn without_times(text: &str) -> String {
    let is_time = |word: &str| word.starts_with("20") && word.ends_with('Z');
    let line = |line: &str| match line.split_once(' ') {
        Some((first, rest)) if is_time(first) => format!("TIME {}\n", rest.trim_start()),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// A folder with this program and something in the worker's place.
fn installation(worker: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_graftwork"), folder.path().join("graftwork")).unwrap();
    if let Some(script) = worker {
        let path = folder.path().join("graftwork-worker");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

fn installed(folder: &tempfile::TempDir, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(folder.path().join("graftwork")).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_worker_program_that_is_absent_or_of_another_version_is_refused() {
    let none = installation(None);
    let (code, said) = installed(&none, &["predict", "--text", "x"]);
    assert_eq!(code, Some(2));
    insta::assert_snapshot!("no_worker_program", said.replace(&none.path().display().to_string(), "INSTALLATION"));
    let other = installation(Some("#!/bin/sh\necho graftwork-worker 99.0.0\n"));
    let (code, said) = installed(&other, &["worker", "--coordinator", "http://127.0.0.1:9"]);
    assert_eq!(code, Some(2));
    let said = said.replace(&other.path().display().to_string(), "INSTALLATION");
    insta::assert_snapshot!("worker_of_another_version", said);
}

#[test]
fn arguments_for_the_worker_reach_it_as_they_are() {
    let version = env!("CARGO_PKG_VERSION");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo graftwork-worker {version} && exit\necho \"$@\" >&2\nexit 7\n"
    );
    let folder = installation(Some(&script));
    let (code, said) = installed(&folder, &["worker", "--coordinator", "unix:///x", "--threads", "2", "--help"]);
    assert_eq!((code, said.trim()), (Some(7), "worker --coordinator unix:///x --threads 2 --help"));
}

#[test]
fn the_schema_and_completions_go_to_stdout() {
    let world = World::new();
    let schema = graftwork(&world.path(""), &["schema"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&schema.stdout).unwrap().is_object());
    let script = graftwork(&world.path(""), &["completions", "bash"]);
    let script = String::from_utf8_lossy(&script.stdout).into_owned();
    assert!(script.contains("_graftwork"));
    // Options of the worker program, and values of one of them.
    assert!(script.contains("--group-address") && script.contains("\"cpu cuda\""), "{script}");
}

#[test]
fn an_import_says_what_it_did_and_what_it_cannot_do() {
    let world = World::new();
    std::fs::write(world.path("x.csv"), "text,label\na,0\nb,1\nc,0\nd,1\n").unwrap();
    let done = told(&world, &["import", "x.csv", "--to", "out", "--validation", "0", "--test", "0"]);
    insta::assert_snapshot!("import", done);
    insta::assert_snapshot!("import_of_nothing", told(&world, &["import", "absent.csv", "--to", "other"]));
}

#[test]
fn a_job_without_workers_waits_is_explained_and_can_be_cancelled() {
    let world = World::new();
    write_job(&world, "job.toml", TASK);
    let coordinator = Coordinator::start(&world);
    let ask = |arguments: &[&str]| {
        let said = told(&world, &[arguments, &["--coordinator", &coordinator.address]].concat());
        without_ids(&said)
    };
    let first = told(&world, &["submit", "job.toml", "--coordinator", &coordinator.address]);
    let job = first.lines().nth(2).unwrap().to_owned();
    insta::assert_snapshot!("submit", without_ids(&first));
    insta::assert_snapshot!("submit_again", ask(&["submit", "job.toml"]));
    insta::assert_snapshot!("status_of_a_waiting_job", ask(&["status"]));
    insta::assert_snapshot!("explain", ask(&["explain", &job]));
    insta::assert_snapshot!("cancel", ask(&["cancel", &job]));
    insta::assert_snapshot!("report_of_a_cancelled_job", without_seconds(&ask(&["report", &job])));
    insta::assert_snapshot!("watch_of_an_ended_job", ask(&["watch", &job]));
    assert_eq!(coordinator.stop(), Some(0));
}

/// How long it took is the machine's.
fn without_seconds(text: &str) -> String {
    let line = |line: &str| match line.strip_suffix(" from submission to end").and_then(|line| line.rsplit_once(", ")) {
        Some((usage, _)) => format!("{usage}, TIME from submission to end\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn a_job_over_a_shared_root_uploads_nothing() {
    let world = World::new();
    write_job(&world, "job.toml", TASK);
    let coordinator = Coordinator::start(&world);
    let submit = |root: &str| {
        let said = told(&world, &["submit", "job.toml", "--coordinator", &coordinator.address, "--shared-root", root]);
        without_ids(&said)
    };
    insta::assert_snapshot!("submit_over_a_shared_root", submit("."));
    insta::assert_snapshot!("no_shared_root", submit("nowhere"));
}

#[test]
fn what_a_coordinator_finds_wrong_is_placed_in_the_users_file() {
    let world = World::new();
    let coordinator = Coordinator::start(&world);
    let submit = |tasks: &str| {
        write_job(&world, "job.toml", tasks);
        told(&world, &["submit", "job.toml", "--coordinator", &coordinator.address])
    };
    insta::assert_snapshot!("submit_of_a_missing_column", submit(&format!("{TASK}label = \"lable\"\n")));
    insta::assert_snapshot!("submit_of_missing_files", submit(&TASK.replace("train.parquet", "trian.parquet")));
    let bytes = std::fs::read(world.path("test.parquet")).unwrap();
    std::fs::write(world.path("test.parquet"), &bytes[..100]).unwrap();
    insta::assert_snapshot!("submit_of_a_truncated_file", submit(TASK));
}

#[test]
fn an_upload_that_was_damaged_in_the_store_is_refused_and_goes_again() {
    let world = World::new();
    write_job(&world, "job.toml", TASK);
    let coordinator = Coordinator::start(&world);
    let submit = || told(&world, &["submit", "job.toml", "--coordinator", &coordinator.address]);
    assert!(submit().starts_with("exit 0\n"));
    let rows = Digest::of(&std::fs::read(world.path("train.parquet")).unwrap()).to_string();
    let blob = world.path("state/blobs").join(&rows[..2]).join(&rows);
    let bytes = std::fs::read(&blob).unwrap();
    std::fs::write(&blob, &bytes[..bytes.len() / 2]).unwrap();
    // Another job over the same rows.
    write_job(&world, "job.toml", &format!("{TASK}[tasks.mood.training]\nseed = 3\n"));
    let refused = submit();
    assert!(refused.starts_with("exit 1\n") && refused.contains("is damaged"), "{refused}");
    assert!(refused.contains("submit the job again: it uploads what is missing"), "{refused}");
    let again = submit();
    assert!(again.starts_with("exit 0\n") && again.contains("uploaded 1 file,"), "{again}");
}

#[test]
fn a_log_is_followed_until_its_job_ends() {
    let world = World::new();
    let folder = world.path("jobs/0123456789abcdef");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("workers.log"), "first\n").unwrap();
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let follow = std::thread::scope(|scope| {
        let follow = scope.spawn(|| told(&world, &["logs", "0123456789abcdef", "--state", "jobs", "--follow"]));
        std::thread::sleep(std::time::Duration::from_millis(600));
        let mut log = std::fs::File::options().append(true).open(folder.join("workers.log")).unwrap();
        std::io::Write::write_all(&mut log, b"second\n").unwrap();
        assert!(!follow.is_finished(), "the job is led by somebody");
        std::fs::write(folder.join("report.json"), "{}").unwrap();
        drop(lock);
        follow.join().unwrap()
    });
    assert_eq!(follow, "exit 0\n--- stdout\nfirst\nsecond\n--- stderr\n");
    let once = told(&world, &["logs", "0123456789abcdef", "--state", "jobs"]);
    assert_eq!(once, follow);
}
