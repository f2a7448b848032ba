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
    net::SocketAddr,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Instant, sleep_until},
};

use super::{Miss, Query, context::Context, locked, vitals::Vitals};
use crate::wire::query::{self, Fit};

/// The sockets towards one server that still take questions.
#[derive(Debug)]
pub(super) struct Pool {
    server: SocketAddr,
    vitals: Arc<Vitals>,
    /// A socket belongs to its task and closes with it.
    open: Mutex<Vec<Weak<Socket>>>,
}

#[derive(Debug)]
struct Socket {
    inner: UdpSocket,
    state: Mutex<SocketState>,
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
    waiter: Option<oneshot::Sender<Outcome>>,
}

/// What arrived.
enum Delivery {
    Expected,
    NearMiss,
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
const BUFFER: usize = 4096;

impl Pool {
    pub(super) fn new(server: SocketAddr, vitals: Arc<Vitals>) -> Self {
        Self { server, vitals, open: Mutex::default() }
    }

    /// Asks once and waits for the reply without an end of its own.
    pub(super) async fn exchange(&self, context: &Context, query: &Arc<Query>, edns: bool) -> Result<Vec<u8>, Miss> {
        let (socket, id, reply) = self.place(context, query)?;
        context.metrics.upstream_queries_udp.increment();
        if socket.inner.send(&query.to_packet(id, edns)).await.is_err() {
            // No route, or an ICMP error for an earlier question of this socket.
            socket.end(Miss::Network);
            return Err(Miss::Network);
        }
        drop(socket);
        reply.await.unwrap_or(Err(Miss::Network))
    }

    /// A place on a socket of the pool, or on a new one.
    fn place(&self, context: &Context, query: &Arc<Query>) -> Result<Place, Miss> {
        let mut open = locked(&self.open);
        open.retain(|socket| socket.upgrade().is_some_and(|socket| locked(&socket.state).room > 0));
        if open.len() < WIDTH {
            match Arc::clone(&context.udp_sockets).try_acquire_owned() {
                // A new one takes its first question at once: so a slow trickle of questions has a port for each.
                Ok(permit) => {
                    let socket = self.open_socket(context, permit)?;
                    open.push(Arc::downgrade(&socket));
                    let (id, reply) = socket.register(query).ok_or(Miss::Full)?;
                    return Ok((socket, id, reply));
                }
                Err(_) if open.is_empty() => {
                    context.metrics.upstream_over_sockets.increment();
                    return Err(Miss::Full);
                }
                Err(_) => {}
            }
        }
        // A socket may close between the look above and here; the next one is tried then.
        while !open.is_empty() {
            let drawn = rand::random_range(0..open.len());
            if let Some(socket) = open.get(drawn).and_then(Weak::upgrade)
                && let Some((id, reply)) = socket.register(query)
            {
                return Ok((socket, id, reply));
            }
            open.swap_remove(drawn);
        }
        Err(Miss::Full)
    }

    fn open_socket(&self, context: &Context, permit: OwnedSemaphorePermit) -> Result<Arc<Socket>, Miss> {
        let inner = connected(self.server).map_err(|error| {
            // No route, or a firewall of our own: another server may be reached.
            const UNREACHABLE: [ErrorKind; 3] =
                [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable, ErrorKind::PermissionDenied];
            if UNREACHABLE.contains(&error.kind()) {
                return Miss::Network;
            }
            // Descriptors, ports or memory have run out.
            context.metrics.upstream_over_sockets.increment();
            Miss::Full
        })?;
        let state = SocketState { room: QUESTIONS, asked: Vec::with_capacity(QUESTIONS) };
        let socket = Arc::new(Socket { inner, state: Mutex::new(state) });
        context.spawn(serve(Arc::clone(&socket), Arc::clone(&self.vitals), permit));
        Ok(socket)
    }
}

/// What became of a question.
type Outcome = Result<Vec<u8>, Miss>;

/// A socket with the id a question has on it, and where its outcome will be.
type Place = (Arc<Socket>, u16, oneshot::Receiver<Outcome>);

fn connected(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(server),
        socket2::Type::DGRAM.nonblocking().cloexec(),
        Some(socket2::Protocol::UDP),
    )?;
    // Connecting an unbound socket makes the kernel choose address and port.
    socket.connect(&server.into())?;
    UdpSocket::from_std(socket.into())
}

/// Hands out what a socket receives until nothing more is expected of it.
async fn serve(socket: Arc<Socket>, vitals: Arc<Vitals>, _permit: OwnedSemaphorePermit) {
    let mut buffer = vec![0; BUFFER];
    let mut end = Instant::now() + LIFE;
    let mut lingering = false;
    loop {
        tokio::select! {
            received = socket.inner.recv(&mut buffer) => match received {
                Ok(length) => match socket.deliver(buffer.get_mut(..length).unwrap_or_default(), &vitals) {
                    Delivery::Expected => {}
                    Delivery::NearMiss => {
                        vitals.metrics().upstream_near_misses.increment();
                        return socket.end(Miss::Mismatch);
                    }
                },
                // ICMP said that nobody listens there, or the network is gone.
                Err(_) => return socket.end(Miss::Network),
            },
            () = sleep_until(end) => {
                if lingering {
                    return;
                }
                lingering = true;
                end += LINGER;
                locked(&socket.state).room = 0;
            }
        }
        let state = locked(&socket.state);
        if state.room == 0 && state.asked.iter().all(|asked| asked.answered) {
            return;
        }
    }
}

impl Socket {
    /// Takes a question, unless the socket is full or closing.
    fn register(&self, query: &Arc<Query>) -> Option<(u16, oneshot::Receiver<Outcome>)> {
        let mut state = locked(&self.state);
        state.room = state.room.checked_sub(1)?;
        let id = std::iter::repeat_with(rand::random).find(|&id| state.asked.iter().all(|asked| asked.id != id))?;
        let (waiter, reply) = oneshot::channel();
        let query = Arc::clone(query);
        state.asked.push(Asked { id, query, at: Instant::now(), answered: false, waiter: Some(waiter) });
        Some((id, reply))
    }

    fn deliver(&self, packet: &mut [u8], vitals: &Vitals) -> Delivery {
        let mut state = locked(&self.state);
        let id = query::id(packet);
        let Some(asked) = state.asked.iter_mut().find(|asked| Some(asked.id) == id) else { return Delivery::NearMiss };
        let outcome = match asked.query.fit(asked.id, packet) {
            Fit::NearMiss => return Delivery::NearMiss,
            Fit::Bare => Err(Miss::Bare),
            Fit::Reply => {
                if packet.len() == BUFFER {
                    query::set_truncated(packet);
                }
                Ok(packet.to_vec())
            }
        };
        // A second reply to the same question is the network's doubling; the first one counted.
        if !mem::replace(&mut asked.answered, true) {
            vitals.answered(asked.at.elapsed());
            if let Some(waiter) = asked.waiter.take() {
                let _ = waiter.send(outcome);
            }
        }
        Delivery::Expected
    }

    /// Takes no more questions and gives up those it has.
    fn end(&self, miss: Miss) {
        let mut state = locked(&self.state);
        state.room = 0;
        for asked in &mut state.asked {
            asked.answered = true;
            if let Some(waiter) = asked.waiter.take() {
                let _ = waiter.send(Err(miss));
            }
        }
    }
}
