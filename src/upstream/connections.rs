//! The connections to one server: opened when needed, shared, closed when idle, made anew when the server closed them.
//!
//! Several are used side by side under load, since there are servers that work off one connection question by
//! question. What a connection carries is the business of `tcp` (framed, over TCP or TLS) and `https`; both take
//! questions from a queue and note in a [`Ledger`] what they owe. A server that refuses connections, or a certificate
//! that is not the right one, is tried again after a pause that grows to a second; which servers are asked at all is
//! decided elsewhere.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::{Instant, timeout},
};

use super::{Miss, Outlet, Query, context::Context, https, locked, tcp, tls, vitals::Vitals};

/// The connections to one server.
#[derive(Debug)]
pub(super) struct Connections {
    line: Arc<Line>,
    open: Mutex<Vec<Connection>>,
}

/// What the connections to a server have in common.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) server: SocketAddr,
    pub(super) transport: Transport,
    pub(super) vitals: Arc<Vitals>,
    outlet: Outlet,
    pause: Mutex<Pause>,
}

/// What questions travel in. Never another one than configured: who wants TLS does not want less.
#[derive(Debug)]
pub(super) enum Transport {
    Tcp,
    Tls { name: ServerName<'static>, config: Arc<ClientConfig> },
    Https { name: ServerName<'static>, path: Arc<str>, config: Arc<ClientConfig> },
}

/// The near end of a connection.
#[derive(Clone, Debug)]
struct Connection {
    questions: mpsc::Sender<Question>,
    /// One for each question that is waited for.
    places: Arc<Semaphore>,
    opened: Instant,
}

#[derive(Debug)]
pub(super) struct Question {
    pub(super) query: Arc<Query>,
    pub(super) edns: bool,
    waiter: oneshot::Sender<Result<Vec<u8>, Lost>>,
}

/// Why a connection gave no reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Lost {
    /// It could not be made, or broke before it gave any reply; or the question alone was turned down.
    Broken,
    /// It had served before and ended then: most likely the server closed it for being idle, so a newer one is worth a
    /// try.
    Stale(Instant),
    /// The question was answered by a bare FORMERR or NOTIMP.
    Bare,
    /// There was a reply, and hickory cannot decode it.
    Unreadable,
}

/// What a connection owes replies to, by the id it gave each question.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    owed: HashMap<u16, Owed>,
    /// Replies it gave so far.
    replies: u64,
}

#[derive(Debug)]
struct Owed {
    query: Arc<Query>,
    at: Instant,
    waiter: oneshot::Sender<Result<Vec<u8>, Lost>>,
}

/// When the next connection may be tried, after some that failed.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
    until: Option<Instant>,
}

/// Questions on one connection at a time.
const PIPELINE: usize = 256;

/// Questions on a connection from which on another one is opened.
const BUSY: usize = 16;

/// Connections to one server.
const CONNECTIONS: usize = 8;

/// How long a connection with questions may give no reply before it counts as dead.
pub(super) const STALL: Duration = Duration::from_secs(3);

/// The pause after the second failure in a row; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause: short beside the one between probes, so that a server's return is noticed in time.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Connections {
    pub(super) fn new(server: SocketAddr, transport: Transport, vitals: Arc<Vitals>, outlet: Outlet) -> Self {
        let line = Arc::new(Line { server, transport, vitals, outlet, pause: Mutex::default() });
        Self { line, open: Mutex::default() }
    }

    /// Asks once, or twice where the first connection turns out to be closed, and waits without an end of its own.
    pub(super) async fn exchange(&self, context: &Context, query: &Arc<Query>, edns: bool) -> Result<Vec<u8>, Miss> {
        let mut outcome = self.ask(context, query, edns, None).await?;
        if let Err(Lost::Stale(ended)) = outcome {
            outcome = self.ask(context, query, edns, Some(ended)).await?;
        }
        outcome.map_err(|lost| match lost {
            Lost::Stale(_) | Lost::Broken => Miss::Network,
            Lost::Bare => Miss::Bare,
            Lost::Unreadable => Miss::Unreadable,
        })
    }

    async fn ask(
        &self,
        context: &Context,
        query: &Arc<Query>,
        edns: bool,
        opened_after: Option<Instant>,
    ) -> Result<Result<Vec<u8>, Lost>, Miss> {
        let connection = self.pick(context, opened_after)?;
        let _place = connection.places.try_acquire().map_err(|_| Miss::Full)?;
        let (waiter, reply) = oneshot::channel();
        let question = Question { query: Arc::clone(query), edns, waiter };
        self.line.count_query(context);
        match connection.questions.try_send(question) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => return Ok(Err(Lost::Stale(Instant::now()))),
            Err(TrySendError::Full(_)) => return Err(Miss::Full),
        }
        Ok(reply.await.unwrap_or_else(|_| Err(Lost::Stale(Instant::now()))))
    }

    /// The least busy connection, or a new one. With a moment, only those opened since: when a server goes, it goes for
    /// all connections, and HTTP/2 may not have noticed on the others.
    fn pick(&self, context: &Context, opened_after: Option<Instant>) -> Result<Connection, Miss> {
        let mut open = locked(&self.open);
        open.retain(|connection| !connection.questions.is_closed());
        let usable = open.iter().filter(|connection| opened_after.is_none_or(|moment| connection.opened >= moment));
        let least = usable.max_by_key(|connection| connection.places.available_permits());
        let busy = least.is_none_or(|connection| connection.places.available_permits() + BUSY <= PIPELINE);
        if !busy || open.len() >= CONNECTIONS {
            return least.cloned().ok_or(Miss::Full);
        }
        if locked(&self.line.pause).is_on() {
            return least.cloned().ok_or(Miss::Network);
        }
        let Ok(permit) = Arc::clone(&context.tcp_sockets).try_acquire_owned() else {
            context.metrics.upstream_over_sockets.increment();
            return least.cloned().ok_or(Miss::Full);
        };
        let (questions, asked) = mpsc::channel(PIPELINE);
        context.spawn(serve(Arc::clone(&self.line), asked, permit));
        let connection = Connection { questions, places: Arc::new(Semaphore::new(PIPELINE)), opened: Instant::now() };
        open.push(connection.clone());
        Ok(connection)
    }
}

