//! One server: how a question is put to it (datagrams, connections, without EDNS where it must be), how much it is given at a
//! time, and the probes that tell a slow name from a dead server.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{
    Miss, Outcome, Query, Reply, Server as Kind, State,
    connections::{Connections, Transport},
    context::Context,
    lanes::Lane,
    locked, tls,
    udp::{Pool, Waiter},
    vitals::Vitals,
};
use crate::{name::DomainName, wire::query};

/// One server and everything kept for it. Roles share it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) kind: Kind,
    pub(super) vitals: Arc<Vitals>,
    address: SocketAddr,
    /// One for each lane; none for a server that is asked over connections only.
    udp: Vec<Pool>,
    connections: Connections,
    /// Until when it is asked without EDNS.
    plain_until: Mutex<Option<Instant>>,
    places: Arc<Semaphore>,
    hopes: Semaphore,
    /// A task probes it.
    probed: AtomicBool,
    context: Arc<Context>,
}

/// How many packets one client's question may still cost, whatever the servers answer (RFC 5358, NXNS and the like).
#[derive(Debug)]
pub(super) struct Budget(AtomicU8);

/// Questions at one server at a time.
const PLACES: usize = 4096;

/// The same while it is down: enough to notice its return by a live question.
const HOPES: usize = 32;

/// How long a server that does not know EDNS is asked without.
const PLAIN: Duration = Duration::from_mins(15);

/// How long a probe waits for its reply.
const PROBE: Duration = Duration::from_secs(1);

/// The shortest and the longest pause between probes: with the probe itself at most 5 s from one to the next.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));

/// NS, which every server can answer for the root, or refuse.
const NS: u16 = 2;

impl Budget {
    pub(super) fn new(packets: u8) -> Self {
        Self(AtomicU8::new(packets))
    }

    /// The first packet is out already.
    pub(super) fn spend_first(&self) {
        let _ = self.spend();
    }

    fn spend(&self) -> Result<(), Miss> {
        let spent = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        spent.map(drop).map_err(|_| Miss::Spent)
    }
}

impl Server {
    pub(super) fn new(kind: Kind, address: SocketAddr, context: Arc<Context>) -> Arc<Self> {
        let vitals = Arc::new(Vitals::new(kind.clone(), Arc::clone(&context.metrics)));
        let udp = match kind {
            Kind::Udp(_) | Kind::System => {
                let pool = |lane| Pool::new(address, Arc::clone(&vitals), Arc::clone(lane));
                context.lanes.iter().map(pool).collect()
            }
            Kind::Tcp(_) | Kind::Tls { .. } | Kind::Https { .. } => Vec::new(),
        };
        let transport = transport(&kind, &context);
        Arc::new(Self {
            kind,
            address,
            udp,
            connections: Connections::new(address, transport, Arc::clone(&vitals), context.outlet.clone()),
            vitals,
            plain_until: Mutex::new(None),
            places: Arc::new(Semaphore::new(PLACES)),
            hopes: Semaphore::new(HOPES),
            probed: AtomicBool::new(false),
            context,
        })
    }

    /// Asks, without an end of its own; nothing is sent once the budget is spent. `first` is where the reply to a
    /// question that was [`put`](Self::put) already will be.
    pub(super) async fn ask(
        self: &Arc<Self>,
        query: &Arc<Query>,
        budget: &Budget,
        first: Option<oneshot::Receiver<Outcome>>,
    ) -> Result<Reply, Miss> {
        let _place = self.enter()?;
        let outcome = self.ask_as_it_likes(query, budget, first).await;
        if matches!(outcome, Err(Miss::Network | Miss::Mismatch | Miss::Bare)) && self.vitals.refused() {
            self.probe();
        }
        outcome.map(|packet| self.reply(packet))
    }

    /// Room for a question over UDP with EDNS; `None` where it has to be asked in another way.
    pub(super) fn place_direct(&self) -> Option<OwnedSemaphorePermit> {
        if self.udp.is_empty() || self.is_plain() {
            return None;
        }
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Asks over UDP with EDNS, once; the waiter is told what comes of it, or comes back where it could not be sent.
    pub(super) fn put(&self, lane: &Lane, query: &Arc<Query>, waiter: Waiter) -> Result<(), Waiter> {
        let Some(udp) = self.udp.get(lane.number) else { return Err(waiter) };
        udp.put(&self.context, query, true, waiter).map_err(|(_, waiter)| waiter)
    }

    /// What it said.
    pub(super) fn reply(&self, packet: Vec<u8>) -> Reply {
        Reply { packet: packet.into(), server: self.address }
    }

    /// It has not answered in time.
    pub(super) fn is_late(self: &Arc<Self>) {
        if self.vitals.late() {
            self.probe();
        }
    }

    fn enter(&self) -> Result<SemaphorePermit<'_>, Miss> {
        if self.vitals.state() == State::Down {
            return self.hopes.try_acquire().map_err(|_| Miss::Down);
        }
        self.places.try_acquire().map_err(|_| {
            self.context.metrics.upstream_over_server.increment();
            Miss::Full
        })
    }

