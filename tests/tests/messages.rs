//! One rule for errors: their own words are whole, and what is in them is no `source()` besides, so that whoever prints
//! causes says nothing twice (`graftwork_shared::cause`).

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The `.rs` files of all crates.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of this repository").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let hidden = name.to_string_lossy().starts_with('.');
        if path.is_dir() && !hidden && name != "target" {
            sources(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

/// Lines of a program where an error that has words of its own names a source.
fn said_twice(text: &str) -> Vec<usize> {
    let mut transparent = None;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with("#[error(") {
            transparent = Some(line.starts_with("#[error(transparent)]"));
        } else if line.starts_with("impl ") || line.starts_with("mod tests") {
            transparent = None;
        }
        let names_source = line.contains("#[from]") || line.contains("#[source]") || line.starts_with("source: ");
        if names_source && transparent == Some(false) {
            found.push(number + 1);
        }
    }
    found
}

#[test]
fn no_error_says_its_cause_and_names_it_as_source_too() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut files);
    assert!(files.len() > 100, "{} files", files.len());
    for file in files.iter().filter(|file| !file.ends_with("shared/src/cause.rs")) {
        let text = fs::read_to_string(file).expect("a file of this repository");
        if text.contains("thiserror::Error") {
            let found = said_twice(&text);
            assert!(
                found.is_empty(),
                "{}: lines {found:?} name a source of an error with words of its own",
                file.display()
            );
        }
    }
}

#[test]
fn the_rule_is_seen_where_it_is_broken() {
    let broken = "#[error(\"{path}: {source}\")]\nFile {\n    source: io::Error,\n}\n#[error(transparent)]\nModel(#[from] E),\n\
                  #[error(\"x: {0}\")]\nOther(#[from] E),\n";
    assert_eq!(said_twice(broken), [3, 8]);
}
