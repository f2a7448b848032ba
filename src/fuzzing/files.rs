//! Files of operators, vendors and the system.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use jiff::Timestamp;

use super::names::is_sound;
use crate::{
    config, firewall, ingress,
    policy::{
        address_list::{self, MAX_LISTED, NoAddressList},
        compile,
        list::{self, List, MAX_SHOWN},
        pack::{Files, Origin, parse},
        plan::{AddressList, Pack, Plan},
    },
    problem::{Located, MAX_EXCERPT, Problems, SourceFile},
    sys::holder::{self, Protocol},
    upstream,
};

/// A pack, and the policy that it alone would make.
pub fn pack(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    for origin in [Origin::File, Origin::BuiltIn] {
        let file = Arc::new(SourceFile { path: "pack.toml".into(), text: text.to_owned() });
        let mut problems = Problems::default();
        let pack = parse(&file, origin, &mut problems, &mut NoFiles);
        are_told_at_their_place(&problems, text);
        match pack {
            Some(pack) if !problems.has_errors() => is_compiled(pack, text),
            Some(_) => {}
            None => assert!(problems.has_errors(), "nobody is told why there is no pack"),
        }
    }
}

fn is_compiled(pack: Pack, text: &str) {
    let rules = pack.rules.len();
    let mut plan = Plan { packs: vec![pack], ..Plan::default() };
    plan.defaults.packs = vec![0];
    let (policy, problems) = compile(&plan, Timestamp::UNIX_EPOCH);
    are_told_at_their_place(&problems, text);
    assert_eq!(policy.is_none(), problems.has_errors());
    if let Some(policy) = policy {
        assert_eq!(policy.summary().packs[0].rules, rules);
        policy.resolved().for_each(|name| is_sound(name.as_name()));
    }
}

/// A pack's files are there, and empty.
struct NoFiles;

impl Files for NoFiles {
    fn names(&mut self, entry: &Located<String>) -> Option<List> {
        Some(List::new(&entry.value))
    }

    fn addresses(&mut self, entry: &Located<String>) -> Option<AddressList> {
        Some(AddressList { path: entry.value.clone(), ..AddressList::default() })
    }
}

/// A configuration with the built-in packs.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let load = || config::read_text_alone(text.to_owned(), Timestamp::UNIX_EPOCH);
    let (loaded, again) = (load(), load());
    assert_eq!(loaded.outcome.is_none(), loaded.problems.has_errors());
    for problem in loaded.problems.iter() {
        is_printable(&problem.to_string());
        let Some(place) = &problem.place else { continue };
        let source = loaded.sources.iter().find(|source| source.path == place.path()).expect("a file that was read");
        is_within(place.line(), place.column(), &source.text);
    }
    let told = |problems: &Problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(told(&loaded.problems), told(&again.problems), "the same file says the same");
    if let (Some(one), Some(other)) = (loaded.outcome, again.outcome) {
        assert_eq!(one.changes_since(&other), Vec::<String>::new());
        assert!(one.losses_since(&other).is_empty());
    }
}

/// Each problem names a line and a column of the file, and harms no terminal.
fn are_told_at_their_place(problems: &Problems, text: &str) {
    for problem in problems.iter() {
        is_printable(&problem.to_string());
        let place = problem.place.as_ref().expect("a place in the file");
        assert_eq!(place.path(), PathBuf::from("pack.toml"));
        assert!(place.excerpt().chars().count() <= MAX_EXCERPT + 1);
        is_within(place.line(), place.column(), text);
    }
}

fn is_within(line: usize, column: usize, text: &str) {
    let found = text.split('\n').nth(line - 1).unwrap_or_else(|| panic!("there is no line {line}"));
    assert!(column <= found.chars().count() + 1, "line {line} has no column {column}");
}

