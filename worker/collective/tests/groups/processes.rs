//! Groups of real processes, over Gloo, TLS and NCCL: one is killed or frozen inside an all-reduce, and the others go on
//! without it.
//!
//! The children are this test binary itself, running [`child`]. They meet in a folder, tell what happened to them in files
//! there, and are killed when the test ends, however it ends. NCCL takes one rank of a host on a GPU, so the children of
//! one GPU each say that they are a host of their own, and meet over the loopback interface.

use std::{
    env, fs,
    io::ErrorKind,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use graftwork_collective::{
    Aborter, Backend, CollectiveError, FormRequest, Group, Rendezvous, RendezvousError, form, tls::Identity,
};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    authority::Authority,
    bench::{Bench, Place},
    moves,
};

/// Names the backend of a child, and what it does.
const BACKEND: &str = "GRAFTWORK_TEST_BACKEND";
const ACT: &str = "GRAFTWORK_TEST_ACT";
const FOLDER: &str = "GRAFTWORK_TEST_FOLDER";
const RANK: &str = "GRAFTWORK_TEST_RANK";

/// Where the children's certificate lies in that folder.
const TLS: &str = "tls";

/// How many processes there are.
const SIZE: usize = 3;

/// What arrives where, between processes too.
const MOVES: [crate::Behaviour; 4] = crate::behaviours! {
    moves: numbers_reach_the_ranks_they_are_for, bytes_travel_without_a_known_length,
        messages_of_two_ranks_keep_to_their_tags, a_split_makes_groups_that_work_beside_their_parent;
};

/// The tests of this file on one backend; ignored where there is none.
pub(crate) fn trials(backend: &'static str, there: bool) -> Vec<Trial> {
    let trial = |name: &str, run: Box<dyn FnOnce() + Send>| {
        let run = move || {
            run();
            Ok(())
        };
        Trial::test(format!("{backend}_processes::{name}"), run).with_ignored_flag(!there)
    };
    let mut trials = vec![
        trial("survivors_of_a_kill_go_on_in_a_new_epoch", Box::new(|| survivors_of_a_kill_go_on(backend))),
        trial("a_frozen_process_is_left_behind_by_an_abort", Box::new(|| a_frozen_process_is_left_behind(backend))),
    ];
    trials.extend(MOVES.map(|(name, _)| trial(name, Box::new(move || all_end_well(backend, name)))));
    trials
}

/// What this process does as a child of a test; `None` in the test itself.
pub(crate) fn child() -> Option<ExitCode> {
    let act = env::var(ACT).ok()?;
    let folder = PathBuf::from(env::var_os(FOLDER).unwrap());
    let rank: usize = env::var(RANK).unwrap().parse().unwrap();
    match MOVES.into_iter().find(|(name, _)| *name == act) {
        None => member(&folder, rank),
        Some((_, behaviour)) => {
            let table = Arc::new(FolderRendezvous(folder.clone()));
            behaviour(&Bench::of_process(backend(), Place { rank, size: SIZE, table }));
            write(&folder, &format!("end{rank}"), "well");
        }
    }
    Some(ExitCode::SUCCESS)
}

/// This child's backend.
fn backend() -> Backend {
    match env::var(BACKEND).unwrap().as_str() {
        "gpu" => Backend::Nccl { device: 0, library: None },
        "tls" => {
            let folder = PathBuf::from(env::var_os(FOLDER).unwrap()).join(TLS);
            Backend::Tls { address: Ipv4Addr::LOCALHOST.into(), identity: Identity::read(&folder).unwrap() }
        }
        _ => Backend::Gloo { address: Ipv4Addr::LOCALHOST.into() },
    }
}

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
    request.backend = backend();
    request.form_deadline = Duration::from_secs(30);
    let aborter = request.aborter.clone();
    Ok((form(request, Arc::new(FolderRendezvous(folder.to_owned())))?, aborter))
}

fn write(folder: &Path, name: &str, text: &str) {
    FolderRendezvous(folder.to_owned()).set(name, text.as_bytes()).unwrap();
}

/// Trains in epoch 1 until it breaks, then in epoch 2, of the ranks that the test names as its survivors.
fn member(folder: &Path, rank: usize) {
    let (mut group, aborter) = join(folder, 1, rank, SIZE).unwrap();
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
            write(folder, &format!("ready{rank}"), "");
        }
    };
    write(folder, &format!("error{rank}"), &format!("{:?}: {error}", error.remedy()));
    let survivors = FolderRendezvous(folder.to_owned()).get("survivors", Duration::from_secs(10)).unwrap();
    let survivors: Vec<usize> = survivors.iter().map(|digit| usize::from(digit - b'0')).collect();
    let said = match survivors.iter().position(|&survivor| survivor == rank) {
        Some(place) => {
            let (mut group, _) = join(folder, 2, place, survivors.len()).unwrap();
            let mut numbers = [1.0, f32::from(u8::try_from(rank).unwrap())];
            group.all_reduce(&mut numbers).unwrap();
            group.leave().unwrap();
            format!("{numbers:?}")
        }
        None => join(folder, 1, rank, SIZE).err().unwrap().to_string(),
    };
    write(folder, &format!("end{rank}"), &said);
}

struct Members {
    folder: tempfile::TempDir,
    children: Vec<Child>,
}

impl Members {
    /// Three processes in the middle of their all-reduces.
    fn training(backend: &str) -> Self {
        let members = Self::start(backend, "train");
        for rank in 0..SIZE {
            members.file(&format!("ready{rank}"));
        }
        members
    }

    fn start(backend: &str, act: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Authority::new().write(&folder.path().join(TLS));
        let member = |rank: usize| {
            Command::new(env::current_exe().unwrap())
                .env(BACKEND, backend)
                .env(ACT, act)
                .env(FOLDER, folder.path())
                .env(RANK, rank.to_string())
                .env("NCCL_HOSTID", format!("host{rank}"))
                .env("NCCL_SOCKET_IFNAME", "lo")
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        };
        let children = (0..SIZE).map(member).collect();
        Self { folder, children }
    }

    fn signal(&self, rank: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.children[rank]), signal).unwrap();
    }

    fn file(&self, name: &str) -> String {
        let value = FolderRendezvous(self.folder.path().to_owned()).get(name, Duration::from_secs(40));
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

fn all_end_well(backend: &str, act: &str) {
    let members = Members::start(backend, act);
    for rank in 0..SIZE {
        assert_eq!(members.file(&format!("end{rank}")), "well");
    }
}

fn survivors_of_a_kill_go_on(backend: &str) {
    let members = Members::training(backend);
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

fn a_frozen_process_is_left_behind(backend: &str) {
    let members = Members::training(backend);
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
