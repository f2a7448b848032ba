//! Repeats are counted where they happen: a thread that has seen an attempt before adds to a number that the worker
//! reads, and nothing crosses over. Only what opens a fold, or may, goes through the queue.
//!
//! What a thread knows is bounded as folds are, and in the same order: past [`MAX_CLIENTS`] attempts of one client and
//! name, those it does not know count for the network's fold if that is open, and past [`MAX_NETWORKS`] for everybody's.
//! It counts for a fold no longer than the worker says that it is open, so no repeat is lost between the two.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use jiff::Timestamp;

use super::fold::{Grain, Key, Likeness, is_past};

/// Attempts of one client and name that a thread knows; more than there can be folds of them.
const MAX_CLIENTS: usize = 16_384;

/// The same of a network, and of everybody: as many as there are rules, in all likelihood.
const MAX_NETWORKS: usize = 4096;
const MAX_EVERYBODY: usize = 1024;

/// How long a thread that knows enough waits before it looks again for what it may forget.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// What one thread has seen. Its hash seed is its own, since clients choose the names.
#[derive(Debug, Default)]
pub(super) struct Seen {
    hashing: RandomState,
    clients: HashTable<Known>,
    networks: HashTable<Known>,
    everybody: HashTable<Known>,
    forgot_at: Timestamp,
}

/// An attempt that was seen.
#[derive(Debug)]
struct Known {
    hash: u64,
    key: Key,
    since: Timestamp,
    tally: Arc<Tally>,
}

/// What a thread counts and the worker reads.
#[derive(Debug)]
struct Tally {
    /// How many, and [`CLOSED`].
    count: AtomicU64,
    /// When the fold was opened and when the last repeat was made, in milliseconds since 1970.
    opened: AtomicI64,
    last: AtomicI64,
}

/// Nobody reads it any more.
const CLOSED: u64 = 1 << 63;

/// The worker's side of a tally. Once it is dropped the thread counts no more, and what repeats is a new attempt.
#[derive(Debug)]
pub(super) struct Repeats {
    tally: Arc<Tally>,
    grain: Grain,
    read: u64,
}

impl Seen {
    /// Counts what is a repeat. Else nothing is counted, and this is the fold it could be remembered for.
    pub(super) fn count(&mut self, likeness: &Likeness<'_>, time: Timestamp) -> Result<(), Option<Grain>> {
        for grain in [Grain::Client, Grain::Network, Grain::Everybody] {
            let hash = likeness.hash(grain, &self.hashing);
            let table = self.table(grain);
            if let Ok(known) = table.find_entry(hash, |known| known.hash == hash && known.key.is(likeness, grain)) {
                if known.get().tally.add(time) {
                    return Ok(());
                }
                known.remove();
                return Err(Some(grain));
            }
            if self.has_room(grain, time) {
                return Err(Some(grain));
            }
        }
        Err(None)
    }

    /// Remembers an attempt whose repeats the worker will read. Should the queue not take it, that is known at its next
    /// repeat.
    pub(super) fn remember(&mut self, likeness: &Likeness<'_>, time: Timestamp, repeats: &Repeats) {
        let grain = repeats.grain;
        let hash = likeness.hash(grain, &self.hashing);
        let known =
            Known { hash, key: Key::new(likeness, grain), since: time, tally: Arc::clone(&repeats.tally) };
        self.table(grain).insert_unique(hash, known, |known| known.hash);
    }

    fn table(&mut self, grain: Grain) -> &mut HashTable<Known> {
        match grain {
            Grain::Client => &mut self.clients,
            Grain::Network => &mut self.networks,
            Grain::Everybody => &mut self.everybody,
        }
    }

    fn has_room(&mut self, grain: Grain, now: Timestamp) -> bool {
        let most = match grain {
            Grain::Client => MAX_CLIENTS,
            Grain::Network => MAX_NETWORKS,
            Grain::Everybody => MAX_EVERYBODY,
        };
        if self.table(grain).len() >= most && now.duration_since(self.forgot_at).unsigned_abs() >= FORGET_EVERY {
            self.forgot_at = now;
            for table in [&mut self.clients, &mut self.networks, &mut self.everybody] {
                table.retain(|known| !is_past(known.since, now) && !known.tally.is_closed());
            }
        }
        self.table(grain).len() < most
    }
}

impl Tally {
    /// One more, if the fold is open and its window has not passed.
    fn add(&self, time: Timestamp) -> bool {
        let opened = Timestamp::from_millisecond(self.opened.load(Ordering::Relaxed));
        if opened.is_ok_and(|opened| is_past(opened, time)) {
            return false;
        }
        // Threads that share a number are kept apart by a lock, so nobody writes in between.
        let millisecond = time.as_millisecond();
        if self.last.load(Ordering::Relaxed) < millisecond {
            self.last.store(millisecond, Ordering::Relaxed);
        }
        // Added to a closed tally, it is never read: the caller counts it elsewhere.
        self.count.fetch_add(1, Ordering::Release) & CLOSED == 0
    }

    fn is_closed(&self) -> bool {
        self.count.load(Ordering::Relaxed) & CLOSED != 0
    }
}

impl Repeats {
    /// None yet, of an attempt made at `time` that is remembered for a fold of this grain.
    pub(super) fn new(grain: Grain, time: Timestamp) -> Self {
        let millisecond = time.as_millisecond();
        let (opened, last) = (AtomicI64::new(millisecond), AtomicI64::new(millisecond));
        Self { tally: Arc::new(Tally { count: AtomicU64::new(0), opened, last }), grain, read: 0 }
    }

    /// May repeats count for a fold of this grain? What a thread remembers of a network must not count for one client.
    pub(super) fn may_count_for(&self, grain: Grain) -> bool {
        self.grain <= grain
    }

    /// Says when the fold was opened that is counted for.
    pub(super) fn opened(&self, time: Timestamp) {
        self.tally.opened.store(time.as_millisecond(), Ordering::Relaxed);
    }

    /// How many came since the last call, and when the last of them did.
    pub(super) fn unread(&mut self) -> (u64, Timestamp) {
        self.read_to(self.tally.count.load(Ordering::Acquire))
    }

    /// The same for the last time: what repeats from now on is a new attempt.
    pub(super) fn close(&mut self) -> (u64, Timestamp) {
        self.read_to(self.tally.count.fetch_or(CLOSED, Ordering::AcqRel))
    }

    fn read_to(&mut self, count: u64) -> (u64, Timestamp) {
        // What was added to a closed tally counts elsewhere.
        let unread = if count & CLOSED == 0 { count.saturating_sub(self.read) } else { 0 };
        self.read += unread;
        (unread, Timestamp::from_millisecond(self.tally.last.load(Ordering::Relaxed)).unwrap_or(Timestamp::MIN))
    }
}

impl Drop for Repeats {
    fn drop(&mut self) {
        self.tally.count.fetch_or(CLOSED, Ordering::Relaxed);
    }
}
