//! Decides what to do with a question or an answer, and why. Pure and immutable: no clock, no socket,
//! no file. The order of a decision is written once, in `judge`.
//!
//! `compile` turns a [`plan::Plan`] into a [`Policy`] or into everything that is wrong with it. Clients of a
//! group share a scope: which tables of patterns hold for them. Own tables exist only where a group replaces
//! something; the patterns of all packs lie in one table, and a scope knows which packs count.

pub mod address_list;
mod addresses;
mod arena;
mod binding;
mod bytes;
mod check;
mod compile;

mod explain;
mod export;
mod groups;
mod judge;
mod learned;
pub mod list;
pub mod pack;
mod path;
mod pattern;
pub mod plan;
#[cfg(any(test, fuzzing))]
pub(crate) mod reference;
mod rule;
mod summary;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod verdict;

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use jiff::Timestamp;

use self::{addresses::Networks, groups::Groups, path::Hashing, table::Table};
pub use self::{
    binding::Binding,
    compile::compile,
    explain::{Candidate, Conclusion, Decision, Explanation, Fate, Outcome, Step, Walked},
    export::{Refused, RefusedNames},
    groups::GroupId,
    learned::{Learned, Sighting, Source},
    pattern::{Pattern, Shape},
    rule::{MAX_REFUSAL, Origin, Rule},
    summary::{PackSummary, Summary},
    verdict::{Action, Basis, Evidence, Mode, Moment, Reason, RuleId, UnknownOnIngress, Verdict},
};
use crate::name::DomainName;

/// A compiled policy.
#[derive(Debug)]
pub struct Policy {
    hashing: Hashing,
    rules: Vec<Rule>,
    /// For each rule the pack it is of; [`NO_PACK`] for the others.
    pack_of: Vec<u32>,
    /// The default group's first.
    scopes: Vec<Scope>,
    groups: Groups,
    /// Local tables; the first is empty.
    tables: Vec<Table>,
    pack_patterns: Table,
    /// Sets of active packs, a bit each.
    selections: Vec<Box<[u64]>>,
    exceptions: Table,
    /// In the order of the file; their rules are the last ones.
    dated: Vec<Dated>,
    networks: Networks,
    /// Networks of rules with ports, which no answer is judged by.
    on_ports: Vec<(IpNet, RuleId)>,
    /// The rules that vouch for what is learned, by what they name.
    sources: BTreeMap<Source, Vec<RuleId>>,
    /// The addresses of each list among the sources.
    listed: BTreeMap<Source, Vec<IpAddr>>,
    unknown_on_ingress: UnknownOnIngress,
    replies: Replies,
    summary: Summary,
}

/// What holds for the clients of one group.
#[derive(Clone, Debug, Default)]
struct Scope {
    name: Option<Box<str>>,
    mode: Mode,
    action: Action,
    /// Places in [`Policy::tables`].
    ingress: u32,
    allow: u32,
    block: u32,
    /// Place in [`Policy::selections`].
    packs: u32,
}

/// An exception besides its pattern.
#[derive(Debug)]
struct Dated {
    networks: Vec<IpNet>,
    until: Timestamp,
}

/// What replies need to know.
#[derive(Debug)]
struct Replies {
    block_ttl: u32,
    sinkhole: Vec<IpAddr>,
    strip_ech: bool,
}

/// A rule that is no pack's.
const NO_PACK: u32 = u32::MAX;

impl Policy {
    /// The group of a client: that of the most specific network that holds it; a v4-mapped client is a v4 one.
    pub fn group(&self, client: IpAddr) -> GroupId {
        self.groups.of(client)
    }

    /// A group's name; `None` for the default group.
    pub fn group_name(&self, group: GroupId) -> Option<&str> {
        self.scope(group).name.as_deref()
    }

    /// The rule that a verdict names. A number of another policy gives some rule of this one.
    pub fn rule(&self, rule: RuleId) -> &Rule {
        let rule = self.rules.get(rule.0 as usize).or(self.rules.first());
        #[expect(clippy::expect_used, reason = "compile begins with the rule organization.ingress")]
        rule.expect("a policy has a rule")
    }

    /// Text of the Extended DNS Error for a rule: its name, reason and whom to ask, at most [`MAX_REFUSAL`] bytes.
    pub fn refusal_text(&self, rule: RuleId) -> &str {
        &self.rule(rule).refusal
    }

    /// Does any decision depend on the time?
    pub fn has_exceptions(&self) -> bool {
        !self.dated.is_empty()
    }

    /// TTL and SOA minimum of refusals, in seconds.
    pub fn block_ttl(&self) -> u32 {
        self.replies.block_ttl
    }

    /// Addresses for [`Action::Sinkhole`].
    pub fn sinkhole(&self) -> &[IpAddr] {
        &self.replies.sinkhole
    }

    /// Is `ech` taken out of SVCB and HTTPS records for clients that do not set DO?
    pub fn strip_ech(&self) -> bool {
        self.replies.strip_ech
    }

    /// Names whose addresses are to be learned.
    pub fn resolved(&self) -> impl Iterator<Item = &DomainName> {
        self.sources.keys().filter_map(|source| match source {
            Source::Name(name) => Some(name),
            Source::List(_) => None,
        })
    }

    /// Addresses to be learned from files.
    pub fn listed(&self) -> impl Iterator<Item = (&Source, &[IpAddr])> {
        self.listed.iter().map(|(source, addresses)| (source, addresses.as_slice()))
    }

    /// The rules by which what this source brings is judged, whichever groups have them.
    pub fn rules_of(&self, source: &Source) -> impl Iterator<Item = &Rule> {
        self.sources.get(source).into_iter().flatten().map(|rule| self.rule(*rule))
    }

    /// What an address is compared as: the IPv4 address that it carries, then itself.
    pub fn readings(&self, address: IpAddr) -> impl Iterator<Item = IpAddr> + use<> {
        self.networks.carriers.readings(address)
    }

    /// What the policy consists of, in numbers.
    pub fn summary(&self) -> Summary {
        self.summary.clone()
    }

    fn scope(&self, group: GroupId) -> &Scope {
        // Groups of another policy can be asked for while a reload swaps it: the default is what they get.
        let scope = self.scopes.get(group.0 as usize).or(self.scopes.first());
        #[expect(clippy::expect_used, reason = "compile puts the default scope first, before anything else")]
        scope.expect("a policy has a default scope")
    }

    fn table(&self, place: u32) -> &Table {
        #[expect(clippy::expect_used, reason = "compile counts the tables it makes, and makes one at the least")]
        self.tables.get(place as usize).or(self.tables.first()).expect("a policy has a table")
    }

    fn exception(&self, rule: RuleId) -> Option<&Dated> {
        let first = self.rules.len().checked_sub(self.dated.len())?;
        self.dated.get((rule.0 as usize).checked_sub(first)?)
    }

    fn is_active(&self, scope: &Scope, rule: RuleId) -> bool {
        let pack = self.pack_of.get(rule.0 as usize).copied().unwrap_or(NO_PACK);
        let word = self.selections.get(scope.packs as usize).and_then(|packs| packs.get(pack as usize / 64));
        word.is_some_and(|word| word >> (pack % 64) & 1 == 1)
    }
}

impl Dated {
    fn is_for(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.networks.iter().any(|network| network.contains(&client))
    }
}
