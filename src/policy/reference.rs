//! The order of a decision once more, as literally and as slowly as it can be written: scans every pattern of
//! the plan. The compiled policy must agree with it on any plan; tests and fuzzers ask both.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "it is no part of the program")]

use std::{cmp::Ordering, collections::BTreeSet, net::IpAddr};

use jiff::Timestamp;

use super::{
    compile::build,
    groups::canonical,
    list::List,
    pattern::{Pattern, Shape},
    plan::{Exception, Group, Pack, PackRule, Plan},
    *,
};
use crate::{
    name::{DomainName, NameRef},
    problem::Located,
};

/// What both are asked: by whom, when, for which names; and what an answer would hold, with what was learned by then.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) client: IpAddr,
    pub(crate) moment: Moment,
    pub(crate) names: Vec<DomainName>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) learned: BTreeSet<(IpAddr, DomainName)>,
}

/// Panics where the compiled policy decides otherwise than the literal order, or explains otherwise than it decides.
pub(crate) fn decide_alike(plan: &Plan, trial: &Trial) {
    let policy = build(plan).0;
    let Trial { client, moment, names, addresses, learned } = trial;
    let sightings = learned.iter().map(|(address, name)| {
        let (source, seen) = (Source::Name(name.clone()), Timestamp::UNIX_EPOCH);
        (*address, Sighting { source, first: seen, last: seen })
    });
    let set = Learned::default().followed_by(sightings);
    let reference = Reference::new(plan, *client, *moment);
    let group = policy.group(*client);
    assert_eq!(policy.group_name(group), reference.group.map(|group| &*group.name.value));
    for asked in names {
        let verdict = policy.judge_question(group, *client, asked.as_name(), *moment);
        assert_eq!(told(&policy, verdict), reference.question(asked.as_name()), "{asked}");
        let explained = policy.explain(*client, asked.as_name(), None, &set, *moment);
        assert_eq!(explained.verdict, verdict, "explained {asked}");
    }
    let verdict = policy.judge_answer(group, names, addresses, &set);
    assert_eq!(told(&policy, verdict), reference.answer(names, addresses, learned));
}

/// Can it be compiled, all of it?
pub(crate) fn is_sound(plan: &Plan) -> bool {
    build(plan).1.is_empty()
}

/// Verdict, rule's label, evidence and action, comparable between the two.
type Told = (Conclusion, String, Option<Evidence>, Option<Action>);

struct Reference<'p> {
    plan: &'p Plan,
    group: Option<&'p Group>,
    client: IpAddr,
    moment: Moment,
}

/// Pattern, whether it blocks, label.
type Line = (Pattern, bool, String);

impl<'p> Reference<'p> {
    fn new(plan: &'p Plan, client: IpAddr, moment: Moment) -> Self {
        let held = plan.groups.iter().flat_map(|group| group.networks.iter().map(move |network| (network, group)));
        let held = held.filter(|(network, _)| canonical(network.value).contains(&client));
        let group = held.max_by_key(|(network, _)| canonical(network.value).prefix_len()).map(|(_, group)| group);
        Self { plan, group, client, moment }
    }

    fn question(&self, asked: NameRef<'_>) -> Told {
        if self.own().iter().any(|(own, _, _)| asked.is_within(own.name.as_name())) {
            return (Conclusion::Allow, self.own()[0].2.clone(), None, None);
        }
        let open = |exception: &&Exception| Pattern::parse(&exception.name.value).unwrap().matches(asked);
        if self.exceptions().iter().any(open) {
            return (Conclusion::Allow, "exceptions".into(), None, None);
        }
        match self.rules(asked) {
            Some((true, label)) => self.violation(label, Evidence::Question, self.action(asked)),
            Some((false, label)) => (Conclusion::Allow, label, None, None),
            None => (Conclusion::Allow, String::new(), None, None),
        }
    }

