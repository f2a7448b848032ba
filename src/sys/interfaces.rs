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
        }
        Ok(interfaces)
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
