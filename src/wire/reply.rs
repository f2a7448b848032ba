//! Replies to clients: refusals by policy, errors, and answers with their TTLs aged. Every reply carries
//! the client's question byte for byte, answers EDNS with EDNS, and keeps within the client's limit.
//! What is said and why is decided elsewhere.

use std::net::IpAddr;

use super::{
    CLASS_IN, HEADER, Header, Rcode, UDP_SIZE,
    answer::Answer,
    ede,
    question::{Edns, Question},
    rtype,
};

/// TTL of an answer that is past its time (RFC 8767 section 4).
pub const STALE_TTL: u32 = 30;

/// An extended DNS error (RFC 8914).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExtendedError<'a> {
    /// The INFO-CODE.
    pub code: u16,
    /// The EXTRA-TEXT, which should be UTF-8; may be empty.
    pub text: &'a [u8],
}

/// How a blocked question is answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal<'a> {
    /// What it says.
    pub form: Form<'a>,
    /// TTL of all records, and the SOA's minimum, in seconds.
    pub ttl: u32,
    /// Text of the extended error: which rule, whom to ask.
    pub text: &'a str,
}

/// What a refusal says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form<'a> {
    /// The name does not exist.
    Nxdomain,
    /// The name has no records of this type.
    Nodata,
    /// REFUSED, without an SOA.
    Refused,
    /// These addresses; NODATA for other types and for a family that has none.
    Sinkhole(&'a [IpAddr]),
}

/// How the TTLs of an answer are changed on their way to a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ageing {
    /// How long ago the answer was read, in seconds: taken off each TTL.
    pub seconds: u32,
    /// No TTL is larger than this, in seconds: `[cache] max-ttl`, or what is left of an exception.
    pub at_most: u32,
    /// The answer is past its time: every TTL is [`STALE_TTL`], and extended error 3 says so.
    pub stale: bool,
}

/// What stands between question and OPT.
#[derive(Clone, Copy, Debug, Default)]
struct Sections {
    answers: u16,
    authorities: u16,
    authentic: bool,
    truncated: bool,
}

impl Ageing {
    /// A TTL as the client gets it.
    fn apply(self, ttl: u32) -> u32 {
        let aged = if self.stale { STALE_TTL } else { ttl.saturating_sub(self.seconds) };
        aged.min(self.at_most)
    }
}

/// A bare header: for what had no question that could be read. `out` is empty.
pub fn fault(header: Header, rcode: Rcode, out: &mut Vec<u8>) {
    out.extend_from_slice(&header_bytes(header, rcode, Sections::default(), 0, 0));
}

/// An error with the question, and with `error` for a client that speaks EDNS. `out` is empty.
pub fn error(question: &Question<'_>, rcode: Rcode, error: Option<ExtendedError<'_>>, limit: usize, out: &mut Vec<u8>) {
    begin(question, out);
    finish(question, rcode, Sections::default(), error, limit, out);
}

/// Nothing, and the advice to ask over TCP. `out` is empty.
pub fn truncated(question: &Question<'_>, out: &mut Vec<u8>) {
    begin(question, out);
    let sections = Sections { truncated: true, ..Sections::default() };
    finish(question, Rcode::NOERROR, sections, None, question.udp_limit(0), out);
}

/// A refusal by policy. `out` is empty.
///
/// Above `limit` first the extended error's text goes, then the error, then the SOA; addresses that do not fit make
/// it a truncated reply.
pub fn refusal(question: &Question<'_>, refusal: &Refusal<'_>, limit: usize, out: &mut Vec<u8>) {
    begin(question, out);
    let (rcode, code, addresses) = match refusal.form {
        Form::Nxdomain => (Rcode::NXDOMAIN, ede::BLOCKED, &[][..]),
        Form::Nodata => (Rcode::NOERROR, ede::BLOCKED, &[][..]),
        Form::Refused => (Rcode::REFUSED, ede::BLOCKED, &[][..]),
        Form::Sinkhole(addresses) => (Rcode::NOERROR, ede::FORGED, addresses),
    };
    let mut sections =
        Sections { answers: push_addresses(question, addresses, refusal.ttl, out), ..Sections::default() };
    if sections.answers == 0 && rcode != Rcode::REFUSED {
        let bare = out.len();
        push_soa(question, refusal.ttl, out);
        if out.len() + opt_size(question) <= limit {
            sections.authorities = 1;
        } else {
            out.truncate(bare);
        }
    }
    let error = ExtendedError { code, text: refusal.text.as_bytes() };
    finish(question, rcode, sections, Some(error), limit, out);
}

