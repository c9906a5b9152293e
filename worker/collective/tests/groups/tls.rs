//! Who gets into a group over TLS, and what the way sees of it.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use graftwork_collective::{
    Backend, CollectiveError, FormRequest, Group, MemoryRendezvous, Remedy, Rendezvous, RendezvousError, form,
    tls::{Identity, NAME},
};
use libtest_mimic::Trial;
use rcgen::{CertificateParams, date_time_ymd};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::authority::{Authority, Pair};

/// How long those wait whom nobody meets.
const PATIENCE: Duration = Duration::from_millis(1500);

pub(crate) fn trials() -> Vec<Trial> {
    let trials: [(&str, fn()); 7] = [
        ("a_member_with_another_ca_meets_nobody", a_member_with_another_ca_meets_nobody),
        ("members_of_which_one_speaks_plainly_are_told", members_of_which_one_speaks_plainly_are_told),
        ("strangers_are_sent_away_and_change_nothing", strangers_are_sent_away_and_change_nothing),
        ("a_certificate_for_something_else_opens_no_group", a_certificate_for_something_else_opens_no_group),
        ("the_way_sees_no_number", the_way_sees_no_number),
        ("a_changed_byte_ends_the_group_and_is_no_number", a_changed_byte_ends_the_group_and_is_no_number),
        ("an_identity_that_others_would_refuse_is_refused", an_identity_that_others_would_refuse_is_refused),
    ];
    let trial = |(name, run): (&str, fn())| {
        Trial::test(format!("tls::{name}"), move || {
            run();
            Ok(())
        })
    };
    trials.into_iter().map(trial).collect()
}

fn request(rank: usize, size: usize, identity: &Identity) -> FormRequest {
    let mut request = FormRequest::new("test", 1, rank, size);
    request.backend = Backend::Tls { address: Ipv4Addr::LOCALHOST.into(), identity: identity.clone() };
    (request.form_deadline, request.connect_deadline) = (Duration::from_secs(20), PATIENCE);
    request.deadline = Duration::from_secs(20);
    request
}

/// Forms with these requests, each in a thread of its own.
fn all<T: Send>(
    requests: Vec<FormRequest>,
    table: Arc<dyn Rendezvous>,
    act: impl Fn(Result<Box<dyn Group>, CollectiveError>) -> T + Sync,
) -> Vec<T> {
    thread::scope(|scope| {
        let member = |request| {
            let (table, act) = (Arc::clone(&table), &act);
            scope.spawn(move || act(form(request, table)))
        };
        let members: Vec<_> = requests.into_iter().map(member).collect();
        members.into_iter().map(|member| member.join().unwrap()).collect()
    })
}

fn table() -> Arc<MemoryRendezvous> {
    Arc::new(MemoryRendezvous::new())
}

/// Whether it calls or is called.
fn a_member_with_another_ca_meets_nobody() {
    let (own, other) = (Authority::new().identity(), Authority::new().identity());
    for of_other_ca in 0..2 {
        let began = Instant::now();
        let identity = |rank| if rank == of_other_ca { &other } else { &own };
        let requests = (0..2).map(|rank| request(rank, 2, identity(rank))).collect();
        let errors = all(requests, table(), |formed| formed.err().unwrap());
        let said = format!("{errors:?}");
        assert!(errors.iter().all(|error| matches!(error, CollectiveError::PeerLost { .. })), "{said}");
        assert!(said.contains("UnknownIssuer") || said.contains("UnknownCA"), "{said}");
        assert!(said.contains("rank 1 did not come; 127.0.0.1:"), "{said}");
        assert!(began.elapsed() < PATIENCE + Duration::from_secs(10), "{:?}", began.elapsed());
    }
}

fn members_of_which_one_speaks_plainly_are_told() {
    let mut plain = request(1, 2, &Authority::new().identity());
    let encrypted = FormRequest { rank: 0, ..plain.clone() };
    plain.backend = Backend::Gloo { address: Ipv4Addr::LOCALHOST.into() };
    let began = Instant::now();
    let errors = all(vec![encrypted, plain], table(), |formed| formed.err().unwrap());
    let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let terms = ["2 ranks over TLS, exchange 2", "2 ranks over gloo, exchange 2"];
    let expected =
        |peer: usize, own: &str, other: &str| format!("rank {peer} forms with {other}, this rank with {own}");
    assert_eq!(said, [expected(1, terms[0], terms[1]), expected(0, terms[1], terms[0])]);
    assert!(errors.iter().all(|error| error.remedy() == Remedy::GiveUp) && began.elapsed() < Duration::from_secs(10));
}

