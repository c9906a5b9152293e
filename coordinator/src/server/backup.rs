//! A state put aside and brought back, wherever it lies: in a folder, or in PostgreSQL and an object store.
//!
//! A backup is a folder with the journal of one moment as a SQLite file, every blob that the journal refers to, the
//! histories of nights as files, also those that a database holds, and `backup.json`, which says what it holds. So it may
//! be brought back at a place of another kind than it was taken from. It may be taken while a coordinator leads: the journal
//! is read in one transaction, and blobs never change. What a coordinator lets go of meanwhile makes the copy begin anew with
//! a later journal. Every blob is read whole and held against its digest, on the way out and on the way back, and so are the
//! histories together. A folder has its name only when it is whole, and a database gets the journal in one transaction, after
//! the bucket has all blobs; nothing is written over anything.
//!
//! A restored state leads under a term far above that of the backup: coordinators and workers that were there when it was
//! taken may have gone on since, and whoever knows a higher term obeys no lower one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use graftwork_shared::{
    VERSION,
    digest::{Digest, Hasher},
    id::Term,
};
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

use super::{
    BlobError, BlobStore, Bucket, Database, ServerError,
    histories::put,
    journal::{Filled, Opened},
};

mod aside;
mod error;
mod nights;
#[cfg(test)]
mod tests;

use aside::{Aside, Named};
pub(crate) use error::BackupError;
pub(crate) use nights::Held;
use nights::{Apart, Nights};

/// What a backup is called by itself.
const MANIFEST: &str = "backup.json";

/// The form of backups that this version writes and reads.
const FORMAT: u32 = 1;

/// How often a backup begins anew because a coordinator let go of something.
const ATTEMPTS: u32 = 20;

/// Terms that may have passed since a backup was taken.
const TERMS: u32 = 1_000_000;

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
    /// The histories of nights, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nights: Option<Nights>,
}

impl Manifest {
    /// Nights that are kept in it.
    pub(crate) fn nights(&self) -> u64 {
        self.nights.as_ref().map_or(0, Nights::count)
    }
}

/// Folder of histories of nights, in a state folder and in a backup.
pub(crate) const NIGHTS: &str = "nightly";

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError + '_ {
    |error| BackupError::Io { path: path.to_owned(), error }
}

fn sqlite(path: &Path) -> impl FnOnce(rusqlite::Error) -> BackupError + '_ {
    |error| BackupError::Sqlite { path: path.to_owned(), error }
}

fn journal_of(folder: &Path) -> PathBuf {
    folder.join("journal.sqlite")
}

/// Where a state lies.
#[derive(Clone, Debug)]
pub(crate) enum Home {
    /// The journal in a state folder; the blobs there too, or in an object store.
    Folder { folder: PathBuf, bucket: Option<Bucket> },
    /// The journal in a database, the blobs in an object store.
    Servers { database: Database, bucket: Bucket },
}

impl Home {
    /// The folder where histories of nights lie, unless another one is named: those of a database lie in it.
    pub(crate) fn nights(&self, named: Option<&Path>) -> Option<PathBuf> {
        let own = || match self {
            Self::Folder { folder, .. } => Some(folder.join(NIGHTS)),
            Self::Servers { .. } => None,
        };
        named.map(Path::to_owned).or_else(own)
    }

    /// Where histories lie inside of the state folder; `None` where they lie elsewhere or nowhere.
    fn nights_inside(&self, named: Option<&Path>) -> Result<Option<PathBuf>, BackupError> {
        let Self::Folder { folder, .. } = self else { return Ok(None) };
        let Some(named) = named else { return Ok(Some(NIGHTS.into())) };
        let absolute = |path: &Path| std::path::absolute(path).map_err(io_error(path));
        let (state, place) = (absolute(folder)?, absolute(named)?);
        if state.starts_with(&place) {
            return Err(BackupError::Unnamed { place: named.to_owned(), why: "the state folder is to lie in it" });
        }
        let plain = |inside: &&Path| inside.components().all(|part| matches!(part, Component::Normal(_)));
        Ok(place.strip_prefix(&state).ok().filter(plain).map(Path::to_owned))
    }
}

