//! Ways round a name server, and ways that have to stay open: what is tried, how it ends where nothing closes it, how
//! it ends where we enforce, and who is then to hear nothing of it.

use crate::support::bed::{
    CROWD_PORT, Family,
    Host::{self, Crowd, Foreign, Own, PublicResolver, Shared, Unnamed, Upstream, Web},
    Outcome::{self, Alert, NoName, Reached, Refused},
    Prober,
};

/// One way.
pub struct Way {
    pub name: &'static str,
    pub attempt: fn(&Prober, Family) -> Outcome,
    /// How it ends without a firewall.
    pub open: Outcome,
    /// How it ends with ours.
    pub enforced: Outcome,
    /// Who is reached without a firewall, and not with ours.
    pub spared: &'static [Host],
}

impl Way {
    /// Is there such a way in this family?
    pub fn exists(&self, family: Family) -> bool {
        family == Family::V6 || !self.name.starts_with("NAT64")
    }

    /// Does a firewall make a difference to it?
    pub fn is_closed(&self) -> bool {
        self.open != self.enforced || !self.spared.is_empty()
    }
}

/// The own ingress; it shares its address with strangers.
pub const OWN: &str = "connect.acme.example";
/// Where agents of any account connect to.
pub const DEFAULT: &str = "connect.ngrok-agent.com";
/// Needed by the own agents, and at the address of an ingress.
const CRL: &str = "crl.ngrok-agent.com";
/// `unrecognized_name` (RFC 6066 section 3).
const UNKNOWN: Outcome = Alert(112);

macro_rules! ways {
    ($($name:literal: $attempt:expr => $open:expr, $enforced:expr, $spared:expr;)+) => {
        &[$(Way { name: $name, attempt: $attempt, open: $open, enforced: $enforced, spared: &$spared }),+]
    };
}

