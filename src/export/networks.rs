//! Networks for systems that know no "most specific wins": disjoint ones, in every form in which an address is seen.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use crate::address::{self, Carriers, Family, six_to_four};

/// v4-mapped addresses: for others they are v4 ones, so no v6 network may hold them.
const MAPPED: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96));

/// The whole of a family would be read as the whole of both.
const SHORTEST: u8 = 1;

/// Every address for which `holds`, as disjoint networks in order; what holds changes only where one of the `networks`
/// begins or ends.
pub(super) fn where_it_holds(networks: &[IpNet], holds: impl Fn(IpAddr) -> bool) -> Vec<IpNet> {
    let bounds: Vec<IpNet> = networks.iter().copied().chain([MAPPED]).collect();
    let holds = |address: IpAddr| !MAPPED.contains(&address) && holds(address);
    let ranges = Family::BOTH.into_iter().flat_map(|family| address::where_it_holds(&bounds, family, holds));
    ranges.flat_map(|range| range.networks(SHORTEST)).collect()
}

/// Every address that one of the networks holds, in every form in which it is seen, as disjoint networks in order.
pub(super) fn in_every_form(networks: impl IntoIterator<Item = IpNet>, carriers: &Carriers) -> Vec<IpNet> {
    let mut all = carriers.with_translated(networks);
    let carrying = |network: &IpNet| match network {
        IpNet::V4(v4) => six_to_four(*v4).map(IpNet::V6),
        IpNet::V6(_) => None,
    };
    all.extend(all.iter().filter_map(carrying).collect::<Vec<_>>());
    let mut united = IpNet::aggregate(&all);
    united.sort_unstable_by_key(IpNet::network);
    let holds = |address: IpAddr| {
        let after = united.partition_point(|network| network.network() <= address);
        after.checked_sub(1).and_then(|last| united.get(last)).is_some_and(|network| network.contains(&address))
    };
    where_it_holds(&united, holds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::KNOWN_NAT64;

    fn nets(texts: &str) -> Vec<IpNet> {
        texts.split_whitespace().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_holds_for_some_addresses_becomes_disjoint_networks() {
        let inner = nets("10.0.0.0/8 10.64.0.0/10 10.64.1.0/24 2001:db8::/32");
        let by_length = |address: IpAddr, odd: bool| {
            let holding = inner.iter().filter(|network| network.contains(&address));
            holding
                .max_by_key(|network| network.prefix_len())
                .is_some_and(|network| (network.prefix_len() == 10) == odd)
        };
        assert_eq!(
            where_it_holds(&inner, |address| by_length(address, true)),
            [
                nets("10.64.0.0/24 10.64.2.0/23 10.64.4.0/22 10.64.8.0/21 10.64.16.0/20 10.64.32.0/19 10.64.64.0/18"),
                nets("10.64.128.0/17 10.65.0.0/16 10.66.0.0/15 10.68.0.0/14 10.72.0.0/13 10.80.0.0/12 10.96.0.0/11"),
            ]
            .concat()
        );
        let rest = where_it_holds(&inner, |address| by_length(address, false));
        assert_eq!(rest, nets("10.0.0.0/10 10.64.1.0/24 10.128.0.0/9 2001:db8::/32"));
        assert_eq!(where_it_holds(&[], |address| address.is_ipv4()), nets("0.0.0.0/1 128.0.0.0/1"));
    }

    #[test]
    fn no_network_of_v6_holds_a_mapped_address() {
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let all = where_it_holds(&[], |_| true);
        assert!(all.iter().all(|network| !network.contains(&mapped)) && all.len() > 90, "{all:?}");
        assert_eq!(in_every_form(nets("::/0"), &Carriers::default()), where_it_holds(&[], |address| address.is_ipv6()));
    }

    #[test]
    fn a_v4_network_is_there_as_nat64_and_6to4_show_it() {
        let carriers = Carriers::new(["2001:db8:122::/48".parse().unwrap()]);
        let expected = nets("192.0.2.0/24 64:ff9b::c000:200/120 2001:db8:122:c000:2::/80 2002:c000:200::/40");
        let found = in_every_form(nets("192.0.2.0/25 192.0.2.128/25 192.0.2.7/32"), &carriers);
        assert_eq!((&found[..4], found.len()), (&expected[..], 3 + KNOWN_NAT64.len()));
    }
}
