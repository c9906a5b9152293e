//! Where coordinators listen, of which one leads: whoever waits to take over does not listen, so that the one that
//! answers is the leader. What does not answer, or is of an older term, makes room for the next in turn.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tonic::transport::Channel;

use crate::channel::{Address, AddressError};

/// Addresses in turn; clones turn together.
#[derive(Clone, Debug)]
pub(crate) struct Coordinators {
    all: Arc<[Address]>,
    turn: Arc<AtomicUsize>,
}

impl Coordinators {
    /// Reads the addresses; connects to nothing.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, AddressError> {
        let several = texts.len() > 1;
        let all = texts.iter().map(|text| Address::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let all = all.into_iter().map(|address| if several { address.impatient() } else { address });
        Ok(Self { all: all.collect(), turn: Arc::default() })
    }

    /// The address whose turn it is.
    pub(crate) fn current(&self) -> &Address {
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

    /// Channels that connect when they are used.
    pub(crate) fn lazy(&self) -> Channels {
        Channels { all: self.all.iter().map(Address::lazy).collect(), turn: Arc::clone(&self.turn) }
    }
}

impl fmt::Display for Coordinators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, address) in self.all.iter().enumerate() {
            write!(f, "{}{address}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// A channel to each coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Channels {
    all: Arc<[Channel]>,
    turn: Arc<AtomicUsize>,
}

impl Channels {
    /// To the one whose turn it is.
    pub(crate) fn current(&self) -> Channel {
        self.all[self.turn.load(Ordering::Relaxed) % self.all.len()].clone()
    }
}

impl From<Channel> for Channels {
    fn from(channel: Channel) -> Self {
        Self { all: Arc::new([channel]), turn: Arc::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_take_turns_and_clones_turn_together() {
        let texts = ["http://127.0.0.1:1", "http://127.0.0.1:2"].map(str::to_owned);
        let coordinators = Coordinators::parse(&texts).unwrap();
        let clone = coordinators.clone();
        assert!(coordinators.is_full_turn());
        coordinators.advance();
        assert_eq!((clone.current().to_string(), clone.is_full_turn()), (texts[1].clone(), false));
        clone.advance();
        assert_eq!((coordinators.current().to_string(), coordinators.is_full_turn()), (texts[0].clone(), true));
        assert_eq!(coordinators.to_string(), "http://127.0.0.1:1, http://127.0.0.1:2");
        assert!(Coordinators::parse(&["nowhere".to_owned()]).is_err());
    }
}
