//! The timer: which name is looked up when, what is published, what is said of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Progress, Published, Terms,
    exclusions::{Exclusions, Refusal},
    keep,
    lookup::{Looked, look_up},
    memory::{Memory, Said},
};
use crate::{lasting, metrics::Metrics, name::DomainName, policy::Source, sys::interfaces::Interfaces};

/// What is said of it where it panics.
pub(super) const LEARNING: &str = "the learning of ingress addresses";

/// Names that are looked up at once.
const AT_ONCE: usize = 4;

/// A name is looked up again when its answers end, within these bounds: a rotating address must be seen, and an
/// operator's mistake must not hammer anybody.
const SOONEST: Duration = Duration::from_secs(60);
const LATEST: Duration = Duration::from_mins(15);

/// After a failure; twice as long after each further one, up to [`SOONEST`].
const RETRY: Duration = Duration::from_secs(5);

/// How old the times in the file may become while no address comes or goes.
const WRITE: Duration = Duration::from_mins(15);

pub(super) struct Learner {
    terms: watch::Receiver<Arc<Terms>>,
    published: Published,
    progress: watch::Sender<Progress>,
    path: PathBuf,
    metrics: Arc<Metrics>,
    memory: Memory,
    turns: BTreeMap<DomainName, Turn>,
    out: FuturesUnordered<BoxFuture<'static, Looked>>,
    /// That lookups fail was said, and why.
    told: bool,
    why: String,
    /// Number of the set in the file, and when it was written.
    kept: (u64, Instant),
    keep_failed: bool,
}

/// When a name is looked up next, and what came of it.
struct Turn {
    due: Instant,
    is_out: bool,
    /// Terms changed since it was asked: a failure says nothing of whom would be asked now.
    is_outdated: bool,
    /// `None` before the first outcome; then how many failures there were in a row.
    failures: Option<u32>,
}

impl Learner {
    /// Publishes what the file knows.
    pub(super) fn new(
        terms: watch::Receiver<Arc<Terms>>,
        (published, progress): (Published, watch::Sender<Progress>),
        path: PathBuf,
        metrics: Arc<Metrics>,
    ) -> Self {
        let kept = (0, Instant::now());
        let (memory, turns, out) = (Memory::default(), BTreeMap::new(), FuturesUnordered::new());
        let (told, why, keep_failed) = (false, String::new(), false);
        let mut learner =
            Self { terms, published, progress, path, metrics, memory, turns, out, told, why, kept, keep_failed };
        let terms = learner.terms();
        learner.follow(&terms);
        match keep::read(&learner.path) {
            Ok(entries) => learner.memory.recall(entries, &exclusions(&terms), Timestamp::now()),
            Err(error) => {
                let path = learner.path.display();
                tracing::warn!(%error, "what {path} knew of ingress addresses cannot be read; they are learned anew");
            }
        }
        learner.publish();
        learner
    }

