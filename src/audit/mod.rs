//! The record: who tried what, when, and what came of it.

mod attempt;
mod options;

pub use attempt::{Attempt, Decision, Evidence, Transport, Way};
pub use options::{ClientMask, Options, Sink, Store};
