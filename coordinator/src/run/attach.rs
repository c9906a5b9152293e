//! Watching a job that another process on this machine trains.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use futures::StreamExt as _;
use graftwork_shared::id::JobId;

use super::{End, Recoveries, Signals, Training};
use crate::{
    cli::{Failure, OURS},
    client::{Client, ClientError},
    progress::Progress,
    server::{self, Holder},
};

/// How long a process that has just taken the lock may need until it listens.
const STARTING: Duration = Duration::from_secs(20);

pub(super) async fn watch(training: &Training, holder: &Holder, signals: &mut Signals) -> Result<End, Failure> {
    let mut client = connect(training, holder).await?;
    eprintln!("this job is being trained by process {}; watching it", holder.pid);
    let id = JobId::of(&training.job.digest());
    let view = client.view(&id).await?;
    let mut progress = Progress::new(training.progress, &view);
    let (mut events, mut recoveries) = (client.watch(&id).await?, Recoveries::default());
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => {
                    recoveries.on_event(&event);
                    progress.on_event(&event);
                }
                Some(Err(error)) => {
                    progress.finish();
                    let words = format!("process {} is gone ({error}); `{}` goes on", holder.pid, training.go_on);
                    return Err(Failure { code: OURS, error: anyhow!(words) });
                }
                None => break,
            },
            () = signals.stop() => {
                progress.finish();
                eprintln!("no longer watching; the job goes on in process {}", holder.pid);
                return Ok(End::Interrupted);
            }
        }
    }
    progress.finish();
    Ok(End::Ended(Box::new(client.view(&id).await?), recoveries.done()))
}

/// The socket of the process that leads the folder; it may still be starting.
async fn connect(training: &Training, holder: &Holder) -> Result<Client, Failure> {
    let (since, job) = (Instant::now(), JobId::of(&training.job.digest()));
    let mut holder = holder.clone();
    loop {
        let problem = match holder.socket() {
            Some(socket) => match knows(socket, &job).await {
                Ok(client) => return Ok(client),
                Err(error) => error.to_string(),
            },
            None => "it does not listen".to_owned(),
        };
        if since.elapsed() > STARTING {
            let (pid, folder) = (holder.pid, training.folder.display());
            let words = format!("process {pid} holds {folder} but does not show the job: {problem}");
            return Err(Failure { code: OURS, error: anyhow!(words) });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        match server::holder(&training.folder)? {
            Some(now) => holder = now,
            None => {
                let words = format!("process {} has just ended; run the command again", holder.pid);
                return Err(Failure { code: OURS, error: anyhow!(words) });
            }
        }
    }
}

/// Who listens there, if it knows the job.
async fn knows(socket: &Path, job: &JobId) -> Result<Client, ClientError> {
    let mut client = Client::local(socket).await?;
    client.view(job).await?;
    Ok(client)
}
