//! Who leads a database: one coordinator at a time, whatever freezes, breaks or races.

use std::{
    path::Path,
    sync::Barrier,
    time::{Duration, Instant},
};

use tokio_postgres::NoTls;

use super::{
    servers::{Proxy, SHORT_LEASE_MS, leadership, needed, run},
    *,
};

fn open(database: &Database, lease_ms: u64) -> Box<dyn Ledger> {
    Box::new(Postgres::open(leadership(database, lease_ms), "unix:///there".to_owned()).unwrap())
}

fn lead(database: &Database, lease_ms: u64) -> Opened {
    let folder = tempfile::tempdir().unwrap();
    Opened::lead_database(leadership(database, lease_ms), "unix:///there".to_owned(), folder.path()).unwrap()
}

fn written(database: &Database) -> u64 {
    Opened::read(open(database, LEASE_MS)).unwrap().number
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn a_leader_that_stood_still_writes_nothing_behind_its_successor() {
    let database = needed();
    let facts = facts();
    let mut first = lead(&database, SHORT_LEASE_MS);
    write(&mut first, &facts[..2]);
    let mut waiting = open(&database, LEASE_MS);
    let leader = waiting.lead(Term(0)).unwrap().unwrap_err();
    assert_eq!((leader.term, leader.addresses.as_str()), (1, "unix:///there"));
    assert!(leader.who.ends_with(&format!(":{}", std::process::id())) && leader.left_ms <= SHORT_LEASE_MS);
    let began = Instant::now();
    assert_eq!(wait_to_lead(waiting.as_mut(), Term(0)).unwrap(), Term(2));
    assert!(began.elapsed() < Duration::from_millis(SHORT_LEASE_MS + 300), "{:?}", began.elapsed());
    for _ in 0..2 {
        let error = first.write(&[Write::Facts(facts[2..].to_vec())]).unwrap_err().to_string();
        assert!(error.starts_with("another coordinator (") && error.contains("leads since 20"), "{error}");
        assert!(error.contains("under term 2, says postgres://"), "{error}");
    }
    assert!(matches!(first.ledger.renew(), Err(JournalError::Superseded { .. })));
    first.ledger.resign();
    assert!(open(&database, LEASE_MS).lead(Term(0)).unwrap().is_err(), "only the leader can give up the lead");
    assert_eq!(written(&database), 2);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn a_leader_that_stood_still_alone_says_so_and_writes_nothing() {
    let database = needed();
    let mut opened = lead(&database, SHORT_LEASE_MS);
    std::thread::sleep(Duration::from_millis(SHORT_LEASE_MS + 50));
    let error = opened.write(&[Write::Facts(facts())]).unwrap_err();
    assert!(matches!(error, JournalError::Lapsed { .. }), "{error}");
    assert_eq!(written(&database), 0);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn renewing_and_writing_prolong_the_lead_and_resigning_ends_it() {
    let database = needed();
    let mut opened = lead(&database, servers::PLACE_LEASE_MS);
    let mut other = open(&database, LEASE_MS);
    for fact in &facts()[..4] {
        std::thread::sleep(Duration::from_millis(servers::PLACE_LEASE_MS / 6));
        opened.ledger.renew().unwrap();
        std::thread::sleep(Duration::from_millis(servers::PLACE_LEASE_MS / 6));
        write(&mut opened, std::slice::from_ref(fact));
        assert!(other.lead(Term(0)).unwrap().is_err());
    }
    opened.ledger.resign();
    assert_eq!(other.lead(Term(0)).unwrap().unwrap(), Term(2));
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn whoever_starts_in_the_folder_of_a_leader_that_was_killed_leads_at_once() {
    let (database, folders) = (needed(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let from = |folder: &Path| {
        let mut ledger = Postgres::open(leadership(&database, LEASE_MS), "unix:///there".to_owned()).unwrap();
        ledger.succeed(Signed::add(folder, ledger.id()).before);
        ledger
    };
    let mut killed = from(folders[0].path());
    assert_eq!(killed.lead(Term(0)).unwrap().unwrap(), Term(1));
    let mut standby = from(folders[1].path());
    assert!(standby.lead(Term(0)).unwrap().is_err());
    let mut next = from(folders[0].path());
    assert_eq!(next.lead(Term(0)).unwrap().unwrap(), Term(2));
    assert!(matches!(killed.renew(), Err(JournalError::Superseded { .. })));
    assert!(standby.lead(Term(0)).unwrap().is_err() && from(folders[1].path()).lead(Term(0)).unwrap().is_err());
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn of_coordinators_that_race_one_leads() {
    let database = needed();
    let barrier = Barrier::new(8);
    let race = || {
        barrier.wait();
        // They race for the tables too.
        let mut ledger = open(&database, LEASE_MS);
        barrier.wait();
        ledger.lead(Term(0)).unwrap().is_ok()
    };
    let leaders = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
        racers.into_iter().filter_map(|racer| racer.join().unwrap().then_some(())).count()
    });
    assert_eq!(leaders, 1);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn a_broken_connection_is_opened_again_and_nothing_is_written_twice() {
    let database = needed();
    let facts = facts();
    let proxy = Proxy::start(&database);
    let mut opened = lead(&database.through(proxy.port), LEASE_MS);
    write(&mut opened, &facts[..1]);
    proxy.cut();
    write(&mut opened, &facts[1..2]);
    // The answer to this write is lost, and with it whether it was written.
    proxy.mute(true);
    let rest = facts[2..].to_vec();
    let writing = std::thread::spawn(move || opened.write(&[Write::Facts(rest)]).map(|()| opened));
    let began = Instant::now();
    while written(&database) < facts.len() as u64 {
        assert!(began.elapsed() < Duration::from_secs(5), "what was asked arrives");
    }
    proxy.cut();
    proxy.mute(false);
    let opened = writing.join().unwrap().unwrap();
    let again = Opened::read(open(&database, LEASE_MS)).unwrap();
    assert_eq!((again.number, &again.state, opened.number), (facts.len() as u64, &fold(&facts), again.number));
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn a_leader_that_is_cut_off_ends_when_its_time_is_up() {
    let database = needed();
    let proxy = Proxy::start(&database);
    let mut opened = lead(&database.through(proxy.port), SHORT_LEASE_MS);
    proxy.mute(true);
    let began = Instant::now();
    let error = opened.ledger.renew().unwrap_err();
    assert!(matches!(error, JournalError::Apart { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_millis(3 * SHORT_LEASE_MS), "{:?}", began.elapsed());
    proxy.mute(false);
    assert_eq!(open(&database, LEASE_MS).lead(Term(0)).unwrap().unwrap(), Term(2));
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn a_leader_that_freezes_inside_a_transaction_holds_nobody_up() {
    let database = needed();
    let mut opened = lead(&database, SHORT_LEASE_MS);
    write(&mut opened, &facts()[..1]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The single statement of a write has no middle; this is the worst that another version could do.
    let _held = runtime.block_on(async {
        let (client, connection) = database.config().connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("SET idle_in_transaction_session_timeout = '1s'; BEGIN").await.unwrap();
        client.batch_execute("SELECT 1 FROM graftwork.leader FOR UPDATE").await.unwrap();
        client
    });
    let mut other = open(&database, LEASE_MS);
    std::thread::sleep(Duration::from_millis(SHORT_LEASE_MS));
    let began = Instant::now();
    assert_eq!(other.lead(Term(0)).unwrap().unwrap(), Term(2));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn a_database_with_other_tables_is_refused_and_one_beside_them_is_not() {
    let refused = |database: &Database| Postgres::open(leadership(database, LEASE_MS), String::new()).unwrap_err();
    let database = needed();
    run(&database, "CREATE TABLE cookies (name TEXT)");
    assert_eq!(written(&database), 0);
    run(&database, "UPDATE graftwork.mark SET application = 'other'");
    assert!(matches!(refused(&database), JournalError::Foreign { .. }));
    let database = needed();
    run(&database, "CREATE SCHEMA graftwork; CREATE TABLE graftwork.cookies (name TEXT)");
    let error = refused(&database);
    assert!(matches!(error, JournalError::Foreign { .. }), "{error}");
    assert!(error.to_string().starts_with("postgres://graftwork@127.0.0.1:"), "{error}");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn a_wrong_password_is_said_and_not_shown() {
    let database = needed();
    let address = database.place().to_owned();
    let wrong = Database::parse(&address, Some("hunter2"), None).unwrap();
    let error = Postgres::open(leadership(&wrong, LEASE_MS), String::new()).unwrap_err().to_string();
    assert!(error.contains("--database-password-env") && !error.contains("hunter2"), "{error}");
    assert!(error.starts_with(&address), "{error}");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn a_database_is_written_over_tls_and_only_under_the_ca_that_is_named() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let (ca, password) = (variable("GRAFTWORK_TEST_POSTGRES_CA"), variable("GRAFTWORK_TEST_PASSWORD"));
    let address = format!("{}?sslmode=require", needed().place());
    let database = |ca: &Path| Database::parse(&address, Some(&password), Some(ca)).unwrap();
    let trusted = database(Path::new(&ca));
    assert_eq!(written(&trusted), 0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let encrypted = runtime.block_on(async {
        let client = trusted.connect().await.unwrap();
        let asked = client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await;
        asked.unwrap().get::<_, bool>(0)
    });
    assert!(encrypted);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("tls");
    crate::certificate::make(&folder, &["127.0.0.1".to_owned()], 2).unwrap();
    let strange = database(&folder.join("ca.pem"));
    let error = Postgres::open(leadership(&strange, LEASE_MS), String::new()).unwrap_err().to_string();
    assert!(error.contains("--database-ca") && error.starts_with(strange.place()), "{error}");
}
