//! `[limits]`: who may ask, and how much of us one asker may have.

use ipnet::IpNet;

/// `[limits]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Who may ask, besides loopback and every `[[clients]]` network. Private networks and those on our own links.
    pub clients: Vec<ClientScope>,
    /// What everybody else gets. REFUSED.
    pub others: Others,
    /// Front resolvers, which may say for whom they ask.
    pub forwarders: Vec<IpNet>,
    /// Questions a second by one client, a v6 /64 being one; as many at once after a second's rest. 0, which is no limit.
    pub rate: u32,
    /// The same for one forwarder. 0.
    pub rate_per_forwarder: u32,
    /// Of the datagrams over the rate each so many-th is answered with the advice to come over TCP; with 0 none. At most 10. 2.
    pub slip: u32,
    /// Questions that may wait for an upstream, in all. 10,000.
    pub waiting: usize,
    /// The same for one client address; the addresses of a v6 /64 have 16 times as many together. 200.
    pub waiting_per_client: usize,
    /// The same for one forwarder. 5,000.
    pub waiting_per_forwarder: usize,
    /// Stream connections, in all. 2,000.
    pub connections: usize,
    /// The same for one client address; the addresses of a v6 /64 have 16 times as many together. 50.
    pub connections_per_client: usize,
    /// Questions of one stream connection that may wait at once. 64.
    pub pipeline: usize,
    /// Largest datagram we send, in bytes, whatever a client offers; 512 to 4096. 1232.
    pub udp_size: u16,
}

/// One entry of `clients`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientScope {
    /// `"private"`: RFC 1918, fc00::/7 and fe80::/10.
    Private,
    /// `"on-link"`: the networks of the interfaces we listen on, and our own addresses.
    OnLink,
    /// A network.
    Network(IpNet),
}

/// `others`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Others {
    /// They are told REFUSED.
    #[default]
    Refused,
    /// They are told nothing.
    Silence,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clients: vec![ClientScope::Private, ClientScope::OnLink],
            others: Others::Refused,
            forwarders: Vec::new(),
            rate: 0,
            rate_per_forwarder: 0,
            slip: 2,
            waiting: 10_000,
            waiting_per_client: 200,
            waiting_per_forwarder: 5_000,
            connections: 2_000,
            connections_per_client: 50,
            pipeline: 64,
            udp_size: 1232,
        }
    }
}
