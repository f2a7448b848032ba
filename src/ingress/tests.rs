//! What is remembered, for how long, and how much of it.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{
    Entry, Refusal, TurnedAway,
    exclusions::Exclusions,
    keep,
    memory::{Memory, Said},
};
use crate::{
    policy::{Learned, Policy, Sighting, Source, compile, plan::Plan},
    sys::interfaces::Interfaces,
};

const DAY: Duration = Duration::from_hours(24);

fn policy() -> Policy {
    compile(&Plan::default(), Timestamp::UNIX_EPOCH).0.unwrap()
}

fn exclusions(policy: &Policy) -> Exclusions<'_> {
    Exclusions::new(policy, &Interfaces::default(), std::iter::empty())
}

fn name(text: &str) -> Source {
    Source::Name(text.parse().unwrap())
}

/// So many hours after the beginning.
fn hour(hours: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The memory of one source, and who is excluded from it: nobody in particular.
struct Case {
    policy: Policy,
    memory: Memory,
    source: Source,
}

impl Case {
    fn of(source: Source) -> Self {
        let mut memory = Memory::default();
        memory.follow(BTreeSet::from([source.clone()]));
        Self { policy: policy(), memory, source }
    }

    fn says(&mut self, addresses: &[IpAddr], complete: bool, now: Timestamp) -> Vec<Refusal> {
        self.memory.note(&Said { source: &self.source, addresses, complete }, &exclusions(&self.policy), now)
    }

    fn knows(&mut self, now: Timestamp) -> Vec<IpAddr> {
        self.memory.forget(DAY, now);
        let mut known: Vec<_> = self.memory.learned(&Learned::default()).iter().map(|(address, _)| address).collect();
        known.sort();
        known
    }
}

#[test]
fn an_address_is_remembered_for_a_day_after_it_vanished_and_as_long_as_nobody_says_so() {
    let mut case = Case::of(name("connect.ngrok-agent.com"));
    let [first, second] = [ips(&["3.0.0.1"]), ips(&["3.0.0.2"])];
    let both = [first.clone(), second.clone()].concat();
    case.says(&both, true, hour(0));
    assert_eq!(case.knows(hour(1000)), both, "no later answer says otherwise");
    case.says(&second, false, hour(1001));
    assert_eq!(case.knows(hour(2000)), both, "half an answer says nothing of the other half");
    case.says(&second, true, hour(2001));
    assert_eq!(case.knows(hour(2001)), second, "it was seen last two thousand hours ago");
    case.says(&first, true, hour(2002));
    assert_eq!(case.knows(hour(2024)), both);
    assert_eq!(case.memory.until_next_forgotten(DAY, hour(2024)), Some(Duration::from_hours(1)));
    assert_eq!(case.knows(hour(2025)), first);
    case.says(&first, true, hour(2026));
    case.says(&[], true, hour(2027));
    assert_eq!(case.knows(hour(2028)), first, "a name that is gone is remembered like an address that is");
    assert_eq!(case.knows(hour(1)), first, "a clock set back forgets nothing");
    assert_eq!(case.knows(hour(2050)), ips(&[]));
    let sightings = |case: &Case| case.memory.learned(&Learned::default()).iter().next().map(|(_, seen)| seen.clone());
    case.says(&first, true, hour(3000));
    case.says(&first, true, hour(3001));
    let seen = sightings(&case).unwrap();
    assert_eq!((seen.first, seen.last), (hour(3000), hour(3001)));
}

#[test]
fn what_leaves_a_list_is_forgotten_at_once() {
    let mut case = Case::of(Source::List("tunnel.json".into()));
    case.says(&ips(&["3.0.0.1", "3.0.0.2"]), true, hour(0));
    case.says(&ips(&["3.0.0.2"]), true, hour(1));
    assert_eq!(case.knows(hour(1)), ips(&["3.0.0.2"]));
    assert!(case.memory.to_keep().is_empty(), "the file keeps itself");
}

#[test]
fn a_name_has_sixty_four_addresses_and_the_one_that_vanished_longest_ago_makes_room() {
    let mut case = Case::of(name("connect.ngrok-agent.com"));
    let many: Vec<IpAddr> = (0..100).map(|last| IpAddr::from([3, 0, 0, last])).collect();
    assert_eq!(case.says(&many, true, hour(0)), vec![Refusal::Crowded; 36]);
    assert_eq!(case.memory.turned_away().len(), 36);
    assert_eq!(case.knows(hour(0)), many[..64]);
    case.says(&many[1..64], true, hour(1));
    assert_eq!(case.says(&many[2..65], true, hour(2)), []);
    let known = case.knows(hour(2));
    assert_eq!((known.len(), known.contains(&many[0]), known.contains(&many[64])), (64, false, true));
}

#[test]
fn what_all_sources_together_bring_is_bounded() {
    let lists: Vec<_> = (0..5).map(|number| Source::List(format!("{number}.json").into())).collect();
    let (policy, mut memory) = (policy(), Memory::default());
    memory.follow(lists.iter().cloned().collect());
    let mut refused = 0;
    for (number, source) in (0..).zip(&lists) {
        let addresses: Vec<_> =
            (0..4096_u32).map(|index| IpAddr::from([3, number, (index >> 8) as u8, index as u8])).collect();
        refused +=
            memory.note(&Said { source, addresses: &addresses, complete: true }, &exclusions(&policy), hour(0)).len();
    }
    assert_eq!((memory.learned(&Learned::default()).len(), refused), (16_384, 4096));
}

#[test]
fn a_number_changes_with_the_addresses_and_not_with_the_times() {
    let mut case = Case::of(name("connect.ngrok-agent.com"));
    case.says(&ips(&["3.0.0.1"]), true, hour(0));
    let first = case.memory.learned(&Learned::default());
    case.says(&ips(&["3.0.0.1"]), true, hour(1));
    let second = case.memory.learned(&first);
    case.says(&ips(&["3.0.0.1", "3.0.0.2"]), true, hour(2));
    let third = case.memory.learned(&second);
    case.memory.follow(BTreeSet::new());
    let fourth = case.memory.learned(&third);
    assert_eq!([first, second, third, fourth].map(|set| set.number()), [1, 1, 2, 3]);
}

#[test]
fn what_was_kept_is_believed_only_as_far_as_an_answer_would_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("learned.json");
    assert_eq!(keep::read(&path).unwrap(), []);
    let mut case = Case::of(name("connect.ngrok-agent.com"));
    case.says(&ips(&["3.0.0.1", "2a05:d014::1"]), true, hour(10));
    keep::write(&path, &case.memory.to_keep()).unwrap();
    let kept = keep::read(&path).unwrap();
    assert_eq!(kept, case.memory.to_keep());

    let entry = |source: Source, address: &str, first: Timestamp, last: Timestamp| Entry {
        address: address.parse().unwrap(),
        sighting: Sighting { source, first, last },
    };
    let own = || name("connect.ngrok-agent.com");
    let mut odd = vec![
        entry(own(), "10.0.0.1", hour(1), hour(2)),
        entry(own(), "::ffff:3.0.0.9", hour(1), hour(2)),
        entry(name("www.acme.example"), "3.0.0.3", hour(1), hour(2)),
        entry(own(), "3.0.0.4", hour(90), hour(80)),
    ];
    odd.extend((0..100).map(|last| entry(own(), &format!("3.1.0.{last}"), hour(1), hour(11))));
    let mut case = Case::of(own());
    case.memory.recall(odd, &exclusions(&case.policy), hour(12));
    let known = case.knows(hour(12));
    assert_eq!(known.len(), 64);
    assert!(known.contains(&"3.0.0.4".parse().unwrap()));
    assert!(known.iter().all(|address| address.to_string().starts_with("3.")), "{known:?}");
    assert_eq!(
        case.knows(hour(37)),
        ips(&[]),
        "nothing in the future, and nothing current before an answer has it again"
    );

    for text in ["", "{", "[1, {\"address\": \"3.0.0.1\"}]", "{\"name\": 1}"] {
        std::fs::write(&path, text).unwrap();
        assert!(keep::read(&path).map_or_else(|_| true, |entries| entries.is_empty()), "{text}");
    }
}

#[test]
fn what_a_configuration_excludes_from_now_on_is_forgotten_and_a_claim_is_listed() {
    let mut case = Case::of(name("connect.ngrok-agent.com"));
    let addresses = ips(&["3.0.0.1", "84.1.2.3", "192.168.1.1"]);
    assert_eq!(case.says(&addresses, true, hour(0)), [Refusal::NotGlobal]);
    let mut exclusions = exclusions(&case.policy);
    exclusions.add(std::iter::once("84.1.0.0/16".parse().unwrap()), Refusal::Organization);
    case.memory.exclude(&exclusions);
    assert_eq!(
        case.memory.turned_away(),
        [TurnedAway {
            address: "192.168.1.1".parse().unwrap(),
            source: name("connect.ngrok-agent.com"),
            reason: Refusal::NotGlobal,
        }]
    );
    assert_eq!(case.knows(hour(0)), ips(&["3.0.0.1"]));
}
