//! Results into the hub folder, and earlier results out of it.
//!
//! Every byte of a release is a function of the stage's result and of the part of the resolved job that it needs: no
//! clock, no rate, no number of workers, no neighbour enters (invariant 5). Places enter the record alone. The hub
//! shows a release whole or not at all; publishing again is no error, and an earlier result is taken only for the rows
//! that it was trained on.

mod card;
mod names;
mod record;
mod release;
mod reuse;
mod rows;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use graftwork_model::TrunkDescription;
use graftwork_shared::{
    assignment::{Blame, Failure, StageResult},
    recipe::NumericClass,
    record::Record,
};
use graftwork_store::{Hub, RECORD_FILE, StoreError};
pub(crate) use record::job_of_stage;
pub(crate) use rows::changed as changed_rows;
use tokio::runtime::Handle;

use crate::{
    downloads::Downloads,
    nightly,
    server::{Publication, Publisher, StageOfPlan},
};

/// Publishes for a server.
#[derive(Clone, Debug)]
pub(crate) struct PublisherDoor {
    /// Downloaded base models.
    pub(crate) cache: Downloads,
    /// Whether earlier results of the same recipe are taken from the hub.
    pub(crate) reuse: bool,
    /// Whether a release of another owner stays.
    pub(crate) by_owner: bool,
    /// Where nights lie whose job names their hub as every host reads it.
    pub(crate) nights: Option<PathBuf>,
}

/// What the hub of a night begins with that is one of a folder of the coordinator's own.
pub(crate) const NIGHTS: &str = "nights://";

/// The folder of a hub, where it names one: that of a night leads into `nights`.
pub(crate) fn hub_folder(hub: &str, nights: Option<&Path>) -> String {
    let of_night = || nightly::place(nights?, hub.strip_prefix(NIGHTS)?);
    of_night().map_or_else(|| hub.to_owned(), |folder| folder.display().to_string())
}

/// Why a stage was not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// A place.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What a result holds is not what its recipe says.
    #[error("the result cannot be written in AdapterHub's layout: {0}")]
    Model(graftwork_model::ModelError),
    /// Rows.
    #[error(transparent)]
    Rows(#[from] graftwork_dataset::DataError),
    /// A blob.
    #[error(transparent)]
    Blob(#[from] crate::server::BlobError),
    /// A name in the hub that is another owner's.
    #[error(
        "{} is a release of owner {owner:?}: choose another name (publish_as) or organisation, or have it removed",
        path.display()
    )]
    OfAnother {
        /// The release.
        path: PathBuf,
        /// Whose it is.
        owner: String,
    },
    /// A result without a part that it must have.
    #[error("{0}")]
    Incomplete(String),
}

impl From<graftwork_model::ModelError> for PublishError {
    fn from(error: graftwork_model::ModelError) -> Self {
        Self::Model(error)
    }
}

impl PublishError {
    fn blame(&self) -> Blame {
        match self {
            Self::Store(error) => error.blame(),
            // A damaged blob may be whole when the stage is trained again.
            Self::Blob(_) => Blame::Machine,
            Self::Rows(error) => error.blame(),
            Self::Model(_) | Self::OfAnother { .. } | Self::Incomplete(_) => Blame::User,
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        Self { blame: error.blame(), message: format!("publishing: {error}") }
    }
}

impl PublisherDoor {
    fn hub(&self, stage: &StageOfPlan) -> String {
        hub_folder(&stage.plan.job.publish.hub, self.nights.as_deref())
    }

    async fn trunk(&self, stage: &StageOfPlan) -> Result<TrunkDescription, PublishError> {
        let base = &stage.plan.job.base_model;
        let folder =
            graftwork_store::fetch_base_model(&base.location, base.credentials.as_deref(), &self.cache, &stage.blobs)
                .await?;
        Ok(TrunkDescription::read(&folder)?)
    }
}

impl Publisher for PublisherDoor {
    fn publish(&self, publication: Publication) -> BoxFuture<'_, Result<String, Failure>> {
        Box::pin(async move {
            let trunk = self.trunk(&publication.stage).await?;
            let (by_owner, hub) = (self.by_owner, self.hub(&publication.stage));
            blocking(move || publish(&publication, &trunk, (&hub, by_owner))).await?.map_err(Failure::from)
        })
    }

    fn reusable(&self, stage: StageOfPlan, classes: Vec<NumericClass>) -> BoxFuture<'_, Option<StageResult>> {
        Box::pin(async move {
            if !self.reuse {
                return None;
            }
            let runtime = Handle::current();
            let hub = self.hub(&stage);
            let found = blocking(move || reuse::find((&stage, &hub), &classes, &runtime)).await;
            match found {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => {
                    tracing::warn!("an earlier result is not used again: {error}");
                    None
                }
                Err(failure) => {
                    tracing::warn!("an earlier result is not used again: {}", failure.message);
                    None
                }
            }
        })
    }

    fn holds(&self, stage: StageOfPlan, release: String) -> BoxFuture<'_, bool> {
        Box::pin(async move { blocking(move || holds(&stage, Path::new(&release))).await.unwrap_or(false) })
    }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let lost = |error: tokio::task::JoinError| Failure { blame: Blame::Machine, message: error.to_string() };
    tokio::task::spawn_blocking(act).await.map_err(lost)
}

fn publish(
    publication: &Publication,
    trunk: &TrunkDescription,
    (hub, by_owner): (&str, bool),
) -> Result<String, PublishError> {
    let stage = publication.stage.stage();
    let job = &publication.stage.plan.job;
    let release = release::build(publication, trunk)?;
    let hub = Hub::open(hub)?;
    if by_owner && let Some(there) = hub.current(&job.publish.organisation, &stage.publish_as) {
        check_owner(&hub.path(&job.publish.organisation, &stage.publish_as), &there, &job.owner)?;
    }
    let result_of = Some((stage.recipe_digest, &publication.result.numeric_class));
    let path = hub.commit(&job.publish.organisation, &stage.publish_as, &release, result_of)?;
    Ok(path.display().to_string())
}

/// Refuses to take a name from another owner's release. What is there without a record is nobody's.
fn check_owner(path: &Path, there: &Path, owner: &str) -> Result<(), PublishError> {
    let record = std::fs::read(there.join(RECORD_FILE)).ok();
    let record = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
    match record {
        Some(record) if record.job.owner != owner => {
            Err(PublishError::OfAnother { path: path.to_owned(), owner: record.job.owner })
        }
        _ => Ok(()),
    }
}

/// Whether a release is whole and of the stage's recipe. Whether rows are still the same is asked where a file was touched
/// since, of the release that would be used again.
fn holds(stage: &StageOfPlan, release: &Path) -> bool {
    Hub::verify(release).is_ok_and(|record| record.recipe_digest == stage.stage().recipe_digest)
}
