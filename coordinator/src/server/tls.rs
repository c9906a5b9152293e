//! The coordinator's certificate and key, read and checked before anything is opened.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use graftwork_certificate::{CertificateError, Facts, certificates, private_key};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{self, ServerConfig, crypto::aws_lc_rs, pki_types::CertificateDer},
};

use super::gauges::Gauges;
use crate::certificate;

/// Where the coordinator's certificate and key lie.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// PEM, the coordinator's own certificate first.
    pub(crate) certificate: PathBuf,
    /// PEM, its user's alone.
    pub(crate) key: PathBuf,
}

impl Identity {
    /// The files that `graftwork cert` makes in a folder.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self { certificate: folder.join(certificate::COORDINATOR), key: folder.join(certificate::COORDINATOR_KEY) }
    }

    /// Reads and checks both files; whoever asks for numbers is told when the certificate ends.
    pub(super) fn open(&self, gauges: &Gauges) -> Result<TlsAcceptor, CertificateError> {
        let chain = certificates(&self.certificate)?;
        let own = chain.first().expect("a file of certificates holds one");
        let facts = Facts::in_time(&self.certificate, own)?;
        gauges.show_certificate(facts.until.unix_timestamp());
        self.acceptor(chain)
    }

    /// Serves this chain with the key, whatever its time.
    pub(super) fn acceptor(&self, chain: Vec<CertificateDer<'static>>) -> Result<TlsAcceptor, CertificateError> {
        let key = private_key(&self.key)?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|error| CertificateError::wrong(&self.certificate, in_words(&error)))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config).into())
    }
}

fn in_words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => "the key beside it is not its own".to_owned(),
        error => error.to_string(),
    }
}
