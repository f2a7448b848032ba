//! Networks for systems that know no "most specific wins": disjoint ones, in every form in which an address is seen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

/// v4-mapped addresses: for others they are v4 ones, so no v6 network may hold them.
const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// 6to4 (RFC 3056 section 2).
const SIX_TO_FOUR: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16);

/// The octet that no address is put into (RFC 6052 section 2.2).
const PASSED_OVER: usize = 8;

/// The whole of a family would be read as the whole of both.
const SHORTEST: u8 = 1;

/// Every address for which `holds`, as disjoint networks in order; what holds changes only where one of the `networks`
/// begins or ends.
pub(super) fn where_it_holds(networks: &[IpNet], holds: impl Fn(IpAddr) -> bool) -> Vec<IpNet> {
    let (mut v4, mut v6) = (Vec::new(), vec![(MAPPED.network().to_bits(), MAPPED.broadcast().to_bits())]);
    for network in networks {
        match network {
            IpNet::V4(net) => v4.push((u128::from(net.network().to_bits()), u128::from(net.broadcast().to_bits()))),
            IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
        }
    }
    let v4 = spans(&v4, u128::from(u32::MAX), |number| holds(v4_address(number).into()));
    let v6 = spans(&v6, u128::MAX, |number| {
        let address = Ipv6Addr::from_bits(number);
        !MAPPED.contains(&address) && holds(address.into())
    });
    let v4 = v4.into_iter().flat_map(|(first, last)| Ipv4Subnets::new(v4_address(first), v4_address(last), SHORTEST));
    let v6 = v6.into_iter().map(|(first, last)| (Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last)));
    let v6 = v6.flat_map(|(first, last)| Ipv6Subnets::new(first, last, SHORTEST));
    v4.map(IpNet::V4).chain(v6.map(IpNet::V6)).collect()
}

/// Every address that one of the networks holds, in every form in which it is seen, as disjoint networks in order.
pub(super) fn in_every_form(networks: impl IntoIterator<Item = IpNet>, nat64: &[Ipv6Net]) -> Vec<IpNet> {
    let all = networks.into_iter().flat_map(|network| forms(network, nat64)).collect();
    let mut united = IpNet::aggregate(&all);
    united.sort_unstable_by_key(IpNet::network);
    let holds = |address: IpAddr| {
        let after = united.partition_point(|network| network.network() <= address);
        after.checked_sub(1).and_then(|last| united.get(last)).is_some_and(|network| network.contains(&address))
    };
    where_it_holds(&united, holds)
}

/// A network, and for a v4 one what it looks like behind NAT64 and 6to4.
fn forms(network: IpNet, nat64: &[Ipv6Net]) -> Vec<IpNet> {
    let mut forms = vec![network];
    if let IpNet::V4(v4) = network {
        let behind = nat64.iter().chain([&SIX_TO_FOUR]).filter_map(|&prefix| translated(v4, prefix));
        forms.extend(behind.map(IpNet::V6));
    }
    forms
}

/// A v4 network behind a prefix.
fn translated(network: Ipv4Net, prefix: Ipv6Net) -> Option<Ipv6Net> {
    let mut octets = prefix.trunc().addr().octets();
    let places = (usize::from(prefix.prefix_len() / 8)..octets.len()).filter(|&place| place != PASSED_OVER);
    for (place, octet) in places.zip(network.trunc().addr().octets()) {
        *octets.get_mut(place)? = octet;
    }
    let length = prefix.prefix_len() + network.prefix_len();
    let passes_over = prefix.prefix_len() <= 64 && length > 64;
    Ipv6Net::new(Ipv6Addr::from(octets), length + if passes_over { 8 } else { 0 }).ok()
}

/// The parts from 0 to `last` where it holds, given the parts between whose ends nothing changes.
fn spans(bounds: &[(u128, u128)], last: u128, holds: impl Fn(u128) -> bool) -> Vec<(u128, u128)> {
    let after = bounds.iter().filter_map(|&(_, end)| end.checked_add(1)).filter(|&next| next <= last);
    let mut begins: Vec<u128> = bounds.iter().map(|&(begin, _)| begin).chain(after).chain([0]).collect();
    begins.sort_unstable();
    begins.dedup();
    let ends = begins.iter().skip(1).map(|next| next - 1).chain([last]);
    let mut spans: Vec<(u128, u128)> = Vec::new();
    for (begin, end) in begins.iter().copied().zip(ends).filter(|&(begin, _)| holds(begin)) {
        match spans.last_mut().filter(|before| before.1.checked_add(1) == Some(begin)) {
            Some(before) => before.1 = end,
            None => spans.push((begin, end)),
        }
    }
    spans
}

fn v4_address(number: u128) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(in_every_form(nets("::/0"), &[]), where_it_holds(&[], |address| address.is_ipv6()));
    }

    #[test]
    fn a_v4_network_is_there_as_nat64_and_6to4_show_it() {
        let prefixes: Vec<Ipv6Net> = ["64:ff9b::/96", "2001:db8:122::/48"].map(|text| text.parse().unwrap()).to_vec();
        let expected = nets("192.0.2.0/24 64:ff9b::c000:200/120 2001:db8:122:c000:2::/80 2002:c000:200::/40");
        assert_eq!(in_every_form(nets("192.0.2.0/25 192.0.2.128/25 192.0.2.7/32"), &prefixes), expected);
    }
}
