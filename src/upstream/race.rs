//! One question put to several servers, in order and soon side by side, until one has an answer.
//!
//! The best server is asked first. Whenever patience ends, or a server fails or refuses, the next one is asked too,
//! and those asked before may still answer. What a server says of its own trouble (SERVFAIL, REFUSED) is kept in case
//! nobody knows better. The number of packets and the time are bounded.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{
    Failure, Miss, Outcome, Query, Reply, State,
    server::{Budget, Server},
};
use crate::wire::query;

/// Longest time for one question: a client has to hear within 3 s.
pub(super) const LONGEST: Duration = Duration::from_millis(2500);

/// Packets to servers for one question.
const PACKETS: u8 = 8;

/// Times a question is put to the same server, since datagrams get lost: the second and later ones only while it is
/// silent.
const ROUNDS: u32 = 2;

/// The same where there is but one server.
const ROUNDS_ALONE: u32 = 3;

/// A question that went to a server before the race began: its first try.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) server: Arc<Server>,
    pub(super) asked: Instant,
    pub(super) reply: oneshot::Receiver<Outcome>,
}

/// Puts the question to `servers`.
pub(super) async fn race(servers: &[Arc<Server>], query: &Arc<Query>, begun: Option<Begun>) -> Result<Reply, Failure> {
    let order = order(servers)?;
    let rounds = if order.len() == 1 { ROUNDS_ALONE } else { ROUNDS };
    let mut plan = plan(&order, rounds);
    let budget = Budget::new(PACKETS);
    let end = begun.as_ref().map_or_else(Instant::now, |begun| begun.asked) + LONGEST;
    let mut out = FuturesUnordered::new();
    let mut heard = Heard::default();
    // Whose patience ends when; the start of the next try.
    let mut latest: Option<Arc<Server>> = None;
    let mut next = Instant::now();
    if let Some(Begun { server, asked, reply }) = begun {
        if let Some(first) = plan.iter().position(|(_, planned)| Arc::ptr_eq(planned, &server)) {
            plan.remove(first);
        }
        next = asked + server.vitals.with(|health| health.patience());
        latest = Some(Arc::clone(&server));
        budget.spend_first();
        out.push(put(server, query, &budget, Some(reply)));
    }
    let mut plan = plan.into_iter();
    loop {
        tokio::select! {
            biased;
            Some((server, outcome)) = out.next() => {
                // Somebody else may know, and need not wait for this one's patience to end.
                if out.is_empty() || latest.as_ref().is_some_and(|latest| Arc::ptr_eq(latest, &server)) {
                    latest = None;
                    next = Instant::now();
                }
                match outcome {
                    Ok(reply) if is_final(&reply.packet) => return Ok(reply),
                    outcome => heard.note(server, outcome),
                }
            }
            () = due(next.min(end)) => {
                if let Some(late) = latest.take() {
                    late.is_late();
                }
                if Instant::now() >= end {
                    heard.silent = true;
                    return heard.verdict();
                }
                match plan.find(|(_, server)| heard.wants(server)) {
                    Some((round, server)) => {
                        latest = Some(Arc::clone(&server));
                        next = Instant::now() + server.vitals.with(|health| health.patience()) * (1 << round);
                        out.push(put(server, query, &budget, None));
                    }
                    // A second opinion on trouble is worth patience, not all the time there is.
                    None if out.is_empty() || heard.trouble.is_some() => return heard.verdict(),
                    None => next = end,
                }
            }
        }
    }
}

/// Returns at that time. A timer would take a millisecond or two even where that has come.
async fn due(at: Instant) {
    if Instant::now() < at {
        sleep_until(at).await;
    }
}

async fn put(
    server: Arc<Server>,
    query: &Arc<Query>,
    budget: &Budget,
    first: Option<oneshot::Receiver<Outcome>>,
) -> (Arc<Server>, Result<Reply, Miss>) {
    let outcome = server.ask(query, budget, first).await;
    (server, outcome)
}

/// The best first. Those that are down come last and looping ones not at all.
fn order(servers: &[Arc<Server>]) -> Result<Vec<Arc<Server>>, Failure> {
    if servers.is_empty() {
        return Err(Failure::NoServer);
    }
    let mut ranked: Vec<_> =
        servers.iter().map(|server| (server.vitals.with(|health| health.rank()), server)).collect();
    ranked.retain(|((state, _), _)| *state != State::Looping);
    ranked.sort_by_key(|(rank, _)| *rank);
    let order: Vec<_> = ranked.into_iter().map(|(_, server)| Arc::clone(server)).collect();
    for passed_over in order.iter().skip(1) {
        passed_over.vitals.with(|health| health.passed_over());
    }
    if order.is_empty() { Err(Failure::Loop) } else { Ok(order) }
}

/// Each server of the order, round after round, with the round's number.
fn plan(order: &[Arc<Server>], rounds: u32) -> Vec<(u32, Arc<Server>)> {
    let round = |round| order.iter().map(move |server| (round, Arc::clone(server)));
    (0..rounds).flat_map(round).collect()
}

/// Does the reply settle the question? Trouble of the server's own does not.
pub(super) fn is_final(packet: &[u8]) -> bool {
    !matches!(query::rcode(packet), query::SERVFAIL | query::REFUSED | query::FORMERR | query::NOTIMP)
}

/// What the servers said or did instead of answering.
#[derive(Default)]
struct Heard {
    done: Vec<Arc<Server>>,
    trouble: Option<Reply>,
    silent: bool,
    network: bool,
    full: bool,
}

impl Heard {
    fn note(&mut self, server: Arc<Server>, outcome: Result<Reply, Miss>) {
        self.done.push(server);
        match outcome {
            Ok(reply) => self.trouble = Some(reply),
            Err(Miss::Network | Miss::Mismatch | Miss::Bare | Miss::Unreadable) => self.network = true,
            Err(Miss::Down | Miss::Spent) => self.silent = true,
            Err(Miss::Full) => self.full = true,
        }
    }

    /// Is the server worth a question? Not one that has said or shown already that it will not answer, nor, once there
    /// is a reply of any kind, one that is down.
    fn wants(&self, server: &Arc<Server>) -> bool {
        let done = self.done.iter().any(|done| Arc::ptr_eq(done, server));
        !done && (self.trouble.is_none() || server.vitals.state() != State::Down)
    }

    /// The last reply where there was one, whatever it says; else the reason that tells most.
    fn verdict(self) -> Result<Reply, Failure> {
        if let Some(reply) = self.trouble {
            return Ok(reply);
        }
        Err(match self {
            Self { silent: true, .. } => Failure::Silent,
            Self { network: true, .. } => Failure::Network,
            Self { full: true, .. } => Failure::Overloaded,
            Self { .. } => Failure::Silent,
        })
    }
}