    /// With EDNS, and where the server does not know that, without.
    async fn ask_as_it_likes(
        &self,
        query: &Arc<Query>,
        budget: &Budget,
        first: Option<oneshot::Receiver<Outcome>>,
    ) -> Outcome {
        let outcome = match first {
            Some(reply) => self.complete(query, true, budget, reply.await.unwrap_or(Err(Miss::Network))).await,
            None if self.is_plain() => return self.exchange(query, false, budget).await,
            None => self.exchange(query, true, budget).await,
        };
        match outcome {
            Ok(packet) if refuses_edns(&packet) => {}
            Err(Miss::Bare) => {}
            outcome => return outcome,
        }
        self.context.metrics.upstream_plain_retries.increment();
        let packet = self.exchange(query, false, budget).await?;
        if !refuses_edns(&packet) {
            *locked(&self.plain_until) = Some(Instant::now() + PLAIN);
        }
        Ok(packet)
    }

    fn is_plain(&self) -> bool {
        locked(&self.plain_until).is_some_and(|until| Instant::now() < until)
    }

    async fn exchange(&self, query: &Arc<Query>, edns: bool, budget: &Budget) -> Outcome {
        budget.spend()?;
        let Some(udp) = self.udp.first() else { return self.exchange_whole(query, edns).await };
        let outcome = udp.exchange(&self.context, query, edns).await;
        self.complete(query, edns, budget, outcome).await
    }

    /// What came over UDP, and where that was cut or tampered with, what comes over TCP.
    async fn complete(&self, query: &Arc<Query>, edns: bool, budget: &Budget, outcome: Outcome) -> Outcome {
        match outcome {
            Ok(packet) if query::is_truncated(&packet) => self.context.metrics.upstream_tcp_truncated.increment(),
            Err(Miss::Mismatch) => self.context.metrics.upstream_tcp_near_miss.increment(),
            outcome => return outcome,
        }
        budget.spend()?;
        self.exchange_whole(query, edns).await
    }

    /// Over a connection, where nothing has a reason to be cut.
    async fn exchange_whole(&self, query: &Arc<Query>, edns: bool) -> Outcome {
        let packet = self.connections.exchange(&self.context, query, edns).await?;
        if query::is_truncated(&packet) { Err(Miss::Mismatch) } else { Ok(packet) }
    }

    /// Sees to it that a task probes this server.
    fn probe(self: &Arc<Self>) {
        if !self.probed.swap(true, Ordering::AcqRel) {
            let server = Arc::downgrade(self);
            self.context.keep("the probing of a server", move || probe(Weak::clone(&server)));
        }
    }

    fn wants_probes(&self) -> bool {
        matches!(self.vitals.state(), State::Suspect | State::Down)
    }
}

/// What connections to a server carry.
fn transport(kind: &Kind, context: &Context) -> Transport {
    let config = || Arc::new(tls::client_config(&context.trusted));
    match kind {
        Kind::System | Kind::Udp(_) | Kind::Tcp(_) => Transport::Tcp,
        Kind::Tls { name, .. } => Transport::Tls { name: name.clone(), config: config() },
        Kind::Https { name, path, .. } => {
            Transport::Https { name: name.clone(), path: Arc::clone(path), config: config() }
        }
    }
}

/// Asks for the root's servers until there is a reply to anything. Any reply will do; silence takes a suspect down.
/// Holds the server only while it asks, so that one that is no longer configured can go.
async fn probe(server: Weak<Server>) {
    let query = Arc::new(Query { name: DomainName::root(), qtype: NS, dnssec_ok: false, checking_disabled: false });
    let (shortest, longest) = PAUSE;
    let mut pause = shortest;
    loop {
        let Some(server) = server.upgrade() else { return };
        if !server.wants_probes() {
            server.probed.store(false, Ordering::Release);
            // It may have become suspect again since the look, by somebody who still saw a task.
            if !server.wants_probes() || server.probed.swap(true, Ordering::AcqRel) {
                return;
            }
        }
        if server.vitals.state() == State::Suspect {
            pause = shortest;
        }
        let budget = Budget::new(2);
        if !matches!(
            timeout(PROBE, server.exchange(&query, true, &budget)).await,
            Ok(Ok(_) | Err(Miss::Bare | Miss::Unreadable))
        ) {
            server.vitals.probe_failed();
        }
        drop(server);
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

fn refuses_edns(packet: &[u8]) -> bool {
    matches!(query::rcode(packet), query::FORMERR | query::NOTIMP) && query::is_without_edns(packet)
}
