//! Questions over UDP, hard to answer for anybody but the server.
//!
//! A question goes out through a socket drawn at random from a small pool. A socket is connected, so the kernel
//! drops what does not come from the server's address and port; its own port is the kernel's random choice from
//! `ip_local_port_range`, which keeps clear of reserved ports; it carries few questions, each with an id from a
//! CSPRNG, within a second, and then gets another port or closes. Whatever arrives and is not the reply to one of its questions ends the socket at
//! once: the caller asks those questions again over TCP, so that nobody gets a second guess (RFC 5452 section 9).
//!
//! Not here: truncation, EDNS, health's consequences, other servers. hickory's UDP client opens a socket per
//! question, which costs four times as much, and decodes every reply.

use std::{
    io::ErrorKind,
    mem,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Miss, Outcome, Query,
    context::Context,
    direct::{Direct, Unsettled},
    lanes::Lane,
    locked,
    vitals::Vitals,
};
use crate::{
    sys::datagram::disconnect,
    wire::query::{self, Fit},
};

/// The sockets of one lane towards one server.
#[derive(Debug)]
pub(super) struct Pool {
    server: SocketAddr,
    vitals: Arc<Vitals>,
    lane: Arc<Lane>,
    /// A socket belongs to the lane that hears it, and closes with it.
    sockets: Arc<Mutex<Sockets>>,
}

#[derive(Debug, Default)]
struct Sockets {
    /// Those that still take questions.
    open: Vec<Weak<Socket>>,
    /// Those that have carried theirs, and can do so again from another port.
    spare: Vec<Weak<Socket>>,
}

/// A socket and what it carried. It closes when dropped.
#[derive(Debug)]
pub(super) struct Socket {
    inner: UdpSocket,
    state: Mutex<SocketState>,
    pool: Weak<Mutex<Sockets>>,
    vitals: Arc<Vitals>,
    stopped: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct SocketState {
    /// Since when it has its port.
    since: Instant,
    /// It is not to be used again.
    closed: bool,
    /// How many more questions it takes.
    room: usize,
    asked: Vec<Asked>,
}

/// A question a socket carried. It stays until the socket closes, so that a late or doubled reply is known.
#[derive(Debug)]
struct Asked {
    id: u16,
    query: Arc<Query>,
    at: Instant,
    answered: bool,
    waiter: Option<Waiter>,
}

/// Who waits for the reply to a question.
#[derive(Debug)]
pub(super) enum Waiter {
    /// A task.
    Task(oneshot::Sender<Outcome>),
    /// Nobody: what is to be done is done where the reply is heard.
    Direct(Direct),
}

/// Is there more to be heard on a socket?
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Heard {
    More,
    All,
}

/// Questions a socket carries. Six are promised at most; one less leaves room for a port the kernel gives out twice.
const QUESTIONS: usize = 5;

/// How long a socket takes questions.
const LIFE: Duration = Duration::from_secs(1);

/// How long after that it waits for replies.
const LINGER: Duration = Duration::from_millis(2500);

/// Sockets to draw from.
const WIDTH: usize = 64;

/// Datagrams to an old port that are thrown away; one more would end the socket.
const STALE: usize = 64;

/// Room for a datagram; we offer 1232 bytes, and what is longer than this counts as truncated.
pub(super) const BUFFER: usize = 4096;

impl Pool {
    pub(super) fn new(server: SocketAddr, vitals: Arc<Vitals>, lane: Arc<Lane>) -> Self {
        Self { server, vitals, lane, sockets: Arc::default() }
    }

    /// Asks once and waits for the reply without an end of its own.
    pub(super) async fn exchange(&self, context: &Context, query: &Arc<Query>, edns: bool) -> Outcome {
        let (waiter, reply) = oneshot::channel();
        self.put(context, query, edns, Waiter::Task(waiter)).map_err(|(miss, _)| miss)?;
        reply.await.unwrap_or(Err(Miss::Network))
    }

    /// Asks once; the waiter hears of it, unless it comes back since there is no socket to ask through.
    pub(super) fn put(
        &self,
        context: &Context,
        query: &Arc<Query>,
        edns: bool,
        waiter: Waiter,
    ) -> Result<(), (Miss, Waiter)> {
        let (socket, id) = self.place(context, query, waiter)?;
        context.metrics.upstream_queries_udp.increment();
        if socket.inner.send(&query.to_packet(id, edns)).is_err() {
            // No route, or an ICMP error for an earlier question of this socket.
            socket.end(Miss::Network);
        }
        Ok(())
    }

