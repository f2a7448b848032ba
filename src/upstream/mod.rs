//! Asks other resolvers: a pool of servers with health, order, retry, and one query per question in flight.
//!
//! | file | does |
//! |---|---|
//! | `options` | whom to ask |
//! | `roster` | which servers serve which names; follows resolv.conf |
//! | `race` | one question, several servers |
//! | `server` | one server: transport, EDNS, bounds, probes |
//! | `health`, `vitals` | what is thought of it |
//! | `flight` | questions in flight, and who waits for them |
//! | `direct` | the common case: one server, one datagram, no task |
//! | `udp`, `lanes` | datagrams, and the threads that hear them |
//! | `connections` | the connections to one server, whatever they carry |
//! | `tcp`, `https`, `tls` | what they carry: framed over TCP or TLS, HTTP/2; and whom we trust |
//! | `outlet` | every socket towards a server, made |
//! | `canary`, `own` | loops |
//! | `system` | resolv.conf |
//!
//! Not here: answers are neither judged nor cached, aliases not followed, signatures not checked. UDP, TCP and TLS are
//! our own, on bytes: hickory's decode and encode every message, drop replies they cannot decode, open a UDP socket
//! per question, and take 32 questions on a connection. HTTPS is hickory's, where the last two do not hold.

mod canary;
mod connections;
mod context;
mod direct;
mod flight;
mod health;
mod https;
mod lanes;
mod options;
mod outlet;
mod own;
mod race;
mod roster;
mod server;
mod system;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod udp;
mod vitals;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::sync::oneshot;

pub use lanes::{Ear, Lane, Lanes};
pub use options::{InvalidServer, Options, Server, Zone};
pub use outlet::Outlet;
pub use tls::{Authorities, InvalidAuthorities};

use self::{canary::Canaries, context::Context, flight::Board, roster::Roster};
pub use crate::wire::query::Query;
use crate::{
    metrics::Metrics,
    name::{DomainName, NameRef},
};

/// Questions in flight, in all.
const PLACES: usize = 10_000;

