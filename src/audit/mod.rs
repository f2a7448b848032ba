//! The record: who tried what, when, and what came of it.

mod attempt;
mod fold;
mod health;
mod key;
mod line;
mod mask;
mod options;
mod record;
mod recorder;
mod search;
mod seen;
mod sink;
mod store;
mod words;
mod worker;

#[cfg(test)]
mod tests;

pub use attempt::{Attempt, Decision, Evidence, Process, Transport, UNREADABLE, UnknownWord, Way};
pub use fold::Likeness;
pub use health::{Condition, Health, SinkHealth};
pub use line::{decision_style, line, shown_kind, shown_name, shown_process};
pub use options::{ClientMask, Options, Sink, Store};
pub use record::{Client, Id, Matched, Question, Record, SCHEMA_VERSION};
pub use recorder::{FOLLOWER_QUEUE, Follower, QUEUE, Recorder, StartError};
pub use search::{ClientFilter, Filter, NameFilter, ProcessFilter, Reader, SearchError};
