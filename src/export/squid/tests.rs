//! The lines are read as Squid reads them, and must refuse what the policy refuses.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    name::DomainName,
    policy::{
        Moment, Sighting, Source, Verdict, compile,
        plan::{Exception, Group, Plan},
        reference,
        tests::{at, net, pack_of, rule_of},
    },
};

/// What Squid makes of a fragment: lists by name, and the conditions of each deny line.
struct Squid<'t> {
    lists: BTreeMap<&'t str, (&'t str, Vec<&'t str>)>,
    denies: Vec<Vec<&'t str>>,
}

impl<'t> Squid<'t> {
    fn read(text: &'t str) -> Self {
        let mut squid = Self { lists: BTreeMap::new(), denies: Vec::new() };
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["acl", name, "src", ref values @ ..] => squid.list(name, "src", values),
                ["acl", name, kind, "-n", ref values @ ..] => squid.list(name, kind, values),
                ["http_access", "deny", ref conditions @ ..] => {
                    let known = |condition: &&str| squid.lists.contains_key(condition.trim_start_matches('!'));
                    assert!(!conditions.is_empty() && conditions.iter().all(known), "{line}");
                    squid.denies.push(conditions.to_vec());
                }
                _ => panic!("{line}"),
            }
        }
        squid.lists.values().for_each(assert_nothing_is_covered);
        squid
    }

    fn list(&mut self, name: &'t str, kind: &'t str, values: &[&'t str]) {
        assert!(name.len() < 64 && !values.is_empty(), "{name}");
        let list = self.lists.entry(name).or_insert((kind, Vec::new()));
        assert_eq!(list.0, kind);
        list.1.extend(values);
    }

    fn denies(&self, client: IpAddr, host: &str) -> bool {
        let holds = |condition: &&str| match condition.strip_prefix('!') {
            Some(list) => !self.matches(list, client, host),
            None => self.matches(condition, client, host),
        };
        self.denies.iter().any(|conditions| conditions.iter().all(holds))
    }

    fn matches(&self, list: &str, client: IpAddr, host: &str) -> bool {
        let (kind, values) = &self.lists[list];
        let address: Option<IpAddr> = host.parse().ok();
        let within = |value: &str, address: IpAddr| value.parse::<IpNet>().unwrap().contains(&address.to_canonical());
        values.iter().any(|value| match *kind {
            "src" => within(value, client),
            "dst" => address.is_some_and(|address| within(value, address)),
            "dstdomain" => match value.strip_prefix('.') {
                Some(suffix) => host == suffix || host.ends_with(value),
                None => host == *value,
            },
            "dstdom_regex" => matches_expression(value, host),
            _ => panic!("{kind}"),
        })
    }
}

/// The two kinds of expression that are written.
fn matches_expression(expression: &str, host: &str) -> bool {
    let body = expression.strip_prefix('^').and_then(|rest| rest.strip_suffix('$')).unwrap();
    if let Some(below) = body.strip_prefix(".+") {
        let suffix = below.replace("\\.", ".");
        return host.ends_with(&suffix) && host.len() > suffix.len();
    }
    let (labels, wanted): (Vec<&str>, Vec<&str>) = (host.split('.').collect(), body.split("\\.").collect());
    labels.len() == wanted.len() && labels.iter().zip(wanted).all(|(label, want)| want == "[^.]+" || *label == want)
}

/// Squid ignores such values, or does not start.
fn assert_nothing_is_covered((kind, values): &(&str, Vec<&str>)) {
    for (place, one) in values.iter().enumerate() {
        for other in values.iter().skip(place + 1) {
            let covers = |wide: &str, narrow: &str| match *kind {
                "dstdomain" => narrow == wide || (wide.starts_with('.') && format!(".{narrow}").ends_with(wide)),
                "dstdom_regex" => narrow == wide,
                _ => wide.parse::<IpNet>().unwrap().contains(&narrow.parse::<IpNet>().unwrap()),
            };
            assert!(!covers(one, other) && !covers(other, one), "{one} {other}");
        }
    }
}