    fn answer(&self, aliases: &[DomainName], addresses: &[IpAddr], learned: &BTreeSet<(IpAddr, DomainName)>) -> Told {
        let plain = self.group.and_then(|group| group.action.as_ref()).map_or(self.plan.defaults.action, |a| a.value);
        for (index, alias) in aliases.iter().enumerate() {
            if let Some((true, label)) = self.rules(alias.as_name()) {
                return self.violation(label, Evidence::Alias(index), plain);
            }
        }
        for &address in addresses {
            let mut hit: Option<(u8, String)> = None;
            for (label, rule) in self.active_rules() {
                for network in rule.networks.iter().filter(|network| network.value.contains(&address)) {
                    if hit.as_ref().is_none_or(|(length, _)| network.value.prefix_len() > *length) {
                        hit = Some((network.value.prefix_len(), label.clone()));
                    }
                }
            }
            if let Some((_, label)) = hit {
                return self.violation(label, Evidence::Address(address), plain);
            }
        }
        for &address in addresses {
            let names = learned.iter().filter(|(at, _)| *at == address).map(|(_, name)| name.to_string());
            let vouching = names.flat_map(|name| {
                self.active_rules()
                    .into_iter()
                    .filter(move |(_, rule)| rule.resolve.iter().any(|own| own.value == name))
            });
            if let Some((label, _)) = vouching.into_iter().next() {
                let (conclusion, label, evidence, action) = self.violation(label, Evidence::Address(address), plain);
                let observed = self.plan.defaults.unknown_on_ingress == UnknownOnIngress::Observe;
                return (if observed { Conclusion::Observe } else { conclusion }, label, evidence, action);
            }
        }
        (Conclusion::Allow, String::new(), None, None)
    }

    fn violation(&self, label: String, evidence: Evidence, action: Action) -> Told {
        let mode = self.group.and_then(|group| group.mode).unwrap_or(self.plan.defaults.mode);
        let conclusion = if mode == Mode::Enforce { Conclusion::Block } else { Conclusion::Observe };
        (conclusion, label, Some(evidence), Some(action))
    }

    fn rules(&self, asked: NameRef<'_>) -> Option<(bool, String)> {
        winner(self.local(), asked).or_else(|| winner(self.packs(), asked))
    }

    fn action(&self, asked: NameRef<'_>) -> Action {
        let action = self.group.and_then(|group| group.action.as_ref()).map_or(self.plan.defaults.action, |a| a.value);
        let open =
            self.exceptions().into_iter().map(|e| (Pattern::parse(&e.name.value).unwrap(), false, String::new()));
        let allowed = self.own().into_iter().chain(open).chain(self.local()).chain(self.packs());
        let mut below = allowed.filter(|(pattern, blocks, _)| {
            let name = pattern.name.as_name();
            !blocks && matches!(pattern.shape, Shape::Exact | Shape::Within) && name != asked && name.is_within(asked)
        });
        if action == Action::Nxdomain && below.next().is_some() { Action::Nodata } else { action }
    }

    fn own(&self) -> Vec<Line> {
        let (names, label) = match self.group.and_then(|group| Some((group.ingress.as_ref()?, group))) {
            Some((names, group)) => (names, format!("clients.{}.ingress", group.name.value)),
            None => (&self.plan.organization.ingress, "organization.ingress".into()),
        };
        let own = |name: &Located<String>| Pattern { shape: Shape::Within, name: name.value.parse().unwrap() };
        names.iter().map(|name| (own(name), false, label.clone())).collect()
    }

