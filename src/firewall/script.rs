//! How a ruleset is written: lines that add to what is there, all of them one transaction.
//!
//! A block `table { .. }` that replaces the whole would make every set new, the filled ones among them, and packets
//! would pass while they fill again. Sets that the daemon fills are only ever added, never flushed.

use std::fmt;

use super::TABLE;
use crate::address::{Family, Range};

/// Sets, chains and rules, in the order of the text.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Script {
    pub(super) title: String,
    pub(super) sets: Vec<Set>,
    pub(super) counters: Vec<String>,
    pub(super) chains: Vec<Chain>,
}

/// One set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

/// What is in it, and who puts it there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// Filled while the rules stand: its type, and the most it takes.
    Dynamic { key: String, size: u32 },
    /// Filled by rules that packets meet; how long an element stays.
    Noted { key: String, size: u32, lifetime: &'static str },
    /// Filled here.
    Fixed { family: Family, ranges: Vec<Range> },
}

/// A chain and its rules.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Type, hook and priority; `None` for one that others jump to.
    pub(super) base: Option<String>,
    /// Why there is one.
    pub(super) why: &'static str,
    pub(super) lines: Vec<Line>,
}

/// A line of a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Line {
    Rule(String),
    /// Why the next ones are there.
    Why(&'static str),
}

impl Set {
    pub(super) fn dynamic(name: &'static str, key: String, size: u32) -> Self {
        Self { name, kind: Kind::Dynamic { key, size } }
    }

    pub(super) fn noted(name: &'static str, key: String, size: u32, lifetime: &'static str) -> Self {
        Self { name, kind: Kind::Noted { key, size, lifetime } }
    }

    pub(super) fn fixed(name: &'static str, family: Family, ranges: Vec<Range>) -> Self {
        Self { name, kind: Kind::Fixed { family, ranges } }
    }

    /// Is nothing in it until other rules are loaded?
    pub(super) fn stays_empty(&self) -> bool {
        matches!(&self.kind, Kind::Fixed { ranges, .. } if ranges.is_empty())
    }
}

impl Chain {
    pub(super) fn new(name: impl Into<String>, why: &'static str) -> Self {
        Self { name: name.into(), base: None, why, lines: Vec::new() }
    }

    pub(super) fn base(name: &'static str, base: &str, why: &'static str) -> Self {
        Self { base: Some(base.to_owned()), ..Self::new(name, why) }
    }

    pub(super) fn rule(&mut self, rule: impl Into<String>) {
        self.lines.push(Line::Rule(rule.into()));
    }

    /// The same rule for either family.
    pub(super) fn rules(&mut self, rule: impl FnMut(Family) -> String) {
        self.lines.extend(Family::BOTH.map(rule).map(Line::Rule));
    }

    pub(super) fn why(&mut self, why: &'static str) {
        self.lines.push(Line::Why(why));
    }

    /// The same without rules that match only what is in one of these sets, which are empty: every packet would be
    /// looked up for nothing. A reload that fills a set brings its rules along, in the same transaction.
    pub(super) fn without_rules_for(self, empty: &[&str]) -> Self {
        let (mut lines, mut words, mut were_for_nothing) = (Vec::new(), Vec::new(), false);
        for line in self.lines {
            match line {
                Line::Rule(rule) if is_for_one_of(&rule, empty) => were_for_nothing = true,
                Line::Rule(_) => {
                    lines.append(&mut words);
                    lines.push(line);
                    were_for_nothing = false;
                }
                Line::Why(_) => {
                    if std::mem::take(&mut were_for_nothing) {
                        words.clear();
                    }
                    words.push(line);
                }
            }
        }
        if !were_for_nothing {
            lines.append(&mut words);
        }
        Self { lines, ..self }
    }
}

