//! Which places of a job are local, which files they are, and the job with digests in their place.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use graftwork_shared::{
    data::Source,
    diagnostic::Diagnostic,
    digest::Digest,
    job::{AdapterRef, Job, Spans},
    upload::{self, FolderList, UploadedFile},
};
use graftwork_store::StoreError;

use super::{Content, Upload, digest_of};

/// Finds and reads files; keeps what is wrong.
struct Finder<'a> {
    spans: &'a Spans,
    shared_roots: &'a [PathBuf],
    contents: BTreeMap<Digest, Content>,
    paths: BTreeMap<String, String>,
    /// Files that were read already: validation rows are often named by several tasks.
    read: BTreeMap<PathBuf, UploadedFile>,
    problems: Vec<Diagnostic>,
}

pub(super) fn prepare(mut job: Job, spans: &Spans, shared_roots: &[PathBuf]) -> Result<Upload, Vec<Diagnostic>> {
    let mut finder = Finder {
        spans,
        shared_roots,
        contents: BTreeMap::new(),
        paths: BTreeMap::new(),
        read: BTreeMap::new(),
        problems: Vec::new(),
    };
    let base = &mut job.base_model.location;
    finder.folder(base, "base_model.location", "base-model", graftwork_store::base_model_files);
    for task in &mut job.tasks {
        let data = &mut task.data;
        let splits =
            [("train", Some(&mut data.train)), ("validation", data.validation.as_mut()), ("test", data.test.as_mut())];
        for (key, source) in splits {
            if let Some(source) = source {
                finder.rows(source, &format!("tasks.{}.{key}", task.name));
            }
        }
    }
    for fusion in &mut job.fusions {
        let at = format!("fusions.{}.adapters", fusion.name);
        for (index, adapter) in fusion.adapters.iter_mut().enumerate() {
            if let AdapterRef::Folder(place) = adapter {
                finder.folder(place, &format!("{at}.{index}"), "adapter", graftwork_store::adapter_files);
            }
        }
    }
    let Finder { contents, paths, problems, .. } = finder;
    if problems.is_empty() { Ok(Upload { job, contents, paths }) } else { Err(problems) }
}

impl Finder<'_> {
    fn stays(&self, place: &str) -> bool {
        place.contains("://") || self.shared_roots.iter().any(|root| Path::new(place).starts_with(root))
    }

    fn problem(&mut self, at: &str, code: &str, message: String) {
        let mut problem = Diagnostic::error(code, message)
            .help("mend the path, or say with --shared-root below which folder the coordinator and its workers see it");
        problem.span = self.spans.of(at);
        self.problems.push(problem);
    }

    /// Replaces what a source names on this disk by the files that it matches.
    fn rows(&mut self, source: &mut Source, at: &str) {
        let mut places = Vec::new();
        for entry in std::mem::take(source) {
            if self.stays(&entry) {
                places.push(entry);
                continue;
            }
            let files = match graftwork_dataset::locate_path(&entry) {
                Ok(files) => files,
                Err(error) => {
                    self.problem(at, "data", error.to_string());
                    continue;
                }
            };
            for file in files {
                match self.file(Path::new(&file)) {
                    Ok(read) => places.push(self.name(read.digest, &file)),
                    Err(error) => self.problem(at, "data", format!("{file}: {error}")),
                }
            }
        }
        *source = places;
    }

    /// Replaces a local folder by the list of its files.
    fn folder(
        &mut self,
        place: &mut String,
        at: &str,
        code: &str,
        files: impl Fn(&str) -> Result<Vec<(String, PathBuf)>, StoreError>,
    ) {
        if self.stays(place) {
            return;
        }
        match self.list(place, files) {
            Ok(list) => {
                let bytes = list.to_bytes();
                let digest = Digest::of(&bytes);
                self.contents.insert(digest, Content::List(bytes));
                *place = self.name(digest, place);
            }
            Err(message) => self.problem(at, code, message),
        }
    }

    fn list(
        &mut self,
        place: &str,
        files: impl Fn(&str) -> Result<Vec<(String, PathBuf)>, StoreError>,
    ) -> Result<FolderList, String> {
        let mut list = FolderList::default();
        for (name, path) in files(place).map_err(|error| error.to_string())? {
            let file = self.file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            list.files.insert(name, file);
        }
        Ok(list)
    }

    fn file(&mut self, path: &Path) -> std::io::Result<UploadedFile> {
        if let Some(file) = self.read.get(path) {
            return Ok(*file);
        }
        let file = digest_of(path)?;
        self.read.insert(path.to_owned(), file);
        self.contents.insert(file.digest, Content::File { path: path.to_owned(), bytes: file.bytes });
        Ok(file)
    }

    fn name(&mut self, digest: Digest, path: &str) -> String {
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
        let location = upload::location(digest, name);
        self.paths.insert(location.clone(), path.to_owned());
        location
    }
}
