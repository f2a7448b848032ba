//! Bytes of packets: DNS questions looked at without allocation, upstream answers read down to what was asked for,
//! replies built, and the server name in a TLS hello. Nothing here asks, waits, keeps or decides.

mod cursor;

#[cfg(test)]
pub(crate) mod testing;

pub mod answer;
pub mod hello;
pub mod proxy;
pub mod query;
pub mod question;
pub mod reply;

/// Length of the header in front of every message (RFC 1035 section 4.1.1).
pub const HEADER: usize = 12;

/// Largest datagram we say we can take, and send unless configured otherwise (DNS flag day 2020).
pub const UDP_SIZE: u16 = 1232;

/// Largest datagram for a client that says nothing of EDNS (RFC 1035 section 4.2.1).
pub const PLAIN_UDP_SIZE: u16 = 512;

/// Class IN.
pub const CLASS_IN: u16 = 1;

/// What of a query's header outlives it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Header {
    /// The query's id.
    pub id: u16,
    /// The operation, 0 to 15; 0 is QUERY.
    pub opcode: u8,
    /// RD: recursion is wanted.
    pub recursion_desired: bool,
    /// AD: the client understands the AD bit of an answer (RFC 6840 section 5.7).
    pub authentic_data: bool,
    /// CD: the client validates by itself (RFC 4035 section 3.2.2).
    pub checking_disabled: bool,
}

/// A response code with its upper eight bits, which travel in the OPT record (RFC 6891 section 6.1.3).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Rcode(pub u16);

impl Rcode {
    /// No error.
    pub const NOERROR: Self = Self(0);
    /// The message could not be understood.
    pub const FORMERR: Self = Self(1);
    /// The server could not get an answer.
    pub const SERVFAIL: Self = Self(2);
    /// The name does not exist.
    pub const NXDOMAIN: Self = Self(3);
    /// The operation is not known here.
    pub const NOTIMP: Self = Self(4);
    /// The server does not want to.
    pub const REFUSED: Self = Self(5);
    /// The EDNS version is not known here.
    pub const BADVERS: Self = Self(16);
}

/// Codes of extended DNS errors (RFC 8914 section 4) that we give ourselves.
pub mod ede {
    /// None of the others.
    pub const OTHER: u16 = 0;
    /// The answer was forged by policy.
    pub const FORGED: u16 = 4;
    /// The answer is past its time, since no upstream answered.
    pub const STALE: u16 = 3;
    /// The operator's policy blocks the name.
    pub const BLOCKED: u16 = 15;
    /// The client may not ask.
    pub const PROHIBITED: u16 = 18;
    /// No upstream could be reached.
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
    /// Talking to an upstream failed.
    pub const NETWORK_ERROR: u16 = 23;
}

/// Numbers of record types that are treated differently from others.
pub mod rtype {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// The start of a zone.
    pub const SOA: u16 = 6;
    /// An alias.
    pub const CNAME: u16 = 5;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// An alias for everything below a name (RFC 6672).
    pub const DNAME: u16 = 39;
    /// EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// A signature (RFC 4034).
    pub const RRSIG: u16 = 46;
    /// Proof of absence (RFC 4034).
    pub const NSEC: u16 = 47;
    /// Proof of absence by hash (RFC 5155).
    pub const NSEC3: u16 = 50;
    /// Where a service is (RFC 9460).
    pub const SVCB: u16 = 64;
    /// The same for HTTPS.
    pub const HTTPS: u16 = 65;
    /// The changes of a zone, as a question.
    pub const IXFR: u16 = 251;
    /// A whole zone, as a question.
    pub const AXFR: u16 = 252;
    /// Every type, as a question.
    pub const ANY: u16 = 255;
}
