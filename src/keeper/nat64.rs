//! IPv4 addresses as IPv6 carries them: translated (RFC 6052), mapped (RFC 4291 section 2.5.5.2), 6to4 (RFC 3056).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

/// 64:ff9b::/96 (RFC 6052 section 2.1).
const WELL_KNOWN: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// The prefixes of a network's translators, the well-known one among them.
#[derive(Clone, Debug)]
pub(super) struct Translators(Vec<Ipv6Net>);

impl Translators {
    /// Those beside the well-known one; what has a length that RFC 6052 does not know is left out.
    pub(super) fn new(more: &[Ipv6Net]) -> Self {
        let known = Ipv6Net::new_assert(WELL_KNOWN, 96);
        let mut prefixes = vec![known];
        prefixes.extend(more.iter().filter(|prefix| bytes(prefix.prefix_len()).is_some() && **prefix != known));
        Self(prefixes)
    }

    /// Every form in which a translator's client sees an IPv4 address.
    pub(super) fn forms(&self, address: Ipv4Addr) -> impl Iterator<Item = Ipv6Addr> {
        self.0.iter().filter_map(move |prefix| embed(*prefix, address))
    }

    /// The IPv4 address that an address is or carries; itself, where it carries none.
    pub(super) fn read(&self, address: IpAddr) -> IpAddr {
        match address.to_canonical() {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => self.carried(v6).map_or(v6.into(), IpAddr::from),
        }
    }

    fn carried(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let prefix = self.0.iter().find(|prefix| prefix.contains(&address));
        prefix.and_then(|prefix| extract(prefix.prefix_len(), address)).or_else(|| six_to_four(address))
    }
}

/// Where the four bytes go for each length of prefix; byte 8 is passed over (RFC 6052 section 2.2).
fn bytes(length: u8) -> Option<[usize; 4]> {
    Some(match length {
        32 => [4, 5, 6, 7],
        40 => [5, 6, 7, 9],
        48 => [6, 7, 9, 10],
        56 => [7, 9, 10, 11],
        64 => [9, 10, 11, 12],
        96 => [12, 13, 14, 15],
        _ => return None,
    })
}

fn embed(prefix: Ipv6Net, address: Ipv4Addr) -> Option<Ipv6Addr> {
    let mut octets = prefix.network().octets();
    for (place, byte) in bytes(prefix.prefix_len())?.into_iter().zip(address.octets()) {
        *octets.get_mut(place)? = byte;
    }
    Some(octets.into())
}

fn extract(length: u8, address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let [a, b, c, d] = bytes(length)?.map(|place| octets.get(place).copied().unwrap_or_default());
    Some(Ipv4Addr::new(a, b, c, d))
}

fn six_to_four(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x2002, high, low, ..] = address.segments() else { return None };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_forms_of_the_standard_and_is_read_from_them() {
        // RFC 6052 section 2.4.
        #[rustfmt::skip]
        let table = [
            ("2001:db8::/32",               "2001:db8:c000:221::"),
            ("2001:db8:100::/40",           "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48",           "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56",       "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64",       "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96",       "2001:db8:122:344::192.0.2.33"),
        ];
        let address = Ipv4Addr::new(192, 0, 2, 33);
        for (prefix, expected) in table {
            let translators = Translators::new(&[prefix.parse().unwrap()]);
            let expected: Ipv6Addr = expected.parse().unwrap();
            let forms: Vec<_> = translators.forms(address).collect();
            assert_eq!(forms, ["64:ff9b::192.0.2.33".parse().unwrap(), expected]);
            assert!(forms.iter().all(|form| translators.read((*form).into()) == IpAddr::from(address)), "{prefix}");
        }
    }

    #[test]
    fn what_carries_none_is_read_as_itself() {
        let translators = Translators::new(&["2001:db8::/33".parse().unwrap()]);
        for (address, expected) in [
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2002:c000:0201::1", "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(translators.read(address.parse().unwrap()), expected.parse::<IpAddr>().unwrap());
        }
    }
}