/// Puts a state aside, with the histories in a folder that may be another one than its own; a coordinator may lead it
/// meanwhile.
pub(crate) fn back_up(home: &Home, histories: Option<&Path>, to: &Path) -> Result<Manifest, BackupError> {
    if let Home::Folder { folder, .. } = home
        && !journal_of(folder).is_file()
    {
        return Err(BackupError::NoState { place: folder.display().to_string() });
    }
    let aside = Aside::begin(to)?;
    // Before the journal: a job of a night that is under way here is in it, and is forgotten where it is brought back.
    let files = home.nights(histories).map(|from| nights::put_aside(&from, aside.folder())).transpose()?.unwrap_or(0);
    let named = nights::names(aside.folder())?;
    let store = BlobStore::open(aside.folder())?;
    let (mut attempt, mut missed) = (0, None);
    let (opened, kept, (blobs, bytes)) = loop {
        let mut opened = copy_journal(home, aside.folder())?;
        // Listed after the journal was read: what is missing was let go of since.
        let from = blobs_of(home)?;
        let kept = nights::take_out(&mut opened, &from, (aside.folder(), &named));
        match kept.and_then(|kept| Ok((kept, copy_blobs(&from, &store, &opened.state.blobs())?))) {
            Ok((kept, copied)) => break (opened, kept, copied),
            Err(BackupError::Blob(BlobError::Missing(blob))) if attempt < ATTEMPTS => {
                (attempt, missed) = (attempt + 1, Some(blob));
            }
            Err(BackupError::Blob(BlobError::Missing(blob))) if missed != Some(blob) => {
                return Err(BackupError::Restless);
            }
            // Later journals refer to a missing one too: it was not let go of, but lost.
            Err(error) => return Err(error),
        }
    };
    let (term, facts) = (opened.state.term().0, opened.number);
    let nights = Nights::of(aside.folder(), files + kept)?;
    // The journal is one file once it is closed.
    drop(opened);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let journal = digest_of(&journal_of(aside.folder()))?;
    let version = VERSION.to_owned();
    let manifest = Manifest { format: FORMAT, version, at_ms, term, facts, blobs, bytes, journal, nights };
    let path = aside.folder().join(MANIFEST);
    let text = serde_json::to_string_pretty(&manifest).map_err(|error| io_error(&path)(error.into()))?;
    fs::write(&path, text + "\n").map_err(io_error(&path))?;
    aside.finish()?;
    Ok(manifest)
}

/// Brings a backup back at a place that holds no state yet, of the same kind or another; histories of nights beside it, or
/// into the folder that is named.
///
/// Whenever it is cut off, the same again comes to the same end. Histories outside of the state folder have their name before
/// the state has, and a mark until it has, so that no state is there without them; the mark of the state goes last.
pub(crate) fn restore(backup: &Path, home: &Home, histories: Option<&Path>) -> Result<Manifest, BackupError> {
    let manifest = read_manifest(backup)?;
    if let Some(nights) = &manifest.nights {
        nights.check(backup)?;
    }
    let inside = home.nights_inside(histories)?;
    settle_what_is_there(home, histories)?;
    let apart = match (&manifest.nights, histories) {
        (Some(nights), Some(place)) if inside.is_none() => Some(nights.bring_back_apart(backup, place)?),
        _ => None,
    };
    let inside = inside.filter(|_| manifest.nights.is_some());
    let state = match home {
        Home::Folder { folder, bucket } => restore_folder(backup, folder, bucket.as_ref(), inside.as_deref()).map(Some),
        Home::Servers { database, bucket } => {
            let with_nights = manifest.nights.is_some() && histories.is_none();
            restore_servers(backup, (database, bucket), with_nights).map(|()| None)
        }
    };
    if state.is_err()
        && let Some(Err(error)) = apart.as_ref().map(Apart::give_up)
    {
        tracing::warn!("histories stay that belong to no state: {error}");
    }
    let state = state?;
    apart.map_or(Ok(()), Apart::settle)?;
    state.map_or(Ok(()), Named::settle)?;
    Ok(manifest)
}

