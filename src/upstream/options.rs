//! `[upstream]`: whom to ask, for which names.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use rustls::pki_types::ServerName;
use thiserror::Error;

use super::tls::Authorities;
use crate::name::DomainName;

/// `[upstream]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Servers for every name outside the zones.
    pub servers: Vec<Server>,
    /// Zones with servers of their own; the most specific wins.
    pub zones: Vec<Zone>,
    /// Who else may vouch for encrypted servers: `certificate-authority`.
    pub authorities: Authorities,
}

/// One `[[upstream.zones]]`.
#[derive(Clone, Debug, Eq, PartialEq)]
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
    /// `"tls://1.1.1.1#cloudflare-dns.com"` (RFC 7858).
    Tls {
        /// Where it is.
        address: SocketAddr,
        /// What its certificate has to be for: what stands after `#`, else its address.
        name: ServerName<'static>,
    },
    /// `"https://1.1.1.1/dns-query#cloudflare-dns.com"` (RFC 8484).
    Https {
        /// Where it is.
        address: SocketAddr,
        /// As for TLS; never an IPv6 address, since hickory cannot name one in a request.
        name: ServerName<'static>,
        /// `/dns-query` where none is given.
        path: Arc<str>,
    },
}

/// Why a text is not a server.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum InvalidServer {
    /// An address without a scheme.
    #[error("{0:?} does not say how to ask; write \"udp://{0}\" or \"tcp://{0}\"")]
    NoScheme(String),
    /// A scheme we do not know.
    #[error(
        "unknown scheme {0:?}; write \"udp://ADDRESS\", \"tcp://ADDRESS\", \"tls://ADDRESS#NAME\", \
         \"https://ADDRESS/PATH#NAME\" or \"system\""
    )]
    UnknownScheme(String),
    /// Not an address after the scheme; names cannot be looked up before there is a server.
    #[error(
        "{0:?} is not an address; write one like \"udp://9.9.9.9\", \"udp://9.9.9.9:53\" or \"udp://[2620:fe::fe]:53\""
    )]
    BadAddress(String),
    /// The same where the server's name has a place of its own.
    #[error(
        "{0:?} is not an address, and there is nobody to look a name up before there is a server; write one like \
         \"tls://9.9.9.9#dns.quad9.net\" or \"https://9.9.9.9/dns-query#dns.quad9.net\""
    )]
    NoAddress(String),
    /// What stands after `#` cannot stand in a certificate.
    #[error("{0:?} is no name for a certificate; write one like \"#dns.quad9.net\", or none if it is for the address")]
    BadName(String),
    /// What stands after the address is no path of a URL.
    #[error("{0:?} is no path; write one like \"/dns-query\", without {{?dns}}")]
    BadPath(String),
    /// No name, where one is needed.
    #[error(
        "over HTTPS, a server at an IPv6 address needs the name of its certificate; write \"https://[{0}]/dns-query#NAME\""
    )]
    NeedsName(IpAddr),
    /// A link-local address.
    #[error("{0} is link-local and cannot be asked over HTTPS; write \"tls://{0}#NAME\"")]
    LinkLocal(SocketAddr),
    /// Port 0, the unspecified address, a multicast or broadcast address.
    #[error("{0} is nobody's address; a server's own address and port are needed")]
    NobodysAddress(SocketAddr),
}

/// Where DNS servers listen.
const DNS_PORT: u16 = 53;

/// The same for TLS (RFC 7858 section 3.1).
const TLS_PORT: u16 = 853;

/// The same for HTTPS.
const HTTPS_PORT: u16 = 443;

/// What nearly every server uses, and the example of RFC 8484 section 4.1.1.
const PATH: &str = "/dns-query";

impl Default for Options {
    fn default() -> Self {
        Self { servers: vec![Server::System], zones: Vec::new(), authorities: Authorities::default() }
    }
}

impl FromStr for Server {
    type Err = InvalidServer;

