//! The common case, without a task: the best server is well, is asked over UDP, and its reply settles the question
//! where it is heard.
//!
//! Whatever else happens (a late, cut, forged or unwelcome reply, no socket, no such server), the race takes over,
//! with this try as its first.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    Outcome, State,
    context::Context,
    flight::Flight,
    lanes::Lane,
    race::{Begun, is_final, race},
    server::Server,
    udp::Waiter,
};
use crate::wire::query;

/// A question that is out and has no task.
#[derive(Debug)]
pub(super) struct Direct {
    flight: Flight,
    servers: Arc<Vec<Arc<Server>>>,
    server: Arc<Server>,
    /// When the server's patience ends.
    due: Instant,
    context: Arc<Context>,
    _place: OwnedSemaphorePermit,
}

/// A question that has to be seen to by a task.
#[derive(Debug)]
pub(super) struct Unsettled {
    direct: Direct,
    asked: Instant,
    reply: oneshot::Receiver<Outcome>,
}

/// Asks the best of the servers in the cheapest way there is; the reply is heard on that lane.
pub(super) fn begin(context: &Arc<Context>, lane: &Lane, servers: Arc<Vec<Arc<Server>>>, flight: Flight) {
    let best =
        best(&servers).and_then(|(server, patience)| Some((Arc::clone(server), patience, server.place_direct()?)));
    let Some((server, patience, place)) = best else { return run(context, servers, flight, None) };
    let query = Arc::clone(flight.query());
    let due = Instant::now() + patience;
    let context = Arc::clone(context);
    let direct = Direct { flight, servers, server: Arc::clone(&server), due, context, _place: place };
    if let Err(Waiter::Direct(direct)) = server.put(lane, &query, Waiter::Direct(direct)) {
        let Direct { flight, servers, context, .. } = direct;
        run(&context, servers, flight, None);
    }
}

/// The best server and its patience, if it is well. The others are told that they were passed over.
fn best(servers: &[Arc<Server>]) -> Option<(&Arc<Server>, Duration)> {
    let look = |server: &Arc<Server>| server.vitals.with(|health| (health.rank(), health.patience()));
    let looks = servers.iter().map(|server| (look(server), server));
    let (((state, _), patience), best) = looks.min_by_key(|((rank, _), _)| *rank)?;
    if state != State::Up {
        return None;
    }
    for passed_over in servers.iter().filter(|server| !Arc::ptr_eq(server, best)) {
        passed_over.vitals.with(|health| health.passed_over());
    }
    Some((best, patience))
}

impl Direct {
    pub(super) fn is_late(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// What came of the question, asked then.
    pub(super) fn settle(self, outcome: Outcome, asked: Instant) {
        match outcome {
            Ok(packet) if is_final(&packet) && !query::is_truncated(&packet) => {
                self.flight.land(Ok(self.server.reply(packet)))
            }
            outcome => {
                let (waiter, reply) = oneshot::channel();
                let _ = waiter.send(outcome);
                self.await_task(asked, reply).hand_over();
            }
        }
    }

    /// The reply will be sent there, or was already.
    pub(super) fn await_task(self, asked: Instant, reply: oneshot::Receiver<Outcome>) -> Unsettled {
        Unsettled { direct: self, asked, reply }
    }
}

impl Unsettled {
    /// Starts the task.
    pub(super) fn hand_over(self) {
        let Self { direct, asked, reply } = self;
        let Direct { flight, servers, server, context, .. } = direct;
        run(&context, servers, flight, Some(Begun { server, asked: asked.into(), reply }));
    }
}

/// The long way, by a task.
fn run(context: &Context, servers: Arc<Vec<Arc<Server>>>, flight: Flight, begun: Option<Begun>) {
    context.spawn(async move {
        let outcome = race(&servers, flight.query(), begun).await;
        flight.land(outcome);
    });
}
