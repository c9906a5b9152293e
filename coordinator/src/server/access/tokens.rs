//! The file of tokens: a name, a role, an owner and the SHA-256 of each; never a token itself.
//!
//! A token is 256 random bits, so its digest tells nothing of it and wants no salt. Whoever could write the file could
//! let anyone in, so it must be its user's alone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use graftwork_shared::digest::Digest;
use serde::Deserialize;
use subtle::ConstantTimeEq as _;

use super::{Caller, Role};

/// Largest file that is read: some ten thousand tokens.
const FILE_BYTES: u64 = 4 << 20;

/// What is wrong with a file of tokens.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// It cannot be read or written.
    #[error("the file of tokens {}: {error}; `graftwork token FILE NAME --role ROLE` makes one", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Others may read or write it.
    #[error("the file of tokens {} is open to others (mode {mode:o}): chmod 600 it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It does not say what it must.
    #[error("the file of tokens {}: {problem}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where, and what.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    token: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    role: Role,
    owner: Option<String>,
    /// The highest priority that its jobs may have; of the role submit 0, of admins any.
    most_priority: Option<i32>,
    /// Read as a text: what stands here by mistake may be a secret, and is not repeated in an error.
    sha256: String,
}

/// One token that counts.
struct Entry {
    digest: Digest,
    caller: Caller,
}

/// All tokens that count.
pub(crate) struct Tokens(Vec<Entry>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|entry| &entry.caller)).finish()
    }
}

impl Tokens {
    /// The one token for everything, of a coordinator that only this machine reaches.
    pub(crate) fn one(text: &str) -> Self {
        let caller = Caller { name: "of --token-env".into(), role: None, owner: None, most_priority: i32::MAX };
        Self(vec![Entry { digest: Digest::of(text.as_bytes()), caller }])
    }

    /// Reads the file; refuses one that is open to others.
    pub(crate) fn read(path: &Path) -> Result<Self, TokenError> {
        let wrong = |problem: String| TokenError::Wrong { path: path.to_owned(), problem };
        let text = read_private(path)?;
        let document: Document = toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
            wrong(format!("line {}: {}", before.matches('\n').count() + 1, error.message()))
        })?;
        let mut entries: Vec<Entry> = Vec::new();
        for Row { name, role, owner, most_priority, sha256 } in document.token {
            let Ok(sha256) = sha256.parse::<Digest>() else {
                return Err(wrong(format!("the sha256 of token {name:?} is no digest of 64 hexadecimal digits")));
            };
            if let Some(same) = entries.iter().find(|one| *one.caller.name == *name || one.digest == sha256) {
                return Err(wrong(format!("token {name:?} and token {:?} share name or digest", same.caller.name)));
            }
            if role == Role::Submit && owner.is_none() {
                return Err(wrong(format!("token {name:?} of the role submit needs an owner, whose jobs it submits")));
            }
            let most_priority = most_priority.unwrap_or(if role == Role::Admin { i32::MAX } else { 0 });
            let owner = owner.map(Into::into);
            let caller = Caller { name: name.into(), role: Some(role), owner, most_priority };
            entries.push(Entry { digest: sha256, caller });
        }
        if entries.is_empty() {
            return Err(wrong("it holds no token; add one with `graftwork token FILE NAME --role ROLE`".to_owned()));
        }
        Ok(Self(entries))
    }

    /// Finds whose token this is, and its place. All are compared, each in constant time.
    pub(in super::super) fn find(&self, shown: &str) -> Option<(usize, &Caller)> {
        let shown = Digest::of(shown.as_bytes());
        let mut found = None;
        for (place, entry) in self.0.iter().enumerate() {
            if bool::from(entry.digest.bytes()[..].ct_eq(&shown.bytes()[..])) {
                found = Some((place, &entry.caller));
            }
        }
        found
    }

    /// The role of each token, in their order.
    pub(super) fn roles(&self) -> impl Iterator<Item = Option<Role>> {
        self.0.iter().map(|entry| entry.caller.role)
    }
}

