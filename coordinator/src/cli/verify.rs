//! `graftwork verify`: a release against its record, and with `--retrain` against a training from that record alone.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use graftwork_scheduler::PlannedStage;
use graftwork_shared::{
    id::Name,
    job::{AdapterRef, Job, MOST_THREADS, Spans},
    record::Record,
    training::Reduction,
    upload,
};
use graftwork_store::Hub;

use super::{DONE, Failure, INPUT, INTERRUPTED, cache_folder, print, secret, show_problems};
use crate::{
    planner::{Planning, plan_with_spans},
    progress::Mode,
    publish::{changed_rows, job_of_stage},
    run::{self, End, Training},
    server::{BlobStore, Bucket},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The release's folder.
    release: PathBuf,
    /// Train it again from its record alone, in a temporary state, and compare the SHA-256 of every tensor file.
    #[arg(long)]
    retrain: bool,
    /// Where uploaded rows and models lie: the state folder of the coordinator that trained it, or its --blobs,
    /// such as s3://BUCKET/PREFIX.
    #[arg(long, value_name = "FOLDER|URL")]
    uploads: Option<String>,
    /// Environment variable that holds the object store's keys, as for the coordinator.
    #[arg(long, value_name = "NAME", requires = "uploads")]
    blobs_credentials_env: Option<String>,
    /// Trainer threads.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_THREADS)))]
    threads: Option<u32>,
    /// How progress is shown on stderr.
    #[arg(long, value_enum, default_value = "auto")]
    progress: Mode,
}

pub(super) async fn run(arguments: Arguments) -> Result<u8, Failure> {
    let record = Hub::verify(&arguments.release).map_err(Failure::input)?;
    eprintln!("{} files have the SHA-256 of the record", record.files.len());
    if !arguments.retrain {
        return Ok(DONE);
    }
    let folder = tempfile::Builder::new().prefix("graftwork-verify-").tempdir()?;
    let mut job = job_of_stage(&record.job, &record.stage);
    find_uploads(&mut job, &arguments, folder.path()).await?;
    job.publish.hub = folder.path().join("hub").display().to_string();
    check_plan(&job, &record).await?;
    let training = Training {
        workers: 1,
        threads: run::threads(&job, arguments.threads),
        job: job.clone(),
        spans: Spans::default(),
        folder: folder.path().join("state"),
        progress: arguments.progress,
        again: false,
        reuse: false,
        go_on: format!("graftwork verify --retrain {} (from the start)", arguments.release.display()),
    };
    let view = match run::train(training).await? {
        End::Ended(view, _) => view,
        End::Interrupted => return Ok(INTERRUPTED),
        End::Changed(words) => return Err(Failure::input(anyhow!(words))),
        End::Refused(problems) => {
            show_problems("", "the record's job", &problems);
            return Ok(INPUT);
        }
    };
    let again = view.stages.iter().find(|stage| stage.name == record.stage).and_then(|stage| stage.release.clone());
    let Some(again) = again else {
        return Err(Failure::input(anyhow!("{} could not be trained again: see above", record.stage)));
    };
    compare(&record, Path::new(&again), &record.stage)
}

/// Puts local paths in the place of everything uploaded; what has to be fetched lies below `folder`.
async fn find_uploads(job: &mut Job, arguments: &Arguments, folder: &Path) -> Result<(), Failure> {
    let Some(place) = job.places().find(|place| upload::digest(place).is_some()) else { return Ok(()) };
    let Some(uploads) = &arguments.uploads else {
        return Err(Failure::input(anyhow!(
            "{place} was uploaded to the coordinator that trained this release; name its state folder, or its --blobs, with \
             --uploads"
        )));
    };
    let blobs = if uploads.contains("://") {
        let keys = secret(arguments.blobs_credentials_env.as_deref())?;
        let bucket = Bucket::open(uploads, keys.as_deref()).map_err(Failure::input)?;
        BlobStore::of_anothers_bucket(bucket, Some(folder)).map_err(Failure::input)?
    } else if arguments.blobs_credentials_env.is_some() {
        return Err(Failure::input(anyhow!(
            "--blobs-credentials-env is for an object store, but --uploads is a folder"
        )));
    } else {
        BlobStore::of_another(&std::path::absolute(uploads)?)
    };
    let cache = &folder.join("cache");
    let base = &mut job.base_model.location;
    if upload::digest(base).is_some() {
        let found = graftwork_store::fetch_base_model(base, None, cache, &blobs).await.map_err(Failure::input)?;
        *base = found.display().to_string();
    }
    for place in job.tasks.iter_mut().flat_map(|task| task.data.places_mut()) {
        if let Some(digest) = upload::digest(place) {
            *place = blobs.local(digest).map_err(Failure::input)?.display().to_string();
        }
    }
    for adapter in job.fusions.iter_mut().flat_map(|fusion| &mut fusion.adapters) {
        if let AdapterRef::Folder(place) = adapter
            && upload::digest(place).is_some()
        {
            let found = graftwork_store::fetch_adapter(place, None, cache, &blobs).await.map_err(Failure::input)?;
            *place = found.display().to_string();
        }
    }
    Ok(())
}

