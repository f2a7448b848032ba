//! What a reload would change, and whether it takes so much away that somebody has to say yes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Group, Pack, Summary};

/// A change that takes away more than one in this many rules or patterns wants a yes: an emptied list, a file cut
/// short, a selection lost in a merge.
const LARGE_PART: usize = 5;

impl Summary {
    /// What differs from `before`, a line each, for people.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let (old, new) = (packs(before), packs(self));
        compare(&mut changes, "pack", &old, &new, |was, is| {
            (was != is).then(|| {
                let Pack { version, rules, patterns, .. } = is;
                format!("version {} -> {version}, {} -> {rules} rules, {} -> {patterns} patterns", was.version, was.rules, was.patterns)
            })
        });
        let (old, new) = (groups(before), groups(self));
        compare(&mut changes, "client group", &old, &new, |was, is| (was != is).then(|| "changed".to_owned()));
        let (old, new) = (own_ingress(before), own_ingress(self));
        compare(&mut changes, "own ingress", &old, &new, |(), ()| None);
        let (old, new) = (exceptions(before), exceptions(self));
        compare(&mut changes, "exception", &old, &new, |(), ()| None);
        if (before.mode, before.action) != (self.mode, self.action) {
            changes.push("mode or action changed".to_owned());
        }
        if before.local_rules != self.local_rules {
            changes.push(format!("local rules {} -> {}", before.local_rules, self.local_rules));
        }
        changes
    }

    /// What it takes away from `before` that nobody should lose by accident: a pack, an own ingress, over a fifth of
    /// the rules or of the patterns.
    pub fn losses_since(&self, before: &Self) -> Vec<String> {
        let mut losses = Vec::new();
        let (old, new) = (packs(before), packs(self));
        losses.extend(old.keys().filter(|name| !new.contains_key(*name)).map(|name| format!("pack {name} removed")));
        let (old, new) = (own_ingress(before), own_ingress(self));
        losses.extend(old.keys().filter(|name| !new.contains_key(*name)).map(|name| format!("own ingress {name} removed")));
        for (what, was, is) in
            [("rules", before.rules(), self.rules()), ("patterns", before.patterns(), self.patterns())]
        {
            if (was - is.min(was)) * LARGE_PART > was {
                losses.push(format!("{what} {was} -> {is}"));
            }
        }
        losses
    }

    /// Patterns in all: of every pack, and local ones.
    fn patterns(&self) -> usize {
        packs(self).values().map(|pack| pack.patterns).sum::<usize>() + self.local_rules
    }
}

fn packs(summary: &Summary) -> BTreeMap<&str, &Pack> {
    summary.packs.iter().chain(&summary.packs_of_groups).map(|pack| (pack.name.as_str(), pack)).collect()
}

fn groups(summary: &Summary) -> BTreeMap<&str, &Group> {
    summary.groups.iter().map(|group| (group.name.as_str(), group)).collect()
}

/// Of everybody and of each group.
fn own_ingress(summary: &Summary) -> BTreeMap<&str, ()> {
    let of_groups = summary.groups.iter().flat_map(|group| &group.ingress);
    let all: BTreeSet<_> = summary.ingress.iter().chain(of_groups).map(String::as_str).collect();
    all.into_iter().map(|name| (name, ())).collect()
}

fn exceptions(summary: &Summary) -> BTreeMap<String, ()> {
    summary.exceptions.iter().map(|exception| (format!("{} until {}", exception.name, exception.until), ())).collect()
}

fn compare<K: Ord + std::fmt::Display, V>(
    changes: &mut Vec<String>,
    what: &str,
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    differs: impl Fn(&V, &V) -> Option<String>,
) {
    for (name, is) in new {
        match old.get(name) {
            None => changes.push(format!("{what} {name} added")),
            Some(was) => changes.extend(differs(was, is).map(|how| format!("{what} {name}: {how}"))),
        }
    }
    changes.extend(old.keys().filter(|name| !new.contains_key(*name)).map(|name| format!("{what} {name} removed")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Action, Mode};

    fn pack(name: &str, rules: usize, patterns: usize) -> Pack {
        Pack { name: name.into(), version: "1".into(), rules, patterns }
    }

    fn summary(packs: Vec<Pack>, ingress: &[&str]) -> Summary {
        Summary {
            mode: Mode::Enforce,
            action: Action::Nxdomain,
            ingress: ingress.iter().map(ToString::to_string).collect(),
            packs,
            packs_of_groups: Vec::new(),
            local_rules: 0,
            groups: Vec::new(),
            exceptions: Vec::new(),
        }
    }

    #[test]
    fn what_nobody_should_lose_by_accident_is_a_loss_and_the_rest_is_a_change() {
        let before = summary(vec![pack("ngrok", 10, 100), pack("dns-bypass", 5, 50)], &["connect.acme.example"]);
        let own: &[&str] = &["connect.acme.example"];
        #[rustfmt::skip]
        let cases: Vec<(Summary, &[&str], &[&str])> = vec![
            (before.clone(), &[], &[]),
            (summary(vec![pack("ngrok", 10, 100)], own), &["pack dns-bypass removed"],
             &["pack dns-bypass removed", "rules 15 -> 10", "patterns 150 -> 100"]),
            (summary(before.packs.clone(), &["connect.other.example"]),
             &["own ingress connect.other.example added", "own ingress connect.acme.example removed"],
             &["own ingress connect.acme.example removed"]),
            (summary(vec![pack("ngrok", 10, 71), pack("dns-bypass", 5, 50)], own),
             &["pack ngrok: version 1 -> 1, 10 -> 10 rules, 100 -> 71 patterns"], &[]),
            (summary(vec![pack("ngrok", 10, 69), pack("dns-bypass", 5, 50)], own),
             &["pack ngrok: version 1 -> 1, 10 -> 10 rules, 100 -> 69 patterns"], &["patterns 150 -> 119"]),
            (summary(vec![pack("ngrok", 12, 100), pack("dns-bypass", 5, 50)], own),
             &["pack ngrok: version 1 -> 1, 10 -> 12 rules, 100 -> 100 patterns"], &[]),
        ];
        for (after, changes, losses) in cases {
            assert_eq!(after.changes_since(&before), changes);
            assert_eq!(after.losses_since(&before), losses);
        }
    }
}
