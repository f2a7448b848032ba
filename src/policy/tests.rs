//! The contract row by row: a small pack of the shape of the real one, by group, mode, exception and clock.

use std::sync::Arc;

use super::{
    list,
    plan::{AddressList, Exception, Group, Pack, PackRule, Plan},
    *,
};
use crate::{
    name::DomainName,
    problem::{Located, Place, SourceFile},
};

pub(crate) fn at(text: &str) -> Located<String> {
    let file = SourceFile { path: "w.toml".into(), text: format!("x = {text:?}\n") };
    Located { value: text.to_owned(), place: Place::new(Arc::new(file), 4..text.len() + 6) }
}

pub(crate) fn net(text: &str) -> Located<IpNet> {
    at(text).map(|text| text.parse().unwrap())
}

pub(crate) fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn all(texts: &[&str]) -> Vec<Located<String>> {
    texts.iter().map(|text| at(text)).collect()
}

pub(crate) fn rule_of(id: &str, block: &[&str], allow: &[&str]) -> PackRule {
    PackRule {
        id: at(id),
        reason: format!("reason of {id}"),
        block: all(block),
        allow: all(allow),
        lists: Vec::new(),
        networks: Vec::new(),
        regions: Vec::new(),
        resolve: Vec::new(),
        address_lists: Vec::new(),
        ports: Vec::new(),
        source: None,
    }
}

pub(crate) fn pack_of(name: &str, rules: Vec<PackRule>) -> Pack {
    Pack { name: at(name), version: "1".into(), description: None, rules }
}

fn group_of(name: &str, networks: &[&str]) -> Group {
    Group {
        name: at(name),
        networks: networks.iter().map(|text| net(text)).collect(),
        mode: None,
        action: None,
        packs: None,
        ingress: None,
        allow: None,
        block: None,
    }
}

fn exception_of(name: &str, network: &str, until: &str) -> Exception {
    Exception {
        name: at(name),
        networks: vec![net(network)],
        until: at(until).map(|text| text.parse().unwrap()),
        reason: "vendor support, NET-4711".into(),
    }
}

fn ngrok() -> Pack {
    let connect = PackRule {
        networks: vec![net("198.51.100.0/24"), net("2001:db8:bad::/48")],
        regions: all(&["us", "eu"]),
        resolve: all(&["connect.ngrok-agent.com", "connect.{region}.ngrok-agent.com"]),
        ..rule_of("connect", &["connect.ngrok-agent.com", "connect.*.ngrok-agent.com"], &[])
    };
    let legacy = ["tunnel.ngrok.com", "tunnel.*.ngrok.com", "ngrokd.ngrok.com", "korgn.*.lennut.com"];
    let support = PackRule {
        ports: vec![80, 443],
        ..rule_of("support", &[], &["crl.ngrok-agent.com", "update.ngrok-agent.com", "crl.ngrok.com"])
    };
    pack_of("ngrok", vec![connect, rule_of("legacy", &legacy, &[]), support])
}

/// Packs `ngrok` and `bypass`, an own ingress, four groups and two exceptions.
fn plan() -> Plan {
    let bypass = pack_of("bypass", vec![rule_of("canary", &["use-application-dns.net", ".dns.example"], &[])]);
    let watched = Group { mode: Some(Mode::Observe), ..group_of("watched", &["10.1.0.0/16"]) };
    let other = Group {
        ingress: Some(all(&["in.other.example"])),
        packs: Some(vec![0]),
        ..group_of("other", &["10.2.0.0/16", "2001:db8:2::/48"])
    };
    let free = Group { packs: Some(vec![]), block: Some(vec![]), ..group_of("free", &["10.2.3.0/24"]) };
    let drop = Group {
        action: Some(at("refused").map(|_| Action::Refused)),
        allow: Some(all(&["use-application-dns.net"])),
        ..group_of("drop", &["10.3.0.0/16"])
    };
    let mut plan = Plan { groups: vec![watched, other, free, drop], packs: vec![ngrok(), bypass], ..Plan::default() };
    plan.organization.ingress = all(&["connect.acme.com"]);
    plan.organization.contact = Some("netsec@acme.example".into());
    plan.defaults.packs = vec![0, 1];
    plan.defaults.block = all(&[".bad.example", "*.sub.example", "acme-shop.example"]);
    plan.defaults.allow = all(&["good.bad.example", ".acme-shop.example"]);
    plan.exceptions = vec![
        exception_of("connect.eu.ngrok-agent.com", "10.20.7.0/24", "2026-12-24T18:00:00Z"),
        exception_of("vendor.bad.example", "0.0.0.0/0", "2026-12-01T00:00:00Z"),
    ];
    plan
}

fn now() -> Moment {
    Moment { time: "2026-11-25T12:00:00Z".parse().unwrap(), trusted: true }
}

