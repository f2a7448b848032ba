//! From a plan to a policy, or to everything that is wrong with it.
//!
//! Builds first, leaving out what is broken, so that `check` can ask the policy itself for contradictions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use super::{
    Dated, GroupId, NO_PACK, PackSummary, Policy, Replies, Rule, RuleId, Scope, Source, Summary,
    addresses::Networks,
    check,
    groups::{Groups, canonical},
    list::{List, Listed},
    path::{Hashing, Path},
    pattern::{InvalidPattern, Pattern, Shape},
    plan::{PackRule, Plan},
    rule::Origin,
    table::{Entry, Spot, Table},
};
use crate::{
    address::Carriers,
    name::DomainName,
    problem::{Located, Place, Problem, Problems},
};

/// Most problems told of one list file; a file that is no list would have millions.
const MAX_LIST_PROBLEMS: usize = 20;

/// Checks a plan and builds the policy it describes. Problems are all there are, warnings among them; with an
/// error among them there is no policy. `now` tells which exceptions are past (a warning).
pub fn compile(plan: &Plan, now: Timestamp) -> (Option<Policy>, Problems) {
    let (policy, mut problems) = build(plan);
    check::contradictions(plan, &policy, now, &mut problems);
    ((!problems.has_errors()).then_some(policy), problems)
}

/// The policy of what can be read, and what cannot.
pub(super) fn build(plan: &Plan) -> (Policy, Problems) {
    let mut compiler = Compiler::new(plan);
    compiler.add_defaults();
    compiler.add_packs();
    compiler.add_groups();
    compiler.add_exceptions();
    compiler.finish()
}

struct Compiler<'p> {
    plan: &'p Plan,
    policy: Policy,
    problems: Problems,
    selections: HashMap<Vec<usize>, u32>,
    ingress: BTreeSet<DomainName>,
}

impl<'p> Compiler<'p> {
    fn new(plan: &'p Plan) -> Self {
        let policy = Policy {
            hashing: Hashing::default(),
            rules: Vec::new(),
            pack_of: Vec::new(),
            scopes: Vec::new(),
            groups: Groups::new(),
            tables: vec![Table::default()],
            pack_patterns: Table::default(),
            selections: Vec::new(),
            exceptions: Table::default(),
            dated: Vec::new(),
            networks: Networks::new(Carriers::new(plan.nat64.iter().map(|prefix| prefix.value))),
            on_ports: Vec::new(),
            sources: BTreeMap::new(),
            listed: BTreeMap::new(),
            unknown_on_ingress: plan.defaults.unknown_on_ingress,
            replies: Replies {
                block_ttl: plan.defaults.block_ttl,
                sinkhole: plan.defaults.sinkhole.clone(),
                strip_ech: plan.defaults.strip_ech,
            },
            summary: Summary::default(),
        };
        let (problems, selections, ingress) = Default::default();
        Self { plan, policy, problems, selections, ingress }
    }

    fn add_defaults(&mut self) {
        let plan = self.plan;
        let organization = RuleText::new("organization.ingress", "own ingress");
        let ingress = self.own_table(&organization, &plan.organization.ingress);
        let block = RuleText::new("policy.block", "blocked by local rule");
        let allow = RuleText::new("policy.allow", "allowed by local rule");
        let scope = Scope {
            name: None,
            mode: plan.defaults.mode,
            action: plan.defaults.action,
            ingress,
            allow: self.local_table(&allow, &plan.defaults.allow, true),
            block: self.local_table(&block, &plan.defaults.block, false),
            packs: self.selection(&plan.defaults.packs),
        };
        self.policy.scopes.push(scope);
    }

    fn add_groups(&mut self) {
        let defaults = self.policy.scopes.first().cloned().unwrap_or_default();
        for (place, group) in (1..).zip(&self.plan.groups) {
            let text = |list: &str, reason| RuleText::new(&format!("clients.{}.{list}", group.name.value), reason);
            let (own, allow) = (text("ingress", "own ingress"), text("allow", "allowed by local rule"));
            let block = text("block", "blocked by local rule");
            let scope = Scope {
                name: Some(group.name.value.as_str().into()),
                mode: group.mode.unwrap_or(defaults.mode),
                action: group.action.as_ref().map_or(defaults.action, |action| action.value),
                ingress: group.ingress.as_ref().map_or(defaults.ingress, |names| self.own_table(&own, names)),
                allow: group.allow.as_ref().map_or(defaults.allow, |texts| self.local_table(&allow, texts, true)),
                block: group.block.as_ref().map_or(defaults.block, |texts| self.local_table(&block, texts, false)),
                packs: group.packs.as_ref().map_or(defaults.packs, |packs| self.selection(packs)),
            };
            self.policy.scopes.push(scope);
            for network in &group.networks {
                self.policy.groups.insert(canonical(network.value), GroupId(place));
            }
        }
    }

