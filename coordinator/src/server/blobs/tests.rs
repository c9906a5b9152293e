//! Blobs in a folder, and in an object store: in memory, and with `scripts/servers.py` in SeaweedFS.

pub(in crate::server) mod careless;
pub(in crate::server) mod failing;

use std::{
    os::unix::fs::PermissionsExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use object_store::{ObjectStoreExt as _, memory::InMemory};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::server::tests::servers;

/// Where blobs of a test lie.
struct Place {
    folder: tempfile::TempDir,
    bucket: Option<Bucket>,
}

/// One place of each kind.
fn places() -> Vec<Place> {
    let memory = Bucket::of(Arc::new(InMemory::new()), "memory");
    let buckets = [None, Some(memory)].into_iter().chain(servers::bucket().map(Some));
    buckets.map(|bucket| Place { folder: tempfile::tempdir().unwrap(), bucket }).collect()
}

impl Place {
    /// Opened as by the coordinator of this term.
    fn open(&self, term: u64) -> BlobStore {
        match &self.bucket {
            Some(bucket) => BlobStore::open_bucket(bucket.clone(), self.folder.path(), Term(term)).unwrap(),
            None => BlobStore::open(self.folder.path()).unwrap(),
        }
    }
}

/// Puts other bytes in the place of a blob's.
fn spoil(store: &BlobStore, digest: Digest, bytes: &'static [u8]) {
    match &store.shared.place {
        super::Place::Folder(folder) => fs::write(folder.path(digest), bytes).unwrap(),
        super::Place::Objects(objects) => {
            let (bucket, key) = objects.object(digest);
            objects.wait(async move { Ok(bucket.store.put(&key, bytes.into()).await.unwrap()) }).unwrap();
        }
    }
}

fn store() -> (tempfile::TempDir, BlobStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(folder.path()).unwrap();
    (folder, store)
}

#[test]
fn a_blob_is_read_as_it_was_put_and_survives_a_reopening() {
    for place in places() {
        let store = place.open(1);
        let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let digest = store.put(&bytes).unwrap();
        assert_eq!(digest, Digest::of(&bytes));
        assert_eq!(store.read(digest).unwrap(), bytes);
        assert_eq!(store.put(&bytes).unwrap(), digest);
        let empty = store.put(b"").unwrap();
        assert_eq!(store.read(empty).unwrap(), b"");
        drop(store);
        let store = place.open(2);
        assert_eq!(store.read(digest).unwrap(), bytes);
        assert_eq!(fs::read(store.local(digest).unwrap()).unwrap(), bytes);
        assert_eq!(fs::read(store.local(digest).unwrap()).unwrap(), bytes);
        assert_eq!(store.sweep(&[digest].into()).unwrap(), 1, "the empty one");
        drop(store);
        let store = place.open(3);
        assert!(store.has(digest) && !store.has(empty));
    }
}

#[test]
fn a_half_written_blob_does_not_count() {
    for place in places() {
        let store = place.open(1);
        let mut writer = store.writer().unwrap();
        writer.write(b"half").unwrap();
        assert!(!store.has(Digest::of(b"half")));
        std::mem::forget(writer);
        let store = place.open(2);
        assert!(matches!(store.read(Digest::of(b"half")), Err(BlobError::Missing(_))));
        assert_eq!(fs::read_dir(place.folder.path().join("blobs/incoming")).unwrap().count(), 0);
    }
}

#[test]
fn damaged_bytes_are_never_given_whole_and_can_be_put_again() {
    for place in places() {
        let store = place.open(1);
        let digest = store.put(b"right bytes").unwrap();
        spoil(&store, digest, b"wrong bytes");
        let mut reader = store.reader(digest).unwrap();
        assert_eq!(reader.next(6).unwrap().unwrap(), b"wrong ");
        assert!(matches!(reader.next(6), Err(BlobError::Damaged { .. })));
        assert!(!store.has(digest));
        store.put(b"right bytes").unwrap();
        assert_eq!(store.read(digest).unwrap(), b"right bytes");
        assert_eq!(place.open(2).read(digest).unwrap(), b"right bytes");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_a_clean_error_and_leaves_nothing() {
    let (folder, store) = store();
    let incoming = folder.path().join("blobs/incoming");
    fs::remove_dir(&incoming).unwrap();
    fs::write(&incoming, b"not a folder").unwrap();
    let error = store.put(b"bytes").unwrap_err().to_string();
    assert!(error.contains("incoming"), "{error}");
    assert!(!store.has(Digest::of(b"bytes")));
    // The same for a folder without the right to write, where the user is not root.
    fs::remove_file(&incoming).unwrap();
    fs::create_dir(&incoming).unwrap();
    fs::set_permissions(&incoming, fs::Permissions::from_mode(0o500)).unwrap();
    if !rustix::process::geteuid().is_root() {
        assert!(matches!(store.put(b"bytes"), Err(BlobError::Io { .. })));
    }
    fs::set_permissions(&incoming, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(store.put(b"bytes").is_ok());
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let error = io_error(Path::new("/x"))(io::Error::from_raw_os_error(28));
    assert!(matches!(error, BlobError::Full { .. }));
    let full = File::options().write(true).open("/dev/full");
    if let Ok(mut full) = full {
        let error = full.write_all(b"x").map_err(io_error(Path::new("/dev/full"))).unwrap_err();
        assert!(error.to_string().contains("is full"), "{error}");
    }
}

#[test]
fn a_blob_above_the_bound_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::with_limit(folder.path(), 4).unwrap();
    assert!(store.put(b"1234").is_ok());
    assert!(matches!(store.put(b"12345"), Err(BlobError::TooLarge { limit: 4 })));
}

#[test]
fn what_was_put_stays_until_a_fact_refers_to_it() {
    for place in places() {
        let store = place.open(1);
        let digest = store.put(b"checkpoint").unwrap();
        store.put(b"checkpoint").unwrap();
        assert!(!store.discard(digest).unwrap());
        store.unpin(digest);
        assert!(!store.discard(digest).unwrap(), "one of two puts is still open");
        store.unpin(digest);
        assert!(store.discard(digest).unwrap());
        assert!(!store.has(digest));
    }
}

#[test]
fn what_a_request_put_is_told_when_the_last_of_its_stores_goes() {
    for place in places() {
        let store = place.open(1);
        let (tell, told) = std::sync::mpsc::channel();
        let noting = store.noting(move |put| tell.send(put).unwrap());
        let clone = noting.clone();
        let put = [noting.put(b"one").unwrap(), clone.put(b"two").unwrap()];
        store.put(b"of nobody's request").unwrap();
        drop(noting);
        assert!(told.try_recv().is_err());
        drop(clone);
        assert_eq!(told.try_recv().unwrap(), put);
    }
}

#[test]
fn a_sweep_keeps_what_is_referred_to_and_what_is_pinned() {
    for place in places() {
        let store = place.open(1);
        let [kept, pinned, gone] = ["kept", "pinned", "gone"].map(|text| store.put(text.as_bytes()).unwrap());
        [kept, gone].iter().for_each(|digest| store.unpin(*digest));
        assert_eq!(store.sweep(&[kept].into()).unwrap(), 1);
        assert_eq!([kept, pinned, gone].map(|digest| store.has(digest)), [true, true, false]);
        drop(store);
        assert_eq!(place.open(2).sweep(&[kept].into()).unwrap(), 1, "no pin survives a start");
        assert!(!place.open(3).has(pinned));
    }
}

/// Waits until the bucket holds so many objects.
fn wait_for_objects(bucket: &Bucket, count: usize) {
    let began = Instant::now();
    let there = || {
        let listed = async { futures::StreamExt::count(bucket.store.list(Some(&bucket.prefix))).await };
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(listed)
    };
    while there() != count {
        assert!(began.elapsed() < Duration::from_secs(10), "{} objects", there());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_is_let_go_leaves_the_store() {
    for bucket in places().into_iter().filter_map(|place| place.bucket) {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open_bucket(bucket.clone(), folder.path(), Term(1)).unwrap();
        wait_for_objects(&bucket, 0);
        let digest = store.put(b"bytes").unwrap();
        wait_for_objects(&bucket, 1);
        store.unpin(digest);
        assert!(store.discard(digest).unwrap());
        assert!(!store.has(digest), "at once");
        wait_for_objects(&bucket, 0);
    }
}

#[test]
fn a_coordinator_that_wakes_up_removes_nothing_of_its_successor() {
    for bucket in places().into_iter().filter_map(|place| place.bucket) {
        let [mine, next] = [1, 2].map(|_| tempfile::tempdir().unwrap());
        let frozen = BlobStore::open_bucket(bucket.clone(), mine.path(), Term(1)).unwrap();
        let [digest, kept] = [b"one", b"two"].map(|bytes| frozen.put(bytes).unwrap());
        let leader = BlobStore::open_bucket(bucket.clone(), next.path(), Term(2)).unwrap();
        assert_eq!(leader.sweep(&[kept].into()).unwrap(), 1);
        assert_eq!(leader.put(b"one").unwrap(), digest);
        frozen.unpin(digest);
        assert!(frozen.discard(digest).unwrap());
        assert!(matches!(frozen.read(digest), Err(BlobError::Missing(_))));
        wait_for_objects(&bucket, 2);
        assert_eq!(leader.read(digest).unwrap(), b"one");
        // A late upload of it takes nothing's place, and goes with the next start.
        assert_eq!(frozen.put(b"one").unwrap(), digest);
        wait_for_objects(&bucket, 3);
        let third = BlobStore::open_bucket(bucket.clone(), next.path(), Term(3)).unwrap();
        assert_eq!(third.sweep(&[digest, kept].into()).unwrap(), 1);
        assert_eq!(third.read(digest).unwrap(), b"one");
        wait_for_objects(&bucket, 2);
    }
}

#[test]
fn what_is_put_again_under_a_later_term_outlives_what_a_coordinator_that_wakes_up_lets_go() {
    for bucket in places().into_iter().filter_map(|place| place.bucket) {
        let [mine, next] = [1, 2].map(|_| tempfile::tempdir().unwrap());
        let frozen = BlobStore::open_bucket(bucket.clone(), mine.path(), Term(1)).unwrap();
        let digest = frozen.put(b"one").unwrap();
        let leader = BlobStore::open_bucket(bucket.clone(), next.path(), Term(2)).unwrap();
        // It is there, and another worker has trained the same bytes meanwhile.
        assert!(leader.has(digest));
        assert_eq!(leader.put(b"one").unwrap(), digest);
        assert_eq!(leader.put(b"one").unwrap(), digest);
        wait_for_objects(&bucket, 2);
        frozen.unpin(digest);
        assert!(frozen.discard(digest).unwrap());
        wait_for_objects(&bucket, 1);
        assert_eq!(leader.read(digest).unwrap(), b"one");
    }
}

/// A worker speaks to the next coordinator of what it has put to the one before.
#[test]
fn what_a_coordinator_adopts_outlives_what_the_one_before_lets_go() {
    for bucket in places().into_iter().filter_map(|place| place.bucket) {
        let [mine, next] = [1, 2].map(|_| tempfile::tempdir().unwrap());
        let frozen = BlobStore::open_bucket(bucket.clone(), mine.path(), Term(1)).unwrap();
        let (spoken_of, gone) = (frozen.put(b"one").unwrap(), frozen.put(b"two").unwrap());
        let leader = BlobStore::open_bucket(bucket.clone(), next.path(), Term(2)).unwrap();
        frozen.unpin(gone);
        assert!(frozen.discard(gone).unwrap());
        wait_for_objects(&bucket, 1);
        leader.adopt(&[spoken_of, gone]).unwrap();
        assert!(leader.has(spoken_of) && !leader.has(gone), "it is put again");
        wait_for_objects(&bucket, 2);
        frozen.unpin(spoken_of);
        assert!(frozen.discard(spoken_of).unwrap());
        wait_for_objects(&bucket, 1);
        assert_eq!(leader.read(spoken_of).unwrap(), b"one");
        leader.adopt(&[spoken_of]).unwrap();
        wait_for_objects(&bucket, 1);
    }
}

#[test]
fn an_object_that_vanished_is_missing_and_can_be_put_again() {
    for place in places().into_iter().filter(|place| place.bucket.is_some()) {
        let store = place.open(1);
        let digest = store.put(b"bytes").unwrap();
        let super::Place::Objects(objects) = &store.shared.place else { panic!() };
        let vanish = || {
            let (bucket, key) = objects.object(digest);
            let deleted = async move { bucket.store.delete(&key).await.map_err(|error| bucket.error(&key, &error)) };
            objects.wait(deleted).unwrap();
        };
        vanish();
        assert_eq!(store.put(b"bytes").unwrap(), digest);
        assert_eq!(store.read(digest).unwrap(), b"bytes");
        vanish();
        assert!(matches!(store.read(digest), Err(BlobError::Missing(_))));
        assert!(!store.has(digest));
    }
}

#[test]
fn a_large_blob_travels_in_parts() {
    for place in places().into_iter().filter(|place| place.bucket.is_some()) {
        let store = place.open(1);
        let mut writer = store.writer().unwrap();
        let piece: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
        for number in 0..66_u8 {
            writer.write(&[&[number], &piece[1..]].concat()).unwrap();
        }
        let digest = writer.finish().unwrap();
        place.open(2).verify(digest).unwrap();
    }
}

#[tokio::test]
async fn a_store_that_does_not_keep_its_word_is_refused() {
    for (store, expected) in [
        (Arc::new(careless::Careless::forgetful()), "8 of 8 writers created the same object"),
        (Arc::new(careless::Careless::hasty()), "writers created the same object"),
    ] {
        let error = Bucket::of(store, "s3://it/blobs").prove().await.unwrap_err();
        assert!(matches!(error, BlobError::Unfit { .. }), "{error}");
        let error = error.to_string();
        assert!(error.starts_with("s3://it/blobs does not keep its word") && error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_store_that_kept_its_word_is_believed_and_seen_again() {
    let folder = tempfile::tempdir().unwrap();
    let fit = |place: &str| Bucket::of(Arc::new(InMemory::new()), place);
    let unfit = || Bucket::of(Arc::new(careless::Careless::forgetful()), "s3://it/blobs");
    let refused = unfit().believe(folder.path()).await.err().unwrap();
    assert!(matches!(refused, BlobError::Unfit { .. }), "{refused}");
    // What was refused is believed no more than what was never seen.
    assert!(fit("s3://it/blobs").believe(folder.path()).await.unwrap().is_none());
    fit("s3://it/blobs").believe(folder.path()).await.unwrap().expect("a belief").prove_again().await.unwrap();
    let belief = unfit().believe(folder.path()).await.unwrap().expect("a belief");
    assert!(fit("s3://another/blobs").believe(folder.path()).await.unwrap().is_none(), "a store is not another one");
    assert!(fit("s3://it/blobs").believe(folder.path()).await.unwrap().is_none(), "one is noted at a time");
    assert!(matches!(belief.prove_again().await, Err(BlobError::Unfit { .. })));
    assert!(matches!(unfit().believe(folder.path()).await, Err(BlobError::Unfit { .. })));
}

#[test]
fn plain_http_beyond_this_machine_is_refused() {
    let at = |endpoint: &str| Bucket::open_at("s3://bucket/prefix", None, Some(endpoint));
    for endpoint in
        ["http://10.0.0.7:8333", "http://store.example", "http://127.0.0.1.example:80", "http://[fe80::1]:80/x"]
    {
        let error = at(endpoint).unwrap_err().to_string();
        assert!(error.contains("plain HTTP beyond this machine") && error.contains("AWS_ALLOW_HTTP=true"), "{error}");
        let error = Bucket::open_at("gs://bucket/prefix", None, Some(endpoint)).unwrap_err().to_string();
        assert!(error.contains("plain HTTP beyond this machine") && error.contains("set ALLOW_HTTP=true"), "{error}");
    }
    for endpoint in ["http://127.0.0.1:8333", "http://localhost", "http://[::1]:8333/", "https://store.example"] {
        at(endpoint).unwrap();
    }
}

/// A store of each kind, with keys of a form that it takes.
const STORES: [(&str, &str); 3] = [
    ("s3://bucket/prefix", "key:hunter2"),
    (
        "gs://bucket/prefix",
        r#"{"private_key": "hunter2", "private_key_id": "2", "client_email": "a@b.c", "disable_oauth": true}"#,
    ),
    ("az://bucket/prefix", "account:aHVudGVyMg=="),
];

#[test]
fn an_address_that_is_none_is_not_taken_for_a_wrong_key() {
    for (url, keys) in STORES {
        for endpoint in
            ["store.example", "store.example:8333", "https://hunter2 .example", "ftp://hunter2.example", "https://"]
                .into_iter()
                .chain(["https://me:hunter2@store.example", "http://localhost:hunter2@store.example"])
                .chain(["https://store.example/?sig=hunter2", "https://store.example/#hunter2"])
        {
            let error = Bucket::open_at(url, Some(keys), Some(endpoint)).unwrap_err().to_string();
            assert!(error.contains("is none: write https://HOST") && !error.contains("hunter2"), "{endpoint}: {error}");
        }
        Bucket::open_at(url, Some(keys), Some("https://store.example/")).unwrap();
    }
}

/// The address of a server that gives every request this answer.
async fn answering(status: &str, body: &str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 8 << 10];
            assert!(stream.read(&mut bytes).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            // What is left unread would cut the answer off.
            while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
        }
    });
    endpoint
}

/// What comes of creating an object, and of looking for some.
async fn refusals(bucket: &Bucket) -> [String; 2] {
    let key = bucket.prefix.clone().join("object");
    let created = bucket.create(&key, "bytes".into()).await.unwrap_err();
    let listed = bucket.store.list(Some(&bucket.prefix)).try_collect::<Vec<_>>().await.unwrap_err();
    [(&key, &created), (&bucket.prefix, &listed)].map(|(key, error)| bucket.error(key, error).to_string())
}

#[tokio::test]
async fn a_store_that_refuses_is_told_with_what_to_mend() {
    let (absent, keys_refused) = ("there is no such ", "check what the variable of --blobs-credentials-env holds");
    for (url, keys) in STORES {
        for (status, body, expected) in [
            ("404 Not Found", "<Error><Code>NoSuchBucket</Code></Error>", absent),
            ("404 Not Found", "<Error><Code>ContainerNotFound</Code></Error>", absent),
            ("404 Not Found", "<html>another server</html>", absent),
            ("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>", keys_refused),
            ("401 Unauthorized", "", keys_refused),
        ] {
            let endpoint = answering(status, body).await;
            let bucket = Bucket::open_at(url, Some(keys), Some(&endpoint)).unwrap();
            for said in refusals(&bucket).await {
                assert!(said.contains(expected) && said.contains(status) && !said.contains("hunter2"), "{said}");
            }
        }
    }
}

#[tokio::test]
async fn a_store_that_is_not_there_is_told_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for (url, keys) in STORES {
        let bucket = Bucket::open_at(url, Some(keys), Some(&endpoint)).unwrap();
        let key = bucket.prefix.clone().join("object");
        let error = bucket.create(&key, "bytes".into()).await.unwrap_err();
        let said = bucket.error(&key, &error).to_string();
        assert!(said.contains("the store cannot be reached: check the network"), "{said}");
    }
}

#[test]
fn keys_are_shown_nowhere() {
    let at = |url: &str, keys: Option<&str>| Bucket::open_at(url, keys, Some("http://127.0.0.1:1"));
    for (url, keys) in [
        ("s3://me:hunter2@bucket/prefix", None),
        ("s3://bucket/prefix?key=hunter2", None),
        ("s3://bucket", Some("key:hunter2")),
        ("gs://bucket/prefix", Some("key:hunter2")),
        ("gs://bucket/prefix", Some(r#"{"private_key": "hunter2"}"#)),
        ("az://container/prefix", Some("hunter2")),
        ("az://container/prefix", Some("account:hunter2 ")),
        ("az://container/prefix", None),
        ("ftp://bucket/hunter2", None),
        ("s3://bucket/prefix", Some("hunter2")),
    ] {
        let error = at(url, keys).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
    for (url, keys) in STORES {
        let bucket = at(url, Some(keys)).unwrap();
        assert_eq!(format!("{bucket:?}"), format!("Bucket {{ place: {url:?}, .. }}"));
    }
}
