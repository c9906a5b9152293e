//! A folder that is made whole under another name beside its place, and then gets its own.
//!
//! ```text
//! PLACE.unfinished/            being written; nobody takes it for a backup or a state
//! PLACE.unfinished/.graftwork-unfinished   who makes it: a lock, and the name of PLACE
//! PLACE/                       whole and durable
//! ```
//! What an attempt left that broke off is removed by the next one, and only that: a folder of this name without our mark,
//! or with the mark of another place, is somebody's, and is refused. Two processes never write the same one. The mark goes
//! last, behind the renaming, so that there is no moment in which what is ours cannot be told. A folder that belongs to
//! something greater keeps its mark until all of that is there, so whoever was cut off before finds what is done already.

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{BackupError, io_error};

/// What says that a folder is ours.
pub(super) const MARK: &str = ".graftwork-unfinished";

/// Bytes of a mark that are looked at: more than any path has.
const MOST: u64 = 1 << 16;

/// A folder being made whole.
#[derive(Debug)]
pub(super) struct Aside {
    folder: PathBuf,
    place: PathBuf,
    /// Locked as long as this lives.
    _mark: File,
}

/// A folder that is whole and has its name, and still has the mark of who made it.
#[derive(Debug)]
pub(super) struct Named(Aside);

/// The text of the mark of a place.
fn mark_of(place: &Path) -> Vec<u8> {
    let mut text = b"graftwork: not whole yet; it becomes ".to_vec();
    text.extend_from_slice(place.as_os_str().as_encoded_bytes());
    text.push(b'\n');
    text
}

/// The place as a whole path, its folder's links followed, so that whoever names it otherwise means the same one.
fn whole(place: &Path) -> Result<PathBuf, BackupError> {
    let unnamed = |why| BackupError::Unnamed { place: place.to_owned(), why };
    let name = place.file_name().ok_or_else(|| unnamed("it does not end with a folder's name"))?;
    let above = match place.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(above).map_err(io_error(above))?;
    Ok(fs::canonicalize(above).map_err(io_error(above))?.join(name))
}

/// Where a place is made whole.
fn unfinished(place: &Path) -> PathBuf {
    let mut name: OsString = place.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    place.with_file_name(name)
}

/// Whether an empty folder may give way to the one that is made: nothing else is ever replaced.
fn check_place(place: &Path) -> Result<(), BackupError> {
    let unnamed = |why| BackupError::Unnamed { place: place.to_owned(), why };
    let found = match fs::symlink_metadata(place) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(place)(error)),
    };
    if !found.is_dir() || fs::read_dir(place).map_err(io_error(place))?.next().is_some() {
        return Err(BackupError::Exists { folder: place.to_owned() });
    }
    let above = fs::metadata(place.join("..")).map_err(io_error(place))?;
    if found.dev() != above.dev() {
        return Err(unnamed("it is a file system of its own"));
    }
    match std::env::current_dir() {
        Ok(here) if fs::canonicalize(place).is_ok_and(|place| here.starts_with(place)) => {
            Err(unnamed("it is the folder in which this command runs, or lies around it"))
        }
        _ => Ok(()),
    }
}

