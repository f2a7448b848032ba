//! Decides what to do with a question or an answer, and why. Pure and immutable: no clock, no socket,
//! no file. The order of a decision is written once, in `judge`.

mod compile;
pub mod list;
pub mod pack;
pub mod plan;
mod verdict;

pub use compile::compile;
pub use verdict::{Action, Basis, Evidence, Mode, Moment, Reason, RuleId, Verdict};

/// A compiled policy.
#[derive(Debug)]
pub struct Policy {}
