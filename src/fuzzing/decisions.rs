//! The compiled policy beside the literal one, on plans written a word a line.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;

use crate::{
    name::DomainName,
    policy::{
        Action, Mode, Moment, UnknownOnIngress,
        list::{self, List},
        plan::{Exception, Group, Pack, PackRule, Plan, REGION},
        reference::{Trial, decide_alike, is_sound},
    },
    problem::{Located, Place, SourceFile},
};

/// Most lines that are looked at: the literal policy takes its time.
const MOST: usize = 96;

/// Lines such as `block .tunnel.example` and `ask a.tunnel.example` (`fuzz/seeds/policy_against_naive` has them all).
/// What is none is left out, so that no byte is lost on the fuzzer.
pub fn policy_against_naive(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut case = Case::default();
    for line in text.lines().take(MOST) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        case.take(word, rest);
    }
    let Case { mut plan, trial, .. } = case;
    plan.organization.ingress_whole_domain = true;
    if is_sound(&plan) {
        decide_alike(&plan, &trial);
    }
}

/// A plan as it grows, and what is asked of it.
struct Case {
    plan: Plan,
    trial: Trial,
    /// Of the same list file.
    listed: String,
}

impl Default for Case {
    fn default() -> Self {
        let moment = Moment { time: Timestamp::UNIX_EPOCH, trusted: true };
        let trial = Trial {
            client: IpAddr::from([192, 0, 2, 1]),
            moment,
            names: Vec::new(),
            addresses: Vec::new(),
            learned: BTreeSet::new(),
        };
        Self { plan: Plan::default(), trial, listed: String::new() }
    }
}

impl Case {
    fn take(&mut self, word: &str, rest: &str) {
        let plan = &mut self.plan;
        match word {
            // -- what holds for everybody, or for the group that was named last
            "own" => name(rest).into_iter().for_each(|name| match plan.groups.last_mut() {
                Some(group) => group.ingress.get_or_insert_default().push(name),
                None => plan.organization.ingress.push(name),
            }),
            "allow" => pattern(rest).into_iter().for_each(|pattern| match plan.groups.last_mut() {
                Some(group) => group.allow.get_or_insert_default().push(pattern),
                None => plan.defaults.allow.push(pattern),
            }),
            "block" => pattern(rest).into_iter().for_each(|pattern| match plan.groups.last_mut() {
                Some(group) => group.block.get_or_insert_default().push(pattern),
                None => plan.defaults.block.push(pattern),
            }),
            "mode" => {
                let mode = if rest == "observe" { Mode::Observe } else { Mode::Enforce };
                match plan.groups.last_mut() {
                    Some(group) => group.mode = Some(mode),
                    None => plan.defaults.mode = mode,
                }
            }
            "action" => {
                let action = if rest == "nodata" { Action::Nodata } else { Action::Nxdomain };
                match plan.groups.last_mut() {
                    Some(group) => group.action = Some(at(rest).map(|_| action)),
                    None => plan.defaults.action = action,
                }
            }
            "packs" => {
                let active = rest.split(' ').filter_map(|number| number.parse().ok());
                let active: Vec<usize> = active.filter(|&number| number < plan.packs.len()).collect();
                match plan.groups.last_mut() {
                    Some(group) => group.packs = Some(active),
                    None => plan.defaults.packs = active,
                }
            }
            "group" => self.begin_group(rest),
            "except" => self.except(rest),
            "unknown" => plan.defaults.unknown_on_ingress = UnknownOnIngress::Observe,
            // -- packs
            "pack" => plan.packs.push(Pack {
                name: at(&format!("p{}", plan.packs.len())),
                version: "1".into(),
                description: None,
                rules: Vec::new(),
            }),
            "rule" => self.begin_rule(),
            "list" => self.list(rest),
            // -- what is asked
            "client" => self.trial.client = address(rest).unwrap_or(self.trial.client),
            "time" => self.trial.moment = moment(rest),
            "ask" => self.trial.names.extend(rest.parse::<DomainName>()),
            "found" => self.trial.addresses.extend(address(rest)),
            "learned" => self.learn(rest),
            word => self.add_to_rule(word, rest),
        }
    }

