//! The record's front: takes attempts without ever making the caller wait. The work is the worker's.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use jiff::Timestamp;
use thiserror::Error;
use tokio::sync::{broadcast, oneshot};

use super::{
    Attempt, Decision, Health, Likeness, Options, Record, Way,
    seen::{Repeats, Seen},
    worker::{Outputs, Worker},
};
use crate::metrics::{Metrics, this_thread};

/// Attempts that may wait for the worker.
pub const QUEUE: usize = 65_536;

/// Records a follower may be behind.
pub const FOLLOWER_QUEUE: usize = 1024;

/// Where attempts go. Cheap to clone; all clones are one record. The worker ends, and writes what it has, when
/// [`stop`](Self::stop) is called or the last clone goes.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

/// What one listener hears of the record from now on.
#[derive(Debug)]
pub struct Follower {
    heard: Option<broadcast::Receiver<Arc<Record>>>,
    metrics: Arc<Metrics>,
}

/// Why the record cannot be begun, or not with these options.
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
    #[error("record {} was written by a later version: it has schema {found}, this one knows {known}", path.display())]
    LaterSchema {
        /// The store.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The system gives no thread.
    #[error("cannot start the record's worker")]
    Worker {
        /// Why.
        source: io::Error,
    },
}

/// What the front and the worker both see.
#[derive(Debug)]
pub(super) struct Shared {
    pub metrics: Arc<Metrics>,
    commands: Mutex<Vec<Command>>,
    health: Mutex<Health>,
    /// `None` once stopped, which ends every follower.
    followers: Mutex<Option<broadcast::Sender<Arc<Record>>>>,
    own_use: AtomicBool,
    seen: [Shelf; SHELVES],
}

/// What one thread has seen; threads beyond [`SHELVES`] share. The lock is taken only by those whose shelf it is, and
/// nobody waits for it: who finds it taken uses the queue.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shelf(Mutex<Seen>);

/// Threads that know what they have seen without sharing.
const SHELVES: usize = 32;

/// What stands in the queue. Boxed, so that an empty queue takes no room.
#[derive(Debug)]
pub(super) enum Message {
    Attempt(Box<Told>),
    /// There are commands.
    Look,
    #[cfg(test)]
    Panic,
}

/// An attempt, and where its repeats will be counted.
#[derive(Debug)]
pub(super) struct Told {
    pub attempt: Attempt,
    pub repeats: Option<Repeats>,
}

