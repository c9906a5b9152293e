//! `graftwork verify`: a release against its record, and with `--retrain` against a training from that record alone.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use graftwork_shared::{
    id::Name,
    job::{AdapterRef, Job},
    record::Record,
    upload,
};
use graftwork_store::Hub;

use super::{DONE, Failure, INPUT, INTERRUPTED, print, show_problems};
use crate::{
    progress::Mode,
    publish::job_of_stage,
    run::{self, End, Training},
    server::BlobStore,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The release's folder.
    release: PathBuf,
    /// Train it again from its record alone, in a temporary state, and compare the SHA-256 of every tensor file.
    #[arg(long)]
    retrain: bool,
    /// State folder of the coordinator that trained it, where uploaded rows and models lie.
    #[arg(long, value_name = "FOLDER")]
    uploads: Option<PathBuf>,
    /// Trainer threads.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
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
    find_uploads(&mut job, arguments.uploads.as_deref(), &folder.path().join("cache")).await?;
    job.publish.hub = folder.path().join("hub").display().to_string();
    let training = Training {
        workers: 1,
        threads: run::threads(&job, arguments.threads),
        job: job.clone(),
        spans: graftwork_shared::job::Spans::default(),
        folder: folder.path().join("state"),
        progress: arguments.progress,
        again: false,
        reuse: false,
        go_on: format!("graftwork verify --retrain {} (from the start)", arguments.release.display()),
    };
    let view = match run::train(training).await? {
        End::Ended(view) => view,
        End::Interrupted => return Ok(INTERRUPTED),
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

/// Puts local paths in the place of everything uploaded.
async fn find_uploads(job: &mut Job, state: Option<&Path>, cache: &Path) -> Result<(), Failure> {
    let Some(place) = job.places().find(|place| upload::digest(place).is_some()) else { return Ok(()) };
    let Some(state) = state else {
        return Err(Failure::input(anyhow!(
            "{place} was uploaded to the coordinator that trained this release; name its state folder with --uploads"
        )));
    };
    let blobs = BlobStore::of_another(&std::path::absolute(state)?);
    let base = &mut job.base_model.location;
    if upload::digest(base).is_some() {
        let found = graftwork_store::fetch_base_model(base, None, cache, &blobs).await.map_err(Failure::input)?;
        *base = found.display().to_string();
    }
    for place in job.tasks.iter_mut().flat_map(|task| task.data.places_mut()) {
        if let Some(digest) = upload::digest(place) {
            *place = blobs.path(digest).display().to_string();
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

fn is_tensor_file(path: &str) -> bool {
    [".safetensors", ".bin"].iter().any(|end| path.ends_with(end))
}

fn compare(record: &Record, again: &Path, stage: &Name) -> Result<u8, Failure> {
    let second = Hub::verify(again)?;
    if second.recipe_digest != record.recipe_digest {
        let data =
            if second.recipe.train == record.recipe.train { "" } else { ": its rows are not those of the record" };
        return Err(Failure::input(anyhow!("{stage} is another recipe today{data}")));
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
        return Ok(DONE);
    }
    eprintln!("{different} tensor files are different");
    Ok(INPUT)
}
