//! The job file: the product's face.
//!
//! [`parse()`] turns TOML text into a [`Job`] in which every default is written out, or into every problem at once.
//! Later checks (against the base model, the data and the hub) need files and live in the coordinator's planner;
//! they report with the same [`Diagnostic`](crate::diagnostic::Diagnostic) and the spans kept in [`Spans`].

mod check;
mod duration;
mod found;
mod keys;
mod nightly;
mod parse;
mod place;
mod places;
mod reference;
mod resolve;
mod schema;
mod secret;
mod suggest;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;

pub use nightly::{Expected, MOST_NIGHTS, Nightly};
pub use parse::{Parsed, parse};
pub use places::{is_address, resolved_place, with_places};
pub use reference::reference_markdown;
pub use schema::json_schema;
use serde::{Deserialize, Serialize};

use crate::{
    adapter::{AdapterConfig, FusionConfig},
    data::{Columns, Origin, Source, SplitRule},
    digest::Digest,
    head::HeadActivation,
    id::Name,
    metric::Metric,
    sweep::Sweep,
    training::Training,
    upload,
};

/// A job with every default written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Name for people; not part of the digest.
    pub name: String,
    /// Who pays; not part of the digest.
    pub owner: String,
    /// Higher goes first; not part of the digest.
    pub priority: i32,
    /// The frozen base model.
    pub base_model: BaseModel,
    /// Where results go.
    pub publish: Publish,
    /// What the job asks of machines; not part of the digest.
    pub resources: Resources,
    /// Tasks in the file's order.
    pub tasks: Vec<Task>,
    /// Fusions in the file's order.
    pub fusions: Vec<Fusion>,
    /// How nights are compared; not part of the digest.
    #[serde(default, skip_serializing_if = "Nightly::is_default")]
    pub nightly: Nightly,
}

/// The frozen base model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModel {
    /// A folder, `hf://org/name@revision`, or an object-store URL.
    pub location: String,
    /// Name of the environment variable on the worker that holds a token for it.
    pub credentials: Option<String>,
}

/// Where results go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// A hub folder.
    pub hub: String,
    /// The organisation part of `organisation/name`.
    pub organisation: String,
    /// SPDX licence put on the cards.
    pub license: Option<String>,
}

/// Local worker processes at most. Well above what a machine has cores for; a number beyond it is a slip of the hand.
pub const MOST_WORKERS: u32 = 1024;

/// Trainer threads of a worker at most, for the same reason.
pub const MOST_THREADS: u32 = 1024;

/// What the job asks of machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Local worker processes that `graftwork run` starts.
    pub workers: u32,
    /// Trainer threads of each; `None` takes one for each core.
    pub threads: Option<u32>,
    /// `cpu` or `cuda`.
    pub device: Device,
    /// Most workers that train one task together; `None` for no bound but the lanes, 1 for never more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers_per_task: Option<u32>,
    /// Workers that each task and fusion starts on at once or not at all; never more than may train it together.
    #[serde(default = "alone", skip_serializing_if = "is_alone")]
    pub gang: u32,
    /// Seconds that each task and fusion may train; one that needs more fails. `None` for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_limit_s: Option<u64>,
}

impl Resources {
    /// What decides no byte left out: what stands in a release's record.
    pub fn of_device(device: Device) -> Self {
        Self { workers: 1, threads: None, device, workers_per_task: None, gang: 1, time_limit_s: None }
    }
}

fn alone() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_alone(gang: &u32) -> bool {
    *gang == 1
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// CPU cores.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// One task: its rows, its head, its adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its name in this job.
    pub name: Name,
    /// Its rows.
    pub data: TaskData,
    /// Where its rows come from, and their licence. In the job's digest, since it is published; in no recipe.
    #[serde(default, skip_serializing_if = "Origin::is_unknown")]
    pub origin: Origin,
    /// Its head.
    pub head: HeadRequest,
    /// The metric that chooses the best weights; `None` takes the head's default.
    pub metric: Option<Metric>,
    /// The score on held-out rows (test, or validation where there is no test) that the user expects.
    pub expect: Option<f64>,
    /// Its adapter.
    pub adapter: AdapterConfig,
    /// Optimisation.
    pub training: Training,
    /// What is tried; adapter and training above are then those of the first trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Sweep>,
    /// Layers without adapters at evaluation and inference.
    pub skip_layers: Vec<u32>,
    /// Its name in the hub.
    pub publish_as: Name,
}

/// The rows of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskData {
    /// Training rows, or all rows when `split` divides them.
    pub train: Source,
    /// Validation rows, unless `split` makes them.
    pub validation: Option<Source>,
    /// Held-out rows, unless `split` makes them or there are none.
    pub test: Option<Source>,
    /// How one source is divided.
    pub split: Option<SplitRule>,
    /// Columns.
    pub columns: Columns,
    /// Only the first so many training rows, after `split` divided them.
    pub rows: Option<u64>,
    /// Name of the environment variable on the worker that holds credentials for the sources.
    pub credentials: Option<String>,
}

