//! The policy for Squid, the only place where a proxied CONNECT can be judged: `acl` and `http_access deny` lines to
//! be included before the administrator's own `http_access` lines. They never allow: what they do not deny is for the
//! lines behind them to decide.
//!
//! Squid takes the first line that fits and ANDs the lists on it, `!` being "not"; that is [`RefusedNames`] word for
//! word. It ignores or refuses a value that another of the same list covers, so no list has one.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    Fragment,
    networks::{in_every_form, where_it_holds},
    rendered::Directive,
};
use crate::{
    name::{DomainName, NameRef},
    policy::{GroupId, Learned, Mode, Pattern, Policy, Refused, RefusedNames, Shape},
};

/// What the export is made from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Dedicated addresses of the own ingress, never refused.
    pub own_addresses: &'a [IpNet],
    /// Learned ingress addresses, or why they are not known.
    pub learned: Result<&'a Learned, &'a str>,
    /// Exceptions that end later are told.
    pub time: Timestamp,
}

/// Of lists that look at names; `-n`: a host that is an address is not looked up for its name.
const NAMES: &str = "dstdomain -n";
const STARRED_NAMES: &str = "dstdom_regex -n";
/// Of addresses; `-n`: a host that is a name is not looked up for its address, which may be the own ingress's as well.
const ADDRESSES: &str = "dst -n";
const CLIENTS: &str = "src";

const OWN_ADDRESSES: &str = "tw_own_addresses";

/// The fragment.
pub fn export(facts: &Facts<'_>) -> Fragment {
    let mut writer = Writer::default();
    let own_addresses = in_every_form(facts.own_addresses.iter().copied(), facts.policy.carriers());
    writer.list(OWN_ADDRESSES, ADDRESSES, texts(&own_addresses));
    for (number, refused) in (1..).zip(facts.policy.refused()) {
        writer.refuse(number, &refused, facts);
    }
    let missing = missing(facts, &writer.unwritable);
    let directives = head(&missing).chain(writer.directives).collect();
    Fragment { directives, missing }
}

#[derive(Default)]
struct Writer {
    directives: Vec<Directive>,
    /// Patterns that Squid could not read.
    unwritable: Vec<String>,
}

impl Writer {
    /// What is refused to the clients of some groups.
    fn refuse(&mut self, number: usize, refused: &Refused, facts: &Facts<'_>) {
        let Some(clients) = self.clients(number, refused, facts.policy) else { return };
        let own = self.names(&format!("tw_own_{number}"), &refused.own);
        for (part, RefusedNames { block, unless }) in (1..).zip(&refused.names) {
            let block = self.names(&format!("tw_block_{number}_{part}"), block);
            let unless = self.names(&format!("tw_allow_{number}_{part}"), unless);
            for list in block {
                self.deny(clients.iter().cloned().chain([list]).chain(own.iter().chain(&unless).map(|list| not(list))));
            }
        }
        let list = format!("tw_addresses_{number}");
        if self.list(&list, ADDRESSES, texts(&addresses(refused, facts))) {
            let own = (!facts.own_addresses.is_empty()).then(|| not(OWN_ADDRESSES));
            self.deny(clients.into_iter().chain([list]).chain(own));
        }
    }

    /// The condition that holds for exactly these groups' clients: none where they are everybody's. `None`: there are
    /// no such clients.
    fn clients(&mut self, number: usize, refused: &Refused, policy: &Policy) -> Option<Vec<String>> {
        self.directives.push(Directive::Comment(String::new()));
        self.directives.push(Directive::Comment(format!("for {}", whose(&refused.groups, policy))));
        // The rest of the world is told by what is not of it.
        let is_rest = refused.groups.contains(&GroupId::DEFAULT);
        let is_listed = |client: IpAddr| refused.groups.contains(&policy.group(client)) != is_rest;
        let networks = where_it_holds(&policy.client_networks().collect::<Vec<_>>(), is_listed);
        let list = format!("tw_clients_{}{number}", if is_rest { "not_" } else { "" });
        match (self.list(&list, CLIENTS, texts(&networks)), is_rest) {
            (true, true) => Some(vec![not(&list)]),
            (true, false) => Some(vec![list]),
            (false, true) => Some(Vec::new()),
            (false, false) => None,
        }
    }

