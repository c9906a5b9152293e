//! Nights on the disk: what is damaged is told and stops nothing, and what is no longer kept leaves its numbers.

use std::fs;

use arrow_array::{
    cast::AsArray as _,
    types::{Float64Type, UInt64Type},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;
use crate::{
    nightly::{
        conclude::{Concluded, Wanted, conclude},
        history::History,
    },
    run::{Lost, Recovery},
};

fn ignore(_: &str) {}

/// A history of nights that were all good but the last, which was not compared yet.
fn kept(folder: &std::path::Path, nights: u64) -> History {
    let history = History::open(folder.to_owned(), ignore).unwrap();
    for number in 1..=nights {
        let (night, book) = night(number, &STEADY);
        let night = if number < nights { judged(night, true, &[]) } else { night };
        history.keep(&night, &book).unwrap();
    }
    history
}

async fn concluded(history: &History, number: u64, keep: u32) -> Concluded {
    let nightly = Nightly { keep, ..Nightly::default() };
    let wanted = Wanted { number, against: None, again: false };
    conclude(history, wanted, &nightly, &commands()).await.unwrap()
}

/// What is told of a night but for texts of rows, which lie nowhere here.
fn told(concluded: &Concluded) -> Vec<String> {
    let told = concluded.view.problems.iter().filter(|problem| !problem.message.contains("without their texts"));
    told.map(|problem| format!("{} {}", problem.name, problem.message)).collect()
}

#[tokio::test]
async fn the_newest_good_night_that_can_be_read_is_the_baseline() {
    let folder = tempfile::tempdir().unwrap();
    let history = kept(folder.path(), 4);
    let answers = history.folder_of(3).join("answers.parquet");
    let whole = fs::read(&answers).unwrap();
    for at in [0, whole.len() / 3, whole.len() - 1] {
        let mut broken = whole.clone();
        broken[at] ^= 0x10;
        fs::write(&answers, broken).unwrap();
        let book = history.book(&history.night(3).unwrap()).unwrap_err();
        assert!(book.to_string().contains("000003/answers.parquet are damaged"), "{book}");
    }
    fs::remove_file(&answers).unwrap();
    let four = concluded(&history, 4, 30).await;
    assert_eq!(four.view.baseline.as_ref().map(|head| head.number), Some(2));
    assert!(told(&four)[0].starts_with("night 3 is no longer compared with: the answers in "), "{:?}", told(&four));
    assert_eq!(four.view.outcome, NightOutcome::Good, "{:?}", four.view.scores);
    let stored = history.night(4).unwrap().judged.unwrap();
    assert_eq!((stored.good, stored.baseline), (true, Some(2)));
}

#[tokio::test]
async fn a_night_whose_own_answers_are_damaged_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let history = kept(folder.path(), 2);
    fs::write(history.folder_of(2).join("answers.parquet"), b"PAR1").unwrap();
    let two = concluded(&history, 2, 30).await;
    assert_eq!(two.view.outcome, NightOutcome::Regressed);
    assert!(told(&two)[0].starts_with("night 2 cannot be compared with any other night: "), "{:?}", told(&two));
    assert_eq!(two.view.alone.len(), 4, "its scores are told");
    let stored = history.night(2).unwrap().judged.unwrap();
    assert!(!stored.good, "it is no baseline");
    // The next one goes on with the last good one.
    let (night, book) = night(3, &STEADY);
    history.keep(&night, &book).unwrap();
    let three = concluded(&history, 3, 30).await;
    assert_eq!(three.view.baseline.as_ref().map(|head| head.number), Some(1));
    assert!(three.page.exists() && told(&three).is_empty(), "{:?}", told(&three));
}

#[tokio::test]
async fn a_damaged_night_file_takes_no_other_night_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let history = kept(folder.path(), 3);
    fs::write(history.folder_of(2).join("night.json"), b"{\"layout\":1,").unwrap();
    let three = concluded(&history, 3, 30).await;
    assert_eq!(three.view.baseline.as_ref().map(|head| head.number), Some(1));
    assert_eq!(history.next_number().unwrap(), 4);
}

