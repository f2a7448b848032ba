//! Who may ask, how often, and how much of us one asker may hold at once: questions that wait, connections that stand.
//!
//! Nothing here answers anybody: doors and gateway ask, and say REFUSED, close or keep silent themselves.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::BuildHasher,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sys::resource::{Resource, getrlimit};

use super::{
    Asker, ClientScope, Options,
    rate::{Pace, Payer, Rates},
};
use crate::{audit::Transport, hashing::Seeded, metrics::Metrics, sys::interfaces::Interfaces};

/// What one may do who comes from an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admission {
    /// Ask.
    Allowed,
    /// Ask, and say for whom.
    Forwarder,
    /// Nothing; `others` says how that is told.
    Refused,
}

/// The one place that knows who may ask and what each holds. Shared by gateway and doors.
#[derive(Debug)]
pub struct Access {
    rules: ArcSwap<Rules>,
    /// Made with the first rate that is configured: until then a question costs a look here.
    rates: OnceLock<Rates>,
    /// Where we are asked; anywhere as long as nobody has said.
    listening: OnceLock<Vec<IpAddr>>,
    waiting: Arc<Quota>,
    connections: Arc<Quota>,
    tunnels: Arc<Quota>,
    hellos: Arc<Quota>,
    metrics: Arc<Metrics>,
}

/// A place in a quota, given back when dropped.
#[derive(Debug)]
#[must_use = "the place is given back at once"]
pub struct Permit {
    quota: Arc<Quota>,
    keys: [Option<Key>; CLAIMS],
}

/// Which bound keeps somebody from a place.
#[derive(Clone, Copy, Debug)]
enum Full {
    /// That of all together.
    All,
    /// The asker's own.
    Own,
    /// That of its v6 /64.
    Neighbours,
    /// That of the forwarder it came by.
    Via,
}

/// Most quotas one asker counts against: its own, its neighbours', its forwarder's.
const CLAIMS: usize = 3;

#[derive(Debug)]
struct Rules {
    /// All who may ask: what is named, and the networks of our interfaces.
    clients: Ranges,
    forwarders: Ranges,
    named: Vec<IpNet>,
    /// Our own addresses, and the networks of the interfaces we listen on, as they were last read; empty unless
    /// `clients` names them.
    links: Vec<IpNet>,
    on_link: bool,
    limits: Arc<Options>,
}

/// Addresses as ranges, first and last, in order and apart from each other: a search touches few cache lines.
#[derive(Clone, Debug)]
struct Ranges {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

/// How many places each has taken. Bounded by the total its callers name: an entry goes with its last place.
#[derive(Debug)]
struct Quota {
    total: AtomicUsize,
    /// Random: addresses are their senders' choice.
    hasher: Seeded,
    shards: [Mutex<HashMap<Key, usize, Seeded>>; SHARDS],
}

/// Whose place it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Key {
    /// An address.
    Client(IpAddr),
    /// The /64 of a v6 address. It may be a single host, which changes addresses within it as it likes, or a whole
    /// floor: so it is bounded too, but by [`NEIGHBOURS`] times as much.
    Neighbours(Ipv6Addr),
    /// Everybody who may not ask, together: else they could hold every connection from many addresses.
    Strangers,
}

const SHARDS: usize = 16;

/// How many shares of a single client a /64 may have together.
const NEIGHBOURS: usize = 16;

/// `"private"`: RFC 1918, RFC 4193, RFC 4291 section 2.5.6. Not 100.64.0.0/10: behind a carrier's NAT that is the
/// neighbours (RFC 6598).
const PRIVATE: [IpNet; 5] =
    [v4([10, 0, 0, 0], 8), v4([172, 16, 0, 0], 12), v4([192, 168, 0, 0], 16), v6(0xfc00, 7), v6(0xfe80, 10)];

const fn v4(octets: [u8; 4], length: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: u16, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length))
}

impl Access {
    /// Compiles `[limits]` and the networks of every client group, and reads the interfaces where `clients` names them.
    pub fn new(options: &Options, groups: impl IntoIterator<Item = IpNet>, metrics: Arc<Metrics>) -> Self {
        let access = Self {
            rules: ArcSwap::from_pointee(Rules::new(options, groups, Vec::new())),
            rates: OnceLock::new(),
            listening: OnceLock::new(),
            waiting: Arc::default(),
            connections: Arc::default(),
            tunnels: Arc::default(),
            hellos: Arc::default(),
            metrics,
        };
        access.make_rates(options);
        access.read_links_or_warn();
        access
    }

