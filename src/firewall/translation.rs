//! What IPv4 looks like from behind NAT64 (RFC 6052 section 2.2).

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The octet that no address is put into.
const PASSED_OVER: usize = 8;

/// An IPv4 network behind a NAT64 prefix; `None` for a prefix of a length that NAT64 does not have.
pub fn translated(network: Ipv4Net, prefix: Ipv6Net) -> Option<Ipv6Net> {
    let carried = usize::from(prefix.prefix_len() / 8);
    if ![32, 40, 48, 56, 64, 96].contains(&prefix.prefix_len()) {
        return None;
    }
    let mut octets = prefix.trunc().addr().octets();
    let places = (carried..octets.len()).filter(|&place| place != PASSED_OVER);
    for (place, octet) in places.zip(network.trunc().addr().octets()) {
        *octets.get_mut(place)? = octet;
    }
    // The octet between counts as soon as bits behind it do.
    let behind = prefix.prefix_len() + network.prefix_len();
    let is_passed = prefix.prefix_len() <= 64 && behind > 64;
    Ipv6Net::new(Ipv6Addr::from(octets), behind + if is_passed { 8 } else { 0 }).ok()
}

/// Which bits of an address behind this prefix a translator looks at; `None` where it looks at all of them.
pub(super) fn regarded_bits(prefix: Ipv6Net) -> Option<Ipv6Addr> {
    let ones = Ipv6Net::new(Ipv6Addr::from_bits(u128::MAX), prefix.prefix_len()).ok()?;
    let mask = translated(Ipv4Net::new(Ipv4Addr::BROADCAST, 32).ok()?, ones)?.addr();
    (mask.to_bits() != u128::MAX).then_some(mask)
}

/// Every form in which these networks are seen: themselves, and what they are behind each prefix.
pub(super) fn with_translated(networks: impl IntoIterator<Item = IpNet>, prefixes: &[Ipv6Net]) -> Vec<IpNet> {
    let forms = |network: IpNet| {
        let v4 = match network {
            IpNet::V4(v4) => Some(v4),
            IpNet::V6(_) => None,
        };
        let behind = move |v4| prefixes.iter().filter_map(move |&prefix| translated(v4, prefix)).map(IpNet::V6);
        std::iter::once(network).chain(v4.into_iter().flat_map(behind))
    };
    networks.into_iter().flat_map(forms).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_translated_as_rfc_6052_says() {
        // The rows with 192.0.2.33/32 are the table of RFC 6052 section 2.4.
        #[rustfmt::skip]
        let cases = [
            ("192.0.2.33/32", "2001:db8::/32",         Some("2001:db8:c000:221::/64")),
            ("192.0.2.33/32", "2001:db8:100::/40",     Some("2001:db8:1c0:2:21::/80")),
            ("192.0.2.33/32", "2001:db8:122::/48",     Some("2001:db8:122:c000:2:2100::/88")),
            ("192.0.2.33/32", "2001:db8:122:300::/56", Some("2001:db8:122:3c0:0:221::/96")),
            ("192.0.2.33/32", "2001:db8:122:344::/64", Some("2001:db8:122:344:c0:2:2100::/104")),
            ("192.0.2.33/32", "2001:db8:122:344::/96", Some("2001:db8:122:344::192.0.2.33/128")),
            ("192.0.0.0/16",  "2001:db8:100::/40",     Some("2001:db8:1c0::/56")),
            ("192.0.2.0/24",  "2001:db8:100::/40",     Some("2001:db8:1c0:2::/64")),
            ("192.0.2.0/24",  "64:ff9b::/96",          Some("64:ff9b::192.0.2.0/120")),
            ("0.0.0.0/0",     "64:ff9b::/96",          Some("64:ff9b::/96")),
            ("0.0.0.0/0",     "2001:db8:122:344::/64", Some("2001:db8:122:344::/64")),
            ("192.0.2.0/24",  "2001:db8::/33",         None),
        ];
        for (network, prefix, expected) in cases {
            let found = translated(network.parse().unwrap(), prefix.parse().unwrap());
            assert_eq!(found, expected.map(|text| text.parse().unwrap()), "{network} behind {prefix}");
        }
    }

    #[test]
    fn the_bits_around_the_carried_address_are_not_regarded() {
        #[rustfmt::skip]
        let cases = [
            ("2001:db8::/32",         Some("ffff:ffff:ffff:ffff::")),
            ("2001:db8:122::/48",     Some("ffff:ffff:ffff:ffff:ff:ff00::")),
            ("2001:db8:122:344::/64", Some("ffff:ffff:ffff:ffff:ff:ffff:ff00:0")),
            ("64:ff9b::/96",          None),
        ];
        for (prefix, expected) in cases {
            let found = regarded_bits(prefix.parse().unwrap());
            assert_eq!(found, expected.map(|text| text.parse().unwrap()), "{prefix}");
        }
    }

    #[test]
    fn what_was_translated_is_read_back_by_the_policy() {
        use crate::{
            policy::{compile, plan::Plan},
            problem::{Located, Place, SourceFile},
        };
        let source = SourceFile { path: "x".into(), text: "x = 1\n".into() };
        let place = Place::new(std::sync::Arc::new(source), 0..1);
        for length in [32, 40, 48, 56, 64, 96] {
            let prefix = Ipv6Net::new("2001:db8:1:2::".parse().unwrap(), length).unwrap().trunc();
            let nat64 = vec![Located { value: prefix, place: place.clone() }];
            let (policy, _) = compile(&Plan { nat64, ..Plan::default() }, jiff::Timestamp::UNIX_EPOCH);
            let address = translated("3.133.228.214/32".parse().unwrap(), prefix).unwrap().addr();
            let read = policy.unwrap().readings(address.into()).next();
            assert_eq!(read, Some("3.133.228.214".parse().unwrap()), "{prefix}");
        }
    }
}
