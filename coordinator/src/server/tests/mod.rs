//! The server as its peers meet it: real sockets, a scripted worker, coordinators that end as kill -9 ends them.

mod access;
mod crowd;
mod faults;
#[path = "../../../scheduler/tests/fixture/mod.rs"]
pub(super) mod fixture;
mod groups;
mod peer;
mod schedule;
pub(super) mod servers;
mod sessions;
mod standby;
mod start;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::future::BoxFuture;
use graftwork_scheduler::Plan;
use graftwork_shared::{
    assignment::{Blame, Failure, StageResult},
    diagnostic::Diagnostic,
    job::{Job, Spans},
    recipe::NumericClass,
};

use super::{BlobStore, Listen, Options, Planner, Publication, Publisher, Running, ServerError, StageOfPlan, start};

/// Plans every job to the stages it was made with; refuses one that is named `wrong`.
pub(super) struct Stages(Vec<graftwork_scheduler::PlannedStage>);

impl Planner for Stages {
    fn plan(&self, job: Job, _: Spans, _: BlobStore) -> BoxFuture<'_, Result<Plan, Vec<Diagnostic>>> {
        let problems = || vec![Diagnostic::error("a", "first"), Diagnostic::error("b", "second").help("mend it")];
        let plan = Plan { digest: job.digest(), stages: self.0.clone(), ..fixture::plan("x", Vec::new()) };
        let wrong = job.name == "wrong";
        Box::pin(async move { if wrong { Err(problems()) } else { Ok(Plan { job, ..plan }) } })
    }
}

/// Two tasks and the fusion of them, ten updates each.
pub(crate) fn fused_plan() -> Plan {
    let stage = |name, needs| fixture::stage(name, needs, 10);
    fixture::plan("fused", vec![stage("a", &[]), stage("b", &[]), stage("f", &["a", "b"])])
}

/// A hub that counts.
#[derive(Default)]
pub(super) struct Hub {
    published: AtomicUsize,
}

impl Publisher for Hub {
    fn publish(&self, publication: Publication) -> BoxFuture<'_, Result<String, Failure>> {
        let number = self.published.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let lost = |error: super::BlobError| Failure { blame: Blame::Machine, message: error.to_string() };
            let (blobs, wanted) = (publication.stage.blobs.clone(), publication.result.weights);
            // An object store's connections live on the thread of the test, which must not wait for them.
            let read = tokio::task::spawn_blocking(move || blobs.read(wanted)).await;
            read.expect("reading does not panic").map_err(lost)?;
            let weights = publication.fused_weights();
            assert_eq!(weights.len(), publication.stage.stage().fused.len());
            Ok(format!("org/{}@{number}", publication.stage.name))
        })
    }

    fn reusable(&self, _: StageOfPlan, _: Vec<NumericClass>) -> BoxFuture<'_, Option<StageResult>> {
        Box::pin(async { None })
    }

    fn holds(&self, _: StageOfPlan, _: String) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }
}

/// A state folder, the hub, and how to start coordinators over them.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(super) hub: Arc<Hub>,
    pub(super) plan: Plan,
    /// In the place of SQLite, where there is a server.
    pub(super) database: Option<super::Database>,
    /// In the place of a folder, likewise.
    pub(super) bucket: Option<super::Bucket>,
}

impl Place {
    pub(crate) fn new(plan: Plan) -> Self {
        let (database, bucket) = (servers::database(), servers::bucket());
        Self { folder: tempfile::tempdir().unwrap(), hub: Arc::default(), plan, database, bucket }
    }

    /// The same with its blobs in the folder, where the test can reach them.
    pub(crate) fn with_files(self) -> Self {
        Self { bucket: None, ..self }
    }

    pub(super) fn options(&self) -> Options {
        let planner = Arc::new(Stages(self.plan.stages.clone()));
        let state = self.folder.path().join("state");
        let mut options = Options::new(state.clone(), planner, Arc::clone(&self.hub) as Arc<dyn Publisher>);
        options.listen = vec![Listen::Unix(state.join("socket"))];
        options.stop_ms = 2_000;
        let leadership = |database| servers::leadership(database, servers::PLACE_LEASE_MS);
        options.leadership = self.database.as_ref().map(leadership);
        options.bucket.clone_from(&self.bucket);
        options
    }

    /// Starts a coordinator; the one before may still be on its way out.
    pub(crate) async fn start(&self) -> Running {
        self.start_with(|_| {}).await
    }

    pub(super) async fn start_with(&self, change: impl Fn(&mut Options)) -> Running {
        for _ in 0..500 {
            let mut options = self.options();
            change(&mut options);
            match start(options).await {
                Err(ServerError::Locked { .. }) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                started => return started.unwrap(),
            }
        }
        panic!("the state folder stays locked");
    }

    pub(super) fn published(&self) -> usize {
        self.hub.published.load(Ordering::SeqCst)
    }
}