/// Takes off the marks that an attempt left which was cut off when all had its name already.
fn settle_what_is_there(home: &Home, histories: Option<&Path>) -> Result<(), BackupError> {
    if let Home::Folder { folder, .. } = home
        && let Some(state) = Named::left(folder)?
    {
        let apart = histories.map(Named::left).transpose()?.flatten();
        apart.map_or(Ok(()), Named::settle)?;
        state.settle()?;
    }
    Ok(())
}

/// Makes a state folder, and gives it its name; `nights` is where its histories lie inside of it, if they do.
fn restore_folder(
    backup: &Path,
    state: &Path,
    bucket: Option<&Bucket>,
    nights: Option<&Path>,
) -> Result<Named, BackupError> {
    let aside = Aside::begin(state)?;
    if let Some(inside) = nights {
        nights::bring_back(backup, &aside.folder().join(inside))?;
    }
    let opened = open_copy(backup, aside.folder())?;
    place_blobs(backup, bucket, aside.folder(), (&opened, &BTreeMap::new()))?;
    drop(opened);
    let journal = journal_of(aside.folder());
    let connection = Connection::open(&journal).map_err(sqlite(&journal))?;
    connection.execute("UPDATE leader SET term = term + ?1", [TERMS]).map_err(sqlite(&journal))?;
    connection.close().map_err(|(_, error)| sqlite(&journal)(error))?;
    aside.name()
}

/// Fills a database and a bucket; the histories of nights go with the journal where they have no folder.
fn restore_servers(
    backup: &Path,
    (database, bucket): (&Database, &Bucket),
    with_nights: bool,
) -> Result<(), BackupError> {
    // A journal is changed by being opened, so it is not the backup's own.
    let scratch = tempfile::tempdir().map_err(io_error(&std::env::temp_dir()))?;
    let mut opened = open_copy(backup, scratch.path())?;
    let taken = || BackupError::Taken { place: database.place().to_owned() };
    if Opened::is_kept(database).map_err(ServerError::from)? {
        return Err(taken());
    }
    let nights = if with_nights { nights::put_in(&mut opened, backup)? } else { BTreeMap::new() };
    place_blobs(backup, Some(bucket), scratch.path(), (&opened, &nights))?;
    let term = above(&opened);
    match opened.fill_database(database, term).map_err(ServerError::from)? {
        Filled::Done => Ok(()),
        Filled::Holds => Err(taken()),
        Filled::Led => Err(BackupError::Led { place: database.place().to_owned() }),
    }
}

/// A term that nobody of the time after the backup can have led under.
fn above(opened: &Opened) -> Term {
    Term(opened.state.term().0 + u64::from(TERMS))
}

/// What a backup says of itself, held against its journal.
fn read_manifest(backup: &Path) -> Result<Manifest, BackupError> {
    let wrong = |problem: String| BackupError::Wrong { folder: backup.to_owned(), problem };
    let text = fs::read_to_string(backup.join(MANIFEST)).map_err(|error| wrong(format!("{MANIFEST}: {error}")))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| wrong(format!("{MANIFEST}: {error}")))?;
    if manifest.format != FORMAT {
        return Err(wrong(format!("it has form {}, and this version reads form {FORMAT}", manifest.format)));
    }
    let found = digest_of(&journal_of(backup))?;
    if found != manifest.journal {
        return Err(wrong(format!("its journal has the digest {found}, not {}", manifest.journal)));
    }
    Ok(manifest)
}

/// A copy of a backup's journal, read.
fn open_copy(backup: &Path, folder: &Path) -> Result<Opened, BackupError> {
    let journal = journal_of(folder);
    fs::copy(journal_of(backup), &journal).map_err(io_error(&journal))?;
    Ok(Opened::read_folder(folder).map_err(ServerError::from)?)
}