/// Plans the job of today and says at once when it is not what the record holds: training would be in vain.
async fn check_plan(job: &Job, record: &Record) -> Result<(), Failure> {
    let planning = Planning { cache: cache_folder().into(), machine: None, uploads: None, nights: None };
    let planned = match plan_with_spans(job.clone(), Spans::default(), planning).await {
        Ok(planned) => planned,
        Err(problems) => {
            show_problems("", "the record's job", &problems);
            return Err(Failure::input(anyhow!("{} cannot be trained again: see above", record.stage)));
        }
    };
    let stage = planned.plan.stage(&record.stage);
    let stage = stage.ok_or_else(|| Failure::input(anyhow!("the record's job has no stage {}", record.stage)))?;
    if stage.recipe_digest != record.recipe_digest {
        return Err(Failure::input(anyhow!("{} is another recipe today: {}", record.stage, difference(stage, record))));
    }
    let (plan, record) = (planned.plan.clone(), record.clone());
    let runtime = tokio::runtime::Handle::current();
    let changed = tokio::task::spawn_blocking(move || {
        let stage = plan.stage(&record.stage)?;
        Some(changed_rows(&plan, stage, &record, &runtime))
    });
    match changed.await? {
        None | Some(Ok(None)) => Ok(()),
        Some(Ok(Some(name))) => Err(Failure::input(anyhow!(
            "the rows of {name} are not those of the record, although their files' footers are"
        ))),
        Some(Err(error)) => Err(Failure::input(error)),
    }
}

/// The first part in which the recipes differ.
fn difference(stage: &PlannedStage, record: &Record) -> String {
    let (now, then) = (&stage.recipe, &record.recipe);
    if now.numerics_version != then.numerics_version {
        return format!(
            "this program computes numerics version {}, it was trained with version {}",
            now.numerics_version, then.numerics_version
        );
    }
    let parts = [
        (now.base_model == then.base_model, "the base model"),
        (now.train == then.train, "its training rows"),
        (now.validation == then.validation, "its validation rows"),
        (now.test == then.test, "its test rows"),
        (now.head == then.head, "its head or its labels"),
        (now.method == then.method, "its adapter, or one that it fuses,"),
    ];
    let part = parts.into_iter().find(|(same, _)| !same).map_or("its training options", |(_, part)| part);
    format!("{part} changed since")
}

fn is_tensor_file(path: &str) -> bool {
    [".safetensors", ".bin"].iter().any(|end| path.ends_with(end))
}

fn compare(record: &Record, again: &Path, stage: &Name) -> Result<u8, Failure> {
    let second = Hub::verify(again)?;
    if second.recipe_digest != record.recipe_digest {
        return Err(Failure::input(anyhow!("{stage} became another recipe while it was trained")));
    }
    if second.numeric_class != record.numeric_class {
        eprintln!("it was trained on {}, and now on {}", record.numeric_class, second.numeric_class);
    }
    let mut different = 0;
    let mut text = String::new();
    for (path, digest) in record.files.iter().filter(|(path, _)| is_tensor_file(path)) {
        let now = second.files.get(path);
        let equal = now == Some(digest);
        different += usize::from(!equal);
        let found = now.map_or("absent".to_owned(), ToString::to_string);
        text.push_str(&if equal {
            format!("✓ {digest}  {path}\n")
        } else {
            format!("✗ {digest}  {path} is {found} now\n")
        });
    }
    print(&text);
    if different == 0 {
        eprintln!("equal: training {stage} again gave the same tensors");
        return Ok(DONE);
    }
    eprintln!("{different} tensor files are different");
    if record.recipe.training.reduction == Reduction::Fast {
        eprintln!("it was trained with reduction = \"fast\", whose bytes depend on the number of workers");
    }
    Ok(INPUT)
}
