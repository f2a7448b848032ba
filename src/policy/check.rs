//! What is wrong with a plan although each part of it can be read: parts that contradict each other, and
//! things that cannot do what their author hopes. All of them are told at once.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
};

use jiff::Timestamp;
use psl::Psl;

use super::{
    Action, NO_PACK, Policy, RuleId, Scope,
    compile::patterns_in,
    groups::canonical,
    judge::Nobody,
    list::List,
    path::Path,
    pattern::{Pattern, Shape},
    plan::{Pack, PackRule, Plan, REGION},
    rule::Origin,
    table::{Entry as PatternEntry, Found, Record, Spot, Table},
};
use crate::{
    address::NAT64_LENGTHS,
    name::{DomainName, MAX_NAME, NameRef},
    problem::{Located, Place, Problem, Problems, Severity},
};

/// Most names whose addresses are learned, in all packs.
const MAX_RESOLVED: usize = 1000;

/// Domains of ngrok's own. An ingress below one can never be the company's (ERR_NGROK_6705,
/// <https://ngrok.com/docs/errors/err_ngrok_6705>); endpoint domains are listed at
/// <https://ngrok.com/docs/universal-gateway/domains>.
const NGROK_DOMAINS: [&str; 16] = [
    "ngrok.com",
    "ngrok-agent.com",
    "ngrok.io",
    "ngrok.app",
    "ngrok.dev",
    "ngrok.pizza",
    "ngrok.pro",
    "ngrok.me",
    "ngrok-free.app",
    "ngrok-free.dev",
    "ngrok-free.pizza",
    "ngrok-cname.com",
    "ngrok-dns.com",
    "ngrok-endpoints.com",
    "ngrok-internal.com",
    "lennut.com",
];

/// Everything that contradicts itself; `policy` is what could be built of `plan`.
pub(super) fn contradictions(plan: &Plan, policy: &Policy, now: Timestamp, problems: &mut Problems) {
    actions(plan, problems);
    groups(plan, problems);
    packs(plan, policy, problems);
    for prefix in plan.nat64.iter().filter(|prefix| !NAT64_LENGTHS.contains(&prefix.value.prefix_len())) {
        let message = format!("{} is no NAT64 prefix by its length", prefix.value);
        problems.push(Problem::error(&prefix.place, message).hint("lengths are 32, 40, 48, 56, 64 and 96 (RFC 6052)"));
    }
    caught_ingress(policy, problems);
    exceptions(plan, policy, now, problems);
}

/// An own ingress name, or why it cannot be one.
pub(super) fn own_ingress(located: &Located<String>, whole_domain: bool) -> Result<DomainName, Problem> {
    let (text, place) = (&located.value, &located.place);
    if text.starts_with('.') || text.contains('*') {
        let bare = text.trim_start_matches("*.").trim_start_matches('.');
        let problem = Problem::error(place, format!("own ingress {text:?} is a pattern; it must be a name"));
        return Err(problem.hint(format!("write {bare:?}: an own ingress stands for itself and everything below")));
    }
    if text.parse::<IpAddr>().is_ok() {
        let problem = Problem::error(place, format!("own ingress {text:?} is an address; it must be a name"));
        return Err(problem.hint("name the ingress itself, such as connect.acme.example"));
    }
    let name: DomainName =
        text.parse().map_err(|error| Problem::error(place, format!("own ingress {text:?} is no name: {error}")))?;
    if let Some(theirs) = NGROK_DOMAINS.iter().find(|theirs| is_within(name.as_name(), theirs)) {
        let problem = Problem::error(place, format!("own ingress {name} lies under {theirs}, which is ngrok's own"));
        return Err(problem.hint("a custom connect URL is a name in a domain of the company's"));
    }
    let from_left: Vec<&[u8]> = name.as_name().labels().collect();
    let suffix = public_suffix(from_left.iter().rev().copied()).labels;
    let labels = from_left.len();
    if labels <= suffix {
        let problem =
            Problem::error(place, format!("own ingress {name} is a public suffix, under which others register"));
        return Err(problem.hint("name the ingress itself, such as connect.acme.example"));
    }
    if labels == suffix + 1 && !whole_domain {
        let problem = Problem::error(place, format!("own ingress {name} is a whole registrable domain"));
        return Err(problem.hint(
            "whoever may create a record in it could alias to ngrok; name the ingress itself, or set \
             ingress-whole-domain = true in [organization]",
        ));
    }
    Ok(name)
}

