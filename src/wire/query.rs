//! The bytes of a question to an upstream server, and whether a packet is the reply to it.
//!
//! Nothing of a client's packet is passed on: header, question and OPT record are made here, so no client
//! subnet, cookie or unknown option can leak. What a reply says beyond its question is not looked at.

use crate::name::DomainName;

/// A question of class IN, with what must be equal for two clients to share its reply.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Query {
    /// The name.
    pub name: DomainName,
    /// The type's number.
    pub qtype: u16,
    /// DNSSEC OK (RFC 3225): send signatures.
    pub dnssec_ok: bool,
    /// Checking Disabled (RFC 4035 section 3.2.2): do not validate for me.
    pub checking_disabled: bool,
}

/// What a packet is to a question that was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Fit {
    /// The reply: id, QR, opcode and the whole question are right.
    Reply,
    /// Right id, QR and opcode, no question at all, and FORMERR or NOTIMP: an old server that does not know EDNS.
    /// No answer, only a hint.
    Bare,
    /// Too short, QR clear, an opcode other than QUERY, another id or another question: somebody guesses, or the
    /// server is broken.
    NearMiss,
}

/// The payload we offer over UDP: fits the smallest IPv6 path without fragments (DNS flag day 2020).
pub const UDP_PAYLOAD: u16 = 1232;

/// A header's length.
const HEADER: usize = 12;

