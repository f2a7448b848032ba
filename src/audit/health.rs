//! How the record is doing: what `/readyz`, the control socket and a start message show.

use std::time::{Duration, Instant};

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

/// How often a part's failure is logged. One that comes and goes is said once; health shows it as it is.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// A part's condition, and whether the log knows.
#[derive(Debug)]
pub(super) struct Watched {
    part: String,
    condition: Condition,
    said_at: Option<Instant>,
    is_said: bool,
}

impl Watched {
    /// A part that works. `part` is how the log names it.
    pub(super) fn new(part: &str) -> Self {
        Self { part: printable(part), condition: Condition::Working, said_at: None, is_said: false }
    }

    /// How it is.
    pub(super) fn condition(&self) -> &Condition {
        &self.condition
    }

    /// Does it work?
    pub(super) fn is_working(&self) -> bool {
        self.condition == Condition::Working
    }

    /// Notes a failure.
    pub(super) fn fail(&mut self, why: &str, now: Timestamp) {
        let why = printable(why);
        if !self.is_said && self.said_at.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            warn!("{} fails: {why}; it is tried again", self.part);
            (self.is_said, self.said_at) = (true, Some(Instant::now()));
        }
        self.condition = match &self.condition {
            Condition::Working => Condition::Failing { since: now, why },
            Condition::Failing { since, .. } => Condition::Failing { since: *since, why },
        };
    }

    /// Notes that it works.
    pub(super) fn recover(&mut self) {
        self.condition = Condition::Working;
        if self.is_said {
            info!("{} works again", self.part);
            self.is_said = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_comes_and_goes_is_said_once_and_shown_as_it_is() {
        let mut watched = Watched::new("sink");
        let since = Timestamp::UNIX_EPOCH;
        watched.fail("full\n", since);
        watched.fail("still full", since + Duration::from_secs(1));
        assert_eq!(*watched.condition(), Condition::Failing { since, why: "still full".into() });
        assert!(watched.is_said);
        watched.recover();
        watched.fail("full", since);
        assert!(!watched.is_said && !watched.is_working(), "shown, but not said again so soon");
    }
}