fn facts<'a>(policy: &'a Policy, learned: &'a Learned) -> Facts<'a> {
    Facts { policy, own_addresses: &[], learned: Ok(learned), time: Timestamp::UNIX_EPOCH }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn squid_denies_exactly_the_names_and_addresses_that_the_policy_refuses(
        policy in reference::tests::a_policy(),
        names in prop::collection::vec(reference::tests::a_name(0..6), 12),
        addresses in prop::collection::vec(
            prop::sample::select(vec!["192.0.2.1", "192.0.2.200", "2001:db8::1", "198.51.100.1", "64:ff9b::c000:201"]),
            3,
        ),
        learned in prop::collection::vec((prop::sample::select(vec!["192.0.2.1", "198.51.100.1"]), reference::tests::a_name(1..3)), 0..4),
        client in prop::sample::select(vec!["10.9.9.9", "10.1.2.3", "::ffff:10.1.2.3", "192.0.2.9", "2001:db8::9"]),
    ) {
        let sightings = learned.iter().map(|(address, name)| {
            let (source, seen) = (Source::Name(name.parse().unwrap()), Timestamp::UNIX_EPOCH);
            (address.parse().unwrap(), Sighting { source, first: seen, last: seen })
        });
        let learned = Learned::default().followed_by(sightings);
        let text = export(&facts(&policy, &learned)).text();
        let squid = Squid::read(&text);
        let client: IpAddr = client.parse().unwrap();
        let group = policy.group(client);
        let moment = Moment { time: Timestamp::UNIX_EPOCH, trusted: false };
        for host in &names {
            let name: DomainName = host.parse().unwrap();
            let verdict = policy.judge_question(group, client, name.as_name(), moment);
            prop_assert_eq!(squid.denies(client, host), matches!(verdict, Verdict::Block(_)), "{}\n{}", host, text);
        }
        for host in addresses {
            let verdict = policy.judge_answer(group, &[], &[host.parse().unwrap()], &learned);
            prop_assert_eq!(squid.denies(client, host), matches!(verdict, Verdict::Block(_)), "{}\n{}", host, text);
        }
    }
}

/// The policy of a small plan with a pack.
fn policy(change: impl FnOnce(&mut Plan)) -> Policy {
    let mut rule = rule_of("connect", &["connect.ngrok-agent.com", "connect.*.ngrok-agent.com"], &[]);
    rule.networks = vec![net("198.51.100.0/24")];
    let mut plan = Plan { packs: vec![pack_of("ngrok", vec![rule])], ..Plan::default() };
    plan.defaults.packs = vec![0];
    plan.organization.ingress = vec![at("connect.acme.com")];
    change(&mut plan);
    let (policy, problems) = compile(&plan, Timestamp::UNIX_EPOCH);
    policy.unwrap_or_else(|| panic!("{problems}"))
}