fn is_printable(shown: &str) {
    let harmful =
        |c: char| c != '\n' && (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
    assert!(!shown.contains(harmful), "{shown:?}");
}

/// A list of names: what is taken of a line depends on that line alone, and what is not taken is told.
pub fn list_file(bytes: &[u8]) {
    let (list, skipped) = list::parse("names.txt", bytes);
    let entries: Vec<_> = list.entries().collect();
    assert_eq!((entries.len(), entries.is_empty()), (list.len(), list.is_empty()));
    assert_eq!(entries.iter().any(|entry| entry.allows), list.allows());
    assert!(skipped.first.len() == skipped.count.min(MAX_SHOWN));
    assert!(entries.is_sorted_by_key(|entry| entry.line) && skipped.first.is_sorted_by_key(|(line, _)| *line));
    let (mut rest, mut left) = (entries.as_slice(), 0);
    for (number, line) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        let (alone, not_taken) = list::parse("names.txt", line);
        let (own, after) = rest.split_at(alone.len());
        rest = after;
        for (entry, same) in own.iter().zip(alone.entries()) {
            assert_eq!((entry.within, entry.allows, entry.name), (same.within, same.allows, same.name));
            assert_eq!((entry.line, same.line), (number, 1));
            is_sound(entry.name);
            assert!(!entry.name.is_root() && entry.name.labels().all(|label| label != b"*"));
        }
        assert!(not_taken.count == 0 || alone.is_empty(), "a line is taken whole or not at all");
        left += not_taken.count;
    }
    assert!(rest.is_empty() && left == skipped.count);
}

/// A vendor's file of addresses: each is in it as a text, and their shape does not matter.
pub fn address_list(bytes: &[u8]) {
    let outcome = address_list::parse(bytes);
    if let Err(NoAddressList::NotJson(_)) = outcome {
        return;
    }
    let wrapped = [b"{\"of\": [{\"the\": ", bytes, b"}, true, null, 1]}"].concat();
    match (outcome, address_list::parse(&wrapped)) {
        (Ok(addresses), Ok(same)) => {
            assert_eq!(addresses, same);
            assert!((1..=MAX_LISTED).contains(&addresses.len()) && addresses.is_sorted_by(|one, other| one < other));
            let plain = serde_json::to_vec(&addresses).expect("addresses are texts");
            assert_eq!(address_list::parse(&plain).expect("a list"), addresses);
        }
        // As deep as the parser goes.
        (Ok(_), Err(NoAddressList::NotJson(_))) | (Err(_), Err(_)) => {}
        (outcome, same) => panic!("{outcome:?} and wrapped {same:?}"),
    }
}

/// resolv.conf: each line stands for itself.
pub fn resolv_conf(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let interface = |name: &str| (!name.is_empty()).then_some(7);
    let servers = upstream::resolv_conf_servers(&text, interface);
    let alone = text.lines().flat_map(|line| upstream::resolv_conf_servers(line, interface));
    assert_eq!(servers, alone.collect::<Vec<_>>());
    assert!(servers.len() <= text.matches("nameserver").count());
    assert!(servers.iter().all(|server| server.port() == 53));
    assert!(!servers.iter().any(|server| matches!(server.ip(), IpAddr::V4(ip) if ip.is_unspecified())));
}

/// What an earlier daemon left of learned addresses: what is read is written as it was read.
pub fn learned_addresses(bytes: &[u8]) {
    let Ok(entries) = ingress::kept_entries(bytes) else { return };
    let written = serde_json::to_vec(&entries).expect("an entry is JSON");
    assert_eq!(ingress::kept_entries(&written).expect("what we write"), entries);
}

/// What the system lists: rules as `nft` prints them, as text and as JSON, and sockets as the kernel does.
pub fn listing(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let listing = firewall::Listing::read(&text);
    assert_eq!(listing.differences(&firewall::Listing::read(&text)), []);
    for obstacle in firewall::obstacles(&text) {
        assert!(obstacle.remedy("lan0").contains("lan0") && !obstacle.to_string().is_empty());
    }
    for line in text.lines() {
        let (udp, tcp) = (holder::parse(line, Protocol::Udp), holder::parse(line, Protocol::Tcp));
        assert!(tcp.is_none() || tcp == udp);
    }
}
