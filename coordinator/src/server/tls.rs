//! The coordinator's certificate and key, read and checked before anything is opened.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::certificate::{self, Facts};

/// A certificate that ends within so many days is spoken of at each start.
const SOON_DAYS: i64 = 30;

/// Where the coordinator's certificate and key lie.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// PEM, the coordinator's own certificate first.
    pub(crate) certificate: PathBuf,
    /// PEM, its user's alone.
    pub(crate) key: PathBuf,
}

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file that cannot be read.
    #[error("{}: {error}; `graftwork cert FOLDER --host NAME` makes certificates", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A key that others may read.
    #[error("the key {} is open to others (mode {mode:o}): chmod 600 it", path.display())]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not what the name says.
    #[error("{}: {problem}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Every peer would refuse it.
    #[error("the certificate {} {when}: renew it with `graftwork cert FOLDER --renew`", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Since when, or from when on.
        when: String,
    },
}

impl Identity {
    /// The files that `graftwork cert` makes in a folder.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self { certificate: folder.join(certificate::COORDINATOR), key: folder.join(certificate::COORDINATOR_KEY) }
    }

    /// Reads and checks both files.
    pub(super) fn open(&self) -> Result<TlsAcceptor, TlsError> {
        let (path, chain) = (&self.certificate, self.chain()?);
        let facts = chain
            .first()
            .map_or_else(|| Err("it holds no certificate in PEM form".to_owned()), |own| certificate::facts(own));
        check_time(path, &facts.map_err(|problem| TlsError::Wrong { path: path.clone(), problem })?)?;
        self.acceptor(chain)
    }

    /// The certificate and those behind it.
    pub(super) fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let path = &self.certificate;
        let pem = fs::read(path).map_err(|error| TlsError::File { path: path.clone(), error })?;
        let chain: Result<Vec<CertificateDer>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        chain.map_err(|error| TlsError::Wrong {
            path: path.clone(),
            problem: format!("no certificate in PEM form: {error}"),
        })
    }

    /// Serves this chain with the key, whatever its time.
    pub(super) fn acceptor(&self, chain: Vec<CertificateDer<'static>>) -> Result<TlsAcceptor, TlsError> {
        let path = &self.certificate;
        let key = self.read_key()?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|error| TlsError::Wrong { path: path.clone(), problem: in_words(&error) })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config).into())
    }

    fn read_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let path = &self.key;
        let failed = |error| TlsError::File { path: path.clone(), error };
        let mut file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(TlsError::OpenKey { path: path.clone(), mode });
        }
        let mut pem = Vec::new();
        io::Read::read_to_end(&mut file, &mut pem).map_err(failed)?;
        // The parser's own words could repeat what stands in the file.
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::Wrong {
            path: path.clone(),
            problem: "it holds no private key in PEM form".to_owned(),
        })
    }
}

fn in_words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => "the key beside it is not its own".to_owned(),
        error => error.to_string(),
    }
}

fn check_time(path: &Path, facts: &Facts) -> Result<(), TlsError> {
    let now = time::OffsetDateTime::now_utc();
    let expired = |when: String| Err(TlsError::Expired { path: path.to_owned(), when });
    if now > facts.until {
        return expired(format!("has expired on {}", facts.until.date()));
    }
    if now < facts.from {
        return expired(format!("counts only from {} on", facts.from.date()));
    }
    let days = (facts.until - now).whole_days();
    if days < SOON_DAYS {
        tracing::warn!(days, certificate = %path.display(), "the certificate expires soon: `graftwork cert FOLDER --renew`");
    }
    Ok(())
}
