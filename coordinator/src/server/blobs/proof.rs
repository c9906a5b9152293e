//! Whether an object store keeps its word: of writers that race to create one object, exactly one may win.
//!
//! A store answers those that lose a race in its own time; some take a second for each. So whoever starts over a store that
//! a coordinator of its folder has seen keep its word leads first and sees it again meanwhile. That is no risk: objects are
//! named after the term of their coordinator, so no two ever create the same one; the condition is what stands behind that.

use std::{
    fs, io,
    path::{Path as FilePath, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::future::join_all;
use object_store::{Error, ObjectStoreExt as _, path::Path};

use super::{BlobError, Bucket, io_error};

/// Objects that are raced for, and writers that race for each.
const RACES: (usize, usize) = (4, 8);

/// What is believed of a store since an earlier start, and is to be seen again.
pub(crate) struct Belief {
    bucket: Bucket,
    note: PathBuf,
}

impl Belief {
    /// Sees again whether the store keeps its word; of one that does not, this is remembered: the next start waits for it.
    pub(crate) async fn prove_again(&self) -> Result<(), BlobError> {
        let proved = self.bucket.prove().await;
        if let Err(BlobError::Unfit { .. }) = proved {
            forget(&self.note)?;
        }
        proved
    }
}

fn forget(note: &FilePath) -> Result<(), BlobError> {
    match fs::remove_file(note) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(note)(error)),
        _ => Ok(()),
    }
}

impl Bucket {
    /// Returns at once if an earlier start in this folder saw this store keep its word, with what is to be seen again.
    /// Otherwise sees it first, which takes seconds at some stores: nobody may lead meanwhile.
    pub(crate) async fn believe(&self, own_folder: &FilePath) -> Result<Option<Belief>, BlobError> {
        let (note, identity) = (own_folder.join("store-keeps-its-word"), self.identity.to_string());
        // Without a whole note of this very store it is seen now.
        if fs::read_to_string(&note).is_ok_and(|noted| noted == identity) {
            return Ok(Some(Belief { bucket: self.clone(), note }));
        }
        self.prove().await?;
        fs::write(&note, identity).map_err(io_error(&note))?;
        Ok(None)
    }

    /// Races for a few objects at once, and sees whether the store keeps its word.
    pub(crate) async fn prove(&self) -> Result<(), BlobError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        // This coordinator's alone.
        let mark = format!("{}-{}", std::process::id(), since.as_nanos());
        let (objects, writers) = RACES;
        let races = join_all((0..objects).map(async |number| {
            let key = self.prefix.clone().join(format!("probe-{mark}-{number}"));
            let seen = self.race(&key, writers).await;
            let removed = self.store.delete(&key).await;
            if let Some(problem) = seen? {
                return Err(BlobError::Unfit { place: self.place().to_owned(), problem });
            }
            removed.map_err(|error| self.error(&key, &error))
        }));
        races.await.into_iter().collect()
    }

    /// What a store did that it must not; `None` if it did well.
    async fn race(&self, key: &Path, writers: usize) -> Result<Option<String>, BlobError> {
        let created = join_all((0..writers).map(|writer| self.create(key, format!("writer {writer}").into()))).await;
        let mut winners = Vec::new();
        for (writer, created) in created.into_iter().enumerate() {
            match created {
                Ok(()) => winners.push(writer),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
                Err(error) => return Err(self.error(key, &error)),
            }
        }
        let &[winner] = winners.as_slice() else {
            return Ok(Some(format!("{} of {writers} writers created the same object", winners.len())));
        };
        if self.create(key, "too late".into()).await.is_ok() {
            return Ok(Some("an object that was there was created again".to_owned()));
        }
        let found = self.store.get(key).await.map_err(|error| self.error(key, &error))?;
        let found = found.bytes().await.map_err(|error| self.error(key, &error))?;
        let wanted = format!("writer {winner}");
        Ok((found != wanted.as_bytes()).then(|| "an object holds the bytes of a writer that was refused".to_owned()))
    }
}
