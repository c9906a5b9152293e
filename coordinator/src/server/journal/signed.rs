//! Who leads a database from a folder: names, so that a coordinator that starts in the folder of one that was killed need not
//! wait until that one's row expires. It only saves time, so whatever is wrong with the file is told, and waited out.

use std::{
    io,
    path::{Path, PathBuf},
};

/// This machine's name.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "unknown".to_owned());
    name.trim().to_owned()
}

/// The names of a folder.
pub(super) struct Signed {
    path: PathBuf,
    host: String,
    /// Of those that led from it before, or tried to, on this host: a lock may be of one machine alone.
    pub(super) before: Vec<String>,
    name: String,
}

impl Signed {
    /// Adds a name to those of a folder. They stay beside it until it leads, since a start may fail before.
    pub(super) fn add(folder: &Path, name: &str) -> Self {
        let (path, host) = (folder.join("leaders"), host_name());
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "who led from here before cannot be read");
            }
            String::new()
        });
        let known = text.lines().filter_map(|line| line.split_once(' '));
        let here = known.filter(|(of, name)| *of == host && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let signed =
            Self { before: here.map(|(_, name)| name.to_owned()).collect(), path, host, name: name.to_owned() };
        signed.write(&signed.before);
        signed
    }

    /// It leads: those before it are nobody's to wait for any more.
    pub(super) fn keep_last(&self) {
        self.write(&[]);
    }

    fn write(&self, before: &[String]) {
        let names = before.iter().chain([&self.name]);
        let text: String = names.map(|name| format!("{} {name}\n", self.host)).collect();
        if let Err(error) = std::fs::write(&self.path, text) {
            tracing::warn!(path = %self.path.display(), %error, "who leads from here cannot be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_until_one_leads_and_only_those_of_this_host_count() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Signed::add(folder.path(), "a1").before.is_empty());
        assert_eq!(Signed::add(folder.path(), "b2").before, ["a1"]);
        let third = Signed::add(folder.path(), "c3");
        assert_eq!(third.before, ["a1", "b2"]);
        third.keep_last();
        let path = folder.path().join("leaders");
        let kept = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("elsewhere.example d4\n{kept}{} no name\n", host_name())).unwrap();
        assert_eq!(Signed::add(folder.path(), "e5").before, ["c3"]);
        std::fs::write(&path, [0xff, 0, 0]).unwrap();
        assert!(Signed::add(folder.path(), "f6").before.is_empty());
        assert!(Signed::add(&folder.path().join("gone"), "a7").before.is_empty());
    }
}
