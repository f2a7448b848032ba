//! The time by which exceptions are judged: it never runs backwards.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

use crate::policy::Moment;

/// How far the wall clock may lie behind the latest time seen before it is distrusted, in milliseconds. Time
/// daemons step back by less every day.
const TOLERANCE: i64 = 2_000;

/// The latest time seen, by this process or by an earlier one in the same state folder.
#[derive(Debug, Default)]
pub struct Clock {
    latest: AtomicI64,
}

impl Clock {
    /// Starts from the latest time that was kept.
    pub fn new(latest: Option<Timestamp>) -> Self {
        Self { latest: AtomicI64::new(latest.map_or(0, Timestamp::as_millisecond)) }
    }

    /// The moment at which something is judged when the wall clock says `now`. Within the tolerance the latest time
    /// counts, so that what ended stays ended; behind it, no exception is in force.
    pub fn moment(&self, now: Timestamp) -> Moment {
        let millisecond = now.as_millisecond();
        let mut latest = self.latest.load(Ordering::Relaxed);
        if latest < millisecond {
            // Written once a millisecond at most, so that workers do not pass its cache line to and fro.
            latest = self.latest.fetch_max(millisecond, Ordering::Relaxed).max(millisecond);
        }
        let trusted = latest - millisecond <= TOLERANCE;
        let time = Timestamp::from_millisecond(latest).ok().filter(|_| trusted).unwrap_or(now);
        Moment { time, trusted }
    }

    /// The latest time seen, to be kept.
    pub fn latest(&self) -> Timestamp {
        Timestamp::from_millisecond(self.latest.load(Ordering::Relaxed)).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_is_not_trusted_and_what_ended_stays_ended() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let clock = Clock::new(Some(at("2026-11-23T12:00:00Z")));
        #[rustfmt::skip]
        let cases = [
            ("behind what an earlier process saw", "2026-11-23T11:59:00Z", "2026-11-23T11:59:00Z", false),
            ("ahead",                              "2026-11-23T12:00:10Z", "2026-11-23T12:00:10Z", true),
            ("a small step back counts as now",    "2026-11-23T12:00:09Z", "2026-11-23T12:00:10Z", true),
            ("set back",                           "2026-11-22T12:00:00Z", "2026-11-22T12:00:00Z", false),
            ("caught up",                          "2026-11-23T12:00:11Z", "2026-11-23T12:00:11Z", true),
        ];
        for (case, now, time, trusted) in cases {
            assert_eq!(clock.moment(at(now)), Moment { time: at(time), trusted }, "{case}");
        }
        assert_eq!(clock.latest(), at("2026-11-23T12:00:11Z"));
    }
}
