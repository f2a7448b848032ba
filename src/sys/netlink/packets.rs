//! Packets that a rule logged to a group (NFLOG).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::socket::SockProtocol;

use super::{
    message::{Attributes, Message, number},
    socket::Socket,
    tables::{NFGENMSG, netfilter, nfgenmsg},
};

const CONFIG_COMMAND: u16 = 1; // NFULA_CFG_*
const CONFIG_MODE: u16 = 2;
const CONFIG_AT_ONCE: u16 = 5;
const CONFIG_FLAGS: u16 = 6;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const NUMBERED: u16 = 1; // NFULNL_CFG_F_SEQ
const PAYLOAD: u16 = 9; // NFULA_*
const PREFIX: u16 = 10;
const USER: u16 = 11;
const SEQUENCE: u16 = 12;
/// Headers of IPv6, some extensions, and ports.
const COPIED: u32 = 128;

/// A packet that was logged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoggedPacket {
    /// The rule's word for it.
    pub prefix: String,
    /// The number of the transport, as in `/etc/protocols`.
    pub protocol: u8,
    /// Whence it came; port 0 where the transport has none.
    pub source: SocketAddr,
    /// Whither it went; port 0 where the transport has none.
    pub destination: SocketAddr,
    /// The user whose socket sent it, where that is on this machine.
    pub user: Option<u32>,
}

/// Hears of every packet logged to one group.
#[derive(Debug)]
pub struct PacketLog {
    socket: Socket,
    next: Option<u32>,
    lost: u64,
}

impl PacketLog {
    /// Listens to a group. Nobody else may.
    ///
    /// # Errors
    /// When somebody does, or there is no right to.
    pub fn of(group: u16) -> io::Result<Self> {
        let mut socket = Socket::open(SockProtocol::NetlinkNetFilter, 0)?;
        configure(&mut socket, group, CONFIG_COMMAND, &[BIND])?;
        let [a, b, c, d] = COPIED.to_be_bytes();
        configure(&mut socket, group, CONFIG_MODE, &[a, b, c, d, COPY_PACKET, 0])?;
        configure(&mut socket, group, CONFIG_AT_ONCE, &1_u32.to_be_bytes())?;
        configure(&mut socket, group, CONFIG_FLAGS, &NUMBERED.to_be_bytes())?;
        Ok(Self { socket, next: None, lost: 0 })
    }

    /// The packets that are here and not told yet, at most `bound`; the others are counted as lost.
    ///
    /// # Errors
    /// When the socket broke.
    pub fn read(&mut self, bound: usize) -> io::Result<Vec<LoggedPacket>> {
        let mut packets = Vec::new();
        let (next, lost) = (&mut self.next, &mut self.lost);
        loop {
            let outcome = self.socket.drain(|message| {
                if let Some((packet, sequence)) = read(message) {
                    *lost += u64::from(sequence.map_or(0, |sequence| missed(next, sequence)));
                    if packets.len() < bound { packets.extend(packet) } else { *lost += 1 }
                }
                ControlFlow::Continue(())
            });
            match outcome {
                // Numbers tell how many did not fit.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                outcome => return outcome.map(|()| packets),
            }
        }
    }

    /// How many were logged and never told.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl AsFd for PacketLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn configure(socket: &mut Socket, group: u16, attribute: u16, value: &[u8]) -> io::Result<()> {
    let mut request = socket.request();
    let kind = netfilter(libc::NFNL_SUBSYS_ULOG, libc::NFULNL_MSG_CONFIG);
    request.message(kind, libc::NLM_F_REQUEST | libc::NLM_F_ACK);
    request.push(&nfgenmsg(0, group)).attribute(attribute, value);
    socket.acknowledged(&request, 1)
}

/// How many numbers were left out before this one.
fn missed(next: &mut Option<u32>, sequence: u32) -> u32 {
    let missed = next.map_or(0, |next| sequence.wrapping_sub(next));
    *next = Some(sequence.wrapping_add(1));
    // Going back is no gap.
    if missed > u32::MAX / 2 { 0 } else { missed }
}

/// The packet, where it is one of IP, and its number; `None` for other messages.
pub(super) fn read(message: &Message<'_>) -> Option<(Option<LoggedPacket>, Option<u32>)> {
    let is_packet = message.kind == netfilter(libc::NFNL_SUBSYS_ULOG, libc::NFULNL_MSG_PACKET);
    let attributes = is_packet.then(|| message.attributes(NFGENMSG))?;
    Some((read_packet(attributes), attributes.number(SEQUENCE)))
}

