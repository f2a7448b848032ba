//! Answers kept in wire form, bounded in bytes, and for a moment the questions that just failed.
//!
//! What is kept are facts; whether a client may have them is judged each time, so a reload flushes nothing.
//! Time is an argument and monotonic: a clock that is set changes nothing here. Which answers may be kept at
//! all is read from them ([`Answer::ttl`]).

mod key;
mod options;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quick_cache::{
    Lifecycle, OptionsBuilder, UnitWeighter, Weighter,
    sync::{Cache as Table, DefaultLifecycle},
};

use self::key::Key;
pub use self::{key::KeyRef, options::Options};
use crate::{
    hashing::Seeded,
    metrics::Metrics,
    wire::{Rcode, answer::Answer},
};

/// How long a failure is remembered: RFC 9520 section 3.2 wants a second at least; longer would hide that an
/// upstream is back.
pub const FAILURE_KEPT: Duration = Duration::from_secs(2);

/// Most failures remembered at once.
pub const MAX_FAILURES: usize = 8192;

/// A kept answer.
#[derive(Clone, Debug)]
pub struct Found {
    /// It.
    pub answer: Arc<Answer>,
    /// How long it has been kept, in whole seconds.
    pub age: u32,
    /// Within its time; otherwise it is only for when no upstream answers (RFC 8767).
    pub fresh: bool,
}

/// That no upstream answered (RFC 9520).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failure {
    /// What clients are told.
    pub rcode: Rcode,
    /// The code of the extended error with it.
    pub error: Option<u16>,
}

/// The cache; shared behind an `Arc`. Its hash seed is its own, since clients choose the keys.
#[derive(Debug)]
pub struct Cache {
    /// `None` where nothing is to be kept.
    answers: Option<Table<Key, Kept, Bytes, Seeded, CountEvictions>>,
    failures: Table<Key, (Failure, Instant), UnitWeighter, Seeded>,
    options: Options,
    metrics: Arc<Metrics>,
}

/// An answer, since when it is kept, and how long it is fresh.
#[derive(Clone, Debug)]
struct Kept {
    answer: Arc<Answer>,
    since: Instant,
    lifetime: Duration,
}

/// Weighs an entry in bytes.
#[derive(Clone, Debug)]
struct Bytes;

/// Counts what had to make room.
#[derive(Clone, Debug)]
struct CountEvictions(Arc<Metrics>);

/// Bytes an entry costs beside its answer and its name: a slot in the table's slab, twice because the slab doubles, its
/// place in the hash index, and what the allocator adds.
const OVERHEAD: usize = 256;

/// Share of the usual number of entries whose hashes are remembered after they had to go.
const GHOSTS: f64 = 0.25;

/// The part of the size that ghosts may take, as a divisor: a slot each, of [`GHOSTS`] of all entries.
const GHOST_PART: u64 = 16;

/// Bytes an entry is thought to have when the table is laid out.
const USUAL_ENTRY: u64 = 1024;

impl Weighter<Key, Kept> for Bytes {
    fn weight(&self, key: &Key, kept: &Kept) -> u64 {
        u64::try_from(OVERHEAD + key.memory() + kept.answer.memory()).unwrap_or(u64::MAX)
    }
}

impl Lifecycle<Key, Kept> for CountEvictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: Key, _: Kept) {
        self.0.cache_evictions.increment();
    }
}

impl Cache {
    /// An empty one.
    pub fn new(options: &Options, metrics: Arc<Metrics>) -> Self {
        let failures = Table::with(
            MAX_FAILURES,
            u64::try_from(MAX_FAILURES).unwrap_or(u64::MAX),
            UnitWeighter,
            Seeded::default(),
            DefaultLifecycle::default(),
        );
        Self { answers: lay_out(options.size, &metrics), failures, options: options.clone(), metrics }
    }

    /// The longest TTL to pass on, in seconds: for [`Ageing`](crate::wire::reply::Ageing).
    pub fn max_ttl(&self) -> u32 {
        seconds(self.options.max_ttl)
    }

    /// Looks for an answer that is fresh, or past its time and still good for need; without allocating.
    pub fn find(&self, key: &KeyRef<'_>, now: Instant) -> Option<Found> {
        let found = self.look_up(key, now);
        if found.as_ref().is_some_and(|found| found.fresh) {
            self.metrics.cache_hits.increment();
        } else {
            self.metrics.cache_misses.increment();
        }
        found
    }