#[tokio::test]
async fn nights_that_are_no_longer_kept_leave_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let history = kept(folder.path(), 5);
    let five = concluded(&history, 5, 2).await;
    assert_eq!(five.view.history.len(), 5);
    assert_eq!(history.numbers().unwrap(), [4, 5]);
    let known = history.known().unwrap();
    assert_eq!(known.iter().map(|night| night.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(known[0].job.tasks.is_empty() && !known[3].job.tasks.is_empty(), "a job is for repeating what is kept");
    assert_eq!(known[0].measurements.len(), 12);

    // Costs go over all of them, whatever `keep` is.
    let (night, book) = night(6, &STEADY);
    history.keep(&night, &book).unwrap();
    let six = concluded(&history, 6, 2).await;
    assert!(six.view.costs.iter().all(|cost| cost.values.len() == 6), "{:?}", six.view.costs);

    // A kill while a night is pruned leaves both, and it counts once; numbers that cannot be read are left out.
    fs::copy(history.folder_of(5).join("night.json"), history.pruned_folder().join("000005.json")).unwrap();
    fs::write(history.pruned_folder().join("000002.json"), b"[").unwrap();
    let known: Vec<u64> = history.known().unwrap().iter().map(|night| night.number).collect();
    assert_eq!(known, [1, 3, 4, 5, 6]);
    assert!(crate::nightly::export::export(&history, &folder.path().join("export")).is_ok());
}

#[tokio::test]
async fn the_last_good_night_that_can_be_read_stays_however_many_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let history = kept(folder.path(), 6);
    // Nights 3 to 5 were good, and nothing compares with them any more.
    for number in 3..=5 {
        fs::write(history.folder_of(number).join("answers.parquet"), b"PAR1").unwrap();
    }
    // The sixth is worse than the second one, so it is no baseline either.
    let (worse, book) = night(6, &[("a", 0.9), ("b", 0.5), ("c", 0.95), ("d", 0.7)]);
    history.keep(&worse, &book).unwrap();
    let six = concluded(&history, 6, 1).await;
    assert_eq!(six.view.outcome, NightOutcome::Regressed);
    assert_eq!(history.numbers().unwrap(), [2, 5, 6], "the last good one, and the last that can be compared with");
    let (seventh, book) = night(7, &STEADY);
    history.keep(&seventh, &book).unwrap();
    let seven = concluded(&history, 7, 1).await;
    assert_eq!(seven.view.baseline.as_ref().map(|head| head.number), Some(2));
    assert_eq!(seven.view.outcome, NightOutcome::Good, "{:?}", told(&seven));
    assert_eq!(history.numbers().unwrap(), [7], "it is one now");
}

#[tokio::test]
async fn a_removal_that_was_broken_off_goes_on_with_the_next_night() {
    let folder = tempfile::tempdir().unwrap();
    let history = kept(folder.path(), 5);
    concluded(&history, 5, 2).await;
    // A kill after the number of night 4 was written and its file removed, but not yet its folder; and one before that.
    let four = fs::read(history.folder_of(4).join("night.json")).unwrap();
    fs::write(history.pruned_folder().join("000004.json"), four).unwrap();
    fs::remove_file(history.folder_of(4).join("night.json")).unwrap();
    // What was never kept is nobody's to remove here: the night under way may be written there.
    let unknown = history.folder_of(6);
    fs::create_dir_all(&unknown).unwrap();
    let (six, book) = night(7, &STEADY);
    history.keep(&six, &book).unwrap();
    concluded(&history, 7, 2).await;
    assert!(!history.folder_of(4).exists() && unknown.exists());
    assert_eq!(history.numbers().unwrap(), [5, 7]);
    let known: Vec<u64> = history.known().unwrap().iter().map(|night| night.number).collect();
    assert_eq!(known, [1, 2, 3, 4, 5, 7]);
}

#[tokio::test]
async fn nights_that_cannot_be_removed_keep_no_night_from_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let history = kept(folder.path(), 3);
    fs::create_dir_all(history.pruned_folder().join("000001.json/in the way")).unwrap();
    let three = concluded(&history, 3, 1).await;
    assert_eq!(three.view.outcome, NightOutcome::Good);
    assert_eq!(history.numbers().unwrap(), [1, 2, 3], "they stay until they can be");
}

#[tokio::test]
async fn looking_again_changes_nothing_that_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let history = kept(folder.path(), 3);
    let three = concluded(&history, 3, 30).await;
    let said = fs::read(&three.page).unwrap();
    let before = history.night(3).unwrap();
    let nightly = Nightly { false_alarm: 0.3, ..Nightly::default() };
    let wanted = Wanted { number: 3, against: Some(1), again: true };
    let again = conclude(&history, wanted, &nightly, &commands()).await.unwrap();
    assert!(again.page.starts_with(history.compared_folder()), "{}", again.page.display());
    assert_eq!((fs::read(&three.page).unwrap(), history.night(3).unwrap()), (said, before));
}

