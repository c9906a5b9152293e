//! A coordinator behind TLS and tokens, as it is met by those who have them, and by those who do not.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use graftwork_proto::{
    ConnectError, Route, Token, WorkerMessage, pushback, to_document,
    v1::{
        self, blobs_client::BlobsClient, groups_client::GroupsClient, jobs_client::JobsClient, meet_request::What,
        workers_client::WorkersClient,
    },
};
use graftwork_shared::{
    id::JobId,
    job::{Job, Publish},
};
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};

use super::{
    super::{Auth, Identity, Limits, Listen, NewToken, Options, Places, Role, Running, Tokens, start},
    Place,
    fixture::{plan, stage},
    fused_plan,
    peer::{self, Peer},
};
use crate::{
    certificate,
    client::{Client, ClientError},
};

const TOKENS: [(&str, Role, Option<&str>); 5] = [
    ("worker", Role::Join, None),
    ("reader", Role::Read, None),
    ("ann", Role::Submit, Some("ann")),
    ("bob", Role::Submit, Some("bob")),
    ("root", Role::Admin, None),
];

/// Certificates and tokens of a cluster.
struct Guard {
    folder: tempfile::TempDir,
    tokens: Vec<(&'static str, String)>,
}

impl Guard {
    fn new(host: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certificate::make(&folder.path().join("tls"), &[host.to_owned()], 2).unwrap();
        let path = folder.path().join("tokens.toml");
        let make =
            |(name, role, owner)| (name, NewToken { name, role, owner, most_priority: None }.make(&path).unwrap());
        let tokens = TOKENS.map(make).into();
        Self { folder, tokens }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// TLS and tokens on a free port of loopback.
    fn guard(&self, options: &mut Options) {
        options.listen = vec![Listen::Tls(([127, 0, 0, 1], 0).into())];
        options.auth = Auth::Tokens(Tokens::read(&self.path("tokens.toml")).unwrap());
        options.tls = Some(Identity::in_folder(&self.path("tls")));
        let histories = ["/hub/nightly", "/hub/team/nights"].map(PathBuf::from).into();
        options.places = Places { hubs: vec![PathBuf::from("/hub")], histories };
    }

    async fn start(&self, place: &Place, limits: Limits) -> Running {
        let guarded = |options: &mut Options| {
            self.guard(options);
            options.limits = limits;
        };
        place.start_with(guarded).await
    }

    /// A way over TLS that trusts this cluster's CA.
    fn way(&self, address: &str) -> Route {
        Route::new(address.parse().unwrap(), Some(&self.path("tls/ca.pem"))).unwrap()
    }

    fn route(&self, running: &Running) -> Route {
        self.way(&running.addresses()[0].to_string())
    }

    fn token(&self, name: &str) -> Token {
        Token::new(&self.tokens.iter().find(|(known, _)| *known == name).unwrap().1).unwrap()
    }

    async fn client(&self, running: &Running, name: &str) -> Client {
        Client::connect(&[self.route(running)], self.token(name)).await.unwrap()
    }
}

fn place() -> Place {
    Place::new(plan("one", vec![stage("a", &[], 10)]))
}

fn tcp(running: &Running) -> SocketAddr {
    match running.addresses()[0] {
        Listen::Tcp(address) | Listen::Tls(address) => address,
        Listen::Unix(_) => panic!("a private socket"),
    }
}

fn jobs(channel: &Channel, token: Token) -> JobsClient<InterceptedService<Channel, Token>> {
    JobsClient::with_interceptor(channel.clone(), token)
}

/// Makes one request of the protocol, about nothing that is there.
async fn request(channel: &Channel, token: Token, name: &str) -> Result<(), Status> {
    let job = v1::JobRequest { job: "0123456789abcdef".to_owned() };
    let digest = "0".repeat(64);
    let mut jobs = jobs(channel, token.clone());
    let mut blobs = BlobsClient::with_interceptor(channel.clone(), token.clone());
    match name {
        "Submit" => jobs.submit(v1::SubmitRequest::default()).await.map(drop),
        "View" => jobs.view(job).await.map(drop),
        "Watch" => jobs.watch(job).await.map(drop),
        "Explain" => jobs.explain(job).await.map(drop),
        "Cancel" => jobs.cancel(job).await.map(drop),
        "Coordinator" => jobs.coordinator(v1::Empty {}).await.map(drop),
        "Session" => {
            let mut workers = WorkersClient::with_interceptor(channel.clone(), token);
            workers.session(futures::stream::empty()).await.map(drop)
        }
        "Meet" => {
            let meet = v1::MeetRequest { name: "x".to_owned(), what: Some(What::Add(1)), ..v1::MeetRequest::default() };
            GroupsClient::with_interceptor(channel.clone(), token).meet(meet).await.map(drop)
        }
        "Put" => blobs.put(futures::stream::iter([v1::Chunk { data: vec![1] }])).await.map(drop),
        "Get" => blobs.get(v1::BlobDigest { digest }).await.map(drop),
        "Has" => blobs.has(v1::BlobDigests { digests: vec![digest] }).await.map(drop),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn each_role_does_what_it_is_for_and_is_told_what_it_lacks() {
    let (guard, place) = (Guard::new("127.0.0.1"), place());
    let running = guard.start(&place, Limits::default()).await;
    let channel = guard.route(&running).connect().await.unwrap();
    let table: [(&str, &str, &[&str], &str); 11] = [
        ("Submit", "submitting a job", &["ann", "root"], "submit or admin"),
        ("View", "looking at jobs", &["reader", "ann", "root"], "read or submit or admin"),
        ("Watch", "watching a job", &["reader", "ann", "root"], "read or submit or admin"),
        ("Explain", "asking why a job waits", &["reader", "ann", "root"], "read or submit or admin"),
        ("Cancel", "cancelling a job", &["ann", "root"], "submit or admin"),
        ("Coordinator", "looking at the coordinator", &["reader", "ann", "root"], "read or submit or admin"),
        ("Session", "working", &["worker"], "join"),
        ("Meet", "meeting a group", &["worker"], "join"),
        ("Put", "uploading", &["worker", "ann", "root"], "join or submit or admin"),
        ("Get", "fetching blobs", &["worker"], "join"),
        ("Has", "asking what is uploaded", &["ann", "root"], "submit or admin"),
    ];
    for (name, deed, may, wanted) in table {
        for (token, role) in [("worker", "join"), ("reader", "read"), ("ann", "submit"), ("root", "admin")] {
            let answer = request(&channel, guard.token(token), name).await;
            let code = answer.as_ref().err().map(Status::code);
            if may.contains(&token) {
                let refused = matches!(code, Some(Code::PermissionDenied | Code::Unauthenticated));
                assert!(!refused, "{token} {name}: {answer:?}");
            } else {
                let words = format!("token {token:?} has the role {role}, but {deed} needs {wanted}; ");
                let status = answer.unwrap_err();
                assert_eq!(status.code(), Code::PermissionDenied);
                assert!(status.message().starts_with(&words), "{status:?}");
            }
        }
        let stranger = request(&channel, Token::new("graftwork-admin-guess").unwrap(), name).await.unwrap_err();
        assert_eq!(stranger.code(), Code::Unauthenticated, "{name}");
        let nobody = request(&channel, Token::default(), name).await.unwrap_err();
        assert_eq!(nobody.code(), Code::Unauthenticated, "{name}");
        assert!(nobody.message().contains("--token-env"), "{nobody:?}");
    }
}

async fn submit(channel: &Channel, token: Token, job: &Job) -> Result<JobId, Status> {
    let request = v1::SubmitRequest { job: to_document(job), trace: String::new(), spans: String::new() };
    Ok(jobs(channel, token).submit(request).await?.into_inner().job.parse().unwrap())
}

#[tokio::test]
async fn an_owner_acts_on_its_own_jobs_and_an_admin_on_all() {
    let (guard, place) = (Guard::new("127.0.0.1"), place());
    let running = guard.start(&place, Limits::default()).await;
    let channel = guard.route(&running).connect().await.unwrap();
    let owned = |owner: &str| Job { owner: owner.to_owned(), ..place.plan.job.clone() };

    let refused = submit(&channel, guard.token("bob"), &owned("ann")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("the job is \"ann\"'s, and token \"bob\" of the role submit"), "{refused:?}");

    let job = submit(&channel, guard.token("ann"), &owned("local")).await.unwrap();
    let mut reader = guard.client(&running, "reader").await;
    assert_eq!(reader.view(&job).await.unwrap().owner, "ann", "the token's owner");

    // The same job again is only found, with nothing of it changed.
    let resources = graftwork_shared::job::Resources { workers: 7, ..place.plan.job.resources };
    let same = Job { resources, ..owned("bob") };
    assert_eq!(submit(&channel, guard.token("bob"), &same).await.unwrap(), job);
    assert_eq!(reader.view(&job).await.unwrap().owner, "ann");

    let cancel = |name: &'static str| {
        let (guard, running, job) = (&guard, &running, &job);
        async move { guard.client(running, name).await.cancel(job).await }
    };
    let Err(ClientError::Refused(words)) = cancel("bob").await else { panic!("bob cancelled ann's job") };
    assert!(words.contains("the role admin is needed"), "{words}");
    cancel("ann").await.unwrap();
    // Ended, it would be opened again as bob's.
    assert_eq!(submit(&channel, guard.token("bob"), &same).await.unwrap_err().code(), Code::PermissionDenied);
    submit(&channel, guard.token("root"), &owned("ann")).await.unwrap();
    assert_eq!(reader.view(&job).await.unwrap().owner, "ann");
    cancel("root").await.unwrap();
}

#[tokio::test]
async fn a_submitter_publishes_where_it_may_and_goes_before_nobody_it_may_not() {
    let (guard, place) = (Guard::new("127.0.0.1"), place());
    let running = guard.start(&place, Limits::default()).await;
    let channel = guard.route(&running).connect().await.unwrap();
    let refused = async |who: &str, job: Job| {
        let refused = submit(&channel, guard.token(who), &job).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        refused.message().to_owned()
    };
    let job = || Job { owner: "ann".to_owned(), ..place.plan.job.clone() };
    let said = refused("ann", Job { priority: 1, ..job() }).await;
    assert!(said.starts_with("priority: 1, but the jobs of token \"ann\" have 0 at most"), "{said}");
    for hub in ["/elsewhere", "/hub/../etc", "/hubs"] {
        let publish = Publish { hub: hub.to_owned(), ..job().publish };
        let said = refused("ann", Job { publish, ..job() }).await;
        assert!(said.contains("may publish below /hub alone") && said.contains("--hub-root"), "{said}");
    }
    for (hub, organisation) in
        [("/hub/nightly", "ann"), ("/hub/./nightly/x", "ann"), ("/hub", "nightly"), ("/hub", "team")]
    {
        let publish = Publish { hub: hub.to_owned(), organisation: organisation.to_owned(), license: None };
        for who in ["ann", "root"] {
            let said = refused(who, Job { publish: publish.clone(), ..job() }).await;
            assert!(said.contains("may not publish into /hub/") && said.contains("--nightly-history"), "{said}");
        }
    }
    submit(&channel, guard.token("ann"), &Job { priority: -3, ..job() }).await.unwrap();
}

async fn problem(route: &Route) -> ConnectError {
    route.connect().await.map(drop).unwrap_err()
}

#[tokio::test]
async fn a_coordinator_is_trusted_by_its_ca_and_its_name_alone() {
    let ([guard, stranger], other) = (["127.0.0.1"; 2].map(Guard::new), Guard::new("other.example"));
    let places = [place(), place()];
    let running = guard.start(&places[0], Limits::default()).await;
    let ConnectError::Distrusted(words) = problem(&stranger.route(&running)).await else {
        panic!("a strange CA is a passing fault")
    };
    assert!(words.starts_with("its certificate is of a CA that is not trusted here") && words.contains("--tls-ca"));
    let of_machine = Route::new(running.addresses()[0].to_string().parse().unwrap(), None).unwrap();
    let ConnectError::Distrusted(words) = problem(&of_machine).await else {
        panic!("the machine's CAs do not know this one")
    };
    assert!(words.contains("is not trusted here"), "{words}");

    let misnamed = other.start(&places[1], Limits::default()).await;
    let ConnectError::Distrusted(words) = problem(&other.route(&misnamed)).await else { panic!("a passing fault") };
    assert!(words.contains("for other.example, not for 127.0.0.1"), "{words}");
    assert!(words.contains("--renew --host 127.0.0.1"), "{words}");
}

#[tokio::test]
async fn an_expired_certificate_is_neither_served_nor_trusted() {
    let guard = Guard::new("127.0.0.1");
    certificate::tests::expire(&guard.path("tls"));
    let mut options = place().options();
    guard.guard(&mut options);
    let said = start(options).await.err().unwrap().to_string();
    assert!(said.contains("coordinator.pem has expired on 20") && said.contains("graftwork cert FOLDER --renew"));

    // One that runs on past its day.
    let identity = Identity::in_folder(&guard.path("tls"));
    let acceptor = identity.acceptor(graftwork_certificate::certificates(&identity.certificate).unwrap()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { acceptor.accept(listener.accept().await.unwrap().0).await.map(drop) });
    let found = problem(&guard.way(&address)).await;
    assert!(matches!(&found, ConnectError::Unreachable(words) if words.contains("has expired; renew it")), "{found:?}");
}

#[tokio::test]
async fn plain_text_and_tls_are_told_apart() {
    let (guard, places) = (Guard::new("127.0.0.1"), [place(), place()]);
    let secured = guard.start(&places[0], Limits::default()).await;
    let plain = format!("http://{}", tcp(&secured)).parse().unwrap();
    let route = Route::new(plain, None).unwrap();
    let said = match Client::connect(&[route], guard.token("reader")).await {
        Ok(mut client) => client.all().await.unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    assert!(said.contains("if the coordinator speaks TLS there, write https://"), "{said}");

    let plain = places[1].start_with(|options| {
        options.listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
        options.auth = Auth::Token("a secret of some length".to_owned());
    });
    let plain = plain.await;
    let address = format!("https://{}", tcp(&plain));
    let found = problem(&guard.way(&address)).await;
    assert!(matches!(&found, ConnectError::Unreachable(words) if words.contains("does not speak TLS")), "{found:?}");
}

#[tokio::test]
async fn nothing_that_others_reach_is_opened_without_tls_and_tokens() {
    let guard = Guard::new("127.0.0.1");
    let everywhere: SocketAddr = ([0, 0, 0, 0], 0).into();
    let here: SocketAddr = ([127, 0, 0, 1], 0).into();
    let one = || Auth::Token("a secret of some length".to_owned());
    let tokens = || Auth::Tokens(Tokens::read(&guard.path("tokens.toml")).unwrap());
    let cases: [(Listen, bool, Auth, &[&str]); 8] = [
        (Listen::Tls(everywhere), false, Auth::None, &["graftwork cert", "graftwork token"]),
        (Listen::Tls(everywhere), true, Auth::None, &["it needs tokens with roles", "graftwork token"]),
        (Listen::Tls(everywhere), true, one(), &["it needs tokens with roles", "graftwork token"]),
        (Listen::Tls(everywhere), false, tokens(), &["it needs a certificate", "graftwork cert"]),
        (Listen::Tcp(everywhere), true, tokens(), &["a certificate is given, but no address speaks TLS"]),
        (Listen::Tcp(everywhere), false, tokens(), &["plain text on 0.0.0.0:0 would show", "https://0.0.0.0:0"]),
        (Listen::Tls(here), false, tokens(), &["https://127.0.0.1:0 needs a certificate", "graftwork cert"]),
        (Listen::Tls(here), true, Auth::None, &["every user of this machine can reach 127.0.0.1:0"]),
    ];
    for (listen, tls, auth, words) in cases {
        let place = place();
        let mut options = place.options();
        guard.guard(&mut options);
        options.listen = vec![listen.clone()];
        options.auth = auth;
        options.tls = options.tls.filter(|_| tls);
        let said = start(options).await.err().unwrap().to_string();
        assert!(words.iter().all(|words| said.contains(words)), "{listen}: {said}");
        assert!(!place.folder.path().join("state").exists(), "nothing was opened");
    }
}

/// How long the other side takes to close the connection.
async fn closed_after(address: SocketAddr, first: &'static [u8]) -> Duration {
    let waiting = tokio::task::spawn_blocking(move || {
        let (began, mut stream) = (Instant::now(), TcpStream::connect(address).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(first).unwrap();
        let mut bytes = [0; 1_024];
        while stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
        began.elapsed()
    });
    waiting.await.unwrap()
}

#[tokio::test]
async fn whoever_shows_no_token_in_time_is_cut_off() {
    let (guard, places) = (Guard::new("127.0.0.1"), [place(), place()]);
    let limits = Limits { proof_wait: Duration::from_millis(400), ..Limits::default() };
    let secured = guard.start(&places[0], limits).await;
    let plain = places[1].start_with(|options| {
        options.listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
        options.auth = Auth::Token("a secret of some length".to_owned());
        options.limits = limits;
    });
    let plain = plain.await;
    // A TLS record that never ends, silence, a beginning of HTTP/2, and all of it without a request.
    let preface: &'static [u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let hello: &'static [u8] = b"\x16\x03\x01\x02\0\x01";
    let cases: [(&Running, &'static [u8]); 5] =
        [(&secured, hello), (&secured, b""), (&plain, b""), (&plain, b"PRI * H"), (&plain, preface)];
    for (running, first) in cases {
        let after = closed_after(tcp(running), first).await;
        assert!(after >= limits.proof_wait && after < Duration::from_secs(5), "{first:?}: {after:?}");
    }

    // Whoever has shown one stays as long as it likes.
    let channel = guard.route(&secured).connect().await.unwrap();
    let of_ann = Job { owner: "ann".to_owned(), ..places[0].plan.job.clone() };
    let job = submit(&channel, guard.token("ann"), &of_ann).await.unwrap();
    let watch = v1::JobRequest { job: job.to_string() };
    let mut events = jobs(&channel, guard.token("reader")).watch(watch).await.unwrap().into_inner();
    tokio::time::sleep(limits.proof_wait * 3).await;
    jobs(&channel, guard.token("ann")).cancel(v1::JobRequest { job: job.to_string() }).await.unwrap();
    while events.message().await.unwrap().is_some() {}
}

#[tokio::test]
async fn connections_have_a_bound() {
    let (guard, place) = (Guard::new("127.0.0.1"), place());
    let limits = Limits { connections: 2, ..Limits::default() };
    let running = guard.start(&place, limits).await;
    let held = [(); 2].map(|()| TcpStream::connect(tcp(&running)).unwrap());
    assert!(closed_after(tcp(&running), b"").await < Duration::from_secs(5));
    drop(held);
    while guard.route(&running).connect().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_worker_that_says_too_much_is_read_no_faster_and_the_others_as_ever() {
    let place = Place::new(fused_plan());
    let mut limits = Limits::default();
    (limits.of_session.per_second, limits.of_session.burst) = (50.0, 5.0);
    let running = place.start_with(|options| options.limits = limits).await;
    let channel = peer::connect(&running).await;
    peer::submit(&channel, &place.plan.job).await.unwrap();
    let (mut chatty, mut other) = (Peer::join(&channel).await, Peer::join(&channel).await);
    let (chatty_lease, _) = chatty.assignment().await;
    let (other_lease, _) = other.assignment().await;
    for _ in 0..60 {
        chatty.send(WorkerMessage::Heartbeat(vec![chatty_lease])).await;
    }
    let began = Instant::now();
    let heard = async |peer: &mut Peer, lease| {
        peer.checkpoint(lease, 1).await;
        began.elapsed()
    };
    let (late, soon) = tokio::join!(heard(&mut chatty, chatty_lease), heard(&mut other, other_lease));
    assert!(late > Duration::from_secs(1), "61 messages were read in {late:?}");
    assert!(soon < late / 2, "{soon:?}, as {late:?}");
}

#[tokio::test]
async fn a_token_that_asks_too_often_waits_and_others_do_not() {
    let (guard, place) = (Guard::new("127.0.0.1"), place());
    let mut limits = Limits::default();
    (limits.of_people.per_second, limits.of_people.burst) = (4.0, 3.0);
    let running = guard.start(&place, limits).await;
    let channel = guard.route(&running).connect().await.unwrap();
    let ask = async |name: &str| jobs(&channel, guard.token(name)).coordinator(v1::Empty {}).await.map(drop);
    for _ in 0..3 {
        ask("reader").await.unwrap();
    }
    let refused = ask("reader").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "token \"reader\" asks too often: 3 requests at once and 4 a second");
    let wait = pushback(&refused).unwrap();
    assert!(wait > Duration::ZERO && wait <= Duration::from_millis(251), "{wait:?}");
    ask("ann").await.unwrap();
    // The client comes back by itself.
    let (began, mut client) = (Instant::now(), guard.client(&running, "reader").await);
    for _ in 0..4 {
        client.all().await.unwrap();
    }
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn whoever_guesses_waits_and_a_proven_connection_does_not() {
    let (guard, place) = (Guard::new("127.0.0.1"), place());
    let mut limits = Limits::default();
    (limits.of_failures.per_second, limits.of_failures.burst) = (0.01, 3.0);
    let running = guard.start(&place, limits).await;
    let proven = guard.route(&running).connect().await.unwrap();
    request(&proven, guard.token("reader"), "Coordinator").await.unwrap();

    let channel = guard.route(&running).connect().await.unwrap();
    let began = Instant::now();
    for _ in 0..3 {
        let guess = request(&channel, Token::new("guess").unwrap(), "Coordinator").await.unwrap_err();
        assert_eq!((guess.code(), guess.message()), (Code::Unauthenticated, "the token is none of this coordinator's"));
    }
    assert!(began.elapsed() >= limits.failure_delay * 3, "each answer takes its time");
    for token in [Token::new("guess").unwrap(), guard.token("reader")] {
        let refused = request(&channel, token, "Coordinator").await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "nothing is told, not even that a token is right");
        assert!(refused.message().contains("127.0.0.1 has shown too many wrong tokens"), "{refused:?}");
        assert!(pushback(&refused).is_some());
    }
    request(&proven, guard.token("reader"), "Coordinator").await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_with_its_bound() {
    let (guard, place) = (Guard::new("127.0.0.1"), place());
    let running = guard.start(&place, Limits::default()).await;
    let channel = guard.route(&running).connect().await.unwrap();
    let job = " ".repeat(graftwork_proto::MAX_MESSAGE_BYTES + 1);
    let request = v1::SubmitRequest { job, trace: String::new(), spans: String::new() };
    let refused = jobs(&channel, guard.token("ann")).submit(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert!(refused.message().contains("the limit is: 16777216 bytes"), "{refused:?}");
    assert!(pushback(&refused).is_none(), "asking again does not help");

    let what = Some(What::Set(vec![0; 80 << 10]));
    let meet = v1::MeetRequest { name: "x".to_owned(), what, ..v1::MeetRequest::default() };
    let refused = GroupsClient::with_interceptor(channel.clone(), guard.token("worker")).meet(meet).await.unwrap_err();
    assert!(refused.message().contains("the limit is: 66560 bytes"), "{refused:?}");

    let long = Token::new(&"x".repeat(40 << 10)).unwrap();
    jobs(&channel, long).coordinator(v1::Empty {}).await.unwrap_err();
    jobs(&channel, guard.token("ann")).coordinator(v1::Empty {}).await.unwrap();
}
