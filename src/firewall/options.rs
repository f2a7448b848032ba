//! `[firewall]`, and what of the other sections the rules depend on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::address::{Carriers, Family};

/// Where the rules stand.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// Nowhere.
    #[default]
    Off,
    /// On the machine whose programs are to be held.
    Host,
    /// On the router of those who are.
    Gateway,
}

/// What becomes of the rules when the daemon is stopped; when it dies they stay.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnStop {
    /// They stay.
    #[default]
    Keep,
    /// They go.
    Remove,
}

/// How the rules know the forwarder's own sockets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OwnSockets {
    /// By their user, whom nobody else runs as.
    #[default]
    User,
    /// By the user and a mark that only the keeper can set: others may run as that user.
    Mark,
}

/// Everything that the rules are made from, besides the policy and the user's number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Where they stand.
    pub mode: Mode,
    /// Nothing leaves but to addresses that were resolved through us.
    pub strict: bool,
    /// Gateway: the interfaces behind which the clients are.
    pub lan: Vec<String>,
    /// Gateway: clients outside the policy.
    pub exempt: Vec<IpNet>,
    /// Strict: always open.
    pub fixed: Vec<IpNet>,
    /// Strict: time servers.
    pub ntp: Vec<IpNet>,
    /// The prefixes of the network's translators.
    pub nat64: Carriers,
    /// `[organization] addresses`, open on all ports.
    pub own: Vec<IpNet>,
    /// Whose sockets are the forwarder's own.
    pub user: String,
    /// How they are told from others of that user.
    pub own_sockets: OwnSockets,
    /// Where the gate listens, on the addresses of [`gate`](Self::gate).
    pub gate_port: u16,
    /// What a stop does.
    pub on_stop: OnStop,
    /// Host: the keeper may look into everybody's processes, to name the one that tried.
    pub processes: bool,
    /// Where DNS is answered.
    pub dns: Vec<SocketAddr>,
    /// Upstream servers with a fixed address.
    pub resolvers: Vec<SocketAddr>,
    /// Is one of the upstream servers the system's, at an address that changes?
    pub asks_system: bool,
}

/// The user as whom the forwarder runs where nobody says otherwise.
pub(super) const USER: &str = "tunnelwarden";

/// Where the gate listens where nobody says otherwise.
pub(super) const GATE_PORT: u16 = 5343;

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            strict: false,
            lan: Vec::new(),
            exempt: Vec::new(),
            fixed: Vec::new(),
            ntp: Vec::new(),
            nat64: Carriers::default(),
            own: Vec::new(),
            user: USER.to_owned(),
            own_sockets: OwnSockets::default(),
            gate_port: GATE_PORT,
            on_stop: OnStop::default(),
            processes: false,
            dns: Vec::new(),
            resolvers: Vec::new(),
            asks_system: true,
        }
    }
}

impl Options {
    /// Where the gate listens. On a host only this machine reaches it; a router's clients reach it where they reach
    /// DNS.
    pub fn gate(&self) -> Vec<SocketAddr> {
        let local = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        let mut addresses: Vec<IpAddr> = match self.mode {
            Mode::Off => Vec::new(),
            Mode::Host => local.to_vec(),
            Mode::Gateway => self.dns.iter().map(SocketAddr::ip).filter(is_reachable).collect(),
        };
        addresses.sort_unstable();
        addresses.dedup();
        addresses.into_iter().map(|address| SocketAddr::new(address, self.gate_port)).collect()
    }

    /// The door to which questions of this family are turned; `None`: there is none, and they are refused.
    pub(super) fn dns_door(&self, family: Family) -> Option<SocketAddr> {
        self.best(family, self.dns.iter().copied())
    }

    /// The same for TLS connections and the gate.
    pub(super) fn gate_door(&self, family: Family) -> Option<SocketAddr> {
        self.best(family, self.gate().into_iter())
    }

    /// One at a wildcard is reached however the packet came.
    fn best(&self, family: Family, doors: impl Iterator<Item = SocketAddr>) -> Option<SocketAddr> {
        let mut fitting: Vec<_> = doors.filter(|door| self.is_fit(*door) && Family::of(door.ip()) == family).collect();
        fitting.sort_by_key(|door| !door.ip().is_unspecified());
        fitting.into_iter().next()
    }

    /// Can packets be turned to this door? On a host they are turned to 127.0.0.1 or ::1, whatever listens there.
    fn is_fit(&self, door: SocketAddr) -> bool {
        let ip = door.ip();
        let reached = match self.mode {
            Mode::Off => false,
            Mode::Host => ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST,
            Mode::Gateway => is_reachable(&ip),
        };
        reached && door.port() != 0
    }

    /// Does some door take IPv4 questions that are turned to us?
    pub fn answers_v4(&self) -> bool {
        self.dns_door(Family::V4).is_some()
    }

    /// Does some door take IPv6 questions that are turned to us?
    pub fn answers_v6(&self) -> bool {
        self.dns_door(Family::V6).is_some()
    }
}

/// Can other machines' packets be turned to it? A link-local address is another on each link.
fn is_reachable(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !address.is_loopback() && !link_local
}