    /// A place on a socket of the pool, or on one from a new port.
    fn place(&self, context: &Context, query: &Arc<Query>, waiter: Waiter) -> Result<Place, (Miss, Waiter)> {
        let mut waiter = waiter;
        let mut sockets = locked(&self.sockets);
        loop {
            if sockets.open.len() < WIDTH {
                if let Some(spare) = sockets.spare.pop() {
                    let Some(socket) = spare.upgrade() else { continue };
                    drop(sockets);
                    if socket.renew(self.server) {
                        return self.place_first(socket, query, waiter);
                    }
                    sockets = locked(&self.sockets);
                    continue;
                }
                if let Ok(permit) = Arc::clone(&context.udp_sockets).try_acquire_owned() {
                    drop(sockets);
                    return match self.open_socket(context, permit) {
                        Ok(socket) => self.place_first(socket, query, waiter),
                        Err(miss) => Err((miss, waiter)),
                    };
                }
            }
            if sockets.open.is_empty() {
                context.metrics.upstream_over_sockets.increment();
                return Err((Miss::Full, waiter));
            }
            let drawn = rand::random_range(0..sockets.open.len());
            if let Some(socket) = sockets.open.get(drawn).and_then(Weak::upgrade) {
                match socket.register(query, waiter) {
                    Ok((id, room)) => {
                        if room == 0 {
                            sockets.open.swap_remove(drawn);
                        }
                        return Ok((socket, id));
                    }
                    Err(back) => waiter = back,
                }
            }
            // It has closed, or takes no more.
            sockets.open.swap_remove(drawn);
        }
    }

    /// A new port takes its first question at once: so a slow trickle of questions has a port for each.
    fn place_first(&self, socket: Arc<Socket>, query: &Arc<Query>, waiter: Waiter) -> Result<Place, (Miss, Waiter)> {
        let (id, _) = socket.register(query, waiter).map_err(|waiter| (Miss::Full, waiter))?;
        locked(&self.sockets).open.push(Arc::downgrade(&socket));
        Ok((socket, id))
    }

    fn open_socket(&self, context: &Context, permit: OwnedSemaphorePermit) -> Result<Arc<Socket>, Miss> {
        let opened = context.outlet.udp(self.server).and_then(|inner| {
            let socket = Arc::new(Socket {
                inner,
                state: Mutex::new(SocketState::new()),
                pool: Arc::downgrade(&self.sockets),
                vitals: Arc::clone(&self.vitals),
                stopped: context.stopped.clone(),
                _permit: permit,
            });
            self.lane.add(&socket)?;
            Ok(socket)
        });
        opened.map_err(|error| {
            // No route, a firewall of our own, or a stop: another server may be reached.
            const UNREACHABLE: [ErrorKind; 4] = [
                ErrorKind::NetworkUnreachable,
                ErrorKind::HostUnreachable,
                ErrorKind::PermissionDenied,
                ErrorKind::NotConnected,
            ];
            if UNREACHABLE.contains(&error.kind()) {
                return Miss::Network;
            }
            // Descriptors, ports or memory have run out.
            context.metrics.upstream_over_sockets.increment();
            Miss::Full
        })
    }
}

/// A socket with the id a question has on it.
type Place = (Arc<Socket>, u16);

impl Socket {
    /// Takes one datagram, if there is one, and hands it to whom it is for.
    pub(super) fn hear(self: &Arc<Self>, buffer: &mut [u8]) -> Heard {
        match self.inner.recv(buffer) {
            Ok(length) => self.deliver(buffer.get_mut(..length).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Heard::More,
            // ICMP said that nobody listens there, or the network is gone.
            Err(_) => self.end(Miss::Network),
        }
    }

    /// Begins anew, from another port. False where it is closing, or there is none to be had.
    fn renew(&self, server: SocketAddr) -> bool {
        let mut state = locked(&self.state);
        if state.closed {
            return false;
        }
        let renewed = disconnect(&self.inner).and_then(|()| self.inner.connect(server));
        // What came to the old port is nobody's by now.
        let _ = (0..STALE).take_while(|_| self.inner.recv(&mut [0; 1]).is_ok()).count();
        *state = SocketState { asked: mem::take(&mut state.asked), closed: renewed.is_err(), ..SocketState::new() };
        state.asked.clear();
        renewed.is_ok()
    }

    /// Is it over? Those whose patience has ended are given a task, from then on; they come to `late`.
    pub(super) fn look(&self, now: Instant, late: &mut Vec<Unsettled>) -> bool {
        let mut state = locked(&self.state);
        let age = now.saturating_duration_since(state.since);
        if age >= LIFE {
            state.room = 0;
        }
        for asked in &mut state.asked {
            let is_late = |waiter: &mut Waiter| matches!(waiter, Waiter::Direct(direct) if direct.is_late(now));
            if let Some(Waiter::Direct(direct)) = asked.waiter.take_if(is_late) {
                let (waiter, reply) = oneshot::channel();
                asked.waiter = Some(Waiter::Task(waiter));
                late.push(direct.await_task(asked.at, reply));
            }
        }
        // A spare one waits for the rest of its life to be of use.
        state.closed |= age >= LIFE && (state.is_over() || age >= LIFE + LINGER);
        state.closed
    }

    /// Does anybody still wait for a reply?
    pub(super) fn is_waited_for(&self) -> bool {
        let is_waiting = |waiter: &Waiter| match waiter {
            Waiter::Task(waiter) => !waiter.is_closed(),
            Waiter::Direct(_) => true,
        };
        locked(&self.state).asked.iter().any(|asked| asked.waiter.as_ref().is_some_and(is_waiting))
    }

    /// Were those it was opened for stopped?
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.is_cancelled()
    }

