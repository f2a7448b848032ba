//! Addresses of answers: networks that count as an ingress, and the IPv4 address that an IPv6 one carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use prefix_trie::joint::JointPrefixMap;

use super::{rule::Origin, verdict::RuleId};

/// Lengths that a NAT64 prefix may have (RFC 6052 section 2.2).
pub(super) const NAT64_LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

/// Prefixes behind which IPv4 is everywhere: the well-known one (RFC 6052 section 2.1), and those of a public service that
/// anybody may use (https://v6tools.kasperd.dk/nat64handoff/service, read 2026-11-29).
pub const KNOWN_NAT64: [Ipv6Net; 5] = [
    prefix([0x64, 0xff9b, 0, 0, 0]),
    prefix([0x2a00, 0x1098, 0x2b, 0, 0]),
    prefix([0x2a00, 0x1098, 0x2c, 1, 0]),
    prefix([0x2a01, 0x4f8, 0xc2c, 0x123f, 0x64]),
    prefix([0x2a01, 0x4f9, 0xc010, 0x3f02, 0x64]),
];

const fn prefix([a, b, c, d, e]: [u16; 5]) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, 0, 0, 0), 96)
}

/// Networks, each with the rules that name it, and how addresses are decoded before they are compared.
#[derive(Debug)]
pub(super) struct Networks {
    by_prefix: JointPrefixMap<IpNet, u32>,
    pub(super) networks: Vec<Network>,
    /// Longest first.
    pub(super) nat64: Vec<Ipv6Net>,
}

/// One network.
#[derive(Debug)]
pub(super) struct Network {
    /// Itself, in canonical form.
    pub(super) network: IpNet,
    /// Which rules name it, and where.
    pub(super) rules: Vec<(RuleId, Origin)>,
    /// The next wider network that holds it.
    wider: Option<u32>,
}

impl Networks {
    /// No network; `nat64` beside the known prefixes.
    pub(super) fn new(nat64: impl IntoIterator<Item = Ipv6Net>) -> Self {
        let mut nat64: Vec<_> = nat64.into_iter().map(|prefix| prefix.trunc()).chain(KNOWN_NAT64).collect();
        nat64.sort_by_key(|prefix| std::cmp::Reverse(prefix.prefix_len()));
        Self { by_prefix: JointPrefixMap::new(), networks: Vec::new(), nat64 }
    }

    /// Adds a network in canonical form; [`link`](Self::link) must follow the last.
    pub(super) fn insert(&mut self, network: IpNet, rule: RuleId, origin: Origin) {
        let next = u32::try_from(self.networks.len()).unwrap_or(u32::MAX);
        let place = *self.by_prefix.entry(network).or_insert(next);
        if place == next {
            self.networks.push(Network { network, rules: Vec::new(), wider: None });
        }
        if let Some(network) = self.networks.get_mut(place as usize) {
            network.rules.push((rule, origin));
        }
    }

    /// Lets each network know the wider one that holds it, so that judging walks up without allocating.
    pub(super) fn link(&mut self) {
        for network in &mut self.networks {
            let wider = network.network.supernet().and_then(|above| self.by_prefix.get_lpm(&above));
            network.wider = wider.map(|(_, &place)| place);
        }
    }

    /// Every network.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Network> {
        self.networks.iter()
    }

    /// The networks that hold an address or the one it carries, the decoded address and the narrowest first.
    pub(super) fn holding(&self, address: IpAddr) -> impl Iterator<Item = &Network> {
        self.readings(address).into_iter().flatten().flat_map(|address| {
            let first = self.by_prefix.get_lpm(&IpNet::from(address)).map(|(_, &place)| place);
            let at = |place: Option<u32>| place.and_then(|place| self.networks.get(place as usize));
            std::iter::successors(at(first), move |network| at(network.wider))
        })
    }

    /// What an address is compared as: the IPv4 address it carries, then itself.
    pub(super) fn readings(&self, address: IpAddr) -> [Option<IpAddr>; 2] {
        let canonical = address.to_canonical();
        let IpAddr::V6(v6) = canonical else { return [Some(canonical), None] };
        let translated = self.nat64.iter().find(|prefix| prefix.contains(&v6));
        let carried = translated.and_then(|prefix| embedded(v6, prefix.prefix_len())).or_else(|| six_to_four(v6));
        [carried.map(IpAddr::V4), Some(canonical)]
    }
}