/// Makes a connection and serves it until it is idle, stalls or breaks.
async fn serve(line: Arc<Line>, mut questions: mpsc::Receiver<Question>, _permit: OwnedSemaphorePermit) {
    let mut ledger = Ledger::default();
    let ended = line.converse(&mut questions, &mut ledger).await;
    questions.close();
    let served = ledger.replies > 0;
    if let (Err(error), false) = (&ended, served) {
        line.vitals.trouble(error);
    }
    locked(&line.pause).note(served || ended.is_ok());
    let lost = if served { Lost::Stale(Instant::now()) } else { Lost::Broken };
    while let Ok(question) = questions.try_recv() {
        let _ = question.waiter.send(Err(lost));
    }
    for (_, owed) in ledger.owed {
        let _ = owed.waiter.send(Err(lost));
    }
}

impl Line {
    /// `Ok` where it ended for want of questions.
    async fn converse(&self, questions: &mut mpsc::Receiver<Question>, ledger: &mut Ledger) -> io::Result<()> {
        match &self.transport {
            Transport::Tcp => {
                let stream = self.in_time(self.outlet.tcp(self.server)).await?;
                tcp::converse(stream, self, questions, ledger).await
            }
            Transport::Tls { name, config } => {
                let connecting = async {
                    let stream = self.outlet.tcp(self.server).await?;
                    tls::connect(stream, name.clone(), Arc::clone(config)).await
                };
                let stream = self.in_time(connecting).await?;
                tcp::converse(stream, self, questions, ledger).await
            }
            Transport::Https { name, path, config } => {
                let session = self.in_time(https::connect(&self.outlet, self.server, (name, path), config)).await?;
                https::converse(&session, self, questions, ledger).await
            }
        }
    }

    async fn in_time<T>(&self, connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        // TLS takes one or two round trips more. Nobody waits for a reply longer than this.
        let longest = match self.transport {
            Transport::Tcp => Duration::from_secs(1),
            Transport::Tls { .. } | Transport::Https { .. } => super::race::LONGEST,
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
        timeout(longest, connecting).await.unwrap_or_else(|_| Err(late()))
    }

    /// How long a connection without questions stays: the dearer it is to make, the longer.
    pub(super) fn idle(&self) -> Duration {
        match self.transport {
            Transport::Tcp => Duration::from_secs(8),
            Transport::Tls { .. } | Transport::Https { .. } => Duration::from_secs(30),
        }
    }

    fn count_query(&self, context: &Context) {
        let metrics = &context.metrics;
        match self.transport {
            Transport::Tcp => metrics.upstream_queries_tcp.increment(),
            Transport::Tls { .. } => metrics.upstream_queries_tls.increment(),
            Transport::Https { .. } => metrics.upstream_queries_https.increment(),
        }
    }
}

impl Ledger {
    pub(super) fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.owed.len() >= PIPELINE
    }

    /// Takes a question, and gives it an id that nobody can guess.
    pub(super) fn enter(&mut self, question: Question) -> u16 {
        let Question { query, waiter, .. } = question;
        let id = loop {
            let id = rand::random();
            if !self.owed.contains_key(&id) {
                break id;
            }
        };
        self.owed.insert(id, Owed { query, at: Instant::now(), waiter });
        id
    }

    /// The question with this id.
    pub(super) fn query(&self, id: u16) -> Option<&Query> {
        self.owed.get(&id).map(|owed| &*owed.query)
    }

    /// Hands on what came of a question.
    pub(super) fn settle(&mut self, id: u16, outcome: Result<Vec<u8>, Lost>, vitals: &Vitals) {
        let Some(owed) = self.owed.remove(&id) else { return };
        match outcome {
            Ok(_) | Err(Lost::Bare | Lost::Unreadable) => {
                self.replies += 1;
                vitals.answered(owed.at.elapsed());
            }
            Err(Lost::Broken | Lost::Stale(_)) => {}
        }
        let _ = owed.waiter.send(outcome);
    }
}

impl Pause {
    /// A connection ended, and was good for something or not.
    fn note(&mut self, good: bool) {
        self.failures = if good { 0 } else { self.failures.saturating_add(1) };
        self.until = after(self.failures).map(|pause| Instant::now() + pause);
    }

    fn is_on(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }
}

/// The pause after so many failures in a row. One is no reason: servers restart.
fn after(failures: u32) -> Option<Duration> {
    let doublings = failures.checked_sub(2)?;
    Some(FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_failures_grows_to_a_second() {
        let pauses = [0, 1, 2, 3, 4, 5, 6, 99].map(|failures| after(failures).map_or(0, |pause| pause.as_millis()));
        assert_eq!(pauses, [0, 0, 100, 200, 400, 800, 1000, 1000]);
    }
}
