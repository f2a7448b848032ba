//! What the store's indexes order by: a client's range of addresses, and a name from right to left.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Client, mask::cut};

/// An address as the store orders it: 16 bytes, v4 as v4-mapped v6.
pub(super) type AddressKey = [u8; 16];

/// The first and the last address a record's client may have; `None` for a hash.
pub(super) fn client_range(client: &Client) -> Option<(AddressKey, AddressKey)> {
    match client {
        Client::Address { address, .. } => Some((address_key(*address), address_key(*address))),
        Client::Network { network } => Some(network_range(*network)),
        Client::Hash { .. } => None,
    }
}

/// The first and the last address of a network.
pub(super) fn network_range(network: IpNet) -> (AddressKey, AddressKey) {
    (address_key(network.network()), address_key(network.broadcast()))
}

/// Where the networks that records may name instead of this one's addresses begin: /24, /56 and everybody.
pub(super) fn wider_starts(network: IpNet) -> Vec<AddressKey> {
    let lengths: &[u8] = if matches!(network, IpNet::V4(_)) { &[24, 0] } else { &[56, 0] };
    let wider = lengths.iter().filter(|length| **length < network.prefix_len());
    wider.map(|length| address_key(cut(network.addr(), *length).network())).collect()
}

/// A name in presentation form with its labels from right to left, each closed by a dot: what lies below a name begins
/// with that name's key.
pub(super) fn name_key(name: &str) -> String {
    let mut key = String::with_capacity(name.len() + 1);
    for label in labels(name).iter().rev() {
        key.push_str(label);
        key.push('.');
    }
    key
}

/// The labels of a name in presentation form; an escaped dot divides none.
fn labels(name: &str) -> Vec<&str> {
    let mut is_escaped = false;
    let divides = |character: char| {
        let is_dot = character == '.' && !is_escaped;
        is_escaped = character == '\\' && !is_escaped;
        is_dot
    };
    name.split(divides).filter(|label| !label.is_empty()).collect()
}

fn address_key(address: IpAddr) -> AddressKey {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::name::{DomainName, NameBuffer};

    #[test]
    fn a_names_key_begins_with_that_of_every_zone_it_is_in_and_with_no_others() {
        #[rustfmt::skip]
        let cases = [
            ("connect.ngrok.com", "com.ngrok.connect."),
            (".",                 ""),
            (r"a\.b.example",     r"example.a\.b."),
            (r"a\\.example",      r"example.a\\."),
            (r"\000.example",     r"example.\000."),
        ];
        for (name, expected) in cases {
            assert_eq!(name_key(name), expected, "{name}");
        }
        assert!(!name_key("notngrok.com").starts_with(&name_key("ngrok.com")));
        assert!(!name_key(r"x\.a.b").starts_with(&name_key(r"a.b")));
    }

    #[test]
    fn a_client_is_looked_for_in_the_networks_that_may_stand_for_it() {
        let starts = |network: &str| wider_starts(network.parse().unwrap()).len();
        assert_eq!((starts("192.0.2.7/32"), starts("192.0.2.0/24"), starts("0.0.0.0/0")), (2, 1, 0));
        let host = network_range("192.0.2.7/32".parse().unwrap());
        let network = network_range("192.0.2.0/24".parse().unwrap());
        assert!(network.0 < host.0 && host.0 == host.1 && host.1 < network.1);
    }

    fn any_name() -> impl Strategy<Value = DomainName> {
        let label = prop::collection::vec(prop::sample::select(&b"ab.\\0\x00\xff"[..]), 1..4);
        prop::collection::vec(label, 0..5).prop_map(|labels| {
            let mut buffer = NameBuffer::new();
            buffer.clear();
            labels.iter().for_each(|label| buffer.push_label(label).unwrap());
            buffer.close().unwrap().name().to_owned()
        })
    }

    proptest! {
        #[test]
        fn keys_tell_what_lies_below_a_name_as_the_names_do(name in any_name(), zone in any_name()) {
            let is_within = name_key(&name.to_string()).starts_with(&name_key(&zone.to_string()));
            prop_assert_eq!(is_within, name.is_within(zone.as_name()), "{} within {}", name, zone);
        }

        #[test]
        fn a_names_own_parents_are_zones_of_its_key(name in any_name()) {
            for parent in name.as_name().suffixes() {
                prop_assert!(name_key(&name.to_string()).starts_with(&name_key(&parent.to_string())));
            }
        }
    }
}
