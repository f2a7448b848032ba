//! `[upstream]`: whom to ask, for which names.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use thiserror::Error;

use crate::name::DomainName;

/// `[upstream]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Servers for every name outside the zones.
    pub servers: Vec<Server>,
    /// Zones with servers of their own; the most specific wins.
    pub zones: Vec<Zone>,
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
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Server {
    /// `"system"`: what resolv.conf names, followed when it changes.
    System,
    /// `"udp://9.9.9.9"`: datagrams, TCP where an answer does not fit.
    Udp(SocketAddr),
    /// `"tcp://9.9.9.9"`.
    Tcp(SocketAddr),
}

/// Why a text is not a server.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum InvalidServer {
    /// An address without a scheme.
    #[error("{0:?} does not say how to ask; write \"udp://{0}\" or \"tcp://{0}\"")]
    NoScheme(String),
    /// A scheme we do not know.
    #[error("unknown scheme {0:?}; write \"udp://ADDRESS\", \"tcp://ADDRESS\" or \"system\"")]
    UnknownScheme(String),
    /// Not an address after the scheme; names cannot be looked up before there is a server.
    #[error(
        "{0:?} is not an address; write one like \"udp://9.9.9.9\", \"udp://9.9.9.9:53\" or \"udp://[2620:fe::fe]:53\""
    )]
    BadAddress(String),
    /// Port 0, the unspecified address, a multicast or broadcast address.
    #[error("{0} is nobody's address; a server's own address and port are needed")]
    NobodysAddress(SocketAddr),
}

/// Where DNS servers listen.
const DNS_PORT: u16 = 53;

impl Default for Options {
    fn default() -> Self {
        Self { servers: vec![Server::System], zones: Vec::new() }
    }
}

impl FromStr for Server {
    type Err = InvalidServer;

    fn from_str(text: &str) -> Result<Self, InvalidServer> {
        if text == "system" {
            return Ok(Self::System);
        }
        let Some((scheme, address)) = text.split_once("://") else {
            return Err(match parse_address(text) {
                Some(address) => InvalidServer::NoScheme(shortest(address)),
                None => InvalidServer::UnknownScheme(text.to_owned()),
            });
        };
        let kind = match scheme {
            "udp" => Self::Udp,
            "tcp" => Self::Tcp,
            _ => return Err(InvalidServer::UnknownScheme(scheme.to_owned())),
        };
        let address = parse_address(address).ok_or_else(|| InvalidServer::BadAddress(address.to_owned()))?;
        let ip = address.ip();
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || broadcast {
            return Err(InvalidServer::NobodysAddress(address));
        }
        Ok(kind(address))
    }
}

/// An address with or without a port, v6 with or without brackets where there is no port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address);
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = match bare {
        Some(ip) => IpAddr::V6(ip.parse().ok()?),
        None => text.parse().ok()?,
    };
    Some(SocketAddr::new(ip, DNS_PORT))
}

/// How a person writes it: without the port everybody uses.
fn shortest(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) if v4.port() == DNS_PORT => v4.ip().to_string(),
        SocketAddr::V6(v6) if v6.port() == DNS_PORT && v6.scope_id() == 0 => format!("[{}]", v6.ip()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => address.to_string(),
    }
}

impl fmt::Display for Server {
    /// As it is written in a configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Udp(address) => write!(f, "udp://{}", shortest(*address)),
            Self::Tcp(address) => write!(f, "tcp://{}", shortest(*address)),
        }
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
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Server>().unwrap().to_string(), *expected, "{text}");
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
        ];
        for (text, expected) in cases {
            let error = text.parse::<Server>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