fn compiled(plan: &Plan) -> Policy {
    let (policy, problems) = compile(plan, now().time);
    policy.unwrap_or_else(|| panic!("{problems}"))
}

/// `allow`, `own`, `exception`, `pass`, or mode, action and rule of a violation.
fn said(policy: &Policy, verdict: Verdict) -> String {
    let violation = |word: &str, reason: Reason| {
        format!("{word} {:?} {}", reason.action, policy.rule(reason.rule).label).to_lowercase()
    };
    match verdict {
        Verdict::Allow(Basis::NoMatch) => "pass".into(),
        Verdict::Allow(Basis::OwnIngress(rule)) => format!("own {}", policy.rule(rule).label),
        Verdict::Allow(Basis::Exception { until, .. }) => format!("exception {until}"),
        Verdict::Allow(Basis::Rule(rule)) => format!("allow {}", policy.rule(rule).label),
        Verdict::Observe(reason) => violation("observe", reason),
        Verdict::Block(reason) => violation("block", reason),
    }
}

fn asked(policy: &Policy, client: &str, text: &str, moment: Moment) -> String {
    let client = client.parse().unwrap();
    said(policy, policy.judge_question(policy.group(client), client, name(text).as_name(), moment))
}

#[test]
fn each_name_is_decided_by_the_first_step_that_applies() {
    let policy = compiled(&plan());
    #[rustfmt::skip]
    let cases: &[(&str, &str, &str)] = &[
        // Every ingress but the own one, any generation, any region, any case.
        ("192.0.2.1", "connect.ngrok-agent.com",           "block nxdomain ngrok/connect"),
        ("192.0.2.1", "CONNECT.Eu.ngrok-Agent.COM.",       "block nxdomain ngrok/connect"),
        ("192.0.2.1", "connect.us-cal-1.ngrok-agent.com",  "block nxdomain ngrok/connect"),
        ("192.0.2.1", "connect.eu-lon-1.ngrok-agent.com",  "block nxdomain ngrok/connect"),
        ("192.0.2.1", "tunnel.ngrok.com",                  "block nxdomain ngrok/legacy"),
        ("192.0.2.1", "tunnel.us.ngrok.com",               "block nxdomain ngrok/legacy"),
        ("192.0.2.1", "tunnel.eu-lon-1.ngrok.com",         "block nxdomain ngrok/legacy"),
        ("192.0.2.1", "ngrokd.ngrok.com",                  "block nxdomain ngrok/legacy"),
        ("192.0.2.1", "korgn.su.lennut.com",               "block nxdomain ngrok/legacy"),
        // What the company's own agents need, and what only looks alike.
        ("192.0.2.1", "crl.ngrok-agent.com",               "allow ngrok/support"),
        ("192.0.2.1", "update.ngrok-agent.com",            "allow ngrok/support"),
        ("192.0.2.1", "api.ngrok.com",                     "pass"),
        ("192.0.2.1", "dashboard.ngrok.com",               "pass"),
        ("192.0.2.1", "a.connect.ngrok-agent.com",         "pass"),
        ("192.0.2.1", "connect.a.b.ngrok-agent.com",       "pass"),
        ("192.0.2.1", "tunnel.us.ngrok.com.example.org",   "pass"),
        ("192.0.2.1", "notngrok-agent.com",                "pass"),
        ("192.0.2.1", "mytunnel.ngrok.com.evil.example",   "pass"),
        ("192.0.2.1", ".",                                 "pass"),
        ("192.0.2.1", "com",                               "pass"),
        // The own ingress and all below; not what contains it.
        ("192.0.2.1", "connect.acme.com",                  "own organization.ingress"),
        ("192.0.2.1", "tunnel.us.connect.acme.com",        "own organization.ingress"),
        ("192.0.2.1", "connect.acme.com.evil.example",     "pass"),
        ("192.0.2.1", "acme.com",                          "pass"),
        ("10.1.0.1",  "connect.acme.com",                  "own organization.ingress"),
        ("10.2.0.1",  "connect.acme.com",                  "pass"),
        ("10.2.0.1",  "x.in.other.example",                "own clients.other.ingress"),
        ("192.0.2.1", "in.other.example",                  "pass"),
        // Local rules by specificity; NODATA above what is allowed.
        ("192.0.2.1", "bad.example",                       "block nodata policy.block"),
        ("192.0.2.1", "x.bad.example",                     "block nxdomain policy.block"),
        ("192.0.2.1", "good.bad.example",                  "allow policy.allow"),
        ("192.0.2.1", "x.good.bad.example",                "block nxdomain policy.block"),
        ("192.0.2.1", "sub.example",                       "pass"),
        ("192.0.2.1", "x.sub.example",                     "block nxdomain policy.block"),
        ("192.0.2.1", "acme-shop.example",                 "block nxdomain policy.block"),
        ("192.0.2.1", "www.acme-shop.example",             "allow policy.allow"),
        ("192.0.2.1", "use-application-dns.net",           "block nxdomain bypass/canary"),
        ("192.0.2.1", "a.dns.example",                     "block nxdomain bypass/canary"),
        // What a group replaces, and what it keeps.
        ("10.1.0.1",  "connect.ngrok-agent.com",           "observe nxdomain ngrok/connect"),
        ("10.1.0.1",  "bad.example",                       "observe nodata policy.block"),
        ("10.2.0.1",  "use-application-dns.net",           "pass"),
        ("10.2.0.1",  "connect.ngrok-agent.com",           "block nxdomain ngrok/connect"),
        ("10.2.3.1",  "connect.ngrok-agent.com",           "pass"),
        ("10.2.3.1",  "x.bad.example",                     "pass"),
        ("10.2.3.1",  "good.bad.example",                  "allow policy.allow"),
        ("10.3.0.1",  "connect.ngrok-agent.com",           "block refused ngrok/connect"),
        ("10.3.0.1",  "use-application-dns.net",           "allow clients.drop.allow"),
        ("10.3.0.1",  "good.bad.example",                  "block refused policy.block"),
        ("2001:db8:2::1", "use-application-dns.net",       "pass"),
        ("::ffff:10.1.0.1", "connect.ngrok-agent.com",     "observe nxdomain ngrok/connect"),
    ];
    for (client, text, expected) in cases {
        assert_eq!(asked(&policy, client, text, now()), *expected, "{text} from {client}");
    }
}

