//! Inputs: files and archive members, found, identified and opened as plain byte streams.

use std::{
    fs::File,
    io::{BufReader, Cursor, Read},
    path::{Path, PathBuf},
};

use graftwork_shared::digest::Hasher;

use super::{ImportError, SourceFile};
use crate::{error::list_names, pattern::Pattern};

/// One file, or one member of an archive.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    file: PathBuf,
    member: Option<String>,
    /// For messages: path, or `archive!member`.
    pub(crate) name: String,
}

/// Finds what a list of inputs names, in the order of the list, each entry's matches sorted by name.
pub(crate) fn find(entries: &[String]) -> Result<Vec<Input>, ImportError> {
    let mut inputs = Vec::new();
    for entry in entries {
        match entry.split_once('!') {
            Some((archive, member)) => inputs.extend(find_members(Path::new(archive), member)?),
            None => inputs.extend(find_files(entry)?),
        }
    }
    Ok(inputs)
}

fn find_files(entry: &str) -> Result<Vec<Input>, ImportError> {
    let files = crate::open::locate_path(entry)
        .map_err(|error| ImportError::NoMatch { input: entry.to_owned(), nearby: error.to_string() })?;
    Ok(files.into_iter().map(|file| Input { name: file.clone(), file: file.into(), member: None }).collect())
}

fn open_archive(archive: &Path) -> Result<zip::ZipArchive<BufReader<File>>, ImportError> {
    let name = archive.display().to_string();
    let file = File::open(archive).map_err(|error| ImportError::unreadable(&name, error))?;
    zip::ZipArchive::new(BufReader::new(file)).map_err(|error| ImportError::unreadable(&name, not_whole(&error)))
}

fn not_whole(error: &zip::result::ZipError) -> String {
    match error {
        zip::result::ZipError::Io(error) => error.to_string(),
        // Its words hold a title and then the reason.
        other => {
            let words = other.to_string().to_lowercase();
            let reason =
                words.trim_start_matches("invalid zip archive: ").trim_start_matches("unsupported zip archive: ");
            format!("it is no whole zip archive ({reason}); copy or download it again")
        }
    }
}

fn find_members(archive: &Path, member: &str) -> Result<Vec<Input>, ImportError> {
    let listed = open_archive(archive)?;
    let names = listed.file_names().map(|name| name.map(std::borrow::Cow::into_owned)).collect::<Result<Vec<_>, _>>();
    let names = names.map_err(|error| ImportError::unreadable(&archive.display().to_string(), not_whole(&error)))?;
    // A member whose own name has a star or a bracket is taken as it is, like a file.
    let found = match names.iter().find(|name| *name == member) {
        Some(itself) => vec![itself.clone()],
        None => matching(&names, member)
            .map_err(|nearby| ImportError::NoMatch { input: format!("{}!{member}", archive.display()), nearby })?,
    };
    let input = |member: String| Input {
        file: archive.to_owned(),
        name: format!("{}!{member}", archive.display()),
        member: Some(member),
    };
    Ok(found.into_iter().map(input).collect())
}

/// Members that a pattern matches, sorted by name; or what there is instead.
fn matching(names: &[String], pattern: &str) -> Result<Vec<String>, String> {
    let pattern = Pattern::new(pattern)?;
    let files = names.iter().filter(|name| !name.ends_with('/'));
    let mut found: Vec<String> = files.filter(|name| pattern.matches(name)).cloned().collect();
    found.sort();
    if found.is_empty() {
        let folder = pattern.fixed_folder();
        let mut near: Vec<&str> = names.iter().filter(|name| name.starts_with(&folder)).map(String::as_str).collect();
        near.sort_unstable();
        return Err(format!("below {folder:?} the archive holds {}", list_names(near)));
    }
    Ok(found)
}

impl Input {
    /// Its path inside the archive, or its file name: what does not depend on where it lies.
    pub(crate) fn inner_path(&self) -> String {
        let file_name = || self.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.member.clone().unwrap_or_else(file_name)
    }

    /// File name without a compression's ending.
    pub(crate) fn plain_name(&self) -> String {
        let name = self.inner_path();
        let name = name.rsplit('/').next().unwrap_or_default();
        let bare = [".gz", ".bz2", ".zst"].iter().find_map(|ending| name.strip_suffix(ending));
        bare.unwrap_or(name).to_owned()
    }

    /// Name of the folder it lies in, or an empty text.
    pub(crate) fn folder_name(&self) -> String {
        match &self.member {
            Some(member) => member.rsplit('/').nth(1).unwrap_or_default().to_owned(),
            None => {
                let parent = self.file.parent().and_then(Path::file_name).unwrap_or_default();
                parent.to_string_lossy().into_owned()
            }
        }
    }

    /// Size and SHA-256 of its bytes as stored, a member's after unpacking the archive.
    pub(crate) fn identify(&self) -> Result<SourceFile, ImportError> {
        let mut hasher = Hasher::new();
        let bytes =
            std::io::copy(&mut self.raw()?, &mut hasher).map_err(|error| ImportError::unreadable(&self.name, error))?;
        Ok(SourceFile { name: self.inner_path(), bytes, sha256: hasher.finish() })
    }

    /// Its bytes, decompressed by ending.
    pub(crate) fn read(&self) -> Result<Box<dyn Read>, ImportError> {
        let raw = self.raw()?;
        let name = self.inner_path();
        let ending = Path::new(&name).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        Ok(match ending {
            "gz" => Box::new(flate2::read::MultiGzDecoder::new(raw)),
            "bz2" => Box::new(bzip2::read::MultiBzDecoder::new(raw)),
            "zst" => {
                let decoder = zstd::stream::read::Decoder::new(raw);
                Box::new(decoder.map_err(|error| ImportError::unreadable(&self.name, error))?)
            }
            _ => raw,
        })
    }

    fn raw(&self) -> Result<Box<dyn Read>, ImportError> {
        let failed = |error: &dyn std::fmt::Display| ImportError::unreadable(&self.name, error);
        let Some(member) = &self.member else {
            let file = File::open(&self.file).map_err(|error| failed(&error))?;
            return Ok(Box::new(BufReader::new(file)));
        };
        // A member borrows its archive while it is read, so it is unpacked into memory.
        let mut archive = open_archive(&self.file)?;
        let mut bytes = Vec::new();
        archive
            .by_name(member)
            .map_err(|error| failed(&not_whole(&error)))?
            .read_to_end(&mut bytes)
            .map_err(|error| failed(&error))?;
        Ok(Box::new(Cursor::new(bytes)))
    }
}