/// An answer from upstream, fresh or kept. It must be one to this question's name and type. `out` is empty.
///
/// Above `limit` first extended errors go; an answer that still does not fit is truncated to nothing, since half
/// an answer helps nobody.
pub fn answer(question: &Question<'_>, answer: &Answer, ageing: Ageing, limit: usize, out: &mut Vec<u8>) {
    begin(question, out);
    let mut sections = Sections { truncated: answer.is_truncated(), ..Sections::default() };
    if !answer.is_truncated() {
        push_body(answer, ageing, out);
        (sections.answers, sections.authorities) = answer.counts();
        // AD means something to a client that asked for it (RFC 6840 section 5.8), and nothing past its time.
        let wanted = question.header.authentic_data || question.dnssec_ok();
        sections.authentic = answer.is_authentic() && wanted && !ageing.stale;
    }
    let stale = ageing.stale.then_some(ExtendedError { code: ede::STALE, text: &[] });
    finish(question, answer.rcode(), sections, stale.into_iter().chain(answer.errors()), limit, out);
}

/// Room for the header, and the client's question.
fn begin(question: &Question<'_>, out: &mut Vec<u8>) {
    debug_assert!(out.is_empty(), "a reply starts in an empty buffer");
    out.extend_from_slice(&[0; HEADER]);
    out.extend_from_slice(question.section);
}

/// Cuts what does not fit, adds the OPT record, and writes the header.
fn finish<'a>(
    question: &Question<'_>,
    rcode: Rcode,
    mut sections: Sections,
    errors: impl IntoIterator<Item = ExtendedError<'a>>,
    limit: usize,
    out: &mut Vec<u8>,
) {
    if out.len() + opt_size(question) > limit {
        out.truncate(HEADER + question.section.len());
        sections = Sections { truncated: true, ..Sections::default() };
    }
    // Without an OPT record there is no place for the upper bits of a code.
    let rcode = if question.edns.is_none() && rcode.0 > 0xf { Rcode::SERVFAIL } else { rcode };
    let additional = match &question.edns {
        Some(edns) => {
            push_opt(edns, rcode, errors, limit, out);
            1
        }
        None => 0,
    };
    let header = header_bytes(question.header, rcode, sections, 1, additional);
    if let Some(front) = out.first_chunk_mut::<HEADER>() {
        *front = header;
    }
}

/// QR and RA are set, AA is not; RD, CD and the operation are the query's (RFC 1035 section 4.1.1, RFC 4035 section
/// 3.2.2).
fn header_bytes(header: Header, rcode: Rcode, sections: Sections, questions: u8, additional: u8) -> [u8; HEADER] {
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    let [i, d] = header.id.to_be_bytes();
    let high = 0x80 | header.opcode << 3 | flag(sections.truncated, 0x02) | flag(header.recursion_desired, 0x01);
    let [_, code] = (rcode.0 & 0xf).to_be_bytes();
    let low = 0x80 | flag(sections.authentic, 0x20) | flag(header.checking_disabled, 0x10) | code;
    let [an_high, an_low] = sections.answers.to_be_bytes();
    let [ns_high, ns_low] = sections.authorities.to_be_bytes();
    [i, d, high, low, 0, questions, an_high, an_low, ns_high, ns_low, 0, additional]
}

/// Size of an OPT record without options.
const OPT_SIZE: usize = 11;