    /// Takes a question, unless the socket is full or closing. Tells its id and how many more there is room for.
    fn register(&self, query: &Arc<Query>, waiter: Waiter) -> Result<(u16, usize), Waiter> {
        let at = Instant::now();
        let mut state = locked(&self.state);
        if state.closed || state.room == 0 || at.saturating_duration_since(state.since) >= LIFE {
            return Err(waiter);
        }
        state.room -= 1;
        let id = loop {
            let id = rand::random();
            if state.asked.iter().all(|asked| asked.id != id) {
                break id;
            }
        };
        state.asked.push(Asked { id, query: Arc::clone(query), at, answered: false, waiter: Some(waiter) });
        Ok((id, state.room))
    }

    fn deliver(self: &Arc<Self>, packet: &mut [u8]) -> Heard {
        let mut state = locked(&self.state);
        let id = query::id(packet);
        let asked = state.asked.iter_mut().find(|asked| Some(asked.id) == id);
        let (asked, fit) = match asked.map(|asked| (asked.query.fit(asked.id, packet), asked)) {
            Some((fit @ (Fit::Reply | Fit::Bare), asked)) => (asked, fit),
            Some((Fit::NearMiss, _)) | None => {
                drop(state);
                self.vitals.metrics().upstream_near_misses.increment();
                return self.end(Miss::Mismatch);
            }
        };
        // A second reply to the same question is the network's doubling; the first one counted.
        let is_first = !mem::replace(&mut asked.answered, true);
        let (at, waiter) = (asked.at, asked.waiter.take());
        let is_over = is_first && state.is_over();
        // Others may ask and be told while this one is being seen to.
        drop(state);
        if is_first {
            self.vitals.answered(at.elapsed());
        }
        if let Some(waiter) = waiter {
            let outcome = if fit == Fit::Bare {
                Err(Miss::Bare)
            } else {
                if packet.len() == BUFFER {
                    query::set_truncated(packet);
                }
                Ok(packet.to_vec())
            };
            waiter.tell(outcome, at);
        }
        if is_over { self.is_spare() } else { Heard::More }
    }

    /// It has carried its questions: it is kept for others, where that many may be wanted.
    fn is_spare(self: &Arc<Self>) -> Heard {
        if let Some(pool) = self.pool.upgrade() {
            let spare = &mut locked(&pool).spare;
            if spare.len() < WIDTH {
                spare.push(Arc::downgrade(self));
                return Heard::More;
            }
        }
        locked(&self.state).closed = true;
        Heard::All
    }

    /// Takes no more questions and gives up those it has.
    fn end(&self, miss: Miss) -> Heard {
        let mut given_up = Vec::new();
        let mut state = locked(&self.state);
        state.closed = true;
        for asked in &mut state.asked {
            asked.answered = true;
            given_up.extend(asked.waiter.take().map(|waiter| (waiter, asked.at)));
        }
        drop(state);
        for (waiter, at) in given_up {
            waiter.tell(Err(miss), at);
        }
        Heard::All
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl SocketState {
    fn new() -> Self {
        Self { since: Instant::now(), closed: false, room: QUESTIONS, asked: Vec::with_capacity(QUESTIONS) }
    }

    /// Is nothing more expected?
    fn is_over(&self) -> bool {
        self.room == 0 && self.asked.iter().all(|asked| asked.answered)
    }
}

impl Waiter {
    fn tell(self, outcome: Outcome, asked: Instant) {
        match self {
            Self::Task(waiter) => drop(waiter.send(outcome)),
            Self::Direct(direct) => direct.settle(outcome, asked),
        }
    }
}