impl Aside {
    /// Begins to make `place`, anew where an attempt of ours broke off.
    pub(super) fn begin(place: &Path) -> Result<Self, BackupError> {
        let place = whole(place)?;
        if let Some(left) = Named::left(&place)? {
            left.settle()?;
        }
        check_place(&place)?;
        let folder = unfinished(&place);
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Self::take(folder, place),
            Err(error) => return Err(io_error(&folder)(error)),
        }
        Self::marked(folder, place)
    }

    /// Puts the mark into an empty folder.
    fn marked(folder: PathBuf, place: PathBuf) -> Result<Self, BackupError> {
        let path = folder.join(MARK);
        let mut mark = match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mark) => mark,
            // Another process has just begun.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(BackupError::Busy { place }),
            Err(error) => return Err(io_error(&path)(error)),
        };
        lock(&mark, &path, &place)?;
        let written = mark.write_all(&mark_of(&place)).and_then(|()| mark.sync_all());
        written.and_then(|()| File::open(&folder)?.sync_all()).map_err(io_error(&path))?;
        Ok(Self { folder, place, _mark: mark })
    }

    /// Takes up what is there already: nothing, or what an attempt of ours left.
    fn take(folder: PathBuf, place: PathBuf) -> Result<Self, BackupError> {
        let strange = || BackupError::Strange { aside: folder.clone(), place: place.clone() };
        if !fs::symlink_metadata(&folder).map_err(io_error(&folder))?.is_dir() {
            return Err(strange());
        }
        let names = fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let names = names.map_err(io_error(&folder))?;
        if names.is_empty() {
            // It broke off before the mark, or somebody made it: nothing is lost either way.
            return Self::marked(folder, place);
        }
        let path = folder.join(MARK);
        if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
            return Err(strange());
        }
        let mark = File::options().read(true).write(true).open(&path).map_err(io_error(&path))?;
        lock(&mark, &path, &place)?;
        let mut text = Vec::new();
        (&mark).take(MOST).read_to_end(&mut text).map_err(io_error(&path))?;
        // A mark alone of which not all was written belongs to an attempt that had copied nothing.
        let begun = names.len() == 1 && mark_of(&place).starts_with(&text);
        if text != mark_of(&place) && !begun {
            return Err(strange());
        }
        for entry in names.iter().filter(|entry| entry.file_name() != MARK) {
            remove(&entry.path())?;
        }
        let aside = Self { folder, place, _mark: mark };
        aside.write_mark_again()?;
        Ok(aside)
    }

    fn write_mark_again(&self) -> Result<(), BackupError> {
        let path = self.folder.join(MARK);
        let mut mark = File::options().write(true).truncate(true).open(&path).map_err(io_error(&path))?;
        mark.write_all(&mark_of(&self.place)).and_then(|()| mark.sync_all()).map_err(io_error(&path))
    }

    /// Where it is made.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Gives the folder its name, durably, and takes its mark off.
    pub(super) fn finish(self) -> Result<(), BackupError> {
        self.name()?.settle()
    }

    /// Gives the folder its name, durably. It keeps its mark until it is settled.
    pub(super) fn name(self) -> Result<Named, BackupError> {
        // Blobs on their way are none of it, and neither are copies of what lies in a bucket.
        for folder in ["blobs/incoming", "blobs/copies"].map(|name| self.folder.join(name)) {
            remove(&folder)?;
        }
        for entry in fs::read_dir(&self.folder).map_err(io_error(&self.folder))? {
            sync(&entry.map_err(io_error(&self.folder))?.path())?;
        }
        sync(&self.folder)?;
        // An empty folder gives way.
        fs::rename(&self.folder, &self.place).map_err(io_error(&self.place))?;
        sync(self.place.parent().unwrap_or(Path::new("/")))?;
        Ok(Named(self))
    }
}

impl Named {
    /// What an attempt of ours left that was cut off when the folder had its name already. `None` where there is no such one,
    /// or somebody is at it now.
    pub(super) fn left(place: &Path) -> Result<Option<Self>, BackupError> {
        let path = place.join(MARK);
        if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
            return Ok(None);
        }
        let place = whole(place)?;
        let Ok(mark) = File::options().read(true).write(true).open(&path) else { return Ok(None) };
        let mut text = Vec::new();
        (&mark).take(MOST).read_to_end(&mut text).map_err(io_error(&path))?;
        let ours = text == mark_of(&place) && lock(&mark, &path, &place).is_ok();
        Ok(ours.then(|| Self(Aside { folder: unfinished(&place), place, _mark: mark })))
    }

    /// Takes the mark off: all that it belongs to is there.
    pub(super) fn settle(self) -> Result<(), BackupError> {
        let Aside { place, .. } = &self.0;
        remove(&place.join(MARK))?;
        sync(place)
    }

    /// Takes the name away again: what it belongs to did not come about.
    pub(super) fn give_up(&self) -> Result<(), BackupError> {
        let Aside { folder, place, .. } = &self.0;
        fs::rename(place, folder).map_err(io_error(place))?;
        sync(place.parent().unwrap_or(Path::new("/")))
    }
}

