//! A request, carried out: first the ground, then the book, then the kernel, and only then the reply.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant, SystemTime},
};

use socket2::{Domain, Protocol, SockRef};

use super::{
    Terms,
    book::{Book, Bounds, Full, Target},
    ground::Ground,
    kernel::{Failed, Kernel},
    message::{Counts, Done, Refusal, Reply, Request},
    notice::{Protection, Trouble},
    owner::Owners,
    rate::Bucket,
    removal::is_given,
    sets::{Elements, read_leases},
    tally::{Kind, sums},
};
use crate::{
    firewall::{
        MARK, TABLE, ZONE,
        sets::{INGRESS, LEASE, PORT},
    },
    sys::netlink::{Flow, Flows, FoundSocket, SocketTable},
};

/// Nothing is open for longer without being asked for again.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What is denied stays so while the forwarder is gone, until it is mended.
const LONGEST_DENIED: Duration = Duration::from_secs(30 * 24 * 3600);
/// What looks through every connection or process of the machine, or has `nft` run, costs as much as this many others.
const COSTLY: u32 = 100;
/// How long after it failed putting the table back is tried again.
const MEND: Duration = Duration::from_secs(1);
/// One of many clients, or the one that this machine is.
const LEASES_OF_CLIENT: usize = 2000;
const LEASES_OF_HOST: usize = 16_384;
/// What the sets hold, with space to spare.
const LEASES: usize = 250_000;
const PORTS_OF_CLIENT: usize = 500;
const PORTS: usize = 60_000;
/// More than are ever learned; the IPv6 set holds each IPv4 one once for each NAT64 prefix.
const DENIED: usize = 20_000;

/// The keeper's knowledge, and the kernel's table.
pub(super) struct Service {
    kernel: Kernel,
    terms: Terms,
    ground: Ground,
    leases: Book,
    ports: Book,
    denied: Book,
    bucket: Bucket,
    /// Of what is costly: one client's refusals, each with a look for its process, take nothing from other's answers.
    costly: Bucket,
    counts: Counts,
    /// Denied since connections were looked through last.
    uncut: HashSet<IpAddr>,
    owners: Option<Owners>,
    is_removed: bool,
    /// The table is not as it should be, and this is when putting it back is tried again.
    mend_at: Option<Instant>,
    /// See [`Done::epoch`].
    epoch: u32,
}

/// The reply, and what people should know of it.
pub(super) type Outcome = (Reply, Option<Failed>);

impl Service {
    /// Loads the table; what its sets hold already is kept.
    pub(super) fn start(terms: Terms, now: Instant) -> Result<Self, Failed> {
        let kernel = Kernel::load(&terms)?;
        let ground = Ground::new(&terms);
        let of_client = if terms.gateway { LEASES_OF_CLIENT } else { LEASES_OF_HOST };
        let mut service = Self {
            kernel,
            ground,
            leases: Book::new(Bounds { client: of_client, all: LEASES }),
            ports: Book::new(Bounds { client: PORTS_OF_CLIENT, all: PORTS }),
            denied: Book::new(Bounds { client: usize::MAX, all: DENIED }),
            bucket: Bucket::new(now),
            costly: Bucket::new(now),
            counts: Counts::default(),
            uncut: HashSet::new(),
            owners: Owners::open().ok(),
            is_removed: false,
            mend_at: None,
            epoch: 0,
            terms,
        };
        service.remember(now).map_err(|error| (Trouble::Kernel, error.to_string()))?;
        service.withdraw(now);
        service.cut_resolvers();
        Ok(service)
    }

