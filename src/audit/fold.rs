//! Repeated attempts become one record with a count. Pure: every moment is an argument.
//!
//! Attempts with the same client, name, rule, decision and way, and where addresses are tried the same destination, within
//! [`WINDOW`] of the first are one. The window does not
//! slide, so that an agent that retries for a day is a row a minute with a count, and each count becomes final.
//! A stranger can invent names and, over UDP, clients; so the number of open folds is bounded twice. Past [`MAX_OPEN`]
//! new folds join all names of a client's network under a rule, and past as many of those all clients too, which
//! leaves no more than there are rules. What repeats is mostly counted by the thread that sees it (`seen`) and added here when a
//! count is read.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    Attempt, Decision, Id, Record, Way,
    mask::{Mask, cut, prefix},
    seen::Repeats,
};
use crate::name::{DomainName, NameRef};

/// How long after its first attempt a fold takes more.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// Open folds of one client and name, and again of one network.
pub(super) const MAX_OPEN: usize = 10_000;

/// Every open fold.
#[derive(Debug)]
pub(super) struct Folds {
    /// Boxed, since a table in which much comes and goes doubles once more than what it holds needs.
    open: HashMap<Arc<Key>, Box<Fold>>,
    by_age: BTreeMap<Id, Arc<Key>>,
    /// Open folds of one client and of one network.
    precise: usize,
    coarse: usize,
    max_open: usize,
    last_id: Id,
}

/// What came of an attempt.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// A new record, to be written at once.
    pub opened: Option<Record>,
    /// An old one whose window had passed; its count is final.
    pub closed: Option<Record>,
    /// The new record joins more than one client and name.
    pub is_coarse: bool,
}

/// What makes two attempts one. Borrowed, so that a repeat is recognised without allocating.
#[derive(Clone, Copy, Debug)]
pub struct Likeness<'a> {
    /// Who tried.
    pub client: IpAddr,
    /// The name asked for.
    pub name: Option<NameRef<'a>>,
    /// Where it was to go, where another address is another attempt.
    pub destination: Option<SocketAddr>,
    /// The rule, as it is shown.
    pub rule: &'a Arc<str>,
    /// What was decided.
    pub decision: Decision,
    /// By which way it was tried.
    pub way: Way,
}

/// The attempts that are one fold.
#[derive(Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    grain: Grain,
    clients: IpNet,
    /// `None` of a coarse grain joins all names, and so with destinations.
    name: Option<DomainName>,
    destination: Option<SocketAddr>,
    rule: Arc<str>,
    decision: Decision,
    way: Way,
}

/// How much a fold joins, the least first.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Grain {
    /// One name, or one destination, of one client.
    Client,
    /// All names of a network.
    Network,
    /// All names of everybody.
    Everybody,
}

#[derive(Debug)]
struct Fold {
    record: Record,
    /// What the threads count for it.
    repeats: Vec<Repeats>,
    is_changed: bool,
}

impl Folds {
    /// No folds; ids go on above `last_id`.
    pub(super) fn new(last_id: Id, max_open: usize) -> Self {
        Self { open: HashMap::new(), by_age: BTreeMap::new(), precise: 0, coarse: 0, max_open, last_id }
    }

    /// Counts an attempt into its fold, or opens one. `repeats` will be counted there too, if it is a fold for them.
    pub(super) fn take(&mut self, attempt: Attempt, repeats: Option<Repeats>, mask: &Mask) -> Taken {
        let mut taken = Taken::default();
        let likeness = attempt.likeness();
        let mut grain = Grain::Client;
        let mut key = Key::new(&likeness, grain);
        if !self.join(&key, attempt.time, &mut taken) {
            if self.precise >= self.max_open {
                grain = Grain::Network;
                key = Key::new(&likeness, grain);
                if !self.join(&key, attempt.time, &mut taken) && self.coarse >= self.max_open {
                    grain = Grain::Everybody;
                    key = Key::new(&likeness, grain);
                    self.join(&key, attempt.time, &mut taken);
                }
            }
            if !self.open.contains_key(&key) {
                taken.is_coarse = grain != Grain::Client;
                taken.opened = Some(self.open_fold(&likeness, grain, &attempt, mask));
            }
        }
        if let Some(fold) = self.open.get_mut(&key) {
            fold.attach(repeats.filter(|repeats| repeats.may_count_for(grain)));
        }
        taken
    }

    /// Counts an attempt into the fold of `key`, if there is one and its window has not passed.
    fn join(&mut self, key: &Key, time: Timestamp, taken: &mut Taken) -> bool {
        let Some(fold) = self.open.get_mut(key) else { return false };
        if is_past(fold.record.first, time) {
            taken.closed = self.close(key);
            return false;
        }
        fold.count(1, time);
        true
    }

