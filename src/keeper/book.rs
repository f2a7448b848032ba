//! What is open to whom and for how long: the kernel's sets as we count them. Pure; time is an argument.
//!
//! A client fills its own part alone: past its bound, what it used longest ago goes.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// What is open: an address, and for port 0 all of it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Target {
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    until: Instant,
    /// When it was last asked for, in numbers that only grow.
    used: u64,
}

/// All leases of one kind.
#[derive(Debug)]
pub(super) struct Book {
    clients: HashMap<Option<IpAddr>, HashMap<Target, Lease>>,
    total: usize,
    clock: u64,
    bounds: Bounds,
}

/// How many leases there may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Bounds {
    /// Of one client; past them the oldest goes.
    pub(super) client: usize,
    /// Of all; past them there is no more, unless [`Book::relieve`] makes room.
    pub(super) all: usize,
}

/// There are as many leases as there may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Full;

/// What has to change in the kernel.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Admitted {
    /// What is open, and how long from now. A shorter time than it had is not taken.
    pub(super) open: Vec<(Target, Duration)>,
    /// What made room.
    pub(super) evicted: Vec<Target>,
}

impl Book {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { clients: HashMap::new(), total: 0, clock: 0, bounds }
    }

    /// Opens targets to a client.
    pub(super) fn admit(
        &mut self,
        client: Option<IpAddr>,
        targets: &[Target],
        lifetime: Duration,
        now: Instant,
    ) -> Result<Admitted, Full> {
        if self.total + targets.len() > self.bounds.all {
            self.expire(now);
        }
        let mut admitted = Admitted::default();
        for target in targets {
            admitted.evicted.extend(self.make_room(client, *target, now)?);
            admitted.open.push((*target, self.enter(client, *target, lifetime, now)));
        }
        Ok(admitted)
    }

    /// Makes room for so many more where there is none. Whoever has most gives, and of that what was used longest ago:
    /// many addresses, of a v6 network or forged, take nothing from who has few leases. More goes than has to, so that
    /// looking for it is seldom.
    pub(super) fn relieve(&mut self, coming: usize, now: Instant) -> Vec<(Option<IpAddr>, Target)> {
        if self.total + coming <= self.bounds.all {
            return Vec::new();
        }
        self.expire(now);
        let excess = (self.total + coming).saturating_sub(self.bounds.all);
        if excess == 0 {
            return Vec::new();
        }
        let going = self.to_spare(excess.max(self.bounds.all / RELIEF));
        for (client, target) in &going {
            self.release(*client, *target);
        }
        going
    }

    /// So much of what those have who have most, down to half of it, the oldest first.
    fn to_spare(&self, most: usize) -> Vec<(Option<IpAddr>, Target)> {
        let mut sizes: HashMap<_, usize> = HashMap::new();
        for (client, leases) in &self.clients {
            *sizes.entry(party(*client)).or_default() += leases.len();
        }
        let half = sizes.values().max().copied().unwrap_or_default() / 2;
        let rich = |client: Option<IpAddr>| sizes.get(&party(client)).is_some_and(|size| *size > half);
        let leases = self
            .clients
            .iter()
            .filter(|(client, _)| rich(**client))
            .flat_map(|(client, leases)| leases.iter().map(move |(target, lease)| (lease.used, *client, *target)));
        let mut leases: Vec<_> = leases.collect();
        leases.sort_unstable_by_key(|(used, ..)| *used);
        let gives = |(_, client, _): &(_, _, _)| {
            let size = sizes.entry(party(*client)).or_default();
            let gives = *size > half;
            *size -= usize::from(gives);
            gives
        };
        leases.into_iter().filter(gives).take(most).map(|(_, client, target)| (client, target)).collect()
    }

    /// Writes one down; the time that it has.
    fn enter(&mut self, client: Option<IpAddr>, target: Target, lifetime: Duration, now: Instant) -> Duration {
        self.clock += 1;
        let asked = Lease { until: now + lifetime, used: self.clock };
        let leases = self.clients.entry(client).or_default();
        let before = leases.insert(target, asked);
        self.total += usize::from(before.is_none());
        let until = before.map_or(asked.until, |before| before.until.max(asked.until));
        leases.insert(target, Lease { until, ..asked });
        until.saturating_duration_since(now)
    }

    /// What has to go before `target` can come.
    fn make_room(&mut self, client: Option<IpAddr>, target: Target, now: Instant) -> Result<Option<Target>, Full> {
        let Bounds { client: of_client, all } = self.bounds;
        let Some(leases) = self.clients.get_mut(&client) else {
            return if self.total < all { Ok(None) } else { Err(Full) };
        };
        if leases.contains_key(&target) {
            return Ok(None);
        }
        if leases.len() >= of_client {
            let before = leases.len();
            leases.retain(|_, lease| lease.until > now);
            self.total -= before - leases.len();
        }
        if leases.len() >= of_client {
            let oldest = leases.iter().min_by_key(|(_, lease)| lease.used).map(|(target, _)| *target);
            if let Some(oldest) = oldest {
                leases.remove(&oldest);
                self.total -= 1;
            }
            return Ok(oldest);
        }
        if self.total < all { Ok(None) } else { Err(Full) }
    }

    /// Closes a target to a client. Was it open?
    pub(super) fn release(&mut self, client: Option<IpAddr>, target: Target) -> bool {
        let Some(leases) = self.clients.get_mut(&client) else { return false };
        let was_open = leases.remove(&target).is_some();
        if leases.is_empty() {
            self.clients.remove(&client);
        }
        self.total -= usize::from(was_open);
        was_open
    }

    /// Closes what did not get into the kernel.
    pub(super) fn release_all(&mut self, client: Option<IpAddr>, targets: &[Target]) {
        for target in targets {
            self.release(client, *target);
        }
    }

    /// Drops what has ended; the kernel does so by itself.
    pub(super) fn expire(&mut self, now: Instant) {
        self.clients.retain(|_, leases| {
            leases.retain(|_, lease| lease.until > now);
            !leases.is_empty()
        });
        self.total = self.clients.values().map(HashMap::len).sum();
    }

    /// Is a target open to a client?
    pub(super) fn holds(&self, client: Option<IpAddr>, target: Target, now: Instant) -> bool {
        self.clients.get(&client).and_then(|leases| leases.get(&target)).is_some_and(|lease| lease.until > now)
    }

    /// What of an address is open to a client.
    pub(super) fn ports_of(&self, client: Option<IpAddr>, address: IpAddr) -> Vec<Target> {
        let leases = self.clients.get(&client).into_iter().flatten();
        leases.map(|(target, _)| *target).filter(|target| target.address == address).collect()
    }

    /// How many there are; some may have ended.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// All that is open, with the time that it still has.
    pub(super) fn open(&self, now: Instant) -> impl Iterator<Item = (Option<IpAddr>, Target, Duration)> {
        self.clients.iter().flat_map(move |(client, leases)| {
            let open = leases.iter().filter(move |(_, lease)| lease.until > now);
            open.map(move |(target, lease)| (*client, *target, lease.until - now))
        })
    }
}

