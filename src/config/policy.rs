//! `[organization]` and `[policy]`.

use std::time::Duration;

use super::{builtin::DEFAULT_PACKS, library::Library};
use crate::{
    document::{Table, Value},
    policy::{
        Action, Mode, UnknownOnIngress,
        plan::{Defaults, Organization},
    },
    problem::Located,
};

pub(super) const MODES: [(&str, Mode); 2] = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];

pub(super) const ACTIONS: [(&str, Action); 5] = [
    ("nxdomain", Action::Nxdomain),
    ("nodata", Action::Nodata),
    ("refused", Action::Refused),
    ("sinkhole", Action::Sinkhole),
    ("drop", Action::Drop),
];

const UNKNOWN: [(&str, UnknownOnIngress); 2] =
    [("refuse", UnknownOnIngress::Refuse), ("observe", UnknownOnIngress::Observe)];

/// TTL of refusals where nobody says otherwise, in seconds.
const BLOCK_TTL: u32 = 60;

/// Longest TTL of a refusal: longer, and clients would not notice an exception the same day.
const MAX_BLOCK_TTL: Duration = Duration::from_hours(24);

pub(super) fn read_organization(root: &mut Table<'_>) -> Organization {
    let organization = root.table("organization", |table| Organization {
        name: table.take("name", Value::line),
        contact: table.take("contact", Value::line),
        ingress: table.list("ingress", Value::located_text).unwrap_or_default(),
        addresses: table.list("addresses", Value::network).unwrap_or_default(),
        ingress_whole_domain: table.take("ingress-whole-domain", Value::boolean).unwrap_or_default(),
    });
    organization.unwrap_or_default()
}

pub(super) fn read_defaults(root: &mut Table<'_>, library: &mut Library) -> Defaults {
    let place = root.place();
    let mut packs = DEFAULT_PACKS.map(|name| Located { value: name.to_owned(), place: place.clone() }).to_vec();
    let defaults = root.table("policy", |table| {
        super::set(&mut packs, table.list("packs", Value::located_text));
        let action = table.take("action", |value| Some(value.locate(value.keyword(&ACTIONS)?)));
        Defaults {
            packs: Vec::new(),
            mode: table.take("mode", |value| value.keyword(&MODES)).unwrap_or_default(),
            unknown_on_ingress: table.take("unknown-on-ingress", |value| value.keyword(&UNKNOWN)).unwrap_or_default(),
            action: action.as_ref().map(|action| action.value).unwrap_or_default(),
            action_place: action.map(|action| action.place),
            allow: table.list("allow", Value::located_text).unwrap_or_default(),
            block: table.list("block", Value::located_text).unwrap_or_default(),
            sinkhole: table.list("sinkhole", Value::parsed).unwrap_or_default(),
            block_ttl: table.take("block-ttl", read_ttl).unwrap_or(BLOCK_TTL),
            strip_ech: table.take("strip-ech", Value::boolean).unwrap_or_default(),
        }
    });
    let defaults = defaults.unwrap_or_else(|| Defaults { block_ttl: BLOCK_TTL, ..Defaults::default() });
    Defaults { packs: library.select(&packs), ..defaults }
}

fn read_ttl(value: &Value<'_>) -> Option<u32> {
    let ttl = value.duration(Duration::from_secs(1)..=MAX_BLOCK_TTL)?;
    u32::try_from(ttl.as_secs()).ok()
}
