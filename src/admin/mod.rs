//! The admin door: is it alive, is it ready, what does it count. Plain HTTP for orchestrators and Prometheus.
//!
//! It shows configuration and numbers: no question, no client, no record, and nothing is changed through it. What shows
//! clients or changes state goes over the control socket, where the kernel says who asks.

mod exposition;
mod host;
mod page;
mod readiness;
mod server;
mod usage;

use std::{net::SocketAddr, sync::Arc};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use readiness::{Check, Condition, LEARNING, NotReadiness, Readiness};
pub use server::serve;

use crate::{
    audit::Recorder, gateway::Gateway, ingress::Progress, keeper::Keeper, metrics::Metrics, sys::sandbox::Sandbox,
};

/// The page that says whether questions are answered.
pub const READY: &str = "/readyz";

/// Where the pages take what they show from.
#[derive(Clone, Debug)]
pub struct View {
    /// Policy, cache and upstream servers.
    pub gateway: Arc<Gateway>,
    /// The record.
    pub recorder: Recorder,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where questions are answered.
    pub listening: Vec<SocketAddr>,
    /// How the files were read last.
    pub files: watch::Receiver<Files>,
    /// What holds the firewall, and how far learning is; `None` without one.
    pub firewall: Option<(Arc<Keeper>, watch::Receiver<Progress>)>,
    /// What confines the process.
    pub sandbox: Sandbox,
    /// When the process started.
    pub started: Timestamp,
    /// Cancelled when questions are no longer taken.
    pub stop: CancellationToken,
}

/// How configuration and packs were read last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Files {
    /// What came of it.
    pub reading: Reading,
    /// When.
    pub read_at: Timestamp,
    /// When what is in force was read.
    pub in_force_since: Timestamp,
}

/// What came of reading the files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reading {
    /// They are in force.
    Loaded,
    /// They are broken.
    Refused,
    /// They take much away, and wait for somebody to say yes.
    Held,
}

impl Files {
    /// Read at a start, which does not happen with broken ones.
    pub fn at_start(now: Timestamp) -> Self {
        Self { reading: Reading::Loaded, read_at: now, in_force_since: now }
    }

    /// Read again.
    pub fn read_again(&mut self, reading: Reading, now: Timestamp) {
        let in_force_since = if reading == Reading::Loaded { now } else { self.in_force_since };
        *self = Self { reading, read_at: now, in_force_since };
    }
}