    /// Puts other rules in force; what is held stays held and counts.
    pub fn replace(&self, options: &Options, groups: impl IntoIterator<Item = IpNet>) {
        // Those on our links go on being served while the interfaces are read again.
        self.rules.store(Arc::new(Rules::new(options, groups, self.rules.load().links.clone())));
        self.make_rates(options);
        self.read_links_or_warn();
    }

    /// From now on only those are on-link who stand in a network of an interface with one of these addresses: a
    /// resolver for the LAN is none of the uplink's neighbours' business. The first such set counts.
    pub fn listen_on(&self, addresses: Vec<IpAddr>) {
        let _ = self.listening.set(addresses);
        self.read_links_or_warn();
    }

    /// Reads the networks of our interfaces again; cheap, and nothing where `clients` does not name them.
    ///
    /// # Errors
    /// When the kernel does not tell; the networks known before stay.
    pub fn refresh_links(&self) -> io::Result<()> {
        if self.rules.load().on_link {
            let interfaces = Interfaces::read()?;
            let networks = match self.listening.get() {
                Some(listening) => interfaces.networks_at(listening),
                None => interfaces.networks,
            };
            // What this machine sends itself, to whichever address, comes from one of these.
            let own = interfaces.addresses.into_iter().map(IpNet::from);
            let links: Vec<_> = networks.into_iter().chain(own).collect();
            self.rules.rcu(|rules| rules.with_links(&links));
        }
        Ok(())
    }

    /// What one may do who comes from `address`. Naming a forwarder goes before everything else.
    pub fn admits(&self, address: IpAddr) -> Admission {
        let address = address.to_canonical();
        let rules = self.rules.load();
        if rules.forwarders.hold(address) {
            Admission::Forwarder
        } else if address.is_loopback() || rules.clients.hold(address) {
            Admission::Allowed
        } else {
            Admission::Refused
        }
    }

    /// Is whoever comes from `address` a forwarder?
    pub fn is_forwarder(&self, address: IpAddr) -> bool {
        self.rules.load().forwarders.hold(address.to_canonical())
    }

    /// How a question that was put just now stands to the rates of who pays for it: its client, and a forwarder, which
    /// pays for what it asks for others too. It is paid for where it is within.
    pub fn pace(&self, asker: &Asker, admission: Admission) -> Pace {
        self.rates.get().map_or(Pace::Within, |rates| self.pace_at(rates, asker, admission, Instant::now()))
    }

    fn pace_at(&self, rates: &Rates, asker: &Asker, admission: Admission, now: Instant) -> Pace {
        let rules = self.rules.load();
        let Options { rate, rate_per_forwarder, slip, .. } = *rules.limits;
        let client = asker.client.ip();
        if admission == Admission::Forwarder {
            let forwarder = Payer::Forwarder(asker.via.unwrap_or(client));
            let pace = rates.spend(forwarder, rate_per_forwarder, 0, now);
            if asker.via.is_none() || pace != Pace::Within {
                return pace;
            }
        }
        let payer = match asker.transport {
            Transport::Udp => Payer::Datagram(client),
            Transport::Tcp | Transport::Tls | Transport::Https => Payer::Stream(client),
        };
        rates.spend(payer, rate, slip, now)
    }

    /// A place among the questions that wait for an upstream. `None` where all, the asker's own or its
    /// forwarder's are taken; that is counted, by which.
    pub fn wait(&self, asker: &Asker) -> Option<Permit> {
        let rules = self.rules.load();
        let limits = &rules.limits;
        let client = asker.client.ip().to_canonical();
        let metrics = &self.metrics;
        let (of_client, own_refused) = match self.admits(client) {
            Admission::Forwarder => (limits.waiting_per_forwarder, &metrics.waiting_refused_forwarder),
            Admission::Allowed | Admission::Refused => (limits.waiting_per_client, &metrics.waiting_refused_client),
        };
        let via = asker.via.map(|via| (Key::client(via), limits.waiting_per_forwarder));
        let [own, neighbours] = claims(client, of_client);
        let refused = match self.waiting.take(limits.waiting, [own, neighbours, via]) {
            Ok(permit) => return Some(permit),
            Err(Full::All) => &metrics.waiting_refused_all,
            Err(Full::Own) => own_refused,
            Err(Full::Neighbours) => &metrics.waiting_refused_network,
            Err(Full::Via) => &metrics.waiting_refused_forwarder,
        };
        refused.increment();
        None
    }