fn read_packet(attributes: Attributes<'_>) -> Option<LoggedPacket> {
    let (source, destination, protocol, rest) = read_header(attributes.value(PAYLOAD)?)?;
    let [from, to] = ports(protocol, rest);
    Some(LoggedPacket {
        prefix: attributes.text(PREFIX).unwrap_or_default(),
        protocol,
        source: SocketAddr::new(source, from),
        destination: SocketAddr::new(destination, to),
        user: attributes.number(USER),
    })
}

/// Addresses, transport, and what comes behind the header (RFC 791 section 3.1, RFC 8200 section 3).
fn read_header(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    let first = *packet.first()?;
    match first >> 4 {
        4 => {
            let v4 = |at: usize| packet.get(at..).and_then(number::<4>).map(|octets| Ipv4Addr::from(octets).into());
            let is_first_fragment = u16::from_be_bytes(number(packet.get(6..)?)?) & 0x1fff == 0;
            let rest = packet.get(usize::from(first & 15) * 4..).filter(|_| is_first_fragment).unwrap_or_default();
            Some((v4(12)?, v4(16)?, *packet.get(9)?, rest))
        }
        6 => {
            let v6 = |at: usize| packet.get(at..).and_then(number::<16>).map(|octets| Ipv6Addr::from(octets).into());
            let (protocol, rest) = pass_extensions(*packet.get(6)?, packet.get(40..)?);
            Some((v6(8)?, v6(24)?, protocol, rest))
        }
        _ => None,
    }
}

/// Passes over hop-by-hop options, routing and destination options (RFC 8200 section 4), as many as one packet has.
fn pass_extensions(mut next: u8, mut rest: &[u8]) -> (u8, &[u8]) {
    while let (0 | 43 | 60, [following, length, ..]) = (next, rest) {
        let Some(behind) = rest.get((usize::from(*length) + 1) * 8..) else { break };
        (next, rest) = (*following, behind);
    }
    (next, rest)
}

/// TCP, UDP, DCCP, SCTP and UDP-Lite begin with their ports.
fn ports(protocol: u8, rest: &[u8]) -> [u16; 2] {
    match (protocol, rest) {
        (6 | 17 | 33 | 132 | 136, [a, b, c, d, ..]) => [u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])],
        _ => [0, 0],
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::unistd::getuid;
    use proptest::prelude::*;

    use super::*;
    use crate::sys::netlink::testing::{nft, within_namespace};

    #[test]
    fn a_logged_packet_is_told_with_whose_it_is() {
        within_namespace(|| {
            nft("add table inet t
                add chain inet t out { type filter hook output priority 0; policy accept; }
                add rule inet t out udp dport 53 log prefix \"tw:dns \" group 20053")
            .unwrap();
            let mut log = PacketLog::of(20053).unwrap();
            assert!(PacketLog::of(20053).is_err(), "two may listen");
            let pairs = [("127.0.0.1:0", "127.0.0.1:53"), ("[::1]:0", "[::1]:53")];
            for (ours, theirs) in pairs {
                let socket = UdpSocket::bind(ours).unwrap();
                socket.send_to(b"question", theirs).unwrap();
                let expected = LoggedPacket {
                    prefix: "tw:dns ".to_owned(),
                    protocol: 17,
                    source: socket.local_addr().unwrap(),
                    destination: theirs.parse().unwrap(),
                    user: Some(getuid().as_raw()),
                };
                assert_eq!(log.read(10).unwrap(), [expected]);
            }
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..5 {
                socket.send_to(b"question", "127.0.0.1:53").unwrap();
            }
            assert_eq!((log.read(2).unwrap().len(), log.lost()), (2, 3));
        });
    }

    #[test]
    fn a_gap_in_the_numbers_is_counted() {
        let mut next = None;
        let missed: Vec<_> = [5, 6, 9, 9, 10].map(|sequence| missed(&mut next, sequence)).into();
        assert_eq!(missed, [0, 0, 2, 0, 0]);
    }

    proptest! {
        #[test]
        fn no_packet_makes_the_reader_panic(
            kind in prop::sample::select(vec![0x0400_u16, 0x0401]), body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = read(&Message { kind, flags: 0, sequence: 0, port: 0, body: &body });
            for version in [0x45, 0x60, 0x4f] {
                let packet = [&[version][..], &body].concat();
                let _ = read_header(&packet);
            }
        }
    }
}
