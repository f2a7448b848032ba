//! Answers kept in wire form, bounded in bytes. (skeleton)

mod options;

use std::{sync::Arc, time::Instant};

pub use options::Options;

use crate::{
    metrics::Metrics,
    name::NameRef,
    wire::{Rcode, answer::Answer},
};

/// What an answer is kept under; the class is always IN.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct KeyRef<'a> {
    /// The name asked for.
    pub name: NameRef<'a>,
    /// The type asked for, as its number.
    pub qtype: u16,
    /// DO of the query to the upstream.
    pub dnssec_ok: bool,
    /// CD of the query to the upstream.
    pub checking_disabled: bool,
}

/// A kept answer.
#[derive(Clone, Debug)]
pub struct Found {
    /// It.
    pub answer: Arc<Answer>,
    /// How long it has been kept, in whole seconds.
    pub age: u32,
    /// Within its time; otherwise only for when no upstream answers.
    pub fresh: bool,
}

/// That no upstream answered, remembered for a moment (RFC 9520).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failure {
    /// What clients are told.
    pub rcode: Rcode,
    /// The extended error with it.
    pub error: Option<u16>,
}

/// The cache; shared behind an `Arc`.
#[derive(Debug)]
pub struct Cache {}

impl Cache {
    /// An empty one.
    pub fn new(options: &Options, metrics: Arc<Metrics>) -> Self {
        todo!()
    }

    /// The longest TTL to pass on, in seconds: for `wire::reply::Ageing`.
    pub fn max_ttl(&self) -> u32 {
        todo!()
    }

    /// Looks for an answer, without allocating.
    pub fn find(&self, key: &KeyRef<'_>, now: Instant) -> Option<Found> {
        todo!()
    }

    /// Keeps an answer, if it may be kept.
    pub fn insert(&self, key: &KeyRef<'_>, answer: Arc<Answer>, now: Instant) {
        todo!()
    }

    /// Did the same question just fail?
    pub fn find_failure(&self, key: &KeyRef<'_>, now: Instant) -> Option<Failure> {
        todo!()
    }

    /// Remembers that it failed.
    pub fn insert_failure(&self, key: &KeyRef<'_>, failure: Failure, now: Instant) {
        todo!()
    }

    /// Bytes kept, overhead included.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// How many answers are kept.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Is none kept?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
