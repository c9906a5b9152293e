//! Watching a job that another process on this machine trains.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use futures::StreamExt as _;
use graftwork_shared::id::JobId;

use super::{End, Recoveries, Signals, Training};
use crate::{
    cli::{Failure, OURS},
    client::Client,
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
    let since = Instant::now();
    let mut holder = holder.clone();
    loop {
        if let Some(socket) = holder.socket()
            && let Ok(mut client) = Client::local(socket).await
            && client.view(&JobId::of(&training.job.digest())).await.is_ok()
        {
            return Ok(client);
        }
        if since.elapsed() > STARTING {
            let words = format!("process {} holds {} but does not answer", holder.pid, training.folder.display());
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
