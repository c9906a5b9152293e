//! What would otherwise be computed again, kept in a folder between epochs, stages and runs, up to a bound of bytes.
//!
//! A shelf holds the values of one key (a base model and all else that decides them), each found by a digest of its own.
//! Values lie in volumes, files that grow to a fixed size. When the folder is full the volume that was used the longest
//! ago goes first, whatever shelf it is of; what a running stage has used since it began stays. Other processes may
//! use the same folder: whoever reads or writes a volume holds a shared lock on its file, and only what nobody holds is
//! removed.
//!
//! This is a cache and never fails its callers. A value is checked each time it is read, and a volume with a damaged one
//! is removed; a disk that is full, or that may not be written, ends the keeping of this process. Both are said once in
//! the log. No byte of a result depends on what is kept (invariant 5).

mod room;
#[cfg(test)]
mod tests;
mod volume;
mod whole;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use graftwork_shared::digest::Digest;

use volume::{Entry, Volume};

pub(crate) use whole::Whole;

/// How many digests of values that were asked for in vain are remembered: 16 MiB at most.
const MOST_MISSED: usize = 1 << 20;

/// A folder of shelves, bounded by bytes in all.
#[derive(Debug)]
pub struct Shelves {
    folder: PathBuf,
    most_bytes: u64,
    open: Mutex<HashMap<PathBuf, Weak<Shelf>>>,
    missed: Mutex<HashSet<u64>>,
    ended: AtomicBool,
    damage_told: AtomicBool,
}

/// One shelf, open in this process.
#[derive(Debug)]
struct Shelf {
    shelves: Arc<Shelves>,
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    places: HashMap<u128, Place>,
    volumes: BTreeMap<u32, Held>,
    /// The volume that is written.
    writing: Option<u32>,
    next_volume: u32,
    /// Counts visits.
    now: u64,
    /// When the visits that last began.
    visits: Vec<u64>,
    /// There was no room since the last visit began or ended.
    full: bool,
}

#[derive(Debug)]
struct Held {
    volume: Arc<Volume>,
    /// The last visit that began before its last use.
    used: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    volume: u32,
    entry: Entry,
}

/// A shelf in use: as long as this lives, what was used since it began is not removed.
#[derive(Debug)]
pub struct Visit {
    shelf: Arc<Shelf>,
    since: u64,
}

impl Shelves {
    /// The shelves of a folder, which need not be there yet; all of them together take at most so many bytes.
    pub fn new(folder: PathBuf, most_bytes: u64) -> Self {
        Self {
            folder,
            most_bytes,
            open: Mutex::default(),
            missed: Mutex::default(),
            ended: AtomicBool::new(false),
            damage_told: AtomicBool::new(false),
        }
    }

    /// The shelf of a key. What was kept under it before, by whatever process, is found again.
    pub fn visit(self: &Arc<Self>, kind: &str, key: &Digest) -> Visit {
        let folder = self.shelf_folder(kind, key);
        let mut open = lock(&self.open);
        let shelf = open.get(&folder).and_then(Weak::upgrade).unwrap_or_else(|| {
            let shelf = Arc::new(Shelf { shelves: Arc::clone(self), folder: folder.clone(), state: Mutex::default() });
            shelf.read();
            open.retain(|_, shelf| shelf.strong_count() > 0);
            open.insert(folder, Arc::downgrade(&shelf));
            shelf
        });
        drop(open);
        let mut state = lock(&shelf.state);
        state.now += 1;
        state.full = false;
        let since = state.now;
        state.visits.push(since);
        drop(state);
        Visit { shelf, since }
    }

    fn shelf_folder(&self, kind: &str, key: &Digest) -> PathBuf {
        self.folder.join(format!("{kind}-{}", &key.to_string()[..32]))
    }

    /// Whether nothing more is written.
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn end(&self, error: &io::Error) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            let folder = self.folder.display();
            tracing::warn!(
                "nothing more is kept in {folder}: {error}; work goes on, and computes again what it would find there"
            );
        }
    }

    fn tell_damage(&self, folder: &Path) {
        if !self.damage_told.swap(true, Ordering::Relaxed) {
            tracing::warn!("a file of {} is damaged and was removed; what it held is computed again", folder.display());
        }
    }
}

impl Visit {
    /// A value, if it is kept and whole.
    pub fn get(&self, key: &Digest) -> Option<Vec<u8>> {
        self.shelf.get(short(key))
    }

    /// Keeps a value, if there is room; otherwise does nothing.
    pub fn put(&self, key: &Digest, value: &[u8]) {
        self.shelf.put(short(key), value);
    }