/// Does a pattern of the path's name match a suffix of the public suffix list's ICANN section? Packs must be able to
/// name those of the private section, such as ngrok.io.
pub(super) fn covers_public_suffix(shape: Shape, path: &Path<'_>) -> bool {
    let is_suffix = |below: Option<&'static [u8]>| {
        let suffix = public_suffix(path.labels_from_right().chain(below));
        suffix.icann && suffix.labels == path.labels() + usize::from(below.is_some())
    };
    // A rule such as *.ck makes suffixes of all names below.
    is_suffix(None) || (matches!(shape, Shape::Within | Shape::Below) && is_suffix(Some(b"0")))
}

struct Suffix {
    labels: usize,
    icann: bool,
}

/// The public suffix of the name that has these labels, from the right.
fn public_suffix<'a>(labels: impl Iterator<Item = &'a [u8]> + Clone) -> Suffix {
    // One type for all callers: the list is code, and would be in the program once for each.
    let same: &mut dyn Iterator<Item = &'a [u8]> = &mut labels.clone();
    let info = psl::List.find(same);
    // The length counts bytes of text; whole labels from the right add up to it.
    let mut length = 0;
    let ends = labels.map(|label| {
        length += label.len() + usize::from(length > 0);
        length
    });
    Suffix { labels: ends.take_while(|&end| end <= info.len).count(), icann: info.typ == Some(psl::Type::Icann) }
}

fn is_within(name: NameRef<'_>, zone: &str) -> bool {
    zone.parse::<DomainName>().is_ok_and(|zone| name.is_within(zone.as_name()))
}

fn actions(plan: &Plan, problems: &mut Problems) {
    let default = plan.defaults.action_place.as_ref().map(|place| (plan.defaults.action, place));
    let of_groups = plan.groups.iter().filter_map(|group| group.action.as_ref());
    for (action, place) in default.into_iter().chain(of_groups.map(|action| (action.value, &action.place))) {
        match action {
            Action::Nxdomain | Action::Nodata => {}
            Action::Sinkhole if !plan.defaults.sinkhole.is_empty() => {}
            Action::Sinkhole => {
                let problem = Problem::error(place, "action sinkhole without addresses to answer with");
                problems.push(problem.hint("give [policy] sinkhole = [\"192.0.2.1\"], a machine of yours"));
            }
            Action::Refused | Action::Drop => {
                let what = if action == Action::Drop { "no answer" } else { "REFUSED" };
                let problem = Problem::warning(place, format!("after {what}, clients try their next resolver"));
                problems.push(problem.hint("nxdomain is the answer that is believed"));
            }
        }
    }
    if plan.defaults.action == Action::Sinkhole
        && plan.defaults.action_place.is_none()
        && plan.defaults.sinkhole.is_empty()
    {
        problems.push(Problem::without_place("action sinkhole without addresses to answer with"));
    }
}

fn groups(plan: &Plan, problems: &mut Problems) {
    unique(plan.groups.iter().map(|group| &group.name), "two groups are named", problems);
    let mut owners = HashMap::new();
    for (number, group) in plan.groups.iter().enumerate() {
        for network in &group.networks {
            match owners.entry(canonical(network.value)) {
                Entry::Vacant(free) => _ = free.insert((number, group, &network.place)),
                Entry::Occupied(taken) => {
                    let &(owner, other, place) = taken.get();
                    if owner != number {
                        let (key, name) = (taken.key(), &other.name.value);
                        let problem =
                            Problem::error(&network.place, format!("{key} is a network of group {name:?} too"));
                        problems.push(problem.hint(format!("the other is at {place}; a client has one group")));
                    }
                }
            }
        }
    }
}

fn packs(plan: &Plan, policy: &Policy, problems: &mut Problems) {
    unique(plan.packs.iter().map(|pack| &pack.name), "two packs are named", problems);
    for (number, pack) in (0..).zip(&plan.packs) {
        unique(pack.rules.iter().map(|rule| &rule.id), "two rules of the pack have the id", problems);
        if pack.rules.iter().all(is_empty) {
            let problem = Problem::error(&pack.name.place, format!("pack {:?} is empty", pack.name.value));
            problems.push(problem.hint("a rule has block, allow, networks, lists or address-lists"));
        }
        for rule in &pack.rules {
            ports(rule, problems);
            regions(rule, problems);
            resolved_names(pack, number, rule, policy, problems);
        }
    }
    many_names(plan, policy, problems);
}

fn is_empty(rule: &PackRule) -> bool {
    patterns_in(rule) == 0 && rule.networks.is_empty() && rule.address_lists.is_empty()
}

/// The names are looked up for as long as we run, so there is a bound.
fn many_names(plan: &Plan, policy: &Policy, problems: &mut Problems) {
    let names = policy.resolved().count();
    let first = plan.packs.iter().flat_map(|pack| &pack.rules).find_map(|rule| rule.resolve.first());
    if let Some(resolve) = first.filter(|_| names > MAX_RESOLVED) {
        let message =
            format!("{names} names under resolve, regions expanded, in all packs; the most is {MAX_RESOLVED}");
        problems.push(Problem::error(&resolve.place, message));
    }
}

