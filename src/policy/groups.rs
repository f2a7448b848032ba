//! Which group a client belongs to: the most specific network wins.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use prefix_trie::joint::JointPrefixMap;

/// A client group of one policy; the default is the group of clients that no network holds.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GroupId(pub(super) u32);

/// Networks and their groups.
#[derive(Debug)]
pub(super) struct Groups(JointPrefixMap<IpNet, GroupId>);

impl GroupId {
    /// The group of clients that no network holds.
    pub const DEFAULT: Self = Self(0);
}

impl Groups {
    /// No network yet: everybody is in the default group.
    pub(super) fn new() -> Self {
        Self(JointPrefixMap::new())
    }

    /// Gives a network, in canonical form, to a group. `Some`: it was that group's before.
    pub(super) fn insert(&mut self, network: IpNet, group: GroupId) -> Option<GroupId> {
        self.0.insert(network, group)
    }

    /// Every network that was given to a group.
    pub(super) fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.0.keys()
    }

    /// The group of a client.
    pub(super) fn of(&self, client: IpAddr) -> GroupId {
        self.0.get_lpm(&IpNet::from(client.to_canonical())).map_or(GroupId::DEFAULT, |(_, &group)| group)
    }
}

/// A network as clients are compared with it: one of v4-mapped addresses is one of v4.
pub(super) fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network.trunc() };
    let Some(v4) = v6.addr().to_ipv4_mapped() else { return network.trunc() };
    let length = v6.prefix_len().checked_sub(96).and_then(|length| Ipv4Net::new(v4, length).ok());
    length.map_or(network.trunc(), |v4| IpNet::V4(v4.trunc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_network_decides_and_v4_mapped_is_v4() {
        let mut groups = Groups::new();
        let networks = ["10.0.0.0/8", "10.20.0.0/16", "::ffff:10.20.7.0/120", "2001:db8:20::/48", "10.20.7.9/32"];
        for (group, network) in (1..).zip(networks) {
            assert_eq!(groups.insert(canonical(network.parse().unwrap()), GroupId(group)), None);
        }
        #[rustfmt::skip]
        let cases = [
            ("10.1.1.1",          1),
            ("10.20.1.1",         2),
            ("10.20.7.1",         3),
            ("::ffff:10.20.7.1",  3),
            ("10.20.7.9",         5),
            ("2001:db8:20:5::1",  4),
            ("2001:db8:21::1",    0),
            ("192.0.2.1",         0),
            ("::1",               0),
        ];
        for (client, group) in cases {
            assert_eq!(groups.of(client.parse().unwrap()), GroupId(group), "{client}");
        }
        assert_eq!(canonical("::/0".parse().unwrap()), "::/0".parse().unwrap());
    }
}