    fn exceptions(&self) -> Vec<&'p Exception> {
        let in_force = |exception: &&Exception| {
            self.moment.trusted
                && self.moment.time < exception.until.value
                && exception.networks.iter().any(|network| canonical(network.value).contains(&self.client))
        };
        self.plan.exceptions.iter().filter(in_force).collect()
    }

    fn local(&self) -> Vec<Line> {
        let list = |own: Option<&'p Vec<Located<String>>>, default: &'p Vec<Located<String>>, word: &str, blocks| {
            let label = match (own, self.group) {
                (Some(_), Some(group)) => format!("clients.{}.{word}", group.name.value),
                _ => format!("policy.{word}"),
            };
            own.unwrap_or(default).iter().map(move |text| (Pattern::parse(&text.value).unwrap(), blocks, label.clone()))
        };
        let defaults = &self.plan.defaults;
        let allow = list(self.group.and_then(|group| group.allow.as_ref()), &defaults.allow, "allow", false);
        let block = list(self.group.and_then(|group| group.block.as_ref()), &defaults.block, "block", true);
        allow.chain(block).collect()
    }

    fn packs(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for (label, rule) in self.active_rules() {
            let read = |text: &Located<String>| Pattern::parse(&text.value).unwrap();
            lines.extend(rule.block.iter().map(|text| (read(text), true, label.clone())));
            lines.extend(rule.allow.iter().map(|text| (read(text), false, label.clone())));
            for entry in rule.lists.iter().flat_map(List::entries) {
                let shape = if entry.within { Shape::Within } else { Shape::Exact };
                lines.push((Pattern { shape, name: entry.name.to_owned() }, !entry.allows, label.clone()));
            }
        }
        lines
    }

    fn active_rules(&self) -> Vec<(String, &'p PackRule)> {
        let active = self.group.and_then(|group| group.packs.as_ref()).unwrap_or(&self.plan.defaults.packs);
        let packs = self.plan.packs.iter().enumerate().filter(|(index, _)| active.contains(index));
        let rules = |pack: &'p Pack| {
            pack.rules.iter().map(|rule| (format!("{}/{}", pack.name.value, rule.id.value), rule)).collect::<Vec<_>>()
        };
        packs.flat_map(|(_, pack)| rules(pack)).collect()
    }
}

/// The most specific that matches; on a tie one that blocks; on a further tie the first.
fn winner(lines: Vec<Line>, asked: NameRef<'_>) -> Option<(bool, String)> {
    let mut best: Option<Line> = None;
    for line in lines.into_iter().filter(|(pattern, _, _)| pattern.matches(asked)) {
        let wins = best.as_ref().is_none_or(|best| match specificity(&line.0, &best.0) {
            Ordering::Greater => true,
            Ordering::Equal => line.1 && !best.1,
            Ordering::Less => false,
        });
        if wins {
            best = Some(line);
        }
    }
    best.map(|(_, blocks, label)| (blocks, label))
}

/// "An exact name first; then more labels, a star in the middle counting as one and a leading `.` or `*.` as none;
/// at equal length `a.*.b`, then `.name`, then `*.name`."
fn specificity(one: &Pattern, other: &Pattern) -> Ordering {
    let key = |pattern: &Pattern| {
        let labels = pattern.name.as_name().labels().count();
        let shape = match pattern.shape {
            Shape::Exact => return (1, 0, 0),
            Shape::Middle => 2,
            Shape::Within => 1,
            Shape::Below => 0,
        };
        (0, labels, shape)
    };
    key(one).cmp(&key(other))
}

fn told(policy: &Policy, verdict: Verdict) -> Told {
    let label = |rule| policy.rule(rule).label.to_string();
    match verdict {
        Verdict::Allow(Basis::NoMatch) => (Conclusion::Allow, String::new(), None, None),
        Verdict::Allow(Basis::OwnIngress(rule) | Basis::Rule(rule) | Basis::Exception { rule, .. }) => {
            (Conclusion::Allow, label(rule), None, None)
        }
        Verdict::Observe(r) => (Conclusion::Observe, label(r.rule), Some(r.evidence), Some(r.action)),
        Verdict::Block(r) => (Conclusion::Block, label(r.rule), Some(r.evidence), Some(r.action)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
