//! One question, in order: who asks, what the policy says, cache, upstream, what the policy says of the answer, reply, record.

mod admission;
mod limits;

use std::net::{IpAddr, SocketAddr};

pub use admission::{Access, Admission, Permit};
pub use limits::{ClientScope, Options, Others};

use crate::audit::Transport;

/// The pipeline. Doors share one.
#[derive(Debug)]
pub struct Gateway {}

/// Who asks, as a door knows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asker {
    /// The client: the peer, or whom a forwarder named in a PROXY header.
    pub client: SocketAddr,
    /// The forwarder that named it.
    pub via: Option<IpAddr>,
    /// What the question came over.
    pub transport: Transport,
}

/// What came of the part of a question that needs no waiting.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// Say nothing.
    Silence,
    /// The reply is in the buffer.
    Reply,
    /// The upstream has to be asked: [`Gateway::finish`] does.
    Wait(Box<Waiting>),
}

/// A question that waits for an upstream. It counts against its client until it is dropped.
#[derive(Debug)]
pub struct Waiting {}

impl Gateway {
    /// Everything up to a cache hit, synchronously: no task, no lock that a writer can hold long.
    /// `reply` is cleared first; what it holds after [`Step::Reply`] is a whole DNS message, without a length prefix.
    pub fn receive(&self, _packet: &[u8], _asker: Asker, reply: &mut Vec<u8>) -> Step {
        reply.clear();
        Step::Silence
    }

    /// Asks the upstream, judges the answer and gives the reply; `None` is silence.
    pub async fn finish(&self, _waiting: Box<Waiting>) -> Option<Vec<u8>> {
        None
    }
}