fn lines(fragment: &Fragment) -> Vec<String> {
    fragment.text().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn a_fragment_reads_as_an_administrator_would_write_it() {
    let policy = policy(|_| {});
    let own = ["203.0.113.0/28".parse().unwrap()];
    let fragment = export(&Facts { own_addresses: &own, ..facts(&policy, &Learned::default()) });
    #[rustfmt::skip]
    assert_eq!(lines(&fragment), [
        "",
        "acl tw_own_addresses dst -n 203.0.113.0/28 64:ff9b::cb00:7100/124 2002:cb00:7100::/44 2a00:1098:2b::cb00:7100/124 2a00:1098:2c:1::cb00:7100/124 2a01:4f8:c2c:123f:64:0:cb00:7100/124 2a01:4f9:c010:3f02:64:0:cb00:7100/124",
        "",
        "acl tw_own_1 dstdomain -n .connect.acme.com",
        "acl tw_block_1_1 dstdomain -n connect.ngrok-agent.com",
        r"acl tw_block_1_1_starred dstdom_regex -n ^connect\.[^.]+\.ngrok-agent\.com$",
        "http_access deny tw_block_1_1 !tw_own_1",
        "http_access deny tw_block_1_1_starred !tw_own_1",
        "acl tw_addresses_1 dst -n 198.51.100.0/24 64:ff9b::c633:6400/120 2002:c633:6400::/40 2a00:1098:2b::c633:6400/120 2a00:1098:2c:1::c633:6400/120 2a01:4f8:c2c:123f:64:0:c633:6400/120 2a01:4f9:c010:3f02:64:0:c633:6400/120",
        "http_access deny tw_addresses_1 !tw_own_addresses",
    ]);
}

#[test]
fn what_squid_cannot_say_is_listed() {
    let policy = policy(|plan| {
        let exception = |name: &str, until: &str| Exception {
            name: at(name),
            networks: vec![net("0.0.0.0/0")],
            until: at(until).map(|text| text.parse().unwrap()),
            reason: "tested".into(),
        };
        plan.exceptions = vec![
            exception(".open.example", "2030-01-01T00:00:00Z"),
            exception(".past.example", "2020-01-01T00:00:00Z"),
        ];
        plan.defaults.block = vec![at(r"a\032b.example")];
        plan.defaults.mode = Mode::Observe;
        plan.packs[0].rules[0].resolve = vec![at("connect.ngrok-agent.com")];
        plan.groups = vec![Group {
            name: at("strict"),
            networks: vec![net("10.0.0.0/8")],
            mode: Some(Mode::Enforce),
            action: None,
            packs: None,
            ingress: None,
            allow: None,
            block: None,
        }];
    });
    let learned = Learned::default();
    let time = "2026-11-25T00:00:00Z".parse().unwrap();
    let fragment = export(&Facts { learned: Err("no daemon"), time, ..facts(&policy, &learned) });
    #[rustfmt::skip]
    assert_eq!(fragment.missing[..4], [
        "mode observe: nothing is denied to clients of no group, and nothing is recorded",
        "the exception for .open.example until 2030-01-01T00:00:00Z: here it stays closed",
        r"1 patterns with characters that Squid cannot read, such as a\032b.example",
        "learned ingress addresses: no daemon",
    ]);
    let text = fragment.text();
    for line in fragment.missing {
        assert!(text.contains(&format!("# - {line}\n")), "{line}");
    }
    assert!(text.contains("acl tw_clients_1 src 10.0.0.0/8\n"), "{text}");
}

#[test]
fn a_long_list_goes_into_a_file_beside_and_a_short_one_does_not() {
    let names: Vec<String> = (0..250).map(|number| format!("n{number}.example")).collect();
    let policy = policy(|plan| plan.defaults.block = names.iter().map(|name| at(name)).collect());
    let fragment = export(&facts(&policy, &Learned::default()));
    let (text, files) = fragment.files(std::path::Path::new("/etc/squid/tw.conf"));
    assert!(text.contains("acl tw_block_1_1 dstdomain -n \"/etc/squid/tw.conf.names-1\"\n"), "{text}");
    assert!(text.contains("acl tw_own_1 dstdomain -n .connect.acme.com\n"), "{text}");
    let [(path, content)] = &files[..] else { panic!("{} files", files.len()) };
    assert_eq!((path.to_str(), content.lines().count()), (Some("/etc/squid/tw.conf.names-1"), 251));
    assert!(content.contains("\nn17.example\n"), "{content}");
    assert_eq!(fragment.text().matches("n17.example").count(), 1);
}

#[test]
fn the_order_for_squid_loses_no_name_and_ends_with_some_from_everywhere() {
    let names: Vec<String> = (0..6400).map(|number| format!("n{number:04}.example")).collect();
    let ordered = in_squids_order(names.clone());
    let mut again = ordered.clone();
    again.sort_unstable();
    assert_eq!(again, names);
    let backwards = |name: &String| name.bytes().rev().collect::<Vec<_>>();
    assert!(ordered[..6300].is_sorted_by_key(backwards));
    let mut all: Vec<_> = names.iter().map(backwards).collect();
    all.sort_unstable();
    let places: Vec<_> = ordered[6300..].iter().map(|name| all.binary_search(&backwards(name)).unwrap()).collect();
    assert_eq!(places[..4], [0, 4096, 2048, 6144]);
    assert_eq!(in_squids_order(names[..999].to_vec()), names[..999]);
}
