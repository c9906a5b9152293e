//! A restore that is cut off, wherever that may be, comes to the same end when it is run again; and histories in a journal.

use std::collections::BTreeMap;

use tempfile::TempDir;

use super::{aside::MARK, *};

/// What lies below a folder: the bytes of files, and nothing for folders.
type Contents = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// What is done of a restore before it is cut off.
type Cut<'k> = Box<dyn Fn(&Path) + 'k>;

/// A backup of a state with a history of two nights.
struct Kept {
    folder: TempDir,
    manifest: Manifest,
}

impl Kept {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let state = folder.path().join("state");
        for night in ["000001", "000002"] {
            let night = state.join(NIGHTS).join("mail/nights").join(night);
            fs::create_dir_all(&night).unwrap();
            fs::write(night.join("night.json"), "{}").unwrap();
            fs::write(night.join("answers.parquet"), "answers").unwrap();
        }
        drop(Opened::lead_folder(&state).unwrap());
        let manifest = back_up(&home(&state), None, &folder.path().join("backup")).unwrap();
        assert_eq!(manifest.nights(), 2);
        Self { folder, manifest }
    }

    fn backup(&self) -> PathBuf {
        self.folder.path().join("backup")
    }

    /// Into `state` and `nights` of a folder.
    fn restore(&self, at: &Path) -> Result<Manifest, BackupError> {
        restore(&self.backup(), &home(&at.join("state")), Some(&at.join("nights")))
    }

    /// The first half of that: its nights have their name.
    fn nights(&self, at: &Path) -> Apart {
        self.manifest.nights.as_ref().unwrap().bring_back_apart(&self.backup(), &at.join("nights")).unwrap()
    }

    /// The second half: the state has its name too.
    fn state(&self, at: &Path) -> Named {
        restore_folder(&self.backup(), &at.join("state"), None, None).unwrap()
    }
}

fn home(state: &Path) -> Home {
    Home::Folder { folder: state.to_owned(), bucket: None }
}

/// Everything below a folder. Of a journal it is enough that it is there and who may lead it: SQLite writes it as it likes.
fn contents(folder: &Path) -> Contents {
    fn add(found: &mut Contents, folder: &Path, below: &Path) {
        // Listed at once: SQLite makes files beside a journal while it is read.
        let entries: Vec<_> = fs::read_dir(folder.join(below)).unwrap().map(Result::unwrap).collect();
        for path in entries.iter().map(|entry| below.join(entry.file_name())) {
            if folder.join(&path).is_dir() {
                add(found, folder, &path);
                found.insert(path, None);
            } else if path.ends_with("journal.sqlite") {
                let journal = Connection::open(folder.join(&path)).unwrap();
                let term: u32 = journal.query_row("SELECT term FROM leader", [], |row| row.get(0)).unwrap();
                found.insert(path, Some(term.to_be_bytes().to_vec()));
            } else {
                let bytes = fs::read(folder.join(&path)).unwrap();
                found.insert(path, Some(bytes));
            }
        }
    }
    let mut found = Contents::new();
    add(&mut found, folder, Path::new(""));
    found
}

/// What kill -9 leaves of a folder that was being written.
fn half_made(place: &Path) {
    let aside = Aside::begin(place).unwrap();
    fs::create_dir(aside.folder().join("mail")).unwrap();
    fs::write(aside.folder().join("journal.sqlite"), "half").unwrap();
}

