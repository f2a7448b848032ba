//! What may be opened and closed at all, as if whoever asks were the attacker. Pure.
//!
//! The forwarder reads strangers' packets, so one day it may be somebody else's. What is decided here holds then too:
//! it can shut nobody out but from addresses of the public Internet, and opens nothing that the rules close for good.

use std::net::IpAddr;

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixSet;

use super::Terms;
use crate::address::{Carriers, is_public};

/// The port that goes through the gate, whatever a rule says.
const HTTPS: u16 = 443;

/// What the configuration leaves open to requests.
pub(super) struct Ground {
    untouched: JointPrefixSet<IpNet>,
    spared: JointPrefixSet<IpNet>,
    ports: Vec<u16>,
    gateway: bool,
    pub(super) carriers: Carriers,
}

impl Ground {
    pub(super) fn new(terms: &Terms) -> Self {
        Self {
            untouched: terms.never.iter().copied().collect(),
            spared: terms.spared.iter().copied().collect(),
            ports: terms.allowed_ports.iter().copied().filter(|port| *port != HTTPS).collect(),
            gateway: terms.gateway,
            carriers: terms.nat64.clone(),
        }
    }

    /// Whom the sets know by this name: one of many clients behind a gateway, or this machine.
    pub(super) fn admits(&self, client: Option<IpAddr>) -> bool {
        client.is_some_and(|client| has_host(client.to_canonical())) == self.gateway && client.is_some() == self.gateway
    }

    /// May an address be opened because an answer named it? Private ones may: internal names have them.
    pub(super) fn may_permit(&self, client: Option<IpAddr>, address: IpAddr) -> bool {
        let same_family = client.is_none_or(|client| client.to_canonical().is_ipv4() == address.is_ipv4());
        same_family
            && self.carriers.readings(address).all(|reading| has_host(reading) && !contains(&self.untouched, reading))
    }

    /// Is there a rule that opens this port of ingress addresses?
    pub(super) fn may_open(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// May an address be taken for an ingress? Never one that this network itself lives from.
    pub(super) fn may_deny(&self, address: IpAddr) -> bool {
        let lived_from = |reading| contains(&self.untouched, reading) || contains(&self.spared, reading);
        is_public(self.carriers.read(address)) && self.carriers.readings(address).all(|reading| !lived_from(reading))
    }
}

fn contains(networks: &JointPrefixSet<IpNet>, address: IpAddr) -> bool {
    networks.get_lpm(&IpNet::from(address)).is_some()
}

/// Can one other machine have it?
pub(super) fn has_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            first != 0 && first < 224 && !v4.is_loopback() && !v4.is_link_local()
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ground(gateway: bool) -> Ground {
        let networks = |list: &[&str]| list.iter().map(|network| network.parse().unwrap()).collect();
        Ground::new(&Terms {
            gateway,
            never: networks(&["9.9.9.9/32", "203.0.114.0/28", "2620:fe::fe/128"]),
            spared: networks(&["100.1.2.0/24", "2a00:1:2:3::/64"]),
            nat64: Carriers::new(["2a01:64::/96".parse().unwrap()]),
            allowed_ports: vec![80, 443],
            ..Terms::default()
        })
    }

    #[test]
    fn what_may_be_opened_and_what_may_be_denied() {
        #[rustfmt::skip]
        let table = [
            // address                  permit  deny
            ("93.184.216.34",           true,   true),
            ("2606:4700::1111",         true,   true),
            ("::ffff:93.184.216.34",    true,   true),
            ("64:ff9b::93.184.216.34",  true,   true),
            ("2a01:64::93.184.216.34",  true,   true),
            ("10.1.2.3",                true,   false),
            ("192.168.1.1",             true,   false),
            ("fd00::1",                 true,   false),
            ("64:ff9b::10.1.2.3",       true,   false),
            ("100.1.2.9",               true,   false),
            ("2a00:1:2:3::9",           true,   false),
            ("2a01:64::100.1.2.9",      true,   false),
            ("9.9.9.9",                 false,  false),
            ("::ffff:9.9.9.9",          false,  false),
            ("64:ff9b::9.9.9.9",        false,  false),
            ("2a01:64::9.9.9.9",        false,  false),
            ("2002:0909:0909::1",       false,  false),
            ("203.0.114.3",             false,  false),
            ("2620:fe::fe",             false,  false),
            ("127.0.0.53",              false,  false),
            ("::1",                     false,  false),
            ("64:ff9b::127.0.0.1",      false,  false),
            ("169.254.169.254",         false,  false),
            ("fe80::1",                 false,  false),
            ("224.0.0.251",             false,  false),
            ("255.255.255.255",         false,  false),
            ("ff02::fb",                false,  false),
            ("0.0.0.0",                 false,  false),
            ("::",                      false,  false),
        ];
        let ground = ground(false);
        for (address, permit, deny) in table {
            let parsed = address.parse().unwrap();
            assert_eq!((ground.may_permit(None, parsed), ground.may_deny(parsed)), (permit, deny), "{address}");
        }
    }

    #[test]
    fn a_client_is_named_behind_a_gateway_alone_and_gets_addresses_of_its_family() {
        let client = |text: &str| Some(text.parse().unwrap());
        assert!(ground(false).admits(None) && !ground(false).admits(client("10.0.0.5")));
        let gateway = ground(true);
        assert!(gateway.admits(client("10.0.0.5")) && !gateway.admits(None) && !gateway.admits(client("127.0.0.1")));
        assert!(gateway.may_permit(client("10.0.0.5"), "1.2.3.4".parse().unwrap()));
        assert!(!gateway.may_permit(client("10.0.0.5"), "2606:4700::1".parse().unwrap()));
    }

    #[test]
    fn the_port_of_the_gate_is_never_opened() {
        let ground = ground(false);
        assert_eq!([80, 443, 22].map(|port| ground.may_open(port)), [true, false, false]);
    }

    proptest! {
        #[test]
        fn what_may_be_denied_is_public_and_lived_from_by_nobody(address: IpAddr) {
            let ground = ground(false);
            if ground.may_deny(address) {
                let read = ground.carriers.read(address);
                prop_assert!(is_public(read) && ground.may_permit(None, read) && !contains(&ground.spared, read));
            }
        }
    }
}
