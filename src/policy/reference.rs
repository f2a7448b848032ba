//! The order of a decision once more, as literally and as slowly as it can be written: scans every pattern of
//! the plan. The compiled policy must agree with it on any plan.

use std::{cmp::Ordering, collections::BTreeSet, net::IpAddr};

use jiff::Timestamp;
use proptest::prelude::*;

use super::{
    compile::build,
    groups::canonical,
    list::List,
    pattern::{Pattern, Shape},
    plan::{Exception, Group, Pack, PackRule, Plan},
    tests::{at, name, net, pack_of, rule_of},
    *,
};
use crate::{
    name::{DomainName, NameRef},
    problem::Located,
};

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
        names.iter().map(|n| (Pattern { shape: Shape::Within, name: name(&n.value) }, false, label.clone())).collect()
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

pub(crate) fn a_name(labels: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b"]), labels).prop_map(|mut labels| {
        labels.push("t");
        labels.join(".")
    })
}

fn a_pattern() -> impl Strategy<Value = Located<String>> {
    let starred = (a_name(2..5), any::<[bool; 5]>()).prop_map(|(text, stars)| {
        let labels: Vec<&str> = text.split('.').collect();
        let last = labels.len() - 1;
        let star = |index: usize| index > 0 && index < last && (index == 1 || stars[index]);
        let star = |(index, label): (usize, &&str)| if star(index) { "*".to_owned() } else { (*label).to_owned() };
        labels.iter().enumerate().map(star).collect::<Vec<_>>().join(".")
    });
    let suffix = |lead: &'static str| a_name(0..4).prop_map(move |text| format!("{lead}{text}"));
    prop_oneof![a_name(0..5), suffix("."), suffix("*."), starred].prop_map(|text| at(&text))
}

fn patterns(most: usize) -> impl Strategy<Value = Vec<Located<String>>> {
    prop::collection::vec(a_pattern(), 0..most)
}

fn ingress() -> impl Strategy<Value = Vec<Located<String>>> {
    prop::collection::vec(a_name(2..4).prop_map(|text| at(&text)), 0..2)
}

/// A line of a list, and the patterns that it means: each blocks, or allows.
type ListLine = (String, Vec<(String, bool)>);

fn a_list(most: usize) -> impl Strategy<Value = Vec<ListLine>> {
    let line = (a_name(0..5), a_name(0..5), 0..8).prop_map(|(one, other, form)| {
        let (line, means) = match form {
            0 => ("# a note".to_owned(), vec![]),
            1 => (format!("{one} {other}"), vec![]),
            2 => (format!("0.0.0.0 {one} localhost {other} # {one}"), vec![(one, true), (other, true)]),
            3 => (format!("||{one}^"), vec![(format!(".{one}"), true)]),
            4 => (format!("@@{one}"), vec![(one, false)]),
            5 => (format!("@@||{one}^"), vec![(format!(".{one}"), false)]),
            _ => (format!("{one}\r"), vec![(one, true)]),
        };
        (line, means)
    });
    prop::collection::vec(line, 0..most)
}

fn text_of(lines: &[ListLine]) -> String {
    lines.iter().map(|(line, _)| format!("{line}\n")).collect()
}

fn a_pack(number: usize) -> impl Strategy<Value = Pack> {
    let network = prop::sample::select(vec!["192.0.2.0/24", "192.0.2.0/30", "192.0.2.1/32", "2001:db8::/32"]);
    let networks = prop::collection::vec(network.prop_map(net), 0..2);
    let resolve = prop::collection::vec(a_name(1..3).prop_map(|text| at(&text)), 0..3);
    let rules = prop::collection::vec((patterns(4), patterns(3), a_list(4), networks, resolve), 1..3);
    rules.prop_map(move |rules| {
        let rules = rules.into_iter().enumerate().map(|(id, (block, allow, listed, networks, resolve))| {
            let mut rule = PackRule { networks, resolve, ..rule_of(&format!("r{id}"), &[], &[]) };
            (rule.block, rule.allow) = (block, allow);
            rule.lists = vec![list::parse("names.txt", text_of(&listed).as_bytes()).0];
            rule
        });
        pack_of(&format!("p{number}"), rules.collect())
    })
}

fn a_group(number: usize, network: &'static str) -> impl Strategy<Value = Group> {
    let packs = prop::option::of(prop::sample::subsequence(vec![0, 1], 0..=2));
    let mode = prop::option::of(prop::sample::select(vec![Mode::Enforce, Mode::Observe]));
    let action = prop::option::of(prop::sample::select(vec![Action::Nxdomain, Action::Nodata]));
    (mode, action, packs, prop::option::of(ingress()), prop::option::of(patterns(3)), prop::option::of(patterns(3)))
        .prop_map(move |(mode, action, packs, ingress, allow, block)| Group {
            name: at(&format!("g{number}")),
            networks: vec![net(network)],
            mode,
            action: action.map(|action| at("action").map(|_| action)),
            packs,
            ingress,
            allow,
            block,
        })
}

