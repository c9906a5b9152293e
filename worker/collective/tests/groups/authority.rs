//! A CA of a test, and the certificates that it makes.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use graftwork_collective::tls::{Identity, NAME};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// Each has a name of its own.
static COUNT: AtomicU32 = AtomicU32::new(1);

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, in PEM form.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, format!("CA {}", COUNT.fetch_add(1, Ordering::SeqCst)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for this name, changed.
    pub(crate) fn pair(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::new(vec![name.to_owned()]).unwrap());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// The files of a worker in a folder, which is made.
    pub(crate) fn write(&self, folder: &Path) {
        self.write_pair(folder, &self.pair(NAME, |_| ()));
    }

    /// The same with that pair.
    pub(crate) fn write_pair(&self, folder: &Path, pair: &Pair) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("ca.pem"), &self.pem).unwrap();
        fs::write(folder.join("worker.pem"), &pair.certificate).unwrap();
        fs::write(folder.join("worker.key"), &pair.key).unwrap();
        fs::set_permissions(folder.join("worker.key"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// A worker's.
    pub(crate) fn identity(&self) -> Identity {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        Identity::read(folder.path()).unwrap()
    }
}