    /// Does what is asked, of the socket that came with it.
    pub(super) fn answer(
        &mut self,
        request: Request,
        socket: Option<OwnedFd>,
        terms: impl FnOnce() -> Result<Terms, String>,
    ) -> Outcome {
        let now = Instant::now();
        let is_costly =
            matches!(request, Request::Cut { .. } | Request::Process { .. } | Request::Reload | Request::Remove);
        let (bucket, cost) = if is_costly { (&mut self.costly, COSTLY) } else { (&mut self.bucket, 1) };
        if !bucket.take(cost, now) {
            self.counts.hurried += 1;
            return (Reply::Refused(Refusal::Rate), None);
        }
        let evicted = self.counts.evicted;
        let outcome = match request {
            Request::Permit { client, addresses, lifetime } => self.permit(client, &addresses, 0, lifetime, now),
            Request::PermitPort { client, addresses, port, lifetime } if self.ground.may_open(port) => {
                self.permit(client, &addresses, port, lifetime, now)
            }
            Request::PermitPort { .. } => Err((Refusal::Port, None)),
            Request::Deny { addresses, lifetime } => self.deny(&addresses, lifetime, now),
            Request::Forget { addresses } => self.forget(&addresses),
            Request::Release { client, address } => self.release(client, address).map(|()| 0),
            Request::Cut { client, address } => self.cut(client, address),
            Request::Count => return (Reply::Counts(self.counts(now)), None),
            Request::Process { protocol, local, remote } => {
                let found = self.owners.as_mut().and_then(|owners| owners.find(protocol, local, remote));
                return (Reply::Process(found), None);
            }
            Request::Mark => self.mark(socket),
            Request::Reload => self.reload(terms, now),
            Request::Remove => self.remove(),
            Request::Bye => Ok(0),
        };
        match outcome {
            Ok(skipped) => {
                self.counts.skipped += u64::from(skipped);
                let evicted = self.counts.evicted != evicted;
                (Reply::Done(Done { skipped, evicted, epoch: self.epoch }), None)
            }
            Err((refusal, trouble)) => {
                self.counts.failed += u64::from(matches!(refusal, Refusal::Kernel | Refusal::Full));
                (Reply::Refused(refusal), trouble)
            }
        }
    }

    /// Opens what may be; the number of addresses that may not. A denied address stays denied: only a port of it opens.
    fn permit(
        &mut self,
        client: Option<IpAddr>,
        addresses: &[IpAddr],
        port: u16,
        lifetime: u32,
        now: Instant,
    ) -> Skipped {
        let client = client.map(|client| client.to_canonical());
        if !self.ground.admits(client) {
            return Err((Refusal::Client, None));
        }
        let targets = self.admissible(client, addresses, port, now);
        let book = if port == 0 { &mut self.leases } else { &mut self.ports };
        let new: Vec<_> = targets.iter().filter(|target| !book.holds(client, **target, now)).copied().collect();
        let relieved = book.relieve(new.len(), now);
        let admitted = match book.admit(client, &targets, bounded(lifetime, LONGEST), now) {
            Ok(admitted) => admitted,
            Err(Full) => {
                book.release_all(client, &new);
                return Err((Refusal::Full, None));
            }
        };
        self.counts.evicted += as_count(relieved.len() + admitted.evicted.len());
        self.epoch = self.epoch.wrapping_add(u32::from(!relieved.is_empty()));
        let (mut going, mut coming) = (Elements::default(), Elements::default());
        let evicted = admitted.evicted.into_iter().map(|target| (client, target));
        for (client, target) in relieved.into_iter().chain(evicted) {
            going.add_lease(client, target, LONGEST);
        }
        for (target, lifetime) in admitted.open {
            coming.add_lease(client, target, lifetime);
        }
        let outcome = self.change(&going, &coming, now);
        if outcome.is_err() {
            let book = if port == 0 { &mut self.leases } else { &mut self.ports };
            book.release_all(client, &new);
        }
        outcome.map(|()| skipped(addresses.len(), targets.len()))
    }

    fn admissible(&self, client: Option<IpAddr>, addresses: &[IpAddr], port: u16, now: Instant) -> Vec<Target> {
        let canonical = addresses.iter().map(|address| address.to_canonical());
        let open = canonical.filter(|address| {
            self.ground.may_permit(client, *address) && (port != 0 || !self.is_denied(*address, now))
        });
        let mut targets: Vec<_> = open.map(|address| Target { address, port }).collect();
        targets.sort();
        targets.dedup();
        targets
    }

    fn is_denied(&self, address: IpAddr, now: Instant) -> bool {
        self.denied.holds(None, whole(self.ground.carriers.read(address)), now)
    }

