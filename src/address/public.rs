//! What is an address of the public Internet, by the registries of special ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Is it global unicast, and of one host? What carries an IPv4 address is not one that anybody has.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !SPECIAL_V4.iter().any(|block| block.contains(&v4)),
        IpAddr::V6(v6) => GLOBAL_V6.contains(&v6) && !SPECIAL_V6.iter().any(|block| block.contains(&v6)),
    }
}

/// Blocks that the IANA registry of special IPv4 addresses does not call globally reachable, or that no host has
/// (RFC 6890), with multicast (RFC 5771).
const SPECIAL_V4: [Ipv4Net; 16] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 31, 196, 0], 24),
    v4([192, 52, 193, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    // Multicast, reserved and broadcast.
    v4([224, 0, 0, 0], 3),
];

/// The one block of global unicast addresses that is in use (RFC 4291 section 2.4).
const GLOBAL_V6: Ipv6Net = v6([0x2000, 0], 3);

/// What lies in it and is no host's: protocol assignments with Teredo and ORCHID, documentation, 6to4, documentation
/// again (RFC 9637).
const SPECIAL_V6: [Ipv6Net; 4] =
    [v6([0x2001, 0], 23), v6([0x2001, 0xdb8], 32), v6([0x2002, 0], 16), v6([0x3fff, 0], 20)];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6([first, second]: [u16; 2], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_one_host_of_the_internet_is_told_from_all_else() {
        let all = |texts: &str, expected: bool| {
            for text in texts.split_whitespace() {
                assert_eq!(is_public(text.parse().unwrap()), expected, "{text}");
            }
        };
        all("1.1.1.1 100.128.0.1 172.32.0.1 192.0.1.1 198.20.0.1 223.255.255.255", true);
        all("2a05:d014:21b::6e74 2001:200::1 2606:4700::1111 3ffe::1", true);
        all("0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 169.254.169.254 172.31.255.255 192.0.0.170 192.0.2.1", false);
        all("192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.1 198.19.0.1 198.51.100.1 203.0.113.9", false);
        all("224.0.0.251 240.0.0.1 255.255.255.255", false);
        all(":: ::1 ::3.133.228.214 100::1 2001::1 2001:db8::1 2002:385:e4d6::1 3fff::1 4000::1", false);
        all("::ffff:3.133.228.214 64:ff9b::3.133.228.214 fd00::1 fe80::1 fec0::1 ff02::fb", false);
    }
}
