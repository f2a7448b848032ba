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
    /// Packs for clients of no group, by name; `Policy::summary` counts what is in them.
    pub packs: Vec<String>,
    /// Patterns of `[policy] allow` and `block`.
    pub local_rules: usize,
    /// Client groups.
    pub groups: Vec<Group>,
    /// Dated exceptions.
    pub exceptions: Vec<Exception>,
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
        Self {
            mode: plan.defaults.mode,
            action: plan.defaults.action,
            ingress: plan.organization.ingress.iter().map(|name| name.value.clone()).collect(),
            packs: names_of_packs(&plan.defaults.packs, plan),
            local_rules: plan.defaults.allow.len() + plan.defaults.block.len(),
            groups: plan.groups.iter().map(|group| outline_of_group(group, plan)).collect(),
            exceptions: plan.exceptions.iter().map(outline_of_exception).collect(),
        }
    }
}

fn names_of_packs(numbers: &[usize], plan: &Plan) -> Vec<String> {
    numbers.iter().filter_map(|&number| plan.packs.get(number)).map(|pack| pack.name.value.clone()).collect()
}

fn outline_of_group(group: &plan::Group, plan: &Plan) -> Group {
    Group {
        name: group.name.value.clone(),
        networks: group.networks.len(),
        mode: group.mode.unwrap_or(plan.defaults.mode),
        action: group.action.as_ref().map_or(plan.defaults.action, |action| action.value),
        packs: names_of_packs(group.packs.as_ref().unwrap_or(&plan.defaults.packs), plan),
    }
}

fn outline_of_exception(exception: &plan::Exception) -> Exception {
    Exception { name: exception.name.value.clone(), until: exception.until.value, reason: exception.reason.clone() }
}
