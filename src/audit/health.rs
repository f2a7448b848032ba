//! How the record is doing: what `/readyz`, the control socket and a start message show.

use jiff::Timestamp;
use serde::Serialize;
use tracing::{info, warn};

use crate::problem::printable;

/// The state of store and sinks, and what was lost since the start.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Health {
    /// The store; `None` if there is none.
    pub store: Option<Condition>,
    /// Each sink, in the order of the configuration.
    pub sinks: Vec<SinkHealth>,
    /// What was given up in queue, worker, store and sinks since the start.
    pub lost: u64,
    /// How often the worker panicked and was started again.
    pub restarts: u64,
}

/// One sink.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct SinkHealth {
    /// `stdout`, or the file's path, escaped.
    pub sink: String,
    /// How it is doing.
    pub condition: Condition,
}

/// Whether a part works.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Condition {
    /// It does.
    #[default]
    Working,
    /// It does not; it is tried again by itself.
    Failing {
        /// Since when.
        since: Timestamp,
        /// Why, escaped for a terminal.
        why: String,
    },
}

impl Health {
    /// Do store and all sinks work?
    pub fn is_working(&self) -> bool {
        let mut conditions = self.store.iter().chain(self.sinks.iter().map(|sink| &sink.condition));
        conditions.all(|condition| *condition == Condition::Working)
    }
}

impl Condition {
    /// Notes a failure of `part` and logs it if it is a new one.
    pub(super) fn fail(&mut self, part: &str, why: &str, now: Timestamp) {
        let why = printable(why);
        match self {
            Self::Working => {
                warn!("{part} fails: {why}; it is tried again");
                *self = Self::Failing { since: now, why };
            }
            Self::Failing { why: known, .. } => *known = why,
        }
    }

    /// Notes that `part` works, and logs it if it did not.
    pub(super) fn recover(&mut self, part: &str) {
        if matches!(self, Self::Failing { .. }) {
            info!("{part} works again");
            *self = Self::Working;
        }
    }
}
