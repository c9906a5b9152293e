//! Bytes to the coordinator: what it lacks, file by file, with progress on stderr.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use graftwork_proto::{CHUNK_BYTES, traced};
use graftwork_shared::{digest::Digest, trace::TraceContext};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{io::AsyncReadExt as _, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{Content, Upload};
use crate::{
    client::{Client, ClientError},
    report::bytes,
};

/// Chunks read ahead of the connection.
const CHUNKS_AHEAD: usize = 8;

/// How long a coordinator that has too much to do is waited for, before each file.
const PATIENCE: Duration = Duration::from_mins(1);

/// Why an upload ended early. What was uploaded before it need not be uploaded again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The coordinator has no room, or refuses.
    #[error("the coordinator did not take {what}: {problem}; then run the same command, which uploads what is missing")]
    Refused {
        /// The file.
        what: String,
        /// Its words.
        problem: String,
    },
    /// The connection broke.
    #[error(
        "the connection to the coordinator broke while {what} was uploaded ({problem}); run the same command again, \
         which uploads what is missing"
    )]
    Broken {
        /// The file.
        what: String,
        /// What happened.
        problem: String,
    },
    /// A file that cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file that is another one than a moment ago.
    #[error("{} changed while it was uploaded; submit the job again when nothing writes to it any more", .0.display())]
    Changed(PathBuf),
    /// Asking what is there.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Uploads what the coordinator lacks, as a part of this trace; gives what is to be said of it.
pub(crate) async fn send(
    upload: &Upload,
    client: &mut Client,
    submission: TraceContext,
) -> Result<Option<String>, UploadError> {
    let mut span = graftwork_telemetry::span("upload", submission).with("files", upload.contents.len());
    let sent = traced(span.context(), send_missing(upload, client)).await;
    if let Err(error) = &sent {
        span.fail(error);
    }
    sent
}

async fn send_missing(upload: &Upload, client: &mut Client) -> Result<Option<String>, UploadError> {
    let all = upload.digests();
    let here = client.has(&all).await?;
    let missing: BTreeSet<Digest> = all.difference(&here).copied().collect();
    let total: u64 = missing.iter().map(|digest| upload.contents[digest].bytes()).sum();
    if missing.is_empty() {
        return Ok((!all.is_empty()).then(|| format!("nothing to upload: {} there already", counted(all.len()))));
    }
    let bar = ProgressBar::new(total);
    let style = "uploading {msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    for digest in &missing {
        one(*digest, &upload.contents[digest], client, &bar).await?;
    }
    bar.finish_and_clear();
    let there = if here.is_empty() { String::new() } else { format!("; {} there already", counted(here.len())) };
    Ok(Some(format!("uploaded {}, {}{there}", counted(missing.len()), bytes(total))))
}

fn counted(files: usize) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

async fn one(digest: Digest, content: &Content, client: &mut Client, bar: &ProgressBar) -> Result<(), UploadError> {
    let (began, done) = (Instant::now(), bar.position());
    loop {
        match attempt(digest, content, client, bar).await {
            Err(UploadError::Client(ClientError::Busy { wait, .. })) if began.elapsed() < PATIENCE => {
                bar.set_position(done);
                tokio::time::sleep(wait).await;
            }
            ended => return ended,
        }
    }
}

/// One Put of the whole file.
async fn attempt(digest: Digest, content: &Content, client: &mut Client, bar: &ProgressBar) -> Result<(), UploadError> {
    let (chunks, stream) = mpsc::channel(CHUNKS_AHEAD);
    let (what, reading) = match content {
        Content::File { path, .. } => {
            let what = path.display().to_string();
            bar.set_message(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            (what, tokio::spawn(read(path.clone(), chunks, bar.clone())))
        }
        Content::List(list) => {
            let pieces: Vec<Vec<u8>> = list.chunks(CHUNK_BYTES).map(<[u8]>::to_vec).collect();
            let bar = bar.clone();
            let give = async move {
                for data in pieces {
                    bar.inc(data.len() as u64);
                    // The coordinator's answer says why it hears no more.
                    let _ = chunks.send(data).await;
                }
                Ok(())
            };
            ("the list of a folder's files".to_owned(), tokio::spawn(give))
        }
    };
    let put = client.put(ReceiverStream::new(stream)).await;
    let read = reading.await.map_err(|error| ClientError::Other(error.to_string()))?;
    if let (Err(error), Content::File { path, .. }) = (read, content) {
        return Err(UploadError::Read { path: path.clone(), error });
    }
    match put {
        Ok(found) if found == digest => Ok(()),
        Ok(_) => Err(UploadError::Changed(path_of(content))),
        Err(busy @ ClientError::Busy { .. }) => Err(busy.into()),
        Err(ClientError::Refused(problem)) => Err(UploadError::Refused { what, problem }),
        Err(error) => Err(UploadError::Broken { what, problem: error.to_string() }),
    }
}

fn path_of(content: &Content) -> PathBuf {
    match content {
        Content::File { path, .. } => path.clone(),
        Content::List(_) => Path::new("a folder").to_owned(),
    }
}

/// Gives a file in chunks; ends early, without a word, when nobody takes them.
async fn read(path: PathBuf, chunks: mpsc::Sender<Vec<u8>>, bar: ProgressBar) -> std::io::Result<()> {
    let mut file = tokio::fs::File::open(&path).await?;
    loop {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        let taken = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data).await?;
        if taken == 0 || chunks.send(data).await.is_err() {
            return Ok(());
        }
        bar.inc(taken as u64);
    }
}