/// Does a rule match only what is in one of these sets?
fn is_for_one_of(rule: &str, sets: &[&str]) -> bool {
    let words: Vec<_> = rule.split(' ').collect();
    words.windows(2).any(|pair| match pair {
        [before, set] => *before != "!=" && set.strip_prefix('@').is_some_and(|name| sets.contains(&name)),
        _ => false,
    })
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        comment(f, &self.title)?;
        writeln!(f, "add table inet {TABLE}\n")?;
        comment(f, "What is in these comes and goes while the rules stand.")?;
        let (dynamic, fixed): (Vec<_>, Vec<_>) =
            self.sets.iter().partition(|set| !matches!(set.kind, Kind::Fixed { .. }));
        dynamic.iter().try_for_each(|set| set.fmt(f))?;
        writeln!(f)?;
        comment(f, "From the configuration and the packs.")?;
        fixed.iter().try_for_each(|set| set.fmt(f))?;
        writeln!(f)?;
        self.counters.iter().try_for_each(|name| writeln!(f, "add counter inet {TABLE} {name}"))?;
        writeln!(f)?;
        // All of them first: rules name chains that come later.
        self.chains.iter().try_for_each(|chain| chain.fmt_empty(f))?;
        self.chains.iter().try_for_each(|chain| chain.fmt_rules(f))
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match &self.kind {
            Kind::Dynamic { key, size } => {
                writeln!(f, "add set inet {TABLE} {name} {{ type {key}; flags timeout; size {size}; }}")
            }
            Kind::Noted { key, size, lifetime } => {
                let rest = format!("flags dynamic,timeout; timeout {lifetime}; size {size};");
                writeln!(f, "add set inet {TABLE} {name} {{ type {key}; {rest} }}")
            }
            Kind::Fixed { family, ranges } => {
                writeln!(f, "add set inet {TABLE} {name} {{ type {}; flags interval; }}", family.address())?;
                writeln!(f, "flush set inet {TABLE} {name}")?;
                ranges.chunks(PER_LINE).try_for_each(|ranges| {
                    let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
                    writeln!(f, "add element inet {TABLE} {name} {{ {} }}", ranges.join(", "))
                })
            }
        }
    }
}

/// Most elements written on a line, for people who read it.
const PER_LINE: usize = 8;

impl Chain {
    fn fmt_empty(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.base {
            Some(base) => writeln!(f, "add chain inet {TABLE} {name} {{ {base}; policy accept; }}")?,
            None => writeln!(f, "add chain inet {TABLE} {name}")?,
        }
        writeln!(f, "flush chain inet {TABLE} {name}")
    }

    fn fmt_rules(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        comment(f, &format!("{}: {}", self.name, self.why))?;
        self.lines.iter().try_for_each(|line| match line {
            Line::Rule(rule) => writeln!(f, "add rule inet {TABLE} {} {rule}", self.name),
            Line::Why(why) => comment(f, why),
        })
    }
}

fn comment(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.lines().try_for_each(|line| writeln!(f, "# {line}"))
}

/// Rules and sets exist for either.
impl Family {
    /// The word for its header.
    pub(super) fn header(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// The word for the family as a whole.
    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// The type of its addresses.
    pub(super) fn address(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    /// One of a pair of sets.
    pub(super) fn pick(self, [v4, v6]: [&'static str; 2]) -> &'static str {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_empty_sets_go_with_what_was_said_of_them_alone() {
        let mut chain = Chain::new("c", "");
        chain.why("only of own");
        chain.rule("ip daddr @own_v4 accept");
        chain.why("of clients");
        chain.rule("ip saddr @observed_v4 goto observed");
        chain.rule("ip saddr != @observed_v4 ip daddr @doh_v4 drop");
        chain.why("the end");
        let left = chain.clone().without_rules_for(&["own_v4", "observed_v4"]);
        assert_eq!(left.lines, chain.lines.iter().filter(|line| is_left(line)).cloned().collect::<Vec<_>>());
        assert_eq!(chain.clone().without_rules_for(&["own_v6", "own"]), chain);
    }

    fn is_left(line: &Line) -> bool {
        match line {
            Line::Rule(rule) => rule.contains("!="),
            Line::Why(why) => *why != "only of own",
        }
    }
}