    fn deny(&mut self, addresses: &[IpAddr], lifetime: u32, now: Instant) -> Skipped {
        let may = addresses.iter().filter(|address| self.ground.may_deny(**address));
        let mut targets: Vec<_> = may.map(|address| whole(self.ground.carriers.read(*address))).collect();
        targets.sort();
        targets.dedup();
        let new: Vec<_> = targets.iter().filter(|target| !self.denied.holds(None, **target, now)).copied().collect();
        let Ok(admitted) = self.denied.admit(None, &targets, bounded(lifetime, LONGEST_DENIED), now) else {
            self.denied.release_all(None, &new);
            return Err((Refusal::Full, None));
        };
        let mut coming = Elements::default();
        for (target, lifetime) in admitted.open {
            coming.add_denied(target.address, &self.ground.carriers, lifetime);
        }
        if let Err(refused) = self.change(&Elements::default(), &coming, now) {
            self.denied.release_all(None, &new);
            return Err(refused);
        }
        self.uncut.extend(new.iter().map(|target| target.address));
        Ok(skipped(addresses.len(), targets.len()))
    }

    fn forget(&mut self, addresses: &[IpAddr]) -> Skipped {
        let mut going = Elements::default();
        let mut known = 0;
        for address in addresses {
            let address = self.ground.carriers.read(*address);
            self.uncut.remove(&address);
            if self.denied.release(None, whole(address)) {
                known += 1;
                going.add_denied(address, &self.ground.carriers, LONGEST);
            }
        }
        self.change(&going, &Elements::default(), Instant::now())?;
        Ok(skipped(addresses.len(), known))
    }

    fn release(&mut self, client: Option<IpAddr>, address: IpAddr) -> Result<(), Refused> {
        self.epoch = self.epoch.wrapping_add(1);
        let (client, address) = (client.map(|client| client.to_canonical()), address.to_canonical());
        let mut going = Elements::default();
        for book in [&mut self.leases, &mut self.ports] {
            for target in book.ports_of(client, address) {
                book.release(client, target);
                going.add_lease(client, target, LONGEST);
            }
        }
        self.change(&going, &Elements::default(), Instant::now())
    }

    /// Ends connections to an address that may be denied: nobody is cut off from anything else on request.
    fn cut(&mut self, client: Option<IpAddr>, address: IpAddr) -> Skipped {
        let address = address.to_canonical();
        if !self.ground.may_deny(address) {
            return Err((Refusal::Address, None));
        }
        if !self.ground.admits(client) {
            return Err((Refusal::Client, None));
        }
        self.release(client, address)?;
        let client = client.map(|client| client.to_canonical());
        let ended = end_connections(|source, destination| {
            let is_from = client.is_none_or(|client| source.ip().to_canonical() == client);
            is_from && destination.ip().to_canonical() == address
        });
        ended.map(|()| 0).map_err(|error| kernel_refused(&error))
    }

    /// The mark goes with the user's number in every rule, so it opens nothing to a socket of somebody else's.
    fn mark(&self, socket: Option<OwnedFd>) -> Skipped {
        let Some(socket) = socket.filter(|_| self.terms.marks) else { return Err((Refusal::Socket, None)) };
        let socket = SockRef::from(&socket);
        let speaks_ip = matches!(socket.domain(), Ok(Domain::IPV4 | Domain::IPV6));
        if !speaks_ip || !matches!(socket.protocol(), Ok(Some(Protocol::TCP | Protocol::UDP))) {
            return Err((Refusal::Socket, None));
        }
        socket.set_mark(MARK).map(|()| 0).map_err(|error| kernel_refused(&error))
    }

    /// Ends connections to what was denied since this was done last. Those that the gate carries it carries on.
    pub(super) fn cut_denied(&mut self) -> Option<Failed> {
        let uncut = std::mem::take(&mut self.uncut);
        if uncut.is_empty() {
            return None;
        }
        let (carriers, free) = (&self.ground.carriers, &self.terms.free);
        let ended = end_connections(|source, destination| {
            let client = source.ip().to_canonical();
            uncut.contains(&carriers.read(destination.ip())) && !free.iter().any(|free| free.contains(&client))
        });
        ended.err().map(|error| (Trouble::Kernel, format!("connections to ingresses were not ended: {error}")))
    }

    /// Is there anything for [`Self::cut_denied`]?
    pub(super) fn has_uncut(&self) -> bool {
        !self.uncut.is_empty()
    }

    /// Conversations with other resolvers that began before the rules: they would go on past the redirection.
    fn cut_resolvers(&self) {
        let to_resolver = |flow: &Flow| [53, 853].contains(&flow.destination.port()) && !flow.is_redirected;
        // Without connection tracking there are none.
        let _ = Flows::open().and_then(|mut flows| flows.forget(|flow| to_resolver(flow) && flow.zone != ZONE));
    }

