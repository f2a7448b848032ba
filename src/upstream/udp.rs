//! Questions over UDP, hard to answer for anybody but the server.
//!
//! A question goes out through a socket drawn at random from a small pool. A socket is connected, so the kernel
//! drops what does not come from the server's address and port; its own port is the kernel's random choice from
//! `ip_local_port_range`, which keeps clear of reserved ports; it carries few questions, each with an id from a
//! CSPRNG, and lives a second. Whatever arrives and is not the reply to one of its questions ends the socket at
//! once: the caller asks those questions again over TCP, so that nobody gets a second guess (RFC 5452 section 9).
//!
//! Not here: truncation, EDNS, health's consequences, other servers. hickory's UDP client opens a socket per
//! question, which costs four times as much, and decodes every reply.

use std::{
    io::{self, ErrorKind},
    mem,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    Miss, Outcome, Query,
    context::Context,
    direct::{Direct, Unsettled},
    locked,
    vitals::Vitals,
};
use crate::wire::query::{self, Fit};

/// The sockets towards one server that still take questions.
#[derive(Debug)]
pub(super) struct Pool {
    server: SocketAddr,
    vitals: Arc<Vitals>,
    /// A socket belongs to the lane that hears it, and closes with it.
    open: Mutex<Vec<Weak<Socket>>>,
}

/// A socket and what it carried. It closes when dropped.
#[derive(Debug)]
pub(super) struct Socket {
    inner: UdpSocket,
    opened: Instant,
    state: Mutex<SocketState>,
    vitals: Arc<Vitals>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct SocketState {
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

/// Room for a datagram; we offer 1232 bytes, and what is longer than this counts as truncated.
pub(super) const BUFFER: usize = 4096;

impl Pool {
    pub(super) fn new(server: SocketAddr, vitals: Arc<Vitals>) -> Self {
        Self { server, vitals, open: Mutex::default() }
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

    /// A place on a socket of the pool, or on a new one.
    fn place(&self, context: &Context, query: &Arc<Query>, waiter: Waiter) -> Result<Place, (Miss, Waiter)> {
        let mut waiter = waiter;
        let mut open = locked(&self.open);
        loop {
            if open.len() < WIDTH
                && let Ok(permit) = Arc::clone(&context.udp_sockets).try_acquire_owned()
            {
                drop(open);
                return self.place_on_new(context, permit, query, waiter);
            }
            if open.is_empty() {
                context.metrics.upstream_over_sockets.increment();
                return Err((Miss::Full, waiter));
            }
            let drawn = rand::random_range(0..open.len());
            if let Some(socket) = open.get(drawn).and_then(Weak::upgrade) {
                match socket.register(query, waiter) {
                    Ok((id, room)) => {
                        if room == 0 {
                            open.swap_remove(drawn);
                        }
                        return Ok((socket, id));
                    }
                    Err(back) => waiter = back,
                }
            }
            // It has closed, or takes no more.
            open.swap_remove(drawn);
        }
    }

    /// A new socket takes its first question at once: so a slow trickle of questions has a port for each.
    fn place_on_new(
        &self,
        context: &Context,
        permit: OwnedSemaphorePermit,
        query: &Arc<Query>,
        waiter: Waiter,
    ) -> Result<Place, (Miss, Waiter)> {
        let socket = match self.open_socket(context, permit) {
            Ok(socket) => socket,
            Err(miss) => return Err((miss, waiter)),
        };
        let (id, _) = socket.register(query, waiter).map_err(|waiter| (Miss::Full, waiter))?;
        locked(&self.open).push(Arc::downgrade(&socket));
        Ok((socket, id))
    }

    fn open_socket(&self, context: &Context, permit: OwnedSemaphorePermit) -> Result<Arc<Socket>, Miss> {
        let opened = connected(self.server).and_then(|inner| {
            let state = SocketState { room: QUESTIONS, asked: Vec::with_capacity(QUESTIONS) };
            let vitals = Arc::clone(&self.vitals);
            let opened = Instant::now();
            let socket = Arc::new(Socket { inner, opened, state: Mutex::new(state), vitals, _permit: permit });
            context.lanes.add(&socket)?;
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

fn connected(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(server),
        socket2::Type::DGRAM.nonblocking().cloexec(),
        Some(socket2::Protocol::UDP),
    )?;
    // Connecting an unbound socket makes the kernel choose address and port.
    socket.connect(&server.into())?;
    Ok(socket.into())
}

impl Socket {
    /// Takes one datagram, if there is one, and hands it to whom it is for.
    pub(super) fn hear(&self, buffer: &mut [u8]) -> Heard {
        match self.inner.recv(buffer) {
            Ok(length) => self.deliver(buffer.get_mut(..length).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Heard::More,
            // ICMP said that nobody listens there, or the network is gone.
            Err(_) => self.end(Miss::Network),
        }
    }

    /// Is it over? Those whose patience has ended are given a task, from then on; they come to `late`.
    pub(super) fn look(&self, now: Instant, late: &mut Vec<Unsettled>) -> bool {
        let age = now.saturating_duration_since(self.opened);
        let mut state = locked(&self.state);
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
        state.is_over() || age >= LIFE + LINGER
    }

    /// Takes a question, unless the socket is full or closing. Tells its id and how many more there is room for.
    fn register(&self, query: &Arc<Query>, waiter: Waiter) -> Result<(u16, usize), Waiter> {
        let at = Instant::now();
        let mut state = locked(&self.state);
        if state.room == 0 || at.saturating_duration_since(self.opened) >= LIFE {
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

    fn deliver(&self, packet: &mut [u8]) -> Heard {
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
        let heard = if state.is_over() { Heard::All } else { Heard::More };
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
        heard
    }

    /// Takes no more questions and gives up those it has.
    fn end(&self, miss: Miss) -> Heard {
        let mut given_up = Vec::new();
        let mut state = locked(&self.state);
        state.room = 0;
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
