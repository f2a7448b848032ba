//! How often one may ask: for each who asks a share that refills evenly, in a table that never grows.
//!
//! Of each one thing is remembered, by when its share is whole again (the generic cell rate algorithm, ITU-T I.371): a
//! question moves that on, and who would move it further than a second away is over. So who rested for a second may ask
//! as much as a second's worth at once, and over time nobody gets more than the rate.
//!
//! Whose share is whole is no different from who was never seen. That is what bounds the table: a newcomer takes the
//! place of whoever owes least. A crowd of forged senders, each seen once, presses out one another and not who asks much.

use std::{
    hash::BuildHasher,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use crate::hashing::Seeded;

/// How a question stands to its asker's rate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Pace {
    /// It may be answered.
    Within,
    /// It is one too many.
    Over {
        /// It is one of those that are answered nonetheless, with nothing but the advice to come over TCP.
        slips: bool,
    },
}

/// Who pays for a question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Payer {
    /// A client by datagrams, whose sender anybody may forge: so streams do not pay from the same share.
    Datagram(IpAddr),
    /// A client over a stream.
    Stream(IpAddr),
    /// A forwarder, by whatever way.
    Forwarder(IpAddr),
}

/// What each has asked lately. Shared by all threads, without a lock: how they share out a client's datagrams must not
/// matter to what it may have.
#[derive(Debug)]
pub(super) struct Rates {
    began: Instant,
    /// Random: addresses are their senders' choice.
    hasher: Seeded,
    sets: Box<[Set]>,
}

/// A cache line, and all that a question looks at.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

const WAYS: usize = 8;

/// A mebibyte in all, made when a rate is first configured.
const SETS: usize = 1 << 14;

/// What is known of one, in a word: 16 bits to tell it from the others of its set, 4 that count towards the next that
/// slips, 44 for when its share is whole, in ticks since the table was made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Entry {
    tag: u64,
    refused: u64,
    whole_at: u64,
}

/// Ticks are 16 ns: short enough for a million questions a second, and they come round every 78 hours. Who was away for
/// as long, to the second, is then taken to have asked just now.
const NANOSECONDS_IN_A_TICK: u128 = 16;
const SECOND: u64 = 62_500_000;

const TAG_BITS: u32 = 16;
const REFUSED_BITS: u32 = 4;
const TIME_BITS: u32 = 44;
const TIME: u64 = (1 << TIME_BITS) - 1;

impl Rates {
    pub(super) fn new() -> Self {
        let sets = std::iter::repeat_with(Set::default).take(SETS).collect();
        Self { began: Instant::now(), hasher: Seeded::default(), sets }
    }

    /// Has somebody pay for a question, where it may ask `rate` times a second; 0 is no limit. Of those over it each
    /// `slip`-th slips, with 0 none.
    pub(super) fn spend(&self, payer: Payer, rate: u32, slip: u32, now: Instant) -> Pace {
        let ticks = now.saturating_duration_since(self.began).as_nanos() / NANOSECONDS_IN_A_TICK;
        // What is above comes round in the entries anyway.
        self.spend_at(self.hasher.hash_one(payer.key()), rate, slip, ticks as u64)
    }

    fn spend_at(&self, hash: u64, rate: u32, slip: u32, now: u64) -> Pace {
        let rate = u64::from(rate);
        // Rounded, and as much more than a second as a second's worth of that is.
        let share = SECOND + rate / 2;
        let Some(cost) = share.checked_div(rate) else { return Pace::Within };
        let Some(set) = self.sets.get(hash as usize % SETS) else { return Pace::Within };
        let tag = hash >> (u64::BITS - TAG_BITS);
        loop {
            let Some((cell, seen)) = set.place_of(tag, now) else { return Pace::Within };
            let known = Some(Entry::from_bits(seen)).filter(|entry| seen != 0 && entry.tag == tag);
            let entry = known.unwrap_or(Entry { tag, refused: 0, whole_at: now & TIME });
            let (after, pace) = entry.spend(cost, share, slip, now);
            // Who loses the race looks again: another thread has got on.
            if cell.compare_exchange_weak(seen, after.to_bits(), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return pace;
            }
        }
    }
}

impl Set {
    /// The entry of that tag, or of whoever owes least.
    fn place_of(&self, tag: u64, now: u64) -> Option<(&AtomicU64, u64)> {
        let seen = self.0.iter().map(|cell| (cell, cell.load(Ordering::Relaxed)));
        seen.min_by_key(|(_, bits)| {
            let entry = Entry::from_bits(*bits);
            if entry.tag == tag { (false, 0) } else { (true, entry.debt(now)) }
        })
    }
}