    /// Changes the kernel's sets. Where others took the table away meanwhile, it is restored, with all of this.
    fn change(&mut self, going: &Elements, coming: &Elements, now: Instant) -> Result<(), Refused> {
        if self.is_removed {
            // It is written down, and in the table again when that is.
            return Ok(());
        }
        let netfilter = self.kernel.netfilter();
        let done = netfilter.take_out(TABLE, &going.lists()).and_then(|()| netfilter.put(TABLE, &coming.lists()));
        match done {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.restore(now).map_err(|failed| (Refusal::Kernel, Some(failed)))
            }
            Err(error) => Err(kernel_refused(&error)),
        }
    }

    /// Puts the table and everything in it back, as far as somebody else changed it. Tells whether that was so.
    pub(super) fn restore_if_changed(&mut self) -> Result<bool, Failed> {
        let now = Instant::now();
        let is_due = self.mend_at.is_some_and(|at| at <= now);
        let changed = !self.is_removed && (is_due || self.kernel.was_changed()?);
        if changed {
            self.restore(now)?;
        }
        Ok(changed)
    }

    /// When putting the table back is tried again, where that failed: until then it is not as it should be.
    pub(super) fn mend_at(&self) -> Option<Instant> {
        self.mend_at
    }

    fn restore(&mut self, now: Instant) -> Result<(), Failed> {
        let restored = self.kernel.restore(&self.terms).and_then(|()| self.refill(now));
        self.mend_at = restored.is_err().then(|| Instant::now() + MEND);
        self.counts.restored += u64::from(restored.is_ok());
        restored
    }

    /// Puts everything that is open or denied into the sets.
    fn refill(&mut self, now: Instant) -> Result<(), Failed> {
        let mut all = Elements::default();
        for (_, target, left) in self.denied.open(now) {
            all.add_denied(target.address, &self.ground.carriers, left);
        }
        for (client, target, left) in self.leases.open(now).chain(self.ports.open(now)) {
            all.add_lease(client, target, left);
        }
        self.kernel.netfilter().put(TABLE, &all.lists()).map_err(|error| (Trouble::Kernel, error.to_string()))
    }

    /// Writes down what the kernel has from before.
    fn remember(&mut self, now: Instant) -> io::Result<()> {
        let netfilter = self.kernel.netfilter();
        for (_, target, left) in read_leases(netfilter, INGRESS, false)? {
            // The translated form of an address that is there too.
            if self.ground.carriers.read(target.address) == target.address {
                let _ = self.denied.admit(None, &[target], left, now);
            }
        }
        for (sets, book) in [(LEASE, &mut self.leases), (PORT, &mut self.ports)] {
            for (client, target, left) in read_leases(netfilter, sets, self.terms.gateway)? {
                let _ = book.admit(client, &[target], left, now);
            }
        }
        Ok(())
    }

    /// Takes back what the configuration, being another now, does not allow any more.
    fn withdraw(&mut self, now: Instant) {
        self.epoch = self.epoch.wrapping_add(1);
        let ground = &self.ground;
        let mut going = Elements::default();
        let denied: Vec<_> = self.denied.open(now).filter(|(_, target, _)| !ground.may_deny(target.address)).collect();
        for (client, target, _) in denied {
            self.denied.release(client, target);
            going.add_denied(target.address, &ground.carriers, LONGEST);
        }
        let may = |client, target: Target| {
            ground.may_permit(client, target.address) && (target.port == 0 || ground.may_open(target.port))
        };
        for book in [&mut self.leases, &mut self.ports] {
            let gone: Vec<_> = book.open(now).filter(|(client, target, _)| !may(*client, *target)).collect();
            for (client, target, _) in gone {
                book.release(client, target);
                going.add_lease(client, target, LONGEST);
            }
        }
        // They end by themselves where this fails.
        let _ = self.change(&going, &Elements::default(), now);
    }

    fn reload(&mut self, terms: impl FnOnce() -> Result<Terms, String>, now: Instant) -> Skipped {
        let refused = |failed| (Refusal::Ruleset, Some(failed));
        let terms = terms().map_err(|words| refused((Trouble::Configuration, words)))?;
        if terms.gateway != self.terms.gateway {
            return Err(refused((Trouble::Configuration, "another mode needs a restart".to_owned())));
        }
        if self.is_removed {
            self.kernel = Kernel::load(&terms).map_err(refused)?;
            self.is_removed = false;
            self.refill(now).map_err(refused)?;
        } else if let Err(failed) = self.kernel.reload(&terms) {
            // While nobody owned it, others made something else of it: the rules in force come back.
            let lost = if failed.0 == Trouble::NotAsLoaded { self.restore(now).err() } else { None };
            return Err(refused(lost.unwrap_or(failed)));
        }
        self.mend_at = None;
        self.ground = Ground::new(&terms);
        self.terms = terms;
        self.withdraw(now);
        Ok(0)
    }

    fn remove(&mut self) -> Skipped {
        if !is_given(&self.terms.removal, SystemTime::now()) {
            return Err((Refusal::Unasked, None));
        }
        self.epoch = self.epoch.wrapping_add(1);
        self.kernel.remove().map_err(|failed| (Refusal::Kernel, Some(failed)))?;
        self.is_removed = true;
        self.mend_at = None;
        Ok(0)
    }

    /// The forwarder stopped on purpose.
    pub(super) fn stop(&mut self) -> Result<(), Failed> {
        if self.terms.on_stop_remove && !self.is_removed { self.kernel.remove() } else { Ok(()) }
    }

    /// Drops what has ended.
    pub(super) fn expire(&mut self, now: Instant) {
        for book in [&mut self.leases, &mut self.ports, &mut self.denied] {
            book.expire(now);
        }
    }

    fn counts(&mut self, now: Instant) -> Counts {
        self.expire(now);
        let [leases, ports, denied] = [&self.leases, &self.ports, &self.denied].map(|book| as_count(book.total()));
        Counts { leases, ports, denied, ..self.counts }
    }

    /// Counts logged packets that were not told.
    pub(super) fn count_untold(&mut self, untold: u64) {
        self.counts.untold += untold;
    }

    /// How many packets of each kind the kernel has counted; none where it does not tell.
    pub(super) fn counted(&mut self) -> HashMap<Kind, u64> {
        sums(self.kernel.netfilter().counters(TABLE).unwrap_or_default())
    }

    pub(super) fn protection(&self) -> Protection {
        self.kernel.protection()
    }

    /// Becomes readable when the table may have changed.
    pub(super) fn watched(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.kernel.watched()
    }
}

