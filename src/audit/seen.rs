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

use hashbrown::HashTable;
use jiff::Timestamp;

use super::fold::{Grain, Key, Likeness, is_past};
use crate::hashing::Seeded;

/// Attempts of one client and name that a thread knows: more than there can be folds of them.
const MAX_CLIENTS: usize = 14_336;

/// The same of a network, and of everybody: as many as there are rules, in all likelihood.
const MAX_NETWORKS: usize = 4096;
const MAX_EVERYBODY: usize = 1024;

/// How long a thread that knows enough waits before it looks again for what it may forget.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// What one thread has seen. Its hash seed is its own, since clients choose the names. A table in which much comes and goes
/// doubles once more than what it holds needs; so it holds boxes.
#[derive(Debug, Default)]
pub(super) struct Seen {
    hashing: Seeded,
    clients: HashTable<Box<Known>>,
    networks: HashTable<Box<Known>>,
    everybody: HashTable<Box<Known>>,
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
        let known = Known { hash, key: Key::new(likeness, grain), since: time, tally: Arc::clone(&repeats.tally) };
        self.table(grain).insert_unique(hash, Box::new(known), |known| known.hash);
    }

    fn table(&mut self, grain: Grain) -> &mut HashTable<Box<Known>> {
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

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Receiver, Sender, channel},
        thread,
    };

    use super::*;
    use crate::audit::{Attempt, attempt::tests::attempt};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    /// Counts a repeat, or gives what would go through the queue.
    fn see(seen: &mut Seen, time: Timestamp, attempt: &Attempt) -> Option<Repeats> {
        let likeness = attempt.likeness();
        let grain = seen.count(&likeness, time).err()??;
        let repeats = Repeats::new(grain, time);
        seen.remember(&likeness, time, &repeats);
        Some(repeats)
    }

    #[test]
    fn what_repeats_is_counted_and_what_differs_is_not() {
        let mut seen = Seen::default();
        let first = attempt("192.0.2.1:1", "a.example");
        let mut repeats = see(&mut seen, at(0), &first).unwrap();
        let like = |client, name, rule: &str| Attempt { rule: rule.into(), ..attempt(client, name) };
        for (second, client) in [(1, "192.0.2.1:2"), (59, "[::ffff:192.0.2.1]:1")] {
            assert!(see(&mut seen, at(second), &like(client, "a.example", "ngrok/connect")).is_none(), "{client}");
        }
        assert_eq!(repeats.unread(), (2, at(59)));
        assert_eq!(repeats.unread().0, 0, "they are read");
        for (client, name, rule) in [
            ("192.0.2.2:1", "a.example", "ngrok/connect"),
            ("192.0.2.1:1", "b.example", "ngrok/connect"),
            ("192.0.2.1:1", "a.example", "ngrok/other"),
        ] {
            assert!(see(&mut seen, at(1), &like(client, name, rule)).is_some(), "{client} {name} {rule}");
        }
        assert_eq!(repeats.close().0, 0);
    }

    #[test]
    fn a_window_ends_when_the_fold_says_so_and_when_it_is_closed() {
        let mut seen = Seen::default();
        let first = attempt("192.0.2.1:1", "a.example");
        let repeats = see(&mut seen, at(0), &first).unwrap();
        // Another thread's attempt had opened the fold before.
        repeats.opened(at(-10));
        assert!(see(&mut seen, at(49), &first).is_none());
        let mut later = see(&mut seen, at(50), &first).unwrap();
        assert!(see(&mut seen, at(51), &first).is_none());
        assert_eq!(later.close(), (1, at(51)));
        let after = see(&mut seen, at(52), &first).unwrap();
        drop(after);
        assert!(see(&mut seen, at(53), &first).is_some(), "the worker has let go of it");
    }

    #[test]
    fn of_a_flood_of_names_no_more_is_remembered_than_there_is_room_for_and_all_is_counted() {
        let mut seen = Seen::default();
        let mut queued = Vec::new();
        let many = 2 * MAX_CLIENTS;
        for number in 0..many {
            queued.extend(see(&mut seen, at(0), &attempt("192.0.2.1:1", &format!("n{number}.example"))));
        }
        assert_eq!((seen.clients.len(), seen.networks.len(), seen.everybody.len()), (MAX_CLIENTS, 1, 0));
        let counted: u64 = queued.iter_mut().map(|repeats| 1 + repeats.unread().0).sum();
        assert_eq!((queued.len(), usize::try_from(counted).unwrap()), (MAX_CLIENTS + 1, many));
        let of_networks = queued.pop().unwrap();
        assert!(!of_networks.may_count_for(Grain::Client) && of_networks.may_count_for(Grain::Everybody));
        // A minute later there is room again.
        assert!(see(&mut seen, at(60), &attempt("192.0.2.1:1", "new.example")).is_some());
        assert_eq!((seen.clients.len(), seen.networks.len()), (1, 0));
    }

    #[test]
    fn however_long_attempts_come_and_go_the_table_stays_small() {
        let mut seen = Seen::default();
        let mut queued = std::collections::VecDeque::new();
        for number in 0..3 * MAX_CLIENTS {
            if seen.clients.len() == MAX_CLIENTS {
                // The worker lets go of the oldest, which is heard at its next repeat.
                let oldest = number - MAX_CLIENTS;
                drop(queued.pop_front());
                let gone = attempt("192.0.2.1:1", &format!("n{oldest}.example"));
                assert_eq!(seen.count(&gone.likeness(), at(0)), Err(Some(Grain::Client)));
            }
            queued.extend(see(&mut seen, at(0), &attempt("192.0.2.1:1", &format!("n{number}.example"))));
        }
        assert!(seen.clients.len() == MAX_CLIENTS && seen.clients.allocation_size() < 512 << 10);
    }

    #[test]
    fn nothing_is_lost_between_a_thread_that_counts_and_a_worker_that_closes() {
        const TIMES: u64 = 200_000;
        let (sender, queue): (Sender<Repeats>, Receiver<Repeats>) = channel();
        let counting = thread::spawn(move || {
            let (mut seen, attempt) = (Seen::default(), attempt("192.0.2.1:1", "a.example"));
            for _ in 0..TIMES {
                if let Some(repeats) = see(&mut seen, at(0), &attempt) {
                    sender.send(repeats).unwrap();
                }
            }
        });
        // The sender goes with its thread.
        let counted: u64 = queue.iter().map(|mut repeats| 1 + repeats.unread().0 + repeats.close().0).sum();
        counting.join().unwrap();
        assert_eq!(counted, TIMES);
    }
}
