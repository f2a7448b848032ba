//! The record's front: takes attempts without ever making the caller wait.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

use super::{Attempt, Health, Options, Record};
use crate::metrics::Metrics;

/// Where attempts go. Cheap to clone; all clones are one record.
#[derive(Clone, Debug)]
pub struct Recorder {}

/// What one listener hears of the record from now on.
#[derive(Debug)]
pub struct Follower {}

/// Why the record cannot be begun.
#[derive(Debug, Error)]
pub enum StartError {
    /// The folder cannot be made or written to.
    #[error("cannot write to state folder {}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key that clients are hashed with cannot be read or made.
    #[error("cannot use key file {} for [audit] clients = \"keyed-hash\"", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store was written by a later version, whose rows this one would spoil.
    #[error("store {} has schema {found}, later than {known}, the latest this version knows", path.display())]
    LaterSchema {
        /// The store.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
}

impl Recorder {
    /// Opens store and sinks and starts the worker. `state_dir` is created if it is not there.
    ///
    /// # Errors
    /// The state folder or the store in it cannot be created or written.
    pub fn start(_options: &Options, _state_dir: &Path, _metrics: Arc<Metrics>) -> Result<Self, StartError> {
        Ok(Self {})
    }

    /// Puts an attempt into the queue. Never blocks; what a full queue turns away is counted.
    pub fn record(&self, _attempt: Attempt) {}

    /// Waits until everything that was recorded before is in the sinks and the store, as far as they work.
    pub async fn flush(&self) {}

    /// Opens file sinks again, so that a rotated file is let go of.
    pub async fn reopen(&self) {}

    /// Goes over to other options; what is open is written under the old ones first.
    ///
    /// # Errors
    /// As [`start`](Self::start); the old options then stay in force.
    pub async fn reconfigure(&self, _options: &Options) -> Result<(), StartError> {
        Ok(())
    }

    /// Hears every record from now on. A listener that is more than [`FOLLOWER_QUEUE`] behind loses the oldest, counted.
    pub fn subscribe(&self) -> Follower {
        Follower {}
    }

    /// How the record is doing.
    pub fn health(&self) -> Health {
        Health::default()
    }

    /// Writes everything, closes the open folds, and ends the worker and every follower. Later attempts are counted as lost.
    pub async fn stop(&self) {}
}

/// Records a follower may be behind.
pub const FOLLOWER_QUEUE: usize = 1024;

impl Follower {
    /// The next record; `None` once the recorder has stopped. May be dropped while it waits without losing one.
    pub async fn next(&mut self) -> Option<Arc<Record>> {
        None
    }
}
