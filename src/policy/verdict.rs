//! What the policy says of a question or an answer: a value that carries its reason.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

/// What to do with a question, and why. Every consumer matches on all three.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Verdict {
    /// Own ingress, exception, an allowing rule, or none of our business: the basis says which.
    Allow(Basis),
    /// A violation that the client's group only observes: answered in full, and recorded.
    Observe(Reason),
    /// A violation: refused and recorded.
    Block(Reason),
}

/// Why something is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Basis {
    /// The name is the organization's own ingress or below it: nothing in the answer matters. Recorded as own use.
    OwnIngress(RuleId),
    /// A dated exception is in force for this name and client: recorded. Answers carry no TTL past `until`.
    Exception {
        /// Which.
        rule: RuleId,
        /// When it ends.
        until: Timestamp,
    },
    /// A local rule or a pack allows the name: it passes, and its answer is not looked at.
    Rule(RuleId),
    /// Nothing matched. For a question this means that the answer is looked at.
    NoMatch,
}

/// Why something is a violation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reason {
    /// The rule that decided.
    pub rule: RuleId,
    /// What it matched.
    pub evidence: Evidence,
    /// How a refusal is answered. For the question's own name NODATA is already put in for NXDOMAIN where an allowed
    /// name lies below; for what an answer held it is the group's action, and `Policy::action_at` does the same.
    pub action: Action,
}

/// What a rule matched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Evidence {
    /// The question's own name.
    Question,
    /// An alias in the answer, by its index among the aliases that were judged.
    Alias(usize),
    /// An address in the answer, as it stood there (before NAT64 and the like were decoded).
    Address(IpAddr),
}

/// How a blocked question is answered.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The name does not exist: the default, since resolvers do not ask elsewhere after it.
    #[default]
    Nxdomain,
    /// The name exists without records of this type.
    Nodata,
    /// REFUSED; many clients then ask their next resolver.
    Refused,
    /// The addresses of `[policy] sinkhole`; NODATA for other types.
    Sinkhole,
    /// No answer at all; clients wait, then ask their next resolver.
    Drop,
}

/// Whether violations are refused or only recorded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Refused and recorded.
    #[default]
    Enforce,
    /// Recorded.
    Observe,
}

/// What becomes of an unknown name that leads to a learned ingress address.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownOnIngress {
    /// It is a violation like any other.
    #[default]
    Refuse,
    /// It is recorded, in every mode.
    Observe,
}

/// The time at which something is judged, and whether exceptions may be granted by it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    /// The wall clock.
    pub time: Timestamp,
    /// The clock is not behind the latest time that was ever seen; if it is, no exception is in force.
    pub trusted: bool,
}

/// A rule of the policy, by number: `Policy::rule` tells its name, reason and place.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RuleId(pub u32);