impl Entry {
    fn from_bits(bits: u64) -> Self {
        let refused = bits >> TIME_BITS & ((1 << REFUSED_BITS) - 1);
        Self { tag: bits >> (TIME_BITS + REFUSED_BITS), refused, whole_at: bits & TIME }
    }

    fn to_bits(self) -> u64 {
        self.tag << (TIME_BITS + REFUSED_BITS) | self.refused << TIME_BITS | self.whole_at
    }

    /// How long until the share is whole. Nobody owes more than a second and a bit, so what looks like more is long past.
    fn debt(self, now: u64) -> u64 {
        let ahead = self.whole_at.wrapping_sub(now) & TIME;
        if ahead > 2 * SECOND { 0 } else { ahead }
    }

    fn spend(self, cost: u64, share: u64, slip: u32, now: u64) -> (Self, Pace) {
        let debt = self.debt(now) + cost;
        if debt <= share {
            return (Self { whole_at: now.wrapping_add(debt) & TIME, ..self }, Pace::Within);
        }
        let refused = self.refused + 1;
        let slips = refused.checked_rem(u64::from(slip)) == Some(0);
        // Without slips nothing is counted; with them the count stays below what fits.
        let refused = if slips || slip == 0 { 0 } else { refused & ((1 << REFUSED_BITS) - 1) };
        (Self { refused, ..self }, Pace::Over { slips })
    }
}

