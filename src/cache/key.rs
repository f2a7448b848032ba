//! What answers are kept under: owned in the table, borrowed when it is searched, so that a search does not allocate.

use std::hash::{Hash, Hasher};

use quick_cache::Equivalent;

use crate::name::{DomainName, NameRef};

/// What an answer is kept under; the class is always IN.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct KeyRef<'a> {
    /// The name asked for.
    pub name: NameRef<'a>,
    /// The type asked for, as its number.
    pub qtype: u16,
    /// DO of the query to the upstream.
    pub dnssec_ok: bool,
    /// CD of the query to the upstream: without it the upstream would have said SERVFAIL to a forged answer.
    pub checking_disabled: bool,
}

/// The same, owned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Key {
    name: DomainName,
    qtype: u16,
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl From<&KeyRef<'_>> for Key {
    fn from(key: &KeyRef<'_>) -> Self {
        let KeyRef { name, qtype, dnssec_ok, checking_disabled } = *key;
        Self { name: name.to_owned(), qtype, dnssec_ok, checking_disabled }
    }
}

impl Key {
    /// Bytes of it outside the table.
    pub(super) fn memory(&self) -> usize {
        self.name.as_wire().len()
    }

    fn borrowed(&self) -> KeyRef<'_> {
        let Self { name, qtype, dnssec_ok, checking_disabled } = self;
        KeyRef { name: name.as_name(), qtype: *qtype, dnssec_ok: *dnssec_ok, checking_disabled: *checking_disabled }
    }
}

// Owned and borrowed keys must hash alike, so one goes through the other.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrowed().hash(state);
    }
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self == key.borrowed()
    }
}
