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

#[cfg(test)]
#[allow(clippy::type_complexity, clippy::cloned_ref_to_slice_refs, reason = "tables of columns that read alike")]
mod tests {
    use hickory_proto::{
        op::{Edns as HickoryEdns, Message, OpCode, Query},
        rr::{DNSClass, Name, RecordType},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::wire::testing::{longest_name, message, name, opt, option, query, record};

    /// What became of a packet, with the name as text.
    fn peeked<T>(packet: &[u8], look: impl FnOnce(Peeked<'_>) -> T) -> T {
        look(peek(packet, &mut NameBuffer::new()))
    }

    fn question<T>(packet: &[u8], look: impl FnOnce(Question<'_>) -> T) -> T {
        peeked(packet, |peeked| match peeked {
            Peeked::Question(question) => look(question),
            Peeked::Silence(_) | Peeked::Fault { .. } => panic!("{peeked:?} for {packet:02x?}"),
        })
    }

    fn rcode(packet: &[u8]) -> Option<Rcode> {
        peeked(packet, |peeked| match peeked {
            Peeked::Fault { rcode, .. } => Some(rcode),
            Peeked::Question(question) => question.fault,
            Peeked::Silence(scrap) => panic!("{scrap:?}"),
        })
    }

    #[test]
    fn responses_and_scraps_get_silence() {
        let packet = query("a.example", 1, &[]);
        for length in 0..12 {
            assert!(peeked(&packet[..length], |peeked| peeked == Peeked::Silence(Scrap::Short)));
        }
        for flags in [0x8000, 0x8180, 0xf800, 0xffff] {
            let response = message(flags, ("a.example", 1), [&[], &[], &[]]);
            assert!(peeked(&response, |peeked| peeked == Peeked::Silence(Scrap::Response)), "{flags:04x}");
        }
    }

    #[test]
    fn every_operation_but_query_is_not_implemented_whatever_follows() {
        for opcode in 1..16_u8 {
            for tail in [&b""[..], b"\xff\xff\xff"] {
                let packet = [&[7, 7, opcode << 3, 0, 0, 9, 0, 0, 0, 0, 0, 0], tail].concat();
                let header = Header { id: 0x0707, opcode, ..Header::default() };
                let expected = Peeked::Fault { header, rcode: Rcode::NOTIMP };
                assert!(peeked(&packet, |peeked| peeked == expected), "opcode {opcode}");
            }
        }
    }

    #[test]
    fn a_question_that_cannot_be_read_is_a_format_error() {
        let header = |questions: u8| vec![0x12, 0x34, 1, 0, 0, questions, 0, 0, 0, 0, 0, 0];
        let with = |questions: u8, rest: &[u8]| [header(questions), rest.to_vec()].concat();
        let plain = [name("a.example"), vec![0, 1, 0, 1]].concat();
        let too_long = [name(&format!("{}d", longest_name())), vec![0, 1, 0, 1]].concat();
        #[rustfmt::skip]
        let cases: &[(&str, Vec<u8>)] = &[
            ("no question",                with(0, &[])),
            ("no question, yet one there", with(0, &plain)),
            ("two questions",              with(2, &[plain.clone(), plain.clone()].concat())),
            ("nothing behind the header",  with(1, &[])),
            ("cut in the name",            with(1, &plain[..5])),
            ("no root",                    with(1, &plain[..10])),
            ("no type",                    with(1, &plain[..11])),
            ("half a class",               with(1, &plain[..plain.len() - 1])),
            ("pointer to itself",          with(1, &[0xc0, 12, 0, 1, 0, 1])),
            ("pointer to the header",      with(1, &[1, b'a', 0xc0, 0, 0, 1, 0, 1])),
            ("label of 64",                with(1, &[&[64], &[b'a'; 64][..], &[0, 0, 1, 0, 1]].concat())),
            ("extended label",             with(1, &[0x41, 0, 0, 1, 0, 1])),
            ("name of 256",                with(1, &too_long)),
        ];
        for (what, packet) in cases {
            let expected = Some(Rcode::FORMERR);
            let is_fault = peeked(packet, |peeked| matches!(peeked, Peeked::Fault { .. }));
            assert!(is_fault && rcode(packet) == expected, "{what}");
        }
    }

    #[test]
    fn flags_name_and_section_are_read_as_they_stand() {
        let packet = message(0x0130, ("cOnNeCt.Ngrok-Agent.COM", 65), [&[], &[], &[]]);
        question(&packet, |question| {
            let flags = question.header;
            assert_eq!((flags.id, flags.opcode), (0x1234, 0));
            assert!(flags.recursion_desired && flags.authentic_data && flags.checking_disabled);
            assert_eq!(question.name.to_string(), "connect.ngrok-agent.com");
            assert_eq!((question.qtype, question.qclass), (65, 1));
            assert_eq!(question.section, &packet[12..]);
            assert_eq!((question.edns, question.fault), (None, None));
        });
        let none = message(0, ("", 2), [&[], &[], &[]]);
        question(&none, |question| {
            assert!(question.name.is_root());
            assert_eq!(question.header, Header { id: 0x1234, ..Header::default() });
        });
    }

    #[test]
    fn the_longest_name_is_a_question() {
        question(&query(&longest_name(), 1, &[]), |question| assert_eq!(question.name.as_wire().len(), 255));
    }

    #[test]
    fn what_is_wrong_behind_a_question_does_not_hide_it() {
        const FORMERR: Option<Rcode> = Some(Rcode::FORMERR);
        const BADVERS: Option<Rcode> = Some(Rcode::BADVERS);
        let plain = opt(1232, 0, 0, &[]);
        let a = record(&name("a.example"), 1, 0, &[192, 0, 2, 1]);
        let of_owner = |owner: &[u8]| [owner, &plain[1..]].concat();
        let options = |count: usize| opt(1232, 0, 0, &option(65001, b"x").repeat(count));
        let ask = |additional: &[Vec<u8>]| query("a.example", 1, additional);
        let sections = |sections: [&[Vec<u8>]; 3]| message(0x0100, ("a.example", 1), sections);
        let tsig = record(&name("key"), 250, 0, &[1, 2, 3]);
        #[rustfmt::skip]
        let cases: &[(&str, Vec<u8>, Option<Rcode>)] = &[
            ("OPT",                      ask(&[plain.clone()]),                          None),
            ("unknown flags",            ask(&[opt(1232, 0, 0x7f, &[])]),                None),
            ("unknown options",          ask(&[options(3)]),                             None),
            ("TSIG behind OPT",          ask(&[plain.clone(), tsig.clone()]),            None),
            ("TSIG alone",               ask(&[tsig]),                                   None),
            ("owner as pointer",         ask(&[record(&[0xc0, 12], 1, 0, &[1; 4])]),     None),
            ("8 records",                ask(&vec![a.clone(); 8]),                       None),
            ("9 records",                ask(&vec![a.clone(); 9]),                       FORMERR),
            ("64 options",               ask(&[options(64)]),                            None),
            ("65 options",               ask(&[options(65)]),                            FORMERR),
            ("two OPTs",                 ask(&[plain.clone(), plain.clone()]),           FORMERR),
            ("OPT not of the root",      ask(&[of_owner(&name("a"))]),                   FORMERR),
            ("OPT of a pointer",         ask(&[of_owner(&[0xc0, 12])]),                  FORMERR),
            ("option cut off",           ask(&[opt(1232, 0, 0, &[0, 10, 0, 9, 1])]),     FORMERR),
            ("half an option",           ask(&[opt(1232, 0, 0, &[0, 10, 0])]),           FORMERR),
            ("version 1",                ask(&[opt(1232, 1, 0, &[])]),                   BADVERS),
            ("version 255, odd options", ask(&[opt(1232, 255, 0, &[9])]),                BADVERS),
            ("an answer",                sections([&[a.clone()], &[], &[]]),             FORMERR),
            ("an authority",             sections([&[], &[a.clone()], &[]]),             FORMERR),
            ("trailing byte",            [ask(&[]), vec![0]].concat(),                   FORMERR),
            ("trailing byte, OPT",       [ask(&[plain.clone()]), vec![0]].concat(),      FORMERR),
            ("record cut off",           ask(&[plain[..10].to_vec()]),                   FORMERR),
            ("no record",                ask(&[vec![]]),                                 FORMERR),
            ("bad owner",                ask(&[record(&[0x80, 0], 1, 0, &[])]),          FORMERR),
        ];
        for (what, packet, fault) in cases {
            question(packet, |question| {
                assert_eq!(question.name.to_string(), "a.example", "{what}");
                assert_eq!(question.fault, *fault, "{what}");
            });
        }
    }

    #[test]
    fn edns_tells_size_and_do() {
        #[rustfmt::skip]
        let cases: &[(Option<(u16, u8)>, bool, usize)] = &[
            (None,                false, 512),
            (Some((4096, 0x80)),  true,  1232),
            (Some((1000, 0)),     false, 1000),
            (Some((100, 0x40)),   false, 512),
            (Some((0, 0xff)),     true,  512),
        ];
        for &(edns, dnssec_ok, limit) in cases {
            let additional: Vec<_> = edns.map(|(size, flags)| opt(size, 0, flags, &[])).into_iter().collect();
            question(&query("a.example", 1, &additional), |question| {
                assert_eq!((question.dnssec_ok(), question.udp_limit(1232)), (dnssec_ok, limit), "{edns:?}");
            });
        }
    }

    #[test]
    fn a_client_subnet_is_an_address_only_in_full_length() {
        let v6 = "2001:db8::7".parse::<Ipv6Addr>().unwrap();
        let v6_option = [&[0, 2, 128, 0][..], &v6.octets()].concat();
        let v4 = IpAddr::from([192, 0, 2, 7]);
        let bad = Err(Rcode::FORMERR);
        #[rustfmt::skip]
        let cases: &[(&str, &[u8], Result<Option<IpAddr>, Rcode>)] = &[
            ("v4 host",         &[0, 1, 32, 0, 192, 0, 2, 7],    Ok(Some(v4))),
            ("v6 host",         &v6_option,                      Ok(Some(v6.into()))),
            ("v4 network",      &[0, 1, 24, 0, 192, 0, 2],       Ok(None)),
            ("v4 opt out",      &[0, 1, 0, 0],                   Ok(None)),
            ("no family",       &[0, 0, 0, 0],                   Ok(None)),
            ("unknown family",  &[0, 3, 8, 0, 1],                Ok(None)),
            ("v4 of 33 bits",   &[0, 1, 33, 0, 1, 2, 3, 4, 0],   bad),
            ("too few bytes",   &[0, 1, 32, 0, 192, 0, 2],       bad),
            ("too many bytes",  &[0, 1, 24, 0, 192, 0, 2, 7],    bad),
            ("bits past end",   &[0, 1, 20, 0, 192, 0, 0x1f],    bad),
            ("scope in query",  &[0, 1, 32, 32, 192, 0, 2, 7],   bad),
            ("empty",           &[],                             bad),
        ];
        for (what, value, expected) in cases {
            let packet = query("a.example", 1, &[opt(1232, 0, 0, &option(8, value))]);
            question(&packet, |question| {
                let found = question.fault.map_or(Ok(question.edns.and_then(|edns| edns.client_subnet)), Err);
                assert_eq!(found, *expected, "{what}");
            });
        }
        let twice = option(8, &[0, 1, 32, 0, 192, 0, 2, 7]).repeat(2);
        assert_eq!(rcode(&query("a.example", 1, &[opt(1232, 0, 0, &twice)])), Some(Rcode::FORMERR));
    }

    prop_compose! {
        fn any_query()(
            labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..8),
            (id, qtype, qclass, rd, cd) in any::<(u16, u16, u16, bool, bool)>(),
            edns in prop::option::of((any::<u16>(), any::<bool>(), 0_u8..2)),
        ) -> Message {
            let mut message = Message::query();
            message.metadata.id = id;
            message.metadata.recursion_desired = rd;
            message.metadata.checking_disabled = cd;
            let mut asked = Query::query(Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap(), qtype.into());
            asked.set_query_class(DNSClass::from(qclass));
            message.add_query(asked);
            if let Some((size, dnssec_ok, version)) = edns {
                let mut edns = HickoryEdns::new();
                edns.set_max_payload(size).set_dnssec_ok(dnssec_ok).set_version(version);
                message.set_edns(edns);
            }
            message
        }
    }

    /// Both read the same question. hickory keeps no count of what it skipped, so the section is compared by length.
    fn assert_same(ours: Question<'_>, theirs: &Message) -> Result<(), TestCaseError> {
        let [asked] = theirs.queries.as_slice() else { panic!("{:?}", theirs.queries) };
        let labels: Vec<Vec<u8>> = asked.name.to_lowercase().iter().map(<[u8]>::to_vec).collect();
        prop_assert_eq!(ours.name.labels().map(<[u8]>::to_vec).collect::<Vec<_>>(), labels);
        prop_assert_eq!(ours.qtype, u16::from(asked.query_type));
        prop_assert_eq!(ours.qclass, u16::from(asked.query_class));
        let header = &theirs.metadata;
        prop_assert_eq!(ours.header.id, header.id);
        prop_assert_eq!(ours.header.recursion_desired, header.recursion_desired);
        prop_assert_eq!(ours.header.checking_disabled, header.checking_disabled);
        prop_assert_eq!(ours.header.authentic_data, header.authentic_data);
        prop_assert!(ours.fault.is_some() || ours.edns.is_some() == theirs.edns.is_some());
        let Some(edns) = ours.edns else { return Ok(()) };
        let theirs = theirs.edns.as_ref().unwrap();
        // hickory lifts a size below 512; we do so when we use it.
        prop_assert_eq!(edns.udp_size.max(512), theirs.max_payload());
        prop_assert_eq!((edns.version, edns.dnssec_ok), (theirs.version(), theirs.flags().dnssec_ok));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn what_hickory_writes_is_read_alike(message in any_query()) {
            let packet = message.to_vec().unwrap();
            let mut buffer = NameBuffer::new();
            let Peeked::Question(ours) = peek(&packet, &mut buffer) else { panic!("{packet:02x?}") };
            let version = message.edns.as_ref().map_or(0, HickoryEdns::version);
            prop_assert_eq!(ours.fault, (version > 0).then_some(Rcode::BADVERS));
            prop_assert_eq!(ours.edns.is_some(), message.edns.is_some());
            assert_same(ours, &message)?;
        }

        #[test]
        fn a_mutated_packet_is_read_as_hickory_reads_it(
            message in any_query(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            tail in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let mut packet = message.to_vec().unwrap();
            packet.extend(tail);
            for (index, byte) in changes {
                let at = index.index(packet.len());
                packet[at] = byte;
            }
            let mut buffer = NameBuffer::new();
            match (peek(&packet, &mut buffer), Message::from_vec(&packet)) {
                (Peeked::Question(ours), Ok(theirs)) => assert_same(ours, &theirs)?,
                // hickory decodes every record and option in full; we pass over what is no OPT and no client
                // subnet. It refuses one OPT flaw less and some types more. Without additional records we agree.
                (Peeked::Question(ours), Err(error)) => {
                    prop_assert!(ours.fault.is_some() || packet[10..12] != [0, 0], "{error}");
                }
                // hickory takes any number of questions, compressed ones, other operations; we do not.
                (Peeked::Fault { header, .. }, Ok(theirs)) => {
                    let pointer = packet[12..].contains(&0xc0) || packet[12..].iter().any(|byte| *byte >= 0xc0);
                    prop_assert!(theirs.metadata.op_code != OpCode::Query || theirs.queries.len() != 1 || pointer);
                    prop_assert_eq!(header.id, theirs.metadata.id);
                }
                (Peeked::Silence(_), _) => prop_assert!(packet.len() < 12 || packet[2] & 0x80 != 0),
                (Peeked::Fault { .. }, Err(_)) => {}
            }
        }

        #[test]
        fn no_bytes_make_it_panic(packet in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = peek(&packet, &mut NameBuffer::new());
        }
    }

    #[test]
    fn types_have_the_numbers_that_hickory_gives_them() {
        #[rustfmt::skip]
        let cases = [
            (rtype::A, "A"), (rtype::SOA, "SOA"), (rtype::CNAME, "CNAME"), (rtype::AAAA, "AAAA"), (rtype::OPT, "OPT"),
            (rtype::RRSIG, "RRSIG"), (rtype::NSEC, "NSEC"), (rtype::NSEC3, "NSEC3"), (rtype::SVCB, "SVCB"),
            (rtype::HTTPS, "HTTPS"), (rtype::ANY, "ANY"),
        ];
        for (number, text) in cases {
            assert_eq!(RecordType::from(number).to_string(), text);
        }
    }
}