#[test]
fn an_exception_opens_one_name_for_one_network_until_it_ends() {
    let policy = compiled(&plan());
    let (eu, vendor) = ("connect.eu.ngrok-agent.com", "vendor.bad.example");
    #[rustfmt::skip]
    let cases: &[(&str, &str, &str, bool, &str)] = &[
        ("10.20.7.9", eu,                         "2026-12-24T17:59:59Z", true,  "exception 2026-12-24T18:00:00Z"),
        ("::ffff:10.20.7.9", eu,                  "2026-12-24T17:59:59Z", true,  "exception 2026-12-24T18:00:00Z"),
        ("10.20.7.9", eu,                         "2026-12-24T18:00:00Z", true,  "block nxdomain ngrok/connect"),
        ("10.20.7.9", eu,                         "2026-12-24T17:00:00Z", false, "block nxdomain ngrok/connect"),
        ("10.20.8.9", eu,                         "2026-12-24T17:00:00Z", true,  "block nxdomain ngrok/connect"),
        ("10.20.7.9", "connect.us.ngrok-agent.com", "2026-12-24T17:00:00Z", true, "block nxdomain ngrok/connect"),
        ("192.0.2.1", vendor,                     "2026-11-30T00:00:00Z", true,  "exception 2026-12-01T00:00:00Z"),
        ("10.1.0.1",  vendor,                     "2026-11-30T00:00:00Z", true,  "exception 2026-12-01T00:00:00Z"),
        ("2001:db8::1", vendor,                   "2026-11-30T00:00:00Z", true,  "block nxdomain policy.block"),
        // An open name below asks for NODATA only while and for whom it is open; here good.bad.example asks always.
        ("10.3.0.1",  "bad.example",              "2026-11-30T00:00:00Z", true,  "block refused policy.block"),
    ];
    for (client, text, time, trusted, expected) in cases {
        let moment = Moment { time: time.parse().unwrap(), trusted: *trusted };
        assert_eq!(asked(&policy, client, text, moment), *expected, "{text} from {client} at {time}");
    }
}

#[test]
fn nxdomain_gives_way_to_nodata_only_above_what_this_client_is_allowed_now() {
    let mut plan = Plan::default();
    plan.organization.ingress = all(&["connect.acme.com"]);
    plan.packs = vec![
        pack_of(
            "suffixes",
            vec![rule_of("all", &["acme.com", "com.example", "starred.example", "dated.example", "pack.example"], &[])],
        ),
        pack_of("opener", vec![rule_of("open", &[], &["x.y.pack.example", "*.starred.example"])]),
    ];
    plan.defaults.packs = vec![0, 1];
    plan.groups = vec![Group { packs: Some(vec![0]), ingress: Some(vec![]), ..group_of("less", &["10.0.0.0/8"]) }];
    plan.exceptions = vec![exception_of("x.dated.example", "192.0.2.0/24", "2026-12-24T18:00:00Z")];
    let policy = compiled(&plan);
    let behind = Moment { trusted: false, ..now() };
    #[rustfmt::skip]
    let cases = [
        ("192.0.2.1",    "acme.com",        now(),  "block nodata suffixes/all"),
        ("10.0.0.1",     "acme.com",        now(),  "block nxdomain suffixes/all"),
        ("192.0.2.1",    "pack.example",    now(),  "block nodata suffixes/all"),
        ("10.0.0.1",     "pack.example",    now(),  "block nxdomain suffixes/all"),
        ("192.0.2.1",    "starred.example", now(),  "block nxdomain suffixes/all"),
        ("192.0.2.1",    "dated.example",   now(),  "block nodata suffixes/all"),
        ("192.0.2.1",    "dated.example",   behind, "block nxdomain suffixes/all"),
        ("198.51.100.1", "dated.example",   now(),  "block nxdomain suffixes/all"),
    ];
    for (client, text, moment, expected) in cases {
        assert_eq!(asked(&policy, client, text, moment), expected, "{text} from {client}");
    }
    let client = "192.0.2.1".parse().unwrap();
    // A name that is refused for its answer is fitted in the same way.
    assert_eq!(policy.action_at(GroupId::DEFAULT, client, name("y.pack.example").as_name(), now()), Action::Nodata);
    assert_eq!(policy.action_at(GroupId::DEFAULT, client, name("z.pack.example").as_name(), now()), Action::Nxdomain);
}