    fn add_packs(&mut self) {
        let rules = self.plan.packs.iter().flat_map(|pack| &pack.rules);
        let patterns = rules.clone().map(patterns_in).sum();
        let bytes = rules.flat_map(|rule| &rule.lists).map(List::size).sum();
        self.policy.pack_patterns.reserve(&self.policy.hashing, patterns, bytes);
        for (number, pack) in (0..).zip(&self.plan.packs) {
            let before = self.policy.pack_patterns.len();
            for rule in &pack.rules {
                let text = RuleText::new(&format!("{}/{}", pack.name.value, rule.id.value), &rule.reason);
                let id = self.add_rule(&text, Some(&rule.id.place), number);
                self.add_pack_rule(rule, id);
                self.add_ports(rule);
            }
            self.policy.summary.packs.push(PackSummary {
                name: pack.name.value.clone(),
                version: pack.version.clone(),
                rules: pack.rules.len(),
                patterns: self.policy.pack_patterns.len() - before,
            });
        }
        self.policy.pack_patterns.finish(&self.policy.hashing);
        self.policy.networks.link();
    }

    fn add_pack_rule(&mut self, rule: &PackRule, id: RuleId) {
        let Self { policy, problems, .. } = self;
        add_located(&policy.hashing, &mut policy.pack_patterns, (&rule.block, false, id), problems);
        add_located(&policy.hashing, &mut policy.pack_patterns, (&rule.allow, true, id), problems);
        for list in &rule.lists {
            add_list(&policy.hashing, &mut policy.pack_patterns, (list, id, &rule.id.place), problems);
        }
        // What counts on some ports only is for the packet filter: an answer has none.
        if !rule.ports.is_empty() {
            policy.on_ports.extend(rule.networks.iter().map(|network| (canonical(network.value), id)));
        }
        for network in rule.networks.iter().filter(|_| rule.ports.is_empty()) {
            policy.networks.insert(canonical(network.value), id, Origin::Place(network.place.clone()));
        }
        // What is no name is told where the plan is checked.
        let names = rule.resolve.iter().flat_map(|resolve| rule.expanded(&resolve.value));
        for source in names.filter_map(|name| name.parse().ok()).map(Source::Name) {
            policy.sources.entry(source).or_default().push(id);
        }
        for list in &rule.address_lists {
            let source = Source::List(list.path.as_str().into());
            policy.sources.entry(source.clone()).or_default().push(id);
            policy.listed.insert(source, list.addresses.clone());
        }
    }

    /// For the rule that was added last.
    fn add_ports(&mut self, rule: &PackRule) {
        if let Some(added) = self.policy.rules.last_mut() {
            added.ports = rule.ports.as_slice().into();
        }
    }

    fn add_exceptions(&mut self) {
        for exception in &self.plan.exceptions {
            // Each has a rule, a broken one too: the last rules are the exceptions, in their order.
            let text = RuleText::new("exceptions", &exception.reason);
            let id = self.add_rule(&text, Some(&exception.name.place), NO_PACK);
            let names = std::slice::from_ref(&exception.name);
            let Self { policy, problems, .. } = self;
            add_located(&policy.hashing, &mut policy.exceptions, (names, true, id), problems);
            policy.dated.push(Dated {
                networks: exception.networks.iter().map(|network| canonical(network.value)).collect(),
                until: exception.until.value,
            });
        }
    }

    fn finish(self) -> (Policy, Problems) {
        let mut policy = self.policy;
        let locals = policy.tables.iter().map(Table::len).sum::<usize>();
        let own = policy.scopes.iter().map(|scope| scope.ingress).collect::<BTreeSet<_>>();
        let own = own.into_iter().map(|place| policy.table(place).len()).sum::<usize>();
        policy.summary.rules = policy.rules.len();
        policy.summary.patterns = policy.pack_patterns.len() + locals - own;
        policy.summary.groups = self.plan.groups.len();
        policy.summary.exceptions = self.plan.exceptions.len();
        policy.summary.ingress = self.ingress.into_iter().collect();
        (policy, self.problems)
    }

    fn own_table(&mut self, text: &RuleText, names: &[Located<String>]) -> u32 {
        let id = self.add_rule(text, names.first().map(|name| &name.place), NO_PACK);
        let mut table = Table::default();
        for located in names {
            match check::own_ingress(located, self.plan.organization.ingress_whole_domain) {
                Err(problem) => self.problems.push(problem),
                Ok(name) => {
                    self.ingress.insert(name.clone());
                    let entry = Entry { allows: true, rule: id, spot: Spot::Place(&located.place) };
                    table.insert(Shape::Within, &Path::new(&self.policy.hashing, name.as_wire()), entry);
                }
            }
        }
        self.add_table(table)
    }

