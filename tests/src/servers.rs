//! The PostgreSQL and the object store that `scripts/servers.py` starts for tests.

use std::{
    env,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result};

/// Where they are.
pub struct Servers {
    /// `USER` and port of PostgreSQL on this machine.
    user: String,
    port: u16,
    password: String,
    /// The object store: its bucket, the address at which it is asked, and the keys of whoever may write.
    store: String,
    endpoint: String,
    keys: String,
}

/// Whether they are there: then every cluster keeps its state in a database and its blobs in the object store.
pub fn servers_run() -> bool {
    env::var_os("GRAFTWORK_TEST_POSTGRES").is_some() && env::var_os("GRAFTWORK_TEST_STORE").is_some()
}

impl Servers {
    /// Those that the environment names.
    pub fn find() -> Result<Self> {
        let named = |name: &str| env::var(name).with_context(|| format!("{name} is not set: run scripts/servers.py"));
        let address = named("GRAFTWORK_TEST_POSTGRES")?;
        let rest = address.strip_prefix("postgres://").context("an address of PostgreSQL")?;
        let (user, rest) = rest.split_once("@127.0.0.1:").context("an address on this machine")?;
        let port = rest.split('/').next().unwrap_or_default().parse()?;
        let password = named("GRAFTWORK_TEST_PASSWORD")?;
        let (store, endpoint) = (named("GRAFTWORK_TEST_STORE")?, named("GRAFTWORK_TEST_STORE_ENDPOINT")?);
        let keys = named("GRAFTWORK_TEST_STORE_KEYS")?;
        Ok(Self { user: user.to_owned(), port, password, store, endpoint, keys })
    }

    /// The port of PostgreSQL.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes an empty database of this name.
    pub fn make(&self, name: &str) -> Result<()> {
        self.ask("postgres", &format!("CREATE DATABASE {name}")).map(drop)
    }

    /// A database of its own; its prefix in the object store has the same name.
    pub(crate) fn new_database(&self) -> Result<String> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        self.make(&name)?;
        Ok(name)
    }

    /// Names this database, through this port, and the prefix of its name in the object store as the place of a state.
    pub fn name(&self, command: &mut Command, name: &str, port: u16) {
        self.name_both(command, name, name, port);
    }

    /// The same with a prefix of another name.
    pub fn name_both(&self, command: &mut Command, database: &str, prefix: &str, port: u16) {
        let state = format!("postgres://{}@127.0.0.1:{port}/{database}", self.user);
        command.args(["--state", &state, "--database-password-env", "DATABASE_PASSWORD"]);
        command.env("DATABASE_PASSWORD", &self.password);
        self.name_blobs(command, "--blobs", prefix);
    }

    /// Names the prefix in the object store by this option, and its keys.
    pub(crate) fn name_blobs(&self, command: &mut Command, option: &str, prefix: &str) {
        command.args([option, &format!("{}/{prefix}", self.store), "--blobs-credentials-env", "STORE_KEYS"]);
        let endpoint = if self.store.starts_with("az://") { "AZURE_STORAGE_ENDPOINT" } else { "AWS_ENDPOINT_URL_S3" };
        command.env("STORE_KEYS", &self.keys).env(endpoint, &self.endpoint);
    }

    /// What no log may hold.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &str> {
        [&*self.password].into_iter().chain(self.keys.split(':').skip(1))
    }

    pub(crate) fn config(&self, name: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(&self.user).password(&self.password).dbname(name);
        config
    }

    /// An answer of the database of this name.
    pub(crate) fn ask(&self, name: &str, sql: &str) -> Result<Option<i64>> {
        let config = self.config(name);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            let rows = client.simple_query(sql).await?;
            let value = rows.iter().find_map(|row| match row {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            Ok(value.map(|value| value.parse()).transpose()?)
        })
    }
}
