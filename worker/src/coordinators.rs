//! Where coordinators listen, of which one leads: whoever waits to take over does not listen, so that the one that
//! answers is the leader. What does not answer, or is of an older term, makes room for the next in turn. What is asked
//! beside the session is asked of the coordinator that has welcomed this worker, by its term.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use graftwork_proto::{DialError, Route};
use graftwork_shared::{address::Address, id::Term};
use tonic::transport::Channel;

/// Addresses in turn; clones turn together.
#[derive(Clone, Debug)]
pub(crate) struct Coordinators {
    all: Arc<[Route]>,
    turn: Arc<AtomicUsize>,
    term: Arc<AtomicU64>,
}

impl Coordinators {
    /// Prepares the ways; connects to nothing. Over TLS the CA of this file is trusted, see [`Route::new`].
    pub(crate) fn new(addresses: Vec<Address>, ca: Option<&Path>) -> Result<Self, DialError> {
        let several = addresses.len() > 1;
        let routes = addresses.into_iter().map(|address| Route::new(address, ca));
        let routes = routes.map(|route| route.map(|route| if several { route.impatient() } else { route }));
        Ok(Self { all: routes.collect::<Result<_, _>>()?, turn: Arc::default(), term: Arc::default() })
    }

    /// The way to the one whose turn it is.
    pub(crate) fn current(&self) -> &Route {
        &self.all[self.turn.load(Ordering::Relaxed) % self.all.len()]
    }

    /// The next one's turn.
    pub(crate) fn advance(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether every one of them had its turn since this was asked with the same count.
    pub(crate) fn is_full_turn(&self) -> bool {
        self.turn.load(Ordering::Relaxed).is_multiple_of(self.all.len())
    }

    /// A coordinator of this term has welcomed this worker.
    pub(crate) fn led_by(&self, term: Term) {
        self.term.store(term.0, Ordering::Relaxed);
    }

    /// Channels that connect when they are used.
    pub(crate) fn lazy(&self) -> Channels {
        let all = self.all.iter().map(Route::lazy).collect();
        Channels { all, turn: Arc::clone(&self.turn), term: Arc::clone(&self.term) }
    }
}

impl fmt::Display for Coordinators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, route) in self.all.iter().enumerate() {
            write!(f, "{}{}", if at == 0 { "" } else { ", " }, route.address())?;
        }
        Ok(())
    }
}

/// A channel to each coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Channels {
    all: Arc<[Channel]>,
    turn: Arc<AtomicUsize>,
    term: Arc<AtomicU64>,
}

impl Channels {
    /// To the one whose turn it is.
    pub(crate) fn current(&self) -> Channel {
        self.all[self.turn.load(Ordering::Relaxed) % self.all.len()].clone()
    }

    /// Of the coordinator that welcomed this worker last; 0 before.
    pub(crate) fn term(&self) -> Term {
        Term(self.term.load(Ordering::Relaxed))
    }
}

impl From<Channel> for Channels {
    fn from(channel: Channel) -> Self {
        Self { all: Arc::new([channel]), turn: Arc::default(), term: Arc::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_take_turns_and_clones_turn_together() {
        let texts = ["http://127.0.0.1:1", "http://127.0.0.1:2"].map(str::to_owned);
        let addresses = texts.iter().map(|text| text.parse().unwrap()).collect();
        let coordinators = Coordinators::new(addresses, None).unwrap();
        let clone = coordinators.clone();
        assert!(coordinators.is_full_turn());
        coordinators.advance();
        assert_eq!((clone.current().address().to_string(), clone.is_full_turn()), (texts[1].clone(), false));
        clone.advance();
        assert_eq!(
            (coordinators.current().address().to_string(), coordinators.is_full_turn()),
            (texts[0].clone(), true)
        );
        assert_eq!(coordinators.to_string(), "http://127.0.0.1:1, http://127.0.0.1:2");
    }
}