    fn open_fold(&mut self, likeness: &Likeness<'_>, grain: Grain, attempt: &Attempt, mask: &Mask) -> Record {
        self.last_id = self.last_id.next(attempt.time);
        let key = Arc::new(Key::new(likeness, grain));
        let client = mask.show(key.clients, attempt.client.port());
        let mut record = Record::first(self.last_id, attempt, client, key.name.as_ref().map(ToString::to_string));
        if grain != Grain::Client {
            // What is the first client's alone must not stand for the others.
            (record.evidence, record.via, record.group) = (None, None, None);
            (record.destination, record.process) = (None, None);
        }
        *self.room(grain) += 1;
        self.by_age.insert(record.id, Arc::clone(&key));
        self.open.insert(key, Box::new(Fold { record: record.clone(), repeats: Vec::new(), is_changed: false }));
        record
    }

    fn close(&mut self, key: &Key) -> Option<Record> {
        let mut fold = self.open.remove(key)?;
        self.by_age.remove(&fold.record.id);
        let room = self.room(key.grain);
        *room = room.saturating_sub(1);
        fold.gather(Repeats::close);
        (fold.record.count > 1).then_some(fold.record)
    }

    /// Closes what is older than its window and gives the records whose count has grown.
    pub(super) fn expire(&mut self, now: Timestamp) -> Vec<Record> {
        let mut closed = Vec::new();
        while let Some((_, key)) = self.by_age.first_key_value() {
            let key = Arc::clone(key);
            if self.open.get(&key).is_some_and(|fold| !is_past(fold.record.first, now)) {
                break;
            }
            closed.extend(self.close(&key));
        }
        closed
    }

    /// Closes everything and gives the records whose count has grown.
    pub(super) fn close_all(&mut self) -> Vec<Record> {
        let keys: Vec<_> = self.by_age.values().cloned().collect();
        keys.iter().filter_map(|key| self.close(key)).collect()
    }

    /// The open records whose count has grown since the last call.
    pub(super) fn changed(&mut self) -> Vec<Record> {
        let mut changed = Vec::new();
        for fold in self.open.values_mut() {
            fold.gather(Repeats::unread);
            if std::mem::take(&mut fold.is_changed) {
                changed.push(fold.record.clone());
            }
        }
        changed
    }

    /// Is anything open?
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Gives no id up to this one any more: it is taken.
    pub(super) fn go_on_above(&mut self, id: Id) {
        self.last_id = self.last_id.max(id);
    }

    /// The highest id that was given.
    pub(super) fn last_id(&self) -> Id {
        self.last_id
    }

    fn room(&mut self, grain: Grain) -> &mut usize {
        match grain {
            Grain::Client => &mut self.precise,
            Grain::Network | Grain::Everybody => &mut self.coarse,
        }
    }
}

impl Fold {
    fn count(&mut self, times: u64, last: Timestamp) {
        self.record.repeat(times, last);
        self.is_changed = true;
    }

    fn attach(&mut self, repeats: Option<Repeats>) {
        if let Some(repeats) = repeats {
            repeats.opened(self.record.first);
            self.repeats.push(repeats);
        }
    }

    /// Adds what the threads have counted.
    fn gather(&mut self, mut read: impl FnMut(&mut Repeats) -> (u64, Timestamp)) {
        let mut repeats = std::mem::take(&mut self.repeats);
        for (times, last) in repeats.iter_mut().map(&mut read).filter(|(times, _)| *times > 0) {
            self.count(times, last);
        }
        self.repeats = repeats;
    }
}

impl<'a> Likeness<'a> {
    fn clients(&self, grain: Grain) -> IpNet {
        let client = self.client.to_canonical();
        match grain {
            Grain::Client => IpNet::from(client),
            Grain::Network => prefix(client),
            Grain::Everybody => cut(client, 0),
        }
    }

