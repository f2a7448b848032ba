//! Questions in flight: equal ones are one, and whoever waits for it is told what came of it.
//!
//! Who waits is called, not woken: what is left to do with a reply is less than starting a task for it.

use std::{
    fmt,
    hash::BuildHasher,
    sync::{Arc, Mutex},
};

use hashbrown::hash_table::{Entry, HashTable};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Failure, Query, Reply, locked};
use crate::{hashing::Seeded, lasting, metrics::Metrics};

/// Is told, once, what came of a question; soon and without waiting.
pub(super) type Then = Box<dyn FnOnce(Result<Arc<Reply>, Failure>) + Send>;

/// Everything in flight. The seed of the hash is random: names are anybody's choice.
#[derive(Debug)]
pub(super) struct Board {
    shards: [Mutex<HashTable<Party>>; SHARDS],
    hasher: Seeded,
    pub(super) places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// All who ask an equal question.
struct Party {
    query: Arc<Query>,
    first: Then,
    others: Vec<Then>,
}

/// One question in flight. Ends by [`land`](Self::land), or by being dropped when its task is stopped or panics.
#[derive(Debug)]
pub(super) struct Flight {
    query: Arc<Query>,
    hash: u64,
    /// `None` once it has landed.
    board: Option<Arc<Board>>,
    _place: OwnedSemaphorePermit,
}

/// Locks among which the questions are spread, so that workers seldom meet.
const SHARDS: usize = 32;

impl Board {
    /// With room for so many.
    pub(super) fn new(places: usize, metrics: Arc<Metrics>) -> Self {
        let places = Arc::new(Semaphore::new(places));
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: Seeded::default(), places, metrics }
    }

    /// Joins the equal question in flight, or is the first: then there is a flight to be seen to.
    pub(super) fn enter(self: &Arc<Self>, query: Query, then: Then) -> Option<Flight> {
        let hash = self.hasher.hash_one(&query);
        let hasher = |party: &Party| self.hasher.hash_one(&*party.query);
        let mut shard = locked(self.shard(hash));
        let vacant = match shard.entry(hash, |party| *party.query == query, hasher) {
            Entry::Occupied(mut party) => {
                self.metrics.upstream_merged.increment();
                party.get_mut().others.push(then);
                return None;
            }
            Entry::Vacant(vacant) => vacant,
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            drop(shard);
            self.metrics.upstream_over_questions.increment();
            self.tell(then, Err(Failure::Overloaded));
            return None;
        };
        let query = Arc::new(query);
        vacant.insert(Party { query: Arc::clone(&query), first: then, others: Vec::new() });
        Some(Flight { query, hash, board: Some(Arc::clone(self)), _place: place })
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| locked(shard).is_empty())
    }

    /// Takes a question off the board and tells all who asked it.
    fn end(&self, hash: u64, query: &Arc<Query>, outcome: Result<Arc<Reply>, Failure>) {
        // Off the board first: who comes now asks anew, or finds the reply in the cache.
        let mut shard = locked(self.shard(hash));
        let Ok(party) = shard.find_entry(hash, |party| Arc::ptr_eq(&party.query, query)) else { return };
        let (party, _) = party.remove();
        drop(shard);
        if let Err(failure) = outcome {
            failure.count(&self.metrics);
        }
        for then in party.others {
            self.tell(then, outcome.clone());
        }
        self.tell(party.first, outcome);
    }

    /// A panic costs the one who asked, and nobody who asked the same.
    fn tell(&self, then: Then, outcome: Result<Arc<Reply>, Failure>) {
        let _ = lasting::call(&self.metrics, || then(outcome));
    }

    #[expect(clippy::indexing_slicing, reason = "the index is taken modulo the length")]
    fn shard(&self, hash: u64) -> &Mutex<HashTable<Party>> {
        // Not the bits that the table takes for its buckets and tags.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }
}

impl Flight {
    pub(super) fn query(&self) -> &Arc<Query> {
        &self.query
    }

    /// It is settled.
    pub(super) fn land(mut self, outcome: Result<Reply, Failure>) {
        if let Some(board) = self.board.take() {
            board.end(self.hash, &self.query, outcome.map(Arc::new));
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Without a word only where everything is stopped, or its task has panicked.
        if let Some(board) = self.board.take() {
            board.end(self.hash, &self.query, Err(Failure::Stopped));
        }
    }
}

impl fmt::Debug for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Party").field("query", &self.query).field("others", &self.others.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn query(name: &str) -> Query {
        Query { name: name.parse().unwrap(), qtype: 1, dnssec_ok: false, checking_disabled: false }
    }

    fn board(places: usize) -> Arc<Board> {
        Arc::new(Board::new(places, Arc::default()))
    }

    fn reply() -> Reply {
        Reply { packet: Box::from(*b"said"), server: ([192, 0, 2, 53], 53).into() }
    }

    /// Somebody who asks, and what they are told.
    fn somebody() -> (Then, mpsc::Receiver<Result<Arc<Reply>, Failure>>) {
        let (told, heard) = mpsc::channel();
        (Box::new(move |outcome| told.send(outcome).unwrap()), heard)
    }

    #[test]
    fn all_who_ask_the_same_are_told_once_whoever_else_panics() {
        let board = board(10);
        let flight = board.enter(query("a.example"), Box::new(|_| panic!("a bug"))).unwrap();
        let heard: Vec<_> = (0..3)
            .map(|_| {
                let (then, heard) = somebody();
                assert!(board.enter(query("A.Example"), then).is_none(), "the case of a name makes no difference");
                heard
            })
            .collect();
        let (then, other) = somebody();
        let other_flight = board.enter(query("b.example"), then).unwrap();
        flight.land(Ok(reply()));
        for heard in heard {
            assert_eq!(*heard.recv().unwrap().unwrap().packet, *b"said");
            assert!(heard.recv().is_err(), "told twice");
        }
        assert_eq!((board.metrics.panics.value(), board.metrics.upstream_merged.value()), (1, 3));
        assert!(other.try_recv().is_err());
        other_flight.land(Err(Failure::Silent));
        assert_eq!(other.recv().unwrap().unwrap_err(), Failure::Silent);
        assert!(board.is_empty());
    }

    #[test]
    fn a_flight_that_is_given_up_ends_for_those_on_board_and_gives_its_place_back() {
        let board = board(1);
        let (then, first) = somebody();
        let flight = board.enter(query("a.example"), then);
        let (then, turned_away) = somebody();
        assert!(board.enter(query("b.example"), then).is_none());
        assert_eq!(turned_away.recv().unwrap().unwrap_err(), Failure::Overloaded);
        drop(flight);
        assert_eq!(first.recv().unwrap().unwrap_err(), Failure::Stopped);
        let (then, _heard) = somebody();
        assert!(board.enter(query("a.example"), then).is_some(), "who comes later asks anew");
    }
}