    /// Whether this was asked before for the same value, by any stage of this process. What is asked for twice is worth
    /// keeping, even where nobody knew that it would be.
    pub fn was_missed(&self, key: &Digest) -> bool {
        let mut missed = lock(&self.shelf.shelves.missed);
        if missed.len() >= MOST_MISSED {
            missed.clear();
        }
        let [part, ..] = parts(key);
        !missed.insert(part)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = lock(&self.shelf.state);
        state.full = false;
        if let Some(place) = state.visits.iter().position(|since| *since == self.since) {
            state.visits.swap_remove(place);
        }
    }
}

impl Shelf {
    /// Finds what earlier processes left, and what others are writing.
    fn read(&self) {
        let mut state = lock(&self.state);
        for (volume, entries) in volume::existing(&self.folder) {
            let number = state.hold(volume);
            state.places.extend(entries.into_iter().map(|(key, entry)| (key, Place { volume: number, entry })));
        }
    }

    fn get(&self, key: u128) -> Option<Vec<u8>> {
        let (number, entry, volume) = {
            let mut state = lock(&self.state);
            let Place { volume: number, entry } = *state.places.get(&key)?;
            let now = state.now;
            let held = state.volumes.get_mut(&number)?;
            if held.used < now {
                held.used = now;
                held.volume.touch();
            }
            (number, entry, Arc::clone(&held.volume))
        };
        let value = volume.read(entry);
        if value.is_none() {
            self.remove(number);
            self.shelves.tell_damage(&self.folder);
        }
        value
    }

    fn put(&self, key: u128, value: &[u8]) {
        if self.shelves.has_ended() {
            return;
        }
        let Some((number, volume, first)) = self.take(key, value.len() as u64) else { return };
        // Written before anybody can find it, and without holding up others.
        let written = volume.write(first, value).and_then(|entry| {
            let mut state = lock(&self.state);
            volume.note(key, entry)?;
            if state.volumes.contains_key(&number) {
                state.places.insert(key, Place { volume: number, entry });
            }
            Ok(())
        });
        if let Err(error) = written {
            self.remove(number);
            self.shelves.end(&error);
        }
    }

    /// A place for so many bytes, unless the key has one or there is no room.
    fn take(&self, key: u128, bytes: u64) -> Option<(u32, Arc<Volume>, u64)> {
        let mut state = lock(&self.state);
        if state.places.contains_key(&key) {
            return None;
        }
        if let Some(number) = state.writing
            && let Some(held) = state.volumes.get(&number)
            && let Some(first) = held.volume.take(bytes)
        {
            return Some((number, Arc::clone(&held.volume), first));
        }
        if state.full {
            return None;
        }
        match self.begin_volume(&mut state, bytes) {
            Ok(Some(number)) => {
                let volume = Arc::clone(&state.volumes.get(&number)?.volume);
                let first = volume.take(bytes)?;
                Some((number, volume, first))
            }
            Ok(None) => {
                state.full = true;
                None
            }
            Err(error) => {
                drop(state);
                self.shelves.end(&error);
                None
            }
        }
    }

    /// A new volume to write, `None` where all room is taken by what is in use.
    fn begin_volume(&self, state: &mut State, bytes: u64) -> io::Result<Option<u32>> {
        let size = self.shelves.volume_bytes().max(bytes);
        let mut begun = self.shelves.begin(&self.folder, size)?;
        if begun.is_none() {
            state.let_go();
            begun = self.shelves.begin(&self.folder, size)?;
        }
        Ok(begun.map(|volume| {
            let number = state.hold(volume);
            state.writing = Some(number);
            number
        }))
    }

    /// Removes a volume for good.
    fn remove(&self, number: u32) {
        let mut state = lock(&self.state);
        if let Some(held) = state.forget(number) {
            held.volume.remove();
        }
    }
}

impl State {
    fn hold(&mut self, volume: Volume) -> u32 {
        let number = self.next_volume;
        self.next_volume += 1;
        self.volumes.insert(number, Held { volume: Arc::new(volume), used: self.now });
        number
    }

    fn forget(&mut self, number: u32) -> Option<Held> {
        self.places.retain(|_, place| place.volume != number);
        self.writing = self.writing.filter(|writing| *writing != number);
        self.volumes.remove(&number)
    }

    /// Lets go of volumes that no running visit has used, so that they can be removed.
    fn let_go(&mut self) {
        let since = self.visits.iter().min().copied().unwrap_or(self.now);
        let old = self.volumes.iter().filter(|(_, held)| held.used < since).map(|(number, _)| *number);
        for number in old.collect::<Vec<_>>() {
            self.forget(number);
        }
    }
}

/// Half of a digest: enough that no two values will ever share it.
fn short(key: &Digest) -> u128 {
    let [first, second, ..] = parts(key);
    u128::from(first) << 64 | u128::from(second)
}

fn parts(key: &Digest) -> [u64; 4] {
    let mut parts = [0; 4];
    let (eights, _) = key.bytes().as_chunks::<8>();
    parts.iter_mut().zip(eights).for_each(|(part, bytes)| *part = u64::from_be_bytes(*bytes));
    parts
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
