//! Base models of this process: each is fetched, checked and opened once, and then shared. One that no stage has used for a
//! while is let go, so that its files may go from the cache. Beside them in the cache folder lie shelves with what would
//! otherwise be computed again from them.
//!
//! The trunk's bytes never change (invariant 1): files are mapped read-only by the engine, and a base model whose
//! digest is not the recipe's is refused before any weight of it is used.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use graftwork_engine::{Device, Shelves, Trunk};
use graftwork_model::BaseModel;
use graftwork_shared::digest::Digest;
use graftwork_store::{Cache, Fetched};
use tokio::runtime::Handle;

use crate::blobs::Blobs;

/// The opened base models by digest.
pub(crate) struct Trunks {
    device: Device,
    cache_folder: PathBuf,
    blobs: Blobs,
    shelves: Option<Arc<Shelves>>,
    opened: Mutex<BTreeMap<Digest, Opened>>,
}

/// A base model, whose files nobody removes as long as it is open.
struct Opened {
    trunk: Trunk,
    _files: Fetched,
    /// One for each stage that uses it, and this one.
    users: Arc<()>,
    /// When a stage was last seen to use it.
    used: Instant,
}

/// How long a base model stays open that no stage uses: the next stage often wants the same one, and opening it reads all of
/// it.
const IDLE: Duration = Duration::from_mins(10);

/// Bytes of shelves, once the command line has said it.
static KEPT_BYTES: OnceLock<u64> = OnceLock::new();

/// Bytes of what was fetched, once the command line has said it.
static FETCHED_BYTES: OnceLock<u64> = OnceLock::new();

/// How many bytes of the cache folder shelves may take, in this process; 0 keeps nothing. Said once, at the start.
pub(crate) fn keep_at_most(bytes: u64) {
    KEPT_BYTES.get_or_init(|| bytes);
}

/// How many bytes of the cache folder may hold what was fetched and is not in use. Said once, at the start.
pub(crate) fn keep_fetched_at_most(bytes: u64) {
    FETCHED_BYTES.get_or_init(|| bytes);
}

/// The cache folder with its bound, if the command line has said one.
pub(crate) fn cache(folder: &Path) -> Cache<'_> {
    FETCHED_BYTES.get().map_or_else(|| folder.into(), |most| Cache::bounded(folder, *most))
}

impl Trunks {
    /// None opened yet; remote models are kept below `cache_folder`, and uploaded ones come from `blobs`.
    pub(crate) fn new(device: Device, cache_folder: PathBuf, blobs: Blobs) -> Self {
        let most = KEPT_BYTES.get().copied().unwrap_or(0);
        let shelves = (most > 0).then(|| Arc::new(Shelves::new(cache_folder.join("shelves"), most)));
        Self { device, cache_folder, blobs, shelves, opened: Mutex::new(BTreeMap::new()) }
    }

    /// What is kept from stage to stage, if anything is.
    pub(crate) fn shelves(&self) -> Option<Arc<Shelves>> {
        self.shelves.clone()
    }

    /// Digests of those opened; `None` while one is being fetched or opened. Lets go of those that no stage has used for long.
    pub(crate) fn opened(&self) -> Option<BTreeSet<Digest>> {
        self.opened_at(Instant::now())
    }

    fn opened_at(&self, now: Instant) -> Option<BTreeSet<Digest>> {
        let mut opened = self.opened.try_lock().ok()?;
        let mut idle = Vec::new();
        for (digest, base) in &mut *opened {
            if Arc::strong_count(&base.users) > 1 {
                base.used = now;
            } else if now.duration_since(base.used) > IDLE {
                idle.push(*digest);
            }
        }
        let gone: Vec<Opened> = idle.iter().filter_map(|digest| opened.remove(digest)).collect();
        if !gone.is_empty() {
            tracing::info!(base_models = gone.len(), "no stage has used them for a while: they are closed");
            // Weights go from a device here, which may take its time, and no message is to wait for it.
            drop(thread::Builder::new().name("trunks".to_owned()).spawn(move || drop(gone)));
        }
        Some(opened.keys().copied().collect())
    }

    /// The base model at a location, which must have this digest, and what keeps it open. Blocks while it is fetched and
    /// opened; a second caller waits for the first and shares what it opened.
    pub(crate) fn get(
        &self,
        runtime: &Handle,
        location: &str,
        credentials: Option<&str>,
        digest: Digest,
    ) -> anyhow::Result<(Trunk, Arc<()>)> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = opened.get_mut(&digest) {
            // A stage may come and go between two looks.
            known.used = Instant::now();
            return Ok((known.trunk.share(), Arc::clone(&known.users)));
        }
        let cache = cache(&self.cache_folder);
        let fetched = graftwork_store::fetch_base_model(location, credentials, cache, &self.blobs);
        let folder = runtime.block_on(fetched).with_context(|| format!("base model {location}"))?;
        let base = BaseModel::open(&folder).with_context(|| format!("base model {location}"))?;
        let found = base.digest().with_context(|| format!("base model {location}"))?;
        if found != digest {
            bail!(
                "base model {location} has the digest {}, but the job was planned with {}: it changed since, or this \
                 worker sees another one under the same name",
                found.short(),
                digest.short()
            );
        }
        let trunk = Trunk::open(&base, self.device).with_context(|| format!("base model {location}"))?;
        let trunk = match &self.shelves {
            Some(shelves) => trunk.packed_once(shelves, &digest),
            None => trunk,
        };
        let (shared, users) = (trunk.share(), Arc::new(()));
        let used = Instant::now();
        opened.insert(digest, Opened { trunk, _files: folder, users: Arc::clone(&users), used });
        Ok((shared, users))
    }
}

/// Where fetched models are kept when nothing else is said: the user's cache folder.
pub(crate) fn default_cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_else(std::env::temp_dir).join("graftwork")
}

#[cfg(test)]
mod tests {
    use graftwork_proto::Token;

    use super::*;
    use crate::coordinators::Coordinators;

    #[test]
    fn a_base_model_is_closed_some_time_after_the_last_stage_that_used_it() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _inside = runtime.enter();
        let cache = tempfile::tempdir().unwrap();
        let nowhere = Coordinators::new(vec!["http://127.0.0.1:1".parse().unwrap()], None).unwrap();
        let blobs = Blobs::new(nowhere.lazy(), Token::default(), Duration::ZERO);
        let trunks = Trunks::new(Device::Cpu, cache.path().to_owned(), blobs);
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/fixtures/tiny_bert");
        let digest = BaseModel::open(Path::new(folder)).unwrap().digest().unwrap();
        let get = || trunks.get(runtime.handle(), folder, None, digest).unwrap();
        let began = Instant::now();
        let is_open = |after: Duration| trunks.opened_at(began + after).unwrap().contains(&digest);

        let (one, two) = (get(), get());
        assert!(is_open(2 * IDLE));
        drop(one);
        assert!(is_open(4 * IDLE), "a stage uses it still");
        drop(two);
        assert!(is_open(5 * IDLE), "the next one may come soon");
        assert!(!is_open(5 * IDLE + Duration::from_secs(1)));
        drop(get());
        assert!(is_open(Duration::ZERO), "it is opened again when it is wanted");
        // Seen last as far back as is still open; a stage that nobody looks at counts too.
        let seen = trunks.opened.lock().unwrap().get(&digest).unwrap().used;
        drop(get());
        assert!(trunks.opened.lock().unwrap().get(&digest).unwrap().used > seen);
    }
}
