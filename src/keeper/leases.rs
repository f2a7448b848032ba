//! Opens addresses before a client learns them, and remembers what is open, so that an answer from the cache costs a
//! look into a table and not a message.
//!
//! It is the forwarder's side: what is remembered here only saves messages. Who may have how much is the keeper's to
//! say, and each time it took something away for another reason than time, its epoch changes: nothing remembered from
//! an earlier epoch is believed.

use std::{
    collections::{BTreeSet, HashMap},
    hash::BuildHasher as _,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use foldhash::quality::RandomState;
use jiff::Timestamp;

use super::{Keeper, KeeperError, PERMITTED_AT_ONCE, Process, Refusal};

/// A lease is at least as long as this, however short the answer's TTL: a client needs time to connect.
const SHORTEST: Duration = Duration::from_secs(30);

/// A lease outlives the TTL that the client was given by so much: stubs and runtimes keep addresses a little longer.
const GRACE: Duration = Duration::from_secs(60);

/// No lease is longer.
const LONGEST: Duration = Duration::from_hours(24);

/// Leases that are remembered in each shard; what goes too early costs a message.
const SHARD_SIZE: usize = 8192;

const SHARDS: usize = 16;

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
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    /// What an exception opened, in the order in which it ends.
    dated: Mutex<BTreeSet<(Timestamp, Option<IpAddr>, IpAddr)>>,
}

type Shard = HashMap<Key, Open, RandomState>;

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
    epoch: u32,
}

impl Leases {
    /// Nothing is open yet, as far as we know.
    pub fn new(keeper: Arc<Keeper>, keyed: Keyed) -> Self {
        Self { keeper, keyed, hasher: RandomState::default(), shards: Default::default(), dated: Mutex::default() }
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
        let asked = addresses.iter().map(IpAddr::to_canonical).filter(|address| is_reachable_by(client, *address));
        let keys: Vec<_> = asked.take(PERMITTED_AT_ONCE).map(|address| Key { client, address, port: None }).collect();
        self.open_keys(&keys, ttl, now, |wanted, lifetime| self.keeper.permit(client, wanted, lifetime))
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
        let asked = addresses.iter().map(IpAddr::to_canonical).filter(|address| is_reachable_by(client, *address));
        let keys: Vec<_> =
            asked.take(PERMITTED_AT_ONCE).map(|address| Key { client, address, port: Some(port) }).collect();
        self.open_keys(&keys, ttl, now, |wanted, lifetime| self.keeper.permit_port(client, wanted, port, lifetime))
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
            self.keeper.cut(client, address)?;
            self.dated.lock().unwrap_or_else(PoisonError::into_inner).remove(&due);
        }
    }

    /// Asks the keeper for those that are not open long enough.
    fn open_keys(
        &self,
        keys: &[Key],
        ttl: u32,
        now: Instant,
        ask: impl FnOnce(&[IpAddr], Duration) -> Result<u8, KeeperError>,
    ) -> Result<u32, KeeperError> {
        let wanted = Duration::from_secs(u64::from(ttl)).min(LONGEST - GRACE);
        let epoch = self.keeper.epoch();
        let mut shortest = wanted;
        let mut missing: Vec<Key> = Vec::new();
        for &key in keys {
            match self.left(key, epoch, now) {
                Some(left) if left >= wanted.max(SHORTEST) => {}
                Some(_) | None => missing.push(key),
            }
        }
        if !missing.is_empty() {
            let lifetime = wanted.max(SHORTEST) + GRACE;
            let addresses: Vec<_> = missing.iter().map(|key| key.address).collect();
            // What may not be opened stays as it is: it is denied, or open without this.
            ask(&addresses, lifetime)?;
            let epoch = self.keeper.epoch();
            shortest = shortest.min(lifetime);
            missing.iter().for_each(|&key| self.remember(key, Open { until: now + lifetime, epoch }, now));
        }
        Ok(u32::try_from(shortest.as_secs()).unwrap_or(u32::MAX))
    }

    fn client(&self, client: IpAddr) -> Option<IpAddr> {
        match self.keyed {
            Keyed::ByAddress => None,
            Keyed::ByClient => Some(client.to_canonical()),
        }
    }

    /// How long one is open beyond doubt.
    fn left(&self, key: Key, epoch: u32, now: Instant) -> Option<Duration> {
        let open = *self.shard(&key).get(&key)?;
        (open.epoch == epoch).then(|| open.until.saturating_duration_since(now))
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

/// No packet of a client has its address and one of the other family.
fn is_reachable_by(client: Option<IpAddr>, address: IpAddr) -> bool {
    client.is_none_or(|client| client.is_ipv4() == address.is_ipv4())
}
