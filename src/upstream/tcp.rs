//! Questions over TCP: framed, pipelined, answers in any order (RFC 7766).
//!
//! Connections are opened when needed, closed when idle, and made anew when the server closed them. Several are
//! used side by side under load, since there are servers that work off one connection question by question.
//! hickory's `DnsExchange` is not used here: it takes 32 questions at a time and says Busy to the next, looks
//! through all of them for every packet, and drops a reply whose records it cannot decode.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::{Instant, sleep_until, timeout},
};

use super::{Miss, Query, context::Context, locked, vitals::Vitals};
use crate::wire::query::{self, Fit};

/// The connections to one server.
#[derive(Debug)]
pub(super) struct Connections {
    server: SocketAddr,
    vitals: Arc<Vitals>,
    open: Mutex<Vec<Connection>>,
}

/// The near end of a connection.
#[derive(Clone, Debug)]
struct Connection {
    questions: mpsc::Sender<Question>,
    /// One for each question that is waited for.
    places: Arc<Semaphore>,
}

#[derive(Debug)]
struct Question {
    query: Arc<Query>,
    edns: bool,
    waiter: oneshot::Sender<Result<Vec<u8>, Lost>>,
}

/// Why a connection gave no reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lost {
    /// It could not be made, or broke before it gave any reply.
    Broken,
    /// It had served before: most likely the server closed it for being idle, so a new one is worth a try.
    Stale,
    /// The question was answered by a bare FORMERR or NOTIMP.
    Bare,
}

/// Questions on one connection at a time.
const PIPELINE: usize = 256;

/// Questions on a connection from which on another one is opened.
const BUSY: usize = 16;

/// Connections to one server.
const CONNECTIONS: usize = 8;

/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(1);

/// How long a connection without questions stays.
const IDLE: Duration = Duration::from_secs(8);

/// How long a connection with questions may give no reply before it counts as dead.
const STALL: Duration = Duration::from_secs(3);

impl Connections {
    pub(super) fn new(server: SocketAddr, vitals: Arc<Vitals>) -> Self {
        Self { server, vitals, open: Mutex::default() }
    }

    /// Asks once, or twice where the first connection turns out to be closed, and waits without an end of its own.
    pub(super) async fn exchange(&self, context: &Context, query: &Arc<Query>, edns: bool) -> Result<Vec<u8>, Miss> {
        match self.ask(context, query, edns).await? {
            Err(Lost::Stale) => match self.ask(context, query, edns).await? {
                Ok(packet) => Ok(packet),
                Err(Lost::Bare) => Err(Miss::Bare),
                Err(Lost::Stale | Lost::Broken) => Err(Miss::Network),
            },
            Ok(packet) => Ok(packet),
            Err(Lost::Bare) => Err(Miss::Bare),
            Err(Lost::Broken) => Err(Miss::Network),
        }
    }

    async fn ask(&self, context: &Context, query: &Arc<Query>, edns: bool) -> Result<Result<Vec<u8>, Lost>, Miss> {
        let connection = self.pick(context)?;
        let _place = connection.places.try_acquire().map_err(|_| Miss::Full)?;
        let (waiter, reply) = oneshot::channel();
        let question = Question { query: Arc::clone(query), edns, waiter };
        context.metrics.upstream_queries_tcp.increment();
        match connection.questions.try_send(question) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => return Ok(Err(Lost::Stale)),
            Err(TrySendError::Full(_)) => return Err(Miss::Full),
        }
        Ok(reply.await.unwrap_or(Err(Lost::Stale)))
    }

    /// The least busy connection, or a new one.
    fn pick(&self, context: &Context) -> Result<Connection, Miss> {
        let mut open = locked(&self.open);
        open.retain(|connection| !connection.questions.is_closed());
        let least = open.iter().max_by_key(|connection| connection.places.available_permits());
        let busy = least.is_none_or(|connection| connection.places.available_permits() + BUSY <= PIPELINE);
        if !busy || open.len() >= CONNECTIONS {
            return least.cloned().ok_or(Miss::Full);
        }
        let Ok(permit) = Arc::clone(&context.tcp_sockets).try_acquire_owned() else {
            context.metrics.upstream_over_sockets.increment();
            return least.cloned().ok_or(Miss::Full);
        };
        let (questions, asked) = mpsc::channel(PIPELINE);
        context.spawn(serve(self.server, asked, Arc::clone(&self.vitals), permit));
        let connection = Connection { questions, places: Arc::new(Semaphore::new(PIPELINE)) };
        open.push(connection.clone());
        Ok(connection)
    }
}