    /// Lists of patterns: at most one of names and one of expressions.
    fn names(&mut self, list: &str, patterns: &[Pattern]) -> Vec<String> {
        let (writable, unwritable): (Vec<&Pattern>, Vec<&Pattern>) =
            patterns.iter().partition(|pattern| is_writable(&pattern.name));
        self.unwritable.extend(unwritable.into_iter().map(ToString::to_string));
        let starred = format!("{list}_starred");
        let expressions: BTreeSet<String> = writable.iter().filter_map(|pattern| expression(pattern)).collect();
        let expressions = expressions.into_iter().collect();
        let lists = [(list.to_owned(), NAMES, domains(&writable)), (starred, STARRED_NAMES, expressions)];
        lists
            .into_iter()
            .filter(|(name, kind, values)| self.list(name, kind, values.clone()))
            .map(|(name, ..)| name)
            .collect()
    }

    /// Adds a list, unless it is empty.
    fn list(&mut self, name: &str, kind: &'static str, values: Vec<String>) -> bool {
        let is_there = !values.is_empty();
        if is_there {
            self.directives.push(Directive::List { name: name.to_owned(), kind, values });
        }
        is_there
    }

    fn deny(&mut self, conditions: impl Iterator<Item = String>) {
        let conditions: Vec<String> = conditions.collect();
        self.directives.push(Directive::Line(format!("http_access deny {}", conditions.join(" "))));
    }
}

/// Names and suffixes as Squid writes them, none within another.
fn domains(patterns: &[&Pattern]) -> Vec<String> {
    let suffixes: HashSet<NameRef<'_>> = patterns
        .iter()
        .filter(|pattern| pattern.shape == Shape::Within)
        .map(|pattern| pattern.name.as_name())
        .collect();
    let is_covered = |pattern: &Pattern| {
        let itself = usize::from(pattern.shape == Shape::Within);
        pattern.name.as_name().suffixes().skip(itself).any(|suffix| suffixes.contains(&suffix))
    };
    let plain = patterns.iter().filter(|pattern| matches!(pattern.shape, Shape::Exact | Shape::Within));
    let domains: BTreeSet<String> = plain.filter(|pattern| !is_covered(pattern)).map(ToString::to_string).collect();
    in_squids_order(domains.into_iter().collect())
}

/// Squid keeps names in a splay tree, compared from their end, and takes a million five times as fast in that order. But
/// the tree is then as deep as the list is long, and a Squid that is told to reconfigure takes it apart by recursion
/// and dies. Some from everywhere at the end, those in the middle first, make it flat.
fn in_squids_order(mut domains: Vec<String>) -> Vec<String> {
    if domains.len() < FEW {
        return domains;
    }
    domains.sort_unstable_by(|one, other| one.bytes().rev().cmp(other.bytes().rev()));
    let (scattered, mut ordered): (Vec<_>, Vec<_>) =
        (0_u32..).zip(domains).partition(|(place, _)| place % SCATTERED == 0);
    let mut scattered: Vec<_> =
        scattered.into_iter().map(|(place, domain)| ((place / SCATTERED).reverse_bits(), domain)).collect();
    scattered.sort_unstable();
    ordered.extend(scattered);
    ordered.into_iter().map(|(_, domain)| domain).collect()
}

/// Fewer names than this are in the order in which people look for them.
const FEW: usize = 1000;

/// One in so many.
const SCATTERED: u32 = 64;

