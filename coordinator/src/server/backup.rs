//! A state folder put aside and brought back.
//!
//! A backup is a folder with the journal of one moment, every blob that the journal refers to, and `backup.json`, which
//! says what it holds. It may be taken while a coordinator leads: the journal is copied by SQLite in one transaction, and
//! blobs never change. What a coordinator lets go of meanwhile makes the copy begin anew with a later journal. Every
//! blob is read whole and held against its digest, on the way out and on the way back, and a folder has its name only when
//! it is whole.
//!
//! A restored state leads under a term far above that of the backup: coordinators and workers that were there when it was
//! taken may have gone on since, and whoever knows a higher term obeys no lower one.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use graftwork_shared::{
    VERSION,
    digest::{Digest, Hasher},
};
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

use super::{BlobError, BlobStore, ServerError, journal::Opened};

/// What a backup is called by itself.
const MANIFEST: &str = "backup.json";

/// The form of backups that this version writes and reads.
const FORMAT: u32 = 1;

/// How often a backup begins anew because a coordinator let go of something.
const ATTEMPTS: u32 = 5;

/// Terms that may have passed since a backup was taken.
const TERMS: i64 = 1_000_000;

/// Bytes of a blob at a time.
const PIECE: usize = 1 << 20;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    /// Version of the program that made it.
    pub(crate) version: String,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Term of the coordinator that led last.
    pub(crate) term: u64,
    /// Facts of the journal, those behind its snapshot too.
    pub(crate) facts: u64,
    /// Blobs, and their bytes.
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
    /// SHA-256 of the journal.
    journal: Digest,
}

/// Why a state is not put aside, or not brought back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    /// Nothing to put aside.
    #[error("{} holds no journal: it is no coordinator's state folder", folder.display())]
    NoState {
        /// The folder.
        folder: PathBuf,
    },
    /// Something is there already.
    #[error("{} is there already, and nothing is written over it: name a folder that is not there", folder.display())]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// Not a backup, or not a whole one.
    #[error("{} is no whole backup: {problem}", folder.display())]
    Wrong {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The coordinator let go of blobs each time.
    #[error("the coordinator let go of blobs {ATTEMPTS} times while they were copied; try again when it is quieter")]
    Restless,
    /// SQLite.
    #[error("{}: {error}", path.display())]
    Sqlite {
        /// The journal.
        path: PathBuf,
        /// What it says.
        error: rusqlite::Error,
    },
    /// The system.
    #[error("{}: {error}", path.display())]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What it says.
        error: io::Error,
    },
    /// A blob.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] ServerError),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError + '_ {
    |error| BackupError::Io { path: path.to_owned(), error }
}

fn sqlite(path: &Path) -> impl FnOnce(rusqlite::Error) -> BackupError + '_ {
    |error| BackupError::Sqlite { path: path.to_owned(), error }
}

fn journal_of(folder: &Path) -> PathBuf {
    folder.join("journal.sqlite")
}

/// Puts the state of a folder aside; a coordinator may lead it meanwhile.
pub(crate) fn back_up(state: &Path, to: &Path) -> Result<Manifest, BackupError> {
    if !journal_of(state).is_file() {
        return Err(BackupError::NoState { folder: state.to_owned() });
    }
    let aside = begin(to)?;
    let mut attempt = 0;
    let (opened, (blobs, bytes)) = loop {
        let opened = copy_journal(&journal_of(state), &aside)?;
        match copy_blobs(&BlobStore::of_another(state), &aside, &opened.state.blobs()) {
            Ok(copied) => break (opened, copied),
            Err(BackupError::Blob(BlobError::Missing(_))) if attempt < ATTEMPTS => attempt += 1,
            Err(BackupError::Blob(BlobError::Missing(_))) => return Err(BackupError::Restless),
            Err(error) => return Err(error),
        }
    };
    let (term, facts) = (opened.state.term().0, opened.number);
    // The journal is one file once it is closed.
    drop(opened);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let journal = digest_of(&journal_of(&aside))?;
    let manifest = Manifest { format: FORMAT, version: VERSION.to_owned(), at_ms, term, facts, blobs, bytes, journal };
    let path = aside.join(MANIFEST);
    let text = serde_json::to_string_pretty(&manifest).map_err(|error| io_error(&path)(error.into()))?;
    fs::write(&path, text + "\n").map_err(io_error(&path))?;
    finish(&aside, to)?;
    Ok(manifest)
}

