//! Room in a cache: what was used the longest ago makes place for what comes.
//!
//! Everything that was fetched into the folder is under one bound, whoever fetched it; shelves beside it have their own.
//! Only what has our names is looked at, and only what nobody uses is removed. Making room never fails a fetch: what is
//! needed now is fetched, even where what is in use leaves no room for it within the bound.
//!
//! ```text
//! <cache>/room.lock                 held while somebody makes room, so that one after the other counts what is there
//! <cache>/<kind>/<version>.coming   bytes that the version has when the file that is fetched now is whole
//! ```
//! So several that fetch at once, in whatever process, count what the others are about to write. What is said to come counts
//! as long as somebody holds the version's lock: a download that was cut off counts as what lies there.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use super::held::{beside, is_locked, remove_idle};
use crate::disk::Lock;

/// Folders whose entries are those of [`super`], each with how many folders lie between.
const PLACES: [(&str, usize); 6] = [
    ("uploads", 0),
    ("models/uploads", 0),
    ("models/objects", 0),
    ("models/hub", 1),
    ("adapters/uploads", 0),
    ("adapters/hub", 1),
];

/// What the name of a file ends with that says how much is to come.
const COMING: &str = "coming";

/// Whether it was told that what is in use passes the bound.
static PASSED: AtomicBool = AtomicBool::new(false);

/// A version in the cache, whole or begun.
#[derive(Debug)]
struct Unit {
    target: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// Says that a version that the caller downloads is about to have `more` bytes than lie there now, and makes room for them in a
/// cache folder that may hold `most_bytes`, as far as what is not in use allows.
pub(super) fn reserve(cache: &Path, most_bytes: u64, target: &Path, more: u64) {
    // Where nothing can be locked or written, room is made all the same, though others may not count it.
    let _alone = Lock::wait(cache.join("room.lock")).inspect_err(|error| tracing::debug!("{error}"));
    let coming = bytes(&beside(target, "partial")).unwrap_or(0).saturating_add(more);
    let told = fs::write(beside(target, COMING), coming.to_string());
    // A disk without room for it is one that needs room: what nobody is told of is taken off the bound.
    let untold = if told.is_ok() { 0 } else { more };
    make_room(cache, most_bytes.saturating_sub(untold));
}

/// Nothing more is to come of a version that the caller downloaded.
pub(super) fn settle(target: &Path) {
    if let Err(error) = fs::remove_file(beside(target, COMING))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!("{}: {error}", target.display());
    }
}

/// Bytes that a version is said to have soon, by whoever downloads it now.
fn coming(target: &Path) -> Option<u64> {
    let bytes = fs::read_to_string(beside(target, COMING)).ok()?.parse().ok()?;
    is_locked(target).then_some(bytes)
}

/// Removes what was used the longest ago and is not in use, until all is within the bound.
fn make_room(cache: &Path, most_bytes: u64) {
    let mut units = units(cache);
    let mut total = units.iter().fold(0, |sum: u64, unit| sum.saturating_add(unit.bytes));
    units.sort_by(|one, other| (one.used, &one.target).cmp(&(other.used, &other.target)));
    for unit in units {
        if total <= most_bytes {
            return;
        }
        if remove_idle(&unit.target) {
            settle(&unit.target);
            tracing::info!(entry = %unit.target.display(), bytes = unit.bytes, "removed to make room in the cache");
            total = total.saturating_sub(unit.bytes);
        }
    }
    if total > most_bytes && !PASSED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "{} holds {total} bytes that are in use or are fetched now, more than the {most_bytes} that it may: give it \
             more, or workers over it fewer slots",
            cache.display()
        );
    }
}

/// All that was fetched, once for each version.
fn units(cache: &Path) -> Vec<Unit> {
    let mut units: BTreeMap<PathBuf, Unit> = BTreeMap::new();
    for (place, depth) in PLACES {
        let mut folders = vec![cache.join(place)];
        for _ in 0..depth {
            folders = folders.iter().flat_map(|folder| below(folder)).collect();
        }
        for path in folders.iter().flat_map(|folder| below(folder)) {
            let Some(target) = version(&path) else { continue };
            let bytes = bytes(&path).unwrap_or(0);
            let used = fs::metadata(beside(&target, "used")).or_else(|_| fs::metadata(&path));
            let used = used.and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let unit = units.entry(target.clone()).or_insert(Unit { target, bytes: 0, used });
            unit.bytes = unit.bytes.saturating_add(bytes);
            unit.used = unit.used.max(used);
        }
    }
    let with_coming = |unit: Unit| Unit { bytes: unit.bytes.max(coming(&unit.target).unwrap_or(0)), ..unit };
    units.into_values().map(with_coming).collect()
}

/// The folders in a folder; links are none.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// The version that a folder is, whole or begun: named by a digest or a commit. What has another name is not ours.
fn version(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".partial").unwrap_or(name);
    let ours = [40, 64].contains(&name.len()) && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    ours.then(|| path.with_file_name(name))
}