/// What a client that trusts the CA and shows this pair hears, and how that ends.
fn stranger(authority: &Authority, pair: &Pair, address: &str) -> (Vec<u8>, io::Result<usize>) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = Arc::new(config.with_client_auth_cert(chain, key).unwrap());
    let tls = ClientConnection::new(config, NAME.try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut heard = Vec::new();
    let ended = StreamOwned::new(tls, socket).read_to_end(&mut heard);
    (heard, ended)
}

/// Runs a group of two in which rank 1 calls only after `meanwhile`, which is told where rank 0 listens.
fn late(authority: &Authority, meanwhile: impl FnOnce(&str)) {
    let (table, identity) = (table(), authority.identity());
    let held = Arc::new(Held { table: table.clone(), let_go: AtomicBool::new(false) });
    let member = |rank, table: Arc<dyn Rendezvous>| {
        let request = FormRequest { connect_deadline: Duration::from_secs(20), ..request(rank, 2, &identity) };
        let mut group = form(request, table).unwrap();
        let mut numbers = [1.0, 2.0];
        group.all_reduce(&mut numbers).unwrap();
        assert_eq!(numbers, [2.0, 4.0]);
        group.leave().unwrap();
    };
    thread::scope(|scope| {
        scope.spawn(|| member(0, table.clone()));
        scope.spawn(|| member(1, held.clone()));
        let address = table.get("graftwork/test/1/tls/0", Duration::from_secs(10)).unwrap();
        meanwhile(std::str::from_utf8(&address).unwrap());
        held.let_go.store(true, Ordering::SeqCst);
    });
}

/// A table that gives no address until it is let.
struct Held {
    table: Arc<MemoryRendezvous>,
    let_go: AtomicBool,
}

impl Rendezvous for Held {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), RendezvousError> {
        self.table.set(key, value)
    }

    fn get(&self, key: &str, deadline: Duration) -> Result<Vec<u8>, RendezvousError> {
        if key.contains("/tls/") && !self.let_go.load(Ordering::SeqCst) {
            thread::sleep(deadline.min(Duration::from_millis(20)));
            return Err(RendezvousError::Deadline { key: key.to_owned(), limit_ms: 0 });
        }
        self.table.get(key, deadline)
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, RendezvousError> {
        self.table.add(key, amount)
    }
}

fn strangers_are_sent_away_and_change_nothing() {
    let authority = Authority::new();
    late(&authority, |address| {
        let of_other_ca = Authority::new().pair(NAME, |_| ());
        assert!(stranger(&authority, &of_other_ca, address).1.is_err(), "another CA");
        // It stays, and says nothing that anybody waits for.
        let mut plain = TcpStream::connect(address).unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let _silent = TcpStream::connect(address).unwrap();
        for _ in 0..200 {
            drop(TcpStream::connect(address).unwrap());
        }
    });
}

fn a_certificate_for_something_else_opens_no_group() {
    let authority = Authority::new();
    late(&authority, |address| {
        let worker = authority.pair(NAME, |_| ());
        // One of a worker is taken, and then hears who is there: rank 0, of that group. It says nothing itself.
        let (heard, waits) = stranger(&authority, &worker, address);
        assert_eq!(heard, [&0_u64.to_le_bytes()[..], b"graftwork/test/1/"].concat());
        assert!(waits.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "it waited: {waits:?}");
        let coordinator = authority.pair("trainer.example", |_| ());
        let (heard, ended) = stranger(&authority, &coordinator, address);
        assert!(
            heard.is_empty() && ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof),
            "{ended:?}"
        );
    });
}

/// What becomes of bytes on their way, and how many there were before.
type Pass = Arc<dyn Fn(&mut [u8], usize) + Send + Sync>;

/// A table that names this address as rank 0's.
struct Diverted {
    table: Arc<MemoryRendezvous>,
    listener: TcpListener,
    /// What to do with the bytes that pass, of which so many have passed before.
    pass: Pass,
}

