//! Where a state lies if not in a folder, said alike to a coordinator and for a backup.

use std::path::PathBuf;

use anyhow::anyhow;

use super::{Failure, secret};
use crate::server::{Bucket, Database, Home};

#[derive(Debug, clap::Args)]
pub(crate) struct Servers {
    /// Environment variable that holds the database's password.
    #[arg(long, value_name = "NAME")]
    database_password_env: Option<String>,
    /// The CA that signed the certificate of the database's server; without it, the CAs of this machine. Beyond this machine
    /// the connection is encrypted unless the address ends in ?sslmode=disable.
    #[arg(long, value_name = "FILE")]
    database_ca: Option<PathBuf>,
    /// Where checkpoints, results and uploads lie: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, of which
    /// a state in a database needs one. Without it, in the state folder. Another endpoint than the usual one comes from
    /// AWS_ENDPOINT_URL_S3, GOOGLE_BASE_URL or AZURE_STORAGE_ENDPOINT, the region of S3 from AWS_REGION.
    #[arg(long, value_name = "URL")]
    blobs: Option<String>,
    /// Environment variable that holds the object store's keys: for s3:// ACCESS_KEY:SECRET_KEY or
    /// ACCESS_KEY:SECRET_KEY:SESSION_TOKEN, for gs:// the JSON text of a service account's key, for az:// ACCOUNT:ACCESS_KEY.
    #[arg(long, value_name = "NAME")]
    blobs_credentials_env: Option<String>,
}

impl Servers {
    /// The first of these options that is given.
    pub(crate) fn named(&self) -> Option<&'static str> {
        let given = [
            (self.database_password_env.is_some(), "--database-password-env"),
            (self.database_ca.is_some(), "--database-ca"),
            (self.blobs.is_some(), "--blobs"),
            (self.blobs_credentials_env.is_some(), "--blobs-credentials-env"),
        ];
        given.into_iter().find_map(|(given, option)| given.then_some(option))
    }

    /// The database that `--state` names; `None` for a folder.
    pub(super) fn database(&self, state: &str) -> Result<Option<Database>, Failure> {
        if !Database::is_address(state) {
            let password = self.database_password_env.as_ref().map(|_| "--database-password-env");
            let option = password.or(self.database_ca.as_ref().map(|_| "--database-ca"));
            return match option {
                Some(option) => {
                    Err(Failure::input(anyhow!("{option} is for a state in PostgreSQL, but --state is a folder")))
                }
                None if state.contains("://") => Err(Failure::input(anyhow!(
                    "--state: the address is not one of PostgreSQL; write postgres://USER@HOST:PORT/NAME, or a folder"
                ))),
                None => Ok(None),
            };
        }
        let password = secret(self.database_password_env.as_deref())?;
        let database = Database::parse(state, password.as_deref(), self.database_ca.as_deref());
        let database = database.map_err(Failure::input)?;
        if database.is_open_to_others() {
            tracing::warn!(
                place = database.place(),
                "what is said to the database is not encrypted, as its address asks: use a tunnel or a private net"
            );
        }
        Ok(Some(database))
    }

    /// The object store, where one is named.
    pub(super) fn bucket(&self, needed: bool) -> Result<Option<Bucket>, Failure> {
        match &self.blobs {
            Some(url) => {
                let keys = secret(self.blobs_credentials_env.as_deref())?;
                Ok(Some(Bucket::open(url, keys.as_deref()).map_err(Failure::input)?))
            }
            None if needed => Err(Failure::input(anyhow!(
                "a state in a database needs --blobs s3://BUCKET/PREFIX (or gs://, az://): the coordinator that takes over \
                 must find the checkpoints and results there"
            ))),
            None => Ok(None),
        }
    }

    /// Where a whole state lies.
    pub(crate) fn home(&self, state: &str) -> Result<Home, Failure> {
        let database = self.database(state)?;
        let bucket = self.bucket(database.is_some())?;
        Ok(match (database, bucket) {
            (Some(database), Some(bucket)) => Home::Servers { database, bucket },
            (_, bucket) => Home::Folder { folder: PathBuf::from(state), bucket },
        })
    }
}
