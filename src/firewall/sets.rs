//! Names of the sets, the IPv4 one first, and what is in them. The dynamic ones are filled by the keeper while the
//! rules stand, or by packets; all others by the rules' own text.

/// Dynamic: learned ingress addresses. The v6 set holds the NAT64 forms of the v4 ones too.
pub const INGRESS: [&str; 2] = ["ingress_v4", "ingress_v6"];

/// Dynamic: addresses that answers gave; in gateway mode client and address.
pub const LEASE: [&str; 2] = ["lease_v4", "lease_v6"];

/// Dynamic: addresses and ports that allowing rules open at ingress addresses; in gateway mode with the client first.
pub const PORT: [&str; 2] = ["port_v4", "port_v6"];

/// Gateway mode, and filled by the rules themselves: client and ingress address that other people's forward rules let
/// pass lately.
pub const PASSED: [&str; 2] = ["passed_v4", "passed_v6"];

/// Networks of packs that are ingresses.
pub const INGRESS_NET: [&str; 2] = ["ingress_net_v4", "ingress_net_v6"];

/// Networks of packs that are resolvers over HTTPS.
pub const DOH: [&str; 2] = ["doh_v4", "doh_v6"];

/// `[organization] addresses`.
pub const OWN: [&str; 2] = ["own_v4", "own_v6"];

/// `[firewall] exempt`.
pub const EXEMPT: [&str; 2] = ["exempt_v4", "exempt_v6"];

/// Clients in mode observe.
pub const OBSERVED: [&str; 2] = ["observed_v4", "observed_v6"];

/// Clients whose packs know no ingress.
pub const UNBOUND: [&str; 2] = ["unbound_v4", "unbound_v6"];

/// Clients whose packs know no resolver over HTTPS.
pub const DOH_FREE: [&str; 2] = ["doh_free_v4", "doh_free_v6"];

/// Upstream servers with a fixed address: who asks them is no news.
pub const RESOLVER: [&str; 2] = ["resolver_v4", "resolver_v6"];

/// `[firewall] static`.
pub const STATIC: [&str; 2] = ["static_v4", "static_v6"];

/// `[firewall] ntp`.
pub const NTP: [&str; 2] = ["ntp_v4", "ntp_v6"];

/// Most elements of [`INGRESS`]: as many addresses as are ever learned, each in the forms of sixteen NAT64 prefixes.
pub const MAX_INGRESS: u32 = 262_144;

/// Most elements of [`PORT`].
pub const MAX_PORTS: u32 = 65_536;

/// Most elements of [`LEASE`].
pub const MAX_LEASES: u32 = 262_144;

/// Most elements of [`PASSED`]. Whoever forges senders fills it with some 4,000 packets a second, as they would fill
/// a conntrack of the usual size; then nobody new comes to the gate.
pub const MAX_PASSED: u32 = 262_144;

/// How long [`PASSED`] knows a pair. Then other people's rules are asked again, at the price of a second.
pub const PASSED_FOR: &str = "1m";

/// Sets whose elements are not the rules' own text.
pub fn dynamic() -> impl Iterator<Item = &'static str> {
    [INGRESS, LEASE, PORT, PASSED].into_iter().flatten()
}
