//! What a configuration enforces, in names and numbers: what people are shown at a start and by `check`.

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    policy::{
        Action, Mode, UnknownOnIngress,
        plan::{self, Plan},
    },
    problem::Located,
};

/// What is enforced.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outline {
    /// For clients of no group.
    pub mode: Mode,
    /// For clients of no group.
    pub action: Action,
    /// For everybody.
    pub unknown_on_ingress: UnknownOnIngress,
    /// Own ingress names of clients of no group.
    pub ingress: Vec<String>,
    /// Packs for clients of no group, by name; `Policy::summary` counts what is in them.
    pub packs: Vec<String>,
    /// Patterns of `[policy] allow`.
    pub allow: Vec<String>,
    /// Patterns of `[policy] block`.
    pub block: Vec<String>,
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
    /// Its networks.
    pub networks: Vec<IpNet>,
    /// Its mode, its own or the global one.
    pub mode: Mode,
    /// Its action, its own or the global one.
    pub action: Action,
    /// Its packs, by name.
    pub packs: Vec<String>,
    /// Own ingress names in place of the global ones.
    pub ingress: Option<Vec<String>>,
    /// Allowed patterns in place of the global ones.
    pub allow: Option<Vec<String>>,
    /// Blocked patterns in place of the global ones.
    pub block: Option<Vec<String>>,
}

/// A dated exception.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exception {
    /// The pattern it opens.
    pub name: String,
    /// For whom.
    pub networks: Vec<IpNet>,
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
            unknown_on_ingress: plan.defaults.unknown_on_ingress,
            ingress: texts(&plan.organization.ingress),
            packs: names_of_packs(&plan.defaults.packs, plan),
            allow: texts(&plan.defaults.allow),
            block: texts(&plan.defaults.block),
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
        networks: values(&group.networks),
        mode: group.mode.unwrap_or(plan.defaults.mode),
        action: group.action.as_ref().map_or(plan.defaults.action, |action| action.value),
        packs: names_of_packs(group.packs.as_ref().unwrap_or(&plan.defaults.packs), plan),
        ingress: group.ingress.as_deref().map(texts),
        allow: group.allow.as_deref().map(texts),
        block: group.block.as_deref().map(texts),
    }
}

fn outline_of_exception(exception: &plan::Exception) -> Exception {
    Exception {
        name: exception.name.value.clone(),
        networks: values(&exception.networks),
        until: exception.until.value,
        reason: exception.reason.clone(),
    }
}

fn texts(located: &[Located<String>]) -> Vec<String> {
    located.iter().map(|text| text.value.clone()).collect()
}

fn values<T: Copy>(located: &[Located<T>]) -> Vec<T> {
    located.iter().map(|value| value.value).collect()
}
