//! Our own addresses, and the networks our interfaces stand in.

use std::{io, net::IpAddr};

use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

/// What the interfaces that are up say at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Interfaces {
    /// Every address of this machine.
    pub addresses: Vec<IpAddr>,
    /// The networks these stand in. One that would take in everybody (a mask of length 0, as some tunnels have) is left out.
    pub networks: Vec<IpNet>,
    /// By interface: its name, an address, and the network that this stands in.
    pub standings: Vec<(String, IpAddr, Option<IpNet>)>,
}

impl Interfaces {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When it does not tell, as in a sandbox without netlink sockets.
    pub fn read() -> io::Result<Self> {
        let mut interfaces = Self::default();
        for interface in getifaddrs()? {
            let Some(address) = interface.address.as_ref().and_then(ip) else { continue };
            interfaces.addresses.push(address);
            let network = interface.netmask.as_ref().and_then(ip).and_then(|mask| network(address, mask));
            interfaces.networks.extend(network);
            interfaces.standings.push((interface.interface_name, address, network));
        }
        Ok(interfaces)
    }

    /// The networks of those interfaces alone that have one of `addresses`; of all where one is unspecified.
    pub fn networks_at(&self, addresses: &[IpAddr]) -> Vec<IpNet> {
        let is_meant = |name: &str| {
            addresses.iter().any(|address| address.is_unspecified())
                || self.standings.iter().any(|(at, address, _)| at == name && addresses.contains(address))
        };
        let standings = self.standings.iter().filter(|(name, ..)| is_meant(name));
        standings.filter_map(|(.., network)| *network).collect()
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
}

fn network(address: IpAddr, mask: IpAddr) -> Option<IpNet> {
    let network = IpNet::with_netmask(address, mask).ok()?.trunc();
    (network.prefix_len() > 0).then_some(network)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_loopback_interface_is_found() {
        let interfaces = Interfaces::read().unwrap();
        assert!(interfaces.addresses.contains(&IpAddr::from(Ipv4Addr::LOCALHOST)), "{interfaces:?}");
        assert!(interfaces.networks.contains(&"127.0.0.0/8".parse().unwrap()), "{interfaces:?}");
    }

    #[test]
    fn the_networks_of_an_interface_are_those_of_all_its_addresses_and_of_no_other() {
        let standing = |name: &str, text: &str| {
            let network: IpNet = text.parse().unwrap();
            (name.to_owned(), network.addr(), Some(network.trunc()))
        };
        let standings = vec![
            standing("lo", "127.0.0.1/8"),
            standing("lan", "10.1.0.1/24"),
            standing("lan", "2001:db8::1/64"),
            standing("wan", "203.0.113.9/28"),
        ];
        let interfaces = Interfaces { standings, ..Interfaces::default() };
        #[rustfmt::skip]
        let table: &[(&[&str], &[&str])] = &[
            (&[],                       &[]),
            (&["127.0.0.1"],            &["127.0.0.0/8"]),
            (&["127.0.0.1", "10.1.0.1"], &["127.0.0.0/8", "10.1.0.0/24", "2001:db8::/64"]),
            (&["192.0.2.1"],            &[]),
            (&["0.0.0.0"],              &["127.0.0.0/8", "10.1.0.0/24", "2001:db8::/64", "203.0.113.0/28"]),
        ];
        for (listening, expected) in table {
            let listening: Vec<IpAddr> = listening.iter().map(|text| text.parse().unwrap()).collect();
            let expected: Vec<IpNet> = expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(interfaces.networks_at(&listening), expected, "{listening:?}");
        }
    }

    #[test]
    fn a_network_is_made_of_address_and_mask() {
        #[rustfmt::skip]
        let table = [
            ("10.1.2.3",       "255.255.255.0", Some("10.1.2.0/24")),
            ("10.1.2.3",       "255.255.255.255", Some("10.1.2.3/32")),
            ("10.1.2.3",       "0.0.0.0",       None),
            ("10.1.2.3",       "255.0.255.0",   None),
            ("2001:db8::1:2",  "ffff:ffff:ffff:ffff::", Some("2001:db8::/64")),
            ("2001:db8::1:2",  "::",            None),
        ];
        for (address, mask, expected) in table {
            let found = network(address.parse().unwrap(), mask.parse().unwrap());
            assert_eq!(found, expected.map(|network| network.parse().unwrap()), "{address} {mask}");
        }
    }
}