type Refused = (Refusal, Option<Failed>);
/// The number of addresses that stay as they are.
type Skipped = Result<u8, Refused>;

fn whole(address: IpAddr) -> Target {
    Target { address, port: 0 }
}

fn bounded(seconds: u32, longest: Duration) -> Duration {
    Duration::from_secs(u64::from(seconds.max(1))).min(longest)
}

fn skipped(asked: usize, done: usize) -> u8 {
    u8::try_from(asked.saturating_sub(done)).unwrap_or(u8::MAX)
}

fn as_count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn kernel_refused(error: &io::Error) -> Refused {
    match error.raw_os_error() {
        Some(libc::ENFILE) => (Refusal::Full, None),
        _ => (Refusal::Kernel, Some((Trouble::Kernel, error.to_string()))),
    }
}

/// Ends connections from somewhere to somewhere: what conntrack knows of them, and this machine's own TCP sockets. Not
/// those that the gate carries, neither the client's side nor ours: it judges them itself.
fn end_connections(unwanted: impl Fn(SocketAddr, SocketAddr) -> bool) -> io::Result<()> {
    let mut table = SocketTable::open()?;
    // First, so that every one of them that is carried is known to conntrack afterwards.
    let sockets = table.connected(|socket| unwanted(socket.local, socket.remote))?;
    let mut carried = HashSet::new();
    Flows::open()?.forget(|flow| {
        let is_carried = flow.is_redirected || flow.zone == ZONE;
        if is_carried {
            carried.insert((flow.source, flow.destination));
        }
        !is_carried && unwanted(flow.source, flow.destination)
    })?;
    let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    let is_carried = |socket: &FoundSocket| carried.contains(&(plain(socket.local), plain(socket.remote)));
    let sockets: Vec<_> = sockets.into_iter().filter(|socket| !is_carried(socket)).collect();
    match table.destroy(&sockets) {
        // A kernel without SOCK_DESTROY: what is sent next is refused all the same.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        outcome => outcome.map(drop),
    }
}
