//! Opens addresses before a client learns them, and remembers what is open, so that an answer from the cache costs a
//! look into a table and not a message.
//!
//! It is the forwarder's side: what is remembered here only saves messages. Who may have how much is the keeper's to
//! say, and each time it took something away from others for another reason than time, its epoch changes: nothing
//! remembered from an earlier epoch is believed. Where it took something away from the client that asked, nothing
//! remembered of that client is.

use std::{
    collections::{BTreeSet, HashMap},
    hash::BuildHasher as _,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{Done, Keeper, KeeperError, PERMITTED_AT_ONCE, Process, Refusal, ground::has_host};
use crate::hashing::Seeded;

/// A lease is at least as long as this, however short the answer's TTL: a client needs time to connect.
const SHORTEST: Duration = Duration::from_secs(30);

/// A lease outlives the TTL that the client was given by so much: stubs and runtimes keep addresses a little longer.
const GRACE: Duration = Duration::from_secs(60);

/// No lease is longer.
const LONGEST: Duration = Duration::from_hours(24);

/// Leases that are remembered in each shard; what goes too early costs a message.
const SHARD_SIZE: usize = 8192;

const SHARDS: usize = 16;

const ROOMS: usize = 32;

/// Most leases that end with an exception.
const MAX_DATED: usize = 16_384;

/// Whether what one client resolved opens anything for another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keyed {
    /// All clients are this host.
    ByAddress,
    /// Each client has leases of its own.
    ByClient,
}

/// What is open, as far as we know.
#[derive(Debug)]
pub struct Leases {
    keeper: Arc<Keeper>,
    keyed: Keyed,
    hasher: Seeded,
    shards: [Mutex<Shard>; SHARDS],
    /// A number for clients whose hashes are alike, that is another one when such a client had to make room.
    rooms: [AtomicU32; ROOMS],
    /// What an exception opened, in the order in which it ends.
    dated: Mutex<BTreeSet<(Timestamp, Option<IpAddr>, IpAddr)>>,
}

type Shard = HashMap<Key, Open, Seeded>;

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Key {
    client: Option<IpAddr>,
    address: IpAddr,
    /// `None` for all of them.
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    until: Instant,
    age: Age,
}

/// What is remembered is believed while both are what they were.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Age {
    epoch: u32,
    room: u32,
}

impl Leases {
    /// Nothing is open yet, as far as we know.
    pub fn new(keeper: Arc<Keeper>, keyed: Keyed) -> Self {
        let (hasher, shards, rooms, dated) = Default::default();
        Self { keeper, keyed, hasher, shards, rooms, dated }
    }

    /// The keeper behind it.
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// Is this machine the only client?
    pub fn has_one_client(&self) -> bool {
        self.keyed == Keyed::ByAddress
    }

    /// Whose a socket of this machine is that asks or dials from `client`; `remote` is where it is connected to, where
    /// that is known. Only where this machine is the only client, and only as far as it is found in a moment.
    pub fn process_of(&self, protocol: u8, client: SocketAddr, remote: Option<SocketAddr>) -> Option<Process> {
        if !self.has_one_client() {
            return None;
        }
        let anywhere = if client.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
        let remote = remote.unwrap_or(SocketAddr::new(anywhere, 0));
        self.keeper.process(protocol, client, remote).ok().flatten()
    }

    /// Opens the addresses of an answer for a client, and waits until they are. Tells for how many seconds from now,
    /// at most `ttl`, the client may be told that the answer holds.
    ///
    /// # Errors
    /// When the keeper did not take them all: then the client must not learn them.
    pub fn open(&self, client: IpAddr, addresses: &[IpAddr], ttl: u32, now: Instant) -> Result<u32, KeeperError> {
        let client = self.client(client);
        self.open_missing((client, addresses, None), ttl, now, |missing, lifetime| {
            self.keeper.permit(client, missing, lifetime)
        })
    }