pub(super) fn sync(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error(path))
}

/// Locks the mark, or says that somebody has it.
fn lock(mark: &File, path: &Path, place: &Path) -> Result<(), BackupError> {
    match mark.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(BackupError::Busy { place: place.to_owned() }),
        Err(TryLockError::Error(error)) => return Err(io_error(path)(error)),
    }
    // Whoever had it until now may have given the folder its name, and another one may lie here.
    let same = match (mark.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    };
    if same { Ok(()) } else { Err(BackupError::Busy { place: place.to_owned() }) }
}

/// Removes a file, a link, or a folder with all that is in it.
fn remove(path: &Path) -> Result<(), BackupError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// Puts something into a folder.
    type Make = Box<dyn FnOnce(&Path)>;

    fn place(folder: &TempDir) -> PathBuf {
        fs::canonicalize(folder.path()).unwrap().join("aside")
    }

    /// Everything below a folder, with the bytes of its files.
    fn contents(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let below = if path.is_dir() { contents(&path) } else { Vec::new() };
            found.push((path.clone(), fs::read(&path).ok()));
            found.extend(below);
        }
        found.sort();
        found
    }

    #[test]
    fn it_gets_its_name_when_it_is_whole_and_keeps_no_mark() {
        let folder = TempDir::new().unwrap();
        let place = place(&folder);
        let aside = Aside::begin(&place).unwrap();
        fs::write(aside.folder().join("journal"), "facts").unwrap();
        assert!(!place.exists());
        aside.finish().unwrap();
        assert_eq!(contents(&place), [(place.join("journal"), Some(b"facts".to_vec()))]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = Aside::begin(&place).unwrap_err();
        assert!(matches!(error, BackupError::Exists { .. }), "{error}");
    }

    #[test]
    fn what_broke_off_is_begun_anew() {
        let folder = TempDir::new().unwrap();
        let place = place(&folder);
        let first = Aside::begin(&place).unwrap();
        let unfinished = first.folder().to_owned();
        fs::create_dir(unfinished.join("blobs")).unwrap();
        fs::write(unfinished.join("blobs/half"), "ha").unwrap();
        // As kill -9 leaves it.
        drop(first);
        let second = Aside::begin(&place).unwrap();
        assert_eq!(fs::read_dir(second.folder()).unwrap().count(), 1, "the mark alone is left");
        drop(second);
        // Killed between its folder and its mark, and in the middle of its mark.
        for text in [None, Some(&mark_of(&place)[..7])] {
            fs::remove_dir_all(&unfinished).unwrap();
            fs::create_dir(&unfinished).unwrap();
            if let Some(text) = text {
                fs::write(unfinished.join(MARK), text).unwrap();
            }
            Aside::begin(&place).unwrap();
            assert_eq!(fs::read(unfinished.join(MARK)).unwrap(), mark_of(&place));
        }
    }

    #[test]
    fn what_is_not_known_to_be_ours_is_refused_and_stays() {
        let folder = TempDir::new().unwrap();
        let place = place(&folder);
        let unfinished = place.with_file_name("aside.unfinished");
        let mark = |text: Vec<u8>| move |at: &Path| fs::write(at.join(MARK), text).unwrap();
        let mut cases: Vec<(&str, Make)> = vec![
            ("no mark", Box::new(|_: &Path| {})),
            ("the mark of another place", Box::new(mark(mark_of(&place.with_file_name("other"))))),
            ("a mark of which half is there", Box::new(mark(mark_of(&place)[..20].to_vec()))),
            ("an empty mark", Box::new(mark(Vec::new()))),
            ("a folder as a mark", Box::new(|at: &Path| fs::create_dir(at.join(MARK)).unwrap())),
        ];
        let real = folder.path().join("real-mark");
        fs::write(&real, mark_of(&place)).unwrap();
        cases.push(("a link as a mark", Box::new(move |at: &Path| symlink(real, at.join(MARK)).unwrap())));
        for (name, make) in cases {
            fs::create_dir(&unfinished).unwrap();
            fs::write(unfinished.join("thesis.tex"), "years").unwrap();
            make(&unfinished);
            let before = contents(folder.path());
            let error = Aside::begin(&place).unwrap_err();
            assert!(matches!(error, BackupError::Strange { .. }), "{name}: {error}");
            assert!(error.is_input() && error.to_string().contains("aside.unfinished"), "{name}: {error}");
            assert_eq!(contents(folder.path()), before, "{name}");
            fs::remove_dir_all(&unfinished).unwrap();
        }
        // What is no folder.
        fs::write(&unfinished, "a file").unwrap();
        assert!(matches!(Aside::begin(&place).unwrap_err(), BackupError::Strange { .. }));
        assert_eq!(fs::read(&unfinished).unwrap(), b"a file");
        fs::remove_file(&unfinished).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join(MARK), mark_of(&place)).unwrap();
        symlink(&elsewhere, &unfinished).unwrap();
        assert!(matches!(Aside::begin(&place).unwrap_err(), BackupError::Strange { .. }));
        assert!(elsewhere.join(MARK).exists());
    }

    #[test]
    fn two_never_write_the_same_one() {
        let folder = TempDir::new().unwrap();
        let place = place(&folder);
        let first = Aside::begin(&place).unwrap();
        fs::write(first.folder().join("journal"), "facts").unwrap();
        let error = Aside::begin(&place).unwrap_err();
        assert!(matches!(error, BackupError::Busy { .. }), "{error}");
        // However the place is named.
        symlink(folder.path(), folder.path().join("link")).unwrap();
        let error = Aside::begin(&folder.path().join("link/aside")).unwrap_err();
        assert!(matches!(error, BackupError::Busy { .. }), "{error}");
        first.finish().unwrap();
        assert_eq!(fs::read(place.join("journal")).unwrap(), b"facts");
    }

    #[test]
    fn places_that_have_no_name_or_are_in_use_are_refused_before_anything_is_written() {
        let folder = TempDir::new().unwrap();
        let before = contents(folder.path());
        let here = std::env::current_dir().unwrap();
        for place in [Path::new("."), Path::new(""), Path::new("/"), &folder.path().join("a/..")] {
            let error = Aside::begin(place).unwrap_err();
            assert!(matches!(error, BackupError::Unnamed { .. }), "{}: {error}", place.display());
        }
        // The tests of a crate run in its folder, which is never empty.
        assert!(matches!(Aside::begin(&here).unwrap_err(), BackupError::Exists { .. }));
        fs::write(folder.path().join("file"), "text").unwrap();
        assert!(matches!(Aside::begin(&folder.path().join("file")).unwrap_err(), BackupError::Exists { .. }));
        fs::remove_file(folder.path().join("file")).unwrap();
        symlink("/nowhere", folder.path().join("link")).unwrap();
        assert!(matches!(Aside::begin(&folder.path().join("link")).unwrap_err(), BackupError::Exists { .. }));
        fs::remove_file(folder.path().join("link")).unwrap();
        assert_eq!(contents(folder.path()), before);
        assert!(!here.join(".unfinished").exists());
    }

    #[test]
    fn an_empty_folder_gives_way() {
        let folder = TempDir::new().unwrap();
        let place = place(&folder);
        fs::create_dir(&place).unwrap();
        let aside = Aside::begin(&place).unwrap();
        fs::write(aside.folder().join("journal"), "facts").unwrap();
        aside.finish().unwrap();
        assert!(place.join("journal").exists());
    }
}
