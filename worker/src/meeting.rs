//! Where the members of a group find each other: a few values kept by the coordinator, for one epoch of one lease.
//!
//! The calls block and come from the stage's own thread, or from a transport's; never from the runtime.

use std::{net::IpAddr, time::Duration};

use graftwork_collective::{Backend, Rendezvous, RendezvousError, tls::Identity};
use graftwork_proto::{
    Token, pushback,
    v1::{MeetReply, MeetRequest, groups_client::GroupsClient, meet_request::What},
};
use graftwork_shared::id::{LeaseId, Term};
use tokio::runtime::Handle;
use tonic::{Code, service::interceptor::InterceptedService, transport::Channel};

use crate::coordinators::Channels;

/// A coordinator that takes longer to answer than it was asked to wait, and this on top, is taken for unreachable.
const SLACK: Duration = Duration::from_secs(5);

/// Where this worker meets others.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The coordinators.
    channels: Channels,
    token: Token,
    reached: Reached,
}

/// How other members of a group reach this worker.
#[derive(Clone, Debug)]
pub(crate) struct Reached {
    /// Address of this machine that they reach.
    pub(crate) address: IpAddr,
    /// What is shown to them where exchanges are encrypted.
    pub(crate) identity: Option<Identity>,
}

impl Reached {
    /// What carries a group of processors.
    pub(crate) fn backend(&self) -> Backend {
        let address = self.address;
        match self.identity.clone() {
            None => Backend::Gloo { address },
            Some(identity) => Backend::Tls { address, identity },
        }
    }

    /// Workers of which this is not the same cannot form a group: where they are, if no other host reaches them, and
    /// how they speak.
    pub(crate) fn among(&self, host: &str) -> String {
        let host = if self.address.is_loopback() { host } else { "" };
        match self.identity {
            None => host.to_owned(),
            Some(_) => format!("{host} over TLS").trim_start().to_owned(),
        }
    }
}

impl Place {
    /// Meets over these channels, and is reached so.
    pub(crate) fn new(channels: impl Into<Channels>, token: Token, reached: Reached) -> Self {
        Self { channels: channels.into(), token, reached }
    }

    /// What carries a group of processors.
    pub(crate) fn backend(&self) -> Backend {
        self.reached.backend()
    }
}

/// One epoch's meeting.
pub(crate) struct Meeting {
    client: GroupsClient<InterceptedService<Channel, Token>>,
    runtime: Handle,
    lease: LeaseId,
    epoch: u64,
    term: Term,
}

impl Meeting {
    pub(crate) fn new(place: &Place, runtime: Handle, lease: LeaseId, epoch: u64) -> Self {
        // The coordinator of this epoch; another one would end the group, and open none of its epochs.
        let client = GroupsClient::with_interceptor(place.channels.current(), place.token.clone());
        Self { client, runtime, lease, epoch, term: place.channels.term() }
    }

    fn ask(&self, name: &str, what: What, patience: Duration) -> Result<MeetReply, RendezvousError> {
        let (lease, epoch, term, name) = (self.lease.0, self.epoch, self.term.0, name.to_owned());
        let request = MeetRequest { lease, epoch, name: name.clone(), what: Some(what), term };
        let mut client = self.client.clone();
        let unreachable = |problem: String| RendezvousError::Unreachable(format!("the coordinator: {problem}"));
        // Whoever was told to come back was not heard, so asking again adds nothing twice.
        let heard = async {
            loop {
                let answer = client.meet(request.clone()).await;
                match answer.as_ref().err().and_then(pushback) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return answer,
                }
            }
        };
        let answer = self.runtime.block_on(async { tokio::time::timeout(patience + SLACK, heard).await });
        match answer {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) if status.code() == Code::NotFound => {
                let limit_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
                Err(RendezvousError::Deadline { key: name, limit_ms })
            }
            Ok(Err(status)) => Err(unreachable(format!("{}: {}", status.code(), status.message()))),
            Err(_) => Err(unreachable(format!("no answer within {} seconds", (patience + SLACK).as_secs()))),
        }
    }
}

impl Rendezvous for Meeting {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), RendezvousError> {
        self.ask(key, What::Set(value.to_vec()), Duration::ZERO).map(drop)
    }

    fn get(&self, key: &str, deadline: Duration) -> Result<Vec<u8>, RendezvousError> {
        let wait_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.ask(key, What::WaitMs(wait_ms), deadline).map(|reply| reply.value)
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, RendezvousError> {
        self.ask(key, What::Add(amount), Duration::ZERO).map(|reply| reply.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_workers_meet_as_before() {
        let among = |address: &str| Reached { address: address.parse().unwrap(), identity: None }.among("here");
        assert_eq!(
            (among("127.0.0.1"), among("::1"), among("10.0.0.8")),
            ("here".into(), "here".into(), String::new())
        );
    }
}
