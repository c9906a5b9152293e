//! Places that a job names: local paths, globs and folders, and addresses with a scheme.
//!
//! Local paths are made absolute against the job file's folder and tidied as texts, so that the same file in the
//! same place has one digest. Nothing here looks at a disk: links are not followed and `~` is not replaced.

use std::path::Path;

/// The scheme of an address such as `s3://bucket/rows`, or `None` for a local path.
pub(crate) fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let mut bytes = scheme.bytes();
    let legal = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    legal.then_some(scheme)
}

/// What is wrong with a place, and how to mend it.
pub(crate) fn problem(text: &str, schemes: &[&str]) -> Option<(String, String)> {
    if text.chars().any(char::is_control) {
        return Some((format!("{text:?} holds a control character"), "remove it from the path".to_owned()));
    }
    let Some(scheme) = scheme(text) else {
        return text.starts_with('~').then(|| {
            let mend = "write the path in full: `~` is not replaced, since a job must mean the same to everyone";
            (format!("{text:?} starts with `~`"), mend.to_owned())
        });
    };
    if !schemes.contains(&scheme) {
        let mend = match (scheme, schemes) {
            ("file", _) => "write a local path without `file://`".to_owned(),
            (_, []) => "write a local path".to_owned(),
            _ => format!("write a local path, or an address that starts with {}://", schemes.join("://, ")),
        };
        return Some((format!("{scheme}:// is not allowed here"), mend));
    }
    let rest = &text[scheme.len() + "://".len()..];
    if scheme == "hf" && !is_hub_name(rest) {
        let mend = "write hf://ORGANISATION/NAME@REVISION, such as hf://google-bert/bert-base-uncased@main";
        return Some((format!("{text:?} does not name a repository of a hub"), mend.to_owned()));
    }
    rest.split('/')
        .next()
        .is_none_or(str::is_empty)
        .then(|| (format!("{text:?} names no host or bucket"), format!("write {scheme}://HOST_OR_BUCKET/PATH")))
}

/// `ORGANISATION/NAME` with an optional `@REVISION`.
fn is_hub_name(text: &str) -> bool {
    let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
    let word = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    name.split_once('/').is_some_and(|(organisation, name)| word(organisation) && word(name))
        && revision.split('/').all(word)
}

/// A place as the resolved job keeps it: addresses as they stand, local paths absolute and tidied.
pub(crate) fn resolved(folder: &Path, text: &str) -> String {
    if scheme(text).is_some() {
        return text.to_owned();
    }
    let folder = folder.to_string_lossy();
    let whole = if text.starts_with('/') { text.to_owned() } else { format!("{folder}/{text}") };
    let absolute = whole.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if absolute => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (absolute, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_paths_become_absolute_and_tidy() {
        let folder = Path::new("/home/ada/jobs");
        for (text, expected) in [
            ("data/train.parquet", "/home/ada/jobs/data/train.parquet"),
            ("./data//train.parquet", "/home/ada/jobs/data/train.parquet"),
            ("../out/hub/", "/home/ada/out/hub"),
            ("../../../../../x", "/x"),
            ("/a/./b/../c", "/a/c"),
            (".", "/home/ada/jobs"),
            ("shards/*.parquet", "/home/ada/jobs/shards/*.parquet"),
            ("s3://bucket/a/../b", "s3://bucket/a/../b"),
        ] {
            assert_eq!(resolved(folder, text), expected, "{text}");
        }
        assert_eq!(resolved(Path::new("../jobs"), "../../x"), "../../x");
        assert_eq!(resolved(Path::new("jobs"), ".."), ".");
    }

    #[test]
    fn places_that_cannot_work_are_refused() {
        let all = ["hf", "s3", "https"];
        for wrong in
            ["~/x", "ftp://host/x", "file:///x", "hf://bert", "hf://a/b/c", "hf://a/b@", "s3://", "s3:///x", "a\nb"]
        {
            assert!(problem(wrong, &all).is_some(), "{wrong}");
        }
        for right in ["x", "/x/y", "../x", "hf://a/b", "hf://a/b.c@refs/pr/1", "s3://bucket", "https://host/x?y", "a:b"]
        {
            assert_eq!(problem(right, &all), None, "{right}");
        }
        assert!(problem("s3://bucket/hub", &[]).is_some());
    }
}
