//! What an upstream said, read down to what was asked.
//!
//! (skeleton)

use std::net::IpAddr;

use thiserror::Error;

use super::Rcode;
use crate::name::{DomainName, NameRef};

/// Most aliases that are followed in one answer.
pub const MAX_ALIASES: usize = 16;

/// What an upstream was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asked<'a> {
    /// The name.
    pub name: NameRef<'a>,
    /// The type, as its number.
    pub qtype: u16,
    /// The class, as its number.
    pub qclass: u16,
    /// DNSSEC records were asked for.
    pub dnssec_ok: bool,
}

/// Why an upstream's packet is no answer. The client gets SERVFAIL.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BadAnswer {
    /// Not the packet of an answer: cut off, or with something in it that may not be there.
    #[error("malformed answer")]
    Malformed,
    /// No response to a query, or one to another question.
    #[error("answer to another question")]
    OtherQuestion,
    /// More than [`MAX_ALIASES`].
    #[error("more than {MAX_ALIASES} aliases")]
    TooManyAliases,
    /// An alias that leads back.
    #[error("aliases that lead in a circle")]
    AliasLoop,
    /// Reading it would take more steps than any honest answer needs.
    #[error("answer that takes too long to read")]
    TooMuchWork,
    /// Too large for a message once its names are written anew.
    #[error("answer too large")]
    TooLarge,
}

/// An answer: facts, no verdict. It belongs to a name, type, DO and CD; id and the name's case are the client's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    rcode: Rcode,
}

impl Answer {
    /// Reads an upstream's packet that has been matched to its query by id, address and port.
    ///
    /// # Errors
    /// [`BadAnswer`] says why it may not be passed on.
    pub fn read(packet: &[u8], asked: &Asked<'_>) -> Result<Self, BadAnswer> {
        todo!()
    }

    /// The response code.
    pub fn rcode(&self) -> Rcode {
        self.rcode
    }

    /// How long it may be kept, in seconds; `None` if it may not (failures, truncated ones, negative ones without SOA).
    pub fn ttl(&self) -> Option<u32> {
        todo!()
    }

    /// Nothing of the asked type at the end of the chain.
    pub fn is_negative(&self) -> bool {
        todo!()
    }

    /// The upstream cut it (TC).
    pub fn is_truncated(&self) -> bool {
        todo!()
    }

    /// Every name the asked one leads to: CNAME and DNAME made, SVCB and HTTPS targets.
    pub fn aliases(&self) -> &[DomainName] {
        todo!()
    }

    /// Every address in it: A, AAAA, ipv4hint, ipv6hint.
    pub fn addresses(&self) -> &[IpAddr] {
        todo!()
    }

    /// Is there an `ech` parameter in it?
    pub fn has_ech(&self) -> bool {
        todo!()
    }

    /// The same without `ech` parameters, AD clear: for clients that did not set DO. `asked` as in [`read`](Self::read).
    pub fn without_ech(&self, asked: &Asked<'_>) -> Self {
        todo!()
    }

    /// Bytes of memory it takes, about.
    pub fn memory(&self) -> usize {
        todo!()
    }
}
