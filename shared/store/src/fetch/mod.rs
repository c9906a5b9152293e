//! Base models and adapters by their location: a folder as it is, everything else through the cache.
//!
//! ```text
//! <cache>/<kind>/<version>/           complete and checked; never changed after its name appears
//! <cache>/<kind>/<version>.partial/   being downloaded, gone on with by the next try
//! <cache>/<kind>/<version>.lock       one downloader at a time; others wait and find it done
//! ```
//! A version names content (a commit of a hub, ETags of an object store), so what is there needs no network again. What is
//! used is held ([`held`]), and a cache with a bound lets go of what is not ([`room`]).

mod held;
mod object;
mod partial;
mod recorded;
mod repository;
mod room;
mod uploaded;

use std::path::{Path, PathBuf};

use graftwork_shared::{credentials, upload};
pub use held::{Cache, Fetched};
pub use uploaded::{NoUploads, Uploads, fetch_uploaded_file};

use crate::StoreError;

/// Weights that are read where there are none as safetensors.
const TORCH_WEIGHTS: &str = "pytorch_model.bin";

/// Files of a base model that this program reads.
const MODEL_FILES: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "model.safetensors",
    "model.safetensors.index.json",
    TORCH_WEIGHTS,
];

/// Files of an adapter, head, fusion or setup in AdapterHub's layout, at any depth.
const ADAPTER_FILES: [&str; 11] = [
    "adapter_config.json",
    "adapter.safetensors",
    "pytorch_adapter.bin",
    "head_config.json",
    "model_head.safetensors",
    "pytorch_model_head.bin",
    "adapter_fusion_config.json",
    "model_adapter_fusion.safetensors",
    "pytorch_model_adapter_fusion.bin",
    "adapter_setup.json",
    crate::RECORD_FILE,
];

/// What is wanted from a place that holds more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Model,
    Adapter,
}

impl Wanted {
    /// Whether a file at this relative path is part of it.
    fn takes(self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        match self {
            Self::Model => {
                MODEL_FILES.contains(&path) || (path.starts_with("model-") && path.ends_with(".safetensors"))
            }
            Self::Adapter => ADAPTER_FILES.contains(&name),
        }
    }

    /// The files to fetch of those there are. Weights come once, in the format that is read first.
    fn choose<'f>(self, there: impl IntoIterator<Item = &'f str>) -> Vec<&'f str> {
        let mut chosen: Vec<&str> = there.into_iter().filter(|path| self.takes(path)).collect();
        if self == Self::Model && chosen.iter().any(|path| path.starts_with("model.safetensors")) {
            chosen.retain(|path| *path != TORCH_WEIGHTS);
        }
        chosen
    }

    /// The folder of the cache in which it is kept.
    fn folder(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Adapter => "adapters",
        }
    }

    /// The file without which it is not there at all.
    fn key_files(self) -> &'static [&'static str] {
        match self {
            Self::Model => &["config.json"],
            Self::Adapter => &["adapter_config.json", "adapter_setup.json", "adapter_fusion_config.json"],
        }
    }
}

/// The folder of a base model: a local folder as it is; `hf://organisation/name@revision` and object-store addresses
/// (`s3://`, `gs://`, `http(s)://`) through `cache`, as is what was uploaded (`blob://`), which `uploads` gives.
/// `credentials_env` names the environment variable with the token.
///
/// # Errors
/// A location that cannot be read, a server's refusal, or bytes that are not what was announced; nothing of an
/// incomplete download is ever visible, and the next call goes on with it.
pub async fn fetch_base_model(
    location: &str,
    credentials_env: Option<&str>,
    cache: impl Into<Cache<'_>>,
    uploads: &dyn Uploads,
) -> Result<Fetched, StoreError> {
    fetch(location, credentials_env, cache.into(), uploads, Wanted::Model).await
}

/// The folder of an adapter in AdapterHub's layout: a local folder as it is; of a release of our hub folder the one that a
/// later release does not change under the reader; `hf://organisation/name@revision` and what was uploaded through
/// `cache`. The files of a release have the SHA-256 that its record says.
///
/// # Errors
/// As [`fetch_base_model`], and a file of a release that is not as it was published.
pub async fn fetch_adapter(
    location: &str,
    credentials_env: Option<&str>,
    cache: impl Into<Cache<'_>>,
    uploads: &dyn Uploads,
) -> Result<Fetched, StoreError> {
    let folder = fetch(location, credentials_env, cache.into(), uploads, Wanted::Adapter).await?;
    let (checked, place) = (folder.to_path_buf(), location.to_owned());
    let checked = tokio::task::spawn_blocking(move || recorded::check(&checked, &place)).await;
    checked.map_err(|error| StoreError::Damaged { place: location.to_owned(), problem: error.to_string() })??;
    Ok(folder)
}