/// Copies a backup's blobs to where they are to lie: a bucket that nothing else uses, or the state folder to be.
/// `files` are blobs that lie in the backup as files.
fn place_blobs(
    backup: &Path,
    bucket: Option<&Bucket>,
    folder: &Path,
    (opened, files): (&Opened, &BTreeMap<Digest, PathBuf>),
) -> Result<(), BackupError> {
    let blobs = opened.state.blobs();
    let to = match bucket {
        None => BlobStore::open(folder)?,
        Some(bucket) => BlobStore::open_unused_bucket(bucket.clone(), folder, above(opened))?,
    };
    // What is there of this backup was left by an attempt that broke off.
    if let Some(bucket) = bucket
        && !to.others(&blobs)?.is_empty()
    {
        return Err(BackupError::Used { place: bucket.place().to_owned() });
    }
    for blob in blobs.iter().filter(|blob| to.has(**blob)) {
        to.verify(*blob)?;
    }
    for (blob, path) in files.iter().filter(|(blob, _)| !to.has(**blob)) {
        let put = put(&to, path)?;
        if put != *blob {
            let problem = format!("{} has the digest {put}, not {blob}", path.display());
            return Err(BackupError::Wrong { folder: backup.to_owned(), problem });
        }
        to.unpin(put);
    }
    let copied = copy_blobs(&BlobStore::of_another(backup), &to, &blobs);
    copied.map(drop).map_err(|error| match error {
        BackupError::Blob(error @ (BlobError::Missing(_) | BlobError::Damaged { .. })) => {
            BackupError::Wrong { folder: backup.to_owned(), problem: error.to_string() }
        }
        error => error,
    })
}

/// The blobs of a state that somebody may lead.
fn blobs_of(home: &Home) -> Result<BlobStore, BlobError> {
    match home {
        Home::Folder { folder, bucket: None } => Ok(BlobStore::of_another(folder)),
        Home::Folder { bucket: Some(bucket), .. } | Home::Servers { bucket, .. } => {
            BlobStore::of_anothers_bucket(bucket.clone(), None)
        }
    }
}

/// The journal as it is at one moment, and its fold.
fn copy_journal(from: &Home, aside: &Path) -> Result<Opened, BackupError> {
    let to = journal_of(aside);
    // Of an earlier attempt.
    for name in ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"] {
        match fs::remove_file(aside.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&to)(error)),
            _ => {}
        }
    }
    match from {
        Home::Folder { folder, .. } => {
            copy_file(&journal_of(folder), &to)?;
            Ok(Opened::read_folder(aside).map_err(ServerError::from)?)
        }
        Home::Servers { database, .. } => {
            let copied = Opened::copy_database(database, aside).map_err(ServerError::from)?;
            copied.ok_or_else(|| BackupError::NoState { place: database.place().to_owned() })
        }
    }
}

/// A copy of a journal in SQLite that somebody may be writing.
fn copy_file(from: &Path, to: &Path) -> Result<(), BackupError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(from, flags).map_err(sqlite(from))?;
    connection.busy_timeout(std::time::Duration::from_secs(30)).map_err(sqlite(from))?;
    let text = to.to_str().ok_or_else(|| io_error(to)(io::Error::other("its name is not UTF-8")))?;
    connection.execute("VACUUM INTO ?1", [text]).map(drop).map_err(sqlite(from))
}

/// Copies these blobs, each verified; those that are there already are not read again. One that is missing holds up no
/// other, so that the next attempt has little left to copy.
fn copy_blobs(from: &BlobStore, to: &BlobStore, blobs: &BTreeSet<Digest>) -> Result<(u64, u64), BackupError> {
    let mut missing = None;
    for blob in blobs.iter().filter(|blob| !to.has(**blob)) {
        match copy_blob(from, to, *blob) {
            Err(error @ BlobError::Missing(_)) => missing = Some(error),
            copied => copied?,
        }
    }
    if let Some(error) = missing {
        return Err(error.into());
    }
    // Of an earlier attempt.
    to.sweep(blobs)?;
    Ok((blobs.len() as u64, to.usage()?.bytes.unwrap_or(0)))
}

fn copy_blob(from: &BlobStore, to: &BlobStore, blob: Digest) -> Result<(), BlobError> {
    let (mut reader, mut writer) = (from.reader(blob)?, to.writer()?);
    while let Some(piece) = reader.next(PIECE)? {
        writer.write(&piece)?;
    }
    writer.finish()?;
    to.unpin(blob);
    Ok(())
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