#[rustfmt::skip]
pub const WAYS: &[Way] = ways! {
    // Other resolvers.
    "own resolver over UDP":              |p, f| p.dns_udp(PublicResolver.at(f, 53), DEFAULT)        => Reached(Foreign), NoName, [PublicResolver];
    "own resolver over TCP":              |p, f| p.dns_tcp(PublicResolver.at(f, 53), DEFAULT)        => Reached(Foreign), NoName, [PublicResolver];
    "own resolver over TLS":              |p, f| p.dot(PublicResolver.at(f, 853), DEFAULT)           => Reached(Foreign), Refused, [PublicResolver];
    "own resolver over QUIC":             |p, f| p.udp(PublicResolver.at(f, 853))                    => Reached(PublicResolver), Refused, [PublicResolver];
    "own resolver over HTTPS":            |p, f| p.doh(PublicResolver.at(f, 443), DEFAULT)           => Reached(Foreign), Refused, [PublicResolver];
    "own resolver over HTTP/3":           |p, f| p.udp(PublicResolver.at(f, 443))                    => Reached(PublicResolver), Refused, [PublicResolver];
    "the forwarder's own upstream":       |p, f| p.dns_udp(Upstream.at(f, 53), DEFAULT)              => Reached(Foreign), NoName, [];
    "second nameserver":                  |p, f| p.dns_by_either([Web.at(f, 53), PublicResolver.at(f, 53)], DEFAULT) => Reached(Foreign), NoName, [PublicResolver];
    "agent that falls back to 8.8.8.8":   |p, f| p.by_name(PublicResolver.at(f, 53), DEFAULT)        => Reached(Foreign), NoName, [PublicResolver, Foreign];
    // Names that lead there.
    "own alias":                          |p, f| p.by_name(PublicResolver.at(f, 53), "alias.example.net") => Reached(Foreign), NoName, [Foreign];
    "own address record":                 |p, f| p.by_name(PublicResolver.at(f, 53), "mine.example.net")  => Reached(Foreign), NoName, [Foreign];
    "another account's connect URL":      |p, f| p.by_name(PublicResolver.at(f, 53), "connect.other.example") => Reached(Shared), NoName, [Shared];
    // No names, or false ones.
    "hosts file":                         |p, f| p.tls(Foreign.at(f, 443), Some(DEFAULT))            => Reached(Foreign), UNKNOWN, [Foreign];
    "hosts file, shared address":         |p, f| p.tls(Shared.at(f, 443), Some(DEFAULT))             => Reached(Shared), UNKNOWN, [Shared];
    "hosts file, another account's":      |p, f| p.tls(Shared.at(f, 443), Some("connect.other.example")) => Reached(Shared), UNKNOWN, [Shared];
    "raw address":                        |p, f| p.tls(Foreign.at(f, 443), None)                     => Reached(Foreign), UNKNOWN, [Foreign];
    "raw address, shared":                |p, f| p.tls(Shared.at(f, 443), None)                      => Reached(Shared), UNKNOWN, [Shared];
    "disguised server name":              |p, f| p.tls(Foreign.at(f, 443), Some("korgn.su.lennut.com")) => Reached(Foreign), UNKNOWN, [Foreign];
    "ordinary server name at an ingress": |p, f| p.tls(Shared.at(f, 443), Some("www.example.net"))   => Reached(Shared), UNKNOWN, [Shared];
    "ClientHello in segments of a byte":  |p, f| p.tls_dripped(Shared.at(f, 443), DEFAULT)           => Reached(Shared), UNKNOWN, [Shared];
    "encrypted ClientHello":              |p, f| p.tls_encrypted_hello(Shared.at(f, 443), "www.example.net") => Reached(Shared), UNKNOWN, [Shared];
    "address of the revocation lists":    |p, f| { p.dns_udp(PublicResolver.at(f, 53), CRL); p.tls(Shared.at(f, 443), Some(DEFAULT)) } => Reached(Shared), UNKNOWN, [Shared];
    "own server name at a foreign one":   |p, f| p.tls(Foreign.at(f, 443), Some(OWN))                => Reached(Foreign), Reached(Shared), [Foreign];
    // Not TLS.
    "QUIC":                               |p, f| p.udp(Foreign.at(f, 443))                           => Reached(Foreign), Refused, [Foreign];
    "QUIC, shared address":               |p, f| p.udp(Shared.at(f, 443))                            => Reached(Shared), Refused, [Shared];
    "ssh":                                |p, f| p.say(Foreign.at(f, 22), b"SSH-2.0-client\r\n")     => Reached(Foreign), Refused, [Foreign];
    "ssh, shared address":                |p, f| p.say(Shared.at(f, 22), b"SSH-2.0-client\r\n")      => Reached(Shared), Refused, [Shared];
    "HTTP, foreign address":              |p, f| p.tcp(Foreign.at(f, 80))                            => Reached(Foreign), Refused, [Foreign];
    "any other port":                     |p, f| p.tcp(Foreign.at(f, 8443))                          => Reached(Foreign), Refused, [Foreign];
    "HTTP CONNECT at the TLS port":       |p, f| p.say(Shared.at(f, 443), b"CONNECT a:443 HTTP/1.1\r\n\r\n") => Refused, Refused, [Shared];
    "ssh at the TLS port":                |p, f| p.say(Shared.at(f, 443), b"SSH-2.0-client\r\n")   => Refused, Refused, [Shared];
    // Through a translator.
    "NAT64 form, TLS":                    |p, _| p.tls((Foreign.translated(), 443).into(), Some(DEFAULT)) => Reached(Foreign), UNKNOWN, [Foreign];
    "NAT64 form, ssh":                    |p, _| p.tcp((Foreign.translated(), 22).into())            => Reached(Foreign), Refused, [Foreign];
    "NAT64 form, shared address":         |p, _| p.tls((Shared.translated(), 443).into(), None)      => Reached(Shared), UNKNOWN, [Shared];
    // What stays as it is.
    "own ingress by name":                |p, f| p.by_name(PublicResolver.at(f, 53), OWN)            => Reached(Shared), Reached(Shared), [];
    "own ingress, bytes one by one":      |p, f| p.tls_dripped(Shared.at(f, 443), OWN)               => Reached(Shared), Reached(Shared), [];
    "own ingress on an address of its own": |p, f| p.by_name(PublicResolver.at(f, 53), "dedicated.connect.acme.example") => Reached(Own), Reached(Own), [];
    "revocation lists":                   |p, f| p.by_name_at(PublicResolver.at(f, 53), CRL, 80) => Reached(Shared), Reached(Shared), [];
    "ordinary https":                     |p, f| p.by_name(PublicResolver.at(f, 53), "www.example.net") => Reached(Web), Reached(Web), [];
    "ordinary http":                      |p, f| p.by_name_at(PublicResolver.at(f, 53), "www.example.net", 80) => Reached(Web), Reached(Web), [];
    "ordinary ssh":                       |p, f| p.by_name_at(PublicResolver.at(f, 53), "www.example.net", 22) => Reached(Web), Reached(Web), [];
    "ordinary QUIC":                      |p, f| p.udp(Web.at(f, 443))                               => Reached(Web), Reached(Web), [];
    "ordinary site at any port":          |p, f| p.tcp(Crowd.at(f, CROWD_PORT))                      => Reached(Crowd), Reached(Crowd), [];
    "an address that nobody asked for":   |p, f| p.tls(Unnamed.at(f, 443), None)                     => Reached(Unnamed), Reached(Unnamed), [];
};