/// Makes a connection and serves it until it is idle, stalls or breaks.
async fn serve(
    server: SocketAddr,
    mut questions: mpsc::Receiver<Question>,
    vitals: Arc<Vitals>,
    _permit: OwnedSemaphorePermit,
) {
    let mut wire = Wire::default();
    if let Ok(Ok(stream)) = timeout(CONNECT, TcpStream::connect(server)).await {
        let _ = stream.set_nodelay(true);
        // How it ended shows in what it still owes.
        let _ = wire.run(stream, &mut questions, &vitals).await;
    }
    questions.close();
    let lost = if wire.replies > 0 { Lost::Stale } else { Lost::Broken };
    while let Ok(question) = questions.try_recv() {
        let _ = question.waiter.send(Err(lost));
    }
    for (_, owed) in wire.owed {
        let _ = owed.waiter.send(Err(lost));
    }
}

/// What is under way on a connection.
#[derive(Debug, Default)]
struct Wire {
    owed: HashMap<u16, Owed>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Replies it gave so far.
    replies: u64,
}

#[derive(Debug)]
struct Owed {
    query: Arc<Query>,
    at: Instant,
    waiter: oneshot::Sender<Result<Vec<u8>, Lost>>,
}

impl Wire {
    async fn run(
        &mut self,
        mut stream: TcpStream,
        questions: &mut mpsc::Receiver<Question>,
        vitals: &Vitals,
    ) -> io::Result<()> {
        let (mut reader, mut writer) = stream.split();
        let mut progress = Instant::now();
        loop {
            let end = progress + if self.owed.is_empty() { IDLE } else { STALL };
            // Each branch can be dropped at any time without losing bytes.
            tokio::select! {
                question = questions.recv(), if self.owed.len() < PIPELINE => {
                    let Some(question) = question else { return Ok(()) };
                    if self.owed.is_empty() {
                        progress = Instant::now();
                    }
                    self.take(question);
                }
                written = writer.write(&self.output), if !self.output.is_empty() => {
                    self.output.drain(..written?);
                }
                read = reader.read_buf(&mut self.input) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    while let Some(packet) = next_frame(&mut self.input) {
                        self.deliver(packet, vitals)?;
                        progress = Instant::now();
                    }
                }
                () = sleep_until(end) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    fn take(&mut self, question: Question) {
        let Question { query, edns, waiter } = question;
        let id = loop {
            let id = rand::random();
            if !self.owed.contains_key(&id) {
                break id;
            }
        };
        let packet = query.to_packet(id, edns);
        // A name is at most 255 bytes, so the length always fits.
        self.output.extend(u16::try_from(packet.len()).unwrap_or_default().to_be_bytes());
        self.output.extend(packet);
        self.owed.insert(id, Owed { query, at: Instant::now(), waiter });
    }

    /// A reply nobody asked for means that the two ends no longer agree: the connection is of no more use.
    fn deliver(&mut self, packet: Vec<u8>, vitals: &Vitals) -> io::Result<()> {
        let near_miss = || {
            vitals.metrics().upstream_near_misses.increment();
            io::Error::from(io::ErrorKind::InvalidData)
        };
        let id = query::id(&packet).ok_or_else(near_miss)?;
        let owed = self.owed.get(&id).ok_or_else(near_miss)?;
        let outcome = match owed.query.fit(id, &packet) {
            Fit::Reply => Ok(packet),
            Fit::Bare => Err(Lost::Bare),
            Fit::NearMiss => return Err(near_miss()),
        };
        if let Some(owed) = self.owed.remove(&id) {
            self.replies += 1;
            vitals.answered(owed.at.elapsed());
            let _ = owed.waiter.send(outcome);
        }
        Ok(())
    }
}

/// Takes the first whole message off the front (RFC 1035 section 4.2.2).
fn next_frame(input: &mut Vec<u8>) -> Option<Vec<u8>> {
    let &[high, low] = input.first_chunk()?;
    let end = 2 + usize::from(u16::from_be_bytes([high, low]));
    let packet = input.get(2..end)?.to_vec();
    input.drain(..end);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_off_whole_and_in_order() {
        let mut input = vec![0, 2, 7, 8, 0, 0, 0, 3, 1];
        assert_eq!(next_frame(&mut input), Some(vec![7, 8]));
        assert_eq!(next_frame(&mut input), Some(vec![]));
        assert_eq!(next_frame(&mut input), None);
        input.extend([2, 3]);
        assert_eq!(next_frame(&mut input), Some(vec![1, 2, 3]));
        assert_eq!((next_frame(&mut input), input.len()), (None, 0));
    }
}
