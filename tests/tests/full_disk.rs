//! A state disk that fills while a job trains: the end says so, nothing is lost, and with room again the same command
//! goes on to the same bytes (invariants 4 and 5).
//!
//! The disk is a tmpfs of a few megabytes, so the test needs root and is skipped without it.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{Run, World, tensor_digests};
use libtest_mimic::{Arguments, Failed, Trial};

/// A small file system of its own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(&folder).output()?;
        ensure!(mount.status.success(), "{}", String::from_utf8_lossy(&mount.stderr));
        Ok(Self(folder))
    }

    /// Takes all room that is left.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.0.join("filler");
        let mut file = File::create(&path)?;
        for size in [1 << 16, 1 << 10, 1] {
            let piece = vec![0; size];
            while file.write_all(&piece).is_ok() {}
        }
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, since a process of a failed test may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn run(job: &Path) -> Result<Run> {
    Run::start(job, &["--state", "small", "--threads", "2"])
}

fn a_full_disk_ends_the_job_with_its_name_and_loses_nothing() -> Result<()> {
    let world = World::new()?;
    let undisturbed = world.job("undisturbed.toml", "expected", "")?;
    Run::start(&undisturbed, &["--state", "state"])?.finish(0)?;
    let disk = SmallDisk::mount(world.path().join("small"))?;
    let job = world.job("job.toml", "hub", "")?;
    let mut full = run(&job)?;
    full.wait_for_checkpoint("topic", 4)?;
    let filler = disk.fill()?;
    let ended = full.wait()?;
    ensure!(ended.status.code().context("it ends by itself")? != 0, "{}", ended.stderr);
    ensure!(ended.stderr.contains("full"), "it says that the disk is full: {}", ended.stderr);
    fs::remove_file(filler)?;
    run(&job)?.finish(0)?;
    assert_eq!(tensor_digests(&world.path().join("hub"))?, tensor_digests(&world.path().join("expected"))?);
    Ok(())
}

fn main() -> ExitCode {
    let folder = std::env::temp_dir().join(format!("graftwork-mount-{}", std::process::id()));
    let may_mount = SmallDisk::mount(folder.clone());
    if let Err(error) = &may_mount {
        eprintln!("skipped: a file system cannot be mounted here ({error:#})");
    }
    let ignored = may_mount.is_err();
    drop(may_mount);
    // Empty, and left behind only where something else took the place.
    let _ = fs::remove_dir(folder);
    let name = "a_full_disk_ends_the_job_with_its_name_and_loses_nothing";
    let test = || {
        a_full_disk_ends_the_job_with_its_name_and_loses_nothing().map_err(|error| Failed::from(format!("{error:#}")))
    };
    libtest_mimic::run(&Arguments::from_args(), vec![Trial::test(name, test).with_ignored_flag(ignored)]).exit_code()
}
