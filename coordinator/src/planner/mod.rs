//! From a resolved job to a plan: everything that needs files is checked here, and every problem is reported at once.
//!
//! Planning reads configurations, Parquet footers, label columns where labels are not written down, and adapters from
//! outside the job. It writes nothing but the download cache, starts nothing, and decides nothing about machines. The
//! same job over the same files gives the same plan (invariant 6), and names of places never enter a recipe
//! (invariant 5).

mod asked;
mod door;
mod draft;
mod estimate;
mod fusion;
mod head;
mod memory;
mod method;
mod outside;
mod problems;
mod rows;
mod sweep;
mod task;
#[cfg(test)]
mod tests;
mod uploads;

use std::path::{Path, PathBuf};

pub(crate) use asked::read_texts;
pub(crate) use door::{PlannerDoor, plan_with_spans};
pub(crate) use draft::check_draft;
pub(crate) use estimate::{Estimate, Machine, OPERATIONS_PER_SECOND};
use futures::future::join_all;
use graftwork_model::BaseModel;
use graftwork_scheduler::Plan;
use graftwork_shared::{
    diagnostic::{Diagnostic, Severity},
    digest::Digest,
    job::{Job, Spans},
};
use graftwork_store::{Fetched, NoUploads, Uploads};
use problems::Problems;
use task::PlannedTask;

use crate::{downloads::Downloads, publish::hub_folder, server::BlobStore};

/// Where planning keeps what it downloads.
#[derive(Clone, Debug)]
pub(crate) struct Planning {
    /// Downloaded base models and adapters.
    pub(crate) cache: Downloads,
    /// The machine that will train, when it is this one; its memory and disk are then checked.
    pub(crate) machine: Option<Machine>,
    /// Where uploaded files lie, when a coordinator plans.
    pub(crate) uploads: Option<BlobStore>,
    /// Folder of the nights that a coordinator runs, when one plans.
    pub(crate) nights: Option<PathBuf>,
}

impl Planning {
    fn uploads(&self) -> &dyn Uploads {
        self.uploads.as_ref().map_or(&NoUploads as &dyn Uploads, |blobs| blobs)
    }
}

/// A plan with what comes beside it.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// The plan.
    pub(crate) plan: Plan,
    /// Weights of adapters from outside the job, by digest, to be put into the coordinator's blob store.
    pub(crate) blobs: Vec<(Digest, Vec<u8>)>,
    /// What the user should know although the job can run.
    pub(crate) warnings: Vec<Diagnostic>,
    /// What it is expected to take.
    pub(crate) estimate: Estimate,
}

/// The base model as planning needs it.
struct Base {
    model: BaseModel,
    digest: Digest,
    /// Kept as long as it is planned with.
    _files: Fetched,
}

/// Plans a job, or says everything that is wrong with it; `spans` place what is said in the job file.
pub(crate) async fn plan(job: Job, spans: &Spans, planning: &Planning) -> Result<Planned, Vec<Diagnostic>> {
    let problems = Problems::new(spans);
    check_hub(&job.publish.hub, planning.nights.as_deref(), &problems);
    let (named, uploads) = (job.clone(), planning.uploads.clone());
    // From an object store they are fetched.
    let files = tokio::task::spawn_blocking(move || uploads::files(&named, uploads.as_ref())).await;
    let files = files.unwrap_or_default();
    let (base, tasks) = futures::join!(
        open_base(&job, planning, &problems),
        join_all(job.tasks.iter().map(|task| rows::open(task, files.clone(), &problems)))
    );
    let tasks: Vec<Option<PlannedTask>> = tasks
        .into_iter()
        .zip(&job.tasks)
        .map(|(rows, task)| task::plan(&job, task, rows?, base.as_ref(), &problems))
        .collect();
    let outside = outside::fetch(&job, base.as_ref(), planning, &problems).await;
    let mut stages: Vec<_> =
        tasks.iter().flatten().flat_map(|task| task.stage.iter().chain(&task.trials).cloned()).collect();
    for fusion in &job.fusions {
        let parts = fusion::Parts { tasks: &tasks, outside: &outside, base: base.as_ref() };
        stages.extend(fusion::plan(&job, fusion, &parts, &problems));
    }
    let estimate = base.as_ref().map(|base| estimate::estimate(&stages, &base.model.description, &job, planning));
    if let (Some(estimate), Some(machine)) = (&estimate, &planning.machine) {
        estimate::check_machine(estimate, &stages, machine, &job, &problems);
    }
    let (Some(base), Some(estimate)) = (base, estimate) else { return Err(problems.into_list()) };
    let digest = job.digest();
    let uploads = planning.uploads.as_ref().map(|blobs| uploads::needed(&job, blobs)).unwrap_or_default();
    let beside_bytes = memory::process() + memory::trunk(&base.model.description);
    let (base_model_digest, trace) = (base.digest, String::new());
    let plan = Plan { job, digest, base_model_digest, stages, beside_bytes, uploads, trace };
    let mut said = problems.into_list();
    if said.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(said);
    }
    if let Err(error) = plan.check() {
        said.push(Diagnostic::error("plan", error.to_string()));
        return Err(said);
    }
    Ok(Planned { plan, blobs: outside.into_blobs(), warnings: said, estimate })
}

/// Results go into a folder: what has its name, or that of a folder around it, must not be a file.
fn check_hub(hub: &str, nights: Option<&Path>, problems: &Problems<'_>) {
    let folder = hub_folder(hub, nights);
    let in_the_way = Path::new(&folder).ancestors().find(|path| path.exists()).filter(|path| !path.is_dir());
    let message = match in_the_way {
        _ if folder.contains("://") => format!("results cannot go to {hub}: a hub is a folder"),
        Some(file) => format!("results cannot go to the folder {hub}: {} is a file", file.display()),
        None => return,
    };
    let problem = Diagnostic::error("hub", message).help("name a folder, which is made when it does not exist");
    problems.add("publish.hub", problem);
}

async fn open_base(job: &Job, planning: &Planning, problems: &Problems<'_>) -> Option<Base> {
    let (location, credentials) = (&job.base_model.location, job.base_model.credentials.as_deref());
    let place = "base_model.location";
    let fetched = graftwork_store::fetch_base_model(location, credentials, &planning.cache, planning.uploads());
    let tell = |message: String, help: Option<&str>| {
        let mut problem = Diagnostic::error("base-model", format!("base model: {message}"));
        problem.help = help.map(str::to_owned);
        problems.add(place, problem);
    };
    let folder = match fetched.await {
        Ok(folder) => folder,
        Err(error) => {
            tell(error.to_string(), error.help());
            return None;
        }
    };
    let opened = tokio::task::spawn_blocking(move || {
        let model = BaseModel::open(&folder)?;
        model.check_tokenizer()?;
        let digest = model.digest()?;
        Ok::<_, graftwork_model::ModelError>(Base { model, digest, _files: folder })
    });
    match opened.await {
        Ok(Ok(base)) => return Some(base),
        Ok(Err(error)) => tell(error.to_string(), error.help()),
        Err(error) => tell(format!("reading it ended early: {error}"), None),
    }
    None
}