#[test]
fn a_restore_that_is_cut_off_comes_to_the_same_end_when_it_is_run_again() {
    let kept = Kept::new();
    let at = TempDir::new().unwrap();
    kept.restore(at.path()).unwrap();
    let whole = contents(at.path());
    let night = |number: &str| Path::new("nights/mail/nights").join(number).join("night.json");
    assert!(
        [night("000001"), night("000002"), "state/journal.sqlite".into()].iter().all(|path| whole.contains_key(path))
    );
    // As kill -9 does, a drop lets go of a lock and of nothing else.
    let cuts: [(&str, bool, Cut<'_>); 6] = [
        ("while the nights are copied", true, Box::new(|at: &Path| half_made(&at.join("nights")))),
        ("before the state is begun", true, Box::new(|at: &Path| drop(kept.nights(at)))),
        (
            "while the state is copied",
            true,
            Box::new(|at: &Path| {
                drop(kept.nights(at));
                half_made(&at.join("state"));
            }),
        ),
        (
            "when the state has its name",
            false,
            Box::new(|at: &Path| {
                drop(kept.nights(at));
                drop(kept.state(at));
            }),
        ),
        (
            "when the mark of the state alone is left",
            false,
            Box::new(|at: &Path| {
                kept.nights(at).settle().unwrap();
                drop(kept.state(at));
            }),
        ),
        ("when all is done", false, Box::new(|at: &Path| drop(kept.restore(at).unwrap()))),
    ];
    for (name, goes_on, cut) in cuts {
        let at = TempDir::new().unwrap();
        cut(at.path());
        match kept.restore(at.path()) {
            Ok(_) => assert!(goes_on, "{name}"),
            Err(error) => assert!(!goes_on && matches!(error, BackupError::Exists { .. }), "{name}: {error}"),
        }
        assert_eq!(contents(at.path()), whole, "{name}");
    }
}

#[test]
fn nights_inside_of_the_state_folder_come_with_it() {
    let kept = Kept::new();
    for named in [None, Some("state/nightly"), Some("state/of/nights")] {
        let at = TempDir::new().unwrap();
        let (state, nights) = (at.path().join("state"), named.map(|inside| at.path().join(inside)));
        half_made(&state);
        restore(&kept.backup(), &home(&state), nights.as_deref()).unwrap();
        let mail = at.path().join(named.unwrap_or("state/nightly")).join("mail/nights");
        assert!(mail.join("000001/night.json").exists() && mail.join("000002/night.json").exists(), "{named:?}");
        assert_eq!(fs::read_dir(at.path()).unwrap().count(), 1, "{named:?}: nothing lies beside it");
    }
    // Cut off between the name and the end.
    let at = TempDir::new().unwrap();
    let state = at.path().join("state");
    drop(restore_folder(&kept.backup(), &state, None, Some(Path::new(NIGHTS))).unwrap());
    assert!(state.join(MARK).exists());
    let error = restore(&kept.backup(), &home(&state), None).unwrap_err();
    assert!(matches!(error, BackupError::Exists { .. }) && !state.join(MARK).exists(), "{error}");
    assert!(state.join(NIGHTS).join("mail/nights/000002/answers.parquet").exists());
    // The other way round there is no order in which both could get their name.
    let error = restore(&kept.backup(), &home(&at.path().join("nights/state")), Some(&at.path().join("nights")));
    assert!(matches!(error, Err(BackupError::Unnamed { .. })), "{error:?}");
}

#[test]
fn nights_whose_state_is_not_brought_back_have_no_name() {
    let (kept, at) = (Kept::new(), TempDir::new().unwrap());
    let state = at.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("notes"), "years").unwrap();
    let error = kept.restore(at.path()).unwrap_err();
    assert!(matches!(error, BackupError::Exists { .. }), "{error}");
    assert!(!at.path().join("nights").exists() && fs::read(state.join("notes")).unwrap() == b"years");
    fs::remove_dir_all(&state).unwrap();
    kept.restore(at.path()).unwrap();
    assert_eq!(fs::read_dir(at.path()).unwrap().count(), 2);
    // Nights that others have changed since are theirs, whatever mark they have.
    let at = TempDir::new().unwrap();
    drop(kept.nights(at.path()));
    fs::write(at.path().join("nights/mail/nights/000002/night.json"), "{ }").unwrap();
    let error = kept.restore(at.path()).unwrap_err();
    assert!(matches!(error, BackupError::Exists { .. }), "{error}");
    assert_eq!(fs::read(at.path().join("nights/mail/nights/000002/night.json")).unwrap(), b"{ }");
}

/// The name of a file in which a job is listed that is to be forgotten.
const ABANDONED: &str = "abandoned/job";

#[test]
fn a_history_in_a_journal_is_put_aside_before_its_first_night_has_ended_and_what_is_lost_of_it_is_named() {
    let folder = TempDir::new().unwrap();
    let (state, listed) = (folder.path().join("state"), folder.path().join("listed"));
    fs::create_dir(&state).unwrap();
    let mut opened = Opened::lead_folder(&state).unwrap();
    fs::write(&listed, "").unwrap();
    let blob = put(&BlobStore::open(&state).unwrap(), &listed).unwrap();
    opened.keep_history("mail".to_owned(), BTreeMap::from([(ABANDONED.to_owned(), Some(blob))])).unwrap();
    drop(opened);

    let (backup, again) = (folder.path().join("backup"), folder.path().join("again"));
    back_up(&home(&state), None, &backup).unwrap();
    restore(&backup, &home(&again), None).unwrap();
    assert!(again.join(NIGHTS).join("mail").join(ABANDONED).is_file(), "the job of a night is to be forgotten");

    fs::remove_dir_all(state.join("blobs")).unwrap();
    let lost = back_up(&home(&state), None, &folder.path().join("another")).unwrap_err();
    assert!(matches!(lost, BackupError::Blob(BlobError::Missing(of)) if of == blob), "{lost}");
}
