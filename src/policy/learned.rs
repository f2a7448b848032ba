//! Addresses at which ingresses were found. Facts only: which rule an address stands for is the policy's to say when
//! it is judged, so a set outlives a reload.

use std::{collections::HashMap, fmt, net::IpAddr};

use foldhash::fast::RandomState;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{name::DomainName, problem::printable};

/// What vouches for an address.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The address of this name, which a pack lists under `resolve`.
    Name(DomainName),
    /// A line of this file, which a pack lists under `address-lists`.
    List(Box<str>),
}

/// When a source had an address.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sighting {
    /// Whose it is.
    #[serde(flatten)]
    pub source: Source,
    /// The first time.
    pub first: Timestamp,
    /// The latest time.
    pub last: Timestamp,
}

/// A set of addresses. It never changes: another takes its place.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    number: u64,
    by_address: HashMap<IpAddr, Vec<Sighting>, RandomState>,
}

impl Learned {
    /// The next set, in which these are known. Addresses are in the form in which they are compared
    /// (`Policy::readings`), and the sources of each always come in the same order.
    pub fn followed_by(&self, sightings: impl IntoIterator<Item = (IpAddr, Sighting)>) -> Self {
        let mut next = Self { number: self.number, ..Self::default() };
        for (address, sighting) in sightings {
            next.by_address.entry(address).or_default().push(sighting);
        }
        next.number += u64::from(!next.agrees_with(self));
        next
    }

    /// Grows whenever an address or a source comes or goes; 0 for the empty set at the beginning.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How many addresses.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// None yet?
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Every address with each of its sources, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Sighting)> {
        self.by_address.iter().flat_map(|(address, sightings)| sightings.iter().map(|sighting| (*address, sighting)))
    }

    /// Does the other hold the same addresses from the same sources, whenever they were seen?
    fn agrees_with(&self, other: &Self) -> bool {
        let sources = |set: &'_ Self, address| -> Vec<Source> {
            set.at(address).iter().map(|sighting| sighting.source.clone()).collect()
        };
        self.len() == other.len()
            && self.by_address.keys().all(|&address| sources(self, address) == sources(other, address))
    }

    /// Who vouches for an address.
    pub(super) fn at(&self, address: IpAddr) -> &[Sighting] {
        self.by_address.get(&address).map_or(&[], Vec::as_slice)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::List(path) => f.write_str(&printable(path)),
        }
    }
}
