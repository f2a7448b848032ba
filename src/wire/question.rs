//! A client's packet, looked at in one pass without allocation. The question comes first, so that a
//! policy can refuse a name before anything behind it is even found wrong.
//!
//! Work is bounded: the header, at most 128 labels, [`MAX_RECORDS`] records, [`MAX_OPTIONS`] options.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    HEADER, Header, PLAIN_UDP_SIZE, Rcode,
    cursor::{Cursor, Malformed},
    rtype,
};
use crate::name::{NameBuffer, NameRef};

/// Most records behind a question that are looked at; real clients send an OPT and perhaps a TSIG.
pub const MAX_RECORDS: u16 = 8;

/// Most EDNS options that are looked at (CVE-2026-41292 was a list of thousands).
pub const MAX_OPTIONS: usize = 64;

/// What a packet turned out to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Peeked<'p> {
    /// Nothing that may be answered.
    Silence(Scrap),
    /// A query without a question that could be judged: answered with `rcode` and a bare header.
    Fault {
        /// Its header.
        header: Header,
        /// NOTIMP for an unknown operation, else FORMERR.
        rcode: Rcode,
    },
    /// A question.
    Question(Question<'p>),
}

/// Why a packet is never answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scrap {
    /// Shorter than a header.
    Short,
    /// A response; answering one makes loops (CVE-2024-2169).
    Response,
}

/// A question, and whatever came with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Question<'p> {
    /// Id and flags.
    pub header: Header,
    /// The name, in lower case.
    pub name: NameRef<'p>,
    /// The type, as its number.
    pub qtype: u16,
    /// The class, as its number; 1 is IN.
    pub qclass: u16,
    /// The question section byte for byte: the name in the client's case, type, class.
    pub section: &'p [u8],
    /// What the OPT record says, if there is one that could be read.
    pub edns: Option<Edns>,
    /// What is wrong behind the question: FORMERR or BADVERS. To be answered only after the block decision.
    pub fault: Option<Rcode>,
}

/// An OPT record (RFC 6891). Unknown options and flags are passed over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Edns {
    /// The largest datagram the client can take, as it says, in bytes.
    pub udp_size: u16,
    /// Its EDNS version; all but 0 is answered with BADVERS.
    pub version: u8,
    /// DO: it wants DNSSEC records.
    pub dnssec_ok: bool,
    /// The client subnet option's address (RFC 7871), where it names a single host. To be believed of forwarders only.
    pub client_subnet: Option<IpAddr>,
}

impl Question<'_> {
    /// Does the client want DNSSEC records?
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The largest datagram this client may be sent, in bytes, if we never send more than `ours`.
    pub fn udp_limit(&self, ours: u16) -> usize {
        let theirs = self.edns.map_or(PLAIN_UDP_SIZE, |edns| edns.udp_size);
        // Less than 512 means 512 (RFC 6891 section 6.2.3).
        usize::from(theirs.min(ours).max(PLAIN_UDP_SIZE))
    }
}

/// Looks at a packet. The name in the result lives in `buffer`.
pub fn peek<'p>(packet: &'p [u8], buffer: &'p mut NameBuffer) -> Peeked<'p> {
    let Some(&[i, d, high, low, qd_high, qd_low, ref counts @ ..]) = packet.first_chunk::<HEADER>() else {
        return Peeked::Silence(Scrap::Short);
    };
    if high & 0x80 != 0 {
        return Peeked::Silence(Scrap::Response);
    }
    let header = Header {
        id: u16::from_be_bytes([i, d]),
        opcode: high >> 3 & 0xf,
        recursion_desired: high & 0x01 != 0,
        authentic_data: low & 0x20 != 0,
        checking_disabled: low & 0x10 != 0,
    };
    if header.opcode != 0 {
        return Peeked::Fault { header, rcode: Rcode::NOTIMP };
    }
    // QDCOUNT 1 and nothing else: RFC 9619.
    if [qd_high, qd_low] != [0, 1] {
        return Peeked::Fault { header, rcode: Rcode::FORMERR };
    }
    let mut cursor = Cursor::new(packet, HEADER);
    let Ok((qtype, qclass)) = read_question(&mut cursor, buffer) else {
        return Peeked::Fault { header, rcode: Rcode::FORMERR };
    };
    let section = packet.get(HEADER..cursor.position()).unwrap_or_default();
    let (edns, fault) = match read_rest(&mut cursor, *counts) {
        Ok(edns) => (edns, edns.filter(|edns| edns.version > 0).map(|_| Rcode::BADVERS)),
        Err(Malformed) => (None, Some(Rcode::FORMERR)),
    };
    Peeked::Question(Question { header, name: buffer.name(), qtype, qclass, section, edns, fault })
}

