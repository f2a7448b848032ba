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

use foldhash::quality::RandomState;
use quick_cache::{
    Lifecycle, OptionsBuilder, UnitWeighter, Weighter,
    sync::{Cache as Table, DefaultLifecycle},
};

use self::key::Key;
pub use self::{key::KeyRef, options::Options};
use crate::{
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
    answers: Option<Table<Key, Kept, Bytes, RandomState, CountEvictions>>,
    failures: Table<Key, (Failure, Instant), UnitWeighter, RandomState>,
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
/// place in the hash index, a remembered ghost, and what the allocator adds.
const OVERHEAD: usize = 320;

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
            RandomState::default(),
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

fn lay_out(size: u64, metrics: &Arc<Metrics>) -> Option<Table<Key, Kept, Bytes, RandomState, CountEvictions>> {
    let entries = usize::try_from(size / USUAL_ENTRY).unwrap_or(usize::MAX);
    let options = OptionsBuilder::new().estimated_items_capacity(entries).weight_capacity(size).build().ok()?;
    let table = Table::with_options(options, Bytes, RandomState::default(), CountEvictions(metrics.clone()));
    (size > 0).then_some(table)
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
