//! The command line as users meet it: help, messages, exit codes, and what goes to stdout and to stderr.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

#[path = "../src/fixture.rs"]
#[expect(dead_code, reason = "the planner's tests use more of it")]
mod fixture;

use fixture::{TASK, World};

fn graftwork(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
    command.current_dir(folder).args(arguments).stdin(Stdio::null());
    command.env_remove("GRAFTWORK_COORDINATOR").env_remove("GRAFTWORK_LOG").env("COLUMNS", "100");
    command.output().unwrap()
}

/// Exit code, stdout and stderr, with the world's own folder written as WORLD.
fn told(world: &World, arguments: &[&str]) -> String {
    let output = graftwork(&world.path(""), arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let folder = world.path("").display().to_string();
    let canonical = world.path("").canonicalize().unwrap().display().to_string();
    format!(
        "exit {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr)
    )
    .replace(&format!("{canonical}/"), "WORLD/")
    .replace(&folder, "WORLD/")
}

fn write_job(world: &World, name: &str, tasks: &str) {
    std::fs::write(world.path(name), world.parse(tasks).0).unwrap();
}

#[test]
fn help_names_every_verb() {
    let world = World::new();
    let help = told(&world, &["--help"]);
    assert!(help.starts_with("exit 0\n"), "{help}");
    for verb in ["plan", "run", "submit", "watch", "report", "verify", "coordinator", "import", "doctor"] {
        assert!(help.contains(&format!("  {verb} ")), "{verb} is missing in\n{help}");
        let own = told(&world, &[verb, "--help"]);
        assert!(own.starts_with("exit 0\n") && own.contains("Usage:"), "{own}");
    }
}

#[test]
fn a_misspelt_verb_or_flag_is_the_users_input() {
    let world = World::new();
    assert!(told(&world, &["plam"]).starts_with("exit 1\n"));
    assert!(told(&world, &["plan", "--outptu", "json", "x"]).starts_with("exit 1\n"));
    assert!(told(&world, &["--version"]).starts_with("exit 0\n"));
}

#[test]
fn a_job_file_that_is_not_there_is_said_plainly() {
    let world = World::new();
    let said = told(&world, &["plan", "nowhere.toml"]);
    assert!(said.starts_with("exit 1\n") && said.contains("nowhere.toml: "), "{said}");
}

#[test]
fn problems_of_the_file_and_of_the_data_are_placed_in_the_file() {
    let world = World::new();
    write_job(&world, "misspelt.toml", &format!("{TASK}lable = \"label\"\n"));
    let said = told(&world, &["plan", "misspelt.toml"]);
    assert!(said.starts_with("exit 1\n") && said.contains("misspelt.toml") && said.contains("label"), "{said}");
    write_job(&world, "column.toml", &format!("{TASK}label = \"lable\"\n"));
    let said = told(&world, &["plan", "column.toml"]);
    assert!(said.starts_with("exit 1\n") && said.contains("column.toml") && said.contains("lable"), "{said}");
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
    write_job(&world, "job.toml", TASK);
    let output = graftwork(&world.path(""), &["plan", "job.toml"]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["mood", "seq_bn, reduction factor 2", "166", "estimate"] {
        assert!(table.contains(part), "{part} is missing in\n{table}");
    }
    let json = graftwork(&world.path(""), &["plan", "job.toml", "--output", "json"]);
    let plan: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(plan["plan"]["stages"][0]["total_steps"], 4);
    assert!(!world.path(".graftwork").exists(), "planning leaves no state");
}

#[test]
fn jobs_that_nobody_knows_are_the_users_input() {
    let world = World::new();
    let said = told(&world, &["status"]);
    assert!(said.starts_with("exit 0\n") && said.contains("no jobs"), "{said}");
    for arguments in [["report", "0123456789abcdef"], ["report", "mood"], ["cancel", "0123456789abcdef"]] {
        let said = told(&world, &arguments);
        assert!(said.starts_with("exit 1\n") && said.contains(arguments[1]), "{said}");
    }
}

#[test]
fn a_coordinator_that_is_not_there_is_named() {
    let world = World::new();
    write_job(&world, "job.toml", TASK);
    let said = told(&world, &["submit", "job.toml"]);
    assert!(said.starts_with("exit 1\n") && said.contains("GRAFTWORK_COORDINATOR"), "{said}");
    let told = told(&world, &["submit", "job.toml", "--coordinator", "http://127.0.0.1:9"]);
    assert!(told.starts_with("exit 1\n") && told.contains("no coordinator answers at http://127.0.0.1:9"), "{told}");
}

#[test]
fn a_port_in_use_or_open_to_the_network_is_refused() {
    let world = World::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // Any variable with a value holds a token for this test.
    let said = told(&world, &["coordinator", "--listen", &address, "--token-env", "PATH"]);
    assert!(said.starts_with("exit 1\n") && said.contains(&format!("cannot listen on {address}")), "{said}");
    let said = told(&world, &["coordinator", "--listen", "0.0.0.0:7070"]);
    assert!(said.starts_with("exit 1\n") && said.contains("0.0.0.0:7070"), "{said}");
    let said = told(&world, &["coordinator", "--listen", "127.0.0.1:0"]);
    assert!(said.starts_with("exit 1\n") && said.contains("--token-env"), "{said}");
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
    let (code, said) = installed(&installation(None), &["predict", "--text", "x"]);
    assert!(code == Some(2) && said.contains("must lie beside graftwork"), "{said}");
    let other = installation(Some("#!/bin/sh\necho graftwork-worker 99.0.0\n"));
    let (code, said) = installed(&other, &["worker", "--coordinator", "http://127.0.0.1:9"]);
    assert!(code == Some(2) && said.contains("99.0.0"), "{said}");
    assert!(said.contains("install both programs of one version"), "{said}");
}

#[test]
fn arguments_for_the_worker_reach_it_as_they_are() {
    let version = env!("CARGO_PKG_VERSION");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo graftwork-worker {version} && exit\necho \"$@\" >&2\nexit 7\n"
    );
    let folder = installation(Some(&script));
    let (code, said) = installed(&folder, &["worker", "--coordinator", "unix:///x", "--threads", "2", "--help"]);
    assert_eq!((code, said.trim()), (Some(7), "session --coordinator unix:///x --threads 2 --help"));
}

#[test]
fn the_schema_and_completions_go_to_stdout() {
    let world = World::new();
    let schema = graftwork(&world.path(""), &["schema"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&schema.stdout).unwrap().is_object());
    let script = graftwork(&world.path(""), &["completions", "bash"]);
    assert!(String::from_utf8_lossy(&script.stdout).contains("_graftwork"));
}

#[test]
fn an_import_says_what_it_did_and_what_it_cannot_do() {
    let world = World::new();
    std::fs::write(world.path("x.csv"), "text,label\na,0\nb,1\nc,0\nd,1\n").unwrap();
    let done = told(&world, &["import", "x.csv", "--to", "out", "--validation", "0", "--test", "0"]);
    assert!(done.starts_with("exit 0\n") && done.contains("4 records"), "{done}");
    let refused = told(&world, &["import", "absent.csv", "--to", "other"]);
    assert!(refused.starts_with("exit 1\n") && refused.contains("absent.csv"), "{refused}");
}

#[test]
fn a_job_without_workers_waits_is_explained_and_can_be_cancelled() {
    let world = World::new();
    write_job(&world, "job.toml", TASK);
    let socket = format!("unix://{}", world.path("door/socket").display());
    let mut coordinator = Command::new(env!("CARGO_BIN_EXE_graftwork"))
        .current_dir(world.path(""))
        .args(["coordinator", "--listen", &socket, "--state", "state"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(coordinator.stderr.take().unwrap()).lines().map_while(Result::ok);
    said.find(|line| line.contains("listens on")).expect("it says where it listens");
    // What it says later must not fill the pipe.
    let rest = std::thread::spawn(move || said.count());
    let ask = |arguments: &[&str]| {
        let output = graftwork(&world.path(""), &[arguments, &["--coordinator", &socket]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let job = ask(&["submit", "job.toml"]).trim().to_owned();
    assert_eq!(ask(&["submit", "job.toml"]).trim(), job, "the same file is the same job");
    assert!(ask(&["status"]).contains(&job));
    assert!(ask(&["explain", &job]).contains("no worker is connected"));
    ask(&["cancel", &job]);
    assert!(ask(&["report", &job]).contains("cancelled"));
    let pid = rustix::process::Pid::from_child(&coordinator);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(coordinator.wait().unwrap().code(), Some(0));
    drop(rest.join());
}