#[test]
fn an_answer_is_refused_for_a_blocked_alias_or_an_address_of_an_active_pack() {
    let policy = compiled(&plan());
    #[rustfmt::skip]
    let cases: &[(&str, &[&str], &[&str], &str)] = &[
        ("192.0.2.1", &["connect.us.ngrok-agent.com"],          &[],                        "block nxdomain ngrok/connect"),
        ("192.0.2.1", &["cdn.example", "x.bad.example"],        &[],                        "block nxdomain policy.block"),
        ("192.0.2.1", &["cdn.example", "crl.ngrok-agent.com"],  &["192.0.2.7"],             "pass"),
        // An alias that is the own ingress or open to somebody pardons nothing after it.
        ("192.0.2.1", &["connect.acme.com"],                    &["198.51.100.7"],          "block nxdomain ngrok/connect"),
        ("10.20.7.9", &["connect.eu.ngrok-agent.com"],          &[],                        "block nxdomain ngrok/connect"),
        ("192.0.2.1", &[],                                      &["192.0.2.7", "198.51.100.7"], "block nxdomain ngrok/connect"),
        ("192.0.2.1", &[],                                      &["::ffff:198.51.100.7"],   "block nxdomain ngrok/connect"),
        ("192.0.2.1", &[],                                      &["64:ff9b::198.51.100.7"], "block nxdomain ngrok/connect"),
        ("192.0.2.1", &[],                                      &["2002:c633:6407::1"],     "block nxdomain ngrok/connect"),
        ("192.0.2.1", &[],                                      &["2001:db8:bad::7"],       "block nxdomain ngrok/connect"),
        ("192.0.2.1", &[],                                      &["2001:db8:bae::7", "198.51.101.7"], "pass"),
        ("10.1.0.1",  &["connect.us.ngrok-agent.com"],          &[],                        "observe nxdomain ngrok/connect"),
        ("10.2.3.1",  &["connect.us.ngrok-agent.com"],          &["198.51.100.7"],          "pass"),
    ];
    for (client, aliases, addresses, expected) in cases {
        let aliases: Vec<_> = aliases.iter().map(|text| name(text)).collect();
        let addresses: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let group = policy.group(client.parse().unwrap());
        let verdict = policy.judge_answer(group, &aliases, &addresses, &Learned::default());
        assert_eq!(said(&policy, verdict), *expected, "{aliases:?} {addresses:?}");
    }
    let verdict =
        policy.judge_answer(GroupId::DEFAULT, &[name("a.example"), name("tunnel.ngrok.com")], &[], &Learned::default());
    assert!(matches!(verdict, Verdict::Block(Reason { evidence: Evidence::Alias(1), .. })), "{verdict:?}");
    let carried = "64:ff9b::198.51.100.7".parse().unwrap();
    let verdict = policy.judge_answer(GroupId::DEFAULT, &[], &[carried], &Learned::default());
    assert!(matches!(verdict, Verdict::Block(Reason { evidence: Evidence::Address(seen), .. }) if seen == carried));
}

