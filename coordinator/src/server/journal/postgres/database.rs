//! Where a PostgreSQL database is, and how it is reached. A password comes from the environment alone and is never shown.
//! Beyond this machine the connection is encrypted and the server's certificate is checked, unless the address says
//! `sslmode=disable`; on this machine it is where the address says `sslmode=require`.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use graftwork_shared::cause::told;
use tokio_postgres::{
    Client, Config, NoTls, Socket,
    config::{Host, SslMode, TargetSessionAttrs},
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::super::JournalError;

/// How long one server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);

/// What every session asks of the server: decisions are made by rows of now, nothing is acknowledged that a crash of the
/// server would lose, and a coordinator that freezes inside a transaction holds no lock for long.
const SESSION: &str = "
    SET default_transaction_isolation = 'read committed';
    SET idle_in_transaction_session_timeout = '5s';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local');
";

/// A database; `Debug` hides its password.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    config: Config,
    place: String,
    /// Absent where the connection is not encrypted.
    tls: Option<ClientConfig>,
}

/// The words of a database's error and of its causes.
pub(super) fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => match told(error) {
            told if told.contains("invalid peer certificate") => {
                format!("{told}; name the CA that signed the server's certificate with --database-ca")
            }
            told => told,
        },
    }
}

impl Database {
    /// Whether this place of a state is a database's.
    pub(crate) fn is_address(text: &str) -> bool {
        text.starts_with("postgres://") || text.starts_with("postgresql://")
    }

    /// Reads `postgres://USER@HOST:PORT/NAME`; connects to nothing. Over TLS the CA of this file is trusted and no other,
    /// and without one the CAs of this machine.
    pub(crate) fn parse(address: &str, password: Option<&str>, ca: Option<&Path>) -> Result<Self, JournalError> {
        // Whatever cannot be read may hold a password, so it is not repeated.
        let wrong = |problem: &str| JournalError::Database {
            place: "the address of the database".to_owned(),
            problem: format!("{problem}; write postgres://USER@HOST:PORT/NAME"),
        };
        let mut config: Config = address.parse().map_err(|_| wrong("it cannot be read"))?;
        if config.get_password().is_some() {
            return Err(wrong(
                "it holds a password, which other users of this machine could see: put it into an environment variable \
                 and name that with --database-password-env",
            ));
        }
        let place = place(&config).ok_or_else(|| wrong("it names no host"))?;
        let encrypted = match config.get_ssl_mode() {
            SslMode::Disable => false,
            SslMode::Require => true,
            // What is asked for when nothing is.
            _ => is_beyond_this_machine(&config),
        };
        let tls = match (encrypted, ca) {
            (true, ca) => Some(trust(ca).map_err(|problem| JournalError::Database { place: place.clone(), problem })?),
            (false, None) => None,
            (false, Some(_)) => {
                let problem = "--database-ca is for a connection over TLS: write sslmode=require into the address";
                return Err(JournalError::Database { place, problem: problem.to_owned() });
            }
        };
        if let Some(password) = password {
            config.password(password);
        }
        config.application_name("graftwork coordinator");
        config.connect_timeout(CONNECT).tcp_user_timeout(CONNECT);
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        Ok(Self { config, place, tls })
    }

    /// The address without a password.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Whether what is said to the database can be read on a network.
    pub(crate) fn is_open_to_others(&self) -> bool {
        self.tls.is_none() && is_beyond_this_machine(&self.config)
    }

    /// A session of its own. What drives it lives on the runtime that this is called in.
    pub(crate) async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let client = match &self.tls {
            None => self.connect_over(NoTls).await?,
            Some(tls) => self.connect_over(MakeRustlsConnect::new(tls.clone())).await?,
        };
        client.batch_execute(SESSION).await?;
        Ok(client)
    }

    async fn connect_over<T>(&self, tls: T) -> Result<Client, tokio_postgres::Error>
    where
        T: MakeTlsConnect<Socket, TlsConnect: Send, Stream: Send + 'static>,
    {
        let (client, connection) = self.config.connect(tls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = words(&error), "the connection to the database ended");
            }
        });
        Ok(client)
    }

    /// For connections of tests.
    #[cfg(test)]
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The same server with another database.
    #[cfg(test)]
    pub(crate) fn named(&self, name: &str) -> Self {
        let mut config = self.config.clone();
        config.dbname(name);
        let place = place(&config).unwrap();
        Self { config, place, tls: self.tls.clone() }
    }

    /// The same database through another port of this machine.
    #[cfg(test)]
    pub(crate) fn through(&self, port: u16) -> Self {
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user(self.config.get_user().unwrap());
        config.password(self.config.get_password().unwrap()).dbname(self.config.get_dbname().unwrap());
        config.connect_timeout(CONNECT).ssl_mode(SslMode::Disable);
        let place = place(&config).unwrap();
        Self { config, place, tls: None }
    }
}

