//! The built program in a tiny world, and what it told as one text that is the same on every machine.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

#[path = "../../src/fixture.rs"]
mod fixture;

pub(crate) use fixture::{TASK, World};

pub(crate) fn graftwork(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
    command.current_dir(folder).args(arguments).stdin(Stdio::null());
    command.env_remove("GRAFTWORK_COORDINATOR").env_remove("GRAFTWORK_LOG").env("COLUMNS", "100");
    // Whatever is cached goes with the world.
    command.env("XDG_CACHE_HOME", folder.join("cache"));
    command.output().unwrap()
}

/// Exit code, stdout and stderr, with the world's own folder written as WORLD.
pub(crate) fn told(world: &World, arguments: &[&str]) -> String {
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
    .replace(&canonical, "WORLD")
}

pub(crate) fn write_job(world: &World, name: &str, tasks: &str) {
    std::fs::write(world.path(name), world.parse(tasks).0).unwrap();
}

/// A coordinator in its own process, stopped with the value.
pub(crate) struct Coordinator {
    child: Child,
    pub(crate) address: String,
}

impl Coordinator {
    pub(crate) fn start(world: &World) -> Self {
        let address = format!("unix://{}", world.path("door/socket").display());
        let mut child = Command::new(env!("CARGO_BIN_EXE_graftwork"))
            .current_dir(world.path(""))
            .args(["coordinator", "--listen", &address, "--state", "state"])
            .env("XDG_CACHE_HOME", world.path("cache"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        said.find(|line| line.contains("listens on")).expect("it says where it listens");
        // What it says later must not fill the pipe.
        std::thread::spawn(move || said.count());
        Self { child, address }
    }

    /// Asks it to stop, as a terminal does; gives its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // One that was stopped is reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
