//! The header a front resolver puts before a question to say for whom it asks: PROXY protocol version 2
//! (haproxy's `doc/proxy-protocol.txt`, section 2.2). Version 1, a line of text, is not read. Whether
//! the sender is believed is the caller's decision.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use super::cursor::{Cursor, Malformed};

/// Longest header that is read, in bytes: what the smallest TCP segment holds that every host must take.
pub const MAX_LENGTH: usize = 536;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Length of signature, command, family and length field.
const FIXED: usize = 16;

/// What stands at the front of some bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Front {
    /// No PROXY header.
    Plain,
    /// The beginning of one. On a stream more may come; a datagram was cut.
    Incomplete,
    /// One.
    Header {
        /// For whom is asked; `None` where the sender speaks for itself (LOCAL) or names no IP address.
        source: Option<SocketAddr>,
        /// Where the message begins, in bytes.
        length: usize,
    },
}

/// The signature is there, and what follows is no header that may be read.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BadProxyHeader {
    /// Not version 2, or a command beside LOCAL and PROXY.
    #[error("PROXY header with version and command {0:#04x}")]
    Version(u8),
    /// An address block of another length than its family has.
    #[error("PROXY header whose addresses are cut off")]
    Addresses,
    /// Longer than [`MAX_LENGTH`].
    #[error("PROXY header of {0} bytes; at most {MAX_LENGTH} are read")]
    Long(usize),
}

/// Looks for a header at the front of `bytes`.
///
/// # Errors
/// The signature is there and the rest is wrong: the sender cannot be understood, and nothing it sends
/// after may be taken for a question.
pub fn read(bytes: &[u8]) -> Result<Front, BadProxyHeader> {
    let seen = bytes.len().min(SIGNATURE.len());
    if bytes.is_empty() || bytes.get(..seen) != SIGNATURE.get(..seen) {
        return Ok(Front::Plain);
    }
    let Some(&[.., command, family, high, low]) = bytes.first_chunk::<FIXED>() else {
        return Ok(Front::Incomplete);
    };
    if !matches!(command, 0x20 | 0x21) {
        return Err(BadProxyHeader::Version(command));
    }
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_LENGTH {
        return Err(BadProxyHeader::Long(length));
    }
    let Some(rest) = bytes.get(FIXED..length) else { return Ok(Front::Incomplete) };
    let source = if command == 0x21 { read_source(family, rest)? } else { None };
    Ok(Front::Header { source, length })
}

/// The source of an address block: source, destination, source port, destination port. TLVs may follow.
fn read_source(family: u8, block: &[u8]) -> Result<Option<SocketAddr>, BadProxyHeader> {
    // The upper half is the address family, the lower one says stream or datagram, which the socket knows better.
    let size = match family >> 4 {
        1 => 4,
        2 => 16,
        _ => return Ok(None),
    };
    read_addresses(size, block).map(Some).map_err(|Malformed| BadProxyHeader::Addresses)
}

fn read_addresses(size: usize, block: &[u8]) -> Result<SocketAddr, Malformed> {
    let mut cursor = Cursor::new(block, 0);
    let source = cursor.take(size)?;
    cursor.take(size)?;
    let port = cursor.number()?;
    cursor.number()?;
    let address: IpAddr = match (source.first_chunk::<16>(), source.first_chunk::<4>()) {
        (Some(bytes), _) => Ipv6Addr::from(*bytes).to_canonical(),
        (None, Some(bytes)) => Ipv4Addr::from(*bytes).into(),
        (None, None) => return Err(Malformed),
    };
    Ok(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &[command, family], &length, block].concat()
    }

    fn v4_block() -> Vec<u8> {
        vec![192, 0, 2, 7, 127, 0, 0, 1, 0x30, 0x39, 0, 53]
    }

    fn v6_block() -> Vec<u8> {
        [&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets()[..], &[0; 16], &[0x30, 0x39, 0, 53]].concat()
    }

    #[test]
    fn a_header_names_its_source_whatever_the_transport() {
        let v4 = "192.0.2.7:12345".parse().ok();
        let v6 = "[2001:db8::7]:12345".parse().ok();
        let mapped = [&"::ffff:192.0.2.7".parse::<Ipv6Addr>().unwrap().octets()[..], &[0; 16], &[0x30, 0x39, 0, 53]];
        let with_tlv = [v4_block(), vec![4, 0, 1, 0]].concat();
        #[rustfmt::skip]
        let cases: &[(&str, Vec<u8>, Option<SocketAddr>)] = &[
            ("v4 over UDP",        header(0x21, 0x12, &v4_block()),        v4),
            ("v4 over TCP",        header(0x21, 0x11, &v4_block()),        v4),
            ("v4 with TLV",        header(0x21, 0x12, &with_tlv),          v4),
            ("v6 over UDP",        header(0x21, 0x22, &v6_block()),        v6),
            ("v4-mapped is v4",    header(0x21, 0x22, &mapped.concat()),   v4),
            ("local",              header(0x20, 0x00, &[]),                None),
            ("local with address", header(0x20, 0x12, &v4_block()),        None),
            ("unspecified",        header(0x21, 0x00, &[]),                None),
            ("unix",               header(0x21, 0x31, &[b'/'; 216]),       None),
        ];
        for (what, bytes, source) in cases {
            let mut followed = bytes.clone();
            followed.extend_from_slice(b"message");
            assert_eq!(read(&followed), Ok(Front::Header { source: *source, length: bytes.len() }), "{what}");
            for cut in 1..bytes.len() {
                assert_eq!(read(&bytes[..cut]), Ok(Front::Incomplete), "{what} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_told_from_a_broken_one() {
        #[rustfmt::skip]
        let cases: &[(&str, Vec<u8>, Result<Front, BadProxyHeader>)] = &[
            ("nothing",       vec![],                                        Ok(Front::Plain)),
            ("a query",       b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec(),  Ok(Front::Plain)),
            ("version 1",     b"PROXY TCP4 192.0.2.7 127.0.0.1".to_vec(),    Ok(Front::Plain)),
            ("version 3",     header(0x31, 0x12, &v4_block()),               Err(BadProxyHeader::Version(0x31))),
            ("command 2",     header(0x22, 0x12, &v4_block()),               Err(BadProxyHeader::Version(0x22))),
            ("v4 too short",  header(0x21, 0x12, &v4_block()[..11]),         Err(BadProxyHeader::Addresses)),
            ("v6 too short",  header(0x21, 0x22, &v4_block()),               Err(BadProxyHeader::Addresses)),
            ("longest",       header(0x20, 0, &[0; 520]),                    Ok(Front::Header { source: None, length: 536 })),
            ("too long",      header(0x20, 0, &[0; 521]),                    Err(BadProxyHeader::Long(537))),
        ];
        for (what, bytes, expected) in cases {
            assert_eq!(read(bytes), *expected, "{what}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_point_past_their_end(tail in prop::collection::vec(any::<u8>(), 0..600)) {
            let bytes = [SIGNATURE.as_slice(), &tail].concat();
            if let Ok(Front::Header { length, .. }) = read(&bytes) {
                prop_assert!(length <= bytes.len() && length <= MAX_LENGTH);
            }
        }
    }
}