    /// Opens a port of the addresses of an answer, on addresses that are closed otherwise.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_port(
        &self,
        client: IpAddr,
        (addresses, port): (&[IpAddr], u16),
        ttl: u32,
        now: Instant,
    ) -> Result<u32, KeeperError> {
        let client = self.client(client);
        self.open_missing((client, addresses, Some(port)), ttl, now, |missing, lifetime| {
            self.keeper.permit_port(client, missing, port, lifetime)
        })
    }

    /// Remembers that what was opened ends at a time: then [`end_due`](Self::end_due) closes it and cuts what it let
    /// through.
    ///
    /// # Errors
    /// When too much has an end already.
    pub fn ends_at(&self, until: Timestamp, client: IpAddr, addresses: &[IpAddr]) -> Result<(), KeeperError> {
        let client = self.client(client);
        let mut dated = self.dated.lock().unwrap_or_else(PoisonError::into_inner);
        if dated.len() + addresses.len() > MAX_DATED {
            return Err(KeeperError::Refused(Refusal::Full));
        }
        dated.extend(addresses.iter().map(|address| (until, client, address.to_canonical())));
        Ok(())
    }

    /// Closes what has ended by now and cuts what it let through. Blocks as long as the keeper does.
    ///
    /// # Errors
    /// When the keeper did not do it; it is tried again by the next call.
    pub fn end_due(&self, now: Timestamp) -> Result<(), KeeperError> {
        loop {
            let dated = self.dated.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(&due) = dated.first().filter(|(until, ..)| *until <= now) else { return Ok(()) };
            drop(dated);
            let (_, client, address) = due;
            match self.keeper.cut(client, address) {
                // Nobody is cut off from what is inside; but nothing that ended stays open.
                Err(KeeperError::Refused(Refusal::Address | Refusal::Client)) => {
                    self.keeper.release(client, address)?
                }
                outcome => outcome?,
            }
            self.dated.lock().unwrap_or_else(PoisonError::into_inner).remove(&due);
        }
    }

    /// Asks the keeper for those that are not open long enough.
    fn open_missing(
        &self,
        (client, addresses, port): (Option<IpAddr>, &[IpAddr], Option<u16>),
        ttl: u32,
        now: Instant,
        ask: impl FnOnce(&[IpAddr], Duration) -> Result<Done, KeeperError>,
    ) -> Result<u32, KeeperError> {
        let wanted = Duration::from_secs(u64::from(ttl)).min(LONGEST - GRACE);
        let room = self.room(client);
        let age = Age { epoch: self.keeper.epoch(), room: room.load(Ordering::Relaxed) };
        let reachable = addresses.iter().map(IpAddr::to_canonical).filter(|address| is_reachable_by(client, *address));
        let key = |address| Key { client, address, port };
        let is_missing =
            |address: &IpAddr| self.left(key(*address), age, now).is_none_or(|left| left < wanted.max(SHORTEST));
        // Where nothing is missing, which is nearly always, this takes no memory.
        let missing: Vec<_> = reachable.take(PERMITTED_AT_ONCE).filter(is_missing).collect();
        if !missing.is_empty() {
            let lifetime = wanted.max(SHORTEST) + GRACE;
            // What may not be opened stays as it is: it is denied, or open without this.
            let Done { evicted, epoch, .. } = ask(&missing, lifetime)?;
            // What others learn of this client from here on, and not what they learned while we waited, is newer.
            let room = if evicted { room.fetch_add(1, Ordering::Relaxed).wrapping_add(1) } else { age.room };
            let open = Open { until: now + lifetime, age: Age { epoch, room } };
            missing.into_iter().for_each(|address| self.remember(key(address), open, now));
        }
        Ok(saturated(wanted))
    }

    fn room(&self, client: Option<IpAddr>) -> &AtomicU32 {
        let place = usize::try_from(self.hasher.hash_one(client)).unwrap_or_default() % ROOMS;
        #[expect(clippy::indexing_slicing, reason = "the place is taken modulo the number of rooms")]
        &self.rooms[place]
    }

    fn client(&self, client: IpAddr) -> Option<IpAddr> {
        match self.keyed {
            Keyed::ByAddress => None,
            Keyed::ByClient => Some(client.to_canonical()),
        }
    }

    /// How long one is open beyond doubt.
    fn left(&self, key: Key, age: Age, now: Instant) -> Option<Duration> {
        let open = *self.shard(&key).get(&key)?;
        (open.age == age).then(|| open.until.saturating_duration_since(now))
    }

    fn remember(&self, key: Key, open: Open, now: Instant) {
        let mut shard = self.shard(&key);
        if shard.len() >= SHARD_SIZE {
            shard.retain(|_, open| open.until > now);
        }
        if shard.len() >= SHARD_SIZE {
            shard.clear();
        }
        shard.insert(key, open);
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let place = usize::try_from(self.hasher.hash_one(key)).unwrap_or_default() % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "the place is taken modulo the number of shards")]
        let shard = &self.shards[place];
        // A shard is whole after each statement.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No packet that a gateway forwards comes from itself or from an address of one link, or has addresses of both families.
fn is_reachable_by(client: Option<IpAddr>, address: IpAddr) -> bool {
    client.is_none_or(|client| has_host(client) && client.is_ipv4() == address.is_ipv4())
}

