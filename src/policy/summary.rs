//! What a policy consists of, in numbers: shown by `check` and at start, compared at a reload.

use serde::Serialize;

use crate::name::DomainName;

/// Counts of a policy. Two that are equal may still differ in what their patterns say.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// Every pack that is active for some group, in the order of selection.
    pub packs: Vec<PackSummary>,
    /// Rules that a verdict can name: those of packs, lists of the configuration, and exceptions.
    pub rules: usize,
    /// Different patterns of packs and local lists, exceptions and own ingress left out.
    pub patterns: usize,
    /// Client groups beside the default.
    pub groups: usize,
    /// Exceptions, past ones too.
    pub exceptions: usize,
    /// Own ingress names of all groups, each once, in a fixed order.
    pub ingress: Vec<DomainName>,
}

/// Counts of one pack.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PackSummary {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its rules.
    pub rules: usize,
    /// Different patterns of its rules.
    pub patterns: usize,
}
