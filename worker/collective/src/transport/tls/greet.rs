//! How members connect: each listens, the higher rank of a pair calls the lower, both show certificates and say who they
//! are.
//!
//! A caller that shows no certificate of a worker, or is of another group, is sent away and changes nothing: the member
//! waits on for those that it expects. Who waits in vain says whom it has sent away last, and why.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use rustls::{ClientConnection, ServerConnection};

use super::{
    WAKE,
    identity::{self, Identity},
    link::Link,
};
use crate::{
    CollectiveError,
    form::{Meeting, lost},
};

/// How soon an abort and the deadline are noticed meanwhile.
const GLANCE: Duration = Duration::from_millis(20);

/// How many callers may be on their way to prove who they are, members aside.
const STRANGERS: usize = 64;

/// How long a caller may take for that. Members need a few round trips.
const STRANGER_PATIENCE: Duration = Duration::from_secs(10);

/// Which end of a connection this member is.
#[derive(Clone, Copy)]
enum Side {
    Caller { peer: usize },
    Called { from: SocketAddr, since: Instant },
}

/// A connection on which it is not settled yet who is there.
struct Greeting {
    side: Side,
    link: Link,
    connected: bool,
    checked: bool,
    said: usize,
    heard: Vec<u8>,
    got: usize,
}

/// Connects to all members; gives a connection for each rank but the own one.
pub(super) fn connect(
    meeting: &Meeting,
    address: IpAddr,
    identity: &Identity,
    poll: &mut Poll,
) -> Result<Vec<Option<Link>>, CollectiveError> {
    let refused = |error: io::Error| CollectiveError::Refused {
        library: "the system",
        operation: "an address of this member",
        reason: format!("{address}: {error}"),
    };
    let mut listener = TcpListener::bind(SocketAddr::new(address, 0)).map_err(refused)?;
    poll.registry().register(&mut listener, Token(WAKE.0 + 1), Interest::READABLE).map_err(refused)?;
    let reached = listener.local_addr().map_err(refused)?.to_string();
    meeting.set(&format!("tls/{}", meeting.rank), reached.as_bytes())?;
    let mut links: Vec<Option<Link>> = (0..meeting.size).map(|_| None).collect();
    let mut greetings = Vec::new();
    for peer in 0..meeting.rank {
        greetings.push(call(meeting, identity, peer, poll)?);
    }
    let (mut sent_away, mut events) = (None, Events::with_capacity(64));
    loop {
        accept(&listener, meeting, identity, (poll, &mut greetings))?;
        for mut greeting in std::mem::take(&mut greetings) {
            let settled = greeting.go_on(meeting);
            match (settled, greeting.side) {
                (Ok(Some(rank)), _) if links[rank].is_none() => links[rank] = Some(greeting.link),
                (Ok(Some(rank)), _) => sent_away = Some(format!("a second member says that it is rank {rank}")),
                (Ok(None), Side::Called { from, since }) if since.elapsed() > STRANGER_PATIENCE => {
                    sent_away = Some(format!("{from} did not say who it is"));
                }
                (Ok(None), _) => greetings.push(greeting),
                (Err(reason), Side::Caller { peer }) => return Err(lost(format!("rank {peer}: {reason}"))),
                (Err(reason), Side::Called { from, .. }) => sent_away = Some(format!("{from} was sent away: {reason}")),
            }
        }
        let missing = (0..meeting.size).find(|&rank| rank != meeting.rank && links[rank].is_none());
        let Some(missing) = missing else { return Ok(links) };
        meeting.check().map_err(|error| match (&error, &sent_away) {
            (CollectiveError::Deadline { .. }, Some(reason)) => lost(format!("rank {missing} did not come; {reason}")),
            _ => error,
        })?;
        match poll.poll(&mut events, Some(GLANCE)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(refused(error)),
            _ => {}
        }
    }
}