/// Whom we ask. Shared by everybody who asks; dropping the last one ends what it started.
#[derive(Debug)]
pub struct Upstream {
    roster: Arc<Roster>,
    canaries: Arc<Canaries>,
    in_flight: Arc<Board>,
    context: Arc<Context>,
}

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
    /// What servers are asked through over UDP.
    pub lanes: Arc<Lanes>,
    /// What makes sockets towards servers.
    pub outlet: Outlet,
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
    /// It was late, or the network refused a question; asked after the others while a probe is under way.
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
    /// [`StartError`].
    pub fn start(options: &Options, surroundings: Surroundings, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let context = Arc::new(Context::new(&options.authorities, &surroundings, Arc::clone(&metrics)));
        let canaries = Arc::new(Canaries::default());
        let roster = Roster::start(options, surroundings, Arc::clone(&context), Arc::clone(&canaries))?;
        Ok(Self { roster, canaries, in_flight: Arc::new(Board::new(PLACES, metrics)), context })
    }

    /// Asks the servers responsible for the name, as [`ask_then`](Self::ask_then) does, and waits.
    /// Dropping the future harms nobody who asks the same.
    ///
    /// # Errors
    /// [`Failure`]; its [`ede`](Failure::ede) and text belong into the SERVFAIL.
    pub async fn ask(&self, query: &Query) -> Result<Arc<Reply>, Failure> {
        let (waiter, said) = oneshot::channel();
        self.ask_then(query.clone(), self.context.lanes.common(), move |outcome| drop(waiter.send(outcome)));
        // Gone without a word only where everything is stopped.
        said.await.unwrap_or(Err(Failure::Stopped))
    }

    /// Asks the servers responsible for the name, and tells `then` within 2.5 s, so that a client hears of a failure
    /// within 3 s. Equal questions share one query. `then` is called by the thread that hears the lane, by another that
    /// others wait for, or at once by the caller's: it must not block.
    pub fn ask_then(&self, query: Query, lane: &Lane, then: impl FnOnce(Result<Arc<Reply>, Failure>) + Send + 'static) {
        if let Some(flight) = self.in_flight.enter(query, Box::new(then)) {
            let servers = self.roster.servers_for(flight.query().name.as_name());
            direct::begin(&self.context, lane, servers, flight);
        }
    }

    /// A question of our own: asks the default servers whatever zone the name lies in, takes no client's place and
    /// shares no client's query. Ends within 2.5 s. How many there are at once is the caller's to bound.
    ///
    /// # Errors
    /// [`Failure`]. The caller counts it.
    pub async fn look_up(&self, query: Query) -> Result<Reply, Failure> {
        let (servers, query) = (self.roster.default_servers(), Arc::new(query));
        let asking = race::race(&servers, &query, None);
        self.context.stopped.run_until_cancelled(asking).await.unwrap_or(Err(Failure::Stopped))
    }

    /// What makes the sockets towards servers, for others who speak to the outside.
    pub fn outlet(&self) -> &Outlet {
        &self.context.outlet
    }

    /// Each server of each role.
    pub fn health(&self) -> Vec<ServerHealth> {
        self.roster.health()
    }

    /// Is this one of the names we are asking our servers for right now to find loops? Cheap.
    /// Such a question must not be passed on: tell [`canary_seen`](Self::canary_seen) and refuse it.
    pub fn is_canary(&self, name: NameRef<'_>) -> bool {
        self.canaries.is_out(name)
    }

    /// The canary came to our own door: the server it was sent through forwards to us.
    pub fn canary_seen(&self, name: NameRef<'_>) {
        self.canaries.seen(name);
    }

    /// Ends every task and closes every socket; questions in flight fail with [`Failure::Stopped`].
    pub async fn stop(&self) {
        self.context.stopped.cancel();
        self.context.lanes.close_stopped();
        self.context.tasks.close();
        self.context.tasks.wait().await;
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.context.stopped.cancel();
        self.context.lanes.close_stopped();
    }
}

/// What one server said to one question.
type Outcome = Result<Vec<u8>, Miss>;

/// Why one server gave no reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Miss {
    /// Refused, no route, or the connection was lost.
    Network,
    /// Something came that was not the reply.
    Mismatch,
    /// FORMERR or NOTIMP without the question.
    Bare,
    /// The server has answered, and hickory cannot decode it.
    Unreadable,
    /// A bound of ours.
    Full,
    /// The server is down, and enough questions hope for its return already.
    Down,
    /// The question has cost all the packets it may.
    Spent,
}

/// Locks; a panic elsewhere leaves nothing half-done behind these locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn count(self, metrics: &Metrics) {
        match self {
            Self::NoServer => metrics.upstream_failed_no_server.increment(),
            Self::Silent => metrics.upstream_failed_silent.increment(),
            Self::Network => metrics.upstream_failed_network.increment(),
            Self::Loop => metrics.upstream_failed_loop.increment(),
            // Counted where the bound is; and a stop is no failure.
            Self::Overloaded | Self::Stopped => {}
        }
    }
}

/// resolv.conf, and the list of servers behind systemd-resolved's stub.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

impl Surroundings {
    /// A system as it usually is, where we listen at `own`.
    pub fn new(own: Vec<SocketAddr>, lanes: Lanes) -> Self {
        let (resolv_conf, resolved_conf) = (RESOLV_CONF.into(), RESOLVED_CONF.into());
        Self { own, lanes: Arc::new(lanes), outlet: Outlet::default(), resolv_conf, resolved_conf }
    }

    fn system_servers(&self) -> Result<Vec<SocketAddr>, system::NoServers> {
        system::servers(&self.resolv_conf, &self.resolved_conf)
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) use system::parse as resolv_conf_servers;

/// The servers that `system` stands for at this moment; none where the system names none.
pub fn system_servers() -> Vec<SocketAddr> {
    system::servers(RESOLV_CONF.as_ref(), RESOLVED_CONF.as_ref()).unwrap_or_default()
}