#[test]
fn a_learned_address_refuses_for_the_groups_that_have_its_pack_by_the_rule_that_has_its_name() {
    let mut plan = plan();
    let list = AddressList { path: "tunnel.json".into(), addresses: Vec::new() };
    plan.packs[1].rules[0].address_lists = vec![list];
    let seen = now().time;
    let learned = Learned::default().followed_by(
        [
            ("3.133.228.214", Source::Name(name("connect.eu.ngrok-agent.com"))),
            ("2a05:d014::7", Source::Name(name("connect.ngrok-agent.com"))),
            ("3.133.228.215", Source::Name(name("connect.zz.ngrok-agent.com"))),
            ("3.133.228.216", Source::List("tunnel.json".into())),
        ]
        .map(|(address, source)| (address.parse().unwrap(), Sighting { source, first: seen, last: seen })),
    );
    #[rustfmt::skip]
    let cases: &[(&str, &[&str], &str, &str)] = &[
        ("192.0.2.1", &["3.133.228.214"],                  "block nxdomain ngrok/connect",   "observe nxdomain ngrok/connect"),
        ("192.0.2.1", &["192.0.2.7", "2a05:d014::7"],      "block nxdomain ngrok/connect",   "observe nxdomain ngrok/connect"),
        ("192.0.2.1", &["64:ff9b::3.133.228.214"],         "block nxdomain ngrok/connect",   "observe nxdomain ngrok/connect"),
        ("192.0.2.1", &["2002:385:e4d6::1"],               "block nxdomain ngrok/connect",   "observe nxdomain ngrok/connect"),
        ("192.0.2.1", &["::ffff:3.133.228.214"],           "block nxdomain ngrok/connect",   "observe nxdomain ngrok/connect"),
        // No rule names it any more.
        ("192.0.2.1", &["3.133.228.215"],                  "pass",                           "pass"),
        ("192.0.2.1", &["3.133.228.213"],                  "pass",                           "pass"),
        ("192.0.2.1", &["3.133.228.216"],                  "block nxdomain bypass/canary",   "observe nxdomain bypass/canary"),
        // The group has one of the two packs, or none.
        ("10.2.0.1",  &["3.133.228.216"],                  "pass",                           "pass"),
        ("10.2.0.1",  &["3.133.228.214"],                  "block nxdomain ngrok/connect",   "observe nxdomain ngrok/connect"),
        ("10.2.3.1",  &["3.133.228.214"],                  "pass",                           "pass"),
        ("10.1.0.1",  &["3.133.228.214"],                  "observe nxdomain ngrok/connect", "observe nxdomain ngrok/connect"),
        // What only records hides nothing that refuses.
        ("192.0.2.1", &["3.133.228.216", "198.51.100.7"],  "block nxdomain ngrok/connect",   "block nxdomain ngrok/connect"),
    ];
    for unknown in [UnknownOnIngress::Refuse, UnknownOnIngress::Observe] {
        plan.defaults.unknown_on_ingress = unknown;
        let policy = compiled(&plan);
        for (client, addresses, refused, observed) in cases {
            let addresses: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            let verdict = policy.judge_answer(policy.group(client.parse().unwrap()), &[], &addresses, &learned);
            let expected = if unknown == UnknownOnIngress::Refuse { refused } else { observed };
            assert_eq!(said(&policy, verdict), *expected, "{client} {addresses:?} {unknown:?}");
        }
    }
}

#[test]
fn an_explanation_says_from_where_an_address_was_learned() {
    let policy = compiled(&plan());
    let (source, seen) = (Source::Name(name("connect.eu.ngrok-agent.com")), now().time);
    let address = "3.133.228.214".parse().unwrap();
    let learned = Learned::default().followed_by([(address, Sighting { source, first: seen, last: seen })]);
    let client = "192.0.2.1".parse().unwrap();
    let explained = policy.explain(client, name("my.example.net").as_name(), Some((&[], &[address])), &learned, now());
    assert_eq!((explained.conclusion, explained.decided_by), (Conclusion::Block, Step::Answer));
    let candidate = &explained.walk.last().unwrap().candidates[0];
    assert!(candidate.pattern.starts_with("3.133.228.214, learned from connect.eu.ngrok-agent.com"), "{candidate:?}");
    assert_eq!((&*candidate.rule, candidate.fate), ("ngrok/connect", Fate::Wins));
}

#[test]
fn rules_and_groups_have_names_and_refusals_a_text() {
    let policy = compiled(&plan());
    let client = "192.0.2.1".parse().unwrap();
    let verdict = policy.judge_question(GroupId::DEFAULT, client, name("tunnel.ngrok.com").as_name(), now());
    let Verdict::Block(reason) = verdict else { panic!("{verdict:?}") };
    assert_eq!(policy.refusal_text(reason.rule), "ngrok/legacy: reason of legacy; contact netsec@acme.example");
    assert_eq!(policy.rule(reason.rule).place.as_ref().unwrap().to_string(), "w.toml:1:5");
    assert_eq!(policy.group_name(policy.group("10.2.3.1".parse().unwrap())), Some("free"));
    assert_eq!(policy.group_name(GroupId::DEFAULT), None);
    let summary = policy.summary();
    let packs: Vec<_> = summary.packs.iter().map(|pack| (&*pack.name, pack.rules, pack.patterns)).collect();
    assert_eq!(packs, [("ngrok", 3, 9), ("bypass", 1, 2)]);
    assert_eq!((summary.groups, summary.exceptions, summary.patterns), (4, 2, 11 + 5 + 1));
    assert_eq!(summary.ingress, [name("in.other.example"), name("connect.acme.com")]);
}