    /// Keeps an answer in place of an older one, if it may be kept.
    pub fn insert(&self, key: &KeyRef<'_>, answer: Arc<Answer>, now: Instant) {
        if let (Some(answers), Some(lifetime)) = (&self.answers, self.lifetime(&answer)) {
            answers.insert(Key::from(key), Kept { answer, since: now, lifetime });
        }
    }

    /// Did the same question just fail?
    pub fn find_failure(&self, key: &KeyRef<'_>, now: Instant) -> Option<Failure> {
        let (failure, since) = self.failures.get(key)?;
        (now.saturating_duration_since(since) < FAILURE_KEPT).then_some(failure)
    }

    /// Remembers for [`FAILURE_KEPT`] that it failed.
    pub fn insert_failure(&self, key: &KeyRef<'_>, failure: Failure, now: Instant) {
        self.failures.insert(Key::from(key), (failure, now));
    }

    /// Bytes kept, overhead included.
    pub fn size(&self) -> u64 {
        self.answers.as_ref().map_or(0, Table::weight)
    }

    /// How many answers are kept.
    pub fn len(&self) -> usize {
        self.answers.as_ref().map_or(0, Table::len)
    }

    /// Is none kept?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn look_up(&self, key: &KeyRef<'_>, now: Instant) -> Option<Found> {
        let Kept { answer, since, lifetime } = self.answers.as_ref()?.get(key)?;
        let age = now.saturating_duration_since(since);
        let fresh = age < lifetime;
        let useful = fresh || age < lifetime.saturating_add(self.options.serve_stale);
        useful.then(|| Found { answer, age: seconds(age), fresh })
    }

    /// How long an answer stays fresh; `None` if it may not be kept. A TTL of 0 asks not to be kept, and is heard
    /// whatever `min-ttl` says (RFC 1035 section 3.2.1).
    fn lifetime(&self, answer: &Answer) -> Option<Duration> {
        let ttl = answer.ttl().filter(|&ttl| ttl > 0).map(|ttl| Duration::from_secs(ttl.into()))?;
        let lifetime = if answer.is_negative() {
            ttl.min(self.options.max_negative_ttl)
        } else {
            ttl.max(self.options.min_ttl).min(self.options.max_ttl)
        };
        (!lifetime.is_zero()).then_some(lifetime)
    }
}