fn ports(rule: &PackRule, problems: &mut Problems) {
    let allows = !rule.allow.is_empty() || rule.lists.iter().any(List::allows);
    let mut wrong = |what: &str, hint: &str| {
        let problem = Problem::error(&rule.id.place, format!("rule {:?} has {what}", rule.id.value));
        problems.push(problem.hint(hint));
    };
    match (allows, rule.networks.is_empty()) {
        _ if rule.ports.is_empty() => {}
        (true, true) => {}
        (true, false) => wrong("ports for what it allows and for its networks", "make two rules of it"),
        (false, false) if rule.ports != [443] => {
            wrong("networks on other ports than 443", "leave ports out: then all of them are meant");
        }
        (false, false) => {}
        (false, true) => {
            wrong("ports but allows nothing", "ports say what the firewall opens for the names under allow");
        }
    }
    if rule.ports.contains(&0) {
        problems.push(Problem::error(&rule.id.place, format!("rule {:?} has port 0", rule.id.value)));
    }
}

fn regions(rule: &PackRule, problems: &mut Problems) {
    for region in &rule.regions {
        let labels = region.value.parse::<DomainName>().map(|name| name.as_name().label_count());
        match labels {
            Ok(1) => {}
            Ok(_) => {
                problems.push(Problem::error(&region.place, format!("region {:?} is not one label", region.value)))
            }
            Err(error) => {
                problems.push(Problem::error(&region.place, format!("region {:?} is no label: {error}", region.value)));
            }
        }
    }
}

/// Each name whose addresses would be learned must be a name that is refused.
fn resolved_names(pack: &Pack, number: u32, rule: &PackRule, policy: &Policy, problems: &mut Problems) {
    for resolve in &rule.resolve {
        let (text, place) = (&resolve.value, &resolve.place);
        let rest = text.replace(REGION, "");
        if rest.contains(['{', '}']) {
            let problem = Problem::error(place, format!("{text:?} has a placeholder that does not exist"));
            problems.push(problem.hint("the only one is {region}"));
            continue;
        }
        let by_region = text.contains(REGION);
        if by_region && rule.regions.is_empty() {
            let problem = Problem::error(place, format!("{text:?} needs regions, and the rule has none"));
            problems.push(problem.hint("add regions = [\"us\", \"eu\"] to the rule"));
            continue;
        }
        for name in rule.expanded(text) {
            match name.parse::<DomainName>() {
                Err(error) => problems.push(Problem::error(place, format!("{name:?} is no name: {error}"))),
                Ok(name) if policy.is_blocked_by_pack(number, name.as_name()) => {}
                Ok(name) => {
                    let problem = Problem::error(place, format!("{name} is not blocked by pack {:?}", pack.name.value));
                    problems.push(problem.hint("addresses are learned only of names that the same pack blocks"));
                }
            }
        }
    }
}

impl Policy {
    fn is_blocked_by_pack(&self, pack: u32, name: NameRef<'_>) -> bool {
        let path = Path::new(&self.hashing, name.as_wire());
        let own = |rule: RuleId| self.pack_of.get(rule.0 as usize) == Some(&pack);
        self.pack_patterns.best(&path, own, &mut Nobody).is_some_and(|found| found.blocks)
    }

    /// The pattern that would block a name for a scope.
    fn blocking(&self, scope: &Scope, name: NameRef<'_>) -> Option<Found> {
        let found = self.rules(scope, &Path::new(&self.hashing, name.as_wire()), &mut Nobody)?;
        found.blocks.then_some(found)
    }

    /// Scopes of which no two decide alike.
    fn different_scopes(&self) -> Vec<&Scope> {
        let mut seen = BTreeSet::new();
        let is_new = |scope: &&Scope| seen.insert((scope.ingress, scope.allow, scope.block, scope.packs));
        self.scopes.iter().filter(is_new).collect()
    }

    fn block_tables(&self) -> impl Iterator<Item = &Table> {
        let locals: BTreeSet<u32> = self.scopes.iter().map(|scope| scope.block).collect();
        locals.into_iter().map(|place| self.table(place)).chain([&self.pack_patterns])
    }
}

