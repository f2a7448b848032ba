//! IPv4 addresses as IPv6 carries them: behind NAT64 prefixes (RFC 6052), in 6to4 (RFC 3056), mapped (RFC 4291 section
//! 2.5.5.2).

use std::{
    cmp::Reverse,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Prefixes behind which IPv4 is everywhere: the well-known one (RFC 6052 section 2.1), and those of a public service that
/// anybody may use (https://v6tools.kasperd.dk/nat64handoff/service, read 2026-11-29).
pub const KNOWN_NAT64: [Ipv6Net; 5] = [
    prefix([0x64, 0xff9b, 0, 0, 0]),
    prefix([0x2a00, 0x1098, 0x2b, 0, 0]),
    prefix([0x2a00, 0x1098, 0x2c, 1, 0]),
    prefix([0x2a01, 0x4f8, 0xc2c, 0x123f, 0x64]),
    prefix([0x2a01, 0x4f9, 0xc010, 0x3f02, 0x64]),
];

/// Lengths that a NAT64 prefix may have (RFC 6052 section 2.2).
pub const NAT64_LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

/// 6to4 (RFC 3056 section 2).
const SIX_TO_FOUR: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16);

/// The octet that no address is put into (RFC 6052 section 2.2).
const PASSED_OVER: usize = 8;

const fn prefix([a, b, c, d, e]: [u16; 5]) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, 0, 0, 0), 96)
}

/// The NAT64 prefixes of a network's translators, the known ones among them, longest first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Carriers(Vec<Ipv6Net>);

impl Default for Carriers {
    fn default() -> Self {
        Self::new([])
    }
}

impl Carriers {
    /// The known prefixes and more. One whose length NAT64 does not have carries nothing.
    pub fn new(more: impl IntoIterator<Item = Ipv6Net>) -> Self {
        let all = more.into_iter().chain(KNOWN_NAT64).map(|prefix| prefix.trunc());
        let mut prefixes: Vec<_> = all.filter(|prefix| NAT64_LENGTHS.contains(&prefix.prefix_len())).collect();
        prefixes.sort_unstable_by_key(|prefix| (Reverse(prefix.prefix_len()), *prefix));
        prefixes.dedup();
        Self(prefixes)
    }

    /// All of them.
    pub fn prefixes(&self) -> &[Ipv6Net] {
        &self.0
    }

    /// What an address is compared as: the IPv4 address that it carries, then itself.
    pub fn readings(&self, address: IpAddr) -> impl Iterator<Item = IpAddr> + use<> {
        let canonical = address.to_canonical();
        let carried = match canonical {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => self.carried(v6),
        };
        [carried.map(IpAddr::V4), Some(canonical)].into_iter().flatten()
    }

    /// The first of them: the IPv4 address that an address is or carries, or itself.
    pub fn read(&self, address: IpAddr) -> IpAddr {
        self.readings(address).next().unwrap_or(address)
    }

    /// Every form in which an IPv4 address is seen from before a translator.
    pub fn forms(&self, address: Ipv4Addr) -> impl Iterator<Item = Ipv6Addr> {
        self.0.iter().filter_map(move |&prefix| Some(translated(address.into(), prefix)?.addr()))
    }

    /// Networks, and what the IPv4 ones among them are behind each prefix.
    pub fn with_translated(&self, networks: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
        let forms = |network: IpNet| {
            let v4 = match network {
                IpNet::V4(v4) => Some(v4),
                IpNet::V6(_) => None,
            };
            let behind = move |v4| self.0.iter().filter_map(move |&prefix| translated(v4, prefix)).map(IpNet::V6);
            std::iter::once(network).chain(v4.into_iter().flat_map(behind))
        };
        networks.into_iter().flat_map(forms).collect()
    }

    fn carried(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let prefix = self.0.iter().chain([&SIX_TO_FOUR]).find(|prefix| prefix.contains(&address))?;
        let octets = address.octets();
        let mut carried = places(*prefix).filter_map(|place| octets.get(place).copied());
        Some(Ipv4Addr::new(carried.next()?, carried.next()?, carried.next()?, carried.next()?))
    }
}