/// What the worker does between attempts. It takes commands before it empties the queue, so that what was recorded
/// before a command was given is written when it is done.
#[derive(Debug)]
pub(super) enum Command {
    Flush(oneshot::Sender<()>),
    Reopen(oneshot::Sender<()>),
    Reconfigure(Box<Outputs>, oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

impl Recorder {
    /// Opens store and sinks and starts the worker. `state_dir` is created if it is not there and something has to be
    /// kept in it. A sink that cannot be opened, and a store that is locked or has no room, are tried again and shown in
    /// [`health`](Self::health).
    ///
    /// # Errors
    /// The state folder cannot be created or written to, the key cannot be used, or the store is a later version's.
    pub fn start(options: &Options, state_dir: &Path, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let outputs = Outputs::new(options, state_dir)?;
        let (queue, messages) = sync_channel(QUEUE);
        let shared = Arc::new(Shared {
            metrics,
            commands: Mutex::default(),
            health: Mutex::default(),
            followers: Mutex::new(Some(broadcast::channel(FOLLOWER_QUEUE).0)),
            own_use: AtomicBool::new(options.own_use),
            seen: Default::default(),
        });
        let worker = Worker::new(messages, Arc::clone(&shared), outputs);
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || worker.run())
            .map_err(|source| StartError::Worker { source })?;
        Ok(Self { queue, shared })
    }

    /// Puts an attempt into the queue, or counts it where the same thread has recorded one like it; own use only if the
    /// options want it. Never blocks: what a full queue turns away is counted.
    pub fn record(&self, attempt: Attempt) {
        self.shared.count(attempt.decision, attempt.way);
        if self.shared.is_wanted(attempt.decision) {
            self.shared.with_seen(|seen| self.put(attempt, seen));
        }
    }

    /// Counts what is like an attempt that this thread has recorded, without allocating. Where that was long ago or never,
    /// nothing is counted and the answer is no: [`record`](Self::record) it. What the options do not want is no news either.
    #[must_use]
    pub fn repeats(&self, likeness: &Likeness<'_>, time: Timestamp) -> bool {
        if !self.shared.is_wanted(likeness.decision) {
            self.shared.count(likeness.decision, likeness.way);
            return true;
        }
        let is_repeat = self.shared.with_seen(|seen| seen.is_some_and(|seen| seen.count(likeness, time).is_ok()));
        if is_repeat {
            self.shared.count(likeness.decision, likeness.way);
            self.shared.metrics.audit_attempts.increment();
        }
        is_repeat
    }

    fn put(&self, attempt: Attempt, seen: Option<&mut Seen>) {
        let mut repeats = None;
        if let Some(seen) = seen {
            let likeness = attempt.likeness();
            match seen.count(&likeness, attempt.time) {
                Ok(()) => return self.shared.metrics.audit_attempts.increment(),
                Err(None) => {}
                Err(Some(grain)) => {
                    let these = repeats.insert(Repeats::new(grain, attempt.time));
                    seen.remember(&likeness, attempt.time, these);
                }
            }
        }
        match self.queue.try_send(Message::Attempt(Box::new(Told { attempt, repeats }))) {
            Ok(()) => self.shared.metrics.audit_attempts.increment(),
            Err(_) => self.shared.metrics.audit_lost_queue.increment(),
        }
    }

    /// Waits until everything that was recorded before is in the sinks and the store, as far as they work.
    pub async fn flush(&self) {
        self.command(Command::Flush).await;
    }

    /// Lets go of file sinks and opens them by their names again, so that a rotated file is complete.
    pub async fn reopen(&self) {
        self.command(Command::Reopen).await;
    }

    /// Goes over to other options; what was recorded before is written under the old ones. Blocks shortly to open files.
    ///
    /// # Errors
    /// As [`start`](Self::start); the old options then stay in force.
    pub async fn reconfigure(&self, options: &Options, state_dir: &Path) -> Result<(), StartError> {
        let outputs = Box::new(Outputs::new(options, state_dir)?);
        self.shared.own_use.store(options.own_use, Ordering::Relaxed);
        self.command(|done| Command::Reconfigure(outputs, done)).await;
        Ok(())
    }

    /// Hears every record from now on: each attempt at once, and its count when its window ends. A listener that is more
    /// than [`FOLLOWER_QUEUE`] behind loses the oldest, counted.
    pub fn subscribe(&self) -> Follower {
        let heard = lock(&self.shared.followers).as_ref().map(broadcast::Sender::subscribe);
        Follower { heard, metrics: Arc::clone(&self.shared.metrics) }
    }

    /// How the record is doing.
    pub fn health(&self) -> Health {
        let metrics = &self.shared.metrics;
        let lost = [
            &metrics.audit_lost_queue,
            &metrics.audit_lost_worker,
            &metrics.audit_lost_store,
            &metrics.audit_lost_sink,
        ];
        Health {
            lost: lost.iter().map(|counter| counter.value()).sum(),
            restarts: metrics.audit_restarts.value(),
            ..lock(&self.shared.health).clone()
        }
    }

    /// Writes everything, the counts of open folds too, and ends the worker and every follower. Later attempts are counted
    /// as lost. Takes as long as a disk does: whoever must end gives it a deadline.
    pub async fn stop(&self) {
        self.command(Command::Stop).await;
    }

    /// Returns when the command is done, or the worker has ended.
    async fn command(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, is_done) = oneshot::channel();
        lock(&self.shared.commands).push(command(done));
        match self.queue.try_send(Message::Look) {
            // A full queue keeps the worker awake, and it looks for commands each time it has emptied it.
            Ok(()) | Err(std::sync::mpsc::TrySendError::Full(_)) => {}
            Err(std::sync::mpsc::TrySendError::Disconnected(_)) => lock(&self.shared.commands).clear(),
        }
        let _ = is_done.await;
    }

