//! How many requests a second are served: as many as there may be questions, and no more. Pure.

use std::time::{Duration, Instant};

/// More than the forwarder has reason for on any machine that we measured.
const PER_SECOND: u32 = 20_000;

/// Fills with time, empties with requests.
#[derive(Debug)]
pub(super) struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes what a request costs, if it is there.
    pub(super) fn take(&mut self, cost: u32, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + Duration::from_secs(1) / PER_SECOND * cost;
        let is_there = full_at.saturating_duration_since(now) <= Duration::from_secs(1);
        if is_there {
            self.full_at = full_at;
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_is_there_at_once_and_comes_again_with_time() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let served = (0..100_000).filter(|_| bucket.take(1, start)).count();
        assert_eq!(served, 20_000);
        let later = start + Duration::from_millis(100);
        let served = (0..100_000).filter(|_| bucket.take(1, later)).count();
        assert_eq!(served, 2000);
        assert!(
            !bucket.take(2, later + Duration::from_micros(50)) && bucket.take(1, later + Duration::from_micros(50))
        );
    }
}
