//! When nights of a job file are due, who holds their history meanwhile, and what is said of an older one.

use std::fs;

use graftwork_shared::digest::Digest;
use graftwork_telemetry::Source as _;

use super::*;
use crate::fixture::{TASK, World};

const HOUR: u64 = 3_600_000;

/// A job whose nights are due at two, watched since three.
struct Job {
    world: World,
    nights: ByItself,
    watched: Watched,
    text: String,
}

impl Job {
    fn new() -> Self {
        let world = World::new();
        let (file, text) = (world.path("job.toml"), world.parse(&format!("{TASK}[nightly]\ncron = \"0 2 * * *\"\n")).0);
        fs::write(&file, &text).unwrap();
        let watched = Watched::new(&file, 3 * HOUR);
        let nights = ByItself {
            files: vec![file],
            histories: world.path("nightly"),
            code: None,
            gauges: Gauges::new(),
            kept: None,
        };
        Self { world, nights, watched, text }
    }

    fn write(&self, text: &str) {
        fs::write(self.world.path("job.toml"), text).unwrap();
    }

    fn due(&mut self, now_ms: u64) -> Option<u64> {
        self.nights.due(&mut self.watched, now_ms)
    }

    /// Opens its history as another process does.
    fn history(&self) -> Result<History, Failure> {
        open(&self.world.path("nightly/tiny"))
    }

    /// Has a night begin that nobody ends.
    fn begin(&self) {
        self.history().unwrap().begin(Digest::of(b"job"), 5).unwrap();
    }
}

/// Opens a history as another process does.
fn open(folder: &Path) -> Result<History, Failure> {
    History::open(folder.to_owned(), |_| {})
}

#[tokio::test]
async fn a_history_that_another_process_holds_is_read_once_it_is_free() {
    let mut job = Job::new();
    job.begin();
    let other = job.history().unwrap();
    assert_eq!(job.due(4 * HOUR), None);
    assert!(job.watched.said.contains("runs a night in"), "{}", job.watched.said);
    let text = job.nights.gauges.metrics().await.unwrap();
    assert!(text.contains("graftwork_nightly_due_seconds{nightly=\"tiny\"} 93600.0"), "it may be missed: {text}");
    drop(other);
    assert_eq!(job.due(5 * HOUR), Some(5 * HOUR), "what is under way there goes on");
    assert!(job.history().is_err(), "and nobody begins another one beside it");
}

#[test]
fn a_job_file_with_errors_loses_no_night_that_is_under_way() {
    let mut job = Job::new();
    job.begin();
    job.write("name = ");
    assert_eq!(job.due(4 * HOUR), None);
    assert!(job.watched.said.contains("has errors"), "{}", job.watched.said);
    job.write(&job.text);
    assert_eq!(job.due(5 * HOUR), Some(5 * HOUR));
    assert!(job.history().is_err());
    // Where none is due any more, people may end it themselves.
    job.write(&job.text.replace("cron = \"0 2 * * *\"", "seeds = [1, 2]"));
    assert_eq!(job.due(6 * HOUR), None);
    job.history().unwrap().forget_tonight().unwrap();
    job.write(&job.text);
    assert_eq!(job.due(7 * HOUR), Some(26 * HOUR), "the next one is due at its time");
    drop(job.history().unwrap());
}

#[tokio::test]
async fn nobody_begins_a_night_beside_one_that_waits_to_go_on() {
    let mut job = Job::new();
    assert_eq!(job.due(27 * HOUR), Some(27 * HOUR));
    drop(job.history().unwrap());
    for minutes in [5, 10] {
        let now_ms = now_ms();
        // No coordinator listens there.
        job.nights.night(&mut job.watched, &job.world.path("socket")).await;
        let due_ms = job.due(now_ms).unwrap();
        assert!((minutes..minutes + 5).contains(&((due_ms - now_ms) / 60_000)), "{due_ms} after {now_ms}");
        assert!(job.history().unwrap_err().error.to_string().contains("runs a night in"));
    }
    // A file that breaks between being looked at and being read costs no night either.
    job.write("name = ");
    job.nights.night(&mut job.watched, &job.world.path("socket")).await;
    assert!(job.watched.known.as_ref().unwrap().past.unfinished);
    // Once it has ended, the history is anybody's.
    job.watched.known.as_mut().unwrap().ends(27 * HOUR, LastNight::default());
    job.write(&job.text);
    assert_eq!(job.due(28 * HOUR), Some(50 * HOUR));
    drop(job.history().unwrap());
}