    /// A place among the stream connections. `None` where all or the peer's own are taken; that is counted, by which.
    /// A forwarder has no cap of its own; all who may not ask share one peer's cap.
    pub fn connect(&self, peer: IpAddr) -> Option<Permit> {
        let rules = self.rules.load();
        let limits = &rules.limits;
        let metrics = &self.metrics;
        let ([own, neighbours], own_refused) = match self.admits(peer) {
            Admission::Allowed => (claims(peer, limits.connections_per_client), &metrics.connections_refused_client),
            Admission::Forwarder => (claims(peer, limits.connections), &metrics.connections_refused_all),
            Admission::Refused => {
                let claim = (Key::Strangers, limits.connections_per_client);
                ([Some(claim), None], &metrics.connections_refused_strangers)
            }
        };
        let refused = match self.connections.take(limits.connections, [own, neighbours, None]) {
            Ok(permit) => return Some(permit),
            Err(Full::All) => &metrics.connections_refused_all,
            Err(Full::Own | Full::Via) => own_refused,
            Err(Full::Neighbours) => &metrics.connections_refused_network,
        };
        refused.increment();
        None
    }

    /// A place among the connections through the gate, of which there are `in_all`, and `per_client` for one client,
    /// whose v6 /64 has no more than a quarter; a quarter of the files we may have open at most, with two to each. `None` where all or the client's own are taken.
    pub fn pass(&self, client: IpAddr, in_all: usize, per_client: usize) -> Option<Permit> {
        let in_all = in_all.min((connections_there_is_room_for() / 4).max(1));
        let [own, neighbours] = claims(client, per_client);
        let neighbours = neighbours.map(|(key, limit)| (key, limit.min(in_all / 4).max(per_client)));
        self.tunnels.take(in_all, [own, neighbours, None]).ok()
    }

    /// A place among those who have not said yet what they want, of which there are `in_all`: a sixteenth of them for a
    /// client, a quarter for a v6 /64.
    pub fn hear(&self, client: IpAddr, in_all: usize) -> Option<Permit> {
        let [own, neighbours] = claims(client, (in_all / 16).max(1));
        let neighbours = neighbours.map(|(key, _)| (key, (in_all / 4).max(1)));
        self.hellos.take(in_all, [own, neighbours, None]).ok()
    }

    /// Are more than half of all connections taken? Doors then have less patience with idle ones.
    pub fn is_crowded(&self) -> bool {
        self.connections.total.load(Ordering::Relaxed) * 2 > self.rules.load().limits.connections
    }

    /// The limits in force; `connections` already within what the process may have open.
    pub fn limits(&self) -> Arc<Options> {
        Arc::clone(&self.rules.load().limits)
    }

    fn make_rates(&self, options: &Options) {
        if options.rate > 0 || options.rate_per_forwarder > 0 {
            self.rates.get_or_init(Rates::new);
        }
    }

    fn read_links_or_warn(&self) {
        if let Err(error) = self.refresh_links() {
            tracing::warn!(%error, "cannot read the interfaces: clients that are only \"on-link\" are refused");
        }
    }
}

impl Rules {
    fn new(options: &Options, groups: impl IntoIterator<Item = IpNet>, links: Vec<IpNet>) -> Self {
        let scopes = options.clients.iter().flat_map(|scope| match scope {
            ClientScope::Private => PRIVATE.to_vec(),
            ClientScope::OnLink => Vec::new(),
            ClientScope::Network(network) => vec![*network],
        });
        let named: Vec<_> = scopes.chain(groups).collect();
        let on_link = options.clients.contains(&ClientScope::OnLink);
        let links = if on_link { links } else { Vec::new() };
        let connections = options.connections.min(connections_there_is_room_for());
        Self {
            clients: Ranges::new(named.iter().chain(&links)),
            forwarders: Ranges::new(&options.forwarders),
            named,
            links,
            on_link,
            limits: Arc::new(Options { connections, ..options.clone() }),
        }
    }

