//! Learns where ingresses are: looks up every name that a pack lists under `resolve`, again and again, and reads the
//! lists of addresses that packs name. What is known is published as one immutable set.
//!
//! | file | does |
//! |---|---|
//! | `exclusions` | who is never taken for an ingress |
//! | `memory` | what each source said, and when: pure |
//! | `lookup` | one name's addresses |
//! | `learner` | the timer, and what came of it |
//! | `keep` | the same across a restart |
//!
//! No name that a client or an alias brings is ever looked up here, so no client can have an address learned.

pub mod exclusions;
mod keep;
mod learner;
pub mod lookup;
mod memory;
#[cfg(test)]
mod tests;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[cfg(any(test, fuzzing))]
pub(crate) use self::keep::entries as kept_entries;
use self::learner::Learner;
pub use self::{exclusions::Refusal, memory::MAX_LEARNED};
use crate::{
    metrics::Metrics,
    name::DomainName,
    policy::{Learned, Policy, Sighting, Source},
    upstream::Upstream,
};

/// Where the state folder has what was learned.
pub const KEPT: &str = "learned-addresses.json";

/// How long an address is remembered after it vanished, where nobody says otherwise.
pub const REMEMBER: Duration = Duration::from_hours(24);

/// What the configuration says of learning.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// How long an address counts after it was seen last.
    pub remember: Duration,
    /// `[organization] addresses`, never learned.
    pub organization: Vec<IpNet>,
    /// `[firewall] static`, never learned.
    pub fixed: Vec<IpNet>,
    /// `[firewall] exempt`, never learned.
    pub exempt: Vec<IpNet>,
    /// What the rest of the Internet depends on or shares, never learned.
    pub shared: Vec<IpNet>,
}

/// What learning goes by: what to look up, whom to ask, what to leave alone.
#[derive(Debug)]
pub struct Terms {
    /// Its `resolve` names and lists.
    pub policy: Arc<Policy>,
    /// Who is asked.
    pub upstream: Arc<Upstream>,
    /// The rest.
    pub options: Options,
}

/// The set in force, for everybody who judges by it.
pub type Published = Arc<ArcSwap<Learned>>;

/// Learning as others see it. Dropping it changes nothing: the task ends by its token.
#[derive(Debug)]
pub struct Ingress {
    terms: watch::Sender<Arc<Terms>>,
    published: Published,
    progress: watch::Receiver<Progress>,
}

/// How far learning is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Names that were not looked up yet.
    pub pending: usize,
    has_begun: bool,
    failing: Vec<DomainName>,
    turned_away: Vec<TurnedAway>,
}

impl Progress {
    /// Was every name looked up at least once? Nothing is known of it before the first round began.
    pub fn is_complete(&self) -> bool {
        self.has_begun && self.pending == 0
    }
}

/// What was learned and what was not, for people.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The set's number.
    pub number: u64,
    /// Names that were not looked up yet since the start or since they came into force.
    pub pending: usize,
    /// Names whose latest lookup failed; what was known of them stays.
    pub failing: Vec<DomainName>,
    /// Every address in force, in order.
    pub learned: Vec<Entry>,
    /// What the latest answers brought besides.
    pub turned_away: Vec<TurnedAway>,
}

/// What an earlier daemon knew and was still to remember at this time; nothing where that cannot be told.
pub fn remembered(state_dir: &Path, remember: Duration, now: Timestamp) -> Vec<IpAddr> {
    let entries = keep::read(&state_dir.join(KEPT)).unwrap_or_default();
    let is_fresh = |entry: &Entry| now.duration_since(entry.sighting.last).unsigned_abs() < remember;
    entries.into_iter().filter(is_fresh).map(|entry| entry.address).collect()
}

/// An address, where it is from and when it was seen.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Entry {
    /// In the form in which it is compared.
    pub address: IpAddr,
    /// Where it is from.
    #[serde(flatten)]
    pub sighting: Sighting,
}

/// An address that was found and not learned.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TurnedAway {
    /// As it was found.
    pub address: IpAddr,
    /// Who claims it.
    #[serde(flatten)]
    pub source: Source,
    /// Why not.
    pub reason: Refusal,
}

impl Ingress {
    /// Begins to learn. What an earlier daemon left in the file at `path` is published when this returns; the first
    /// lookups begin then. The task to be spawned ends with `stop`, and leaves what is known in the file.
    pub fn start(
        terms: Terms,
        path: PathBuf,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (terms, followed) = watch::channel(Arc::new(terms));
        let (told, progress) = watch::channel(Progress::default());
        let ingress = Self { terms, published: Published::default(), progress };
        let learner = Learner::new(followed, (Arc::clone(&ingress.published), told), path, metrics);
        (ingress, learner.run(stop))
    }

    /// Learns by these terms from now on: what is new is looked up at once, what is gone is forgotten, the rest stays.
    pub fn follow(&self, terms: Terms) {
        self.terms.send_replace(Arc::new(terms));
    }

    /// Where the set in force is found.
    pub fn published(&self) -> &Published {
        &self.published
    }

    /// How far it is. What was published is in force before this changes.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// What is known now.
    pub fn report(&self) -> Report {
        let learned = self.published.load_full();
        let Progress { pending, failing, turned_away, .. } = self.progress.borrow().clone();
        let entry = |(address, sighting): (IpAddr, &Sighting)| Entry { address, sighting: sighting.clone() };
        let mut entries: Vec<_> = learned.iter().map(entry).collect();
        entries.sort_by(|one, other| (one.address, &one.sighting.source).cmp(&(other.address, &other.sighting.source)));
        Report { number: learned.number(), pending, failing, learned: entries, turned_away }
    }
}

impl From<&Report> for Learned {
    fn from(report: &Report) -> Self {
        let entries = report.learned.iter().cloned();
        Self::default().followed_by(entries.map(|entry| (entry.address, entry.sighting)))
    }
}