/// A repository with a job file, and its commits, the oldest first.
fn repository(folder: &std::path::Path, commits: usize) -> Vec<String> {
    let git = |words: &[&str]| {
        let mut command = std::process::Command::new("git");
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(variable);
        }
        let said =
            command.arg("-C").arg(folder).args(["-c", "user.name=t", "-c", "user.email=t@t"]).args(words).output();
        let said = said.unwrap();
        assert!(said.status.success(), "{words:?}: {said:?}");
        String::from_utf8(said.stdout).unwrap()
    };
    git(&["init", "--quiet"]);
    fs::write(folder.join("job.toml"), "").unwrap();
    for number in 1..=commits {
        git(&["commit", "--quiet", "--allow-empty", "-m", &format!("Change {number}")]);
    }
    git(&["rev-list", "--reverse", "HEAD"]).lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn commits_between_which_a_cost_grew_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let commits = repository(folder.path(), 40);
    let history = History::open(folder.path().join("history"), ignore).unwrap();
    let book = night(20, &[("a", 0.9), ("b", 0.9)]).1;
    for mut night in nights_that_grow(slower_a) {
        // Two commits a day.
        night.code.name.clone_from(&commits[2 * usize::try_from(night.number).unwrap() - 1]);
        night.judged = night.judged.filter(|_| night.number < 20);
        history.keep(&night, &book).unwrap();
    }
    let commands = Commands::of_night(&folder.path().join("job.toml"), "graftwork nightly job.toml", 20);
    let wanted = Wanted { number: 20, against: None, again: false };
    let view = conclude(&history, wanted, &Nightly::default(), &commands).await.unwrap().view;
    let cost = &view.costs[0];
    assert!(cost.fails() && view.commits.is_empty(), "{:?}", view.costs);
    let told = [30, 31].map(|at: usize| format!("{} Change {}", &commits[at][..10], at + 1));
    assert_eq!(cost.commits, told, "after those of night 15, up to those of night 16");
    assert!(view.costs[1..].iter().all(|cost| cost.commits.is_empty()), "{:?}", view.costs);
    let listed = format!("  commits between night 15 and night 16:\n    {}\n    {}\n", told[0], told[1]);
    assert!(output::terminal(&view, false).contains(&listed), "{}", output::terminal(&view, false));
    let page = fs::read_to_string(history.folder_of(20).join("nightly.html")).unwrap();
    assert!(page.contains("2 commits between night 15 and night 16") && page.contains("--repeat 20:a"), "{page}");
}

#[test]
fn the_cost_and_the_recovery_times_of_whole_nights_are_exported_as_parquet() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::open(folder.path().join("history"), ignore).unwrap();
    let (mut first, book) = night(1, &STEADY);
    let recovery = |lost, stage: &str, seconds| Recovery { lost, stage: stage.parse().unwrap(), seconds };
    first.recoveries = vec![recovery(Lost::Attempt, "a-1", 2.5), recovery(Lost::Coordinator, "b-2", 0.75)];
    first.usage = Usage { core_seconds: 61.5, gpu_seconds: 3.5, peak_memory_bytes: 7 << 20, ..Usage::default() };
    history.keep(&judged(first, true, &[]), &book).unwrap();
    let (second, book) = night(2, &STEADY);
    history.keep(&second, &book).unwrap();
    let export = folder.path().join("export");
    assert_eq!(crate::nightly::export::export(&history, &export).unwrap(), 2);

    let file = fs::File::open(export.join("nights.parquet")).unwrap();
    let mut batches = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let batch = batches.next().unwrap().unwrap();
    assert!(batches.next().is_none() && batch.num_rows() == 2, "a row a night");
    let numbers = |column: &str| batch[column].as_primitive::<Float64Type>().values().to_vec();
    assert_eq!(numbers("wall_seconds"), [60.0, 60.0]);
    assert_eq!((numbers("core_seconds"), numbers("gpu_seconds")), (vec![61.5, 60.0], vec![3.5, 0.0]));
    let peaks = batch["peak_memory_bytes"].as_primitive::<UInt64Type>().values().to_vec();
    assert_eq!(peaks, [7 << 20, 400 << 20]);
    let good: Vec<Option<bool>> = batch["good"].as_boolean().iter().collect();
    assert_eq!(good, [Some(true), None], "the second one was not compared yet");
    let of = |column: &str, night: usize| batch[column].as_list::<i32>().value(night);
    let words =
        |column, night| of(column, night).as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words("recovery_lost", 0), ["attempt", "coordinator"]);
    assert_eq!(words("recovery_stage", 0), ["a-1", "b-2"]);
    assert_eq!(of("recovery_seconds", 0).as_primitive::<Float64Type>().values().to_vec(), [2.5, 0.75]);
    assert!(of("recovery_seconds", 1).is_empty() && words("recovery_lost", 1).is_empty(), "nothing was lost");
}
