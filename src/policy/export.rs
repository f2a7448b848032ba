//! What a policy refuses, as sets of names and networks: for systems that know "deny these, but not those" and no
//! order between patterns. Own ingress, local rules and packs are in it; exceptions, which end, and what answers
//! would hold are not.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    GroupId, Mode, Policy, Scope,
    pattern::{Pattern, Shape},
    table::Table,
};
use crate::{address::Carriers, name::NameRef};

/// What is refused to the clients of some groups.
#[derive(Clone, Debug)]
pub struct Refused {
    /// All the groups to whom exactly this is refused, in the order of the file; the default group first.
    pub groups: Vec<GroupId>,
    /// Own ingress names, in order: none of them, and nothing below, is refused.
    pub own: Vec<Pattern>,
    /// Other names.
    pub names: Vec<RefusedNames>,
    /// Addresses that packs count as an ingress, in order.
    pub networks: Vec<IpNet>,
}

/// Names that a pattern of the one list matches are refused, unless one of the other list matches too.
#[derive(Clone, Debug)]
pub struct RefusedNames {
    /// What blocks.
    pub block: Vec<Pattern>,
    /// What allows, and is more specific or of a higher tier than everything in `block` that it overlaps.
    pub unless: Vec<Pattern>,
}

/// A pattern of a scope; local rules are tier 0 and decide before packs, tier 1.
struct Line {
    tier: u8,
    pattern: Pattern,
}

/// Allowing lines, found by what of a name they may overlap.
struct Allows<'a> {
    lines: &'a [Line],
    at: HashMap<NameRef<'a>, Vec<usize>>,
    below: HashMap<NameRef<'a>, Vec<usize>>,
    starred: Vec<usize>,
}

/// A set in the making: allows by their place.
#[derive(Default)]
struct Set {
    block: Vec<Pattern>,
    unless: BTreeSet<usize>,
    /// Allows that overlap one of the blocks and lose against it.
    beaten: BTreeSet<usize>,
}

impl Policy {
    /// Everything that is refused, for all groups that do not only observe. The sets agree with the order of a decision:
    /// a name is in them exactly where `judge_question` blocks it while no exception is in force.
    pub fn refused(&self) -> Vec<Refused> {
        let mut groups: BTreeMap<[u32; 4], Vec<GroupId>> = BTreeMap::new();
        for group in self.groups().filter(|&group| self.mode(group) == Mode::Enforce) {
            let Scope { ingress, allow, block, packs, .. } = *self.scope(group);
            groups.entry([ingress, allow, block, packs]).or_default().push(group);
        }
        groups.into_values().filter_map(|groups| self.refused_to(groups)).collect()
    }

    /// Every group, the default first.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..u32::try_from(self.scopes.len()).unwrap_or(u32::MAX)).map(GroupId)
    }

    /// Does this group refuse, or only observe?
    pub fn mode(&self, group: GroupId) -> Mode {
        self.scope(group).mode
    }

    /// Prefixes behind which IPv4 addresses are recognised.
    pub fn carriers(&self) -> &Carriers {
        &self.networks.carriers
    }

    /// Patterns of the exceptions that end after this time, and when they do.
    pub fn exceptions_after(&self, time: Timestamp) -> Vec<(Pattern, Timestamp)> {
        let ends = |record: super::table::Record<'_>| Some((record.pattern()?, self.exception(record.rule)?.until));
        self.exceptions.records().filter_map(ends).filter(|(_, until)| time < *until).collect()
    }

    fn refused_to(&self, groups: Vec<GroupId>) -> Option<Refused> {
        let scope = self.scope(*groups.first()?);
        let (allows, blocks) = self.lines(scope);
        let own = patterns(self.table(scope.ingress), |_| true).map(|(pattern, _)| pattern).collect();
        Some(Refused { groups, own, names: refused_names(&allows, blocks), networks: self.networks_of(scope) })
    }

    /// What allows and what blocks by name in a scope, each line once, in order.
    fn lines(&self, scope: &Scope) -> (Vec<Line>, Vec<Line>) {
        let local = [scope.allow, scope.block].into_iter().flat_map(|table| patterns(self.table(table), |_| true));
        let packs = patterns(&self.pack_patterns, |rule| self.is_active(scope, rule));
        let tiered = local.map(|line| (0, line)).chain(packs.map(|line| (1, line)));
        let (mut allows, mut blocks) = (Vec::new(), Vec::new());
        for (tier, (pattern, is_block)) in tiered {
            let lines = if is_block { &mut blocks } else { &mut allows };
            lines.push(Line { tier, pattern });
        }
        for lines in [&mut allows, &mut blocks] {
            lines.sort_by(|one, other| one.key().cmp(&other.key()));
            lines.dedup_by(|one, other| one.key() == other.key());
        }
        (allows, blocks)
    }

    fn networks_of(&self, scope: &Scope) -> Vec<IpNet> {
        let counts =
            |rules: &[(super::RuleId, super::Origin)]| rules.iter().any(|(rule, _)| self.is_active(scope, *rule));
        let active = self.networks.networks.iter().filter(|network| counts(&network.rules));
        active.map(|network| network.network).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// The patterns of a table's active rules, each with whether it blocks.
fn patterns<'t>(
    table: &'t Table,
    is_active: impl Fn(super::RuleId) -> bool + 't,
) -> impl Iterator<Item = (Pattern, bool)> + 't {
    let active = table.records().filter(move |record| is_active(record.rule));
    active.filter_map(|record| Some((record.pattern()?, record.blocks())))
}

