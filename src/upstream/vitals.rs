//! One server's [`Health`] where several tasks can reach it, and the words that go with its changes.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tracing::{info, warn};

use super::{Server, State, health::Health, locked};
use crate::metrics::Metrics;

/// Shared by a server, its sockets and its connections.
#[derive(Debug)]
pub(super) struct Vitals {
    server: Server,
    health: Mutex<Health>,
    metrics: Arc<Metrics>,
}

impl Vitals {
    pub(super) fn new(server: Server, metrics: Arc<Metrics>) -> Self {
        Self { server, health: Mutex::new(Health::new()), metrics }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A look at, or a change of, the record.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Health) -> T) -> T {
        look(&mut locked(&self.health))
    }

    pub(super) fn state(&self) -> State {
        self.with(|health| health.state())
    }

    /// A reply came.
    pub(super) fn answered(&self, took: Duration) {
        if self.with(|health| health.answered(took)) == Some(State::Down) {
            info!("upstream server {} answers again", self.server);
        }
    }

    /// A question was not answered in time. True when a probe is due.
    pub(super) fn late(&self) -> bool {
        self.metrics.upstream_late.increment();
        self.with(Health::late)
    }

    /// The network refused a question. True when a probe is due.
    pub(super) fn refused(&self) -> bool {
        self.metrics.upstream_network_errors.increment();
        self.with(Health::late)
    }

    pub(super) fn probe_failed(&self) {
        if self.with(Health::probe_failed) {
            warn!("upstream server {} does not answer", self.server);
        }
    }

    /// Its canary came back to us.
    pub(super) fn loops(&self) {
        self.metrics.upstream_loops.increment();
        if self.with(|health| health.set_looping(true)) {
            warn!("upstream server {} forwards our questions back to us; it is not asked while it does", self.server);
        }
    }

    /// Its canary was answered and did not come back to us.
    pub(super) fn does_not_loop(&self) {
        if self.with(|health| health.state() == State::Looping && health.set_looping(false)) {
            info!("upstream server {} no longer forwards our questions back to us", self.server);
        }
    }
}