impl Rendezvous for Diverted {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), RendezvousError> {
        if !key.ends_with("/tls/0") {
            return self.table.set(key, value);
        }
        let (there, listener) = (String::from_utf8(value.to_vec()).unwrap(), self.listener.try_clone().unwrap());
        let pass = self.pass.clone();
        let here = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            let (caller, called) = (listener.accept().unwrap().0, TcpStream::connect(there).unwrap());
            for (mut from, mut to) in [
                (caller.try_clone().unwrap(), called.try_clone().unwrap()),
                (called.try_clone().unwrap(), caller.try_clone().unwrap()),
            ] {
                let pass = pass.clone();
                thread::spawn(move || {
                    let (mut bytes, mut before) = (vec![0; 1 << 16], 0);
                    while let Ok(count @ 1..) = from.read(&mut bytes) {
                        pass(&mut bytes[..count], before);
                        before += count;
                        if to.write_all(&bytes[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        });
        self.table.set(key, here.as_bytes())
    }

    fn get(&self, key: &str, deadline: Duration) -> Result<Vec<u8>, RendezvousError> {
        self.table.get(key, deadline)
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, RendezvousError> {
        self.table.add(key, amount)
    }
}

fn diverted(pass: impl Fn(&mut [u8], usize) + Send + Sync + 'static) -> Arc<dyn Rendezvous> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    Arc::new(Diverted { table: table(), listener, pass: Arc::new(pass) })
}

fn the_way_sees_no_number() {
    const MARK: f32 = 1234.5;
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let keep = seen.clone();
    let table = diverted(move |bytes, _| keep.lock().unwrap().extend(&*bytes));
    let identity = Authority::new().identity();
    all((0..2).map(|rank| request(rank, 2, &identity)).collect(), table, |formed| {
        let mut group = formed.unwrap();
        let mut numbers = vec![MARK; 100_000];
        group.broadcast(&mut numbers, 0).unwrap();
        group.all_reduce(&mut numbers).unwrap();
        assert_eq!(numbers, vec![2.0 * MARK; 100_000]);
        group.leave().unwrap();
    });
    let seen = seen.lock().unwrap();
    assert!(seen.len() > 800_000, "all of it passed here: {}", seen.len());
    for number in [MARK, 2.0 * MARK] {
        let twice = [number.to_le_bytes(); 2].concat();
        assert!(!seen.windows(8).any(|window| window == twice), "{number} is readable");
    }
    assert!(!seen.windows(9).any(|window| window == b"graftwork"), "the group's name is readable");
}

fn a_changed_byte_ends_the_group_and_is_no_number() {
    // Behind the handshake.
    let table = diverted(|bytes, before| {
        if (before..before + bytes.len()).contains(&200_000) {
            bytes[200_000 - before] ^= 1;
        }
    });
    let identity = Authority::new().identity();
    let errors = all((0..2).map(|rank| request(rank, 2, &identity)).collect(), table, |formed| {
        let mut group = formed.unwrap();
        let mut numbers = vec![1.0; 200_000];
        group.all_reduce(&mut numbers).unwrap_err()
    });
    assert!(errors.iter().all(|error| error.remedy() == Remedy::Reform), "{errors:?}");
    assert!(format!("{errors:?}").contains("decrypt"), "{errors:?}");
}

fn an_identity_that_others_would_refuse_is_refused() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let said = |folder: &Path| Identity::read(folder).unwrap_err().to_string();
    assert!(
        said(folder.path()).contains("ca.pem: No such file") && said(folder.path()).contains("graftwork cert FOLDER")
    );
    let refused = |pair: &Pair, words: &str| {
        authority.write_pair(folder.path(), pair);
        let said = said(folder.path());
        assert!(said.contains(words), "{said}");
    };
    refused(&Authority::new().pair(NAME, |_| ()), "worker.pem: other members of a group would refuse it: ");
    refused(&authority.pair("trainer.example", |_| ()), "not valid for name");
    refused(
        &authority.pair(NAME, |params: &mut CertificateParams| params.extended_key_usages.truncate(1)),
        "would refuse",
    );
    let expired = |params: &mut CertificateParams| {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    };
    refused(
        &authority.pair(NAME, expired),
        "worker.pem has expired on 2002-01-01: renew it with `graftwork cert FOLDER --renew`",
    );
    assert_eq!(authority.identity().ends_s(), date_time_ymd(4096, 1, 1).unix_timestamp(), "as rcgen makes them");
    let [pair, other] = [(); 2].map(|()| authority.pair(NAME, |_| ()));
    refused(&Pair { certificate: pair.certificate.clone(), key: other.key }, "worker.key: it is not the key of ");
    refused(&Pair { certificate: pair.certificate.clone(), key: "nonsense".to_owned() }, "no private key in PEM form");
    refused(&Pair { certificate: String::new(), key: pair.key.clone() }, "worker.pem: it holds no certificate");
    authority.write_pair(folder.path(), &pair);
    fs::set_permissions(folder.path().join("worker.key"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(said(folder.path()).contains("is open to others (mode 640): chmod 600 it"), "{}", said(folder.path()));
    let shown = format!("{:?}", authority.identity());
    assert_eq!(shown, "Identity { .. }", "no key is ever shown");
}
