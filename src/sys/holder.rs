//! Who holds a port, as far as /proc lets us see.
//!
//! The tables under /proc/net tell the owning user of every socket; whose process it is can be seen only by
//! root or by that user.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::ffi::OsStrExt,
    path::Path,
};

/// Which table of sockets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// Listening streams.
    Tcp,
}

/// Who holds a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// The address it is bound to.
    pub address: SocketAddr,
    /// The number of the user it belongs to.
    pub user: u32,
    /// The process, where we may see it.
    pub process: Option<Process>,
}

/// A process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Process {
    /// Its number.
    pub id: u32,
    /// What it calls itself; any bytes but zero and newline, so escape it before showing it.
    pub name: String,
}

/// One line of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Line {
    address: SocketAddr,
    user: u32,
    inode: u64,
}

/// The first socket that keeps `address` from being bound; `None` where none is seen (any more).
pub fn holder(protocol: Protocol, address: SocketAddr) -> Option<Holder> {
    let tables = match protocol {
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
    };
    let text: String = tables.into_iter().filter_map(|table| fs::read_to_string(table).ok()).collect();
    let line = text.lines().filter_map(|line| parse(line, protocol)).find(|line| collides(line.address, address))?;
    Some(Holder { address: line.address, user: line.user, process: process_with(line.inode) })
}

/// `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode ..`, numbers in hex but for the last three.
pub(crate) fn parse(line: &str, protocol: Protocol) -> Option<Line> {
    const LISTENING: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let address = parse_address(fields.nth(1)?)?;
    let state = fields.nth(1)?;
    let user = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    (protocol == Protocol::Udp || state == LISTENING).then_some(Line { address, user, inode })
}

/// `0100007F:0035`: the address as 32-bit words in the machine's byte order, then the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut octets = [0; 16];
    for (index, room) in octets.chunks_exact_mut(4).enumerate().take(ip.len() / 8) {
        let word = u32::from_str_radix(ip.get(index * 8..index * 8 + 8)?, 16).ok()?;
        room.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(*octets.first_chunk::<4>()?)),
        32 => IpAddr::from(Ipv6Addr::from(octets)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Same port, and same address or one of them a wildcard that takes in the other; `[::]` may take in v4 too.
fn collides(held: SocketAddr, wanted: SocketAddr) -> bool {
    let (held_ip, wanted_ip) = (held.ip().to_canonical(), wanted.ip().to_canonical());
    held.port() == wanted.port()
        && (held_ip == wanted_ip
            || held_ip == IpAddr::from(Ipv6Addr::UNSPECIFIED)
            || (held_ip.is_ipv4() == wanted_ip.is_ipv4() && (held_ip.is_unspecified() || wanted_ip.is_unspecified())))
}

/// Looks through every process we may look into for a descriptor of that socket.
fn process_with(inode: u64) -> Option<Process> {
    let wanted = format!("socket:[{inode}]");
    let has_it = |process: &Path| {
        let descriptors = fs::read_dir(process.join("fd")).ok()?;
        let mut targets = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| target.as_os_str().as_bytes() == wanted.as_bytes()).then_some(())
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        has_it(&entry.path())?;
        let name = fs::read(entry.path().join("comm")).unwrap_or_default();
        Some(Process { id, name: String::from_utf8_lossy(&name).trim_end().to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_port_we_hold_ourselves_is_found_to_be_ours() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("[::1]:0").unwrap();
        for (protocol, address) in
            [(Protocol::Udp, udp.local_addr().unwrap()), (Protocol::Tcp, tcp.local_addr().unwrap())]
        {
            let holder = holder(protocol, address).unwrap();
            assert_eq!(holder.address, address);
            assert_eq!(holder.process.map(|process| process.id), Some(std::process::id()));
        }
    }

    #[test]
    fn a_line_of_the_table_is_read() {
        #[rustfmt::skip]
        let table = [
            ("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode", None),
            ("  65: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 4711 2 0000 0",
                Some(("0.0.0.0:53", 101, 4711))),
            ("   0: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 9 1 0 0 10 0",
                Some(("[::]:53", 0, 9))),
            ("   0: 0000:0035 0000:0000 07 0:0 0:0 0 0 0 9", None),
            ("   0: 00000000:0035", None),
            ("", None),
        ];
        for (line, expected) in table {
            let expected =
                expected.map(|(address, user, inode)| Line { address: address.parse().unwrap(), user, inode });
            assert_eq!(parse(line, Protocol::Udp), expected, "{line}");
        }
        let established = "1: 00000000:0035 00000000:0000 01 0:0 0:0 0 101 0 4711";
        assert_eq!(parse(established, Protocol::Tcp), None);
    }

    #[test]
    fn wildcards_collide_with_what_they_take_in() {
        #[rustfmt::skip]
        let table = [
            ("127.0.0.1:53", "127.0.0.1:53", true),
            ("127.0.0.1:53", "127.0.0.1:54", false),
            ("127.0.0.1:53", "127.0.0.2:53", false),
            ("0.0.0.0:53",   "127.0.0.1:53", true),
            ("127.0.0.1:53", "0.0.0.0:53",   true),
            ("0.0.0.0:53",   "[::1]:53",     false),
            ("[::]:53",      "127.0.0.1:53", true),
            ("[::]:53",      "[::1]:53",     true),
            ("[::1]:53",     "[::]:53",      true),
        ];
        for (held, wanted, expected) in table {
            assert_eq!(collides(held.parse().unwrap(), wanted.parse().unwrap()), expected, "{held} {wanted}");
        }
    }
}
