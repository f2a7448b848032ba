//! Who is on the internet of the bed, and where: on global addresses, because no other is ever learned as an ingress.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// A host of the internet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Host {
    /// The resolver that the forwarder asks.
    Upstream,
    /// One that anybody may ask: over UDP, TCP, TLS and HTTPS, at Google's addresses.
    PublicResolver,
    /// An ingress that serves strangers only.
    Foreign,
    /// One that serves strangers and the own account.
    Shared,
    /// One that serves the own account only.
    Own,
    /// An ordinary site.
    Web,
    /// An address that no name has.
    Unnamed,
    /// A time server.
    Clock,
    /// Sites without number, each at an address of its own in [`CROWD`].
    Crowd,
}

/// Where the crowd is; all of it answers at [`CROWD_PORT`].
pub const CROWD: [&str; 2] = ["3.78.0.0/16", "2602:78::/32"];
pub const CROWD_PORT: u16 = 8080;

/// Of addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    V4,
    V6,
}

use self::Host::{Clock, Crowd, Foreign, Own, PublicResolver, Shared, Unnamed, Upstream, Web};

impl Host {
    pub const ALL: [Self; 9] = [Upstream, PublicResolver, Foreign, Shared, Own, Web, Unnamed, Clock, Crowd];

    /// What it calls itself to who reaches it.
    pub fn name(self) -> &'static str {
        match self {
            Upstream => "upstream",
            PublicResolver => "publicresolver",
            Foreign => "foreign",
            Shared => "shared",
            Own => "own",
            Web => "web",
            Unnamed => "unnamed",
            Clock => "clock",
            Crowd => "crowd",
        }
    }

    /// Who says this.
    pub fn greeting(text: &str) -> Option<Self> {
        let mut words = text.split(|character: char| !character.is_ascii_alphabetic());
        words.find_map(|word| Self::ALL.into_iter().find(|host| host.name() == word))
    }

    /// Whose address this is.
    pub fn of(address: IpAddr) -> Option<Self> {
        if CROWD.iter().any(|network| network.parse::<IpNet>().unwrap().contains(&address)) {
            return Some(Crowd);
        }
        Self::ALL.into_iter().find(|host| host.addresses().contains(&address))
    }

    /// Its address.
    pub fn address(self, family: Family) -> IpAddr {
        let last = match self {
            PublicResolver if family == Family::V4 => return Ipv4Addr::new(8, 8, 8, 8).into(),
            PublicResolver => return Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888).into(),
            Crowd if family == Family::V4 => return Ipv4Addr::new(3, 78, 0, 1).into(),
            Crowd => return Ipv6Addr::new(0x2602, 0x78, 0, 0, 0, 0, 0, 1).into(),
            Upstream => 53,
            Foreign => 20,
            Shared => 21,
            Own => 30,
            Web => 80,
            Unnamed => 82,
            Clock => 123,
        };
        match family {
            Family::V4 => Ipv4Addr::new(3, 77, 0, last).into(),
            Family::V6 => Ipv6Addr::new(0x2602, 0x77, 0, 0, 0, 0, 0, last.into()).into(),
        }
    }

    /// Its IPv4 address behind a translator with the well-known prefix (RFC 6052).
    pub fn translated(self) -> IpAddr {
        let IpAddr::V4(address) = self.address(Family::V4) else { unreachable!("asked for IPv4") };
        let [a, b, c, d] = address.octets().map(u16::from);
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d).into()
    }

    /// All three.
    pub fn addresses(self) -> [IpAddr; 3] {
        [self.address(Family::V4), self.address(Family::V6), self.translated()]
    }

    /// A port of it.
    pub fn at(self, family: Family, port: u16) -> SocketAddr {
        (self.address(family), port).into()
    }

    /// Where it takes connections: TLS at 443 and 853, DNS at 53, a greeting elsewhere.
    pub fn tcp(self) -> &'static [u16] {
        match self {
            Upstream => &[53],
            PublicResolver => &[53, 443, 853],
            Foreign | Shared | Own => &[22, 80, 443, 8443],
            Web | Unnamed => &[22, 80, 443],
            Clock | Crowd => &[],
        }
    }

    /// Where it takes datagrams: DNS at 53, a greeting elsewhere.
    pub fn udp(self) -> &'static [u16] {
        match self {
            Upstream => &[53],
            PublicResolver => &[53, 443, 853],
            Foreign | Shared | Own | Web => &[443],
            Unnamed => &[123, 443],
            Clock => &[123],
            Crowd => &[],
        }
    }
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// One of a pair, IPv4 first.
    pub fn of<T>(self, [v4, v6]: [T; 2]) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }
}

/// Commands for `ip` which put every host on `device`.
pub fn addresses_on(device: &str) -> String {
    let all = Host::ALL.into_iter().flat_map(Host::addresses);
    all.map(|address| match address {
        IpAddr::V4(address) => format!("addr add {address}/32 dev {device}\n"),
        IpAddr::V6(address) => format!("addr add {address}/128 dev {device} nodad\n"),
    })
    .chain(CROWD.map(|network| format!("route add local {network} dev {device}\n")))
    .collect()
}

/// What both resolvers know. The names of real ingresses lead to both kinds; the own one shares an address.
pub fn zone() -> String {
    [
        ("connect.ngrok-agent.com", Foreign),
        ("connect.us.ngrok-agent.com", Foreign),
        ("connect.eu.ngrok-agent.com", Shared),
        ("tunnel.us.ngrok.com", Foreign),
        ("tunnel.ngrok.com", Foreign),
        ("connect.acme.example", Shared),
        ("dedicated.connect.acme.example", Own),
        // Somebody else's connect URL, and somebody's own record for an ingress.
        ("connect.other.example", Shared),
        ("mine.example.net", Foreign),
        ("crl.ngrok-agent.com", Shared),
        ("www.example.net", Web),
        ("time.example.net", Clock),
    ]
    .map(|(name, host)| {
        let [v4, v6] = Family::BOTH.map(|family| host.address(family));
        format!("{name}. 60 IN A {v4}\n{name}. 60 IN AAAA {v6}\n")
    })
    .concat()
        + "alias.example.net. 60 IN CNAME connect.ngrok-agent.com.\n"
}

/// Names that certificates are for.
pub const CERTIFIED: [&str; 11] = [
    "connect.acme.example",
    "*.connect.acme.example",
    "connect.other.example",
    "*.example.net",
    "*.ngrok-agent.com",
    "*.eu.ngrok-agent.com",
    "*.us.ngrok-agent.com",
    "*.ngrok.com",
    "*.us.ngrok.com",
    "korgn.su.lennut.com",
    "dns.google",
];