impl Query {
    /// The packet. RD is set, and AD as RFC 6840 section 5.7 has it: we understand AD in the reply, whether or not
    /// signatures are wanted; who gets it is decided where the reply goes out. `edns` adds an OPT record without options.
    pub fn to_packet(&self, id: u16, edns: bool) -> Vec<u8> {
        let name = self.name.as_wire();
        let mut packet = Vec::with_capacity(HEADER + name.len() + 4 + 11);
        packet.extend(id.to_be_bytes());
        packet.push(0x01);
        packet.push(0x20 | if self.checking_disabled { 0x10 } else { 0 });
        packet.extend([0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
        packet.extend(name);
        packet.extend(self.qtype.to_be_bytes());
        packet.extend([0, 1]);
        if edns {
            // Root, OPT, payload, extended rcode and version 0, flags, no options (RFC 6891 section 6.1.2).
            packet.extend([0, 0, 41]);
            packet.extend(UDP_PAYLOAD.to_be_bytes());
            packet.extend([0, 0, if self.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
        }
        packet
    }

    /// Is `packet` the reply to this question, sent with this id?
    pub fn fit(&self, id: u16, packet: &[u8]) -> Fit {
        let Some((header, rest)) = packet.split_at_checked(HEADER) else { return Fit::NearMiss };
        let &[id_high, id_low, flags, _, count_high, count_low, ..] = header else { return Fit::NearMiss };
        // QR and the four bits of the opcode.
        if u16::from_be_bytes([id_high, id_low]) != id || flags & 0xf8 != 0x80 {
            return Fit::NearMiss;
        }
        match u16::from_be_bytes([count_high, count_low]) {
            1 if self.is_question(rest) => Fit::Reply,
            0 if rest.is_empty() && matches!(rcode(packet), FORMERR | NOTIMP) => Fit::Bare,
            _ => Fit::NearMiss,
        }
    }

    /// Do the bytes after the header start with this question? Case aside: some servers do not keep it.
    fn is_question(&self, bytes: &[u8]) -> bool {
        let name = self.name.as_wire();
        let Some((asked, rest)) = bytes.split_at_checked(name.len()) else { return false };
        let [high, low] = self.qtype.to_be_bytes();
        // Length bytes are below 64, so they are not changed by ignoring case.
        // Most servers keep it, and to find that is cheap.
        (asked == name || asked.eq_ignore_ascii_case(name)) && rest.starts_with(&[high, low, 0, 1])
    }
}

/// The server could not read the question (RFC 1035 section 4.1.1).
pub const FORMERR: u8 = 1;
/// The server failed.
pub const SERVFAIL: u8 = 2;
/// The server does not know this kind of question.
pub const NOTIMP: u8 = 4;
/// The server does not want to answer.
pub const REFUSED: u8 = 5;

/// The response code of the header, without the upper bits in an OPT record.
pub fn rcode(packet: &[u8]) -> u8 {
    packet.get(3).map_or(SERVFAIL, |flags| flags & 0x0f)
}

/// Is the reply cut (TC)?
pub fn is_truncated(packet: &[u8]) -> bool {
    packet.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Marks a reply as cut: it was longer than the room for it.
pub fn set_truncated(packet: &mut [u8]) {
    if let Some(flags) = packet.get_mut(2) {
        *flags |= 0x02;
    }
}

/// Does nothing follow in the additional section, not even an OPT record? A server that knows EDNS answers with one
/// (RFC 6891 section 6.1.1).
pub fn is_without_edns(packet: &[u8]) -> bool {
    packet.get(10..HEADER) == Some(&[0, 0])
}

/// The id.
pub fn id(packet: &[u8]) -> Option<u16> {
    packet.first_chunk().map(|&bytes| u16::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Message, MessageType, OpCode},
        rr::{DNSClass, RecordType},
    };
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str) -> Query {
        Query { name: name.parse().unwrap(), qtype: 28, dnssec_ok: true, checking_disabled: false }
    }

    fn reply(query: &Query, id: u16) -> Vec<u8> {
        let mut packet = query.to_packet(id, true);
        packet[2] |= 0x80;
        packet
    }

    #[test]
    fn the_packet_says_what_was_asked_and_nothing_of_a_client() {
        for (edns, dnssec_ok, checking_disabled) in
            [(true, true, false), (true, false, true), (false, false, false), (false, true, true)]
        {
            let query = Query { dnssec_ok, checking_disabled, ..query("www.example.org") };
            let message = Message::from_vec(&query.to_packet(0xbeef, edns)).unwrap();
            assert_eq!(message.metadata.id, 0xbeef);
            assert_eq!(message.metadata.message_type, MessageType::Query);
            assert_eq!(message.metadata.op_code, OpCode::Query);
            assert!(message.metadata.recursion_desired && message.metadata.authentic_data);
            assert_eq!(message.metadata.checking_disabled, checking_disabled);
            assert_eq!(message.queries.len(), 1);
            assert_eq!(message.queries[0].name().to_ascii(), "www.example.org.");
            assert_eq!(message.queries[0].query_type(), RecordType::AAAA);
            assert_eq!(message.queries[0].query_class(), DNSClass::IN);
            assert_eq!(message.edns.is_some(), edns);
            if let Some(edns) = &message.edns {
                assert_eq!((edns.max_payload(), edns.version()), (UDP_PAYLOAD, 0));
                assert_eq!(edns.flags().dnssec_ok, dnssec_ok);
                assert!(edns.options().as_ref().is_empty());
            }
        }
    }

    #[test]
    fn a_reply_counts_only_when_all_of_its_question_fits() {
        let asked = query("www.example.org");
        let good = reply(&asked, 7);
        let end = HEADER + asked.name.as_wire().len();
        let changed = |index: usize, value: u8| {
            let mut packet = good.clone();
            packet[index] = value;
            packet
        };
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<u8>, Fit)> = vec![
            ("as asked",          good.clone(),               Fit::Reply),
            ("another case",      changed(HEADER + 1, b'W'),  Fit::Reply),
            ("another id",        changed(1, 8),              Fit::NearMiss),
            ("not a reply",       changed(2, 0x01),           Fit::NearMiss),
            ("opcode NOTIFY",     changed(2, 0xa1),           Fit::NearMiss),
            ("another name",      changed(HEADER + 1, b'x'),  Fit::NearMiss),
            ("another type",      changed(end + 1, 1),        Fit::NearMiss),
            ("another class",     changed(end + 3, 3),        Fit::NearMiss),
            ("no question",       changed(5, 0),              Fit::NearMiss),
            ("two questions",     changed(5, 2),              Fit::NearMiss),
            ("header only",       good[..HEADER].to_vec(),    Fit::NearMiss),
            ("cut in the name",   good[..end - 2].to_vec(),   Fit::NearMiss),
            ("cut in the type",   good[..end + 3].to_vec(),   Fit::NearMiss),
            ("half a header",     good[..6].to_vec(),         Fit::NearMiss),
            ("nothing",           Vec::new(),                 Fit::NearMiss),
            ("bare FORMERR",      vec![0, 7, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0], Fit::Bare),
            ("bare NXDOMAIN",     vec![0, 7, 0x80, 3, 0, 0, 0, 0, 0, 0, 0, 0], Fit::NearMiss),
        ];
        for (case, packet, expected) in cases {
            assert_eq!(asked.fit(7, &packet), expected, "{case}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_but_the_questions_own_are_its_reply(packet in prop::collection::vec(any::<u8>(), 0..64)) {
            let asked = query("a.example");
            prop_assert_eq!(asked.fit(7, &packet) == Fit::Reply, packet.starts_with(&reply(&asked, 7)[..2])
                && Message::from_vec(&packet).is_ok_and(|message| message.queries.len() == 1));
        }
    }
}