fn a_plan() -> impl Strategy<Value = Plan> {
    let groups = (a_group(0, "10.0.0.0/8"), a_group(1, "::ffff:10.1.0.0/112"));
    let networks = prop::sample::select(vec!["10.0.0.0/8", "0.0.0.0/0", "::/0"]);
    let exception = (a_pattern(), networks, 50..150_i64).prop_map(|(name, network, until)| Exception {
        name,
        networks: vec![net(network)],
        until: at("until").map(|_| Timestamp::from_second(until).unwrap()),
        reason: "tested".into(),
    });
    let exceptions = prop::collection::vec(exception, 0..2);
    let packs = (a_pack(0), a_pack(1), prop::sample::subsequence(vec![0, 1], 0..=2));
    let unknown = prop::sample::select(vec![UnknownOnIngress::Refuse, UnknownOnIngress::Observe]);
    (ingress(), patterns(3), patterns(3), packs, groups, exceptions, unknown).prop_map(
        |(ingress, allow, block, (first, second, active), (wide, narrow), exceptions, unknown)| {
            let mut plan =
                Plan { groups: vec![wide, narrow], packs: vec![first, second], exceptions, ..Plan::default() };
            (plan.organization.ingress, plan.organization.ingress_whole_domain) = (ingress, true);
            (plan.defaults.allow, plan.defaults.block, plan.defaults.packs) = (allow, block, active);
            plan.defaults.unknown_on_ingress = unknown;
            plan
        },
    )
}

/// A policy of such a plan.
pub(crate) fn a_policy() -> impl Strategy<Value = Policy> {
    a_plan().prop_map(|plan| build(&plan).0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_compiled_policy_decides_as_the_literal_order_does(
        plan in a_plan(),
        names in prop::collection::vec(a_name(0..6), 8),
        client in prop::sample::select(vec!["10.9.9.9", "10.1.2.3", "192.0.2.9", "2001:db8::9"]),
        (time, trusted) in (0..200_i64, any::<bool>()),
        addresses in prop::collection::vec(prop::sample::select(vec!["192.0.2.1", "192.0.2.200", "2001:db8::1", "198.51.100.1"]), 0..3),
        learned in prop::collection::btree_set((prop::sample::select(vec!["192.0.2.1", "198.51.100.1"]), a_name(1..3)), 0..4),
    ) {
        let (policy, problems) = build(&plan);
        prop_assert!(problems.is_empty(), "{}", problems);
        let client: IpAddr = client.parse().unwrap();
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let learned: BTreeSet<(IpAddr, DomainName)> =
            learned.iter().map(|(address, text)| (address.parse().unwrap(), name(text))).collect();
        let sightings = learned.iter().map(|(address, name)| {
            let (source, seen) = (Source::Name(name.clone()), Timestamp::UNIX_EPOCH);
            (*address, Sighting { source, first: seen, last: seen })
        });
        let set = Learned::default().followed_by(sightings);
        let moment = Moment { time: Timestamp::from_second(time).unwrap(), trusted };
        let reference = Reference::new(&plan, client, moment);
        let group = policy.group(client);
        prop_assert_eq!(policy.group_name(group), reference.group.map(|group| &*group.name.value));
        let names: Vec<DomainName> = names.iter().map(|text| name(text)).collect();
        for asked in &names {
            let verdict = policy.judge_question(group, client, asked.as_name(), moment);
            prop_assert_eq!(told(&policy, verdict), reference.question(asked.as_name()), "{}", asked);
            let explained = policy.explain(client, asked.as_name(), None, &set, moment);
            prop_assert_eq!(explained.verdict, verdict, "explained {}", asked);
        }
        let verdict = policy.judge_answer(group, &names, &addresses, &set);
        prop_assert_eq!(told(&policy, verdict), reference.answer(&names, &addresses, &learned));
    }

    #[test]
    fn a_list_decides_as_its_lines_read_one_by_one_and_the_line_that_decided_is_told(
        lines in a_list(60),
        names in prop::collection::vec(a_name(0..6), 8),
    ) {
        let mut rule = rule_of("listed", &[], &[]);
        rule.lists = vec![list::parse("names.txt", text_of(&lines).as_bytes()).0];
        let mut plan = Plan { packs: vec![pack_of("p", vec![rule])], ..Plan::default() };
        plan.defaults.packs = vec![0];
        let (policy, problems) = build(&plan);
        prop_assert!(problems.is_empty(), "{}", problems);
        let means = (1..).zip(&lines).flat_map(|(number, (_, means))| means.iter().map(move |mean| (number, mean)));
        let patterns: Vec<(Pattern, bool, String)> = means
            .map(|(number, (text, blocks))| (Pattern::parse(text).unwrap(), *blocks, format!("names.txt:{number}")))
            .collect();
        let mut distinct: Vec<(String, bool)> = patterns.iter().map(|(p, blocks, _)| (p.to_string(), *blocks)).collect();
        distinct.sort();
        distinct.dedup();
        prop_assert_eq!(policy.summary().patterns, distinct.len());
        for asked in names.iter().map(|text| name(text)) {
            let moment = Moment { time: Timestamp::UNIX_EPOCH, trusted: true };
            let explained = policy.explain("192.0.2.1".parse().unwrap(), asked.as_name(), None, &Learned::default(), moment);
            let candidates = explained.walk.into_iter().flat_map(|walked| walked.candidates);
            let decided = candidates.filter(|candidate| candidate.fate == Fate::Wins).map(|candidate| {
                (candidate.decision == explain::Decision::Block, candidate.origin.unwrap().to_string())
            });
            prop_assert_eq!(decided.collect::<Vec<_>>(), Vec::from_iter(winner(patterns.clone(), asked.as_name())), "{}", asked);
        }
    }

    #[test]
    fn two_patterns_that_match_one_name_overlap(one in a_pattern(), other in a_pattern(), asked in a_name(0..6)) {
        let (one, other) = (Pattern::parse(&one.value).unwrap(), Pattern::parse(&other.value).unwrap());
        let asked = name(&asked);
        if one.matches(asked.as_name()) && other.matches(asked.as_name()) {
            prop_assert!(one.overlaps(&other), "{} {} {}", one, other, asked);
        }
    }
}
