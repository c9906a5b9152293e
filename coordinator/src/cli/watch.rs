//! `graftwork watch`: the progress of a job, across the ends of its coordinators.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use graftwork_shared::{
    event::{Event, EventKind},
    id::JobId,
    view::JobView,
};

use super::{
    Connection, Failure,
    jobs::{connected, exit_code},
    which::Which,
};
use crate::{
    client::{Client, ClientError},
    progress::{Mode, Progress},
};

/// How long a coordinator that went away is looked for, or another one that leads in its place.
const PATIENCE: Duration = Duration::from_mins(2);

/// How often it is looked for.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// The job, or the first digits of it.
    job: Which,
    /// How progress is shown; JSON lines go to stdout.
    #[arg(long, value_enum, default_value = "auto")]
    progress: Mode,
    #[command(flatten)]
    at: Connection,
}

pub(super) async fn run(arguments: Watch) -> Result<u8, Failure> {
    let job = arguments.job.find(&arguments.at).await?;
    let mut client = connected(&arguments.at, &job).await?;
    let view = client.view(&job).await?;
    let mut progress = Progress::for_stdout(arguments.progress, &view);
    let mut shown = Shown::default();
    let view = loop {
        match show_all(&mut client, &job, &mut progress, &mut shown).await {
            Ok(view) if view.ended_ms.is_some() => break view,
            // One of the state folder goes with whoever runs the job.
            Ok(view) if arguments.at.coordinator.is_empty() => break view,
            Err(error) if arguments.at.coordinator.is_empty() || error.is_input() => return Err(error.into()),
            Ok(_) => eprintln!("the coordinator left; looking for the one that leads now"),
            Err(error) => eprintln!("{error}; looking for the coordinator that leads now"),
        }
        client = find_again(&arguments.at).await?;
    };
    progress.finish();
    Ok(exit_code(&view))
}

/// Shows what comes until the stream ends; gives the job as it is then.
async fn show_all(
    client: &mut Client,
    job: &JobId,
    progress: &mut Progress,
    shown: &mut Shown,
) -> Result<JobView, ClientError> {
    let mut events = client.watch(job).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        if shown.is_new(&event) {
            progress.on_event(&event);
        }
    }
    client.view(job).await
}

async fn find_again(at: &Connection) -> Result<Client, Failure> {
    let began = Instant::now();
    loop {
        tokio::time::sleep(AGAIN).await;
        match at.client().await {
            Ok(Some(client)) => return Ok(client),
            Ok(None) => unreachable!("only a named coordinator is looked for again"),
            Err(failure) if began.elapsed() > PATIENCE => return Err(failure),
            Err(_) => {}
        }
    }
}

/// What was shown last: a coordinator tells whoever comes back its story again, from its beginning, however much is left
/// out behind that. Another coordinator tells a story of its own, by its own clock.
#[derive(Default)]
struct Shown {
    /// The beginning of the story.
    began: Option<Event>,
    newest_ms: u64,
    at_newest: Vec<Event>,
}

impl Shown {
    fn is_new(&mut self, event: &Event) -> bool {
        if matches!(event.kind, EventKind::JobStarted { .. }) && self.began.as_ref() != Some(event) {
            *self = Self { began: Some(event.clone()), newest_ms: event.at_ms, at_newest: vec![event.clone()] };
            return true;
        }
        if event.at_ms < self.newest_ms || self.at_newest.contains(event) {
            return false;
        }
        if event.at_ms > self.newest_ms {
            self.newest_ms = event.at_ms;
            self.at_newest.clear();
        }
        self.at_newest.push(event.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(at_ms: u64, kind: EventKind) -> Event {
        Event { job: "0123456789abcdef".parse().unwrap(), at_ms, stage: None, kind }
    }

    fn event(at_ms: u64, step: u64) -> Event {
        told(at_ms, EventKind::Checkpointed { step })
    }

    #[test]
    fn what_another_coordinator_tells_is_new_whatever_its_clock_says() {
        let began = |at_ms, resumed| told(at_ms, EventKind::JobStarted { stages: 1, resumed });
        // The first one was frozen, and told something after the second had taken over.
        let first = [began(1, false), event(5, 1), event(90, 2)];
        let second = [began(60, true), event(61, 3), event(91, 4)];
        let mut shown = Shown::default();
        assert!(first.iter().chain(&second).all(|event| shown.is_new(event)));
        let again: Vec<bool> = second.iter().chain([&event(92, 5)]).map(|event| shown.is_new(event)).collect();
        assert_eq!(again, [false, false, false, true]);
        // A third one, whose clock stands far behind, has told more than it keeps.
        let third = [began(10, true), event(40, 900), event(41, 901)];
        assert!(third.iter().all(|event| shown.is_new(event)));
        let again: Vec<bool> = [&third[0], &third[2], &event(42, 902)].map(|event| shown.is_new(event)).into();
        assert_eq!(again, [false, false, true]);
    }

    #[test]
    fn what_was_shown_before_is_not_shown_again() {
        let story = [event(5, 1), event(5, 2), event(6, 3), event(6, 4)];
        let mut shown = Shown::default();
        assert!(story[..3].iter().all(|event| shown.is_new(event)));
        let again: Vec<bool> = story.iter().map(|event| shown.is_new(event)).collect();
        assert_eq!(again, [false, false, false, true]);
    }
}
