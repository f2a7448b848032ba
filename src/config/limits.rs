//! `[limits]`.

use ipnet::IpNet;

use super::set;
use crate::{
    document::{Fault, Table, Value, quoted},
    gateway::{ClientScope, Options, Others},
};

pub(super) fn read(root: &mut Table<'_>) -> Options {
    let mut options = Options::default();
    root.table("limits", |table| {
        set(&mut options.clients, table.list("clients", read_scope));
        let others = [("refused", Others::Refused), ("silence", Others::Silence)];
        set(&mut options.others, table.take("others", |value| value.keyword(&others)));
        set(&mut options.forwarders, table.list("forwarders", read_forwarder));
        set(&mut options.rate, table.take("rate", |value| value.integer(0..=1_000_000)));
        set(&mut options.rate_per_forwarder, table.take("rate-per-forwarder", |value| value.integer(0..=1_000_000)));
        set(&mut options.slip, table.take("slip", |value| value.integer(0..=10)));
        let counts = [
            ("waiting", &mut options.waiting, 1_000_000),
            ("waiting-per-client", &mut options.waiting_per_client, 1_000_000),
            ("waiting-per-forwarder", &mut options.waiting_per_forwarder, 1_000_000),
            ("connections", &mut options.connections, 100_000),
            ("connections-per-client", &mut options.connections_per_client, 100_000),
            ("pipeline", &mut options.pipeline, 10_000),
        ];
        for (key, count, most) in counts {
            set(count, table.take(key, |value| value.integer(1..=most)));
        }
        // 512 is what every resolver takes (RFC 1035 section 4.2.1); beyond 4096 nobody offers anything.
        set(&mut options.udp_size, table.take("udp-size", |value| value.integer(512..=4096)));
    });
    options
}

/// Whoever is a forwarder chooses for whom it asks, and with that its group and exceptions.
fn read_forwarder(value: &Value<'_>) -> Option<IpNet> {
    let network = value.network()?.value;
    if network.prefix_len() == 0 {
        let hint = "name the front resolvers, such as forwarders = [\"10.0.0.53\"]";
        return value.wrong(format!("{network} would let every client say who it is"), Some(hint.to_owned()));
    }
    Some(network)
}

fn read_scope(value: &Value<'_>) -> Option<ClientScope> {
    let is_network = value.text()?.contains(['.', ':']);
    if is_network {
        return Some(ClientScope::Network(value.network()?.value));
    }
    let words = [("private", ClientScope::Private), ("on-link", ClientScope::OnLink)];
    value.converted(|text| {
        let known = words.iter().find(|(word, _)| *word == text);
        known.map(|&(_, scope)| scope).ok_or_else(|| {
            let fault = Fault::from(format!("{} names no clients", quoted(text)));
            fault.hint("write \"private\", \"on-link\" or a network such as \"10.0.0.0/8\"")
        })
    })
}
