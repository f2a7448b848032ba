//! Connections that the kernel tracks: found, and forgotten.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use nix::sys::socket::SockProtocol;

use super::{
    message::{Attributes, Message, number},
    socket::Socket,
    tables::{NFGENMSG, netfilter, nfgenmsg},
};

const GET: i32 = 1; // IPCTNL_MSG_CT_*
const DELETE: i32 = 2;
const ORIGINAL: u16 = 1; // CTA_*
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_ADDRESSES: u16 = 1; // CTA_TUPLE_*
const TUPLE_TRANSPORT: u16 = 2;
const TUPLE_ZONE: u16 = 3;
const PROTOCOL: u16 = 1; // CTA_PROTO_*
const FROM_PORT: u16 = 2;
const TO_PORT: u16 = 3;

/// A connection as its first packet had it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flow {
    /// The number of the transport, as in `/etc/protocols`.
    pub protocol: u8,
    /// Who began it.
    pub source: SocketAddr,
    /// Whom that one wanted.
    pub destination: SocketAddr,
    /// Is it answered by somebody else, as a redirected one is?
    pub is_redirected: bool,
    /// The zone of its first direction; 0 where none was set.
    pub zone: u16,
}

/// The kernel's table of connections.
#[derive(Debug)]
pub struct Flows(Socket);

impl Flows {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel or a sandbox has none.
    pub fn open() -> io::Result<Self> {
        Socket::open(SockProtocol::NetlinkNetFilter, 0).map(Self)
    }

    /// Forgets every connection that is `unwanted`, so that its next packet is judged as a first one. Tells how many.
    ///
    /// # Errors
    /// When there is no right to.
    pub fn forget(&mut self, mut unwanted: impl FnMut(&Flow) -> bool) -> io::Result<usize> {
        let mut request = self.0.request();
        let kind = netfilter(libc::NFNL_SUBSYS_CTNETLINK, GET);
        request.message(kind, libc::NLM_F_REQUEST | libc::NLM_F_DUMP).push(&nfgenmsg(0, 0));
        let mut found = Vec::new();
        self.0.dump(&request, |message| {
            if read(message).is_some_and(|flow| unwanted(&flow)) {
                found.push(message.body.to_vec());
            }
        })?;
        found.iter().try_fold(0, |count, body| Ok(count + usize::from(self.delete(body)?)))
    }

    /// Deletes by what the kernel said of it; by its number too, so that never a later one of the same ends goes.
    fn delete(&mut self, body: &[u8]) -> io::Result<bool> {
        let attributes = Attributes(body.get(NFGENMSG..).unwrap_or_default());
        let mut request = self.0.request();
        let kind = netfilter(libc::NFNL_SUBSYS_CTNETLINK, DELETE);
        request.message(kind, libc::NLM_F_REQUEST | libc::NLM_F_ACK);
        request.push(&nfgenmsg(body.first().copied().unwrap_or_default(), 0));
        for (kind, value) in attributes.filter(|(kind, _)| [ORIGINAL, ID, ZONE].contains(kind)) {
            if kind == ORIGINAL {
                request.nest(kind, |tuple| {
                    tuple.push(value);
                });
            } else {
                request.attribute(kind, value);
            }
        }
        match self.0.acknowledged(&request, 1) {
            Ok(()) => Ok(true),
            // It ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn read(message: &Message<'_>) -> Option<Flow> {
    let attributes = message.attributes(NFGENMSG);
    let (original, reply) = (attributes.within(ORIGINAL), attributes.within(REPLY));
    let (protocol, source, destination) = read_tuple(original)?;
    let (_, answering, _) = read_tuple(reply)?;
    let both = attributes.value(ZONE);
    let zone = original.value(TUPLE_ZONE).or(both).and_then(number).map_or(0, u16::from_be_bytes);
    Some(Flow { protocol, source, destination, is_redirected: answering != destination, zone })
}

fn read_tuple(tuple: Attributes<'_>) -> Option<(u8, SocketAddr, SocketAddr)> {
    let (addresses, transport) = (tuple.within(TUPLE_ADDRESSES), tuple.within(TUPLE_TRANSPORT));
    let port = |kind| transport.value(kind).and_then(number).map_or(0, u16::from_be_bytes);
    let source = address(addresses, 1, 3)?;
    let destination = address(addresses, 2, 4)?;
    let &protocol = transport.value(PROTOCOL)?.first()?;
    Some((protocol, SocketAddr::new(source, port(FROM_PORT)), SocketAddr::new(destination, port(TO_PORT))))
}

/// `CTA_IP_V4_SRC`, `_V4_DST`, `_V6_SRC`, `_V6_DST` are 1 to 4.
fn address(addresses: Attributes<'_>, v4: u16, v6: u16) -> Option<IpAddr> {
    let found = addresses.value(v4).and_then(number::<4>).map(IpAddr::from);
    found.or_else(|| addresses.value(v6).and_then(number::<16>).map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::netlink::testing::{nft, within_namespace};

    #[test]
    fn a_connection_is_forgotten_and_others_stay() {
        within_namespace(|| {
            nft("add table inet t
                add chain inet t raw { type filter hook output priority -300; policy accept; }
                add rule inet t raw udp dport 55 ct original zone set 20053
                add chain inet t nat { type nat hook output priority -105; policy accept; }
                add rule inet t nat udp dport 54 redirect to :53
                add chain inet t out { type filter hook output priority 0; policy accept; }
                add rule inet t out ct state new accept")
            .unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let six = UdpSocket::bind("[::1]:0").unwrap();
            for port in [53, 54, 55, 56] {
                socket.send_to(b"question", ("127.0.0.1", port)).unwrap();
            }
            six.send_to(b"question", ("::1", 53)).unwrap();
            let mut flows = Flows::open().unwrap();
            let mut seen = Vec::new();
            assert_eq!(
                flows
                    .forget(|flow| {
                        seen.push(*flow);
                        false
                    })
                    .unwrap(),
                0
            );
            let mut brief: Vec<_> = seen
                .iter()
                .filter(|flow| flow.protocol == 17)
                .map(|flow| (flow.destination.to_string(), flow.is_redirected, flow.zone))
                .collect();
            brief.sort();
            let expected = [
                ("127.0.0.1:53", false, 0),
                ("127.0.0.1:54", true, 0),
                ("127.0.0.1:55", false, 20053),
                ("127.0.0.1:56", false, 0),
                ("[::1]:53", false, 0),
            ];
            assert_eq!(brief, expected.map(|(to, redirected, zone)| (to.to_owned(), redirected, zone)));
            let to_53 = |flow: &Flow| flow.protocol == 17 && [53, 55].contains(&flow.destination.port());
            assert_eq!(flows.forget(to_53).unwrap(), 3);
            assert_eq!(flows.forget(to_53).unwrap(), 0);
            assert_eq!(flows.forget(|flow| flow.protocol == 17).unwrap(), 2);
        });
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&Message { kind: 0x100, flags: 0, sequence: 0, port: 0, body: &body });
        }
    }
}
