//! Addresses for which something holds, as disjoint ranges: sets of the kernel have no "most specific wins".

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

use super::Family;

/// Addresses of one family, from one to another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// The first of them.
    pub first: IpAddr,
    /// The last of them, which is in it.
    pub last: IpAddr,
}

/// The addresses of a family for which `holds`, given that what holds only changes where a network begins or ends.
/// In order, and with a gap between any two.
pub fn where_it_holds(networks: &[IpNet], family: Family, holds: impl Fn(IpAddr) -> bool) -> Vec<Range> {
    let mut begins = vec![0];
    for network in networks.iter().filter(|network| Family::of(network.addr()) == family) {
        begins.push(number(network.network()));
        begins.extend(number(network.broadcast()).checked_add(1).filter(|&next| next <= last(family)));
    }
    begins.sort_unstable();
    begins.dedup();
    let ends = begins.iter().skip(1).map(|next| next - 1).chain([last(family)]);
    let mut ranges: Vec<Range> = Vec::new();
    for (first, end) in begins.iter().copied().zip(ends) {
        if !holds(address(first, family)) {
            continue;
        }
        match ranges.last_mut().filter(|range| number(range.last).checked_add(1) == Some(first)) {
            Some(range) => range.last = address(end, family),
            None => ranges.push(Range { first: address(first, family), last: address(end, family) }),
        }
    }
    ranges
}

/// The addresses of a family that some of the networks hold.
pub fn within(networks: &[IpNet], family: Family) -> Vec<Range> {
    let fitting = networks.iter().copied().filter(|network| Family::of(network.addr()) == family);
    let mut united = IpNet::aggregate(&fitting.collect());
    united.sort_unstable_by_key(IpNet::network);
    united.iter().map(|network| Range { first: network.network(), last: network.broadcast() }).collect()
}

impl fmt::Display for Range {
    /// As `nft` writes it: an address, a network, or both ends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network() {
            Some(network) if network.prefix_len() == network.max_prefix_len() => self.first.fmt(f),
            Some(network) => network.fmt(f),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl Range {
    /// The same as networks, none with a prefix shorter than this.
    pub fn networks(self, shortest: u8) -> impl Iterator<Item = IpNet> {
        let networks: Option<IpSubnets> = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Some(Ipv4Subnets::new(first, last, shortest).into()),
            (IpAddr::V6(first), IpAddr::V6(last)) => Some(Ipv6Subnets::new(first, last, shortest).into()),
            // None is of both families.
            _ => None,
        };
        networks.into_iter().flatten()
    }

    /// The same as one network, where it is one.
    fn network(self) -> Option<IpNet> {
        let mut networks = self.networks(0);
        networks.next().filter(|_| networks.next().is_none())
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// What [`number`] was made of.
fn address(number: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

fn last(family: Family) -> u128 {
    match family {
        Family::V4 => u128::from(u32::MAX),
        Family::V6 => u128::MAX,
    }
}

#[cfg(test)]
mod tests {
    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    fn shown(ranges: &[Range]) -> String {
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ranges_are_written_shortly_and_never_touch() {
        let networks =
            ["10.0.0.0/8", "10.20.0.0/16", "10.20.7.0/24", "2001:db8::/32"].map(|text| text.parse().unwrap());
        // The narrowest network with an even length wins over those with an odd one, say.
        let inner: IpNet = networks[1];
        let holds = |address: IpAddr| networks[0].contains(&address) && !inner.contains(&address);
        assert_eq!(
            shown(&where_it_holds(&networks, Family::V4, holds)),
            "10.0.0.0-10.19.255.255 10.21.0.0-10.255.255.255"
        );
        assert_eq!(shown(&where_it_holds(&networks, Family::V4, |_| true)), "0.0.0.0/0");
        assert_eq!(shown(&where_it_holds(&networks, Family::V6, |_| true)), "::/0");
        assert_eq!(
            shown(&where_it_holds(&networks, Family::V6, |address| networks[3].contains(&address))),
            "2001:db8::/32"
        );
        assert_eq!(shown(&where_it_holds(&[], Family::V4, |_| false)), "");
        let overlapping = ["192.0.2.0/25", "192.0.2.128/25", "192.0.2.7/32", "198.51.100.1/32", "::1/128"];
        let overlapping = overlapping.map(|text| text.parse().unwrap());
        assert_eq!(shown(&within(&overlapping, Family::V4)), "192.0.2.0/24 198.51.100.1");
        assert_eq!(shown(&within(&overlapping, Family::V6)), "::1");
    }

    fn network() -> impl Strategy<Value = IpNet> {
        // Of a small part of the address space, so that they overlap and touch.
        let v4 = (0_u32..64, 26_u8..=32).prop_map(|(low, length)| (Ipv4Addr::from(0x0a00_0000 | low), length));
        let v6 = (0_u128..64, 122_u8..=128).prop_map(|(low, length)| (Ipv6Addr::from(1 << 120 | low), length));
        prop_oneof![
            v4.prop_map(|(address, length)| IpNet::V4(Ipv4Net::new(address, length).unwrap().trunc())),
            v6.prop_map(|(address, length)| IpNet::V6(Ipv6Net::new(address, length).unwrap().trunc())),
            Just("0.0.0.0/0".parse().unwrap()),
            Just("::/0".parse().unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn an_address_is_in_a_range_exactly_where_its_most_specific_network_says_so(
            networks in prop::collection::vec((network(), any::<bool>()), 0..12),
            otherwise in any::<bool>(),
        ) {
            // The most specific wins; of two that are equal the first.
            let holds = |address: IpAddr| {
                let holding = networks.iter().rev().filter(|(network, _)| network.contains(&address));
                holding.max_by_key(|(network, _)| network.prefix_len()).map_or(otherwise, |(_, holds)| *holds)
            };
            let plain: Vec<IpNet> = networks.iter().map(|(network, _)| *network).collect();
            for family in Family::BOTH {
                let ranges = where_it_holds(&plain, family, holds);
                for pair in ranges.windows(2) {
                    prop_assert!(number(pair[0].last) + 1 < number(pair[1].first));
                }
                let base = match family { Family::V4 => 0x0a00_0000, Family::V6 => 1 << 120 };
                for number in (base - 2..base + 66).chain([0, last(family)]) {
                    let address = address(number, family);
                    let is_in = ranges.iter().any(|range| (range.first..=range.last).contains(&address));
                    prop_assert_eq!(is_in, holds(address), "{} in {:?}", address, ranges);
                }
            }
        }
    }
}
