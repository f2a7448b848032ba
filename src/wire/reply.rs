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

/// QR and RA are set, AA is not: RD, CD and the operation are the query's (RFC 1035 section 4.1.1, RFC 4035 section 3.2.2).
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
