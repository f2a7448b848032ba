//! What a reload would change, and whether it takes so much away that somebody has to say yes.

use std::{collections::BTreeMap, fmt::Display};

use super::{Config, Exception, Group, Outline};
use crate::policy::{PackSummary, Summary};

/// A change that takes away more than one in this many rules or patterns wants a yes: an emptied list, a file cut
/// short, a selection lost in a merge.
const LARGE_PART: usize = 5;

impl Config {
    /// What differs from `before`, a line each, for people.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let (old, new) = (before.policy.summary(), self.policy.summary());
        let mut changes = changes((&before.outline, &old), (&self.outline, &new));
        let shown = |config: &Self| (config.organization.name.clone(), config.organization.contact.clone());
        #[rustfmt::skip]
        let sections = [
            ("[organization]", shown(before) == shown(self)),
            ("[upstream]",     before.upstream == self.upstream),
            ("[limits]",       before.limits == self.limits),
            ("[audit]",        before.audit == self.audit),
            ("[firewall]",     before.firewall == self.firewall),
            ("what is learned", before.ingress == self.ingress),
        ];
        changes.extend(sections.iter().filter(|(_, same)| !same).map(|(section, _)| format!("{section} changed")));
        changes
    }

    /// What it takes away from `before` that nobody should lose by accident: a pack, an own ingress, over a fifth of
    /// the rules or of the patterns.
    pub fn losses_since(&self, before: &Self) -> Vec<String> {
        losses(&before.policy.summary(), &self.policy.summary())
    }
}

fn changes((old, old_summary): (&Outline, &Summary), (new, new_summary): (&Outline, &Summary)) -> Vec<String> {
    let mut changes = Vec::new();
    compare(&mut changes, "pack", &packs(old_summary), &packs(new_summary), |was, is| {
        (was != is).then(|| {
            let PackSummary { version, rules, patterns, .. } = is;
            format!(
                "version {} -> {version}, {} -> {rules} rules, {} -> {patterns} patterns",
                was.version, was.rules, was.patterns
            )
        })
    });
    compare(&mut changes, "own ingress", &own_ingress(old_summary), &own_ingress(new_summary), |(), ()| None);
    compare(&mut changes, "client group", &groups(old), &groups(new), |was, is| {
        (was != is).then(|| "changed".to_owned())
    });
    compare(&mut changes, "exception", &exceptions(old), &exceptions(new), |was, is| {
        (was != is).then(|| "changed".to_owned())
    });
    if old.unknown_on_ingress != new.unknown_on_ingress {
        changes.push("unknown-on-ingress changed".to_owned());
    }
    if (old.mode, old.action) != (new.mode, new.action) {
        changes.push("mode or action changed".to_owned());
    }
    for (what, old, new) in [("allow", &old.allow, &new.allow), ("block", &old.block, &new.block)] {
        compare(&mut changes, what, &set(old), &set(new), |(), ()| None);
    }
    changes
}

fn losses(old: &Summary, new: &Summary) -> Vec<String> {
    let mut losses = Vec::new();
    let kept = packs(new);
    losses
        .extend(packs(old).keys().filter(|name| !kept.contains_key(*name)).map(|name| format!("pack {name} removed")));
    let gone = old.ingress.iter().filter(|name| !new.ingress.contains(name));
    losses.extend(gone.map(|name| format!("own ingress {name} removed")));
    for (what, was, is) in [("rules", old.rules, new.rules), ("patterns", old.patterns, new.patterns)] {
        if was.saturating_sub(is) * LARGE_PART > was {
            losses.push(format!("{what} {was} -> {is}"));
        }
    }
    losses
}

fn packs(summary: &Summary) -> BTreeMap<&str, &PackSummary> {
    summary.packs.iter().map(|pack| (pack.name.as_str(), pack)).collect()
}

fn own_ingress(summary: &Summary) -> BTreeMap<String, ()> {
    summary.ingress.iter().map(|name| (name.to_string(), ())).collect()
}

fn groups(outline: &Outline) -> BTreeMap<&str, &Group> {
    outline.groups.iter().map(|group| (group.name.as_str(), group)).collect()
}

fn exceptions(outline: &Outline) -> BTreeMap<String, &Exception> {
    let named = |exception: &Exception| format!("{} until {}", exception.name, exception.until);
    outline.exceptions.iter().map(|exception| (named(exception), exception)).collect()
}

fn set(names: &[String]) -> BTreeMap<&str, ()> {
    names.iter().map(|name| (name.as_str(), ())).collect()
}

fn compare<K: Ord + Display, V>(
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

    fn pack(name: &str, rules: usize, patterns: usize) -> PackSummary {
        PackSummary { name: name.into(), version: "1".into(), rules, patterns }
    }

    fn summary(packs: &[PackSummary], ingress: &str) -> Summary {
        Summary {
            packs: packs.to_vec(),
            rules: packs.iter().map(|pack| pack.rules).sum(),
            patterns: packs.iter().map(|pack| pack.patterns).sum(),
            ingress: vec![ingress.parse().unwrap()],
            ..Summary::default()
        }
    }

    #[test]
    fn what_nobody_should_lose_by_accident_is_a_loss() {
        const OWN: &str = "connect.acme.example";
        let (ngrok, bypass) = (pack("ngrok", 10, 100), pack("dns-bypass", 5, 50));
        let before = summary(&[ngrok.clone(), bypass.clone()], OWN);
        #[rustfmt::skip]
        let cases: Vec<(&str, Summary, &[&str])> = vec![
            ("nothing",            before.clone(), &[]),
            ("a pack",             summary(std::slice::from_ref(&ngrok), OWN), &["pack dns-bypass removed", "rules 15 -> 10", "patterns 150 -> 100"]),
            ("the own ingress",    summary(&before.packs, "connect.other.example"), &["own ingress connect.acme.example removed"]),
            ("a fifth",            summary(&[pack("ngrok", 10, 70), bypass.clone()], OWN), &[]),
            ("more than a fifth",  summary(&[pack("ngrok", 10, 69), bypass.clone()], OWN), &["patterns 150 -> 119"]),
            ("more than before",   summary(&[pack("ngrok", 12, 120), bypass], OWN), &[]),
        ];
        for (case, after, expected) in cases {
            assert_eq!(losses(&before, &after), expected, "{case}");
        }
    }
}
