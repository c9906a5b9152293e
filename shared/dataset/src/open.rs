//! Opening a source: places to files, footers in parallel, and the checks that need no row.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_schema::SchemaRef;
use futures::{StreamExt, TryStreamExt};
use graftwork_shared::{
    data::{FileIdentity, Source},
    upload,
};
use parquet::{arrow::parquet_to_arrow_schema, file::metadata::ParquetMetaData};

use crate::{
    Access, DataError,
    access::{is_url, parse_url, store_error, wrong},
    columns::first_difference,
    error::{list_names, undecodable},
    file::{FileBytes, caught, read_footer},
    pattern::Pattern,
};

/// Key of the file metadata under which `import` writes the class names, a JSON list.
pub(crate) const LABELS_KEY: &str = "graftwork.labels";

/// Footers read at the same time.
const PARALLEL_FOOTERS: usize = 16;

/// A file whose footer was read.
#[derive(Clone, Debug)]
pub struct OpenFile {
    /// What pins the file down.
    pub identity: FileIdentity,
    /// Its columns. Text is always `Utf8`, however the writer's Arrow kept it.
    pub schema: SchemaRef,
    /// Class names that `import` wrote into the file (metadata `graftwork.labels`), in the order of their ids.
    pub labels: Option<Vec<String>>,
}

/// Opens a source: paths, globs (`*`, `?`, `[a-z]`, `**`), folders of `.parquet` shards and URLs, in the order given; what one
/// entry matches is sorted by name. Reads footers only.
///
/// Errors: nothing matches, a file is missing, named twice, empty, truncated or no Parquet, or shards have different
/// columns.
pub async fn open(source: &Source, access: &Access) -> Result<Vec<OpenFile>, DataError> {
    let mut locations = Vec::new();
    for entry in source {
        locations.extend(locate(entry, access).await?);
    }
    if locations.is_empty() {
        return Err(DataError::NoSource);
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = locations.iter().find(|location| !seen.insert(location.as_str())) {
        return Err(DataError::NamedTwice { location: twice.clone() });
    }
    let files: Vec<OpenFile> = futures::stream::iter(&locations)
        .map(|location| open_file(location, access))
        .buffered(PARALLEL_FOOTERS)
        .try_collect()
        .await?;
    for file in &files[1..] {
        if let Some(difference) = first_difference(&files[0].schema, &file.schema) {
            return Err(DataError::SchemaDiffers {
                first: files[0].identity.location.clone(),
                second: file.identity.location.clone(),
                difference,
            });
        }
    }
    Ok(files)
}

async fn open_file(location: &str, access: &Access) -> Result<OpenFile, DataError> {
    let mut source = FileBytes::new(access.place(location)?, Arc::default());
    let footer = read_footer(&mut source, None).await?;
    let schema = plain_schema(&footer.metadata)
        .map_err(|detail| DataError::DamagedFooter { location: location.to_owned(), detail })?;
    let labels = labels_of(&footer.metadata)
        .map_err(|detail| DataError::DamagedFooter { location: location.to_owned(), detail })?;
    Ok(OpenFile { identity: footer.identity, schema, labels })
}

/// The columns as Parquet itself types them: what the writer's Arrow made of them differs between writers.
pub(crate) fn plain_schema(metadata: &ParquetMetaData) -> Result<SchemaRef, String> {
    caught(|| parquet_to_arrow_schema(metadata.file_metadata().schema_descr(), None))?
        .map(Arc::new)
        .map_err(|error| undecodable(&error))
}

fn labels_of(metadata: &ParquetMetaData) -> Result<Option<Vec<String>>, String> {
    let entries = metadata.file_metadata().key_value_metadata().map_or(&[][..], Vec::as_slice);
    let value = entries.iter().find(|entry| entry.key == LABELS_KEY).and_then(|entry| entry.value.as_deref());
    value
        .map(|text| {
            serde_json::from_str(text).map_err(|error| format!("metadata {LABELS_KEY} is no list of texts: {error}"))
        })
        .transpose()
}

async fn locate(entry: &str, access: &Access) -> Result<Vec<String>, DataError> {
    if upload::digest(entry).is_some() {
        return Ok(vec![entry.to_owned()]);
    }
    if is_url(entry) { locate_url(entry, access).await } else { locate_path(entry) }
}

/// Files on disk that a path, a glob or a folder of shards names, sorted by name, as [`open()`] finds them.
///
/// # Errors
/// There are none.
pub fn locate_path(entry: &str) -> Result<Vec<String>, DataError> {
    if entry.trim().is_empty() {
        return Err(wrong(entry, "it is empty"));
    }
    let path = std::path::absolute(entry).map_err(|error| wrong(entry, &error.to_string()))?;
    let Some(text) = path.to_str().map(str::to_owned) else { return Err(wrong(entry, "it is not UTF-8")) };
    // A file whose own name has a star or a bracket is taken as it is.
    if path.is_file() {
        return Ok(vec![text]);
    }
    if path.is_dir() {
        return shards_in(&path);
    }
    if Pattern::is_one(&text) {
        return glob_files(&text);
    }
    let folder = path.parent().unwrap_or(&path);
    Err(DataError::MissingFile { location: text, nearby: nearby(folder) })
}

fn shards_in(folder: &Path) -> Result<Vec<String>, DataError> {
    let location = folder.display().to_string();
    let mut shards: Vec<String> =
        files_below(folder, 1).into_iter().filter(|file| file.ends_with(".parquet")).collect();
    shards.sort();
    if shards.is_empty() {
        return Err(DataError::EmptyFolder { location, nearby: nearby(folder) });
    }
    Ok(shards)
}

fn glob_files(text: &str) -> Result<Vec<String>, DataError> {
    let pattern = Pattern::new(text).map_err(|reason| wrong(text, &reason))?;
    let folder = PathBuf::from(format!("{}/", pattern.fixed_folder()));
    let mut files = files_below(&folder, pattern.depth().unwrap_or(usize::MAX));
    files.retain(|file| pattern.matches(file));
    files.sort();
    if files.is_empty() {
        return Err(DataError::NoMatch { pattern: text.to_owned(), nearby: nearby(&folder) });
    }
    Ok(files)
}

/// Visible files at most so many levels below a folder; folders that cannot be listed count as empty.
fn files_below(folder: &Path, levels: usize) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden {
            continue;
        }
        if path.is_file() {
            files.extend(path.to_str().map(str::to_owned));
        } else if levels > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.extend(files_below(&path, levels - 1));
        }
    }
    files
}