    /// The same with other networks on our links, where they count.
    fn with_links(&self, links: &[IpNet]) -> Self {
        let links = if self.on_link { links.to_vec() } else { Vec::new() };
        Self {
            clients: Ranges::new(self.named.iter().chain(&links)),
            forwarders: self.forwarders.clone(),
            named: self.named.clone(),
            links,
            on_link: self.on_link,
            limits: Arc::clone(&self.limits),
        }
    }
}

impl Ranges {
    fn new<'a>(networks: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match canonical(*network) {
                IpNet::V4(network) => v4.push((network.network().to_bits(), network.broadcast().to_bits())),
                IpNet::V6(network) => v6.push((network.network().to_bits(), network.broadcast().to_bits())),
            }
        }
        Self { v4: apart(v4), v6: apart(v6) }
    }

    /// Is this canonical address in one of them?
    fn hold(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => is_in(&self.v4, address.to_bits()),
            IpAddr::V6(address) => is_in(&self.v6, address.to_bits()),
        }
    }
}

/// Puts ranges in order and joins those that overlap.
fn apart<T: Copy + Ord>(mut ranges: Vec<(T, T)>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut joined: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            Some(_) | None => joined.push((first, last)),
        }
    }
    joined
}

fn is_in<T: Copy + Ord>(ranges: &[(T, T)], address: T) -> bool {
    let behind = ranges.partition_point(|&(first, _)| first <= address);
    behind.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|&(_, last)| address <= last)
}

/// Half of the files this process may have open: the other half is for upstreams, the record and ourselves.
fn connections_there_is_room_for() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    usize::try_from(files / 2).unwrap_or(usize::MAX).max(1)
}

/// A v4-mapped network as the v4 network it is.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let length = v6.prefix_len().checked_sub(96);
    let mapped = v6.addr().to_ipv4_mapped().zip(length).and_then(|(v4, length)| Ipv4Net::new(v4, length).ok());
    mapped.map_or(network, IpNet::V4)
}

/// A key, and how many places it may have.
type Claim = (Key, usize);

/// What a place of one address counts against, where that alone may have `limit`.
fn claims(address: IpAddr, limit: usize) -> [Option<Claim>; 2] {
    let neighbours = match address.to_canonical() {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(Key::Neighbours(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)))),
    };
    [Some((Key::client(address), limit)), neighbours.map(|key| (key, limit.saturating_mul(NEIGHBOURS)))]
}

impl Key {
    fn client(address: IpAddr) -> Self {
        Self::Client(address.to_canonical())
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self { total: AtomicUsize::new(0), hasher: Seeded::default(), shards: Default::default() }
    }
}

