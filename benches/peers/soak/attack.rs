//! What strangers do while the load runs: each attack at a steady pace, for the whole time, from loopback addresses that
//! no honest client has. Together some 7,000 packets a second, in small bursts: they are to be a nuisance to the daemon,
//! not to the kernel, which would drop honest datagrams with theirs where no counter of the daemon says so.
//!
//! That each attack is met as it should be is what `tests/suite/floods.rs` and its like say; here, that all of them at
//! once and for long take nothing from anybody else.

mod servers;
mod streams;
mod volleys;

use std::{
    fmt,
    ops::AddAssign,
    thread,
    time::{Duration, Instant},
};

pub(super) use servers::Servers;
pub(super) use streams::harass;
pub(super) use volleys::fire;

/// What is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Attack {
    /// Questions with some bytes changed.
    Mutated,
    /// Names that nobody asked before, below one zone, from many addresses.
    Torture,
    /// Questions for zones whose servers do not answer them.
    Dead,
    /// Answers of a server that damages them.
    Damaged,
    /// Refused names, each a new one from a new address.
    Refused,
    /// What is no question and must be met with silence.
    Unasked,
    /// More than the rate from one address.
    Flood,
    /// Connections that say a byte a second.
    Slow,
    /// Connections that say nothing, a part of something or rubbish, and go.
    Thrown,
    /// Connections beyond those that an address may have.
    Crowd,
    /// The same as all three, at the admin door.
    Door,
}

impl Attack {
    pub(super) const ALL: [Self; 11] = [
        Self::Mutated,
        Self::Torture,
        Self::Dead,
        Self::Damaged,
        Self::Refused,
        Self::Unasked,
        Self::Flood,
        Self::Slow,
        Self::Thrown,
        Self::Crowd,
        Self::Door,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Mutated => "mutated questions",
            Self::Torture => "unique names of one zone",
            Self::Dead => "questions for dead zones",
            Self::Damaged => "damaged answers",
            Self::Refused => "refused names from new addresses",
            Self::Unasked => "replies and scraps",
            Self::Flood => "questions of a flood",
            Self::Slow => "slow connections",
            Self::Thrown => "connections thrown away",
            Self::Crowd => "connections of a crowd",
            Self::Door => "connections to the admin door",
        }
    }

    /// The daemon's counters that say that it met this attack, and how.
    pub(super) fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Mutated => &["malformed_total"],
            Self::Torture => &["cache_misses_total"],
            Self::Dead => &["waiting_refused_total", "upstream_failures_total{reason=\"silent\"}"],
            Self::Damaged => &[
                "upstream_near_misses_total",
                "upstream_tcp_retries_total{reason=\"near-miss\"}",
                "upstream_tcp_retries_total{reason=\"truncated\"}",
            ],
            // There is an end to what is told apart, and then records join several.
            Self::Refused => &["audit_coarse_records_total"],
            Self::Unasked => &["scraps_total"],
            Self::Flood => &["over_rate_total{answer=\"silence\"}", "over_rate_total{answer=\"truncated\"}"],
            Self::Slow => &["connections_ended_total{reason=\"slow\"}"],
            Self::Thrown => &["connections_ended_total{reason=\"malformed\"}"],
            Self::Crowd => &["connections_refused_total"],
            Self::Door => &[
                "admin_turned_away_total{reason=\"foreign-host\"}",
                "admin_turned_away_total{reason=\"malformed\"}",
                "admin_turned_away_total{reason=\"slow\"}",
            ],
        }
    }
}

/// What was done of each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attacks {
    counts: [u64; Attack::ALL.len()],
    /// Replies to what must be met with silence.
    pub(super) heard: u64,
}

impl Attacks {
    pub(super) fn of(&self, attack: Attack) -> u64 {
        self.counts[attack as usize]
    }

    fn count(&mut self, attack: Attack, more: u64) {
        self.counts[attack as usize] += more;
    }
}

impl AddAssign<&Self> for Attacks {
    fn add_assign(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.heard += other.heard;
    }
}

impl fmt::Display for Attacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = Attack::ALL.map(|attack| format!("{} {}", self.of(attack), attack.label()));
        write!(f, "attacks: {}", told.join(", "))
    }
}

/// A steady beat. What was missed is not made up for: that would be a burst.
struct Beat {
    due: Instant,
    period: Duration,
}

impl Beat {
    fn every(period: Duration) -> Self {
        Self { due: Instant::now(), period }
    }

    fn wait(&mut self) {
        let now = Instant::now();
        self.due = (self.due + self.period).max(now);
        thread::sleep(self.due - now);
    }
}
