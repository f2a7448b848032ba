//! Asks other resolvers: a pool of servers with health, order, retry, and one query per question in flight.

mod options;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;

pub use options::{InvalidServer, Options, Server, Zone};

pub use crate::wire::query::Query;
use crate::{
    metrics::Metrics,
    name::{DomainName, NameRef},
};

/// Whom we ask. Shared by everybody who asks; dropping the last one ends what it started.
#[derive(Debug)]
pub struct Upstream {}

/// What a server said, byte for byte. Its id is the one we sent, so the client's has to be put in; QR, opcode
/// and the whole question have been compared with what we asked (the case of the name aside).
#[derive(Debug)]
pub struct Reply {
    /// The whole message, at least a header and the question; never truncated (TC was asked again over TCP).
    pub packet: Box<[u8]>,
    /// Who said it.
    pub server: SocketAddr,
}

/// Why there is no reply. The text is fit for an Extended DNS Error.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Failure {
    /// No server is known: resolv.conf is missing or names none.
    #[error("no upstream server is known")]
    NoServer,
    /// Every server that was asked kept silent.
    #[error("no upstream server answers")]
    Silent,
    /// The servers could not be reached: refused, no route, connection lost.
    #[error("no upstream server can be reached")]
    Network,
    /// So many questions wait already that this one was turned away.
    #[error("too many questions wait for the upstream servers")]
    Overloaded,
    /// Every server passes our own questions back to us.
    #[error("every upstream server forwards to this one")]
    Loop,
    /// We are being stopped.
    #[error("shutting down")]
    Stopped,
}

/// Why asking cannot begin.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration names one of our own listen addresses as a server.
    #[error("upstream server {server} is this daemon itself: it listens on {listen}")]
    OwnAddress {
        /// The server as configured.
        server: Server,
        /// Our listen address that it is.
        listen: SocketAddr,
    },
}

/// What asking has to know about the place it runs in.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Where we listen ourselves (with real ports), wildcards included: never asked.
    pub own: Vec<SocketAddr>,
    /// What `system` follows. `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The list behind systemd-resolved's stub. `/run/systemd/resolve/resolv.conf`.
    pub resolved_conf: PathBuf,
}

/// How a server is doing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerHealth {
    /// Which.
    pub server: Server,
    /// The zones it is asked for; empty for every other name.
    pub zones: Vec<DomainName>,
    /// What is thought of it.
    pub state: State,
    /// Smoothed time from question to reply; `None` before the first reply.
    pub round_trip: Option<Duration>,
}

/// What is thought of a server.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum State {
    /// It answers, or was not asked yet.
    Up,
    /// It was late several times in a row; asked after the others while a probe is under way.
    Suspect,
    /// It did not answer a probe either; skipped while another one is up, and probed again.
    Down,
    /// It passed our own question back to us; not asked, and probed again.
    Looping,
}

impl Upstream {
    /// Begins to follow `system` and to watch the servers. Asks nobody before it returns, and never fails because
    /// a server or resolv.conf is not there yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError::OwnAddress`].
    pub fn start(_options: &Options, _surroundings: Surroundings, _metrics: Arc<Metrics>) -> Result<Self, StartError> {
        Ok(Self {})
    }

    /// Asks the servers responsible for the name. Takes at most 2.5 s, so that a client hears of a failure within 3 s.
    /// Equal questions share one query; dropping the future harms nobody else's.
    ///
    /// # Errors
    /// [`Failure`]; its [`ede`](Failure::ede) and text belong into the SERVFAIL.
    pub async fn ask(&self, _query: &Query) -> Result<Arc<Reply>, Failure> {
        Err(Failure::NoServer)
    }

    /// Each server of each role.
    pub fn health(&self) -> Vec<ServerHealth> {
        Vec::new()
    }

    /// Is this one of the names we are asking our servers for right now to find loops? Cheap.
    /// Such a question must not be passed on: tell [`canary_seen`](Self::canary_seen) and refuse it.
    pub fn is_canary(&self, _name: NameRef<'_>) -> bool {
        false
    }

    /// The canary came to our own door: the server it was sent through forwards to us.
    pub fn canary_seen(&self, _name: NameRef<'_>) {}

    /// Ends every task; questions in flight fail with [`Failure::Stopped`].
    pub async fn stop(&self) {}
}

impl Failure {
    /// The Extended DNS Error's code (RFC 8914 section 4).
    pub fn ede(self) -> u16 {
        match self {
            Self::NoServer | Self::Stopped => 14,
            Self::Silent => 22,
            Self::Network => 23,
            Self::Overloaded | Self::Loop => 0,
        }
    }
}

impl Surroundings {
    /// A system as it usually is, where we listen at `own`.
    pub fn new(own: Vec<SocketAddr>) -> Self {
        Self { own, resolv_conf: "/etc/resolv.conf".into(), resolved_conf: "/run/systemd/resolve/resolv.conf".into() }
    }
}
