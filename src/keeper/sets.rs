//! Which elements of which sets stand for what is open or denied, and back again after a restart.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::book::Target;
use crate::{
    address::Carriers,
    firewall::{
        TABLE,
        sets::{INGRESS, LEASE, PORT},
    },
    sys::netlink::{Element, Key, Netfilter},
};

/// Changes to several sets, made together.
#[derive(Debug, Default)]
pub(super) struct Elements(BTreeMap<&'static str, Vec<Element>>);

impl Elements {
    /// An address, or a port of it, open to a client.
    pub(super) fn add_lease(&mut self, client: Option<IpAddr>, target: Target, lifetime: Duration) {
        let key = client.map_or(Key::default(), |client| Key::default().address(client.to_canonical()));
        let key = key.address(target.address);
        match target.port {
            0 => self.add(LEASE, target.address, key, lifetime),
            port => self.add(PORT, target.address, key.port(port), lifetime),
        }
    }

    /// An ingress address, and for an IPv4 one what translators make of it.
    pub(super) fn add_denied(&mut self, address: IpAddr, carriers: &Carriers, lifetime: Duration) {
        self.add(INGRESS, address, Key::default().address(address), lifetime);
        if let IpAddr::V4(v4) = address {
            for form in carriers.forms(v4).map(IpAddr::from) {
                self.add(INGRESS, form, Key::default().address(form), lifetime);
            }
        }
    }

    fn add(&mut self, [v4, v6]: [&'static str; 2], address: IpAddr, key: Key, lifetime: Duration) {
        let set = if address.is_ipv4() { v4 } else { v6 };
        self.0.entry(set).or_default().push(Element { key, lifetime: Some(lifetime) });
    }

    /// By set.
    pub(super) fn lists(&self) -> Vec<(&'static str, &[Element])> {
        self.0.iter().map(|(set, elements)| (*set, elements.as_slice())).collect()
    }
}

/// What the kernel has of our leases: client, target, time left.
pub(super) fn read_leases(
    netfilter: &mut Netfilter,
    sets: [&str; 2],
    gateway: bool,
) -> std::io::Result<Vec<(Option<IpAddr>, Target, Duration)>> {
    let mut leases = Vec::new();
    for (set, is_v4) in sets.into_iter().zip([true, false]) {
        for element in netfilter.elements(TABLE, set)? {
            let left = element.lifetime.unwrap_or_default();
            let read = read_key(element.key.as_bytes(), is_v4, gateway);
            leases.extend(read.map(|(client, target)| (client, target, left)));
        }
    }
    Ok(leases)
}

/// The length of a key of [`LEASE`] in its IPv4 form.
pub(super) fn lease_key_length(gateway: bool) -> usize {
    if gateway { 8 } else { 4 }
}

fn read_key(bytes: &[u8], is_v4: bool, gateway: bool) -> Option<(Option<IpAddr>, Target)> {
    let (client, rest) = if gateway {
        let (client, rest) = take_address(bytes, is_v4)?;
        (Some(client), rest)
    } else {
        (None, bytes)
    };
    let (address, rest) = take_address(rest, is_v4)?;
    let port = rest.first_chunk().map_or(0, |port| u16::from_be_bytes(*port));
    Some((client, Target { address, port }))
}

fn take_address(bytes: &[u8], is_v4: bool) -> Option<(IpAddr, &[u8])> {
    if is_v4 {
        bytes.split_first_chunk::<4>().map(|(octets, rest)| (IpAddr::from(*octets), rest))
    } else {
        bytes.split_first_chunk::<16>().map(|(octets, rest)| (IpAddr::from(*octets), rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::KNOWN_NAT64;

    #[test]
    fn what_is_put_into_a_set_is_read_from_it() {
        let clients = [None, Some("10.0.0.5"), None, Some("fd00::5")];
        let addresses = ["93.184.216.34", "93.184.216.34", "2606:4700::1", "2606:4700::1"];
        for (client, address) in clients.into_iter().zip(addresses) {
            let client = client.map(|client| client.parse().unwrap());
            for port in [0, 80] {
                let target = Target { address: address.parse().unwrap(), port };
                let mut elements = Elements::default();
                elements.add_lease(client, target, Duration::from_secs(1));
                let lists = elements.lists();
                let key = lists[0].1[0].key;
                let read = read_key(key.as_bytes(), target.address.is_ipv4(), client.is_some());
                assert_eq!(read, Some((client, target)));
            }
        }
    }

    #[test]
    fn a_denied_ipv4_address_is_denied_in_its_translated_forms_too() {
        let mut elements = Elements::default();
        let carriers = Carriers::new(["2a01:64::/96".parse().unwrap()]);
        elements.add_denied("3.124.1.2".parse().unwrap(), &carriers, Duration::from_secs(1));
        let counts: Vec<_> = elements.lists().iter().map(|(set, elements)| (*set, elements.len())).collect();
        assert_eq!(counts, [("ingress_v4", 1), ("ingress_v6", 1 + KNOWN_NAT64.len())]);
    }
}
