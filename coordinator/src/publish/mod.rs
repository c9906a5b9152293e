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
};
use graftwork_store::{Hub, StoreError};
pub(crate) use record::job_of_stage;
pub(crate) use rows::changed as changed_rows;
use tokio::runtime::Handle;

use crate::server::{Publication, Publisher, StageOfPlan};

/// Publishes for a server.
#[derive(Clone, Debug)]
pub(crate) struct PublisherDoor {
    /// Folder of downloaded base models.
    pub(crate) cache: PathBuf,
    /// Whether earlier results of the same recipe are taken from the hub.
    pub(crate) reuse: bool,
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
            Self::Model(_) | Self::Incomplete(_) => Blame::User,
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        Self { blame: error.blame(), message: format!("publishing: {error}") }
    }
}

impl PublisherDoor {
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
            blocking(move || publish(&publication, &trunk)).await?.map_err(Failure::from)
        })
    }

    fn reusable(&self, stage: StageOfPlan, classes: Vec<NumericClass>) -> BoxFuture<'_, Option<StageResult>> {
        Box::pin(async move {
            if !self.reuse {
                return None;
            }
            let runtime = Handle::current();
            let found = blocking(move || reuse::find(&stage, &classes, &runtime)).await;
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

fn publish(publication: &Publication, trunk: &TrunkDescription) -> Result<String, PublishError> {
    let stage = publication.stage.stage();
    let job = &publication.stage.plan.job;
    let release = release::build(publication, trunk)?;
    let hub = Hub::open(&job.publish.hub)?;
    let result_of = Some((stage.recipe_digest, &publication.result.numeric_class));
    let path = hub.commit(&job.publish.organisation, &stage.publish_as, &release, result_of)?;
    Ok(path.display().to_string())
}

/// Whether a release is whole and of the stage's recipe. Whether rows are still the same is asked where a file was touched
/// since, of the release that would be used again.
fn holds(stage: &StageOfPlan, release: &Path) -> bool {
    Hub::verify(release).is_ok_and(|record| record.recipe_digest == stage.stage().recipe_digest)
}