fn saturated(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::thread::{self, JoinHandle};

    use super::{
        super::{LONGEST as LONGEST_MESSAGE, Reply, Request},
        *,
    };
    use crate::sys::seqpacket::Channel;

    /// Leases before a keeper that does what a script says, and tells in the end what it was asked.
    fn leases(
        keyed: Keyed,
        reply: impl Fn(usize, &Request) -> Reply + Send + 'static,
    ) -> (Leases, JoinHandle<Vec<Request>>) {
        let (requests, its_requests) = Channel::pair().unwrap();
        let (notices, _its_notices) = Channel::pair().unwrap();
        let keeper = thread::spawn(move || {
            let (mut asked, mut room) = (Vec::new(), [0; LONGEST_MESSAGE]);
            while let Ok(Some(length)) = its_requests.receive(&mut room, None) {
                let (number, request) = Request::decode(&room[..length]).unwrap();
                let reply = reply(asked.len(), &request);
                its_requests.send(&reply.encode(number), Instant::now() + Duration::from_secs(5)).unwrap();
                asked.push(request);
            }
            asked
        });
        let (client, _) = Keeper::over(requests, notices);
        (Leases::new(Arc::new(client), keyed), keeper)
    }

    fn done(epoch: u32) -> Reply {
        Reply::Done(Done { epoch, ..Done::default() })
    }

    /// How many permits there were.
    fn permits((leases, keeper): (Leases, JoinHandle<Vec<Request>>)) -> Vec<(Option<IpAddr>, usize, u32)> {
        drop(leases);
        let asked = keeper.join().unwrap().into_iter();
        let permit = |request| {
            let Request::Permit { client, addresses, lifetime } = request else { return None };
            Some((client, addresses.len(), lifetime))
        };
        asked.filter_map(permit).collect()
    }

    fn addresses(count: u8) -> Vec<IpAddr> {
        (1..=count).map(|last| IpAddr::from([192, 0, 2, last])).collect()
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    #[test]
    fn what_is_open_long_enough_costs_no_message() {
        let (leases, keeper) = leases(Keyed::ByClient, |_, _| done(0));
        let (now, two) = (Instant::now(), addresses(2));
        let later = |seconds| now + Duration::from_secs(seconds);
        // The answer from the cache gets older, and what is left of its TTL with it.
        for (age, ttl) in [(0, 300), (10, 290), (299, 1)] {
            assert_eq!(leases.open(CLIENT, &two, ttl, later(age)).unwrap(), ttl, "{age}");
        }
        // A fresh one outlives what is open; so does a client's first connection the last second of an old one.
        assert_eq!(leases.open(CLIENT, &two, 300, later(299)).unwrap(), 300);
        assert_eq!(leases.open("10.0.0.2".parse().unwrap(), &two, 0, later(299)).unwrap(), 0);
        let other = Some("10.0.0.2".parse().unwrap());
        assert_eq!(permits((leases, keeper)), [(Some(CLIENT), 2, 360), (Some(CLIENT), 2, 360), (other, 2, 90)]);
    }

    #[test]
    fn what_was_closed_to_others_or_to_the_client_is_asked_for_again() {
        for (epoch, evicted, expected) in [(0, false, 2), (1, false, 3), (0, true, 3)] {
            // The second permit, of another address, is what closes something.
            let (leases, keeper) = leases(Keyed::ByClient, move |number, _| {
                let is_second = number == 1;
                let epoch = if is_second || number > 1 { epoch } else { 0 };
                Reply::Done(Done { skipped: 0, evicted: evicted && is_second, epoch })
            });
            let (now, all) = (Instant::now(), addresses(2));
            for address in [0, 1, 0] {
                leases.open(CLIENT, &all[address..=address], 60, now).unwrap();
            }
            assert_eq!(permits((leases, keeper)).len(), expected, "epoch {epoch}, evicted {evicted}");
        }
    }

    #[test]
    fn sixteen_addresses_of_the_clients_family_are_opened_and_a_refusal_is_an_error() {
        let (opened, keeper) = leases(Keyed::ByClient, |_, _| done(0));
        let mut many = addresses(40);
        many.insert(0, "2001:db8::1".parse().unwrap());
        opened.open(CLIENT, &many, 60, Instant::now()).unwrap();
        assert_eq!(opened.open("2001:db8::2".parse().unwrap(), &addresses(1), 60, Instant::now()).unwrap(), 60);
        assert_eq!(permits((opened, keeper)), [(Some(CLIENT), PERMITTED_AT_ONCE, 120)]);
        let (refused, _keeper) = leases(Keyed::ByAddress, |_, _| Reply::Refused(Refusal::Full));
        refused.open(CLIENT, &addresses(1), 60, Instant::now()).unwrap_err();
    }

    #[test]
    fn what_has_ended_is_cut_once_and_what_may_not_be_cut_is_closed() {
        let (leases, keeper) = leases(Keyed::ByAddress, |_, request| {
            let inside = Request::Cut { client: None, address: addresses(1)[0] };
            if *request == inside { Reply::Refused(Refusal::Address) } else { done(0) }
        });
        let at = |second| Timestamp::from_second(second).unwrap();
        leases.ends_at(at(10), CLIENT, &addresses(2)).unwrap();
        leases.ends_at(at(20), CLIENT, &addresses(1)).unwrap();
        for second in [9, 10, 11] {
            leases.end_due(at(second)).unwrap();
        }
        drop(leases);
        let (client, all) = (None, addresses(2));
        let expected = [
            Request::Cut { client, address: all[0] },
            Request::Release { client, address: all[0] },
            Request::Cut { client, address: all[1] },
        ];
        assert_eq!(keeper.join().unwrap(), expected);
    }
}