/// A pattern with a star as an expression: a label has no dot, and is not empty.
fn expression(pattern: &Pattern) -> Option<String> {
    let escaped = |text: String| text.replace('.', "\\.");
    match pattern.shape {
        Shape::Exact | Shape::Within => None,
        Shape::Below => Some(format!("^.+\\.{}$", escaped(pattern.name.to_string()))),
        Shape::Middle => Some(format!("^{}$", escaped(pattern.to_string()).replace('*', "[^.]+"))),
    }
}

/// Squid reads a list word by word, and a word with a dash in front as an option. What a host name may hold besides is
/// never asked of it.
fn is_writable(name: &DomainName) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let mut labels = name.as_name().labels();
    !name.as_name().first_label().starts_with(b"-") && labels.all(|label| label == b"*" || label.iter().all(is_plain))
}

/// Addresses of packs and learned ones.
fn addresses(refused: &Refused, facts: &Facts<'_>) -> Vec<IpNet> {
    let learned = facts.learned.iter().flat_map(|learned| learned.iter().map(move |(address, _)| (address, *learned)));
    let learned = learned.filter(|(address, learned)| refused.refuses_learned(facts.policy, *address, learned));
    let networks = refused.networks.iter().copied().chain(learned.map(|(address, _)| IpNet::from(address)));
    in_every_form(networks, facts.policy.carriers())
}

fn head(missing: &[String]) -> impl Iterator<Item = Directive> {
    let about = [
        "Made by tunnelwarden. Include it before any http_access line of your own. It only denies.",
        "What it cannot say, or does not know:",
    ];
    let missing = missing.iter().map(|line| format!("- {line}"));
    about.map(str::to_owned).into_iter().chain(missing).chain([String::new()]).map(Directive::Comment)
}

/// What of the policy is not in the lines.
fn missing(facts: &Facts<'_>, unwritable: &[String]) -> Vec<String> {
    let policy = facts.policy;
    let mut missing = Vec::new();
    let observed: Vec<GroupId> = policy.groups().filter(|&group| policy.mode(group) == Mode::Observe).collect();
    if !observed.is_empty() {
        missing
            .push(format!("mode observe: nothing is denied to {}, and nothing is recorded", whose(&observed, policy)));
    }
    for (pattern, until) in policy.exceptions_after(facts.time) {
        missing.push(format!("the exception for {pattern} until {until}: here it stays closed"));
    }
    if let [first, ..] = unwritable {
        missing.push(format!("{} patterns with characters that Squid cannot read, such as {first}", unwritable.len()));
    }
    let is_learning = policy.resolved().count() + policy.listed().count() > 0;
    missing.extend(is_learning.then(|| match facts.learned {
        Ok(learned) => format!("addresses learned later than now, when there were {}", learned.len()),
        Err(why) => format!("learned ingress addresses: {why}"),
    }));
    missing.extend(ALWAYS_MISSING.map(str::to_owned));
    missing
}

const ALWAYS_MISSING: [&str; 5] = [
    "names that lead to an ingress by an alias or an address: have Squid ask tunnelwarden (dns_nameservers)",
    "what is said inside a tunnel: a foreign server name on an address that is let through",
    "connections that Squid intercepts: it knows their address when these lines decide, and no name",
    "block answers and their texts: everybody gets 403, and the reason is only in this file",
    "the record of attempts and of own use: Squid's access.log has them, denied ones as TCP_DENIED/403",
];

/// Groups by name.
fn whose(groups: &[GroupId], policy: &Policy) -> String {
    let name = |&group: &GroupId| match policy.group_name(group) {
        Some(name) => format!("clients of {}", crate::problem::printable(name)),
        None if policy.groups().count() > 1 => "clients of no group".to_owned(),
        None => "everybody".to_owned(),
    };
    groups.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn not(list: &str) -> String {
    format!("!{list}")
}

fn texts(networks: &[IpNet]) -> Vec<String> {
    networks.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
