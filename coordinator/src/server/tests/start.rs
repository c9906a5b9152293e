//! What a coordinator refuses to start with, and what it says.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use graftwork_proto::{
    CoordinatorMessage, Hello, WorkerMessage,
    v1::{self, jobs_client::JobsClient},
};
use object_store::{ObjectStore, memory::InMemory};
use tonic::Code;

use super::{
    super::{
        Auth, BlobError, Bucket, Listen, ServerError,
        blobs::tests::{
            careless::Careless,
            failing::{Failing, Request},
        },
        holder,
        input::CoordinatorView,
        start,
    },
    Place,
    fixture::{plan, stage},
    peer::{Peer, connect, get, hello, put_as, submit},
};

fn place() -> Place {
    Place::new(plan("one", vec![stage("a", &[], 10)]))
}

async fn refusal(place: &Place, listen: Vec<Listen>) -> ServerError {
    let mut options = place.options();
    options.listen = listen;
    options.auth = Auth::Token("a secret of some length".to_owned());
    match start(options).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn addresses_that_are_not_private_are_refused() {
    let place = place();
    let error = refusal(&place, vec![Listen::Tcp("0.0.0.0:0".parse().unwrap())]).await;
    assert!(error.to_string().starts_with("plain text on 0.0.0.0:0 would show tokens"), "{error}");
    assert!(matches!(refusal(&place, Vec::new()).await, ServerError::NoAddress));
    let long = place.folder.path().join("x".repeat(120));
    assert!(matches!(refusal(&place, vec![Listen::Unix(long)]).await, ServerError::LongPath { limit: 107, .. }));
    let open = place.folder.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let error = refusal(&place, vec![Listen::Unix(open.join("socket"))]).await;
    assert!(
        error.to_string().ends_with("is open to others (mode 755): use a folder of its own with mode 700"),
        "{error}"
    );
}

#[tokio::test]
async fn tcp_is_not_served_without_a_token() {
    let place = place();
    let mut options = place.options();
    options.listen.push(Listen::Tcp("127.0.0.1:0".parse().unwrap()));
    let Err(error) = start(options).await else { panic!("it started") };
    assert!(error.to_string().starts_with("every user of this machine can reach 127.0.0.1:0"), "{error}");
    assert!(error.to_string().contains("--token-env"), "{error}");
}

#[tokio::test]
async fn a_unix_socket_is_for_this_user_alone() {
    let place = place();
    let running = place.start().await;
    let [Listen::Unix(socket)] = running.addresses() else { panic!() };
    assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(socket.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = refusal(&place(), vec![Listen::Tcp(address)]).await;
    assert!(error.to_string().starts_with(&format!("cannot listen on http://{address}: ")), "{error}");
}

#[tokio::test]
async fn a_second_coordinator_is_refused_and_learns_where_the_first_listens() {
    let place = place();
    let running = place.start().await;
    let state = place.folder.path().join("state");
    let Err(ServerError::Locked { holder: refused, .. }) = start(place.options()).await else { panic!() };
    assert_eq!((refused.pid, refused.addresses.as_slice()), (std::process::id(), running.addresses()));
    assert_eq!(holder(&state).unwrap(), Some(refused));
    running.stop("done").await.unwrap();
    assert_eq!(holder(&state).unwrap(), None);
}

#[tokio::test]
async fn on_tcp_everyone_must_show_the_token() {
    let place = place();
    let running = place
        .start_with(|options| {
            options.listen = vec![Listen::Tcp("127.0.0.1:0".parse().unwrap())];
            options.auth = Auth::Token("a secret of some length".to_owned());
        })
        .await;
    let channel = connect(&running).await;
    let ask = |token: Option<&'static str>| {
        let mut request = tonic::Request::new(v1::Empty {});
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut client = JobsClient::new(channel.clone());
        async move { client.coordinator(request).await.map(|reply| reply.into_inner().json) }
    };
    assert_eq!(ask(None).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(ask(Some("guess")).await.unwrap_err().code(), Code::Unauthenticated);
    let refused = Peer::say(&channel, hello()).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let seen: CoordinatorView = serde_json::from_str(&ask(Some("a secret of some length")).await.unwrap()).unwrap();
    assert_eq!((seen.workers.len(), seen.pid), (0, std::process::id()));
}

#[tokio::test]
async fn a_damaged_journal_stops_the_start_with_its_message() {
    let place = Place { database: None, ..place() };
    place.start().await.stop("done").await.unwrap();
    fs::write(place.folder.path().join("state/journal.sqlite"), b"").unwrap();
    let Err(error) = start(place.options()).await else { panic!() };
    assert!(error.to_string().contains("journal.sqlite is damaged (it is empty)"), "{error}");
}

#[tokio::test]
async fn each_start_takes_the_next_term() {
    let place = place();
    for term in 1..4 {
        let running = place.start().await;
        assert_eq!(Peer::join(&connect(&running).await).await.term.0, term);
    }
}

#[tokio::test]
async fn a_store_that_breaks_its_word_later_ends_the_coordinator_and_is_refused_from_then_on() {
    let over = |store: Arc<dyn ObjectStore>| Place { bucket: Some(Bucket::of(store, "s3://it/blobs")), ..place() };
    let mut place = over(Arc::new(InMemory::new()));
    place.start().await.stop("done").await.unwrap();
    place.bucket = over(Arc::new(Careless::forgetful())).bucket;
    let mut running = place.start().await;
    let ended = tokio::time::timeout(Duration::from_secs(30), running.wait()).await.unwrap();
    assert!(matches!(ended, ServerError::Blobs(BlobError::Unfit { .. })), "{ended}");
    drop(running);
    let Err(refused) = start(place.options()).await else { panic!("it started") };
    assert!(matches!(refused, ServerError::Blobs(BlobError::Unfit { .. })), "{refused}");
}

/// Workers may still speak of blobs that the coordinator before took: each start copies them to names of its own.
#[tokio::test]
async fn an_object_store_that_fails_while_blobs_are_taken_over_ends_the_start_and_nothing_is_lost() {
    for (request, after) in [
        (Request::List, 0),
        (Request::Look, 0),
        (Request::Look, 3),
        (Request::Copy, 0),
        (Request::Copy, 2),
        (Request::Delete, 0),
    ] {
        let store = Arc::new(Failing::default());
        let bucket = Bucket::of(Arc::clone(&store) as Arc<dyn ObjectStore>, "s3://it/blobs");
        let place = Place { database: None, bucket: Some(bucket), ..place() };
        let worker = || Hello { key: "process".to_owned(), ..hello() };
        let running = place.start().await;
        let channel = connect(&running).await;
        submit(&channel, &place.plan.job).await.unwrap();
        let (mut peer, _) = Peer::say(&channel, worker()).await.unwrap();
        let (lease, _) = peer.assignment().await;
        let accepted = peer.checkpoint(lease, 3).await;
        let mut unheard = Vec::new();
        for number in 0..4 {
            unheard.push(put_as(&channel, format!("unheard {number}").as_bytes(), "process").await.unwrap());
        }
        drop((peer, running));

        let before = store.names().await;
        assert_eq!(before.len(), 5);
        store.fail(request, after);
        let said = failure(&place).await.to_string();
        assert!(said.starts_with("s3://it/blobs (") && said.contains("it is out of order"), "{request:?}: {said}");
        let meanwhile = store.names().await;
        assert!(before.iter().all(|name| meanwhile.contains(name)), "{request:?}: {before:?}, then {meanwhile:?}");
        store.mend();

        let running = place.start().await;
        let channel = connect(&running).await;
        assert_eq!(get(&channel, &accepted.to_string()).await.unwrap(), format!("checkpoint {lease} 3").into_bytes());
        for (number, blob) in unheard.iter().enumerate() {
            assert_eq!(get(&channel, &blob.to_string()).await.unwrap(), format!("unheard {number}").into_bytes());
        }
        // The worker comes back, and is believed what it says of one.
        let (mut peer, answer) = Peer::say(&channel, Hello { leases: vec![lease], ..worker() }).await.unwrap();
        assert!(matches!(answer, CoordinatorMessage::Welcome { .. }), "{answer:?}");
        peer.send(WorkerMessage::Checkpoint(lease, 5, unheard[3])).await;
        assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 5), "{request:?}");
    }
}

/// Why it does not start, once the one before has gone.
async fn failure(place: &Place) -> ServerError {
    loop {
        match start(place.options()).await {
            Err(ServerError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => return error,
            Ok(_) => panic!("it started"),
        }
    }
}
