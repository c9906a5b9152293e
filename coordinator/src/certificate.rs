//! A CA, a coordinator's certificate and one for workers, for a cluster that has none.
//!
//! Keys are P-256, drawn here and written to files that only this user reads. Nothing is ever overwritten but the
//! pairs of coordinator and workers, and these only when they are to be renewed.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use graftwork_certificate::Facts;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::FromDer as _;

/// The CA's certificate: what workers and people trust.
pub(crate) const CA: &str = "ca.pem";
/// The CA's key: whoever has it can make certificates that they trust.
pub(crate) const CA_KEY: &str = "ca.key";
/// The coordinator's certificate.
pub(crate) const COORDINATOR: &str = "coordinator.pem";
/// The coordinator's key.
pub(crate) const COORDINATOR_KEY: &str = "coordinator.key";

/// The certificate that workers show each other.
pub(crate) const WORKER: &str = "worker.pem";
/// Its key.
pub(crate) const WORKER_KEY: &str = "worker.key";

/// The name that workers want in each other's certificates (`graftwork-collective`, which looks at no host).
const WORKER_NAME: &str = "graftwork-worker";

/// The CA's own name, by which certificates name it.
const CA_NAME: &str = "Graftwork cluster CA";

/// Days for which a CA counts. To change it, every peer needs the new one.
const CA_DAYS: i64 = 3_650;

/// Certificates count from a little before they were made: clocks differ.
const BEFORE: Duration = Duration::hours(1);

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertError {
    /// Something is there already.
    #[error(
        "{} is there already, and nothing is overwritten: name another folder, or renew the certificates with --renew",
        .0.display()
    )]
    There(PathBuf),
    /// A file that cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// No names.
    #[error("a certificate needs the names by which workers and people reach the coordinator: give each with --host")]
    NoHost,
    /// A name that no certificate can hold.
    #[error("{0:?} is no host name or IP address")]
    Host(String),
    /// A file that is not what it should be.
    #[error("{}: {problem}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What the maker says.
    #[error("the certificate cannot be made: {0}")]
    Made(String),
}

/// What was made.
pub(crate) struct Made {
    /// Until when the CA counts; `None` when it was there already.
    pub(crate) ca_until: Option<OffsetDateTime>,
    /// The coordinator's.
    pub(crate) coordinator: Facts,
    /// The workers'.
    pub(crate) worker: Facts,
}

/// Makes a CA and the certificates of coordinator and workers in a folder, which is made if missing.
pub(crate) fn make(folder: &Path, hosts: &[String], days: u32) -> Result<Made, CertError> {
    if hosts.is_empty() {
        return Err(CertError::NoHost);
    }
    let paths = [CA, CA_KEY, COORDINATOR, COORDINATOR_KEY, WORKER, WORKER_KEY].map(|name| folder.join(name));
    if let Some(there) = paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        return Err(CertError::There(there.clone()));
    }
    let now = OffsetDateTime::now_utc();
    let (key, mut params) = (new_key()?, params(CA_NAME, now, CA_DAYS));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = params.self_signed(&key).map_err(|error| CertError::Made(error.to_string()))?;
    let (ca_until, ca_key) = (params.not_after, key.serialize_pem());
    let issuer = Issuer::new(params, key);
    let pair = coordinator(&issuer, hosts, (now, i64::from(days)))?;
    let worker = worker(&issuer, (now, i64::from(days)))?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| CertError::File { path: folder.to_owned(), error })?;
    write_new(&paths[1], &ca_key, 0o600)?;
    write_new(&paths[0], &ca.pem(), 0o644)?;
    write_new(&paths[3], &pair.key, 0o600)?;
    write_new(&paths[2], &pair.certificate, 0o644)?;
    write_new(&paths[5], &worker.key, 0o600)?;
    write_new(&paths[4], &worker.certificate, 0o644)?;
    Ok(Made { ca_until: Some(ca_until), coordinator: pair.facts, worker: worker.facts })
}