fn lay_out(size: u64, metrics: &Arc<Metrics>) -> Option<Table<Key, Kept, Bytes, Seeded, CountEvictions>> {
    let entries = usize::try_from(size / USUAL_ENTRY).unwrap_or(usize::MAX);
    let options = OptionsBuilder::new()
        .estimated_items_capacity(entries)
        .ghost_allocation(GHOSTS)
        .weight_capacity(size - size / GHOST_PART)
        .build()
        .ok()?;
    let table = Table::with_options(options, Bytes, Seeded::default(), CountEvictions(metrics.clone()));
    (size > 0).then_some(table)
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        name::DomainName,
        wire::{
            CLASS_IN,
            answer::Asked,
            testing::{message, record, response},
        },
    };

    const A: u16 = 1;

    fn domain(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    fn key(name: &DomainName) -> KeyRef<'_> {
        KeyRef { name: name.as_name(), qtype: A, dnssec_ok: false, checking_disabled: false }
    }

    fn read(packet: &[u8], text: &str) -> Arc<Answer> {
        let name = domain(text);
        let asked = Asked { name: name.as_name(), qtype: A, qclass: CLASS_IN, dnssec_ok: false };
        Arc::new(Answer::read(packet, &asked).unwrap())
    }

    fn positive(text: &str, ttl: u32) -> Arc<Answer> {
        read(&response(text, A, &[record(&[0xc0, 12], A, ttl, &[192, 0, 2, 1])], &[]), text)
    }

    fn negative(text: &str, ttl: u32) -> Arc<Answer> {
        let data = [vec![0; 18], ttl.to_be_bytes().to_vec(), ttl.to_be_bytes().to_vec()].concat();
        read(&message(0x8183, (text, A), [&[], &[record(&[0], 6, ttl, &data[..22])], &[]]), text)
    }

    fn cache(options: Options) -> Cache {
        Cache::new(&options, Arc::default())
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_is_fresh_for_its_ttl_then_stale_then_gone() {
        let cache = cache(Options { serve_stale: Duration::from_secs(100), ..Options::default() });
        let (a, start) = (domain("a.example"), Instant::now());
        cache.insert(&key(&a), positive("a.example", 60), start);
        let state = |seconds| cache.find(&key(&a), after(start, seconds)).map(|found| (found.age, found.fresh));
        #[rustfmt::skip]
        let cases = [
            (0, Some((0, true))), (59, Some((59, true))), (60, Some((60, false))), (159, Some((159, false))),
            (160, None), (1 << 40, None),
        ];
        for (seconds, expected) in cases {
            assert_eq!(state(seconds), expected, "after {seconds} s");
        }
        let before = start.checked_sub(Duration::from_secs(1)).map(|early| cache.find(&key(&a), early).unwrap().age);
        assert_eq!(before.unwrap_or(0), 0);
        assert_eq!((cache.metrics.cache_hits.value(), cache.metrics.cache_misses.value()), (3, 4));
    }

    #[test]
    fn every_part_of_the_key_tells_answers_apart() {
        let cache = cache(Options::default());
        let (a, b, start) = (domain("a.example"), domain("b.example"), Instant::now());
        cache.insert(&key(&a), positive("a.example", 60), start);
        let plain = key(&a);
        #[rustfmt::skip]
        let others = [
            KeyRef { name: b.as_name(), ..plain },
            KeyRef { qtype: 28, ..plain },
            KeyRef { dnssec_ok: true, ..plain },
            KeyRef { checking_disabled: true, ..plain },
        ];
        assert!(cache.find(&plain, start).is_some());
        for other in others {
            assert!(cache.find(&other, start).is_none(), "{other:?}");
        }
    }

    #[test]
    fn ttls_are_kept_within_their_bounds() {
        let options = Options {
            min_ttl: Duration::from_secs(10),
            max_ttl: Duration::from_secs(100),
            max_negative_ttl: Duration::from_secs(50),
            serve_stale: Duration::ZERO,
            ..Options::default()
        };
        #[rustfmt::skip]
        let cases = [
            (positive("a.example", 5),    Some(10)),
            (positive("a.example", 60),   Some(60)),
            (positive("a.example", 600),  Some(100)),
            (positive("a.example", 0),    None),
            (negative("a.example", 5),    Some(5)),
            (negative("a.example", 600),  Some(50)),
            (negative("a.example", 0),    None),
        ];
        let a = domain("a.example");
        for (answer, lifetime) in cases {
            let (cache, start) = (cache(options.clone()), Instant::now());
            cache.insert(&key(&a), answer.clone(), start);
            assert_eq!(cache.len(), usize::from(lifetime.is_some()), "{answer:?}");
            let is_found = |seconds| cache.find(&key(&a), after(start, seconds)).is_some();
            let ends = lifetime.map(|seconds| (is_found(seconds - 1), is_found(seconds)));
            assert_eq!(ends.unwrap_or((true, false)), (true, false), "{answer:?}");
        }
        assert_eq!(cache(options).max_ttl(), 100);
    }

    #[test]
    fn what_may_not_be_kept_is_not() {
        let nothing = &[][..];
        let answers = [record(&[0xc0, 12], A, 60, &[1; 4])];
        #[rustfmt::skip]
        let cases = [
            ("SERVFAIL",             message(0x8182, ("a.example", A), [nothing, nothing, nothing])),
            ("REFUSED, with data",   message(0x8185, ("a.example", A), [&answers, nothing, nothing])),
            ("truncated",            message(0x8380, ("a.example", A), [&answers, nothing, nothing])),
            ("negative, no SOA",     message(0x8183, ("a.example", A), [nothing, nothing, nothing])),
        ];
        let (cache, a) = (cache(Options::default()), domain("a.example"));
        for (what, packet) in cases {
            cache.insert(&key(&a), read(&packet, "a.example"), Instant::now());
            assert!(cache.is_empty(), "{what}");
        }
        let none = super::Cache::new(&Options { size: 0, ..Options::default() }, Arc::default());
        none.insert(&key(&a), positive("a.example", 60), Instant::now());
        assert!(none.find(&key(&a), Instant::now()).is_none() && none.size() == 0);
    }

    #[test]
    fn a_newer_answer_takes_the_place_of_an_older_one() {
        let (cache, a, start) = (cache(Options::default()), domain("a.example"), Instant::now());
        cache.insert(&key(&a), positive("a.example", 60), start);
        cache.insert(&key(&a), negative("a.example", 60), after(start, 10));
        let found = cache.find(&key(&a), after(start, 11)).unwrap();
        assert_eq!((found.answer.is_negative(), found.age, cache.len()), (true, 1, 1));
    }

    #[test]
    fn what_is_kept_takes_no_more_memory_than_allowed() {
        for (size, extra) in [(64 << 10, 0), (1 << 20, 0), (4 << 20, 0), (4 << 20, 3000)] {
            let cache = cache(Options { size, ..Options::default() });
            let count = 3 * size / u64::try_from(OVERHEAD + extra).unwrap();
            for index in 0..count {
                let text = format!("n{index}.example");
                let filler = record(&[0xc0, 12], A, 60, &[1; 4]);
                let answers = vec![filler; 1 + extra / 32];
                cache.insert(&key(&domain(&text)), read(&response(&text, A, &answers, &[]), &text), Instant::now());
            }
            let table = cache.answers.as_ref().unwrap();
            let heap: usize = table.iter().map(|(key, kept)| key.memory() + 16 + kept.answer.memory() + 16).sum();
            // The slab may have doubled just now, so its slots count twice.
            let whole = u64::try_from(heap + 2 * table.memory_used().total()).unwrap();
            assert!(cache.size() <= size && whole <= size, "{whole} bytes in {size}, counted as {}", cache.size());
            assert!(cache.size() > size / 2, "only {} of {size} bytes are used", cache.size());
            let evicted = cache.metrics.cache_evictions.value();
            assert_eq!(evicted + u64::try_from(cache.len()).unwrap(), count, "each is kept or counted");
        }
    }

    #[test]
    fn an_answer_larger_than_the_cache_is_turned_away() {
        let cache = cache(Options { size: 4096, ..Options::default() });
        let answers = vec![record(&[0xc0, 12], A, 60, &[1; 4]); 500];
        let a = domain("a.example");
        cache.insert(&key(&a), read(&response("a.example", A, &answers, &[]), "a.example"), Instant::now());
        assert!(cache.is_empty() && cache.size() == 0);
    }

    #[test]
    fn a_failure_is_remembered_for_a_moment_and_apart_from_answers() {
        let (cache, a, start) = (cache(Options::default()), domain("a.example"), Instant::now());
        let failure = Failure { rcode: Rcode::SERVFAIL, error: Some(22) };
        cache.insert_failure(&key(&a), failure, start);
        let kept = FAILURE_KEPT.as_secs();
        assert_eq!(cache.find_failure(&key(&a), after(start, kept - 1)), Some(failure));
        assert_eq!(cache.find_failure(&key(&a), after(start, kept)), None);
        let other = KeyRef { dnssec_ok: true, ..key(&a) };
        assert_eq!(cache.find_failure(&other, start), None);
        assert!(cache.find(&key(&a), start).is_none());
    }

    #[test]
    fn failures_are_bounded() {
        let (cache, start) = (cache(Options::default()), Instant::now());
        let failure = Failure { rcode: Rcode::SERVFAIL, error: None };
        for index in 0..2 * MAX_FAILURES {
            cache.insert_failure(&key(&domain(&format!("n{index}.example"))), failure, start);
        }
        assert!(cache.failures.len() <= MAX_FAILURES && cache.failures.len() > MAX_FAILURES / 2);
    }

    #[test]
    fn no_two_caches_lay_out_the_same_names_alike() {
        let start = Instant::now();
        let order = || {
            let cache = cache(Options::default());
            for index in 0..1000 {
                let text = format!("n{index}.example");
                cache.insert(&key(&domain(&text)), positive(&text, 60), start);
            }
            cache.answers.as_ref().unwrap().iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert!(order() != order(), "the place of a name can be known");
    }

    #[test]
    fn keys_hash_alike_borrowed_and_owned() {
        let state = Seeded::default();
        let names = ["a.example", ".", "a.b.c.d.e.example"].map(domain);
        for name in &names {
            let borrowed = KeyRef { name: name.as_name(), qtype: 28, dnssec_ok: true, checking_disabled: false };
            use std::hash::BuildHasher as _;
            assert_eq!(state.hash_one(borrowed), state.hash_one(Key::from(&borrowed)));
        }
    }
}
