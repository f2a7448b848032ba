//! `[upstream]`.

use std::path::Path;

use super::{MAX_FILE, files::read_bytes, library::Library, set};
use crate::{
    document::{Fault, Table, Value},
    name::DomainName,
    upstream::{Authorities, InvalidServer, Options, Server, Zone},
};

const SERVERS: &str = "servers = [\"system\"] or servers = [\"udp://9.9.9.9\"]";
const ZONES: &str = "zones = [\"corp.example\"]";

pub(super) fn read(root: &mut Table<'_>, base: &Path, library: &mut Library) -> Options {
    let mut options = Options::default();
    root.table("upstream", |table| {
        set(&mut options.servers, table.take("servers", |value| value.some_entries(SERVERS, read_server)));
        let authorities = |value: &Value<'_>| read_authorities(value, base, library);
        set(&mut options.authorities, table.take("certificate-authority", authorities));
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

/// The file is watched like every other, and what it holds is a part of the options: a change takes effect.
fn read_authorities(value: &Value<'_>, base: &Path, library: &mut Library) -> Option<Authorities> {
    let path = base.join(value.line()?);
    library.note_file(&path);
    let wrong = |error: String| {
        let hint = "name a file with the certificate of your certificate authority, in PEM".to_owned();
        value.wrong(format!("cannot use {}: {error}", path.display()), Some(hint))
    };
    match read_bytes(&path, MAX_FILE) {
        Ok(pem) => Authorities::from_pem(&pem).map_or_else(|error| wrong(error.to_string()), Some),
        Err(error) => wrong(error.to_string()),
    }
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