/// The variable whose secret may be shown where an adapter lies: the adapter's `own`, or the base model's where both lie
/// on the one hub that `HF_ENDPOINT` names. A secret for another place (`s3://` keys, say) never goes there.
pub fn adapter_credentials<'v>(
    location: &str,
    own: Option<&'v str>,
    base_model: &str,
    of_base_model: Option<&'v str>,
) -> Option<&'v str> {
    let on_hub = |location: &str| location.starts_with("hf://");
    if !on_hub(location) {
        return None;
    }
    own.or(of_base_model.filter(|_| on_hub(base_model)))
}

/// The files of a local base model that this program reads, by their paths inside its folder.
///
/// # Errors
/// No folder, or one that holds no base model.
pub fn base_model_files(folder: &str) -> Result<Vec<(String, PathBuf)>, StoreError> {
    files_of(&local_folder(folder, Wanted::Model)?, Wanted::Model)
}

/// The files of a local adapter in AdapterHub's layout, by their paths inside its folder.
///
/// # Errors
/// No folder, or one that holds no adapter.
pub fn adapter_files(folder: &str) -> Result<Vec<(String, PathBuf)>, StoreError> {
    files_of(&local_folder(folder, Wanted::Adapter)?, Wanted::Adapter)
}

/// In the order of their paths, so that equal folders give equal lists.
fn files_of(folder: &Path, wanted: Wanted) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).map_err(StoreError::file(&next))? {
            let path = entry.map_err(StoreError::file(&next))?.path();
            let inside = path.strip_prefix(folder).ok().and_then(Path::to_str).map(str::to_owned);
            match inside {
                Some(inside) if path.is_file() && wanted.takes(&inside) => files.push((inside, path)),
                Some(_) if wanted == Wanted::Adapter && path.is_dir() && !path.is_symlink() => open.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    Ok(files)
}

async fn fetch(
    location: &str,
    credentials_env: Option<&str>,
    cache: Cache<'_>,
    uploads: &dyn Uploads,
    wanted: Wanted,
) -> Result<Fetched, StoreError> {
    if let Some(digest) = upload::digest(location) {
        return uploaded::fetch(location, digest, cache, uploads, wanted).await;
    }
    if let Some(rest) = location.strip_prefix("hf://") {
        let source = repository::Address::parse(location, rest)?;
        return repository::fetch(&source, token(credentials_env)?.as_deref(), cache, wanted).await;
    }
    if let Some(path) = location.strip_prefix("file://").or((!location.contains("://")).then_some(location)) {
        return local_folder(path, wanted).map(Fetched::from);
    }
    object::fetch(location, token(credentials_env)?.as_deref(), cache, wanted).await
}

fn local_folder(path: &str, wanted: Wanted) -> Result<PathBuf, StoreError> {
    let folder = std::fs::canonicalize(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => StoreError::Missing(path.to_owned()),
        _ => StoreError::file(path)(error),
    })?;
    let problem = |problem: String| StoreError::Location { location: path.to_owned(), problem };
    if !folder.is_dir() {
        return Err(problem("it is a file, and a folder is needed".to_owned()));
    }
    if !wanted.key_files().iter().any(|name| folder.join(name).is_file()) {
        return Err(problem(format!("the folder holds no {}", wanted.key_files().join(" or "))));
    }
    Ok(if wanted == Wanted::Adapter { crate::Hub::settled(folder) } else { folder })
}

/// The value of the variable that a job names; it never leaves this process except in a request's header.
fn token(variable: Option<&str>) -> Result<Option<String>, StoreError> {
    Ok(variable.map(credentials::secret).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_sees_no_secret_of_another_place() {
        let (adapter, base, own) = ("hf://lab/x@main", Some("KEYS"), Some("HF_TOKEN"));
        assert_eq!(adapter_credentials(adapter, None, "hf://lab/base@main", base), base);
        for elsewhere in ["s3://bucket/base", "https://host/base", "/models/base"] {
            assert_eq!(adapter_credentials(adapter, None, elsewhere, base), None, "{elsewhere}");
            assert_eq!(adapter_credentials(adapter, own, elsewhere, base), own, "{elsewhere}");
        }
        assert_eq!(adapter_credentials("/adapters/x", own, "hf://lab/base@main", base), None);
    }
}
