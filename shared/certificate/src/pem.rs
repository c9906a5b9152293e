//! PEM files of certificates and of one key.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::CertificateError;

/// The certificates of a file in their order, at least one.
///
/// # Errors
/// When it cannot be read, or holds none, or something else between them.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let pem = fs::read(path).map_err(|error| CertificateError::File { path: path.to_owned(), error })?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    chain.ok_or_else(|| CertificateError::wrong(path, "it holds no certificate in PEM form"))
}

/// The key of a file that is its user's alone.
///
/// # Errors
/// When it cannot be read, or others can read it, or it holds no key.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let failed = |error| CertificateError::File { path: path.to_owned(), error };
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(CertificateError::OpenKey { path: path.to_owned(), mode });
    }
    let mut pem = Vec::new();
    file.read_to_end(&mut pem).map_err(failed)?;
    // The parser's own words could repeat what stands in the file.
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| CertificateError::wrong(path, "it holds no private key in PEM form"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn write(folder: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn chains_and_keys_are_read_and_what_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let two = write(folder.path(), "two.pem", &format!("{pem}\nwords between\n{pem}"), 0o644);
        assert_eq!(certificates(&two).unwrap().len(), 2);
        let of_key = write(folder.path(), "own.key", &key, 0o600);
        private_key(&of_key).unwrap();
        let said = |error: CertificateError| error.to_string();
        for (name, text) in [("empty.pem", ""), ("key.pem", &*key), ("cut.pem", &pem[..pem.len() / 2])] {
            let path = write(folder.path(), name, text, 0o644);
            let words = said(certificates(&path).unwrap_err());
            assert_eq!(words, format!("{}: it holds no certificate in PEM form", path.display()));
        }
        let secret = key.lines().nth(1).unwrap();
        for (name, text) in [("no.key", &*pem), ("cut.key", &key[..key.len() / 2])] {
            let path = write(folder.path(), name, text, 0o600);
            let error = private_key(&path).unwrap_err();
            assert!(!format!("{error:?}").contains(secret), "{error:?}");
            assert_eq!(said(error), format!("{}: it holds no private key in PEM form", path.display()));
        }
        let open = write(folder.path(), "open.key", &key, 0o640);
        let words = said(private_key(&open).unwrap_err());
        assert_eq!(words, format!("the key {} is open to others (mode 640): chmod 600 it", open.display()));
        let gone = said(certificates(&folder.path().join("gone.pem")).unwrap_err());
        assert!(gone.contains("gone.pem: No such file") && gone.ends_with("NAME` makes certificates"), "{gone}");
    }
}