/// Bytes of all files below a folder.
fn bytes(folder: &Path) -> io::Result<u64> {
    let mut total = 0_u64;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let more = if entry.file_type()?.is_dir() { bytes(&entry.path())? } else { entry.metadata()?.len() };
        total = total.saturating_add(more);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, thread, time::Duration};

    use tempfile::TempDir;

    use super::{super::held::complete, *};

    /// A version of a hundred bytes, used now.
    fn entry(cache: &TempDir, place: &str, letter: char) -> PathBuf {
        let target = cache.path().join(place).join(letter.to_string().repeat(64));
        fs::create_dir_all(&target).unwrap();
        fs::write(target.join("bytes"), [7; 100]).unwrap();
        drop(complete(&target).unwrap());
        // Times of files are those of the kernel's clock, which ticks every few milliseconds.
        thread::sleep(Duration::from_millis(20));
        target
    }

    #[test]
    fn what_was_used_the_longest_ago_goes_first() {
        let cache = TempDir::new().unwrap();
        let [a, b, c] = ['a', 'b', 'c'].map(|letter| entry(&cache, "uploads", letter));
        let model = entry(&cache, "models/hub/lab--base", 'd');
        drop(complete(&a).unwrap());
        thread::sleep(Duration::from_millis(20));
        make_room(cache.path(), 400);
        assert!([&a, &b, &c, &model].iter().all(|path| path.is_dir()), "there is room");
        make_room(cache.path(), 399);
        assert!(!b.exists() && [&a, &c, &model].iter().all(|path| path.is_dir()));
        make_room(cache.path(), 100);
        assert!(!c.exists() && !model.exists() && a.is_dir());
        make_room(cache.path(), 0);
        assert!(!a.exists());
    }

    #[test]
    fn what_is_in_use_stays_in_whatever_process_it_is_used() {
        let cache = TempDir::new().unwrap();
        let [a, b] = ['a', 'b'].map(|letter| entry(&cache, "uploads", letter));
        let (first, second) = (complete(&a).unwrap(), complete(&a).unwrap());
        make_room(cache.path(), 0);
        assert!(a.is_dir() && !b.exists());
        drop(first);
        make_room(cache.path(), 0);
        assert!(a.is_dir(), "another one uses it still");
        drop(second);
        make_room(cache.path(), 0);
        assert!(!a.exists());
        assert!(complete(&a).is_none());
    }

    #[test]
    fn a_download_that_goes_on_stays_and_one_that_was_left_goes() {
        let cache = TempDir::new().unwrap();
        let target = entry(&cache, "uploads", 'a');
        let partial = beside(&target, "partial");
        fs::rename(&target, &partial).unwrap();
        let lock = File::create(beside(&target, "lock")).unwrap();
        lock.lock().unwrap();
        make_room(cache.path(), 0);
        assert!(partial.join("bytes").exists());
        drop(lock);
        make_room(cache.path(), 0);
        assert!(!partial.exists());
    }

    /// The locks of a version that is being downloaded, of which nothing has come yet.
    fn begun(cache: &TempDir, letter: char) -> (PathBuf, File) {
        let target = cache.path().join("uploads").join(letter.to_string().repeat(64));
        fs::create_dir_all(beside(&target, "partial")).unwrap();
        let lock = File::create(beside(&target, "lock")).unwrap();
        lock.lock().unwrap();
        (target, lock)
    }

    #[test]
    fn what_others_are_about_to_write_counts_as_long_as_they_do() {
        let cache = TempDir::new().unwrap();
        let [a, b, c] = ['a', 'b', 'c'].map(|letter| entry(&cache, "uploads", letter));
        let ((one, ours), (two, _others)) = (begun(&cache, 'd'), begun(&cache, 'e'));
        reserve(cache.path(), 400, &one, 150);
        assert!(!a.exists() && b.exists() && c.exists(), "350 with what is to come");
        reserve(cache.path(), 400, &two, 150);
        assert!(!b.exists() && c.exists(), "400 with what is to come of both");
        // What came already is not counted twice.
        fs::write(beside(&one, "partial").join("bytes"), [7; 120]).unwrap();
        reserve(cache.path(), 400, &one, 30);
        assert!(c.exists());
        // Its download is cut off, and what lies there counts.
        drop(ours);
        let (three, _third) = begun(&cache, 'f');
        reserve(cache.path(), 400, &three, 30);
        assert!(c.exists() && beside(&one, "partial").exists(), "100, 120, 150 and 30");
        reserve(cache.path(), 400, &three, 31);
        assert!(!c.exists() || !beside(&one, "partial").exists(), "one more is too much");
        settle(&two);
        make_room(cache.path(), 0);
        assert!(beside(&two, "partial").exists() && !beside(&one, "coming").exists());
    }

    #[test]
    fn room_is_made_for_what_nobody_can_be_told_of() {
        let cache = TempDir::new().unwrap();
        let [a, b] = ['a', 'b'].map(|letter| entry(&cache, "uploads", letter));
        let (c, _ours) = begun(&cache, 'c');
        fs::create_dir(beside(&c, COMING)).unwrap();
        reserve(cache.path(), 200, &c, 100);
        assert!(!a.exists() && b.exists());
    }

    #[test]
    fn what_has_not_our_names_is_not_touched() {
        let cache = TempDir::new().unwrap();
        let mut others = Vec::new();
        for place in
            ["uploads/thesis", "uploads/ABCDEF", "models/mine", "models/hub/lab--base/main", "shelves/a", "data"]
        {
            let path = cache.path().join(place);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("bytes"), [7; 100]).unwrap();
            others.push(path.join("bytes"));
        }
        // A link of such a name leads to what is somebody's.
        let elsewhere = TempDir::new().unwrap();
        fs::write(elsewhere.path().join("bytes"), [7; 100]).unwrap();
        let link = cache.path().join("uploads").join("e".repeat(64));
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        make_room(cache.path(), 0);
        others.extend([link, elsewhere.path().join("bytes")]);
        assert!(others.iter().all(|path| path.exists()), "{others:?}");
    }
}
