//! One server's [`Health`] where several tasks can reach it, and the words that go with its changes.

use std::{
    error::Error,
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
    /// Why the latest connection failed, where that is known.
    trouble: Mutex<Option<String>>,
    metrics: Arc<Metrics>,
}

/// Characters of an error that are kept.
const MAX_TROUBLE: usize = 200;

impl Vitals {
    pub(super) fn new(server: Server, metrics: Arc<Metrics>) -> Self {
        Self { server, health: Mutex::new(Health::new()), trouble: Mutex::default(), metrics }
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
            *locked(&self.trouble) = None;
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

    /// Why a connection failed: a wrong certificate has to be told from a server that is gone.
    pub(super) fn trouble(&self, error: &dyn Error) {
        // Parts of a certificate may be in it, which are anybody's words.
        *locked(&self.trouble) = Some(error.to_string().escape_debug().take(MAX_TROUBLE).collect());
    }

    pub(super) fn probe_failed(&self) {
        if self.with(Health::probe_failed) {
            let why = locked(&self.trouble).take().map(|trouble| format!(": {trouble}")).unwrap_or_default();
            warn!("upstream server {} does not answer{why}", self.server);
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
