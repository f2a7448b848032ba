//! Plans of every kind, and that both decide alike by them.

use jiff::Timestamp;
use proptest::prelude::*;

use super::{
    super::{
        list,
        plan::{Exception, Group, Pack, PackRule, Plan},
        tests::{at, name, net, pack_of, rule_of},
    },
    *,
};
use crate::problem::Located;

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
        prop_assert!(build(&plan).1.is_empty(), "{}", build(&plan).1);
        decide_alike(&plan, &Trial {
            client: client.parse().unwrap(),
            moment: Moment { time: Timestamp::from_second(time).unwrap(), trusted },
            names: names.iter().map(|text| name(text)).collect(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            learned: learned.iter().map(|(address, text)| (address.parse().unwrap(), name(text))).collect(),
        });
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