    fn begin_group(&mut self, rest: &str) {
        let Some(network) = network(rest) else { return };
        let groups = &mut self.plan.groups;
        // Two groups of one network are refused where a plan is checked.
        if groups.iter().any(|group| group.networks.iter().any(|known| known.value == network.value)) {
            return;
        }
        groups.push(Group {
            name: at(&format!("g{}", groups.len())),
            networks: vec![network],
            mode: None,
            action: None,
            packs: None,
            ingress: None,
            allow: None,
            block: None,
        });
    }

    /// `PATTERN NETWORK SECONDS`.
    fn except(&mut self, rest: &str) {
        let mut words = rest.split(' ');
        let mut word = || words.next().unwrap_or_default();
        if let (Some(name), Some(network)) = (pattern(word()), network(word())) {
            let until = at("until").map(|_| moment(word()).time);
            self.plan.exceptions.push(Exception { name, networks: vec![network], until, reason: "a test".into() });
        }
    }

    fn begin_rule(&mut self) {
        let Some(pack) = self.plan.packs.last_mut() else { return };
        self.listed.clear();
        pack.rules.push(PackRule {
            id: at(&format!("r{}", pack.rules.len())),
            reason: "a test".into(),
            block: Vec::new(),
            allow: Vec::new(),
            lists: Vec::new(),
            networks: Vec::new(),
            regions: Vec::new(),
            resolve: Vec::new(),
            address_lists: Vec::new(),
            ports: Vec::new(),
            source: None,
        });
    }

    fn add_to_rule(&mut self, word: &str, rest: &str) {
        let Some(rule) = self.plan.packs.last_mut().and_then(|pack| pack.rules.last_mut()) else { return };
        match word {
            "refuses" => rule.block.extend(pattern(rest)),
            "permits" => rule.allow.extend(pattern(rest)),
            "network" => rule.networks.extend(network(rest)),
            "resolve" => rule.resolve.extend(name(rest)),
            _ => {}
        }
    }

    /// A line of the rule's list file.
    fn list(&mut self, line: &str) {
        let Some(rule) = self.plan.packs.last_mut().and_then(|pack| pack.rules.last_mut()) else { return };
        self.listed.push_str(line);
        self.listed.push('\n');
        let (list, _): (List, _) = list::parse("names.txt", self.listed.as_bytes());
        rule.lists = vec![list];
    }

    /// `ADDRESS NAME`.
    fn learn(&mut self, rest: &str) {
        let (found, text) = rest.split_once(' ').unwrap_or((rest, ""));
        self.trial.learned.extend(address(found).zip(text.parse().ok()));
    }
}

/// A text as if it stood in a file.
fn at(text: &str) -> Located<String> {
    let file = SourceFile { path: "plan".into(), text: text.to_owned() };
    Located { value: text.to_owned(), place: Place::new(Arc::new(file), 0..text.len()) }
}

/// Only what compiles: a plan with a broken pattern is no policy, and the rest of the lines would be in vain.
fn pattern(text: &str) -> Option<Located<String>> {
    let pattern = at(text);
    let mut plan = Plan::default();
    plan.defaults.block.push(pattern.clone());
    is_sound(&plan).then_some(pattern)
}

/// The same of names. Written as they are compared.
fn name(text: &str) -> Option<Located<String>> {
    let name = at(&text.parse::<DomainName>().ok()?.to_string());
    let mut plan = Plan::default();
    plan.organization.ingress_whole_domain = true;
    plan.organization.ingress.push(name.clone());
    (is_sound(&plan) && !name.value.contains(REGION)).then_some(name)
}

/// An address that is compared as itself: which others an IPv6 address carries is not the order's business.
fn address(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok()?.to_canonical();
    let carries_none = match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => v6.segments()[0] == 0x2001,
    };
    carries_none.then_some(address)
}

fn network(text: &str) -> Option<Located<IpNet>> {
    let network: IpNet = text.parse().ok()?;
    let is_plain = matches!(network, IpNet::V4(_)) || address(&network.addr().to_string()) == Some(network.addr());
    is_plain.then(|| at(text).map(|_| network.trunc()))
}

/// Seconds; where a minus stands in front of them, by a clock that is not trusted.
fn moment(text: &str) -> Moment {
    let digits = text.strip_prefix('-');
    let seconds = digits.unwrap_or(text).parse().unwrap_or(0_u32);
    let time = Timestamp::from_second(seconds.into()).unwrap_or(Timestamp::UNIX_EPOCH);
    Moment { time, trusted: digits.is_none() }
}