/// An IPv4 network behind a NAT64 prefix; `None` for a prefix of a length that NAT64 does not have.
pub fn translated(network: Ipv4Net, prefix: Ipv6Net) -> Option<Ipv6Net> {
    NAT64_LENGTHS.contains(&prefix.prefix_len()).then(|| embedded(network, prefix)).flatten()
}

/// The 6to4 network of an IPv4 one.
pub fn six_to_four(network: Ipv4Net) -> Option<Ipv6Net> {
    embedded(network, SIX_TO_FOUR)
}

/// Which bits of an address behind this prefix a translator looks at; `None` where it looks at all of them.
pub fn regarded_bits(prefix: Ipv6Net) -> Option<Ipv6Addr> {
    let ones = Ipv6Net::new(Ipv6Addr::from_bits(u128::MAX), prefix.prefix_len()).ok()?;
    let mask = translated(Ipv4Addr::BROADCAST.into(), ones)?.addr();
    (mask.to_bits() != u128::MAX).then_some(mask)
}

fn embedded(network: Ipv4Net, prefix: Ipv6Net) -> Option<Ipv6Net> {
    let mut octets = prefix.network().octets();
    for (place, octet) in places(prefix).zip(network.network().octets()) {
        *octets.get_mut(place)? = octet;
    }
    // The octet between counts as soon as bits behind it do.
    let behind = prefix.prefix_len() + network.prefix_len();
    let is_passed = prefix.prefix_len() <= 64 && behind > 64;
    Ipv6Net::new(octets.into(), behind + if is_passed { 8 } else { 0 }).ok()
}

/// Where the octets of a carried address are.
fn places(prefix: Ipv6Net) -> impl Iterator<Item = usize> {
    (usize::from(prefix.prefix_len() / 8)..16).filter(|&place| place != PASSED_OVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_translated_as_rfc_6052_says_and_its_address_read_back() {
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
            let (network, prefix): (Ipv4Net, Ipv6Net) = (network.parse().unwrap(), prefix.parse().unwrap());
            let found = translated(network, prefix);
            assert_eq!(found, expected.map(|text| text.parse().unwrap()), "{network} behind {prefix}");
            let carriers = Carriers::new([prefix]);
            let read = found.map(|found| carriers.readings(found.addr().into()).collect::<Vec<_>>());
            let expected = found.map(|found| vec![network.addr().into(), found.addr().into()]);
            assert_eq!(read, expected, "{network} behind {prefix}");
            let forms: Vec<_> = carriers.forms(network.addr()).collect();
            assert_eq!(forms.len(), carriers.prefixes().len());
            assert!(found.is_none_or(|found| network.prefix_len() < 32 || forms.contains(&found.addr())), "{forms:?}");
        }
    }

    #[test]
    fn an_address_is_read_as_the_v4_address_it_carries() {
        let carriers =
            Carriers::new(["2001:db8::/32", "2001:db8::/33", "64:ff9b::/96"].map(|text| text.parse().unwrap()));
        assert_eq!(carriers.prefixes().len(), KNOWN_NAT64.len() + 1);
        for (address, carried) in [
            ("64:ff9b::192.0.2.33", true),
            ("2a00:1098:2c:1::192.0.2.33", true),
            ("2a01:4f9:c010:3f02:64::c000:221", true),
            ("2a01:4f9:c010:3f02:65::c000:221", false),
            ("2001:db8:c000:221::7", true),
            ("2002:c000:221::1", true),
            ("::ffff:192.0.2.33", true),
            ("192.0.2.33", true),
            ("64:ff9b:1::c000:221", false),
            ("2003:c000:221::1", false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            let expected = if carried { IpAddr::from([192, 0, 2, 33]) } else { address };
            assert_eq!(carriers.read(address), expected, "{address}");
        }
    }

    #[test]
    fn the_longest_prefix_decides_how_an_address_is_read() {
        let carriers = Carriers::new(["2001:db8::/32", "2001:db8:64::/96"].map(|text| text.parse().unwrap()));
        assert_eq!(carriers.read("2001:db8:64::192.0.2.33".parse().unwrap()), IpAddr::from([192, 0, 2, 33]));
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
}
