//! What configuration and packs say, read but not yet checked against each other. `compile` turns it
//! into a policy or into problems.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};
use jiff::Timestamp;

use super::{Action, Mode, UnknownOnIngress, list::List};
use crate::problem::{Located, Place};

/// Everything a policy is made from.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Whose policy it is.
    pub organization: Organization,
    /// What holds for clients of no group, and where a group says nothing.
    pub defaults: Defaults,
    /// Client groups, in the order of the file.
    pub groups: Vec<Group>,
    /// Dated exceptions, in the order of the file.
    pub exceptions: Vec<Exception>,
    /// Every pack that is selected anywhere; selections are indices into it.
    pub packs: Vec<Pack>,
    /// NAT64 prefixes beside the well-known 64:ff9b::/96; lengths as in RFC 6052 section 2.2.
    pub nat64: Vec<Located<Ipv6Net>>,
}

/// `[organization]`.
#[derive(Clone, Debug, Default)]
pub struct Organization {
    /// Its name.
    pub name: Option<String>,
    /// Whom to ask; shown in refusals.
    pub contact: Option<String>,
    /// Own ingress names; each stands for itself and all below.
    pub ingress: Vec<Located<String>>,
    /// Dedicated addresses of the own ingress; v4-mapped ones already turned into v4.
    pub addresses: Vec<Located<IpNet>>,
    /// An own ingress may be a whole registrable domain.
    pub ingress_whole_domain: bool,
}

/// `[policy]`.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// Active packs, as indices into [`Plan::packs`].
    pub packs: Vec<usize>,
    /// Refuse, or only record.
    pub mode: Mode,
    /// What becomes of an unknown name that leads to a learned ingress address.
    pub unknown_on_ingress: UnknownOnIngress,
    /// How refused questions are answered.
    pub action: Action,
    /// Where the action was read; `None` for the default.
    pub action_place: Option<Place>,
    /// Patterns allowed above packs.
    pub allow: Vec<Located<String>>,
    /// Patterns blocked above packs.
    pub block: Vec<Located<String>>,
    /// Addresses for [`Action::Sinkhole`].
    pub sinkhole: Vec<IpAddr>,
    /// TTL and SOA minimum of refusals, in seconds.
    pub block_ttl: u32,
    /// Take `ech` out of SVCB and HTTPS records for clients that do not set DO.
    pub strip_ech: bool,
}

/// One `[[clients]]`: what is `None` is taken from [`Defaults`].
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: Located<String>,
    /// Its networks, v4-mapped ones already turned into v4.
    pub networks: Vec<Located<IpNet>>,
    /// Replaces the mode.
    pub mode: Option<Mode>,
    /// Replaces the action.
    pub action: Option<Located<Action>>,
    /// Replaces the active packs; amendments already applied.
    pub packs: Option<Vec<usize>>,
    /// Replaces the own ingress names.
    pub ingress: Option<Vec<Located<String>>>,
    /// Replaces the allowed patterns.
    pub allow: Option<Vec<Located<String>>>,
    /// Replaces the blocked patterns.
    pub block: Option<Vec<Located<String>>>,
}

/// One `[[exceptions]]`.
#[derive(Clone, Debug)]
pub struct Exception {
    /// The pattern it opens.
    pub name: Located<String>,
    /// For whom; `["any"]` has become 0.0.0.0/0 and ::/0.
    pub networks: Vec<Located<IpNet>>,
    /// When it ends.
    pub until: Located<Timestamp>,
    /// Why, for the record.
    pub reason: String,
}

/// A policy pack.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Its name, the first half of `pack/rule`.
    pub name: Located<String>,
    /// Its version, usually the day it was made.
    pub version: String,
    /// What it is about.
    pub description: Option<String>,
    /// Its rules, in the order of the file.
    pub rules: Vec<PackRule>,
}

/// One `[[rules]]` of a pack.
#[derive(Clone, Debug)]
pub struct PackRule {
    /// Its id, the second half of `pack/rule`.
    pub id: Located<String>,
    /// Why it exists; shown in refusals and by `explain`.
    pub reason: String,
    /// Patterns it blocks.
    pub block: Vec<Located<String>>,
    /// Patterns it allows.
    pub allow: Vec<Located<String>>,
    /// Patterns from list files, already told apart into blocks and allows.
    pub lists: Vec<List>,
    /// Addresses that count as this ingress.
    pub networks: Vec<Located<IpNet>>,
    /// Regions that `{region}` in `resolve` stands for.
    pub regions: Vec<Located<String>>,
    /// Names whose addresses are this ingress's; each must be blocked by the same pack.
    pub resolve: Vec<Located<String>>,
    /// Files of addresses that are this ingress's.
    pub address_lists: Vec<AddressList>,
    /// Ports that the firewall opens for an allowing rule's names.
    pub ports: Vec<u16>,
    /// Where the facts are from.
    pub source: Option<String>,
}

/// What a file of addresses holds.
#[derive(Clone, Debug, Default)]
pub struct AddressList {
    /// The file's path, for messages.
    pub path: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What stands for a region in `resolve`.
pub const REGION: &str = "{region}";

impl PackRule {
    /// The names that an entry of `resolve` stands for: one for each region, or itself.
    pub fn expanded<'a>(&'a self, resolve: &'a str) -> impl Iterator<Item = String> + 'a {
        let by_region = resolve.contains(REGION);
        let regions = self.regions.iter().filter(move |_| by_region);
        let plain = (!by_region).then(|| resolve.to_owned());
        regions.map(|region| resolve.replace(REGION, &region.value)).chain(plain)
    }
}