impl Quota {
    /// Takes one place for all claims together, or none.
    fn take(self: &Arc<Self>, in_all: usize, claims: [Option<Claim>; CLAIMS]) -> Result<Permit, Full> {
        if self.total.fetch_add(1, Ordering::Relaxed) >= in_all {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::All);
        }
        let mut permit = Permit { quota: Arc::clone(self), keys: [None; CLAIMS] };
        for ((held, claim), full) in permit.keys.iter_mut().zip(claims).zip([Full::Own, Full::Neighbours, Full::Via]) {
            let Some((key, limit)) = claim else { continue };
            // Where that is full, the permit so far is dropped and gives back what it has.
            *held = Some(self.enter(key, limit).ok_or(full)?);
        }
        Ok(permit)
    }

    fn enter(&self, key: Key, limit: usize) -> Option<Key> {
        let mut shard = self.shard(&key);
        let held = shard.entry(key).or_default();
        if *held < limit {
            *held += 1;
            return Some(key);
        }
        if *held == 0 {
            shard.remove(&key);
        }
        None
    }

    fn leave(&self, key: Key) {
        if let Entry::Occupied(mut held) = self.shard(&key).entry(key) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }

    #[expect(clippy::indexing_slicing, reason = "the index is taken modulo the length")]
    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, usize, Seeded>> {
        let hash = self.hasher.hash_one(key) as usize;
        // Nothing panics while a shard is held, and its counts are whole at every point.
        self.shards[hash % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for key in self.keys.iter().flatten() {
            self.quota.leave(*key);
        }
        self.quota.total.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::audit::Transport;

    fn access(options: &Options, groups: &[&str]) -> Access {
        Access::new(options, groups.iter().map(|text| text.parse().unwrap()), Arc::default())
    }

    fn asker(client: &str, via: Option<&str>) -> Asker {
        let client = SocketAddr::new(client.parse().unwrap(), 1);
        Asker { client, via: via.map(|via| via.parse().unwrap()), transport: Transport::Udp }
    }

    #[test]
    fn private_named_group_and_loopback_clients_may_ask_and_others_may_not() {
        let network = ClientScope::Network("198.51.100.0/24".parse().unwrap());
        let options = Options {
            clients: vec![ClientScope::Private, network],
            forwarders: vec!["10.0.0.53/32".parse().unwrap(), "::ffff:192.0.2.0/120".parse().unwrap()],
            ..Options::default()
        };
        let access = access(&options, &["203.0.113.0/28", "2001:db8:20::/48"]);
        #[rustfmt::skip]
        let table = [
            ("127.0.0.1",           Admission::Allowed),
            ("127.9.9.9",           Admission::Allowed),
            ("::1",                 Admission::Allowed),
            ("10.1.2.3",            Admission::Allowed),
            ("172.31.255.255",      Admission::Allowed),
            ("172.32.0.0",          Admission::Refused),
            ("192.168.1.1",         Admission::Allowed),
            ("100.127.0.1",         Admission::Refused),
            ("169.254.1.1",         Admission::Refused),
            ("fd00::1",             Admission::Allowed),
            ("fe80::1",             Admission::Allowed),
            ("fec0::1",             Admission::Refused),
            ("198.51.100.7",        Admission::Allowed),
            ("198.51.101.7",        Admission::Refused),
            ("203.0.113.15",        Admission::Allowed),
            ("203.0.113.16",        Admission::Refused),
            ("2001:db8:20:1::1",    Admission::Allowed),
            ("2001:db8:21::1",      Admission::Refused),
            ("10.0.0.53",           Admission::Forwarder),
            ("192.0.2.9",           Admission::Forwarder),
            ("::ffff:192.0.2.9",    Admission::Forwarder),
            ("::ffff:10.1.2.3",     Admission::Allowed),
            ("::ffff:8.8.8.8",      Admission::Refused),
            ("8.8.8.8",             Admission::Refused),
        ];
        for (address, expected) in table {
            assert_eq!(access.admits(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn on_link_networks_count_only_where_they_are_named() {
        let named = access(&Options { clients: vec![ClientScope::OnLink], ..Options::default() }, &[]);
        let links = Interfaces::read().unwrap();
        for address in &links.addresses {
            assert_eq!(named.admits(*address), Admission::Allowed, "{address}");
        }
        named.listen_on(vec!["192.0.2.1".parse().unwrap()]);
        for address in &links.addresses {
            assert_eq!(named.admits(*address), Admission::Allowed, "{address} is our own");
        }
        for network in links.networks.iter().filter(|network| network.prefix_len() < 24) {
            let Some(neighbour) = network.hosts().find(|host| !links.addresses.contains(host)) else { continue };
            let expected = if neighbour.is_loopback() { Admission::Allowed } else { Admission::Refused };
            assert_eq!(named.admits(neighbour), expected, "{neighbour}: nobody there is asked to ask us");
        }
        named.replace(&Options { clients: Vec::new(), ..Options::default() }, []);
        for address in links.addresses.iter().filter(|address| !address.is_loopback()) {
            assert_eq!(named.admits(*address), Admission::Refused, "{address}");
        }
    }

    #[test]
    fn who_asks_too_often_is_told_apart_by_its_way_and_forwarders_pay_for_whom_they_name() {
        let options = Options {
            forwarders: vec!["10.0.0.53/32".parse().unwrap()],
            rate: 2,
            rate_per_forwarder: 4,
            slip: 2,
            ..Options::default()
        };
        let access = access(&options, &[]);
        let now = Instant::now();
        let pace = |client: &str, via: Option<&str>, transport| {
            let asker = Asker { transport, ..asker(client, via) };
            let admission = access.admits(asker.via.unwrap_or(asker.client.ip()));
            access.pace_at(access.rates.get().unwrap(), &asker, admission, now)
        };
        let (silent, slips) = (Pace::Over { slips: false }, Pace::Over { slips: true });
        #[rustfmt::skip]
        let table = [
            ("10.0.0.1",  None,              Transport::Udp, [Pace::Within, Pace::Within, silent, slips]),
            ("10.0.0.1",  None,              Transport::Tcp, [Pace::Within, Pace::Within, silent, slips]),
            ("10.0.0.2",  Some("10.0.0.53"), Transport::Udp, [Pace::Within, Pace::Within, silent, slips]),
            ("10.0.0.3",  Some("10.0.0.53"), Transport::Udp, [silent; 4]),
            ("10.0.0.53", None,              Transport::Udp, [silent; 4]),
        ];
        for (client, via, transport, expected) in table {
            assert_eq!([(); 4].map(|()| pace(client, via, transport)), expected, "{client} {via:?} {transport:?}");
        }
        access.replace(&Options { rate: 0, rate_per_forwarder: 0, ..options }, []);
        assert_eq!(pace("10.0.0.1", None, Transport::Udp), Pace::Within);
        assert_eq!(pace("10.0.0.53", None, Transport::Udp), Pace::Within);
    }

    #[test]
    fn a_client_has_its_own_share_of_waiting_questions_and_gets_it_back() {
        let access = access(&Options { waiting: 3, waiting_per_client: 2, ..Options::default() }, &[]);
        let first = access.wait(&asker("10.0.0.1", None)).unwrap();
        let second = access.wait(&asker("::ffff:10.0.0.1", None)).unwrap();
        assert!(access.wait(&asker("10.0.0.1", None)).is_none(), "its own two are taken");
        let other = access.wait(&asker("10.0.0.2", None)).unwrap();
        assert!(access.wait(&asker("10.0.0.3", None)).is_none(), "all three are taken");
        let Metrics { waiting_refused_client, waiting_refused_all, .. } = &*access.metrics;
        assert_eq!((waiting_refused_client.value(), waiting_refused_all.value()), (1, 1));
        drop((first, second));
        assert!(access.wait(&asker("10.0.0.1", None)).is_some());
        drop(other);
        assert_eq!(access.waiting.total.load(Ordering::Relaxed), 0);
        assert!(access.waiting.shards.iter().all(|shard| shard.lock().unwrap().is_empty()), "nothing is left behind");
    }

    #[test]
    fn hosts_of_one_v6_network_do_not_starve_each_other_and_one_with_many_addresses_not_all_others() {
        let access = access(&Options { waiting_per_client: 1, ..Options::default() }, &[]);
        let wait = |address: &str| access.wait(&asker(address, None));
        let mut held = vec![wait("2001:db8::1").unwrap()];
        assert!(wait("2001:db8::1").is_none(), "its own share");
        held.extend((2..=NEIGHBOURS).map(|host| wait(&format!("2001:db8::{host:x}")).unwrap()));
        for address in ["2001:db8::ffff:1", "2001:db8::ffff:2"] {
            assert!(wait(address).is_none(), "the network's share");
        }
        let Metrics { waiting_refused_client, waiting_refused_network, .. } = &*access.metrics;
        assert_eq!((waiting_refused_client.value(), waiting_refused_network.value()), (1, 2));
        held.push(wait("2001:db8:0:1::1").unwrap());
        drop(held);
        assert!(access.waiting.shards.iter().all(|shard| shard.lock().unwrap().is_empty()), "nothing is left behind");
    }

    #[test]
    fn a_question_through_a_forwarder_counts_against_both() {
        let forwarders = vec!["10.0.0.53/32".parse().unwrap()];
        let options = Options {
            waiting_per_client: 1,
            waiting_per_forwarder: 2,
            forwarders,
            connections: 2,
            ..Options::default()
        };
        let access = access(&options, &[]);
        let first = access.wait(&asker("10.0.0.1", Some("10.0.0.53"))).unwrap();
        assert!(access.wait(&asker("10.0.0.1", Some("10.0.0.53"))).is_none(), "the client's share");
        let second = access.wait(&asker("10.0.0.53", None)).unwrap();
        assert!(access.wait(&asker("10.0.0.2", Some("10.0.0.53"))).is_none(), "the forwarder's share");
        let fourth = access.wait(&asker("10.0.0.53", None)).map(drop);
        assert!(fourth.is_none(), "what it asks for itself is its share, too");
        let Metrics { waiting_refused_client, waiting_refused_forwarder, .. } = &*access.metrics;
        assert_eq!((waiting_refused_client.value(), waiting_refused_forwarder.value()), (1, 2));
        drop(second);
        let third = access.wait(&asker("10.0.0.2", Some("10.0.0.53"))).unwrap();
        drop((first, third));
        assert_eq!(access.waiting.total.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn connections_are_capped_per_client_and_strangers_share_one_cap() {
        let options = Options { connections: 10, connections_per_client: 2, ..Options::default() };
        let access = access(&Options { clients: vec![ClientScope::Private], ..options }, &[]);
        let connect = |peer: &str| access.connect(peer.parse().unwrap());
        let held = [connect("10.0.0.1"), connect("10.0.0.1"), connect("192.0.2.1"), connect("192.0.2.2")];
        assert!(held.iter().all(Option::is_some));
        assert!(connect("10.0.0.1").is_none());
        assert!(connect("192.0.2.3").is_none());
        assert!(!access.is_crowded());
        let more = [connect("10.0.0.2"), connect("10.0.0.3")];
        assert!(more.iter().all(Option::is_some) && access.is_crowded());
        let rest: Vec<_> = (4..).map_while(|host| connect(&format!("10.0.0.{host}"))).collect();
        assert_eq!((rest.len(), access.metrics.connections_refused_all.value()), (4, 1));
        let Metrics { connections_refused_client, connections_refused_strangers, .. } = &*access.metrics;
        assert_eq!((connections_refused_client.value(), connections_refused_strangers.value()), (1, 1));
    }

    #[test]
    fn connections_leave_half_of_the_files_to_the_rest_of_us() {
        let access = access(&Options { connections: usize::MAX, ..Options::default() }, &[]);
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(access.limits().connections as u64 <= soft / 2, "{:?}", access.limits());
    }

    #[test]
    fn connections_through_the_gate_are_counted_by_themselves() {
        let access = access(&Options { connections: 1, connections_per_client: 1, ..Options::default() }, &[]);
        let pass = |client: &str| access.pass(client.parse().unwrap(), 3, 2);
        let _question = access.connect("10.0.0.1".parse().unwrap()).unwrap();
        let held = [pass("10.0.0.1").unwrap(), pass("::ffff:10.0.0.1").unwrap()];
        assert!(pass("10.0.0.1").is_none(), "its own two are taken");
        let _third = pass("10.0.0.2").unwrap();
        assert!(pass("10.0.0.3").is_none(), "all three are taken");
        drop(held);
        assert!(pass("10.0.0.1").is_some());
    }

    #[test]
    fn one_network_takes_neither_all_of_the_gate_nor_all_that_are_heard() {
        let access = access(&Options::default(), &[]);
        let network = |host: usize| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 1, u16::try_from(host).unwrap()]);
        let passed: Vec<_> = (0..64).map_while(|host| access.pass(network(host), 64, 4)).collect();
        let heard: Vec<_> = (0..64).map_while(|host| access.hear(network(host), 64)).collect();
        assert_eq!((passed.len(), heard.len()), (16, 16));
        let neighbour = "10.0.0.1".parse().unwrap();
        assert!(access.pass(neighbour, 64, 4).is_some());
        let heard: Vec<_> = (0..64).map_while(|_| access.hear(neighbour, 64)).collect();
        assert_eq!(heard.len(), 4);
    }

    #[test]
    fn many_threads_take_no_more_than_there_is_and_leave_nothing_behind() {
        let access = access(&Options { waiting: 8, waiting_per_client: 3, ..Options::default() }, &[]);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let access = &access;
                scope.spawn(move || {
                    for round in 0..500 {
                        let client = format!("10.0.0.{}", (thread + round) % 3);
                        let held: Vec<Permit> = (0..4).map_while(|_| access.wait(&asker(&client, None))).collect();
                        assert!(held.len() <= 3);
                    }
                });
            }
        });
        assert_eq!(access.waiting.total.load(Ordering::Relaxed), 0);
        assert!(access.waiting.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }
}