    fn from_str(text: &str) -> Result<Self, InvalidServer> {
        if text == "system" {
            return Ok(Self::System);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(match parse_address(text, DNS_PORT) {
                Some(address) => InvalidServer::NoScheme(shortest(address, DNS_PORT)),
                None => InvalidServer::UnknownScheme(text.to_owned()),
            });
        };
        match scheme {
            "udp" => Ok(Self::Udp(plain(rest)?)),
            "tcp" => Ok(Self::Tcp(plain(rest)?)),
            "tls" => {
                let (address, name) = proven(rest, rest, TLS_PORT)?;
                Ok(Self::Tls { address, name })
            }
            "https" => https(rest),
            _ => Err(InvalidServer::UnknownScheme(scheme.to_owned())),
        }
    }
}

fn plain(text: &str) -> Result<SocketAddr, InvalidServer> {
    let address = parse_address(text, DNS_PORT).ok_or_else(|| InvalidServer::BadAddress(text.to_owned()))?;
    somebodys(address)
}

fn https(text: &str) -> Result<Server, InvalidServer> {
    let locator = text.split_once('#').map_or(text, |(locator, _)| locator);
    let (host, path) = locator.find('/').map_or((locator, PATH), |at| locator.split_at(at));
    let (address, name) = proven(text, host, HTTPS_PORT)?;
    if matches!(&name, ServerName::IpAddress(rustls::pki_types::IpAddr::V6(_))) {
        return Err(InvalidServer::NeedsName(address.ip()));
    }
    if matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0) {
        return Err(InvalidServer::LinkLocal(address));
    }
    // RFC 3986 section 3.3 and 3.4, percent-encoded already; braces are those of a template.
    if !path.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte)) {
        return Err(InvalidServer::BadPath(path.to_owned()));
    }
    Ok(Server::Https { address, name, path: path.into() })
}

/// The address at `host`, and the name after the `#` of `text` or, without one, the address.
fn proven(text: &str, host: &str, port: u16) -> Result<(SocketAddr, ServerName<'static>), InvalidServer> {
    let host = host.split_once('#').map_or(host, |(host, _)| host);
    let address = parse_address(host, port).ok_or_else(|| InvalidServer::NoAddress(host.to_owned()))?;
    let address = somebodys(address)?;
    let name = match text.split_once('#') {
        Some((_, name)) => ServerName::try_from(name).map_err(|_| InvalidServer::BadName(name.to_owned()))?.to_owned(),
        None => address.ip().into(),
    };
    Ok((address, name))
}

fn somebodys(address: SocketAddr) -> Result<SocketAddr, InvalidServer> {
    let ip = address.ip();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || broadcast {
        return Err(InvalidServer::NobodysAddress(address));
    }
    Ok(address)
}

/// An address with or without a port, v6 with or without brackets where there is no port.
fn parse_address(text: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address);
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = match bare {
        Some(ip) => IpAddr::V6(ip.parse().ok()?),
        None => text.parse().ok()?,
    };
    Some(SocketAddr::new(ip, port))
}

/// How a person writes it: without the port everybody uses.
fn shortest(address: SocketAddr, usual: u16) -> String {
    match address {
        SocketAddr::V4(v4) if v4.port() == usual => v4.ip().to_string(),
        SocketAddr::V6(v6) if v6.port() == usual && v6.scope_id() == 0 => format!("[{}]", v6.ip()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => address.to_string(),
    }
}

impl Server {
    /// Where it is; `None` for the system's, which resolv.conf tells.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::System => None,
            Self::Udp(address) | Self::Tcp(address) | Self::Tls { address, .. } | Self::Https { address, .. } => {
                Some(*address)
            }
        }
    }
}

