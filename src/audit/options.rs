//! `[audit]`: where attempts are written and how long they are kept.

use std::{path::PathBuf, time::Duration};

/// `[audit]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// The searchable store.
    pub store: Store,
    /// Record the use of the own ingress too. True.
    pub own_use: bool,
    /// How much of a client's address is written. All of it.
    pub clients: ClientMask,
    /// How long attempts are kept; whole seconds. 90 days.
    pub keep: Duration,
    /// Size of the store above which the oldest attempts go, in bytes. 1 GiB.
    pub max_size: u64,
    /// Where each attempt is written besides the store.
    pub sinks: Vec<Sink>,
}

/// `store`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Store {
    /// None.
    Off,
    /// Embedded SQLite; a relative path is below the state folder.
    File(PathBuf),
}

/// `clients`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ClientMask {
    /// The whole address.
    #[default]
    Full,
    /// The /24 or /56 it is in.
    Prefix,
    /// A keyed hash: the same client is the same word, and no address can be read from it. The key is kept in the state folder.
    KeyedHash,
}

/// One `[[audit.sinks]]`, all in JSON lines.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// A file, created 0640, appended to, opened again on SIGHUP.
    File(PathBuf),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            store: Store::File("attempts.db".into()),
            own_use: true,
            clients: ClientMask::Full,
            keep: Duration::from_hours(24 * 90),
            max_size: 1 << 30,
            sinks: Vec::new(),
        }
    }
}
