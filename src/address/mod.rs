//! Addresses as the standards have them, whatever is decided about them: which are public, which IPv4 address an IPv6
//! one carries, and sets of them as disjoint ranges. Pure.

mod carried;
mod public;
mod ranges;

use std::net::IpAddr;

pub use self::{
    carried::{Carriers, KNOWN_NAT64, NAT64_LENGTHS, regarded_bits, six_to_four, translated},
    public::is_public,
    ranges::{Range, where_it_holds, within},
};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "they say it")]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Either.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// An address's.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}
