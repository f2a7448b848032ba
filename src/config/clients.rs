//! `[[clients]]` and `[[exceptions]]`: what holds for some clients.

use ipnet::IpNet;

use super::{
    library::Library,
    policy::{ACTIONS, MODES},
};
use crate::{
    document::{Table, Value},
    policy::plan::{Exception, Group},
    problem::Located,
};

const NETWORKS: &str = "networks = [\"10.20.0.0/16\"]";
const ANY: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// Groups; their packs may amend `defaults`, those of `[policy]`.
pub(super) fn read_groups(root: &mut Table<'_>, library: &mut Library, defaults: &[usize]) -> Vec<Group> {
    root.tables("clients", |table| {
        let name = table.require("name", "name = \"build-hosts\"", |value| Some(value.locate(value.line()?)));
        let networks = table.require_list("networks", NETWORKS, Value::network);
        let packs = table.list("packs", Value::located_text);
        let mode = table.take("mode", |value| value.keyword(&MODES));
        let action = table.take("action", |value| Some(value.locate(value.keyword(&ACTIONS)?)));
        let ingress = table.list("ingress", Value::located_text);
        let allow = table.list("allow", Value::located_text);
        let block = table.list("block", Value::located_text);
        let packs = packs.map(|entries| library.select_for_group(&entries, defaults));
        Some(Group { name: name?, networks: networks?, mode, action, packs, ingress, allow, block })
    })
}

pub(super) fn read_exceptions(root: &mut Table<'_>) -> Vec<Exception> {
    root.tables("exceptions", |table| {
        let name = table.require("name", "name = \"connect.eu.ngrok-agent.com\"", Value::located_text);
        let example = "networks = [\"10.20.7.0/24\"], or [\"any\"] for everybody";
        let networks = table.require_list("networks", example, read_networks);
        let until = table.require("until", "until = 2026-12-24T18:00:00Z", Value::timestamp);
        let reason = table.require("reason", "reason = \"vendor support, NET-4711\"", Value::line);
        let networks = networks?.into_iter().flatten().collect();
        Some(Exception { name: name?, networks, until: until?, reason: reason? })
    })
}

/// A network, or everybody.
fn read_networks(value: &Value<'_>) -> Option<Vec<Located<IpNet>>> {
    if value.text()? == "any" {
        let networks = ANY.iter().filter_map(|network| network.parse().ok());
        return Some(networks.map(|network| value.locate(network)).collect());
    }
    Some(vec![value.network()?])
}