#[test]
fn a_job_of_another_name_has_another_history() {
    let mut job = Job::new();
    job.begin();
    assert_eq!(job.due(4 * HOUR), Some(4 * HOUR));
    job.write(&job.text.replace("\"tiny\"", "\"other\""));
    assert_eq!(job.due(30 * HOUR), Some(50 * HOUR), "its nights begin now, and none was missed");
    drop(job.history().unwrap());
}

#[test]
fn an_older_history_elsewhere_is_told_until_there_is_one_here() {
    let world = World::new();
    let file = world.path("job.toml");
    fs::write(&file, world.parse(TASK).0).unwrap();
    let (old, new) = (world.path("an old place"), world.path("state/nightly"));
    let nights =
        ByItself { files: vec![file.clone()], histories: new.clone(), code: None, gauges: Gauges::new(), kept: None };
    assert_eq!(nights.elsewhere(&file, &old), None, "there is none");
    for night in ["000003", "000004"] {
        fs::create_dir_all(old.join("tiny/nights").join(night)).unwrap();
        fs::write(old.join("tiny/nights").join(night).join("night.json"), b"{}").unwrap();
    }
    assert_eq!(nights.elsewhere(&file, &new), None, "it is the same place");
    drop(open(&new.join("tiny")).unwrap());
    let words = nights.elsewhere(&file, &old).unwrap();
    assert!(words.starts_with("an older history of 2 nights lies in "), "{words}");
    // What it says to do brings the nights here, though the folder was made already.
    let command = words.split('`').nth(1).unwrap();
    assert!(std::process::Command::new("sh").args(["-ec", command]).status().unwrap().success(), "{command}");
    assert_eq!(numbers_in(&new.join("tiny")).unwrap(), [3, 4]);
    assert_eq!(nights.elsewhere(&file, &old), None);
}

#[test]
fn only_what_may_pass_is_tried_once_more() {
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    assert!(matches!(Trouble::of(full.into()), Trouble::Passing(_)));
    assert!(matches!(Trouble::of(anyhow!("the answers are damaged").into()), Trouble::Final(_)));
}

#[tokio::test]
async fn whoever_watches_is_told_when_a_night_is_due_and_how_the_last_one_ended() {
    let mut job = Job::new();
    let told = async |job: &Job| {
        let text = job.nights.gauges.metrics().await.unwrap();
        text.lines().filter(|line| line.starts_with("graftwork_nightly")).map(str::to_owned).collect::<Vec<_>>()
    };
    job.due(4 * HOUR);
    assert_eq!(told(&job).await, ["graftwork_nightly_due_seconds{nightly=\"tiny\"} 93600.0"], "no night has ended");
    let ended = LastNight { ended_ms: 27 * HOUR, took_ms: HOUR, good: false, regressions: 3 };
    job.watched.known.as_mut().unwrap().ends(26 * HOUR, ended);
    job.due(28 * HOUR);
    let lines = told(&job).await;
    for line in [
        "graftwork_nightly_due_seconds{nightly=\"tiny\"} 180000.0",
        "graftwork_nightly_ended_seconds{nightly=\"tiny\"} 97200.0",
        "graftwork_nightly_took_seconds{nightly=\"tiny\"} 3600.0",
        "graftwork_nightly_good{nightly=\"tiny\"} 0.0",
        "graftwork_nightly_regressions{nightly=\"tiny\"} 3.0",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}: {lines:?}");
    }
    // One that is no nightly any more is no late one.
    job.write(&job.text.replace("cron = \"0 2 * * *\"", "seeds = [1, 2]").replace("\"tiny\"", "\"other\""));
    job.due(29 * HOUR);
    assert!(told(&job).await.is_empty());
}
