//! The servers that `scripts/servers.py` starts for tests. With them the suites run over PostgreSQL and an object store
//! in the place of SQLite and a folder; what only they can show is ignored without them.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio_postgres::NoTls;

use super::super::{Bucket, Database, Leadership};

/// How long a lead lasts in tests that wait for its end.
pub(crate) const SHORT_LEASE_MS: u64 = 600;

/// How long it lasts where it is renewed, however slow the machine is.
pub(crate) const PLACE_LEASE_MS: u64 = 3_000;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn server() -> Option<(String, String)> {
    Some((variable("GRAFTWORK_TEST_POSTGRES")?, variable("GRAFTWORK_TEST_PASSWORD")?))
}

/// A new, empty database, where there is a server.
pub(crate) fn database() -> Option<Database> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (address, password) = server()?;
    let server = Database::parse(&address, Some(&password), None).unwrap();
    let name = format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
    run(&server, &format!("CREATE DATABASE {name}"));
    Some(server.named(&name))
}

/// The same where the test was asked for by name.
pub(crate) fn needed() -> Database {
    database().expect("a PostgreSQL server: run this through scripts/servers.py")
}

/// A prefix of its own in an object store, where there is a server.
pub(crate) fn bucket() -> Option<Bucket> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (endpoint, keys) = (variable("GRAFTWORK_TEST_STORE_ENDPOINT")?, variable("GRAFTWORK_TEST_STORE_KEYS")?);
    let (bucket, number) = (variable("GRAFTWORK_TEST_STORE")?, NEXT.fetch_add(1, Ordering::SeqCst));
    let url = format!("{bucket}/test-{}-{number}", std::process::id());
    Some(Bucket::open_at(&url, Some(&keys), Some(&endpoint)).unwrap())
}

/// Leadership of a database that lasts so long.
pub(crate) fn leadership(database: &Database, lease_ms: u64) -> Leadership {
    Leadership { database: database.clone(), lease_ms }
}

/// Runs statements in a database, over a connection of its own, wherever this is called.
pub(crate) fn run(database: &Database, sql: &str) {
    let (config, sql) = (database.config().clone(), sql.to_owned());
    let done = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (client, connection) = config.connect(NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute(&sql).await.unwrap();
        });
    });
    done.join().unwrap();
}

/// Passes bytes to a database server; what comes back can be held up, and every connection cut.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    silent: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    pub(crate) fn start(database: &Database) -> Self {
        let target = database.config().get_ports()[0];
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (silent, open) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let (muted, streams) = (Arc::clone(&silent), Arc::clone(&open));
        thread::spawn(move || {
            for near in listener.incoming() {
                let (mut near, mut far) = (near?, TcpStream::connect(("127.0.0.1", target))?);
                let (mut from, mut to) = (near.try_clone()?, far.try_clone()?);
                streams.lock().unwrap().extend([near.try_clone()?, far.try_clone()?]);
                thread::spawn(move || io::copy(&mut from, &mut to));
                let muted = Arc::clone(&muted);
                thread::spawn(move || -> io::Result<()> {
                    let mut bytes = [0; 4096];
                    loop {
                        let count = far.read(&mut bytes)?;
                        while muted.load(Ordering::SeqCst) {
                            thread::sleep(Duration::from_millis(5));
                        }
                        if count == 0 {
                            return near.shutdown(Shutdown::Both);
                        }
                        near.write_all(&bytes[..count])?;
                    }
                });
            }
            io::Result::Ok(())
        });
        Self { port, silent, open }
    }

    /// Holds up what the server says, or lets it pass again.
    pub(crate) fn mute(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    /// Breaks every connection; new ones pass.
    pub(crate) fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