impl Payer {
    /// What tells it apart. The /64 of a v6 client is one client: it may be a single host, which changes addresses
    /// within it as it likes.
    fn key(self) -> (u8, u128) {
        let bits = |address: IpAddr| match address.to_canonical() {
            IpAddr::V4(v4) => (0, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (1, v6.to_bits()),
        };
        let network = |address| match bits(address) {
            (1, v6) => (1, v6 & (u128::MAX << 64)),
            v4 => v4,
        };
        match self {
            Self::Datagram(client) => network(client),
            Self::Stream(client) => {
                let (family, bits) = network(client);
                (2 + family, bits)
            }
            Self::Forwarder(forwarder) => {
                let (family, bits) = bits(forwarder);
                (4 + family, bits)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use proptest::prelude::*;

    use super::*;

    const SLIPS: Pace = Pace::Over { slips: true };
    const SILENT: Pace = Pace::Over { slips: false };

    fn within(rates: &Rates, rate: u32, moments: impl Iterator<Item = u64>) -> u64 {
        moments.map(|now| u64::from(rates.spend_at(7, rate, 0, now) == Pace::Within)).sum()
    }

    #[test]
    fn over_a_long_time_who_asks_too_much_gets_the_rate_and_a_second_s_worth() {
        for rate in [1, 3, 10, 999, 1_000, 33_333, 700_000, 1_000_000] {
            let seconds = if rate > 10_000 { 1 } else { 10 };
            // Twice as often as allowed, and never less than a hundred times a second.
            let step = (SECOND / u64::from(rate) / 2).clamp(1, SECOND / 100);
            let rates = Rates::new();
            let passed = within(&rates, rate, (0..seconds * SECOND).step_by(usize::try_from(step).unwrap()));
            let expected = (seconds + 1) * u64::from(rate);
            let off = passed.abs_diff(expected);
            assert!(off * 100 <= expected.max(100), "{rate}: {passed} and not {expected}");
        }
    }

    #[test]
    fn after_a_rest_as_many_as_a_second_s_worth_may_come_at_once() {
        for (rate, burst) in [(1, 1), (6, 6), (10, 10), (1_000, 1_000)] {
            let rates = Rates::new();
            assert_eq!(within(&rates, rate, std::iter::repeat_n(5, 5_000)), burst, "{rate}");
            assert_eq!(within(&rates, rate, std::iter::repeat_n(5 + SECOND / 2, 5_000)), burst / 2, "{rate}");
            assert_eq!(within(&rates, rate, std::iter::repeat_n(5 + 100 * SECOND, 5_000)), burst, "{rate}");
        }
    }

    #[test]
    fn of_those_over_the_rate_each_nth_slips() {
        #[rustfmt::skip]
        let table: &[(u32, &[Pace])] = &[
            (0,  &[SILENT, SILENT, SILENT, SILENT]),
            (1,  &[SLIPS, SLIPS, SLIPS, SLIPS]),
            (2,  &[SILENT, SLIPS, SILENT, SLIPS]),
            (3,  &[SILENT, SILENT, SLIPS, SILENT, SILENT, SLIPS]),
            (10, &[SILENT, SILENT, SILENT, SILENT, SILENT, SILENT, SILENT, SILENT, SILENT, SLIPS, SILENT]),
        ];
        for (slip, expected) in table {
            let rates = Rates::new();
            assert_eq!(rates.spend_at(7, 1, *slip, 0), Pace::Within);
            let paces: Vec<_> = expected.iter().map(|_| rates.spend_at(7, 1, *slip, 0)).collect();
            assert_eq!(&paces, expected, "{slip}");
        }
    }

    #[test]
    fn without_a_rate_nobody_is_over_it() {
        let rates = Rates::new();
        assert_eq!(within(&rates, 0, std::iter::repeat_n(0, 10_000)), 10_000);
    }

    #[test]
    fn what_the_clock_comes_round_to_changes_nothing() {
        let rates = Rates::new();
        let end = TIME - SECOND / 2;
        assert_eq!(within(&rates, 10, std::iter::repeat_n(end, 100)), 10);
        // Two seconds on either side of where it begins anew.
        let passed = within(&rates, 10, (end..end + 4 * SECOND).step_by(100_000));
        assert!((39..=40).contains(&passed), "{passed}");
    }

    #[test]
    fn a_million_senders_seen_once_do_not_press_out_who_asks_too_much() {
        let rates = Rates::new();
        let client = Payer::Datagram("10.0.0.1".parse().unwrap());
        let now = rates.began + Duration::from_secs(1);
        while rates.spend(client, 100, 2, now) == Pace::Within {}
        for sender in 0..1_000_000_u32 {
            let forged = Payer::Datagram(IpAddr::from((0x0b00_0000 + sender).to_be_bytes()));
            let _ = rates.spend(forged, 100, 2, now);
        }
        assert_ne!(rates.spend(client, 100, 2, now), Pace::Within);
        assert_eq!(rates.sets.len() * size_of::<Set>(), 1 << 20, "and nothing has grown");
    }

    #[test]
    fn clients_streams_and_forwarders_pay_for_themselves() {
        let rates = Rates::new();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        #[rustfmt::skip]
        let table = [
            (Payer::Datagram(address("10.0.0.1")),          Pace::Within),
            (Payer::Datagram(address("10.0.0.2")),          Pace::Within),
            (Payer::Datagram(address("::ffff:10.0.0.1")),   SILENT),
            (Payer::Stream(address("10.0.0.1")),            Pace::Within),
            (Payer::Forwarder(address("10.0.0.1")),         Pace::Within),
            (Payer::Stream(address("10.0.0.1")),            SILENT),
            (Payer::Datagram(address("2001:db8::1")),       Pace::Within),
            (Payer::Datagram(address("2001:db8::2")),       SILENT),
            (Payer::Datagram(address("2001:db8:0:1::1")),   Pace::Within),
            (Payer::Datagram(address("::a00:1")),           Pace::Within),
            (Payer::Forwarder(address("2001:db8::1")),      Pace::Within),
            (Payer::Forwarder(address("2001:db8::2")),      Pace::Within),
        ];
        let now = Instant::now();
        for (payer, expected) in table {
            assert_eq!(rates.spend(payer, 1, 0, now), expected, "{payer:?}");
        }
    }

    #[test]
    fn many_threads_let_no_more_through_than_one() {
        let rates = Rates::new();
        let passed: u64 = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| within(&rates, 1_000, std::iter::repeat_n(9, 5_000)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 1_000);
    }

    proptest! {
        #[test]
        fn a_word_holds_all_that_is_known_of_one(bits: u64) {
            prop_assert_eq!(Entry::from_bits(bits).to_bits(), bits);
        }

        /// The same, counted as a bucket of tokens in fractions.
        #[test]
        fn it_is_a_bucket_of_tokens(rate in 1..1_000_u32, rests in prop::collection::vec(0..SECOND / 50, 1..300)) {
            let (rates, cost) = (Rates::new(), SECOND as f64 / f64::from(rate));
            let (mut now, mut tokens) = (0, f64::from(rate));
            for rest in rests {
                now += rest;
                tokens = (tokens + rest as f64 / cost).min(f64::from(rate));
                let passes = rates.spend_at(7, rate, 0, now) == Pace::Within;
                // On the edge a rounded tick decides.
                if (tokens - 1.0).abs() > 0.02 {
                    prop_assert_eq!(passes, tokens >= 1.0, "{} tokens at {}", tokens, now);
                }
                tokens -= if passes { 1.0 } else { 0.0 };
            }
        }
    }
}