/// As few sets as a block joins the first that it fits into: one for each level of allows within blocks within allows.
fn refused_names(allows: &[Line], blocks: Vec<Line>) -> Vec<RefusedNames> {
    let index = Allows::new(allows);
    let mut sets: Vec<Set> = Vec::new();
    for block in blocks {
        let (beating, beaten) = index.overlapping(&block);
        let place = sets.iter().position(|set| set.takes(&beating, &beaten)).unwrap_or(sets.len());
        if place == sets.len() {
            sets.push(Set::default());
        }
        if let Some(set) = sets.get_mut(place) {
            set.unless.extend(beating);
            set.beaten.extend(beaten);
            set.block.push(block.pattern);
        }
    }
    let pattern_of = |place: usize| allows.get(place).map(|line| line.pattern.clone());
    let names =
        |set: Set| RefusedNames { block: set.block, unless: set.unless.into_iter().filter_map(pattern_of).collect() };
    sets.into_iter().map(names).collect()
}

impl Set {
    /// May a block join, given the allows that beat it and those that it beats? One that is beaten on either side
    /// must not excuse what it does not beat.
    fn takes(&self, beating: &[usize], beaten: &[usize]) -> bool {
        !beating.iter().any(|place| self.beaten.contains(place))
            && !beaten.iter().any(|place| self.unless.contains(place))
    }
}

impl Line {
    /// Where both match, does this one decide, given that it allows and the other blocks? On a tie the block does.
    fn beats(&self, block: &Self) -> bool {
        self.tier < block.tier || (self.tier == block.tier && self.pattern.rank() > block.pattern.rank())
    }

    fn key(&self) -> (u8, &[u8], Shape) {
        (self.tier, self.pattern.name.as_wire(), self.pattern.shape)
    }
}

impl<'a> Allows<'a> {
    fn new(lines: &'a [Line]) -> Self {
        let mut index = Self { lines, at: HashMap::new(), below: HashMap::new(), starred: Vec::new() };
        for (place, line) in lines.iter().enumerate() {
            if line.pattern.shape == Shape::Middle {
                index.starred.push(place);
                continue;
            }
            let name = line.pattern.name.as_name();
            index.at.entry(name).or_default().push(place);
            for parent in name.suffixes().skip(1) {
                index.below.entry(parent).or_default().push(place);
            }
        }
        index
    }

    /// The places of those that overlap this block: those that beat it, and those that it beats.
    fn overlapping(&self, block: &Line) -> (Vec<usize>, Vec<usize>) {
        let line = |place: usize| self.lines.get(place).filter(|line| line.pattern.overlaps(&block.pattern));
        let near = self.near(&block.pattern).into_iter().filter_map(|place| Some((place, line(place)?)));
        let (beating, beaten): (Vec<_>, Vec<_>) = near.partition(|(_, line)| line.beats(block));
        let places = |lines: Vec<(usize, &Line)>| lines.into_iter().map(|(place, _)| place).collect();
        (places(beating), places(beaten))
    }

    /// All that may overlap a pattern.
    fn near(&self, pattern: &Pattern) -> Vec<usize> {
        if pattern.shape == Shape::Middle {
            return (0..self.lines.len()).collect();
        }
        let name = pattern.name.as_name();
        let above = name.suffixes().filter_map(|suffix| self.at.get(&suffix)).flatten();
        above.chain(self.below.get(&name).into_iter().flatten()).chain(&self.starred).copied().collect()
    }
}

impl Refused {
    /// Is this address, which packs do not name, refused as a learned one?
    pub fn refuses_learned(&self, policy: &Policy, address: IpAddr, learned: &super::Learned) -> bool {
        let group = self.groups.first().copied().unwrap_or_default();
        matches!(policy.judge_answer(group, &[], &[address], learned), super::Verdict::Block(_))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::{super::reference, *};
    use crate::policy::{Moment, Verdict};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        #[test]
        fn the_sets_hold_exactly_the_names_that_the_order_of_a_decision_refuses(
            policy in reference::tests::a_policy(),
            names in prop::collection::vec(reference::tests::a_name(0..6), 12),
            client in prop::sample::select(vec!["10.9.9.9", "10.1.2.3", "192.0.2.9", "2001:db8::9"]),
        ) {
            let client: IpAddr = client.parse().unwrap();
            let group = policy.group(client);
            let moment = Moment { time: Timestamp::UNIX_EPOCH, trusted: false };
            let refused: Vec<Refused> = policy.refused().into_iter().filter(|set| set.groups.contains(&group)).collect();
            prop_assert_eq!(refused.len(), usize::from(policy.mode(group) == Mode::Enforce));
            for name in names {
                let name: crate::name::DomainName = name.parse().unwrap();
                let hits = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(name.as_name()));
                let is_in = refused.iter().any(|set| {
                    !hits(&set.own) && set.names.iter().any(|names| hits(&names.block) && !hits(&names.unless))
                });
                let verdict = policy.judge_question(group, client, name.as_name(), moment);
                prop_assert_eq!(is_in, matches!(verdict, Verdict::Block(_)), "{}", name);
            }
        }
    }
}