/// What a folder holds, for an error about something that it does not hold.
fn nearby(folder: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return format!("folder {} does not exist or cannot be read", folder.display());
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    format!("folder {} holds {}", folder.display(), list_names(names.iter().map(String::as_str)))
}

async fn locate_url(entry: &str, access: &Access) -> Result<Vec<String>, DataError> {
    let on_server = entry.starts_with("http");
    let wildcard = entry.contains('*') || (entry.contains('[') && !on_server);
    // In a pattern `?` is a wildcard; in any other URL it begins a query, which may hold a signature.
    let url = if wildcard && !on_server { parse_url(&entry.replace('?', "%3F"))? } else { parse_url(entry)? };
    if !wildcard && !entry.ends_with('/') {
        return Ok(vec![url.to_string()]);
    }
    if url.scheme().starts_with("http") {
        return Err(wrong(entry, "an HTTP server cannot list files; name each file"));
    }
    let base = &url[..url::Position::BeforePath];
    let pattern_text = entry[base.len().min(entry.len())..].trim_start_matches('/');
    let folder = if wildcard { String::new() } else { format!("{}*.parquet", glob::Pattern::escape(pattern_text)) };
    let pattern = Pattern::new(if wildcard { pattern_text } else { &folder });
    let pattern = pattern.map_err(|reason| wrong(entry, &reason))?;
    let place = access.place(&format!("{base}/{}", pattern.fixed_folder()))?;
    let objects: Vec<_> = place
        .store
        .list(Some(&place.path))
        .try_collect()
        .await
        .map_err(|error: object_store::Error| store_error(entry, &error))?;
    let paths = || objects.iter().map(|object| object.location.as_ref());
    // An object whose own key has a star or a bracket is taken as it is, like a file.
    let itself = wildcard && paths().any(|path| path == pattern_text);
    let matches = |path: &&str| if itself { *path == pattern_text } else { pattern.matches(path) };
    let mut found: Vec<String> = paths().filter(matches).map(|path| format!("{base}/{path}")).collect();
    found.sort();
    if found.is_empty() {
        let nearby = format!("{} object(s) lie below {}", objects.len(), place.location);
        return Err(DataError::NoMatch { pattern: entry.to_owned(), nearby });
    }
    Ok(found)
}