/// Everything that is said of a plan after `change`, a line each.
fn problems(change: impl FnOnce(&mut Plan)) -> String {
    let mut plan = plan();
    // The shared plan answers one group with REFUSED; the warning would stand in every row.
    plan.groups[3].action = None;
    change(&mut plan);
    compile(&plan, now().time).1.to_string()
}

#[test]
fn a_sound_plan_has_no_problems() {
    assert_eq!(problems(|_| {}), "");
}

#[test]
fn what_contradicts_itself_is_found_with_place_and_hint() {
    type Change = fn(&mut Plan);
    #[rustfmt::skip]
    let cases: &[(Change, &[&str])] = &[
        (|p| p.defaults.block = all(&["a..b"]),            &["w.toml:1:5: error: \"a..b\" is no pattern: empty label"]),
        (|p| p.defaults.block = all(&["derp*.x.com"]),     &["a star stands for a whole label", "hint: forms are"]),
        (|p| p.defaults.allow = all(&["xn--zz--.com"]),    &["not a valid internationalised name"]),
        (|p| p.defaults.block = all(&["com"]),             &["error: pattern com covers the public suffix com"]),
        (|p| p.defaults.block = all(&[".com"]),            &["error: pattern .com covers"]),
        (|p| p.defaults.block = all(&["*.co.uk"]),         &["error: pattern *.co.uk covers"]),
        (|p| p.defaults.block = all(&["*.ck"]),            &["error: pattern *.ck covers"]),
        (|p| p.defaults.block = all(&[".公司.cn"]),         &["covers the public suffix"]),
        (|p| p.defaults.allow = all(&["."]),               &["the pattern matches every name"]),
        (|p| p.packs[0].rules[0].block.push(at("*.uk")),   &["error: pattern *.uk covers"]),
        (|p| p.exceptions[0].name = at(".com"),            &["error: pattern .com covers"]),
        (|p| p.organization.ingress = all(&["connect.ngrok-agent.com"]), &["lies under ngrok-agent.com, which is ngrok's own"]),
        (|p| p.organization.ingress = all(&["acme.ngrok.app"]),          &["lies under ngrok.app"]),
        (|p| p.organization.ingress = all(&["co.uk"]),                   &["co.uk is a public suffix"]),
        (|p| p.organization.ingress = all(&["github.io"]),               &["github.io is a public suffix"]),
        (|p| p.organization.ingress = all(&["192.0.2.1"]),               &["own ingress \"192.0.2.1\" is an address"]),
        (|p| p.defaults.allow = all(&["192.0.2.1"]),                     &["an address is no name"]),
        (|p| p.organization.ingress = all(&["localhost"]),               &["localhost is a public suffix"]),
        (|p| p.organization.ingress = all(&["."]),                       &["own ingress \".\" is a pattern"]),
        (|p| p.organization.ingress = all(&["acme.co.uk"]),              &["acme.co.uk is a whole registrable domain", "ingress-whole-domain"]),
        (|p| p.organization.ingress = all(&["*.connect.acme.com"]),      &["is a pattern; it must be a name", "write \"connect.acme.com\""]),
        (|p| p.organization.ingress = all(&["a b.acme.com"]),            &["is no name: ' ' has no place in a name"]),
        (|p| p.groups[0].ingress = Some(all(&["x.ngrok.io"])),           &["lies under ngrok.io"]),
        (|p| p.defaults.block.push(at(".acme.com")),       &["error: pattern .acme.com of policy.block would catch the own ingress connect.acme.com"]),
        (|p| p.packs[1].rules[0].block.push(at("connect.*.com")), &["pattern connect.*.com of bypass/canary would catch"]),
        (|p| p.groups[1].block = Some(all(&["*.other.example"])), &["clients.other.block would catch the own ingress in.other.example of group \"other\""]),
        (|p| p.defaults.block.push(at("eu.connect.acme.com")), &["warning: pattern eu.connect.acme.com lies below the own ingress"]),
        (|p| p.exceptions[1].until = at("past").map(|_| now().time), &["warning: the exception for vendor.bad.example has ended"]),
        (|p| p.exceptions[1].name = at("fine.example"),    &["warning: the exception for fine.example opens what no pattern blocks"]),
        (|p| p.exceptions[1].name = at(".fine.example"),   &["warning: the exception for .fine.example opens"]),
        (|p| p.groups[1].networks.push(net("::ffff:10.1.0.0/112")), &["10.1.0.0/16 is a network of group \"watched\" too"]),
        (|p| p.groups[1].name = at("watched"),             &["error: two groups are named \"watched\"", "the first is at w.toml:1:5"]),
        (|p| p.packs[1].name = at("ngrok"),                &["error: two packs are named \"ngrok\""]),
        (|p| p.packs[0].rules[1].id = at("connect"),       &["error: two rules of the pack have the id \"connect\""]),
        (|p| p.packs[1].rules.clear(),                     &["error: pack \"bypass\" is empty"]),
        (|p| p.packs[1].rules[0].block.clear(),            &["error: pack \"bypass\" is empty"]),
        (|p| p.defaults.action = Action::Sinkhole,         &["error: action sinkhole without addresses"]),
        (|p| p.groups[0].action = Some(at("sinkhole").map(|_| Action::Sinkhole)), &["w.toml:1:5: error: action sinkhole without addresses"]),
        (|p| p.groups[0].action = Some(at("refused").map(|_| Action::Refused)),   &["warning: after REFUSED, clients try their next resolver"]),
        (|p| p.groups[0].action = Some(at("drop").map(|_| Action::Drop)),         &["warning: after no answer, clients try"]),
        (|p| p.packs[0].rules[0].resolve.push(at("api.ngrok.com")),     &["api.ngrok.com is not blocked by pack \"ngrok\""]),
        (|p| p.packs[0].rules[0].resolve.push(at("use-application-dns.net")), &["is not blocked by pack \"ngrok\""]),
        (|p| p.packs[0].rules[0].resolve.push(at("x.{zone}.ngrok.com")), &["a placeholder that does not exist"]),
        (|p| p.packs[0].rules[0].regions.clear(),          &["needs regions"]),
        (|p| p.packs[0].rules[0].regions.push(at("a.b")),  &["region \"a.b\" is not one label", "connect.a.b.ngrok-agent.com is not blocked"]),
        (|p| p.packs[0].rules[1].ports = vec![443],        &["has ports but allows nothing"]),
        (|p| p.packs[0].rules[0].ports = vec![443, 8443],  &["rule \"connect\" has networks on other ports than 443"]),
        (|p| p.packs[0].rules[2].networks.push(net("192.0.2.0/24")), &["rule \"support\" has ports for what it allows and for its networks"]),
        (|p| p.packs[0].rules[2].ports = vec![0],          &["has port 0"]),
        (|p| p.nat64.push(at("x").map(|_| "2001:db8::/33".parse().unwrap())), &["2001:db8::/33 is no NAT64 prefix"]),
    ];
    for (change, expected) in cases {
        let said = problems(change);
        for text in *expected {
            assert!(said.contains(text), "wanted: {text}\ngot: {said}");
        }
    }
}