/// A head as the job asks for it; labels that the job does not name are found in the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRequest {
    /// What it predicts.
    pub kind: HeadKind,
    /// Class names in the order of their ids, for classification.
    pub labels: Option<Vec<String>>,
    /// Linear layers, 1 to 4.
    pub layers: u32,
    /// Activation between the layers.
    pub activation: HeadActivation,
    /// Reads the pooler.
    pub use_pooler: bool,
}

/// What a head predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// One of several classes.
    Classification,
    /// One number.
    Regression,
}

/// A fusion: which adapters, for whose rows and head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fusion {
    /// Its name in this job; tasks and fusions share one set of names.
    pub name: Name,
    /// The adapters, in the order of attention.
    pub adapters: Vec<AdapterRef>,
    /// The task whose rows and head it uses.
    pub task: Name,
    /// Name of the environment variable on the coordinator that holds a token for its `hf://` adapters. Without it they
    /// are asked for with the base model's, where that is an `hf://` model too: both lie on the same hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    /// The fusion layer's options.
    pub config: FusionConfig,
    /// Optimisation.
    pub training: Training,
    /// As in [`Task`].
    pub expect: Option<f64>,
    /// As in [`Task`].
    pub skip_layers: Vec<u32>,
    /// Its name in the hub.
    pub publish_as: Name,
}

/// Where a fusion finds an adapter. In the job file: a task's name, or a path or address with a `/` in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterRef {
    /// Trained by a task of this job.
    Task(Name),
    /// A folder in AdapterHub's layout.
    Folder(String),
    /// `hf://org/name@revision` on a Hugging Face compatible hub.
    Hub(String),
}

impl TaskData {
    /// The places of its rows.
    pub fn places_mut(&mut self) -> impl Iterator<Item = &mut String> {
        [Some(&mut self.train), self.validation.as_mut(), self.test.as_mut()].into_iter().flatten().flatten()
    }
}

impl Job {
    /// The digest by which state folders and job ids are keyed: the same for files that say the same,
    /// whatever their order, comments, spelled-out defaults, name, owner, priority or resources.
    ///
    /// Uploaded rows and adapters count by their content and not by their names. An uploaded base model's name counts,
    /// because it is published.
    pub fn digest(&self) -> Digest {
        let (mut tasks, mut fusions) = (self.tasks.clone(), self.fusions.clone());
        tasks.iter_mut().flat_map(|task| task.data.places_mut()).for_each(|place| *place = upload::nameless(place));
        for adapter in fusions.iter_mut().flat_map(|fusion| &mut fusion.adapters) {
            if let AdapterRef::Folder(place) = adapter {
                *place = upload::nameless(place);
            }
        }
        let tasks: BTreeMap<&Name, &Task> = tasks.iter().map(|task| (&task.name, task)).collect();
        let fusions: BTreeMap<&Name, &Fusion> = fusions.iter().map(|fusion| (&fusion.name, fusion)).collect();
        Digest::of_value("graftwork job", &(&self.base_model, &self.publish, tasks, fusions))
    }

    /// Every place that the job reads: the base model, rows, and adapters from outside.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        let rows = self.tasks.iter().flat_map(|task| {
            let TaskData { train, validation, test, .. } = &task.data;
            [Some(train), validation.as_ref(), test.as_ref()].into_iter().flatten().flatten()
        });
        let adapters = self.fusions.iter().flat_map(|fusion| &fusion.adapters).filter_map(|adapter| match adapter {
            AdapterRef::Folder(place) | AdapterRef::Hub(place) => Some(place),
            AdapterRef::Task(_) => None,
        });
        std::iter::once(&self.base_model.location).chain(rows).chain(adapters).map(String::as_str)
    }

    /// The task of this name.
    pub fn task(&self, name: &Name) -> Option<&Task> {
        self.tasks.iter().find(|task| task.name == *name)
    }

    /// The fusion of this name.
    pub fn fusion(&self, name: &Name) -> Option<&Fusion> {
        self.fusions.iter().find(|fusion| fusion.name == *name)
    }
}

/// Byte ranges of the job file by dotted key path, such as `tasks.spam.train`; checks made later point with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spans(pub BTreeMap<String, std::ops::Range<usize>>);

impl Spans {
    /// The range of a key path, or of the nearest table around it.
    pub fn of(&self, path: &str) -> Option<std::ops::Range<usize>> {
        let mut path = path;
        loop {
            if let Some(range) = self.0.get(path) {
                return Some(range.clone());
            }
            path = &path[..path.rfind('.')?];
        }
    }
}