/// The IPv4 address after a NAT64 prefix; bits 64 to 71 are passed over (RFC 6052 section 2.2).
fn embedded(address: Ipv6Addr, length: u8) -> Option<Ipv4Addr> {
    if !NAT64_LENGTHS.contains(&length) {
        return None;
    }
    let octets = address.octets();
    let mut carried = octets.iter().enumerate().skip(usize::from(length / 8));
    let mut next = || carried.by_ref().find(|&(place, _)| place != 8).map(|(_, &octet)| octet);
    Some(Ipv4Addr::new(next()?, next()?, next()?, next()?))
}

/// The IPv4 address of a 6to4 network (RFC 3056 section 2).
fn six_to_four(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [prefix, high, low, ..] = address.segments();
    (prefix == 0x2002).then(|| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_the_v4_address_it_carries() {
        // The rows with 192.0.2.33 are the table of RFC 6052 section 2.4.
        #[rustfmt::skip]
        let cases: &[(&str, &str, Option<&str>)] = &[
            ("2001:db8::/32",         "2001:db8:c000:221::",           Some("192.0.2.33")),
            ("2001:db8:100::/40",     "2001:db8:1c0:2:21::",           Some("192.0.2.33")),
            ("2001:db8:122::/48",     "2001:db8:122:c000:2:2100::",    Some("192.0.2.33")),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::",      Some("192.0.2.33")),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::",  Some("192.0.2.33")),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33",  Some("192.0.2.33")),
            ("2001:db8::/32",         "64:ff9b::192.0.2.33",           Some("192.0.2.33")),
            ("2001:db8::/32",         "2a00:1098:2c:1::192.0.2.33",    Some("192.0.2.33")),
            ("2001:db8::/32",         "2a01:4f9:c010:3f02:64::c000:221", Some("192.0.2.33")),
            ("2001:db8::/32",         "2a01:4f9:c010:3f02:65::c000:221", None),
            ("2001:db8::/32",         "2002:c000:221::1",              Some("192.0.2.33")),
            ("2001:db8::/32",         "::ffff:192.0.2.33",             Some("192.0.2.33")),
            ("2001:db8::/32",         "64:ff9b:1::c000:221",           None),
            ("2001:db8::/32",         "2003:c000:221::1",              None),
            ("2001:db8::/32",         "192.0.2.33",                    Some("192.0.2.33")),
        ];
        for (prefix, address, expected) in cases {
            let networks = Networks::new([prefix.parse().unwrap()]);
            let read = networks.readings(address.parse().unwrap()).into_iter().flatten().find(IpAddr::is_ipv4);
            assert_eq!(read, expected.map(|text| text.parse().unwrap()), "{address} with {prefix}");
        }
    }

    #[test]
    fn nested_networks_are_met_from_the_narrowest_outwards() {
        let mut networks = Networks::new([]);
        for (rule, text) in (0..).zip(["198.51.0.0/16", "198.51.100.7/32", "198.51.100.0/24", "0.0.0.0/0"]) {
            let origin = Origin::Line { path: "x".into(), line: 1 };
            networks.insert(text.parse().unwrap(), RuleId(rule), origin);
        }
        networks.link();
        let met = |text: &str| -> Vec<u32> {
            networks
                .holding(text.parse().unwrap())
                .flat_map(|network| network.rules.iter().map(|(rule, _)| rule.0))
                .collect()
        };
        assert_eq!(met("198.51.100.7"), [1, 2, 0, 3]);
        assert_eq!(met("64:ff9b::198.51.100.8"), [2, 0, 3]);
        assert_eq!(met("192.0.2.1"), [3]);
        assert_eq!(met("2001:db8::1"), [] as [u32; 0]);
    }
}