/// Makes the certificates and keys of coordinator and workers anew with the CA in the folder; without hosts, the
/// coordinator's for those that it has.
pub(crate) fn renew(folder: &Path, hosts: &[String], days: u32) -> Result<Made, CertError> {
    let [ca, ca_key, own, own_key] = [CA, CA_KEY, COORDINATOR, COORDINATOR_KEY].map(|name| folder.join(name));
    let hosts = if hosts.is_empty() { read_facts(&own)?.names } else { hosts.to_vec() };
    if hosts.is_empty() {
        return Err(CertError::NoHost);
    }
    let (ca_pem, key_pem) = (read(&ca)?, read(&ca_key)?);
    let wrong = |path: &Path, problem: &str| CertError::Wrong { path: path.to_owned(), problem: problem.to_owned() };
    let key = KeyPair::from_pem(&key_pem).map_err(|_| wrong(&ca_key, "it holds no private key in PEM form"))?;
    let of_ca = read_facts(&ca)?;
    let now = OffsetDateTime::now_utc();
    let left = (of_ca.until - now).whole_days();
    if left < 1 {
        return Err(wrong(
            &ca,
            "the CA itself has expired: make a new one in another folder, and give it to every peer",
        ));
    }
    if !is_of(&ca_pem, &key) {
        return Err(wrong(&ca_key, "it is not the key of the ca.pem beside it"));
    }
    let mut params = params(CA_NAME, of_ca.from, 0);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Nothing outlives its CA.
    let (issuer, time) = (Issuer::new(params, key), (now, i64::from(days).min(left)));
    let (pair, worker) = (coordinator(&issuer, &hosts, time)?, worker(&issuer, time)?);
    replace(&own_key, &pair.key, 0o600)?;
    replace(&own, &pair.certificate, 0o644)?;
    replace(&folder.join(WORKER_KEY), &worker.key, 0o600)?;
    replace(&folder.join(WORKER), &worker.certificate, 0o644)?;
    Ok(Made { ca_until: None, coordinator: pair.facts, worker: worker.facts })
}

struct Pair {
    certificate: String,
    key: String,
    facts: Facts,
}

/// The coordinator is asked; it asks nobody.
fn coordinator(
    issuer: &Issuer<'_, KeyPair>,
    hosts: &[String],
    (now, days): (OffsetDateTime, i64),
) -> Result<Pair, CertError> {
    let mut params = params("Graftwork coordinator", now, days);
    for host in hosts {
        let fits = host.parse::<IpAddr>().is_ok()
            || !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
        let alternative = CertificateParams::new(vec![host.clone()]).ok().filter(|_| fits);
        let alternative = alternative.ok_or_else(|| CertError::Host(host.clone()))?;
        params.subject_alt_names.extend(alternative.subject_alt_names);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    signed(issuer, params)
}

/// Workers call each other: one pair, which all of them show, for both ends.
fn worker(issuer: &Issuer<'_, KeyPair>, (now, days): (OffsetDateTime, i64)) -> Result<Pair, CertError> {
    let mut params = params("Graftwork worker", now, days);
    let name =
        CertificateParams::new(vec![WORKER_NAME.to_owned()]).map_err(|error| CertError::Made(error.to_string()))?;
    params.subject_alt_names = name.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    signed(issuer, params)
}

fn signed(issuer: &Issuer<'_, KeyPair>, mut params: CertificateParams) -> Result<Pair, CertError> {
    let made = |error: rcgen::Error| CertError::Made(error.to_string());
    params.use_authority_key_identifier_extension = true;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = new_key()?;
    let certificate = params.signed_by(&key, issuer).map_err(made)?;
    let facts = Facts::of(certificate.der()).map_err(CertError::Made)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem(), facts })
}

fn new_key() -> Result<KeyPair, CertError> {
    KeyPair::generate().map_err(|error| CertError::Made(error.to_string()))
}

fn params(name: &str, now: OffsetDateTime, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = now - BEFORE;
    params.not_after = now + Duration::days(days);
    params
}

/// Whether the certificate's key is this one.
fn is_of(pem: &str, key: &KeyPair) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let parsed = x509_parser::certificate::X509Certificate::from_der(&der);
    parsed.is_ok_and(|(_, ca)| *ca.public_key().subject_public_key.data == *key.public_key_raw())
}

fn read_facts(path: &Path) -> Result<Facts, CertError> {
    let wrong = |problem: String| CertError::Wrong { path: path.to_owned(), problem };
    let der = CertificateDer::from_pem_slice(read(path)?.as_bytes());
    let der = der.map_err(|_| wrong("it holds no certificate in PEM form".to_owned()))?;
    Facts::of(&der).map_err(wrong)
}

fn read(path: &Path) -> Result<String, CertError> {
    fs::read_to_string(path).map_err(|error| CertError::File { path: path.to_owned(), error })
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CertError::There(path.to_owned()),
        _ => CertError::File { path: path.to_owned(), error },
    })
}