/// Calls a member of a lower rank.
fn call(meeting: &Meeting, identity: &Identity, peer: usize, poll: &Poll) -> Result<Greeting, CollectiveError> {
    let failed = |reason: String| lost(format!("rank {peer}: {reason}"));
    let told = meeting.get(&format!("tls/{peer}"))?;
    let told = String::from_utf8_lossy(&told).into_owned();
    let reached: SocketAddr = told.parse().map_err(|_| failed(format!("{told:?} is no address")))?;
    let tls = ClientConnection::new(Arc::clone(&identity.client), identity::name());
    let tls = tls.map_err(|error| failed(error.to_string()))?;
    let begun = TcpStream::connect(reached).and_then(|socket| registered(socket, poll));
    let socket = begun.map_err(|error| failed(format!("{reached}: {error}")))?;
    Ok(Greeting::new(Side::Caller { peer }, Link::new(socket, tls.into()), meeting))
}

/// Takes in all who have called.
fn accept(
    listener: &TcpListener,
    meeting: &Meeting,
    identity: &Identity,
    (poll, greetings): (&Poll, &mut Vec<Greeting>),
) -> Result<(), CollectiveError> {
    // Whoever is one too many waits with the system until one of these is settled.
    while greetings.len() < meeting.size + STRANGERS {
        let (socket, from) = match listener.accept() {
            Ok(caller) => caller,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // Of the one that called; the next may be another matter.
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => continue,
            Err(error) => return Err(lost(format!("no connection can be taken in: {error}"))),
        };
        let tls = ServerConnection::new(Arc::clone(&identity.server)).map_err(|error| lost(error.to_string()))?;
        let Ok(socket) = registered(socket, poll) else { continue };
        let side = Side::Called { from, since: Instant::now() };
        greetings.push(Greeting::new(side, Link::new(socket, tls.into()), meeting));
    }
    Ok(())
}

fn registered(mut socket: TcpStream, poll: &Poll) -> io::Result<TcpStream> {
    // Whatever is ready, all connections are looked at: so the tokens need not tell them apart.
    poll.registry().register(&mut socket, Token(WAKE.0 + 2), Interest::READABLE | Interest::WRITABLE)?;
    Ok(socket)
}

/// What a member says of itself: its rank, then the name under which the group meets.
fn words(rank: usize, meeting: &Meeting) -> Vec<u8> {
    [&(rank as u64).to_le_bytes(), meeting.name().as_bytes()].concat()
}

impl Greeting {
    fn new(side: Side, link: Link, meeting: &Meeting) -> Self {
        let heard = vec![0; words(0, meeting).len()];
        Self { side, link, connected: false, checked: false, said: 0, heard, got: 0 }
    }

    /// Goes as far as it can; the rank of the member once that is settled.
    fn go_on(&mut self, meeting: &Meeting) -> Result<Option<usize>, String> {
        if !self.connected && !self.connect()? {
            return Ok(None);
        }
        if !self.link.shake()? {
            return Ok(None);
        }
        if !self.checked {
            identity::check_peer(&self.link.tls)?;
            self.checked = true;
        }
        let own = words(meeting.rank, meeting);
        // The one that is called speaks first, once it has taken the caller's certificate. A caller that is sent away has
        // said nothing yet that would be lost, so that it hears why.
        let calls = matches!(self.side, Side::Caller { .. });
        if !calls && !self.link.put(&[&own, &[]], &mut self.said)? {
            return Ok(None);
        }
        if !self.link.take(&mut self.heard, &mut self.got)? {
            return Ok(None);
        }
        let rank = self.rank(meeting)?;
        if calls && !self.link.put(&[&own, &[]], &mut self.said)? {
            return Ok(None);
        }
        Ok(Some(rank))
    }

    /// Whether the connection itself is there.
    fn connect(&mut self) -> Result<bool, String> {
        let socket = &self.link.socket;
        if let Some(error) = socket.take_error().map_err(|error| error.to_string())? {
            return Err(error.to_string());
        }
        match socket.peer_addr() {
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(false),
            Err(error) => return Err(error.to_string()),
            Ok(_) => {}
        }
        // Announcements are small, and each is waited for.
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        self.connected = true;
        Ok(true)
    }

    /// Who has spoken, if it is a member that may be on this connection.
    fn rank(&self, meeting: &Meeting) -> Result<usize, String> {
        let rank = (0..meeting.size).find(|&rank| words(rank, meeting) == self.heard);
        let rank = rank.ok_or("it is of another group")?;
        let fits = match self.side {
            Side::Caller { peer } => rank == peer,
            Side::Called { .. } => rank > meeting.rank,
        };
        if fits { Ok(rank) } else { Err(format!("it says that it is rank {rank}")) }
    }
}