/// Size of an extended error without text.
const ERROR_SIZE: usize = 6;

fn opt_size(question: &Question<'_>) -> usize {
    if question.edns.is_some() { OPT_SIZE } else { 0 }
}

/// Our OPT record: each error with its text, or without, or not at all, as there is room below `limit`.
fn push_opt<'a>(
    edns: &Edns,
    rcode: Rcode,
    errors: impl IntoIterator<Item = ExtendedError<'a>>,
    limit: usize,
    out: &mut Vec<u8>,
) {
    const EXTENDED_ERROR: u16 = 15;
    let [high, low] = rtype::OPT.to_be_bytes();
    let [size_high, size_low] = UDP_SIZE.to_be_bytes();
    let [_, extended] = (rcode.0 >> 4).to_be_bytes();
    let flags = if edns.dnssec_ok { 0x80 } else { 0 };
    out.extend_from_slice(&[0, high, low, size_high, size_low, extended, 0, flags, 0, 0, 0]);
    let start = out.len();
    for error in errors {
        let room = limit.saturating_sub(out.len());
        if room < ERROR_SIZE {
            break;
        }
        let text = if room - ERROR_SIZE < error.text.len() { &[] } else { error.text };
        // A text comes from us or was cut when it was read, so its length fits.
        let length = u16::try_from(2 + text.len()).unwrap_or(2);
        out.extend_from_slice(&EXTENDED_ERROR.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&error.code.to_be_bytes());
        out.extend_from_slice(text);
    }
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    if let Some(place) = start.checked_sub(2).and_then(|at| out.get_mut(at..start)) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// The front of a record owned by the question's name, in the question's class.
fn push_record(question: &Question<'_>, rtype: u16, ttl: u32, data_length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xc0, 0x0c]);
    out.extend_from_slice(&rtype.to_be_bytes());
    out.extend_from_slice(&question.qclass.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&u16::try_from(data_length).unwrap_or(u16::MAX).to_be_bytes());
}

/// The addresses of the question's family, and how many they are. Only class IN has addresses of these forms.
fn push_addresses(question: &Question<'_>, addresses: &[IpAddr], ttl: u32, out: &mut Vec<u8>) -> u16 {
    let mut count = 0;
    for address in addresses.iter().filter(|_| question.qclass == CLASS_IN).take(usize::from(u16::MAX)) {
        match (question.qtype, address) {
            (rtype::A, IpAddr::V4(address)) => {
                push_record(question, rtype::A, ttl, 4, out);
                out.extend_from_slice(&address.octets());
            }
            (rtype::AAAA, IpAddr::V6(address)) => {
                push_record(question, rtype::AAAA, ttl, 16, out);
                out.extend_from_slice(&address.octets());
            }
            _ => continue,
        }
        count += 1;
    }
    count
}

/// The SOA that lets a resolver keep a negative answer (RFC 2308 section 3). It is owned by the question's name, so
/// that it speaks of no other.
fn push_soa(question: &Question<'_>, ttl: u32, out: &mut Vec<u8>) {
    const MNAME: &[u8] = b"\x0ctunnelwarden\x07invalid\0";
    const RNAME: &[u8] = b"\x07contact\x0ctunnelwarden\x07invalid\0";
    const SERIAL: u32 = 1;
    const REFRESH: u32 = 3600;
    const RETRY: u32 = 600;
    const EXPIRE: u32 = 86_400;
    push_record(question, rtype::SOA, ttl, MNAME.len() + RNAME.len() + 20, out);
    out.extend_from_slice(MNAME);
    out.extend_from_slice(RNAME);
    for number in [SERIAL, REFRESH, RETRY, EXPIRE, ttl] {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

/// An answer's records with their TTLs aged.
fn push_body(answer: &Answer, ageing: Ageing, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(answer.body());
    for &place in answer.ttl_places() {
        if let Some(ttl) = out.get_mut(start + usize::from(place)..).and_then(<[u8]>::first_chunk_mut) {
            *ttl = ageing.apply(u32::from_be_bytes(*ttl)).to_be_bytes();
        }
    }
}

#[cfg(test)]
#[allow(clippy::type_complexity, reason = "a table's type is its columns")]
mod tests {
    use hickory_proto::{op::Message, rr::rdata::opt::EdnsCode};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        name::{DomainName, NameBuffer},
        wire::{
            answer::Asked,
            question::{Peeked, peek},
            testing::{longest_name, message, name, opt, option, query, record, response},
        },
    };

    const TEXT: &str = "ngrok/connect; netsec@acme.example";

    /// Builds a reply to a packet, checks what holds for every reply, and gives it with hickory's view.
    fn reply(packet: &[u8], limit: usize, build: impl Fn(&Question<'_>, usize, &mut Vec<u8>)) -> (Message, Vec<u8>) {
        let mut buffer = NameBuffer::new();
        let Peeked::Question(question) = peek(packet, &mut buffer) else { panic!("no question: {packet:02x?}") };
        let mut out = Vec::new();
        build(&question, limit, &mut out);
        assert!(out.len() <= limit, "{} bytes, limit {limit}", out.len());
        let shown = Message::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {out:02x?}"));
        assert_eq!(out[..2], packet[..2], "id");
        assert_eq!(out[2] & 0xfd, 0x80 | packet[2] & 0x79, "QR, opcode, no AA, RD");
        assert_eq!(out[3] & 0xd0, 0x80 | packet[3] & 0x10, "RA, no Z, CD");
        assert_eq!(out[12..12 + question.section.len()], *question.section, "question");
        assert_eq!(shown.edns.is_some(), question.edns.is_some(), "EDNS is answered with EDNS");
        if let (Some(edns), Some(asked)) = (&shown.edns, question.edns) {
            assert_eq!((edns.max_payload(), edns.version()), (UDP_SIZE, 0));
            assert_eq!(edns.flags().dnssec_ok, asked.dnssec_ok);
        }
        (shown, out)
    }

    /// The extended errors of a reply: codes and texts.
    fn errors(shown: &Message) -> Vec<(u16, String)> {
        let options = shown.edns.iter().flat_map(|edns| edns.options().as_ref());
        let errors = options.filter(|(code, _)| *code == EdnsCode::Unknown(15)).map(|(_, option)| {
            let bytes: Vec<u8> = option.try_into().unwrap();
            (u16::from_be_bytes([bytes[0], bytes[1]]), String::from_utf8(bytes[2..].to_vec()).unwrap())
        });
        errors.collect()
    }

    fn with_edns(text: &str, qtype: u16) -> Vec<u8> {
        query(text, qtype, &[opt(1232, 0, 0x80, &[])])
    }

    fn refused(form: Form<'_>) -> impl Fn(&Question<'_>, usize, &mut Vec<u8>) {
        move |question, limit, out| refusal(question, &Refusal { form, ttl: 60, text: TEXT }, limit, out)
    }

    #[test]
    fn a_refusal_says_what_its_form_says() {
        let both = [IpAddr::from([192, 0, 2, 53]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 53])];
        let v4 = &both[..1];
        #[rustfmt::skip]
        let cases: &[(Form<'_>, u16, u16, &[&str], usize, u16)] = &[
            (Form::Nxdomain,        rtype::A,     3, &[],               1, 15),
            (Form::Nxdomain,        rtype::ANY,   3, &[],               1, 15),
            (Form::Nodata,          rtype::HTTPS, 0, &[],               1, 15),
            (Form::Refused,         rtype::A,     5, &[],               0, 15),
            (Form::Sinkhole(&both), rtype::A,     0, &["192.0.2.53"],   0, 4),
            (Form::Sinkhole(&both), rtype::AAAA,  0, &["2001:db8::35"], 0, 4),
            (Form::Sinkhole(v4),    rtype::AAAA,  0, &[],               1, 4),
            (Form::Sinkhole(&both), rtype::HTTPS, 0, &[],               1, 4),
        ];
        for &(form, qtype, rcode, addresses, authorities, code) in cases {
            for edns in [true, false] {
                let text = "cOnNect.ngrok-agent.COM";
                let packet = if edns { with_edns(text, qtype) } else { query(text, qtype, &[]) };
                let (shown, _) = reply(&packet, 512, refused(form));
                let what = format!("{form:?} {qtype} {edns}");
                assert_eq!(u16::from(shown.metadata.response_code), rcode, "{what}");
                assert!(!shown.metadata.authentic_data && !shown.metadata.truncation, "{what}");
                let answers: Vec<_> = shown.answers.iter().map(|record| record.data.to_string()).collect();
                assert_eq!(answers, addresses, "{what}");
                assert_eq!(shown.authorities.len(), authorities, "{what}");
                for record in shown.answers.iter().chain(&shown.authorities) {
                    assert_eq!((record.name.to_string(), record.ttl), (format!("{text}."), 60), "{what}");
                }
                if let Some(soa) = shown.authorities.first() {
                    let expected = "tunnelwarden.invalid. contact.tunnelwarden.invalid. 1 3600 600 86400 60";
                    assert_eq!(soa.data.to_string(), expected);
                }
                let expected = if edns { vec![(code, TEXT.to_owned())] } else { vec![] };
                assert_eq!(errors(&shown), expected, "{what}");
            }
        }
    }

    #[test]
    fn a_refusal_is_of_the_questions_class() {
        for class in [3_u16, 255, 4711] {
            let mut packet = query("a.example", rtype::A, &[]);
            let at = packet.len() - 2;
            packet[at..].copy_from_slice(&class.to_be_bytes());
            for form in [Form::Nxdomain, Form::Sinkhole(&[IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)])] {
                let (shown, _) = reply(&packet, 512, refused(form));
                assert_eq!((shown.answers.len(), shown.authorities.len()), (0, 1));
                assert_eq!(u16::from(shown.authorities[0].dns_class), class);
            }
        }
    }

    #[test]
    fn what_does_not_fit_goes_in_order_text_error_soa() {
        let packet = with_edns(&longest_name(), rtype::A);
        let (_, whole) = reply(&packet, 65_535, refused(Form::Nxdomain));
        let mut seen = Vec::new();
        for limit in (282..=whole.len()).rev() {
            let (shown, _) = reply(&packet, limit, refused(Form::Nxdomain));
            assert!(!shown.metadata.truncation);
            let text = errors(&shown).first().map(|(_, text)| !text.is_empty());
            let state = (shown.authorities.len(), text);
            if seen.last() != Some(&state) {
                seen.push(state);
            }
        }
        // Where the SOA has gone there is room for the text again.
        let order = [(1, Some(true)), (1, Some(false)), (1, None), (0, Some(true)), (0, Some(false)), (0, None)];
        assert_eq!(seen, order);
        let many = [IpAddr::from([192, 0, 2, 53]); 40];
        let (shown, _) = reply(&with_edns("a.example", 1), 512, refused(Form::Sinkhole(&many)));
        assert!(shown.metadata.truncation && shown.answers.is_empty());
    }

    #[test]
    fn an_error_has_the_question_and_its_upper_bits_only_in_edns() {
        let error = Some(ExtendedError { code: ede::NETWORK_ERROR, text: b"all silent" });
        #[rustfmt::skip]
        let cases: &[(Vec<u8>, Rcode, u16, usize)] = &[
            (with_edns("a.example", 1),                      Rcode::SERVFAIL, 2,  1),
            (with_edns("a.example", 1),                      Rcode::REFUSED,  5,  1),
            (query("a.example", 1, &[opt(512, 1, 0, &[])]),  Rcode::BADVERS,  16, 1),
            (query("a.example", 1, &[]),                     Rcode::SERVFAIL, 2,  0),
            (query("a.example", 1, &[]),                     Rcode(23),       2,  0),
        ];
        for (packet, rcode, shown_rcode, count) in cases {
            let (shown, _) =
                reply(packet, 512, |question, limit, out| super::error(question, *rcode, error, limit, out));
            assert_eq!(u16::from(shown.metadata.response_code), *shown_rcode);
            assert_eq!(errors(&shown).len(), *count);
        }
    }

    #[test]
    fn a_fault_is_a_bare_header() {
        let packet = [0xab, 0xcd, 0x29, 0x3f, 0, 1, 0, 9, 0, 9, 0, 9];
        let Peeked::Fault { header, rcode } = peek(&packet, &mut NameBuffer::new()) else { panic!("no fault") };
        let mut out = Vec::new();
        fault(header, rcode, &mut out);
        assert_eq!(out, [0xab, 0xcd, 0xa9, 0x94, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    fn read(packet: &[u8], text: &str, qtype: u16) -> Answer {
        let asked = DomainName::from_wire(&name(text)).unwrap();
        Answer::read(packet, &Asked { name: asked.as_name(), qtype, qclass: CLASS_IN, dnssec_ok: false }).unwrap()
    }

    fn addresses(count: u8) -> Vec<Vec<u8>> {
        let ttl = |index: u8| u32::from(index) * 100;
        (0..count).map(|index| record(&[0xc0, 12], rtype::A, ttl(index), &[192, 0, 2, index])).collect()
    }

    const FRESH: Ageing = Ageing { seconds: 0, at_most: u32::MAX, stale: false };

    fn answered(answer: &Answer, ageing: Ageing) -> impl Fn(&Question<'_>, usize, &mut Vec<u8>) {
        move |question, limit, out| super::answer(question, answer, ageing, limit, out)
    }

    #[test]
    fn ttls_age_are_capped_and_never_below_0() {
        let answer = read(&response("a.example", rtype::A, &addresses(4), &[]), "a.example", rtype::A);
        #[rustfmt::skip]
        let cases: &[(Ageing, [u32; 4])] = &[
            (FRESH,                                                      [0, 100, 200, 300]),
            (Ageing { seconds: 150, ..FRESH },                           [0, 0, 50, 150]),
            (Ageing { seconds: u32::MAX, ..FRESH },                      [0, 0, 0, 0]),
            (Ageing { seconds: 50, at_most: 120, ..FRESH },              [0, 50, 120, 120]),
            (Ageing { seconds: 999, stale: true, ..FRESH },              [30, 30, 30, 30]),
            (Ageing { seconds: 999, stale: true, at_most: 7 },           [7, 7, 7, 7]),
        ];
        for (ageing, expected) in cases {
            let (shown, _) = reply(&with_edns("A.example", rtype::A), 1232, answered(&answer, *ageing));
            let ttls: Vec<u32> = shown.answers.iter().map(|record| record.ttl).collect();
            assert_eq!(ttls, expected, "{ageing:?}");
            let codes: Vec<u16> = errors(&shown).iter().map(|(code, _)| *code).collect();
            assert_eq!(codes, if ageing.stale { vec![ede::STALE] } else { vec![] });
        }
    }

    #[test]
    fn ad_is_for_who_understands_it_and_for_what_was_validated() {
        let with_flags =
            |flags: u16, dnssec: u8| message(flags, ("a.example", 1), [&[], &[], &[opt(1232, 0, dnssec, &[])]]);
        #[rustfmt::skip]
        let cases: &[(u16, Vec<u8>, bool, bool)] = &[
            (0x81a0, with_flags(0x0120, 0),          false, true),
            (0x81a0, with_flags(0x0100, 0x80),       false, true),
            (0x81a0, with_flags(0x0100, 0),          false, false),
            (0x8180, with_flags(0x0120, 0x80),       false, false),
            (0x81a0, with_flags(0x0120, 0x80),       true,  false),
        ];
        for (flags, packet, stale, expected) in cases {
            let answer = read(&message(*flags, ("a.example", 1), [&addresses(1), &[], &[]]), "a.example", 1);
            let (shown, _) = reply(packet, 1232, answered(&answer, Ageing { stale: *stale, ..FRESH }));
            assert_eq!(shown.metadata.authentic_data, *expected, "{flags:04x} {stale}");
        }
    }

    #[test]
    fn an_answer_above_the_limit_loses_errors_first_and_is_then_truncated_to_nothing() {
        let options = option(15, &[&[0, 9][..], &[b'x'; 100]].concat());
        let answers = addresses(20);
        let packet = message(0x8183, ("a.example", 1), [&answers, &[], &[opt(1232, 0, 0, &options)]]);
        let answer = read(&packet, "a.example", 1);
        let asked = with_edns("a.example", 1);
        let (_, whole) = reply(&asked, 1232, answered(&answer, FRESH));
        let bare = whole.len() - 106;
        for (limit, answers, texts) in [(whole.len(), 20, "x".repeat(100)), (whole.len() - 1, 20, String::new())] {
            let (shown, _) = reply(&asked, limit, answered(&answer, FRESH));
            assert_eq!((shown.answers.len(), errors(&shown)), (answers, vec![(9, texts)]));
        }
        assert_eq!(errors(&reply(&asked, bare, answered(&answer, FRESH)).0), []);
        let (shown, out) = reply(&asked, bare - 1, answered(&answer, FRESH));
        assert!(shown.metadata.truncation && shown.answers.is_empty());
        assert_eq!(u16::from(shown.metadata.response_code), 3);
        assert!(out.len() < 200);
    }

    #[test]
    fn an_upper_response_code_needs_edns_to_travel() {
        let mut extended = opt(1232, 0, 0, &[]);
        extended[5] = 1;
        let answer = read(&message(0x8187, ("a.example", 1), [&[], &[], &[extended]]), "a.example", 1);
        for (packet, expected) in [(with_edns("a.example", 1), 23), (query("a.example", 1, &[]), 2)] {
            let (shown, _) = reply(&packet, 512, answered(&answer, FRESH));
            assert_eq!(u16::from(shown.metadata.response_code), expected);
        }
    }

    proptest! {
        #[test]
        fn every_reply_can_be_read_and_keeps_within_its_limit(
            labels in prop::collection::vec("[a-zA-Z0-9-]{1,30}", 1..8),
            (flags, qtype, dnssec, size) in any::<(u16, u16, u8, u16)>(),
            edns in any::<bool>(),
            count in 0..60_u8,
            text in ".{0,300}",
            form in 0..4_usize,
            ours in 512..4096_u16,
        ) {
            let asked = labels.join(".");
            prop_assume!(asked.len() < 250);
            let additional: Vec<_> = edns.then(|| opt(size, 0, dnssec, &[])).into_iter().collect();
            let packet = message(flags & 0x01ff, (&asked, qtype), [&[], &[], &additional]);
            let limit = {
                let mut buffer = NameBuffer::new();
                let Peeked::Question(question) = peek(&packet, &mut buffer) else { panic!("no question") };
                question.udp_limit(ours)
            };
            let sinkhole = vec![IpAddr::from([192, 0, 2, 53]); usize::from(count)];
            let form = [Form::Nxdomain, Form::Nodata, Form::Refused, Form::Sinkhole(&sinkhole)][form];
            let refused = Refusal { form, ttl: 60, text: &text };
            reply(&packet, limit, |question, limit, out| refusal(question, &refused, limit, out));
            let error = ExtendedError { code: 22, text: text.as_bytes() };
            reply(&packet, limit, |question, limit, out| {
                super::error(question, Rcode::SERVFAIL, Some(error), limit, out);
            });
            let upstream = message(0x8180, (&asked, rtype::A), [&addresses(count), &[], &[]]);
            let kept = read(&upstream, &asked, rtype::A);
            reply(&packet, limit, answered(&kept, FRESH));
        }
    }
}