/// The part of all leases that goes at once, where one has to.
const RELIEF: usize = 256;

/// Who counts as one: a v6 host has as many addresses of its network as it likes.
fn party(client: Option<IpAddr>) -> Option<IpAddr> {
    match client {
        Some(IpAddr::V6(v6)) => Some(IpAddr::from((v6.to_bits() & !u128::from(u64::MAX)).to_be_bytes())),
        Some(IpAddr::V4(_)) | None => client,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { client: 4, all: 10 };

    fn target(number: u8) -> Target {
        Target { address: IpAddr::from([93, 184, 216, number]), port: 0 }
    }

    fn client(number: u8) -> Option<IpAddr> {
        (number > 0).then(|| IpAddr::from([10, 0, 0, number]))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit { client: u8, targets: Vec<u8>, seconds: u64 },
        Release { client: u8, target: u8 },
        Pass { seconds: u64 },
        Expire,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..5_u8, prop::collection::vec(0..8_u8, 1..4), 1..20_u64)
                .prop_map(|(client, targets, seconds)| Step::Admit { client, targets, seconds }),
            1 => (0..5_u8, 0..8_u8).prop_map(|(client, target)| Step::Release { client, target }),
            2 => (0..10_u64).prop_map(|seconds| Step::Pass { seconds }),
            1 => Just(Step::Expire),
        ];
        prop::collection::vec(step, 0..80)
    }

    /// One flat list, searched from the front; ended leases never stay in it.
    #[derive(Default)]
    struct Naive {
        leases: Vec<(u8, u8, Instant)>,
    }

    impl Naive {
        fn admit(&mut self, client: u8, targets: &[u8], until: Instant, now: Instant) -> Result<Vec<u8>, Full> {
            self.leases.retain(|lease| lease.2 > now);
            let mut evicted = Vec::new();
            for target in targets {
                let mut until = until;
                if let Some(at) = self.leases.iter().position(|lease| (lease.0, lease.1) == (client, *target)) {
                    until = until.max(self.leases.remove(at).2);
                } else if self.leases.iter().filter(|lease| lease.0 == client).count() >= BOUNDS.client {
                    let at = self.leases.iter().position(|lease| lease.0 == client).unwrap();
                    evicted.push(self.leases.remove(at).1);
                } else if self.leases.len() >= BOUNDS.all {
                    return Err(Full);
                }
                self.leases.push((client, *target, until));
            }
            Ok(evicted)
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_naive_list_holds(steps in steps()) {
            let (mut book, mut naive) = (Book::new(BOUNDS), Naive::default());
            let mut now = Instant::now();
            for step in steps {
                match step {
                    Step::Admit { client: who, targets, seconds } => {
                        let lifetime = Duration::from_secs(seconds);
                        let expected = naive.admit(who, &targets, now + lifetime, now);
                        // What has ended and was not looked at counts no more.
                        book.expire(now);
                        let asked: Vec<_> = targets.iter().map(|number| target(*number)).collect();
                        let found = book.admit(client(who), &asked, lifetime, now);
                        let expected = expected.map(|evicted| evicted.into_iter().map(target).collect::<Vec<_>>());
                        prop_assert_eq!(found.map(|admitted| admitted.evicted), expected);
                    }
                    Step::Release { client: who, target: what } => {
                        naive.leases.retain(|lease| (lease.0, lease.1) != (who, what));
                        book.release(client(who), target(what));
                    }
                    Step::Pass { seconds } => now += Duration::from_secs(seconds),
                    Step::Expire => book.expire(now),
                }
                let found: BTreeMap<_, _> = book.open(now).map(|(who, what, left)| ((who, what), now + left)).collect();
                let live = naive.leases.iter().filter(|lease| lease.2 > now);
                let expected = live.map(|lease| ((client(lease.0), target(lease.1)), lease.2)).collect();
                prop_assert_eq!(&found, &expected);
                prop_assert!(book.total() >= found.len() && book.total() <= BOUNDS.all);
                prop_assert!(book.clients.values().all(|leases| leases.len() <= BOUNDS.client));
            }
        }
    }

    #[test]
    fn one_client_takes_nothing_from_another() {
        let mut book = Book::new(BOUNDS);
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        book.admit(client(1), &[target(1)], hour, now).unwrap();
        for number in 0..200 {
            book.admit(client(2), &[target(number)], hour, now).unwrap();
        }
        assert!(book.holds(client(1), target(1), now));
        assert_eq!(book.total(), 1 + BOUNDS.client);
        let Target { address, .. } = target(199);
        assert_eq!(book.ports_of(client(2), address), [target(199)]);
    }

    #[test]
    fn however_many_addresses_one_asks_from_who_has_few_leases_keeps_them() {
        let forged: Vec<_> = (0..4).map(|number| client(number + 10)).collect();
        let of_one_network: Vec<_> =
            (1..=10_u16).map(|number| IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, number])).collect();
        for crowd in [forged, of_one_network.into_iter().map(Some).collect()] {
            let mut book = Book::new(BOUNDS);
            let (now, hour) = (Instant::now(), Duration::from_secs(3600));
            book.admit(client(1), &[target(1)], hour, now).unwrap();
            for round in 0..50 {
                for who in &crowd {
                    let going = book.relieve(1, now);
                    assert!(going.iter().all(|(giver, _)| crowd.contains(giver)), "{going:?}");
                    book.admit(*who, &[target(round)], hour, now).unwrap();
                }
            }
            assert!(book.holds(client(1), target(1), now));
            assert_eq!(book.total(), BOUNDS.all);
        }
        let mut alone = Book::new(BOUNDS);
        assert_eq!(alone.relieve(BOUNDS.all, Instant::now()), []);
    }

    #[test]
    fn a_lease_is_not_made_shorter() {
        let mut book = Book::new(BOUNDS);
        let now = Instant::now();
        book.admit(None, &[target(1)], Duration::from_secs(60), now).unwrap();
        let again = book.admit(None, &[target(1)], Duration::from_secs(5), now).unwrap();
        assert_eq!(again.open, [(target(1), Duration::from_secs(60))]);
    }
}