/// A question's name has nothing to point back at: a pointer in it is as wrong as a label of another kind.
fn read_question(cursor: &mut Cursor<'_>, buffer: &mut NameBuffer) -> Result<(u16, u16), Malformed> {
    cursor.plain_name(buffer)?;
    Ok((cursor.number()?, cursor.number()?))
}

/// Everything behind the question. TSIG, SIG(0) and what else is no OPT is passed over: a forwarder shares
/// no key with its clients, and one that insists on a signature sees that our answer has none.
fn read_rest(cursor: &mut Cursor<'_>, counts: [u8; 6]) -> Result<Option<Edns>, Malformed> {
    let [0, 0, 0, 0, additional @ ..] = counts else { return Err(Malformed) };
    let additional = u16::from_be_bytes(additional);
    if additional > MAX_RECORDS {
        return Err(Malformed);
    }
    let mut edns = None;
    for _ in 0..additional {
        let start = cursor.position();
        cursor.skip_name()?;
        let is_root = cursor.position() == start + 1;
        let rtype = cursor.number()?;
        let (udp_size, ttl, length) = (cursor.number()?, cursor.long_number()?, cursor.number()?);
        let data = cursor.take(usize::from(length))?;
        if rtype != rtype::OPT {
            continue;
        }
        // The root owns it, and there is one (RFC 6891 section 6.1.1).
        if !is_root || edns.is_some() {
            return Err(Malformed);
        }
        let [_, version, flags, _] = ttl.to_be_bytes();
        // Options of another version may look otherwise.
        let client_subnet = if version == 0 { read_options(data)? } else { None };
        edns = Some(Edns { udp_size, version, dnssec_ok: flags & 0x80 != 0, client_subnet });
    }
    if cursor.is_at_end() { Ok(edns) } else { Err(Malformed) }
}

/// The options of an OPT record, of which only the client subnet means anything to us.
fn read_options(data: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    const CLIENT_SUBNET: u16 = 8;
    let mut cursor = Cursor::new(data, 0);
    let mut subnet = None;
    for _ in 0..MAX_OPTIONS {
        if cursor.is_at_end() {
            return Ok(subnet.flatten());
        }
        let (code, length) = (cursor.number()?, cursor.number()?);
        let value = cursor.take(usize::from(length))?;
        if code == CLIENT_SUBNET {
            // Two of them would let a client choose which one we believe.
            if subnet.is_some() {
                return Err(Malformed);
            }
            subnet = Some(read_client_subnet(value)?);
        }
    }
    if cursor.is_at_end() { Ok(subnet.flatten()) } else { Err(Malformed) }
}

/// A client subnet option: `None` for a network or a family that names no host.
/// What RFC 7871 sections 6 and 7.1.2 forbid in a query is malformed.
fn read_client_subnet(value: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    let mut cursor = Cursor::new(value, 0);
    let (family, prefix, scope) = (cursor.number()?, cursor.byte()?, cursor.byte()?);
    let address = cursor.take(usize::from(prefix).div_ceil(8))?;
    let widest = match family {
        1 => 32,
        2 => 128,
        // Family 0 with prefix 0 is how some clients ask not to be told apart.
        _ => u8::MAX,
    };
    let spare_bits = match prefix % 8 {
        0 => 0,
        used => 0xff_u8 >> used,
    };
    let dirty = address.last().is_some_and(|last| last & spare_bits != 0);
    if scope != 0 || prefix > widest || dirty || !cursor.is_at_end() {
        return Err(Malformed);
    }
    Ok(match (family, address.first_chunk::<4>(), address.first_chunk::<16>()) {
        (1, Some(bytes), _) if prefix == 32 => Some(Ipv4Addr::from(*bytes).into()),
        (2, _, Some(bytes)) if prefix == 128 => Some(Ipv6Addr::from(*bytes).into()),
        _ => None,
    })
}
