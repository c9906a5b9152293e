//! Finding a result that the hub holds already, and trusting it only after its bytes were hashed again.

use std::path::Path;

use graftwork_shared::{digest::Digest, recipe::NumericClass, record::Record};

use super::{Found, Hub, RECORD_FILE};
use crate::StoreError;

impl Hub {
    /// The release that holds the result of a recipe in one of these numeric classes, the first class that has one.
    /// A release whose files no longer have their recorded SHA-256 is passed over with a warning. Blocks.
    pub fn lookup(&self, recipe: Digest, classes: &[NumericClass]) -> Option<Found> {
        classes.iter().find_map(|class| {
            let text = std::fs::read_to_string(self.index_entry(&recipe, class)).ok()?;
            let digest: Digest = text.trim().parse().ok()?;
            let folder = self.release_folder(&digest);
            match self.check(&folder, recipe) {
                Ok(record) => Some(Found { folder, record }),
                Err(error) => {
                    tracing::warn!(%recipe, "a release is not used again: {error}");
                    None
                }
            }
        })
    }

    /// Reads a release's record, compares the digest in it with the recipe in it, and the SHA-256 of each of the release's
    /// files with it. Blocks.
    pub fn verify(folder: &Path) -> Result<Record, StoreError> {
        let path = folder.join(RECORD_FILE);
        let damaged = |problem: String| StoreError::Damaged { place: path.display().to_string(), problem };
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Missing(format!("{} (the record of a release)", path.display())));
            }
            other => other.map_err(StoreError::file(&path))?,
        };
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let digest = record.recipe.digest();
        if digest != record.recipe_digest {
            return Err(damaged(format!(
                "its recipe has the digest {}, but its recipe_digest is {}; one of the two was changed",
                digest.short(),
                record.recipe_digest.short()
            )));
        }
        for (name, expected) in &record.files {
            let file = folder.join(name);
            let found = Digest::of(&std::fs::read(&file).map_err(StoreError::file(&file))?);
            if found != *expected {
                let problem = format!("SHA-256 is {}, but the record says {}", found.short(), expected.short());
                return Err(StoreError::Damaged { place: file.display().to_string(), problem });
            }
        }
        Ok(record)
    }

    fn check(&self, folder: &Path, recipe: Digest) -> Result<Record, StoreError> {
        let record = Self::verify(folder)?;
        if record.recipe_digest == recipe {
            return Ok(record);
        }
        let problem = format!("holds recipe {}, not {}", record.recipe_digest.short(), recipe.short());
        Err(StoreError::Damaged {
            place: folder.strip_prefix(&self.root).unwrap_or(folder).display().to_string(),
            problem,
        })
    }
}
