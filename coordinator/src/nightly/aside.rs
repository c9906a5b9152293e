//! Histories of nights, put aside beside a state while nights go on.
//!
//! A kept night is a folder whose `night.json` is written last and removed first, so it is copied in that order too: what
//! is in the copy is whole. A night under way is not in it: a coordinator that is brought back forgets its job, and runs
//! the night when it is due. What two versions or stored nights came to side by side can be had again, and stays behind.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::history::{NIGHT, Tonight, read_if_there};

/// Why histories cannot be copied.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub(crate) struct AsideError {
    /// What was being read or written.
    pub(crate) path: PathBuf,
    /// What the system says.
    pub(crate) error: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> AsideError + '_ {
    |error| AsideError { path: path.to_owned(), error }
}

/// Copies all histories in a folder; gives the nights. There may be none, and then nothing is made.
pub(crate) fn put_aside(histories: &Path, to: &Path) -> Result<u64, AsideError> {
    let mut nights = 0;
    for name in names(histories)? {
        let (from, to) = (histories.join(&name), to.join(&name));
        if from.join("nights").is_dir() {
            nights += copy_history(&from, &to)?;
            sync(&to)?;
        }
    }
    if nights > 0 {
        sync(to)?;
    }
    Ok(nights)
}

fn copy_history(from: &Path, to: &Path) -> Result<u64, AsideError> {
    let mut nights = 0;
    fs::create_dir_all(to.join("nights")).map_err(at(to))?;
    for name in names(&from.join("nights"))? {
        let (from, to) = (from.join("nights").join(&name), to.join("nights").join(&name));
        nights += u64::from(copy_night(&from, &to)?);
    }
    sync(&to.join("nights"))?;
    // Before what was abandoned: a night that starts over meanwhile is in one of both.
    let tonight = read_if_there::<Tonight>(&from.join("tonight").join(NIGHT));
    // After the nights: one that was pruned meanwhile is in one of both.
    for folder in ["pruned", "abandoned"] {
        copy_files(&from.join(folder), &to.join(folder))?;
    }
    if let Ok(Some(Tonight { submitted: Some(job), .. })) = tonight {
        let path = to.join("abandoned").join(job.as_str());
        fs::create_dir_all(to.join("abandoned")).and_then(|()| fs::write(&path, b"")).map_err(at(&path))?;
    }
    Ok(nights)
}

/// Copies a night; false where it is none, or was pruned meanwhile.
fn copy_night(from: &Path, to: &Path) -> Result<bool, AsideError> {
    if !from.join(NIGHT).exists() {
        return Ok(false);
    }
    copy_files(from, to)?;
    if from.join(NIGHT).exists() && to.join(NIGHT).exists() {
        return Ok(true);
    }
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(to)(error)),
        _ => Ok(false),
    }
}

/// Copies the files of a folder, that which makes a night last. Those that are being written or go meanwhile are left out.
fn copy_files(from: &Path, to: &Path) -> Result<(), AsideError> {
    let mut names = names(from)?;
    names.sort_by_key(|name| name == NIGHT);
    for name in names.iter().filter(|name| !name.starts_with('.') && !from.join(name).is_dir()) {
        fs::create_dir_all(to).map_err(at(to))?;
        let (from, to) = (from.join(name), to.join(name));
        match copy(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => copied.map_err(at(&from))?,
        }
    }
    if to.exists() { sync(to) } else { Ok(()) }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = File::create(to)?;
    io::copy(&mut source, &mut target)?;
    target.sync_all()
}

/// What is in a folder, by name; nothing where there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, AsideError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(folder))?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names = entries.map(name).collect::<io::Result<Vec<String>>>().map_err(at(folder))?;
    names.sort_unstable();
    Ok(names)
}

fn sync(folder: &Path) -> Result<(), AsideError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
}

#[cfg(test)]
mod tests {
    use graftwork_shared::{digest::Digest, id::JobId};

    use super::{super::history::History, *};

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn whole_nights_and_numbers_are_put_aside_and_the_job_under_way_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let (histories, to) = (folder.path().join("nightly"), folder.path().join("aside"));
        assert_eq!(put_aside(&histories, &to).unwrap(), 0, "there is none");
        assert!(!to.exists());
        let history = History::open(histories.join("mail"), |_| {}).unwrap();
        for (path, text) in [
            ("nights/000002/night.json", "{}"),
            ("nights/000002/answers.parquet", "answers"),
            ("nights/000002/.nightly.html.7.new", "half a page"),
            ("nights/000003/answers.parquet", "cut off"),
            ("pruned/000001.json", "{}"),
            ("beside/nightly.html", "side by side"),
        ] {
            write(&histories.join("mail").join(path), text);
        }
        let job = JobId::of(&Digest::of(b"job"));
        let mut tonight = history.begin(Digest::of(b"job"), 1).unwrap();
        history.submits(&mut tonight, job.clone()).unwrap();

        assert_eq!(put_aside(&histories, &to).unwrap(), 1);
        let mail = to.join("mail");
        assert_eq!(fs::read(mail.join("nights/000002/answers.parquet")).unwrap(), b"answers");
        for there in ["nights/000002/night.json", "pruned/000001.json", &format!("abandoned/{job}")] {
            assert!(mail.join(there).exists(), "{there}");
        }
        for left in ["nights/000002/.nightly.html.7.new", "nights/000003", "beside", "tonight", "lock"] {
            assert!(!mail.join(left).exists(), "{left}");
        }
        let again = History::open(mail, |_| {}).unwrap();
        assert_eq!((again.numbers().unwrap(), again.abandoned().unwrap()), (vec![2], vec![job]));
    }
}
