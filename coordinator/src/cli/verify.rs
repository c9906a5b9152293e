//! `graftwork verify`: a release against its record, and with `--retrain` against a training from that record alone.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use graftwork_shared::{id::Name, record::Record};
use graftwork_store::Hub;

use super::{DONE, Failure, INPUT, INTERRUPTED, print, show_problems};
use crate::{
    progress::Mode,
    publish::job_of_stage,
    run::{self, End, Training},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The release's folder.
    release: PathBuf,
    /// Train it again from its record alone, in a temporary state, and compare the SHA-256 of every tensor file.
    #[arg(long)]
    retrain: bool,
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