    /// Makes the worker panic.
    #[cfg(test)]
    pub(super) fn shake(&self) {
        self.queue.send(Message::Panic).unwrap();
    }
}

impl Follower {
    /// The next record; `None` once the recorder has stopped. May be dropped while it waits without losing one.
    pub async fn next(&mut self) -> Option<Arc<Record>> {
        loop {
            match self.heard.as_mut()?.recv().await {
                Ok(record) => return Some(record),
                Err(broadcast::error::RecvError::Lagged(missed)) => self.metrics.audit_lost_follower.add(missed),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Shared {
    fn is_wanted(&self, decision: Decision) -> bool {
        decision != Decision::AllowedOwn || self.own_use.load(Ordering::Relaxed)
    }

    /// Counts a decision, whether or not it is wanted on record.
    fn count(&self, decision: Decision, way: Way) {
        let metrics = &self.metrics;
        let decided = match decision {
            Decision::Blocked => &metrics.decisions_blocked,
            Decision::Observed => &metrics.decisions_observed,
            Decision::AllowedOwn => &metrics.decisions_allowed_own,
            Decision::AllowedException => &metrics.decisions_allowed_exception,
        };
        decided.increment();
        let ways = match way {
            Way::Dns => return,
            Way::DnsRedirected => [&metrics.bypass_dns_blocked, &metrics.bypass_dns_observed],
            Way::Dot => [&metrics.bypass_dot_blocked, &metrics.bypass_dot_observed],
            Way::Doh => [&metrics.bypass_doh_blocked, &metrics.bypass_doh_observed],
            Way::Address => [&metrics.bypass_address_blocked, &metrics.bypass_address_observed],
            Way::TlsGate => [&metrics.bypass_tls_gate_blocked, &metrics.bypass_tls_gate_observed],
        };
        match (decision, ways) {
            (Decision::Blocked, [counter, _]) | (Decision::Observed, [_, counter]) => counter.increment(),
            (Decision::AllowedOwn | Decision::AllowedException, _) => {}
        }
    }

    /// What this thread has seen, if no other is just using it.
    fn with_seen<T>(&self, act: impl FnOnce(Option<&mut Seen>) -> T) -> T {
        let shelf = self.seen.get(this_thread() % SHELVES);
        match shelf.map(|Shelf(seen)| seen.try_lock()) {
            Some(Ok(mut seen)) => act(Some(&mut seen)),
            Some(Err(TryLockError::Poisoned(seen))) => act(Some(&mut seen.into_inner())),
            Some(Err(TryLockError::WouldBlock)) | None => act(None),
        }
    }

    /// The commands that were given since the last call.
    pub(super) fn commands(&self) -> Vec<Command> {
        std::mem::take(&mut lock(&self.commands))
    }

    /// Tells every follower of a record.
    pub(super) fn tell(&self, record: &Record) {
        if let Some(followers) = lock(&self.followers).as_ref().filter(|followers| followers.receiver_count() > 0) {
            // Fails only if the last of them left meanwhile.
            let _ = followers.send(Arc::new(record.clone()));
        }
    }

    /// Shows how store and sinks are doing.
    pub(super) fn show(&self, health: Health) {
        *lock(&self.health) = health;
    }

    /// Ends every follower, and every command that came too late.
    pub(super) fn end(&self) {
        *lock(&self.followers) = None;
        lock(&self.commands).clear();
    }
}

/// What these locks guard is whole at any time, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::{audit::attempt::tests::attempt, metrics::Counter};

    /// A recorder whose worker is the test.
    fn recorder_with_room_for(attempts: usize) -> (Recorder, Receiver<Message>) {
        let (queue, messages) = sync_channel(attempts);
        let shared = Arc::new(Shared {
            metrics: Arc::default(),
            commands: Mutex::default(),
            health: Mutex::default(),
            followers: Mutex::default(),
            own_use: AtomicBool::new(true),
            seen: Default::default(),
        });
        (Recorder { queue, shared }, messages)
    }

    #[test]
    fn what_a_full_queue_turns_away_is_counted_and_nobody_waits() {
        let (recorder, messages) = recorder_with_room_for(2);
        for number in 0..5 {
            recorder.record(attempt("192.0.2.7:1", &format!("n{number}.example")));
        }
        let metrics = &recorder.shared.metrics;
        assert_eq!((metrics.audit_attempts.value(), metrics.audit_lost_queue.value()), (2, 3));
        assert_eq!(recorder.health().lost, 3);
        let lost = attempt("192.0.2.7:1", "n4.example");
        assert!(!recorder.repeats(&lost.likeness(), lost.time), "what was lost is no repeat the next time");
        assert_eq!(messages.try_iter().count(), 2);
    }

    #[test]
    fn what_repeats_takes_no_place_in_the_queue() {
        let (recorder, messages) = recorder_with_room_for(1);
        let attempt = attempt("192.0.2.7:1", "a.example");
        for _ in 0..5 {
            recorder.record(attempt.clone());
        }
        assert!(recorder.repeats(&attempt.likeness(), attempt.time));
        assert_eq!((recorder.shared.metrics.audit_attempts.value(), recorder.health().lost), (6, 0));
        assert_eq!(messages.try_iter().count(), 1);
    }

    #[test]
    fn every_decision_is_counted_on_record_or_not_and_what_went_round_us_by_its_way() {
        let (recorder, _messages) = recorder_with_room_for(9);
        recorder.shared.own_use.store(false, Ordering::Relaxed);
        let dns = attempt("192.0.2.7:1", "a.example");
        let own = Attempt { decision: Decision::AllowedOwn, way: Way::TlsGate, ..dns.clone() };
        let denied = Attempt { decision: Decision::Observed, way: Way::Address, ..dns.clone() };
        assert!(recorder.repeats(&own.likeness(), own.time));
        for attempt in [&dns, &own, &denied] {
            recorder.record(attempt.clone());
        }
        assert!(recorder.repeats(&dns.likeness(), dns.time));
        let metrics = &recorder.shared.metrics;
        let decisions = [
            &metrics.decisions_blocked,
            &metrics.decisions_observed,
            &metrics.decisions_allowed_own,
            &metrics.decisions_allowed_exception,
        ];
        assert_eq!(decisions.map(Counter::value), [2, 1, 2, 0]);
        let ways =
            [&metrics.bypass_address_blocked, &metrics.bypass_address_observed, &metrics.bypass_tls_gate_blocked];
        assert_eq!(ways.map(Counter::value), [0, 1, 0]);
        assert_eq!(metrics.audit_attempts.value(), 3);
    }

    #[tokio::test]
    async fn a_slow_follower_loses_the_oldest_counted_and_holds_nobody_up() {
        let options = Options { store: super::super::Store::Off, ..Options::default() };
        let recorder = Recorder::start(&options, Path::new("/nonexistent"), Arc::default()).unwrap();
        let mut follower = recorder.subscribe();
        let many = FOLLOWER_QUEUE + 100;
        for number in 0..many {
            recorder.record(attempt("192.0.2.7:1", &format!("n{number}.example")));
        }
        recorder.stop().await;
        let mut heard = 0;
        while follower.next().await.is_some() {
            heard += 1;
        }
        let lost = usize::try_from(recorder.shared.metrics.audit_lost_follower.value()).unwrap();
        assert_eq!((heard, heard + lost), (FOLLOWER_QUEUE, many));
        assert_eq!(recorder.health().lost, 0, "nothing is missing from the record itself");
    }
}