/// Brings a backup back as a state folder that is not there yet.
pub(crate) fn restore(backup: &Path, state: &Path) -> Result<Manifest, BackupError> {
    let wrong = |problem: String| BackupError::Wrong { folder: backup.to_owned(), problem };
    let path = backup.join(MANIFEST);
    let text = fs::read_to_string(&path).map_err(|error| wrong(format!("{MANIFEST}: {error}")))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| wrong(format!("{MANIFEST}: {error}")))?;
    if manifest.format != FORMAT {
        return Err(wrong(format!("it has form {}, and this version reads form {FORMAT}", manifest.format)));
    }
    let kept = journal_of(backup);
    let found = digest_of(&kept)?;
    if found != manifest.journal {
        return Err(wrong(format!("its journal has the digest {found}, not {}", manifest.journal)));
    }
    let aside = begin(state)?;
    let journal = journal_of(&aside);
    fs::copy(&kept, &journal).map_err(io_error(&journal))?;
    let opened = Opened::read_folder(&aside).map_err(ServerError::from)?;
    let copied = copy_blobs(&BlobStore::of_another(backup), &aside, &opened.state.blobs());
    copied.map_err(|error| match error {
        BackupError::Blob(error @ (BlobError::Missing(_) | BlobError::Damaged { .. })) => wrong(error.to_string()),
        error => error,
    })?;
    drop(opened);
    let connection = Connection::open(&journal).map_err(sqlite(&journal))?;
    connection.execute("UPDATE leader SET term = term + ?1", [TERMS]).map_err(sqlite(&journal))?;
    connection.close().map_err(|(_, error)| sqlite(&journal)(error))?;
    finish(&aside, state)?;
    Ok(manifest)
}

/// The folder beside `place` in which it is made whole.
fn begin(place: &Path) -> Result<PathBuf, BackupError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let occupied = match fs::read_dir(place) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(io_error(place)(error)),
    };
    if occupied {
        return Err(BackupError::Exists { folder: place.to_owned() });
    }
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    let aside = place.with_file_name(name);
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&aside)(error)),
        _ => {}
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&aside).map_err(io_error(&aside))?;
    Ok(aside)
}

/// Gives the folder its name, durably.
fn finish(aside: &Path, place: &Path) -> Result<(), BackupError> {
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all()).map_err(io_error(path));
    // Blobs on their way are none of it.
    let incoming = aside.join("blobs/incoming");
    fs::remove_dir_all(&incoming).map_err(io_error(&incoming))?;
    for entry in fs::read_dir(aside).map_err(io_error(aside))? {
        sync(&entry.map_err(io_error(aside))?.path())?;
    }
    sync(aside)?;
    // An empty folder gives way.
    fs::rename(aside, place).map_err(io_error(place))?;
    let above = place.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync(above)
}

/// The journal as it is at one moment, and its fold.
fn copy_journal(from: &Path, aside: &Path) -> Result<Opened, BackupError> {
    let to = journal_of(aside);
    for name in ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"] {
        match fs::remove_file(aside.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&to)(error)),
            _ => {}
        }
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(from, flags).map_err(sqlite(from))?;
    connection.busy_timeout(std::time::Duration::from_secs(30)).map_err(sqlite(from))?;
    let text = to.to_str().ok_or_else(|| io_error(&to)(io::Error::other("its name is not UTF-8")))?;
    connection.execute("VACUUM INTO ?1", [text]).map_err(sqlite(from))?;
    Ok(Opened::read_folder(aside).map_err(ServerError::from)?)
}

/// Copies these blobs, each verified; those that are there already are not read again.
fn copy_blobs(from: &BlobStore, aside: &Path, blobs: &BTreeSet<Digest>) -> Result<(u64, u64), BackupError> {
    let to = BlobStore::open(aside)?;
    for blob in blobs.iter().filter(|blob| !to.has(**blob)) {
        let (mut reader, mut writer) = (from.reader(*blob)?, to.writer()?);
        while let Some(piece) = reader.next(PIECE)? {
            writer.write(&piece)?;
        }
        writer.finish()?;
        to.unpin(*blob);
    }
    // Of an earlier attempt.
    to.sweep(blobs)?;
    Ok((blobs.len() as u64, to.usage()?.bytes.unwrap_or(0)))
}

fn digest_of(path: &Path) -> Result<Digest, BackupError> {
    let mut file = File::open(path).map_err(io_error(path))?;
    let (mut hasher, mut piece) = (Hasher::new(), vec![0; PIECE]);
    loop {
        match io::Read::read(&mut file, &mut piece).map_err(io_error(path))? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&piece[..read]),
        }
    }
}
