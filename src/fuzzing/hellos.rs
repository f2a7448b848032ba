//! What stands in front of a conversation: the hello of a TLS client, the header of a forwarder.

use std::net::{IpAddr, SocketAddr};

use rustls::server::Acceptor;

use super::names::is_sound;
use crate::wire::{
    hello::{ClientHello, Hello, HelloReader, MAX_FLIGHT},
    proxy::{self, BadProxyHeader, Front, MAX_LENGTH},
};

/// The first bytes of a connection, in pieces of any size. What passes must mean the same to rustls.
pub fn client_hello(bytes: &[u8]) {
    let verdict = HelloReader::default().take(bytes);
    for size in [1, 7, 1460] {
        let mut reader = HelloReader::default();
        let mut last = Hello::NeedMore;
        for piece in bytes.chunks(size) {
            let next = reader.take(piece);
            assert!(last == Hello::NeedMore || last == next, "a verdict stays");
            last = next;
        }
        assert_eq!(last, verdict, "in pieces of {size}");
        if last != Hello::NeedMore {
            assert_eq!(reader.take(b"more"), last, "whatever follows");
        }
    }
    match verdict {
        Hello::Complete(hello) => is_heard_alike(bytes, &hello),
        Hello::NeedMore => assert!(bytes.len() < MAX_FLIGHT, "nobody may send without end"),
        Hello::NotTls | Hello::Malformed | Hello::TooLong => {}
    }
}

/// rustls may refuse more than we do, or have no room for as much. What it takes has the same name.
fn is_heard_alike(bytes: &[u8], ours: &ClientHello) {
    if let Some(name) = &ours.server_name {
        is_sound(name.as_name());
        assert!(!name.as_name().is_root());
        let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(byte);
        assert!(name.as_name().labels().all(|label| label.iter().all(is_plain)), "{name}");
        assert!(name.to_string().parse::<IpAddr>().is_err(), "{name} is an address");
    }
    let (mut acceptor, mut rest) = (Acceptor::default(), bytes);
    while !rest.is_empty() {
        let before = rest.len();
        if acceptor.read_tls(&mut rest).is_err() || rest.len() == before {
            return;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let theirs =
                    accepted.client_hello().server_name().map(|name| name.trim_end_matches('.').to_lowercase());
                assert_eq!(ours.server_name.as_ref().map(ToString::to_string), theirs);
                return;
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// The header that a forwarder puts in front of a question.
pub fn proxy_header(bytes: &[u8]) {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let outcome = proxy::read(bytes);
    let begins = !bytes.is_empty() && (bytes.starts_with(SIGNATURE) || SIGNATURE.starts_with(bytes));
    assert_eq!(outcome == Ok(Front::Plain), !begins, "nothing else begins like a header");
    match outcome {
        Ok(Front::Plain) => {}
        Ok(Front::Incomplete) => assert!(bytes.len() < MAX_LENGTH),
        Ok(Front::Header { source, length }) => {
            assert!((16..=MAX_LENGTH.min(bytes.len())).contains(&length));
            assert_eq!(proxy::read(&bytes[..length]), outcome, "what follows is not looked at");
            assert_eq!(proxy::read(&bytes[..length - 1]), Ok(Front::Incomplete), "not before all is there");
            assert_eq!(source, source_of(&bytes[..length]));
        }
        Err(BadProxyHeader::Long(length)) => assert!(length > MAX_LENGTH),
        Err(BadProxyHeader::Version(_) | BadProxyHeader::Addresses) => assert!(bytes.len() >= 16),
    }
}

/// The source, read as literally as haproxy's text has it.
fn source_of(header: &[u8]) -> Option<SocketAddr> {
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    match (header[12], header[13] >> 4) {
        (0x21, 1) => Some(SocketAddr::new(IpAddr::from(*header[16..].first_chunk::<4>()?), port(24))),
        (0x21, 2) => Some(SocketAddr::new(IpAddr::from(*header[16..].first_chunk::<16>()?).to_canonical(), port(48))),
        _ => None,
    }
}
