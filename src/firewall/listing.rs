//! What `nft list table` prints, taken apart so that two listings can be compared. What is in dynamic sets and
//! counters is nobody's text and is left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Serialize, Serializer};

use super::sets;

/// How the kernel differs from what it should have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Difference {
    /// Our table is not there.
    NoTable,
    /// This should be in that set or chain, or be one.
    Missing(String),
    /// This should not.
    Extra(String),
    /// The rules of this chain are in another order.
    Order(String),
}

/// Sets, chains and counters by their headings, each with its lines.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Listing(BTreeMap<String, Vec<String>>);

impl Listing {
    pub(crate) fn read(text: &str) -> Self {
        let mut blocks = BTreeMap::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            // What is not indented is the table's own; its flags are not part of the rules.
            let Some(heading) = line.strip_prefix('\t').and_then(|line| line.strip_suffix(" {")) else { continue };
            let body = lines.by_ref().take_while(|line| *line != "\t}").map(str::trim).collect();
            blocks.insert(heading.to_owned(), contents(heading, body));
        }
        Self(blocks)
    }

    /// A line that begins so, within a block; the rest of it.
    pub(super) fn value(&self, heading: &str, word: &str) -> Option<&str> {
        self.0.get(heading)?.iter().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
    }

    /// What is to be said of `found`, which should be like this.
    pub(crate) fn differences(&self, found: &Self) -> Vec<Difference> {
        let headings: BTreeSet<_> = self.0.keys().chain(found.0.keys()).collect();
        let mut differences = Vec::new();
        for heading in headings {
            match (self.0.get(heading), found.0.get(heading)) {
                (Some(should), Some(is)) => differences.extend(between(heading, should, is)),
                (Some(_), None) => differences.push(Difference::Missing(heading.clone())),
                (None, _) => differences.push(Difference::Extra(heading.clone())),
            }
        }
        differences
    }
}

fn between(heading: &str, should: &[String], is: &[String]) -> Vec<Difference> {
    let lacking = |lines: &[String], others: &[String]| -> Vec<String> {
        let mut others: Vec<_> = others.iter().collect();
        let mut lacks = |line: &&String| match others.iter().position(|other| other == line) {
            Some(place) => {
                others.swap_remove(place);
                false
            }
            None => true,
        };
        lines.iter().filter(|line| lacks(line)).map(|line| format!("{heading}: {line}")).collect()
    };
    let missing = lacking(should, is).into_iter().map(Difference::Missing);
    let extra = lacking(is, should).into_iter().map(Difference::Extra);
    let differences: Vec<_> = missing.chain(extra).collect();
    if differences.is_empty() && should != is {
        return vec![Difference::Order(heading.to_owned())];
    }
    differences
}

/// The lines of a block, elements one by one.
fn contents(heading: &str, body: Vec<&str>) -> Vec<String> {
    if heading.starts_with("counter ") {
        return Vec::new();
    }
    let is_dynamic = heading.strip_prefix("set ").is_some_and(|name| sets::dynamic().any(|known| known == name));
    let (mut lines, mut elements) = (Vec::new(), Vec::new());
    let mut body = body.into_iter();
    while let Some(line) = body.next() {
        let Some(first) = line.strip_prefix("elements = {") else {
            lines.push(line.to_owned());
            continue;
        };
        // They are the last of a set.
        let text = std::iter::once(first).chain(body.by_ref()).collect::<Vec<_>>().join(" ");
        let split = text.trim_end_matches('}').split(',').map(|element| element.trim().to_owned());
        elements.extend(split.filter(|element| !is_dynamic && !element.is_empty()));
    }
    elements.sort_unstable();
    lines.extend(elements);
    lines
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => f.write_str("there is no table inet tunnelwarden"),
            Self::Missing(what) => write!(f, "missing  {what}"),
            Self::Extra(what) => write!(f, "extra    {what}"),
            Self::Order(chain) => write!(f, "order    {chain}"),
        }
    }
}

impl Serialize for Difference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "table inet tunnelwarden { # progname nft\n\tflags persist\n\tset ingress_v4 {\n\t\ttype ipv4_addr\n\t\t\
        elements = { 192.0.2.1 timeout 1h, 192.0.2.2,\n\t\t\t     192.0.2.3 }\n\t}\n\tset doh_v4 {\n\t\ttype ipv4_addr\n\t\t\
        flags interval\n\t\telements = { 192.0.2.1, 192.0.2.7-192.0.2.9,\n\t\t\t     198.51.100.0/24 }\n\t}\n\t\
        counter denied_dns {\n\t\tpackets 4 bytes 5\n\t}\n\tchain egress {\n\t\ttype filter hook output priority -5; policy accept;\n\t\t\
        meta l4proto { 6, 17 } th dport 53 goto denied_dns\n\t\toifname \"lo\" accept\n\t}\n}\n";

    fn told(before: &str, after: &str) -> Vec<String> {
        let found = Listing::read(&TEXT.replace(before, after));
        Listing::read(TEXT).differences(&found).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_missing_extra_or_moved_is_told_and_what_comes_and_goes_is_not() {
        let rules = "meta l4proto { 6, 17 } th dport 53 goto denied_dns\n\t\toifname \"lo\" accept";
        let moved = "oifname \"lo\" accept\n\t\tmeta l4proto { 6, 17 } th dport 53 goto denied_dns";
        #[rustfmt::skip]
        let cases: &[(&str, &str, &[&str])] = &[
            ("192.0.2.2,", "192.0.2.4,",              &[]),
            ("packets 4", "packets 9",                &[]),
            ("flags persist", "flags owner",          &[]),
            ("\tchain egress", "\tchain other",       &["missing  chain egress", "extra    chain other"]),
            ("198.51.100.0/24", "198.51.100.0/25",    &["missing  set doh_v4: 198.51.100.0/24", "extra    set doh_v4: 198.51.100.0/25"]),
            (" th dport 53", " th dport 54",
             &["missing  chain egress: meta l4proto { 6, 17 } th dport 53 goto denied_dns", "extra    chain egress: meta l4proto { 6, 17 } th dport 54 goto denied_dns"]),
            (rules, moved,                            &["order    chain egress"]),
            ("accept\n\t}", "accept\n\t\toifname \"lo\" accept\n\t}", &["extra    chain egress: oifname \"lo\" accept"]),
        ];
        for (before, after, expected) in cases {
            assert_eq!(told(before, after), *expected, "{before} -> {after}");
        }
        assert_eq!(Listing::read(TEXT).value("set doh_v4", "type"), Some("ipv4_addr"));
    }
}
