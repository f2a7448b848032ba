//! `[upstream]`.

use super::set;
use crate::{
    document::{Fault, Table, Value},
    name::DomainName,
    upstream::{InvalidServer, Options, Server, Zone},
};

const SERVERS: &str = "servers = [\"system\"] or servers = [\"udp://9.9.9.9\"]";
const ZONES: &str = "zones = [\"corp.example\"]";

pub(super) fn read(root: &mut Table<'_>) -> Options {
    let mut options = Options::default();
    root.table("upstream", |table| {
        set(&mut options.servers, table.take("servers", |value| value.some_entries(SERVERS, read_server)));
        let mut seen = Vec::new();
        options.zones = table.tables("zones", |zone| {
            let zones = zone.require_list("zones", ZONES, |value| read_zone(value, &mut seen));
            let servers = zone.require_list("servers", SERVERS, read_server);
            Some(Zone { zones: zones?, servers: servers? })
        });
    });
    options
}

fn read_server(value: &Value<'_>) -> Option<Server> {
    value.converted(|text| text.parse().map_err(|error: InvalidServer| Fault::from(error.to_string())))
}

/// A zone may have servers in one place only: two would be a question of which is read first.
fn read_zone(value: &Value<'_>, seen: &mut Vec<DomainName>) -> Option<DomainName> {
    let zone: DomainName = value.parsed()?;
    if seen.contains(&zone) {
        return value.wrong(format!("zone {zone} is named twice"), Some("put its servers in one entry".to_owned()));
    }
    seen.push(zone.clone());
    Some(zone)
}
