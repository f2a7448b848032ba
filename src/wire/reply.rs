//! Replies to clients: refusals by policy, errors, and answers with their TTLs aged. Every reply carries
//! the client's question byte for byte, answers EDNS with EDNS, and keeps within the client's limit.
//! What is said and why is decided elsewhere.

use std::net::IpAddr;

use super::{
    Header, Rcode, UDP_SIZE,
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

/// A bare header: for what had no question that could be read.
pub fn fault(header: Header, rcode: Rcode, out: &mut Vec<u8>) {
    todo!()
}

/// An error with the question, and with `error` for a client that speaks EDNS.
pub fn error(question: &Question<'_>, rcode: Rcode, error: Option<ExtendedError<'_>>, limit: usize, out: &mut Vec<u8>) {
    todo!()
}

/// A refusal by policy.
pub fn refusal(question: &Question<'_>, refusal: &Refusal<'_>, limit: usize, out: &mut Vec<u8>) {
    todo!()
}

/// An answer from upstream, fresh or kept. It must be one to this question's name and type.
pub fn answer(question: &Question<'_>, answer: &Answer, ageing: Ageing, limit: usize, out: &mut Vec<u8>) {
    todo!()
}