/// Puts a whole new file in the place of the old one.
fn replace(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let beside = path.with_extension("new");
    write_new(&beside, text, mode)?;
    fs::rename(&beside, path).map_err(|error| CertError::File { path: path.to_owned(), error })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn hosts(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    /// A coordinator's pair that has expired, in place of the one in the folder.
    pub(crate) fn expire(folder: &Path) {
        let key = KeyPair::from_pem(&read(&folder.join(CA_KEY)).unwrap()).unwrap();
        let now = OffsetDateTime::now_utc();
        let issuer = Issuer::new(params(CA_NAME, now, 1), key);
        let pair = coordinator(&issuer, &hosts(&["127.0.0.1"]), (now - Duration::days(2), 1)).unwrap();
        replace(&folder.join(COORDINATOR_KEY), &pair.key, 0o600).unwrap();
        replace(&folder.join(COORDINATOR), &pair.certificate, 0o644).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_their_users_alone_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new/tls");
        let made = make(&folder, &hosts(&["trainer.example", "10.0.0.7", "::1"]), 90).unwrap();
        assert_eq!(made.coordinator.names, ["trainer.example", "10.0.0.7", "::1"]);
        assert_eq!((made.coordinator.until - OffsetDateTime::now_utc()).whole_days(), 89);
        assert_eq!(
            (mode(&folder), mode(&folder.join(CA_KEY)), mode(&folder.join(COORDINATOR_KEY))),
            (0o700, 0o600, 0o600)
        );
        assert_eq!((mode(&folder.join(CA)), mode(&folder.join(COORDINATOR))), (0o644, 0o644));
        assert_eq!((mode(&folder.join(WORKER)), mode(&folder.join(WORKER_KEY))), (0o644, 0o600));
        assert_eq!(made.worker.names, [WORKER_NAME]);
        let before = read(&folder.join(CA_KEY)).unwrap();
        for name in [CA, CA_KEY, COORDINATOR, COORDINATOR_KEY, WORKER, WORKER_KEY] {
            assert!(matches!(make(&folder, &hosts(&["x"]), 1), Err(CertError::There(_))), "{name}");
            if name != CA_KEY {
                fs::remove_file(folder.join(name)).unwrap();
            }
        }
        assert_eq!(read(&folder.join(CA_KEY)).unwrap(), before);
    }

    #[test]
    fn a_renewed_certificate_keeps_its_names_and_its_ca() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), &hosts(&["one.example", "10.0.0.7"]), 1).unwrap();
        let [ca, key, worker] = [CA, COORDINATOR_KEY, WORKER].map(|name| read(&folder.path().join(name)).unwrap());
        // As a folder is in which there was none yet.
        fs::remove_file(folder.path().join(WORKER_KEY)).unwrap();
        let renewed = renew(folder.path(), &[], 400).unwrap();
        assert!(renewed.ca_until.is_none());
        assert_eq!(renewed.coordinator.names, ["one.example", "10.0.0.7"]);
        assert_eq!(read(&folder.path().join(CA)).unwrap(), ca);
        assert_ne!(read(&folder.path().join(COORDINATOR_KEY)).unwrap(), key);
        assert_eq!(mode(&folder.path().join(COORDINATOR_KEY)), 0o600);
        assert_ne!(read(&folder.path().join(WORKER)).unwrap(), worker);
        assert_eq!(
            (renewed.worker.names.as_slice(), mode(&folder.path().join(WORKER_KEY))),
            (&[WORKER_NAME.to_owned()][..], 0o600)
        );
        assert_eq!(renew(folder.path(), &hosts(&["two.example"]), 1).unwrap().coordinator.names, ["two.example"]);
        let most = renew(folder.path(), &[], 100_000).unwrap().coordinator.until;
        assert!(most <= read_facts(&folder.path().join(CA)).unwrap().until, "nothing outlives its CA");
    }

    #[test]
    fn what_cannot_be_made_is_said() {
        let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        assert!(matches!(make(folder.path(), &[], 1), Err(CertError::NoHost)));
        for host in ["a b", "", "x/y"] {
            assert!(matches!(make(folder.path(), &hosts(&[host]), 1), Err(CertError::Host(_))), "{host}");
        }
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing was begun");
        assert!(matches!(renew(folder.path(), &hosts(&["x"]), 1), Err(CertError::File { .. })));
        for place in [&folder, &other] {
            make(place.path(), &hosts(&["x"]), 1).unwrap();
        }
        fs::copy(other.path().join(CA_KEY), folder.path().join(CA_KEY)).unwrap();
        let said = renew(folder.path(), &[], 1).err().unwrap().to_string();
        assert!(said.ends_with("it is not the key of the ca.pem beside it"), "{said}");
    }
}