    fn name(&self, grain: Grain) -> Option<NameRef<'a>> {
        self.name.filter(|_| grain == Grain::Client)
    }

    fn destination(&self, grain: Grain) -> Option<SocketAddr> {
        self.destination.filter(|_| grain == Grain::Client)
    }

    /// A hash of the fold it belongs to. Rules differ less than names, and so count only where no name does.
    pub(super) fn hash(&self, grain: Grain, hashing: &impl BuildHasher) -> u64 {
        let mut hasher = hashing.build_hasher();
        match self.clients(grain).addr() {
            IpAddr::V4(address) => hasher.write_u32(address.to_bits()),
            IpAddr::V6(address) => hasher.write_u128(address.to_bits()),
        }
        hasher.write(self.name(grain).map_or(self.rule.as_bytes(), NameRef::as_wire));
        if let Some(destination) = self.destination(grain) {
            destination.hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl Key {
    pub(super) fn new(likeness: &Likeness<'_>, grain: Grain) -> Self {
        Self {
            grain,
            clients: likeness.clients(grain),
            destination: likeness.destination(grain),
            name: likeness.name(grain).map(NameRef::to_owned),
            rule: Arc::clone(likeness.rule),
            decision: likeness.decision,
            way: likeness.way,
        }
    }

    /// Is this the key of the fold it belongs to?
    pub(super) fn is(&self, likeness: &Likeness<'_>, grain: Grain) -> bool {
        self.name.as_ref().map(DomainName::as_name) == likeness.name(grain)
            && self.grain == grain
            && self.destination == likeness.destination(grain)
            && self.clients == likeness.clients(grain)
            && (Arc::ptr_eq(&self.rule, likeness.rule) || self.rule == *likeness.rule)
            && (self.decision, self.way) == (likeness.decision, likeness.way)
    }
}

/// Is `now` outside the window of something first seen then? A clock that was set back far ends a window too.
pub(super) fn is_past(first: Timestamp, now: Timestamp) -> bool {
    now.duration_since(first).unsigned_abs() >= WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Evidence, attempt::tests::attempt};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn folds(max_open: usize) -> Folds {
        Folds::new(Id(0), max_open)
    }

    fn try_it(folds: &mut Folds, seconds: i64, client: &str, name: &str, rule: &str) -> Taken {
        let attempt = Attempt { time: at(seconds), rule: rule.into(), ..attempt(client, name) };
        folds.take(attempt, None, &Mask::Full)
    }

    #[test]
    fn what_repeats_within_a_minute_is_one_attempt_and_what_differs_is_another() {
        #[rustfmt::skip]
        let cases: &[(&str, i64, &str, &str, &str, bool)] = &[
            // case              second  client         name         rule      opens a fold?
            ("the first",             0, "192.0.2.1:1", "a.example", "p/one",  true),
            ("another port",          1, "192.0.2.1:2", "a.example", "p/one",  false),
            ("v4 in v6",              2, "[::ffff:192.0.2.1]:1", "a.example", "p/one", false),
            ("another client",        3, "192.0.2.2:1", "a.example", "p/one",  true),
            ("another name",          4, "192.0.2.1:1", "b.example", "p/one",  true),
            ("another rule",          5, "192.0.2.1:1", "a.example", "p/two",  true),
            ("just in time",         59, "192.0.2.1:1", "a.example", "p/one",  false),
            ("a minute later",       60, "192.0.2.1:1", "a.example", "p/one",  true),
            ("clock a little back",  30, "192.0.2.1:1", "a.example", "p/one",  false),
            ("clock an hour back",-3600, "192.0.2.1:1", "a.example", "p/one",  true),
        ];
        let mut folds = folds(MAX_OPEN);
        let mut last = Id(0);
        for (case, seconds, client, name, rule, opens) in cases {
            let opened = try_it(&mut folds, *seconds, client, name, rule).opened;
            assert_eq!(opened.is_some(), *opens, "{case}");
            if let Some(record) = opened {
                assert!(record.id > last, "{case}: ids grow whatever the clock does");
                assert_eq!((record.count, record.first), (1, at(*seconds)), "{case}");
                last = record.id;
            }
        }
    }

    #[test]
    fn a_fold_of_another_decision_is_another() {
        let mut folds = folds(MAX_OPEN);
        for decision in [Decision::Blocked, Decision::Observed, Decision::AllowedOwn, Decision::AllowedException] {
            let attempt = Attempt { decision, ..attempt("192.0.2.1:1", "a.example") };
            assert!(folds.take(attempt, None, &Mask::Full).opened.is_some(), "{decision:?}");
        }
    }

    #[test]
    fn a_window_that_ends_gives_the_whole_count_once() {
        let mut folds = folds(MAX_OPEN);
        let first = try_it(&mut folds, 0, "192.0.2.1:1", "a.example", "p/one").opened.unwrap();
        try_it(&mut folds, 1, "192.0.2.2:1", "a.example", "p/one");
        for second in 2..12 {
            try_it(&mut folds, second, "192.0.2.1:1", "a.example", "p/one");
        }
        let changed = folds.changed();
        assert_eq!(changed.iter().map(|record| (record.id, record.count)).collect::<Vec<_>>(), [(first.id, 11)]);
        assert!(folds.changed().is_empty(), "nothing has changed since");
        assert!(folds.expire(at(59)).is_empty());
        let closed = folds.expire(at(60));
        assert_eq!(closed, [Record { count: 11, last: at(11), time: at(11), ..first }]);
        assert!(!folds.is_empty(), "the other one is a second younger");
        assert!(folds.expire(at(61)).is_empty(), "a count of one was written already");
        assert!(folds.is_empty());
    }

    #[test]
    fn a_fold_that_is_replaced_is_closed_first() {
        let mut folds = folds(MAX_OPEN);
        let first = try_it(&mut folds, 0, "192.0.2.1:1", "a.example", "p/one").opened.unwrap();
        try_it(&mut folds, 1, "192.0.2.1:1", "a.example", "p/one");
        let taken = try_it(&mut folds, 100, "192.0.2.1:1", "a.example", "p/one");
        assert_eq!(taken.closed.map(|record| (record.id, record.count)), Some((first.id, 2)));
        assert!(taken.opened.is_some());
        assert!(folds.changed().is_empty(), "the new fold has not changed");
    }

    #[test]
    fn a_clock_set_back_closes_what_lies_in_the_future() {
        let mut folds = folds(MAX_OPEN);
        try_it(&mut folds, 0, "192.0.2.1:1", "a.example", "p/one");
        folds.expire(at(-3600));
        assert!(folds.is_empty());
    }

    #[test]
    fn past_the_bound_folds_join_first_a_network_and_then_everybody() {
        let mut folds = folds(2);
        #[rustfmt::skip]
        let cases: &[(&str, &str, &str)] = &[
            // client             name         opens a fold for client and name
            ("192.0.2.1:1",       "a.example", "192.0.2.1 a.example"),
            ("192.0.2.1:1",       "b.example", "192.0.2.1 b.example"),
            ("192.0.2.9:1",       "c.example", "192.0.2.0/24 several"),
            ("192.0.2.10:1",      "d.example", "none"),
            ("192.0.2.1:1",       "a.example", "none"),
            ("[2001:db8::1]:1",   "a.example", "2001:db8::/56 several"),
            ("[2001:db8::ff]:1",  "x.example", "none"),
            ("[2001:db8:1::1]:1", "a.example", "::/0 several"),
            ("[2001:db8:2::1]:1", "a.example", "none"),
            ("198.51.100.1:1",    "a.example", "0.0.0.0/0 several"),
            ("203.0.113.1:1",     "a.example", "none"),
        ];
        for (client, name, expected) in cases {
            let opened = try_it(&mut folds, 0, client, name, "p/one").opened.map(|record| {
                format!("{} {}", record.client, record.question.name.unwrap_or_else(|| "several".to_owned()))
            });
            assert_eq!(opened.as_deref().unwrap_or("none"), *expected, "{client} {name}");
        }
        let total: u64 = folds.close_all().iter().map(|record| record.count).sum();
        assert_eq!(total, 10, "2 + 2 + 2 + 2 + 2; the fold that was seen once is not written again");
        assert!(folds.is_empty() && folds.precise == 0 && folds.coarse == 0);
    }

    #[test]
    fn another_destination_is_another_attempt_where_addresses_are_tried_and_only_there() {
        let attempt = |way, destination: &str| Attempt {
            way,
            name: None,
            destination: destination.parse().ok(),
            ..attempt("192.0.2.1:1", "a.example")
        };
        for (way, expected) in [(Way::Address, 2), (Way::Dot, 2), (Way::Doh, 2), (Way::TlsGate, 1), (Way::Dns, 1)] {
            let mut folds = folds(MAX_OPEN);
            let destinations = ["3.125.1.1:443", "3.125.1.2:443", "3.125.1.1:443"];
            let taken = destinations.map(|to| folds.take(attempt(way, to), None, &Mask::Full).opened.is_some());
            assert_eq!(taken.iter().filter(|opened| **opened).count(), expected, "{way}");
            assert_eq!((folds.precise, folds.coarse), (expected, 0), "a missing name joins nobody else's");
        }
    }

    #[test]
    fn a_record_of_several_clients_says_nothing_that_only_the_first_can_say() {
        let attempt = |client| Attempt {
            via: "10.0.0.53".parse().ok(),
            group: Some("build-hosts".to_owned()),
            evidence: Some(Evidence::Address([192, 0, 2, 7].into())),
            ..attempt(client, "a.example")
        };
        let mut folds = folds(1);
        let alone = folds.take(attempt("192.0.2.1:1"), None, &Mask::Full).opened.unwrap();
        assert!(alone.via.is_some() && alone.group.is_some() && alone.evidence.is_some());
        let several = folds.take(attempt("192.0.2.2:1"), None, &Mask::Full).opened.unwrap();
        assert_eq!((several.via, several.group, several.evidence), (None, None, None));
    }

    #[test]
    fn under_a_flood_of_names_and_clients_open_folds_stay_bounded() {
        let mut folds = folds(100);
        for number in 0..20_000_u32 {
            let client = format!("[2001:db8:{:x}:{:x}::1]:1", number >> 8, (number & 0xff) << 8);
            try_it(&mut folds, 0, &client, &format!("n{number}.example"), "p/one");
        }
        assert!(folds.open.len() <= 201 && folds.by_age.len() == folds.open.len(), "{}", folds.open.len());
        assert!(folds.changed().len() <= 201);
    }
}