impl fmt::Display for Server {
    /// As it is written in a configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, name) = match self {
            Self::System => return f.write_str("system"),
            Self::Udp(address) => return write!(f, "udp://{}", shortest(*address, DNS_PORT)),
            Self::Tcp(address) => return write!(f, "tcp://{}", shortest(*address, DNS_PORT)),
            Self::Tls { address, name } => {
                write!(f, "tls://{}", shortest(*address, TLS_PORT))?;
                (address, name)
            }
            Self::Https { address, name, path } => {
                write!(f, "https://{}{path}", shortest(*address, HTTPS_PORT))?;
                (address, name)
            }
        };
        if *name == ServerName::from(address.ip()) { Ok(()) } else { write!(f, "#{}", name.to_str()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_read_and_printed_in_its_shortest_form() {
        #[rustfmt::skip]
        let cases: &[(&str, &str)] = &[
            ("system",                   "system"),
            ("udp://9.9.9.9",            "udp://9.9.9.9"),
            ("udp://9.9.9.9:53",         "udp://9.9.9.9"),
            ("tcp://9.9.9.9:5353",       "tcp://9.9.9.9:5353"),
            ("udp://2620:fe::fe",        "udp://[2620:fe::fe]"),
            ("udp://[2620:fe::fe]",      "udp://[2620:fe::fe]"),
            ("tcp://[2620:fe::fe]:5300", "tcp://[2620:fe::fe]:5300"),
            ("tls://1.1.1.1",            "tls://1.1.1.1"),
            ("tls://1.1.1.1:853#1.1.1.1", "tls://1.1.1.1"),
            ("tls://1.1.1.1:8853#one.one.one.one", "tls://1.1.1.1:8853#one.one.one.one"),
            ("tls://2620:fe::fe#dns.quad9.net", "tls://[2620:fe::fe]#dns.quad9.net"),
            ("tls://[2620:fe::fe]",      "tls://[2620:fe::fe]"),
            ("https://9.9.9.9",          "https://9.9.9.9/dns-query"),
            ("https://9.9.9.9/#dns.quad9.net", "https://9.9.9.9/#dns.quad9.net"),
            ("https://9.9.9.9:443/a/b?c=d#dns.quad9.net", "https://9.9.9.9/a/b?c=d#dns.quad9.net"),
            ("https://[2620:fe::fe]:8443#dns.quad9.net", "https://[2620:fe::fe]:8443/dns-query#dns.quad9.net"),
        ];
        for (text, expected) in cases {
            let server: Server = text.parse().unwrap();
            assert_eq!(server.to_string(), *expected, "{text}");
            assert_eq!(expected.parse::<Server>().unwrap(), server, "{text}");
        }
    }

    #[test]
    fn what_is_no_server_says_what_to_write() {
        #[rustfmt::skip]
        let cases: &[(&str, &str)] = &[
            ("9.9.9.9",           r#"write "udp://9.9.9.9" or "tcp://9.9.9.9""#),
            ("2620:fe::fe",       r#"write "udp://[2620:fe::fe]" or "#),
            ("9.9.9.9:5300",      r#"write "udp://9.9.9.9:5300" or "#),
            ("System",            r#"or "system""#),
            ("sdns://abc",        r#"unknown scheme "sdns""#),
            ("udp://dns.example", "is not an address; write one like"),
            ("udp://",            "is not an address"),
            ("udp://9.9.9.9/",    "is not an address"),
            ("udp://9.9.9.9:0",   "is nobody's address"),
            ("udp://0.0.0.0",     "is nobody's address"),
            ("udp://[ff02::1]",   "is nobody's address"),
            ("tls://0.0.0.0#a.example", "is nobody's address"),
            ("tls://dns.quad9.net", "nobody to look a name up before there is a server"),
            ("tls://9.9.9.9/x#a.example", "is not an address"),
            ("tls://9.9.9.9#",    r#""" is no name for a certificate"#),
            ("tls://9.9.9.9#a b", r#""a b" is no name for a certificate"#),
            ("https://dns.quad9.net/dns-query", r#"write one like "tls://9.9.9.9#dns.quad9.net" or "https://9.9.9.9/dns-query#dns.quad9.net""#),
            ("https://9.9.9.9/dns-query{?dns}", r#""/dns-query{?dns}" is no path"#),
            ("https://[2620:fe::fe]/x", r#"write "https://[2620:fe::fe]/dns-query#NAME""#),
            ("https://[2620:fe::fe]#2620:fe::fe", "needs the name of its certificate"),
            ("https://[fe80::1%2]:443#a.example", "is link-local"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<Server>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
