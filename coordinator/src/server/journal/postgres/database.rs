//! Where a PostgreSQL database is, and how it is reached. A password comes from the environment alone and is never shown.

use std::{net::IpAddr, time::Duration};

use graftwork_shared::cause::told;
use tokio_postgres::{
    Client, Config, NoTls,
    config::{Host, SslMode, TargetSessionAttrs},
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
}

/// The words of a database's error and of its causes.
pub(super) fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => told(error),
    }
}

impl Database {
    /// Whether this place of a state is a database's.
    pub(crate) fn is_address(text: &str) -> bool {
        text.starts_with("postgres://") || text.starts_with("postgresql://")
    }

    /// Reads `postgres://USER@HOST:PORT/NAME`; connects to nothing.
    pub(crate) fn parse(address: &str, password: Option<&str>) -> Result<Self, JournalError> {
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
        if config.get_ssl_mode() == SslMode::Require {
            return Err(wrong(
                "it asks for TLS, which is not built for the database: use a tunnel, and sslmode=disable",
            ));
        }
        let place = place(&config).ok_or_else(|| wrong("it names no host"))?;
        if let Some(password) = password {
            config.password(password);
        }
        config.application_name("graftwork coordinator");
        config.connect_timeout(CONNECT).tcp_user_timeout(CONNECT).ssl_mode(SslMode::Disable);
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        Ok(Self { config, place })
    }

    /// The address without a password.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Whether what is said to the database can be read on a network.
    pub(crate) fn is_open_to_others(&self) -> bool {
        self.config.get_hosts().iter().any(|host| match host {
            Host::Unix(_) => false,
            Host::Tcp(name) => {
                name != "localhost" && !name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        })
    }

    /// A session of its own. What drives it lives on the runtime that this is called in.
    pub(super) async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = words(&error), "the connection to the database ended");
            }
        });
        client.batch_execute(SESSION).await?;
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
        Self { config, place }
    }

    /// The same database through another port of this machine.
    #[cfg(test)]
    pub(crate) fn through(&self, port: u16) -> Self {
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user(self.config.get_user().unwrap());
        config.password(self.config.get_password().unwrap()).dbname(self.config.get_dbname().unwrap());
        config.connect_timeout(CONNECT).ssl_mode(SslMode::Disable);
        let place = place(&config).unwrap();
        Self { config, place }
    }
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
            let error = Database::parse(address, None).unwrap_err().to_string();
            assert!(!error.contains("hunter2@") && !error.contains("name?"), "{error}");
        }
        let error = Database::parse("postgres://me:hunter2@host/name", None).unwrap_err().to_string();
        assert!(error.contains("--database-password-env") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_password_from_the_environment_is_shown_nowhere() {
        let database = Database::parse("postgres://me@host:1234/name", Some("hunter2")).unwrap();
        assert_eq!(database.place(), "postgres://me@host:1234/name");
        assert!(!format!("{database:?}").contains("hunter2"));
    }

    #[test]
    fn a_connection_that_others_can_read_is_known() {
        let open = |address: &str| Database::parse(address, None).unwrap().is_open_to_others();
        assert!(open("postgres://me@db.example/name"));
        assert!(!open("postgres://me@127.0.0.1/name") && !open("postgres://me@%2Frun%2Fpostgresql/name"));
        let error = Database::parse("postgres://me@db.example/name?sslmode=require", None).unwrap_err().to_string();
        assert!(error.contains("TLS"), "{error}");
    }
}
