//! `system`: the servers that resolv.conf names.
//!
//! Read as glibc does (resolv.conf(5)), but not only the first three. hickory's reader is not used: it loses the
//! interface of a link-local server, and refuses the whole file for a bad search domain.

use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    path::Path,
};

use nix::net::if_::if_nametoindex;
use thiserror::Error;

/// Why resolv.conf gives no server.
#[derive(Debug, Error)]
pub(super) enum NoServers {
    #[error("cannot read {path}: {source}")]
    Unreadable { path: String, source: io::Error },
    #[error("{path} names no server")]
    Empty { path: String },
}

/// Servers taken from one file.
const MAX_SERVERS: usize = 8;

/// Bytes read of one file.
const MAX_SIZE: u64 = 64 << 10;

/// systemd-resolved's own addresses: it forwards to the servers in the list behind it, perhaps to us.
const STUBS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// The servers named now, in the file's order, each once. Where systemd-resolved's stub is named, the servers of the
/// list behind it stand in its place, if there is one.
pub(super) fn servers(resolv_conf: &Path, resolved_conf: &Path) -> Result<Vec<SocketAddr>, NoServers> {
    let mut servers = Vec::new();
    for server in read(resolv_conf)? {
        let behind = if STUBS.contains(&server.ip()) { read(resolved_conf).ok() } else { None };
        for server in behind.unwrap_or_else(|| vec![server]) {
            if !servers.contains(&server) && servers.len() < MAX_SERVERS {
                servers.push(server);
            }
        }
    }
    Ok(servers)
}

fn read(path: &Path) -> Result<Vec<SocketAddr>, NoServers> {
    let shown = || path.display().to_string();
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text))
        .map_err(|source| NoServers::Unreadable { path: shown(), source })?;
    let servers = parse(&String::from_utf8_lossy(&text), interface_index);
    if servers.is_empty() { Err(NoServers::Empty { path: shown() }) } else { Ok(servers) }
}

pub(crate) fn parse(text: &str, interface: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        // The keyword starts the line; what follows the address is a comment to glibc.
        let rest = line.strip_prefix("nameserver")?;
        if !rest.starts_with([' ', '\t']) { None } else { rest.split_ascii_whitespace().next() }
    });
    addresses.filter_map(|address| server(address, &interface)).collect()
}

fn server(text: &str, interface: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let (address, scope) = text.split_once('%').map_or((text, None), |(address, scope)| (address, Some(scope)));
    match (address.parse().ok()?, scope) {
        // glibc takes 0.0.0.0 for this host.
        (IpAddr::V4(ip), None) if ip.is_unspecified() => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 53))),
        (ip, None) => Some(SocketAddr::new(ip, 53)),
        (IpAddr::V6(ip), Some(scope)) => Some(SocketAddrV6::new(ip, 53, 0, interface(scope)?).into()),
        (IpAddr::V4(_), Some(_)) => None,
    }
}

fn interface_index(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| if_nametoindex(name).ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn servers_are_read_as_the_system_reads_them() {
        #[rustfmt::skip]
        let cases: &[(&str, &[&str])] = &[
            ("nameserver 9.9.9.9\nnameserver 2620:fe::fe\n", &["9.9.9.9:53", "[2620:fe::fe]:53"]),
            ("nameserver\t9.9.9.9 # quad nine",              &["9.9.9.9:53"]),
            ("nameserver fe80::1%eth7",                      &["[fe80::1%7]:53"]),
            ("nameserver fe80::1%gone\nnameserver 1.1.1.1",  &["1.1.1.1:53"]),
            ("nameserver 0.0.0.0",                           &["127.0.0.1:53"]),
            ("# nameserver 1.1.1.1\n;nameserver 1.1.1.2",    &[]),
            ("nameservers 1.1.1.1\nnameserver1.1.1.1",       &[]),
            ("nameserver dns.example\nnameserver",           &[]),
            ("search a b\noptions ndots:5\nnameserver ::1",  &["[::1]:53"]),
            ("nameserver 1.1.1.1\r\nnameserver 8.8.8.8\r\n", &["1.1.1.1:53", "8.8.8.8:53"]),
            ("\u{0}\u{fffd}garbage",                         &[]),
        ];
        for (text, expected) in cases {
            let servers = parse(text, |name| (name == "eth7").then_some(7));
            let shown: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
            assert_eq!(shown, *expected, "{text:?}");
        }
    }

    #[test]
    fn behind_the_stub_of_systemd_resolved_stands_its_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let (resolv_conf, resolved_conf) = (path("resolv.conf"), path("resolved.conf"));
        let servers = || servers(&resolv_conf, &resolved_conf);
        assert!(matches!(servers(), Err(NoServers::Unreadable { .. })));
        fs::write(&resolv_conf, "nameserver 127.0.0.53\nnameserver 10.0.0.1\n").unwrap();
        let shown = || servers().unwrap().iter().map(|server| server.ip().to_string()).collect::<Vec<_>>();
        assert_eq!(shown(), ["127.0.0.53", "10.0.0.1"], "no list: the stub itself");
        fs::write(&resolved_conf, "nameserver 10.0.0.2\nnameserver 10.0.0.1\n").unwrap();
        assert_eq!(shown(), ["10.0.0.2", "10.0.0.1"]);
        fs::write(&resolv_conf, "search example\n").unwrap();
        assert!(matches!(servers(), Err(NoServers::Empty { .. })));
    }
}