fn read_private(path: &Path) -> Result<String, TokenError> {
    let failed = |error| TokenError::File { path: path.to_owned(), error };
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TokenError::Open { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    (&mut file).take(FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// A token that is to be made.
pub(crate) struct NewToken<'a> {
    pub(crate) name: &'a str,
    pub(crate) role: Role,
    pub(crate) owner: Option<&'a str>,
    pub(crate) most_priority: Option<i32>,
}

impl NewToken<'_> {
    /// Draws the token and adds its row to the file, which is made if missing. The token is nowhere but in the answer.
    pub(crate) fn make(&self, path: &Path) -> Result<String, TokenError> {
        let failed = |error| TokenError::File { path: path.to_owned(), error };
        let mut random = [0; 32];
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).map_err(failed)?;
        let token = format!("graftwork-{}-{}", self.role.name(), Digest::from_bytes(random));
        let before = match read_private(path) {
            Err(TokenError::File { error, .. }) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let mut row = format!("[[token]]\nname = {}\nrole = \"{}\"\n", quoted(self.name), self.role.name());
        if let Some(owner) = self.owner {
            row.push_str(&format!("owner = {}\n", quoted(owner)));
        }
        if let Some(most) = self.most_priority {
            row.push_str(&format!("most_priority = {most}\n"));
        }
        row.push_str(&format!("sha256 = \"{}\"\n", Digest::of(token.as_bytes())));
        let gap = if before.is_empty() { "" } else { "\n" };
        // Checked as a whole beside the file before it takes its place.
        let beside = path.with_extension("new");
        write_private(&beside, &format!("{before}{gap}{row}")).map_err(failed)?;
        let checked = Tokens::read(&beside).map_err(|error| match error {
            TokenError::Wrong { problem, .. } => TokenError::Wrong { path: path.to_owned(), problem },
            error => error,
        });
        let placed = checked.and_then(|_| fs::rename(&beside, path).map_err(failed));
        if placed.is_err() {
            let _ = fs::remove_file(&beside);
        }
        placed.map(|()| token)
    }
}

/// Writes a new file that only this user reads.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        write_private(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn a_made_token_is_found_and_stands_in_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        let make = |name, role, owner| NewToken { name, role, owner, most_priority: None }.make(&path);
        let [join, ann] = [make("w", Role::Join, None), make("a \"b\"", Role::Submit, Some("ann"))].map(Result::unwrap);
        assert!(join.starts_with("graftwork-join-") && join.len() == 15 + 64);
        assert_ne!(join, ann);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&join[15..]) && !text.contains(&ann[17..]), "{text}");
        let tokens = Tokens::read(&path).unwrap();
        let (place, caller) = tokens.find(&ann).unwrap();
        assert_eq!((place, &*caller.name, caller.role), (1, "a \"b\"", Some(Role::Submit)));
        assert_eq!(tokens.find(&join).unwrap().0, 0);
        assert!(tokens.find(&join[..78]).is_none() && tokens.find("").is_none());
        assert!(!format!("{tokens:?}").contains(&Digest::of(ann.as_bytes()).to_string()));
    }

    #[test]
    fn a_name_is_given_once() {
        let (_folder, path) = file("");
        let make = || NewToken { name: "w", role: Role::Join, owner: None, most_priority: None }.make(&path);
        make().unwrap();
        let before = fs::read_to_string(&path).unwrap();
        let said = make().unwrap_err().to_string();
        assert!(said.contains("token \"w\" and token \"w\" share name or digest"), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn what_is_wrong_with_the_file_is_said() {
        let digest = "0".repeat(64);
        for (text, problem) in [
            (String::new(), "it holds no token"),
            ("[[token]]\nname = 1".to_owned(), "line 2: invalid type"),
            (format!("[[token]]\nname = \"x\"\nrole = \"king\"\nsha256 = \"{digest}\""), "unknown variant `king`"),
            (format!("[[token]]\nname = \"x\"\nrole = \"join\"\nsha256 = \"{digest}\"\nodd = 1"), "unknown field"),
            (
                "[[token]]\nname = \"x\"\nrole = \"join\"\nsha256 = \"secret\"".to_owned(),
                "the sha256 of token \"x\" is no digest",
            ),
            (format!("[[token]]\nname = \"x\"\nrole = \"submit\"\nsha256 = \"{digest}\""), "needs an owner"),
        ] {
            let (_folder, path) = file(&text);
            let said = Tokens::read(&path).unwrap_err().to_string();
            assert!(said.contains(problem) && said.contains("tokens.toml"), "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let (_folder, path) = file("");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let said = Tokens::read(&path).unwrap_err().to_string();
        assert!(said.ends_with("is open to others (mode 640): chmod 600 it"), "{said}");
    }
}
