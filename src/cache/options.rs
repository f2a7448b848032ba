//! `[cache]`: how much is kept and how long.

use std::time::Duration;

/// `[cache]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Bytes in all; 0 keeps nothing. 64 MiB.
    pub size: u64,
    /// Shortest time a positive answer is kept, in whole seconds. 0.
    pub min_ttl: Duration,
    /// Longest time a positive answer is kept and the longest TTL passed on. One day.
    pub max_ttl: Duration,
    /// Longest time a negative answer is kept (RFC 2308 section 5 suggests one to three hours). One hour.
    pub max_negative_ttl: Duration,
    /// How long past its end an answer may still be given when no upstream answers (RFC 8767); 0 never. One day.
    pub serve_stale: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            size: 64 << 20,
            min_ttl: Duration::ZERO,
            max_ttl: Duration::from_hours(24),
            max_negative_ttl: Duration::from_hours(1),
            serve_stale: Duration::from_hours(24),
        }
    }
}