    fn local_table(&mut self, text: &RuleText, patterns: &[Located<String>], allows: bool) -> u32 {
        if patterns.is_empty() {
            return 0;
        }
        let id = self.add_rule(text, patterns.first().map(|pattern| &pattern.place), NO_PACK);
        let mut table = Table::default();
        add_located(&self.policy.hashing, &mut table, (patterns, allows, id), &mut self.problems);
        self.add_table(table)
    }

    fn add_table(&mut self, mut table: Table) -> u32 {
        if table.len() == 0 {
            return 0;
        }
        table.finish(&self.policy.hashing);
        self.policy.tables.push(table);
        number(self.policy.tables.len() - 1)
    }

    fn add_rule(&mut self, text: &RuleText, place: Option<&Place>, pack: u32) -> RuleId {
        let contact = self.plan.organization.contact.as_deref();
        self.policy.rules.push(Rule::new(text.label.clone(), &text.reason, place.cloned(), contact));
        self.policy.pack_of.push(pack);
        RuleId(number(self.policy.rules.len() - 1))
    }

    fn selection(&mut self, packs: &[usize]) -> u32 {
        let packs: Vec<usize> = packs.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        if let Some(&known) = self.selections.get(&packs) {
            return known;
        }
        let mut words = vec![0_u64; self.plan.packs.len().div_ceil(64)];
        for &pack in &packs {
            if let Some(word) = words.get_mut(pack / 64) {
                *word |= 1 << (pack % 64);
            }
        }
        self.policy.selections.push(words.into());
        let place = number(self.policy.selections.len() - 1);
        self.selections.insert(packs, place);
        place
    }
}

/// What a rule is called and why it exists.
struct RuleText {
    label: String,
    reason: String,
}

impl RuleText {
    fn new(label: &str, reason: &str) -> Self {
        Self { label: label.to_owned(), reason: reason.to_owned() }
    }
}

/// How many patterns a rule brings at most.
pub(super) fn patterns_in(rule: &PackRule) -> usize {
    rule.block.len() + rule.allow.len() + rule.lists.iter().map(List::len).sum::<usize>()
}

fn add_located(
    hashing: &Hashing,
    table: &mut Table,
    (texts, allows, rule): (&[Located<String>], bool, RuleId),
    problems: &mut Problems,
) {
    for text in texts {
        let pattern = match Pattern::parse(&text.value) {
            Ok(pattern) => pattern,
            Err(error) => {
                problems.push(invalid(&text.place, &text.value, &error));
                continue;
            }
        };
        let path = Path::new(hashing, pattern.name.as_wire());
        if check::covers_public_suffix(pattern.shape, &path) {
            problems.push(Problem::error(&text.place, covers_public_suffix(&pattern)).hint(ONE_BY_ONE));
            continue;
        }
        let entry = Entry { allows, rule, spot: Spot::Place(&text.place) };
        if !table.insert(pattern.shape, &path, entry) {
            problems.push(full(&text.place));
            return;
        }
    }
}

fn add_list(
    hashing: &Hashing,
    table: &mut Table,
    (list, rule, place): (&List, RuleId, &Place),
    problems: &mut Problems,
) {
    let number = table.add_list(&list.path);
    let mut broken = 0;
    for Listed { line, within, allows, name } in list.entries() {
        let shape = if within { Shape::Within } else { Shape::Exact };
        let path = Path::new(hashing, name.as_wire());
        if check::covers_public_suffix(shape, &path) {
            broken += 1;
            if broken <= MAX_LIST_PROBLEMS {
                let message = covers_public_suffix(&Pattern { shape, name: name.to_owned() });
                let problem = Problem::without_place(format!("{}:{line}: {message}", list.path));
                problems.push(problem.hint(ONE_BY_ONE));
            }
            continue;
        }
        if !table.insert(shape, &path, Entry { allows, rule, spot: Spot::Line(number, line) }) {
            problems.push(full(place));
            return;
        }
    }
    if broken > MAX_LIST_PROBLEMS {
        let more = broken - MAX_LIST_PROBLEMS;
        problems.push(Problem::without_place(format!("{}: {more} more lines that cover public suffixes", list.path)));
    }
}

fn full(place: &Place) -> Problem {
    Problem::error(place, "more patterns than 4 GiB can hold")
}

fn invalid(place: &Place, text: &str, error: &InvalidPattern) -> Problem {
    let problem = Problem::error(place, format!("{text:?} is no pattern: {error}"));
    match error.hint() {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}

fn covers_public_suffix(pattern: &Pattern) -> String {
    format!("pattern {pattern} covers the public suffix {}, under which others register", pattern.name)
}

/// What to do instead.
const ONE_BY_ONE: &str = "name the domains one by one";

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
