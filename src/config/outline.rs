//! What a configuration enforces, in names and numbers: what people are shown at a start and by `check`.

use jiff::Timestamp;
use serde::Serialize;

use crate::policy::{
    Action, Mode,
    plan::{self, Plan},
};

/// What is enforced.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outline {
    /// For clients of no group.
    pub mode: Mode,
    /// For clients of no group.
    pub action: Action,
    /// Own ingress names of clients of no group.
    pub ingress: Vec<String>,
    /// Packs for clients of no group.
    pub packs: Vec<Pack>,
    /// Packs that only groups have.
    pub packs_of_groups: Vec<Pack>,
    /// Patterns of `[policy] allow` and `block`.
    pub local_rules: usize,
    /// Client groups.
    pub groups: Vec<Group>,
    /// Dated exceptions.
    pub exceptions: Vec<Exception>,
}

/// A pack.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pack {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// How many rules it has.
    pub rules: usize,
    /// How many patterns and networks they have, list files counted.
    pub patterns: usize,
}

/// A client group.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Group {
    /// Its name.
    pub name: String,
    /// How many networks it has.
    pub networks: usize,
    /// Its mode, its own or the global one.
    pub mode: Mode,
    /// Its action, its own or the global one.
    pub action: Action,
    /// Its packs, by name.
    pub packs: Vec<String>,
}

/// A dated exception.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exception {
    /// The pattern it opens.
    pub name: String,
    /// When it ends.
    pub until: Timestamp,
    /// Why it is there.
    pub reason: String,
}

impl Outline {
    /// Of a plan that compiles.
    pub(super) fn of(plan: &Plan) -> Self {
        let numbered = || plan.packs.iter().enumerate();
        let chosen = |global: bool| {
            let packs = numbered().filter(|(number, _)| plan.defaults.packs.contains(number) == global);
            packs.map(|(_, pack)| outline_of_pack(pack)).collect()
        };
        Self {
            mode: plan.defaults.mode,
            action: plan.defaults.action,
            ingress: plan.organization.ingress.iter().map(|name| name.value.clone()).collect(),
            packs: chosen(true),
            packs_of_groups: chosen(false),
            local_rules: plan.defaults.allow.len() + plan.defaults.block.len(),
            groups: plan.groups.iter().map(|group| outline_of_group(group, plan)).collect(),
            exceptions: plan.exceptions.iter().map(outline_of_exception).collect(),
        }
    }
}

fn outline_of_pack(pack: &plan::Pack) -> Pack {
    let listed = |list: &plan::List| list.block.len() + list.allow.len();
    let patterns = pack.rules.iter().map(|rule| {
        rule.block.len() + rule.allow.len() + rule.networks.len() + rule.lists.iter().map(listed).sum::<usize>()
    });
    Pack {
        name: pack.name.value.clone(),
        version: pack.version.clone(),
        rules: pack.rules.len(),
        patterns: patterns.sum(),
    }
}

fn outline_of_group(group: &plan::Group, plan: &Plan) -> Group {
    let packs = group.packs.as_ref().unwrap_or(&plan.defaults.packs);
    Group {
        name: group.name.value.clone(),
        networks: group.networks.len(),
        mode: group.mode.unwrap_or(plan.defaults.mode),
        action: group.action.as_ref().map_or(plan.defaults.action, |action| action.value),
        packs: packs.iter().filter_map(|&number| plan.packs.get(number)).map(|pack| pack.name.value.clone()).collect(),
    }
}

fn outline_of_exception(exception: &plan::Exception) -> Exception {
    Exception { name: exception.name.value.clone(), until: exception.until.value, reason: exception.reason.clone() }
}
