//! What is known of each source: its addresses, when they were seen, what was turned away. Pure: the time is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use jiff::Timestamp;

use super::{Entry, Refusal, TurnedAway, exclusions::Exclusions};
use crate::policy::{Learned, Sighting, Source, address_list::MAX_LISTED};

/// Most addresses of a name.
const MAX_OF_NAME: usize = 64;

/// Most addresses of all sources together.
pub const MAX_LEARNED: usize = 16_384;

/// Everything that was learned.
#[derive(Debug, Default)]
pub(super) struct Memory(BTreeMap<Source, Known>);

/// What is known of one source.
#[derive(Debug, Default)]
struct Known {
    addresses: BTreeMap<IpAddr, Seen>,
    /// What its latest answers brought besides, as much as it may have.
    turned_away: BTreeMap<IpAddr, Refusal>,
}

/// When an address was seen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Timestamp,
    last: Timestamp,
    /// The latest answers have it. One that vanished is remembered for a while.
    current: bool,
}

/// What a source says at one moment.
pub(super) struct Said<'a> {
    pub(super) source: &'a Source,
    pub(super) addresses: &'a [IpAddr],
    /// It is all that the source has to say: addresses that are not in it have vanished.
    pub(super) complete: bool,
}

impl Memory {
    /// Forgets every source but these, and has room for new ones.
    pub(super) fn follow(&mut self, sources: BTreeSet<Source>) {
        self.0.retain(|source, _| sources.contains(source));
        for source in sources {
            self.0.entry(source).or_default();
        }
    }

    /// Takes in what an earlier daemon knew. It is not current until an answer has it again.
    pub(super) fn recall(&mut self, entries: Vec<Entry>, exclusions: &Exclusions<'_>, now: Timestamp) {
        for Entry { address, sighting } in entries {
            let is_full = self.count() >= MAX_LEARNED;
            let Some(known) = self.0.get_mut(&sighting.source) else { continue };
            let last = sighting.last.min(now);
            let seen = Seen { first: sighting.first.min(last), last, current: false };
            if !is_full && known.addresses.len() < MAX_OF_NAME && exclusions.admit(address) == Ok(address) {
                known.addresses.insert(address, seen);
            }
        }
    }

    /// Takes in what a source says; gives back why addresses were turned away, one for each.
    pub(super) fn note(&mut self, said: &Said<'_>, exclusions: &Exclusions<'_>, now: Timestamp) -> Vec<Refusal> {
        let mut room = MAX_LEARNED.saturating_sub(self.count());
        let most = most(said.source);
        let Some(known) = self.0.get_mut(said.source) else { return Vec::new() };
        if said.complete {
            known.addresses.values_mut().for_each(|seen| seen.current = false);
            known.turned_away.clear();
        }
        let mut refusals = Vec::new();
        for &address in said.addresses {
            let outcome = exclusions.admit(address).and_then(|address| known.see(address, now, most, &mut room));
            if let Err((address, refusal)) = outcome.map_err(|refusal| (address, refusal)) {
                refusals.push(refusal);
                if known.turned_away.len() < most {
                    known.turned_away.insert(address, refusal);
                }
            }
        }
        refusals
    }

    /// Forgets what must not be known any more: an interface, an upstream, a configuration changed.
    pub(super) fn exclude(&mut self, exclusions: &Exclusions<'_>) {
        for known in self.0.values_mut() {
            known.addresses.retain(|&address, _| exclusions.admit(address) == Ok(address));
        }
    }

    /// Forgets what vanished too long ago; an address that left a list is gone at once.
    pub(super) fn forget(&mut self, remember: Duration, now: Timestamp) {
        for (source, known) in &mut self.0 {
            let is_name = matches!(source, Source::Name(_));
            known.addresses.retain(|_, seen| seen.current || is_name && age(seen.last, now) < remember);
        }
    }

    /// How long until there is something to forget.
    pub(super) fn until_next_forgotten(&self, remember: Duration, now: Timestamp) -> Option<Duration> {
        let vanished = self.0.values().flat_map(|known| known.addresses.values()).filter(|seen| !seen.current);
        vanished.map(|seen| remember.saturating_sub(age(seen.last, now))).min()
    }

    /// The set as it is now, after the one before.
    pub(super) fn learned(&self, before: &Learned) -> Learned {
        before.followed_by(self.entries().map(|entry| (entry.address, entry.sighting)))
    }

    /// What names brought, to be kept over a restart; lists keep themselves.
    pub(super) fn to_keep(&self) -> Vec<Entry> {
        self.entries().filter(|entry| matches!(entry.sighting.source, Source::Name(_))).collect()
    }

    /// What the latest answers brought and is not known.
    pub(super) fn turned_away(&self) -> Vec<TurnedAway> {
        let of_source = |(source, known): (&Source, &Known)| {
            let source = source.clone();
            let all = known.turned_away.clone().into_iter();
            all.map(move |(address, reason)| TurnedAway { address, source: source.clone(), reason })
        };
        self.0.iter().flat_map(of_source).collect()
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.0.iter().flat_map(|(source, known)| {
            known.addresses.iter().map(|(&address, &Seen { first, last, .. })| Entry {
                address,
                sighting: Sighting { source: source.clone(), first, last },
            })
        })
    }

    fn count(&self) -> usize {
        self.0.values().map(|known| known.addresses.len()).sum()
    }
}

impl Known {
    /// An address is in an answer. Where there is no room, the one that vanished longest ago makes some.
    fn see(&mut self, address: IpAddr, now: Timestamp, most: usize, room: &mut usize) -> Result<(), Refusal> {
        if let Some(seen) = self.addresses.get_mut(&address) {
            (seen.last, seen.current) = (now, true);
            return Ok(());
        }
        if self.addresses.len() >= most || *room == 0 {
            let vanished = self.addresses.iter().filter(|(_, seen)| !seen.current);
            let oldest = vanished.min_by_key(|(_, seen)| seen.last).map(|(address, _)| *address);
            self.addresses.remove(&oldest.ok_or(Refusal::Crowded)?);
        } else {
            *room -= 1;
        }
        self.addresses.insert(address, Seen { first: now, last: now, current: true });
        Ok(())
    }
}

fn most(source: &Source) -> usize {
    match source {
        Source::Name(_) => MAX_OF_NAME,
        Source::List(_) => MAX_LISTED,
    }
}

/// Nothing where the clock was set back.
fn age(seen: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(seen)).unwrap_or_default()
}