/// Block patterns that speak of an own ingress. The order lets the own ingress pass all the same, but whoever wrote
/// the pattern believes otherwise, and as an alias of another name the ingress would be refused.
fn caught_ingress(policy: &Policy, problems: &mut Problems) {
    let hint = "the own ingress passes for its owner in any case, but as an alias of another name it would be refused; \
                narrow the pattern, or allow the ingress where the pattern is";
    let mut told = BTreeSet::new();
    for scope in policy.different_scopes() {
        for own in policy.table(scope.ingress).records().filter_map(|record| record.pattern()) {
            let Some(found) = policy.blocking(scope, own.name.as_name()) else { continue };
            if !told.insert((found.rule, found.record, own.name.clone())) {
                continue;
            }
            let local = policy.pack_of.get(found.rule.0.0 as usize) == Some(&NO_PACK);
            let table = if local { policy.table(scope.block) } else { &policy.pack_patterns };
            let Some(record) = table.record_of(&found) else { continue };
            let Some(pattern) = record.pattern() else { continue };
            let rule = &policy.rule(found.rule.0).label;
            let clients = scope.name.as_deref().map_or(String::new(), |name| format!(" of group {name:?}"));
            let message = format!("pattern {pattern} of {rule} would catch the own ingress {}{clients}", own.name);
            problems.push(at_origin(table.origin(&record), Severity::Error, message).hint(hint));
        }
    }
    blocks_below_ingress(policy, problems);
}

/// Block patterns that can never do anything for the owner of the ingress they lie below.
fn blocks_below_ingress(policy: &Policy, problems: &mut Problems) {
    let mut owned = Table::default();
    for own in &policy.summary.ingress {
        let entry = PatternEntry { allows: true, rule: RuleId(0), spot: Spot::Line(0, 0) };
        owned.insert(Shape::Below, &Path::new(&policy.hashing, own.as_wire()), entry);
    }
    if owned.len() == 0 {
        return;
    }
    let mut room = [0; MAX_NAME];
    for table in policy.block_tables() {
        for record in table.records().filter(Record::blocks) {
            let path = Path::new(&policy.hashing, record.name.whole(&mut room));
            let above = owned.best(&path, |_| true, &mut Nobody);
            let own = above.and_then(|found| owned.record_of(&found)).and_then(|own| own.pattern());
            if let (Some(own), Some(pattern)) = (own, record.pattern()) {
                let message =
                    format!("pattern {pattern} lies below the own ingress {}, which is not refused", own.name);
                problems.push(at_origin(table.origin(&record), Severity::Warning, message));
            }
        }
    }
}

/// Most exceptions for which it is told that nothing blocks what they open.
const MAX_OPEN_EXCEPTIONS: usize = 32;

fn exceptions(plan: &Plan, policy: &Policy, now: Timestamp, problems: &mut Problems) {
    let mut open = Vec::new();
    for exception in &plan.exceptions {
        if exception.until.value <= now {
            let problem = Problem::warning(
                &exception.until.place,
                format!("the exception for {} has ended", exception.name.value),
            );
            problems.push(problem.hint("remove it"));
        }
        // What is no pattern has been told already.
        if let Ok(pattern) = Pattern::parse(&exception.name.value)
            && !policy.different_scopes().iter().any(|scope| policy.blocking(scope, pattern.name.as_name()).is_some())
        {
            open.push((pattern, &exception.name.place));
        }
    }
    // Each is held against every block pattern: thousands of either must not make this take minutes.
    open.truncate(MAX_OPEN_EXCEPTIONS);
    if open.iter().any(|(pattern, _)| pattern.shape != Shape::Exact) {
        let blocks = policy.block_tables().flat_map(Table::records).filter(|record| record.blocks());
        for blocking in blocks.filter_map(|record| record.pattern()) {
            open.retain(|(pattern, _)| !pattern.overlaps(&blocking));
        }
    }
    for (pattern, place) in open {
        let problem = Problem::warning(place, format!("the exception for {pattern} opens what no pattern blocks"));
        problems.push(problem.hint("it only helps where an alias or address in the answer would be refused"));
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a Located<String>>, what: &str, problems: &mut Problems) {
    let mut first: HashMap<&str, &Place> = HashMap::new();
    for name in names {
        match first.entry(&name.value) {
            Entry::Vacant(free) => _ = free.insert(&name.place),
            Entry::Occupied(taken) => {
                let problem = Problem::error(&name.place, format!("{what} {:?}", name.value));
                problems.push(problem.hint(format!("the first is at {}", taken.get())));
            }
        }
    }
}

/// A problem at a place, or with the line of a list in its text.
fn at_origin(origin: Option<Origin>, severity: Severity, message: String) -> Problem {
    let problem = match origin {
        Some(Origin::Place(place)) => Problem::error(&place, message),
        Some(line @ Origin::Line { .. }) => Problem::without_place(format!("{line}: {message}")),
        None => Problem::without_place(message),
    };
    Problem { severity, ..problem }
}
