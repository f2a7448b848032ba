//! From a plan to a policy, or to everything that is wrong with it.

use jiff::Timestamp;

use super::{Policy, plan::Plan};
use crate::problem::Problems;

/// Checks a plan and builds the policy it describes. Problems are all there are, warnings among them; with an
/// error among them there is no policy. `now` tells which exceptions are past (a warning).
pub fn compile(_plan: &Plan, _now: Timestamp) -> (Option<Policy>, Problems) {
    (Some(Policy {}), Problems::default())
}
