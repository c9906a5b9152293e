//! Who a worker is to the other members of its groups: a certificate of the cluster's CA that names it a worker.
//!
//! Both sides of a connection show one, and each wants [`NAME`] in the other's, so that a certificate which the same CA
//! made for something else, the coordinator's too, opens no group. All workers may share one: what it proves is that
//! they are workers, not which. Hosts have no part in it, since addresses of workers come and go.

use std::{fmt, path::Path, sync::Arc};

use graftwork_certificate::{CertificateError, Facts, certificates, private_key};
use rustls::{
    ClientConfig, Connection, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _, verify_server_name},
    crypto::aws_lc_rs,
    pki_types::{ServerName, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier},
    version::TLS13,
};

/// The DNS name that a worker's certificate holds.
pub const NAME: &str = "graftwork-worker";

/// Files of a folder, as `graftwork cert` makes them.
const CA: &str = "ca.pem";
const CERTIFICATE: &str = "worker.pem";
const KEY: &str = "worker.key";

/// A worker's certificate and key, and the CA by which it knows others.
#[derive(Clone)]
pub struct Identity {
    /// Towards members of a lower rank.
    pub(super) client: Arc<ClientConfig>,
    /// Towards members of a higher rank.
    pub(super) server: Arc<ServerConfig>,
    ends_s: i64,
}

impl Identity {
    /// Reads `ca.pem`, `worker.pem` and `worker.key` of a folder, and refuses what other members would refuse.
    ///
    /// # Errors
    /// None passes by itself.
    pub fn read(folder: &Path) -> Result<Self, CertificateError> {
        let [ca, own, key] = [CA, CERTIFICATE, KEY].map(|name| folder.join(name));
        let wrong = |path: &Path, problem: String| CertificateError::wrong(path, problem);
        let mut roots = RootCertStore::empty();
        for root in certificates(&ca)? {
            roots.add(root).map_err(|error| wrong(&ca, error.to_string()))?;
        }
        let (roots, provider) = (Arc::new(roots), Arc::new(aws_lc_rs::default_provider()));
        let (chain, private) = (certificates(&own)?, private_key(&key)?);
        let members = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build();
        let members = members.map_err(|error| wrong(&ca, error.to_string()))?;
        let now = UnixTime::now();
        let (shown, behind) = chain.split_first().expect("a file of certificates holds one");
        let ends_s = Facts::in_time(&own, shown)?.until.unix_timestamp();
        let accepted = members.verify_client_cert(shown, behind, now).and_then(|_| {
            let servers =
                WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build();
            let servers = servers.map_err(|error| rustls::Error::General(error.to_string()))?;
            servers.verify_server_cert(shown, behind, &name(), &[], now)
        });
        accepted.map_err(|error| {
            let problem = format!("other members of a group would refuse it: {error}");
            wrong(&own, problem)
        })?;
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&TLS13]);
        let client = client.and_then(|builder| {
            builder.with_root_certificates(roots).with_client_auth_cert(chain.clone(), private.clone_key())
        });
        let server = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
        let server =
            server.and_then(|builder| builder.with_client_cert_verifier(members).with_single_cert(chain, private));
        let client = client.map(|mut client| {
            // Who is called has one certificate, and nobody on the way needs to know for what.
            client.enable_sni = false;
            client
        });
        let of_pair = |error: rustls::Error| match error {
            rustls::Error::InconsistentKeys(_) => wrong(&key, format!("it is not the key of {}", own.display())),
            error => wrong(&own, error.to_string()),
        };
        let (client, mut server) = (client.map_err(of_pair)?, server.map_err(of_pair)?);
        // Nobody resumes: a group connects once.
        server.send_tls13_tickets = 0;
        Ok(Self { client: Arc::new(client), server: Arc::new(server), ends_s })
    }

    /// When the certificate ends, in seconds since 1970: others take it until then.
    pub fn ends_s(&self) -> i64 {
        self.ends_s
    }
}

/// Two are one when they were read at once: members of a process share it.
impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.client, &other.client)
    }
}

impl Eq for Identity {}

/// Nothing of the key.
impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Whom a connection must lead to.
pub(super) fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("the name is one of DNS")
}

/// Whether the other side is a worker. A client's verifier looks at no name by itself.
pub(super) fn check_peer(tls: &Connection) -> Result<(), String> {
    let shown = tls.peer_certificates().and_then(|chain| chain.first()).ok_or("it shows no certificate")?;
    let parsed = ParsedCertificate::try_from(shown).map_err(|error| error.to_string())?;
    verify_server_name(&parsed, &name()).map_err(|_| format!("its certificate is none of a worker ({NAME})"))
}
