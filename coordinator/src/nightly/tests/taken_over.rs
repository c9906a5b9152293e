//! A history that is kept with a coordinator's state: whoever takes over, with whatever folder, goes on with it.

use std::fs;

use graftwork_shared::id::JobId;
use tempfile::TempDir;

use super::{
    super::{history::History, kept::listed},
    *,
};
use crate::{
    cli::Failure,
    server::{
        Histories,
        tests::{Place, fused_plan},
    },
};

/// Opens it with a folder of its own, as each host has one.
fn open(host: &Path, histories: &Histories) -> Result<History, Failure> {
    History::open_kept(host.join("mail"), |_| {}, histories.clone())
}

/// Does what blocks, as nights do on their thread.
async fn blocking(work: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_over_goes_on_where_a_history_stands() {
    let place = Place::new(fused_plan());
    let hosts = TempDir::new().unwrap();
    let job = JobId::of(&Digest::of(b"job"));
    let host = |name: &str| hosts.path().join(name);
    let running = place.start().await;
    let (histories, one, first) = (running.histories(), host("one"), job.clone());
    blocking(move || {
        let history = open(&one, &histories).unwrap();
        let mut tonight = history.begin(Digest::of(b"measured"), 5).unwrap();
        history.submits(&mut tonight, first).unwrap();
        assert_eq!(history.hub("000001-a"), "nights://mail/tonight/hub/000001-a");
        fs::create_dir_all(one.join("mail/tonight/hub/000001-a")).unwrap();
        let (night, book) = night(1, &STEADY);
        fs::create_dir_all(history.folder_of(1)).unwrap();
        fs::write(history.folder_of(1).join("job.html"), "a page").unwrap();
        history.keep(&night, &book).unwrap();
        // What is of this host alone.
        fs::create_dir_all(history.compared_folder()).unwrap();
        fs::write(history.compared_folder().join("nightly.html"), "compared").unwrap();
    })
    .await;
    drop(running);

    let running = place.start().await;
    let (histories, two, first) = (running.histories(), host("two"), job.clone());
    blocking(move || {
        let history = open(&two, &histories).unwrap();
        assert_eq!(
            history.begin(Digest::of(b"measured"), 9).unwrap().resumed,
            0,
            "the first night was kept: a second one"
        );
        history.forget_tonight().unwrap();
        assert_eq!((history.numbers().unwrap(), history.abandoned().unwrap()), (vec![1], vec![first.clone()]));
        let kept = history.night(1).unwrap();
        assert_eq!(history.book(&kept).unwrap(), night(1, &STEADY).1);
        assert_eq!(fs::read_to_string(history.folder_of(1).join("job.html")).unwrap(), "a page");
        assert!(!history.compared_folder().exists());
        history.forgotten(&first).unwrap();
        // A second night, and one that is not kept any more.
        let (second, book) = night(2, &STEADY);
        history.keep(&judged(second, true, &[]), &book).unwrap();
        history.prune(&history.nights().unwrap(), 1).unwrap();
        assert_eq!(history.numbers().unwrap(), [2]);
    })
    .await;
    // The folder of the first host is made what the state holds, whatever lay there.
    let (histories, one) = (running.histories(), host("one"));
    blocking(move || {
        let history = open(&one, &histories).unwrap();
        assert_eq!((history.numbers().unwrap(), history.known().unwrap().len()), (vec![2], 2));
        assert!(history.abandoned().unwrap().is_empty() && !history.folder_of(1).join("job.html").exists());
        assert!(!history.tonight_folder().exists() && history.compared_folder().join("nightly.html").exists());
        let files: Vec<String> = listed(&one.join("mail")).unwrap().into_keys().collect();
        assert_eq!(files, ["nights/000002/answers.parquet", "nights/000002/night.json", "pruned/000001.json"]);
        assert_eq!(histories.files("mail").unwrap().into_keys().collect::<Vec<_>>(), files);
        assert!(histories.files("other").unwrap().is_empty());
        drop(history);
        // Nobody begins a night in the copy.
        let copy = History::open(one.join("mail"), |_| {}).unwrap();
        let refused = copy.check_own().unwrap_err();
        assert!(refused.error.to_string().contains("is a copy of a history"), "{}", refused.error);
    })
    .await;
    let (histories, own) = (running.histories(), host("own"));
    blocking(move || {
        // A history of its own is not written over.
        History::open(own.join("mail"), |_| {}).unwrap().begin(Digest::of(b"measured"), 5).unwrap();
        let refused = open(&own, &histories).unwrap_err();
        assert!(refused.error.to_string().contains("holds a history of its own"), "{}", refused.error);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_bytes_are_lost_is_one_that_is_damaged_and_no_number_is_given_twice() {
    let place = Place::new(fused_plan()).with_files();
    let hosts = TempDir::new().unwrap();
    let running = place.start().await;
    let (histories, host) = (running.histories(), hosts.path().join("one"));
    let blobs = place.folder.path().join("state/blobs");
    blocking(move || {
        let history = open(&host, &histories).unwrap();
        for number in [1, 2] {
            let (night, book) = night(number, &STEADY);
            history.keep(&night, &book).unwrap();
        }
        drop(history);
        fs::remove_dir_all(host.join("mail")).unwrap();
        let files = histories.files("mail").unwrap();
        for (lost, how) in [("nights/000001/answers.parquet", "gone"), ("nights/000002/night.json", "damaged")] {
            let name = files[lost].to_string();
            let path = blobs.join(&name[..2]).join(&name);
            if how == "gone" { fs::remove_file(&path).unwrap() } else { fs::write(&path, "{}").unwrap() }
        }
        let history = open(&host, &histories).unwrap();
        assert_eq!(history.numbers().unwrap(), [1, 2], "and the next one is the third");
        let damaged = history.book(&history.night(1).unwrap()).unwrap_err();
        assert!(damaged.to_string().contains("are damaged"), "{damaged}");
        let damaged = history.night(2).unwrap_err();
        assert!(damaged.error.to_string().contains("night.json is damaged"), "{}", damaged.error);
        // The state refers to no bytes any more that nobody has.
        history.settle().unwrap();
        let now = histories.files("mail").unwrap();
        assert!(now.len() == files.len() && now["nights/000002/night.json"] == Digest::of(b""), "{now:?}");
    })
    .await;
}
