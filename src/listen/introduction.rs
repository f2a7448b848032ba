//! Who asks: the peer, or whom a forwarder names in a PROXY header in front of its first question.

use std::net::SocketAddr;

use crate::{
    audit::Transport,
    gateway::{Access, Asker},
    wire::proxy::{self, Front},
};

/// What the first bytes from a peer say about who asks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Introduction {
    /// This one does, and its words begin that many bytes further on.
    Complete(Asker, usize),
    /// The header goes on.
    Incomplete,
    /// A forwarder's header that says nothing: whatever follows may be anybody's.
    Malformed,
}

/// Looks for a PROXY header where the peer is a forwarder. From anybody else it is a question like any other,
/// and a malformed one.
pub(super) fn introduce(access: &Access, peer: SocketAddr, transport: Transport, bytes: &[u8]) -> Introduction {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let itself = Asker { client: peer, via: None, transport };
    if access.is_forwarder(peer.ip()) { named(itself, bytes) } else { Introduction::Complete(itself, 0) }
}

fn named(forwarder: Asker, bytes: &[u8]) -> Introduction {
    match proxy::read(bytes) {
        // Of nothing nothing can be said yet.
        Ok(Front::Plain) if bytes.is_empty() => Introduction::Incomplete,
        Ok(Front::Plain) => Introduction::Complete(forwarder, 0),
        Ok(Front::Incomplete) => Introduction::Incomplete,
        Ok(Front::Header { source: None, length }) => Introduction::Complete(forwarder, length),
        Ok(Front::Header { source: Some(client), length }) => {
            let client = SocketAddr::new(client.ip().to_canonical(), client.port());
            Introduction::Complete(Asker { client, via: Some(forwarder.client.ip()), ..forwarder }, length)
        }
        Err(_) => Introduction::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gateway::Options;

    /// PROXY v2, TCP over IPv4, from 192.0.2.7:12345.
    const HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x30\x39\0\x35";
    const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

    fn introduced(peer: &str, bytes: &[u8]) -> Introduction {
        let options = Options { forwarders: vec!["10.0.0.53/32".parse().unwrap()], ..Options::default() };
        introduce(&Access::new(&options, [], Arc::default()), peer.parse().unwrap(), Transport::Udp, bytes)
    }

    fn as_itself(peer: &str, length: usize) -> Introduction {
        let itself = Asker { client: peer.parse().unwrap(), via: None, transport: Transport::Udp };
        Introduction::Complete(itself, length)
    }

    #[test]
    fn a_forwarder_is_believed_whom_it_asks_for() {
        let named = Asker {
            client: "192.0.2.7:12345".parse().unwrap(),
            via: Some("10.0.0.53".parse().unwrap()),
            transport: Transport::Udp,
        };
        for peer in ["10.0.0.53:1", "[::ffff:10.0.0.53]:1"] {
            let question = [HEADER, b"question"].concat();
            assert_eq!(introduced(peer, &question), Introduction::Complete(named, HEADER.len()), "{peer}");
        }
    }

    #[test]
    fn a_forwarder_may_ask_for_itself() {
        assert_eq!(introduced("10.0.0.53:1", LOCAL), as_itself("10.0.0.53:1", LOCAL.len()));
        assert_eq!(introduced("10.0.0.53:1", b"\0\x20question"), as_itself("10.0.0.53:1", 0));
    }

    #[test]
    fn nobody_else_is_believed() {
        for peer in ["127.0.0.1:1", "10.0.0.54:1", "192.0.2.1:1", "[2001:db8::1]:1"] {
            assert_eq!(introduced(peer, HEADER), as_itself(peer, 0), "{peer}");
        }
        assert_eq!(introduced("[::ffff:10.0.0.54]:1", HEADER), as_itself("10.0.0.54:1", 0));
    }

    #[test]
    fn a_header_in_pieces_is_waited_for_and_a_broken_one_is_told() {
        for length in 0..HEADER.len() {
            assert_eq!(introduced("10.0.0.53:1", &HEADER[..length]), Introduction::Incomplete, "{length}");
        }
        let mut broken = HEADER.to_vec();
        broken[12] = 0x31;
        assert_eq!(introduced("10.0.0.53:1", &broken), Introduction::Malformed);
    }
}