#[test]
fn what_is_sound_raises_nothing() {
    type Change = fn(&mut Plan);
    let cases: &[Change] = &[
        |p| p.defaults.block = all(&[".ngrok.io", ".trycloudflare.com", "*.github.io", ".lan", "bücher.example"]),
        |p| p.organization.ingress = all(&["connect.bücher.example"]),
        |p| (p.organization.ingress, p.organization.ingress_whole_domain) = (all(&["acme.co.uk"]), true),
        |p| (p.defaults.action, p.defaults.sinkhole) = (Action::Sinkhole, vec!["192.0.2.1".parse().unwrap()]),
        // A more specific allow keeps the pattern off the own ingress.
        |p| (p.defaults.block.push(at("*.acme.com")), p.groups[3].allow = None).0,
        |p| p.exceptions[1].name = at("*.example"),
        |p| p.nat64.push(at("x").map(|_| "2001:db8::/32".parse().unwrap())),
    ];
    for (number, change) in cases.iter().enumerate() {
        let said = problems(|plan| {
            plan.defaults.allow.push(at("connect.acme.com"));
            plan.exceptions.truncate(usize::from(number == 5) * 2);
            change(plan);
        });
        assert_eq!(said, "", "case {number}");
    }
}

#[test]
fn all_problems_are_told_at_once_and_leave_no_policy() {
    let mut broken = plan();
    broken.defaults.block = all(&["a..b", ".com"]);
    broken.organization.ingress = all(&["ngrok.com"]);
    broken.packs[1].rules.clear();
    let (policy, problems) = compile(&broken, now().time);
    assert!(policy.is_none());
    assert_eq!(problems.count(crate::problem::Severity::Error), 4, "{problems}");
}

#[test]
fn a_line_that_covers_a_public_suffix_is_named_and_a_million_of_them_are_counted() {
    let said = problems(|plan| {
        let text = format!("# all\n{}||kobe.jp^\ncity.kobe.jp\n", "||com^\n".repeat(30));
        plan.packs[1].rules[0].lists = vec![list::parse("names.txt", text.as_bytes()).0];
    });
    assert!(said.contains("error: names.txt:2: pattern .com covers the public suffix com, under which"), "{said}");
    assert!(said.contains("hint: name the domains one by one"), "{said}");
    assert!(said.contains("names.txt: 11 more lines that cover public suffixes"), "{said}");
    assert_eq!(said.matches("names.txt:").count(), 21, "{said}");
}