    /// Until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let metrics = Arc::clone(&self.metrics);
        while lasting::once(&metrics, LEARNING, self.learn_until(&stop)).await.is_none() {
            tracing::error!("{LEARNING} panicked and starts again");
            self.forget_who_is_out();
            stop.run_until_cancelled(sleep(lasting::PAUSE)).await;
        }
        self.keep(Duration::ZERO).await;
    }

    async fn learn_until(&mut self, stop: &CancellationToken) {
        loop {
            self.ask();
            let pause = sleep(self.pause());
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = self.terms.changed() => {
                    let terms = self.terms();
                    self.follow(&terms);
                }
                Some(looked) = self.out.next() => self.note(looked),
                () = pause => {}
            }
            self.publish();
            if self.out.is_empty() {
                self.tell();
                self.keep(WRITE).await;
            }
        }
    }

    /// Lookups that nobody knows the state of are begun anew.
    fn forget_who_is_out(&mut self) {
        self.out = FuturesUnordered::new();
        self.turns.values_mut().for_each(|turn| turn.is_out = false);
    }

    fn terms(&mut self) -> Arc<Terms> {
        Arc::clone(&self.terms.borrow_and_update())
    }

    /// Takes over what is to be looked up, and what the lists say.
    fn follow(&mut self, terms: &Terms) {
        let names: BTreeSet<_> = terms.policy.resolved().cloned().collect();
        self.turns.retain(|name, _| names.contains(name));
        let due = Instant::now();
        for name in &names {
            self.turns.entry(name.clone()).or_insert(Turn { due, is_out: false, is_outdated: false, failures: None });
        }
        self.turns.values_mut().filter(|turn| turn.is_out).for_each(|turn| turn.is_outdated = true);
        // Who failed may be asked of somebody else from now on.
        for turn in self.turns.values_mut().filter(|turn| turn.failures.is_some_and(|failures| failures > 0)) {
            turn.due = due;
        }
        let lists = terms.policy.listed().map(|(source, _)| source.clone());
        self.memory.follow(names.into_iter().map(Source::Name).chain(lists).collect());
        for (source, addresses) in terms.policy.listed() {
            self.learn(&Said { source, addresses, complete: true }, terms);
        }
    }

    /// Starts lookups that are due.
    fn ask(&mut self) {
        let now = Instant::now();
        let due = self.turns.iter_mut().filter(|(_, turn)| !turn.is_out && turn.due <= now);
        for (name, turn) in due.take(AT_ONCE.saturating_sub(self.out.len())) {
            turn.is_out = true;
            // Not the terms: a policy that a reload replaced must not live on with a slow answer.
            let (upstream, name) = (Arc::clone(&self.terms.borrow().upstream), name.clone());
            self.out.push(Box::pin(async move { look_up(&upstream, name).await }));
        }
    }

    /// How long there is nothing to do but to wait for answers.
    fn pause(&self) -> Duration {
        let is_free = self.out.len() < AT_ONCE;
        let waiting = self.turns.values().filter(|turn| !turn.is_out && is_free);
        let due = waiting.map(|turn| turn.due.saturating_duration_since(Instant::now())).min();
        let forgotten = self.memory.until_next_forgotten(self.terms.borrow().options.remember, Timestamp::now());
        due.into_iter().chain(forgotten).min().unwrap_or(LATEST)
    }

    /// A lookup has ended.
    fn note(&mut self, looked: Looked) {
        let Looked { name, addresses, outcome, aliases: _ } = looked;
        self.metrics.ingress_lookups.increment();
        // A reload may have taken the name away meanwhile.
        let Some(turn) = self.turns.get_mut(&name) else { return };
        turn.is_out = false;
        let is_outdated = std::mem::take(&mut turn.is_outdated);
        let complete = outcome.is_ok();
        match outcome {
            Ok(ttl) => {
                let pause = ttl.clamp(SOONEST, LATEST);
                // Up to a tenth later, so that names which share a zone do not go on being asked for in one burst.
                turn.due = Instant::now() + pause + pause.mul_f64(rand::random_range(0.0..0.1));
                turn.failures = Some(0);
            }
            Err(error) => {
                self.metrics.ingress_failures.increment();
                let failures = turn.failures.unwrap_or_default();
                let pause = if is_outdated { Duration::ZERO } else { SOONEST.min(RETRY * (1 << failures.min(8))) };
                turn.due = Instant::now() + pause;
                turn.failures = Some(failures.saturating_add(1));
                self.why = format!("{name}: {error}");
            }
        }
        let terms = self.terms.borrow().clone();
        self.learn(&Said { source: &Source::Name(name), addresses: &addresses, complete }, &terms);
    }

    fn learn(&mut self, said: &Said<'_>, terms: &Terms) {
        for refusal in self.memory.note(said, &exclusions(terms), Timestamp::now()) {
            refusal.counter(&self.metrics).increment();
        }
    }

    /// Puts what is known in force.
    fn publish(&mut self) {
        let terms = self.terms.borrow().clone();
        self.memory.exclude(&exclusions(&terms));
        self.memory.forget(terms.options.remember, Timestamp::now());
        let learned = self.memory.learned(&self.published.load());
        self.published.store(Arc::new(learned));
        let pending = self.turns.values().filter(|turn| turn.failures.is_none()).count();
        let progress =
            Progress { pending, has_begun: true, failing: self.failing(), turned_away: self.memory.turned_away() };
        self.progress.send_replace(progress);
    }

    fn failing(&self) -> Vec<DomainName> {
        let failing = self.turns.iter().filter(|(_, turn)| turn.failures.is_some_and(|failures| failures > 0));
        failing.map(|(name, _)| name.clone()).collect()
    }

    /// One line when lookups begin to fail, and one when none fails any more.
    fn tell(&mut self) {
        let (failing, all) = (self.failing().len(), self.turns.len());
        if failing > 0 && !self.told {
            let why = &self.why;
            tracing::warn!("{failing} of {all} ingress names cannot be looked up, and are tried again; {why}");
        } else if failing == 0 && self.told {
            tracing::info!("all {all} ingress names are looked up again");
        }
        self.told = failing > 0;
    }

    /// Writes the file where an address came or went, or its times are older than that.
    async fn keep(&mut self, age: Duration) {
        let (number, now) = (self.published.load().number(), Instant::now());
        let (kept, written) = self.kept;
        if number == kept && (number == 0 || now.duration_since(written) < age) {
            return;
        }
        let (path, entries) = (self.path.clone(), self.memory.to_keep());
        let outcome = lasting::joined(&self.metrics, spawn_blocking(move || keep::write(&path, &entries)).await);
        // What cannot be written now is tried again when there is news.
        self.kept = (number, now);
        match outcome {
            Some(Err(error)) if !self.keep_failed => {
                self.keep_failed = true;
                tracing::warn!(%error, "cannot keep the ingress addresses in {}", self.path.display());
            }
            Some(Err(_)) | None => {}
            Some(Ok(())) => self.keep_failed = false,
        }
    }
}

/// Who is never learned, as things are now.
fn exclusions(terms: &Terms) -> Exclusions<'_> {
    // Where the system does not tell, the rest still holds.
    let interfaces = Interfaces::read().unwrap_or_default();
    let servers = terms.upstream.health().into_iter();
    let upstream =
        servers.filter_map(|server| server.server.address()).map(|address: SocketAddr| -> IpAddr { address.ip() });
    let mut exclusions = Exclusions::new(&terms.policy, &interfaces, upstream);
    exclusions.add(terms.options.organization.iter().copied(), Refusal::Organization);
    exclusions.add(terms.options.fixed.iter().copied(), Refusal::Static);
    exclusions.add(terms.options.exempt.iter().copied(), Refusal::Exempt);
    exclusions.add(terms.options.shared.iter().copied(), Refusal::Shared);
    exclusions
}
