//! Which addresses are our own: asking ourselves would be a loop.

use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;

/// Where we listen, and what a wildcard among it stands for.
#[derive(Clone, Debug)]
pub(super) struct OwnAddresses {
    listen: Vec<SocketAddr>,
    interfaces: Vec<IpAddr>,
}

impl OwnAddresses {
    /// With the addresses that our interfaces have now; without them where the system does not tell.
    pub(super) fn new(listen: Vec<SocketAddr>) -> Self {
        let interfaces = getifaddrs().map(|found| found.filter_map(|entry| ip(&entry.address?)).collect());
        Self { listen, interfaces: interfaces.unwrap_or_default() }
    }

    /// The listen address that a question to `server` would come back to.
    pub(super) fn which(&self, server: SocketAddr) -> Option<SocketAddr> {
        let ip = server.ip().to_canonical();
        self.listen.iter().copied().find(|listen| {
            let own = listen.ip().to_canonical();
            let wildcard = own.is_unspecified() && own.is_ipv4() == ip.is_ipv4();
            listen.port() == server.port()
                && (own == ip || wildcard && (ip.is_loopback() || self.interfaces.contains(&ip)))
        })
    }
}

fn ip(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ourselves_by_address_and_port_or_through_a_wildcard() {
        let own = OwnAddresses {
            listen: ["127.0.0.1:5300", "0.0.0.0:53", "[fd00::7]:53"].map(|text| text.parse().unwrap()).into(),
            interfaces: ["10.0.0.7", "fd00::7", "fd00::8"].map(|text| text.parse().unwrap()).into(),
        };
        #[rustfmt::skip]
        let cases: &[(&str, Option<&str>)] = &[
            ("127.0.0.1:5300",        Some("127.0.0.1:5300")),
            ("127.0.0.2:5300",        None),
            ("10.0.0.7:53",           Some("0.0.0.0:53")),
            ("[::ffff:10.0.0.7]:53",  Some("0.0.0.0:53")),
            ("127.0.0.53:53",         Some("0.0.0.0:53")),
            ("10.0.0.7:5353",         None),
            ("10.0.0.8:53",           None),
            ("[fd00::7]:53",          Some("[fd00::7]:53")),
            ("[fd00::8]:53",          None),
        ];
        for (server, expected) in cases {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(own.which(server.parse().unwrap()), expected, "{server}");
        }
    }

    #[test]
    fn loopback_is_found_among_our_interfaces() {
        assert!(OwnAddresses::new(Vec::new()).interfaces.contains(&"127.0.0.1".parse().unwrap()));
    }
}
