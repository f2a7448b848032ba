//! `[upstream]`: whom to ask, for which names.

use std::net::SocketAddr;

use crate::name::DomainName;

/// `[upstream]`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Servers for every name outside the zones.
    pub servers: Vec<Server>,
    /// Zones with servers of their own; the most specific wins.
    pub zones: Vec<Zone>,
}

/// One `[[upstream.zones]]`.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Each stands for itself and all below.
    pub zones: Vec<DomainName>,
    /// Whom to ask for them.
    pub servers: Vec<Server>,
}

/// One entry of `servers`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Server {
    /// `"system"`: what resolv.conf names, followed when it changes.
    System,
    /// `"udp://9.9.9.9"`: datagrams, TCP where an answer does not fit.
    Udp(SocketAddr),
    /// `"tcp://9.9.9.9"`.
    Tcp(SocketAddr),
}

impl Default for Options {
    fn default() -> Self {
        Self { servers: vec![Server::System], zones: Vec::new() }
    }
}
