//! Gloo between real processes: one is killed or frozen inside an all-reduce, and the others go on without it.
//!
//! The children are this test binary itself, running [`member`]. They meet in a folder, tell what happened to them in
//! files there, and are killed when the test ends, however it ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::{
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use graftwork_collective::{Aborter, CollectiveError, FormRequest, Group, Rendezvous, RendezvousError, form};
use rustix::process::{Pid, Signal, kill_process};

/// A table of keys in a folder that all processes reach.
struct FolderRendezvous(PathBuf);

impl FolderRendezvous {
    fn path(&self, key: &str) -> PathBuf {
        self.0.join(key.replace('/', "+"))
    }
}

impl Rendezvous for FolderRendezvous {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), RendezvousError> {
        let aside = self.path(&format!("{key}.new{}", std::process::id()));
        let written = fs::write(&aside, value).and_then(|()| fs::rename(&aside, self.path(key)));
        written.map_err(|error| RendezvousError::Unreachable(error.to_string()))
    }

    fn get(&self, key: &str, deadline: Duration) -> Result<Vec<u8>, RendezvousError> {
        let began = Instant::now();
        loop {
            match fs::read(self.path(key)) {
                Ok(value) => return Ok(value),
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(RendezvousError::Unreachable(error.to_string()));
                }
                Err(_) if began.elapsed() >= deadline => {
                    return Err(RendezvousError::Deadline { key: key.to_owned(), limit_ms: 0 });
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, RendezvousError> {
        assert_eq!(amount, 1, "only counting is needed here");
        let mut sum = 1;
        while fs::File::create_new(self.path(&format!("{key}.{sum}"))).is_err() {
            sum += 1;
        }
        Ok(sum)
    }
}

fn join(folder: &Path, epoch: u64, rank: usize, size: usize) -> Result<(Box<dyn Group>, Aborter), CollectiveError> {
    let mut request = FormRequest::new("stage", epoch, rank, size);
    request.form_deadline = Duration::from_secs(10);
    let aborter = request.aborter.clone();
    Ok((form(request, Arc::new(FolderRendezvous(folder.to_owned())))?, aborter))
}

fn write(folder: &Path, name: &str, text: &str) {
    FolderRendezvous(folder.to_owned()).set(name, text.as_bytes()).unwrap();
}

/// Trains in epoch 1 until it breaks, then in epoch 2, of the ranks that the test names as its survivors.
#[test]
#[ignore = "the other tests start it as a process"]
fn member() {
    let folder = PathBuf::from(env::var_os("GRAFTWORK_TEST_FOLDER").unwrap());
    let rank: usize = env::var("GRAFTWORK_TEST_RANK").unwrap().parse().unwrap();
    let (mut group, aborter) = join(&folder, 1, rank, 3).unwrap();
    let watched = folder.join("abort");
    thread::spawn(move || {
        while !watched.exists() {
            thread::sleep(Duration::from_millis(2));
        }
        aborter.abort();
    });
    let mut numbers = vec![0.0; 1_000_000];
    let mut rounds = 0;
    let error = loop {
        match group.all_reduce(&mut numbers) {
            Ok(()) => rounds += 1,
            Err(error) => break error,
        }
        if rounds == 3 {
            write(&folder, &format!("ready{rank}"), "");
        }
    };
    write(&folder, &format!("error{rank}"), &format!("{:?}: {error}", error.remedy()));
    let survivors = FolderRendezvous(folder.clone()).get("survivors", Duration::from_secs(10)).unwrap();
    let survivors: Vec<usize> = survivors.iter().map(|digit| usize::from(digit - b'0')).collect();
    let said = match survivors.iter().position(|&survivor| survivor == rank) {
        Some(place) => {
            let (mut group, _) = join(&folder, 2, place, survivors.len()).unwrap();
            let mut numbers = [1.0, f32::from(u8::try_from(rank).unwrap())];
            group.all_reduce(&mut numbers).unwrap();
            group.leave().unwrap();
            format!("{numbers:?}")
        }
        None => join(&folder, 1, rank, 3).err().unwrap().to_string(),
    };
    write(&folder, &format!("end{rank}"), &said);
}

struct Members {
    folder: tempfile::TempDir,
    children: Vec<Child>,
}

impl Members {
    /// Three processes in the middle of their all-reduces.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let member = |rank: usize| {
            Command::new(env::current_exe().unwrap())
                .args(["member", "--exact", "--ignored", "--nocapture"])
                .env("GRAFTWORK_TEST_FOLDER", folder.path())
                .env("GRAFTWORK_TEST_RANK", rank.to_string())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        };
        let children = (0..3).map(member).collect();
        let members = Self { folder, children };
        for rank in 0..3 {
            members.file(&format!("ready{rank}"));
        }
        members
    }

    fn signal(&self, rank: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.children[rank]), signal).unwrap();
    }

    fn file(&self, name: &str) -> String {
        let value = FolderRendezvous(self.folder.path().to_owned()).get(name, Duration::from_secs(15));
        String::from_utf8(value.unwrap_or_else(|error| panic!("{error}"))).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        write(self.folder.path(), name, text);
    }

    fn file_is_missing(&self, name: &str) -> bool {
        !self.folder.path().join(name).exists()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn survivors_of_a_kill_go_on_in_a_new_epoch() {
    let members = Members::start();
    let killed = Instant::now();
    members.signal(1, Signal::KILL);
    for rank in [0, 2] {
        let error = members.file(&format!("error{rank}"));
        assert!(error.starts_with("Reform: a member of the group was lost in all-reduce"), "{error}");
    }
    let noticed = killed.elapsed();
    members.write("survivors", "02");
    for rank in [0, 2] {
        assert_eq!(members.file(&format!("end{rank}")), "[2.0, 2.0]");
    }
    eprintln!("noticed after {} ms, went on after {} ms", noticed.as_millis(), killed.elapsed().as_millis());
    assert!(noticed < Duration::from_secs(2), "{noticed:?}");
}

#[test]
fn a_frozen_process_is_left_behind_by_an_abort_and_cannot_come_back() {
    let members = Members::start();
    members.signal(1, Signal::STOP);
    thread::sleep(Duration::from_millis(300));
    assert!(members.file_is_missing("error0") && members.file_is_missing("error2"), "a frozen peer is no fault");
    let aborted = Instant::now();
    members.write("abort", "");
    for rank in [0, 2] {
        let error = members.file(&format!("error{rank}"));
        assert!(error.starts_with("Reform: "), "{error}");
    }
    let noticed = aborted.elapsed();
    members.write("survivors", "02");
    for rank in [0, 2] {
        assert_eq!(members.file(&format!("end{rank}")), "[2.0, 2.0]");
    }
    members.signal(1, Signal::CONT);
    let error = members.file("error1");
    assert!(error.starts_with("Reform: "), "{error}");
    assert_eq!(members.file("end1"), "rank 1 of stage in epoch 1 is taken; an epoch is formed once");
    eprintln!("returned {} ms after the abort", noticed.as_millis());
    assert!(noticed < Duration::from_secs(1), "{noticed:?}");
}