#[test]
fn many_names_and_groups_stay_small_and_are_found_with_their_line() {
    let lines = 100_000;
    let block: String = (1..=lines).map(|line| format!("host{line}.list-{}.example\n", line % 977)).collect();
    let (list, _) = list::parse("names.txt", (block + "@@fine.host1.list-1.example").as_bytes());
    let mut plan = plan();
    plan.packs[1].rules[0].lists = vec![list];
    plan.groups.extend((0..2000_u32).map(|number| {
        let network = format!("172.{}.{}.0/24", 16 + number / 256, number % 256);
        Group { mode: Some(Mode::Observe), ..group_of(&format!("g{number}"), &[&network]) }
    }));
    // The same pattern of the same rule counts once, with a star too.
    plan.packs[1].rules[0].block.extend(all(&["use-application-dns.net", "x.*.y.example", "x.*.y.example"]));
    let policy = compiled(&plan);
    assert_eq!(policy.summary().packs[1].patterns, 100_004);
    // Groups that replace no list have no table of their own.
    assert!(policy.tables.len() < 8, "{}", policy.tables.len());
    assert_eq!(asked(&policy, "172.23.1.9", "host77777.list-594.example", now()), "observe nxdomain bypass/canary");
    let explained = policy.explain(
        "192.0.2.1".parse().unwrap(),
        name("host99.list-99.example").as_name(),
        None,
        &Learned::default(),
        now(),
    );
    let origin = explained.walk.last().and_then(|walked| walked.candidates[0].origin.clone()).unwrap();
    assert_eq!(origin.to_string(), "names.txt:99");
    let size = policy.pack_patterns.size();
    assert!(size < 27 * 100_000, "{size} bytes");
}

#[test]
fn an_explanation_tells_each_step_and_why_the_losers_lost() {
    let mut plan = plan();
    plan.packs[1].rules[0].block.push(at(".ngrok-agent.com"));
    plan.packs[0].rules[2].allow.push(at("connect.*.ngrok-agent.com"));
    let policy = compiled(&plan);
    let asked = name("connect.eu.ngrok-agent.com");
    let explained = policy.explain("10.2.0.1".parse().unwrap(), asked.as_name(), None, &Learned::default(), now());
    assert_eq!((explained.conclusion, explained.decided_by), (Conclusion::Block, Step::Packs));
    let exception = &explained.walk[1];
    assert_eq!((exception.step, exception.outcome), (Step::Exception, Outcome::Nothing));
    assert_eq!(exception.candidates[0].fate, Fate::OtherClients);
    let packs: Vec<_> = explained.walk[3].candidates.iter().map(|c| (&*c.rule, &*c.pattern, c.fate)).collect();
    let expected = [
        ("ngrok/connect", "connect.*.ngrok-agent.com", Fate::Wins),
        ("ngrok/support", "connect.*.ngrok-agent.com", Fate::Tie),
        ("bypass/canary", ".ngrok-agent.com", Fate::PackNotActive),
    ];
    assert_eq!(packs, expected);

    let client = "10.20.7.9".parse().unwrap();
    for (moment, fate) in [
        (Moment { trusted: false, ..now() }, Fate::ClockNotTrusted),
        (Moment { time: "2026-12-24T18:00:00Z".parse().unwrap(), trusted: true }, Fate::Ended),
        (now(), Fate::Wins),
    ] {
        let explained = policy.explain(client, asked.as_name(), None, &Learned::default(), moment);
        assert_eq!(explained.walk[1].candidates[0].fate, fate);
    }
}

#[test]
fn an_explanation_of_an_answer_names_the_alias_and_stops_there() {
    let policy = compiled(&plan());
    let aliases = [name("cdn.example"), name("tunnel.us.ngrok.com")];
    let addresses = ["198.51.100.1".parse().unwrap()];
    let client = "192.0.2.1".parse().unwrap();
    let explain = |text: &str| {
        policy.explain(client, name(text).as_name(), Some((&aliases, &addresses)), &Learned::default(), now())
    };
    let explained = explain("my.example.net");
    assert_eq!((explained.conclusion, explained.decided_by), (Conclusion::Block, Step::Answer));
    let candidates = &explained.walk.last().unwrap().candidates;
    assert_eq!(candidates.len(), 1);
    assert_eq!(candidates[0].evidence.as_deref(), Some("tunnel.us.ngrok.com"));
    // The own ingress ends it before the answer is looked at.
    let own = explain("connect.acme.com");
    assert_eq!((own.conclusion, own.decided_by, own.walk.len()), (Conclusion::Allow, Step::OwnIngress, 1));
    let unanswered = policy.explain(client, name("my.example.net").as_name(), None, &Learned::default(), now());
    assert_eq!(unanswered.walk.last().unwrap().outcome, Outcome::NotExamined);
    assert_eq!(unanswered.decided_by, Step::Pass);
}