fn is_beyond_this_machine(config: &Config) -> bool {
    config.get_hosts().iter().any(|host| match host {
        Host::Unix(_) => false,
        Host::Tcp(name) => name != "localhost" && !name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    })
}

/// What checks the server's certificate, or what is wrong with what it is to be checked by.
fn trust(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => {
            // Those that cannot be read are not trusted; without any, every server is refused.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(path) => {
            let wrong = |problem: &str| format!("the CA's certificate {}: {problem}", path.display());
            let pem = std::fs::read(path).map_err(|error| wrong(&error.to_string()))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let added = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
                added.ok_or_else(|| wrong("it holds something else than certificates in PEM form"))?;
            }
            if roots.is_empty() {
                return Err(wrong("it holds no certificate in PEM form"));
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn place(config: &Config) -> Option<String> {
    let host = match config.get_hosts().first()? {
        Host::Unix(path) => path.display().to_string(),
        Host::Tcp(name) => name.clone(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let user = config.get_user().unwrap_or_default();
    Some(format!("postgres://{user}@{host}:{port}/{}", config.get_dbname().unwrap_or(user)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_an_address_is_refused_and_never_repeated() {
        for address in [
            "postgres://me:hunter2@host/name",
            "postgres://me@host/name?password=hunter2",
            "postgres://me:hunter2@host:notaport/name",
            "postgres://me:hunter2@host/name?hunter2=hunter2x",
        ] {
            let error = Database::parse(address, None, None).unwrap_err().to_string();
            assert!(!error.contains("hunter2@") && !error.contains("name?"), "{error}");
        }
        let error = Database::parse("postgres://me:hunter2@host/name", None, None).unwrap_err().to_string();
        assert!(error.contains("--database-password-env") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_password_from_the_environment_is_shown_nowhere() {
        let database = Database::parse("postgres://me@host:1234/name", Some("hunter2"), None).unwrap();
        assert_eq!(database.place(), "postgres://me@host:1234/name");
        assert!(!format!("{database:?}").contains("hunter2"));
    }

    #[test]
    fn a_connection_that_others_can_read_is_known() {
        let open = |address: &str| Database::parse(address, None, None).unwrap().is_open_to_others();
        assert!(!open("postgres://me@db.example/name"));
        assert!(!open("postgres://me@127.0.0.1/name") && !open("postgres://me@%2Frun%2Fpostgresql/name"));
        assert!(open("postgres://me@db.example/name?sslmode=disable"));
        let kept = |address: &str| Database::parse(address, None, None).unwrap().tls.is_some();
        assert!(kept("postgres://me@127.0.0.1/name?sslmode=require") && !kept("postgres://me@127.0.0.1/name"));
    }

    #[test]
    fn a_ca_that_is_none_or_of_no_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (absent, other) = (folder.path().join("absent.pem"), folder.path().join("other.pem"));
        std::fs::write(&other, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let error = |address: &str, ca: &Path| Database::parse(address, None, Some(ca)).unwrap_err().to_string();
        let there = "postgres://me@db.example/name";
        assert!(error(there, &absent).contains("absent.pem: No such file"), "{}", error(there, &absent));
        assert!(error(there, &other).contains("other.pem: it holds something else"), "{}", error(there, &other));
        std::fs::write(&other, "nothing").unwrap();
        assert!(error(there, &other).contains("it holds no certificate"), "{}", error(there, &other));
        assert!(error("postgres://me@127.0.0.1/name", &other).contains("--database-ca is for"));
    }
}
