//! The record's worker: a thread of its own that folds attempts and writes them.

use std::{
    collections::VecDeque,
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::unistd::{AccessFlags, access};
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::{
    Health, Id, Options, Record, StartError, Store,
    fold::{Folds, MAX_OPEN},
    mask::{KEY_FILE, Mask},
    recorder::{Command, Message, QUEUE, Shared, Told},
    sink::Outlet,
    store::{Database, SCHEMA, StoreError},
};

/// How long the worker lets attempts gather after the first, so that a burst costs few writes.
const GATHER: Duration = Duration::from_millis(25);

/// How long it sleeps while something is open or waiting, and while nothing is.
const TICK: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_secs(30);

/// How often counts of open folds go to the store, and how long retention may take between.
const SAVE_EVERY: Duration = Duration::from_secs(1);
const TRIM_FOR: Duration = Duration::from_millis(50);

/// Mode of a state folder that we create: it holds who tried what.
const FOLDER_MODE: u32 = 0o750;

/// How often losses are summed up in a log line.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Everything that depends on the options.
#[derive(Debug)]
pub(super) struct Outputs {
    mask: Mask,
    outlets: Vec<Outlet>,
    database: Option<Database>,
    keep: Duration,
    max_size: u64,
}

/// The worker's whole state. One thread owns it.
#[derive(Debug)]
pub(super) struct Worker {
    messages: Receiver<Message>,
    shared: Arc<Shared>,
    folds: Folds,
    outputs: Outputs,
    saved_at: Instant,
    /// When losses were last logged, and how many there were.
    complained: Option<(Instant, [u64; 4])>,
}

impl Outputs {
    /// Opens what the options name. Sinks are opened by the first write.
    pub(super) fn new(options: &Options, state_dir: &Path) -> Result<Self, StartError> {
        let path = match &options.store {
            Store::Off => None,
            Store::File(path) => Some(state_dir.join(path)),
        };
        let folder_error = |source| StartError::Folder { folder: state_dir.into(), source };
        if path.is_some() || options.clients == super::ClientMask::KeyedHash {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(state_dir).map_err(folder_error)?;
        }
        let mask = Mask::new(options.clients, state_dir)
            .map_err(|source| StartError::Key { path: state_dir.join(KEY_FILE), source })?;
        let database = path.map(open_store).transpose()?;
        let outlets = options.sinks.iter().map(Outlet::new).collect();
        Ok(Self { mask, outlets, database, keep: options.keep, max_size: options.max_size })
    }
}

/// Opens a store; what may get better by itself is left to the worker.
fn open_store(path: PathBuf) -> Result<Database, StartError> {
    // A store that is there opens in a folder that is not writable too, and then cannot have its log.
    let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
    if let Err(error) = access(&folder, AccessFlags::W_OK | AccessFlags::X_OK) {
        return Err(StartError::Folder { folder, source: error.into() });
    }
    let mut database = Database::new(path);
    match database.open() {
        Err(StoreError::Create { source, .. }) if source.kind() != io::ErrorKind::StorageFull => {
            Err(StartError::Folder { folder, source })
        }
        Err(StoreError::LaterSchema { found }) => {
            Err(StartError::LaterSchema { path: database.path().into(), found, known: SCHEMA })
        }
        // The first write says what the matter is.
        Ok(()) | Err(StoreError::Create { .. } | StoreError::Sqlite(_)) => Ok(database),
    }
}

impl Worker {
    pub(super) fn new(messages: Receiver<Message>, shared: Arc<Shared>, outputs: Outputs) -> Self {
        let last_id = outputs.database.as_ref().and_then(Database::last_id).unwrap_or(Id(0));
        let folds = Folds::new(last_id, MAX_OPEN);
        let mut worker = Self { messages, shared, folds, outputs, saved_at: Instant::now(), complained: None };
        // Opens the sinks, so that what is wrong with them is known from the start.
        worker.write(false);
        worker
    }

    /// Works until it is stopped or nobody can send any more. A panic costs one attempt and the counts of the open folds
    /// since they were last saved.
    pub(super) fn run(mut self) {
        let stopped = loop {
            match catch_unwind(AssertUnwindSafe(|| self.work())) {
                Ok(stopped) => break stopped,
                Err(_) => self.restart(),
            }
        };
        // Files and queue close before the answer: the store then needs no log, and what comes later is counted as lost.
        let Self { messages, shared, outputs, .. } = self;
        drop(outputs);
        let late = messages.try_iter().map(|message| match message {
            Message::Attempt(told) => 1 + told.repeats.map_or(0, |mut repeats| repeats.close().0),
            Message::Look => 0,
            #[cfg(test)]
            Message::Panic => 0,
        });
        shared.metrics.audit_lost_worker.add(late.sum());
        drop(messages);
        shared.end();
        if let Some(stopped) = stopped {
            let _ = stopped.send(());
        }
    }

    fn restart(&mut self) {
        error!("the record's worker panicked and starts again");
        self.shared.metrics.audit_restarts.increment();
        self.shared.metrics.audit_lost_worker.increment();
        self.folds = Folds::new(self.folds.last_id(), MAX_OPEN);
        self.outputs.database.iter_mut().for_each(Database::close);
        self.outputs.outlets.iter_mut().for_each(Outlet::reopen);
        // Should it go on panicking, it is no busy loop.
        thread::sleep(TICK);
    }

    /// Gives whom to tell when it was told to stop.
    fn work(&mut self) -> Option<oneshot::Sender<()>> {
        loop {
            match self.messages.recv_timeout(self.patience()) {
                Ok(Message::Attempt(told)) => {
                    self.take(*told);
                    thread::sleep(GATHER);
                }
                Ok(Message::Look) | Err(RecvTimeoutError::Timeout) => {}
                #[cfg(test)]
                Ok(Message::Panic) => panic!("as a test asked"),
                Err(RecvTimeoutError::Disconnected) => {
                    self.finish();
                    return None;
                }
            }
            let commands = self.shared.commands();
            self.empty_queue();
            let is_asked = !commands.is_empty();
            self.write(is_asked);
            if let Some(stopped) = commands.into_iter().find_map(|command| self.obey(command)) {
                return Some(stopped);
            }
        }
    }

    fn patience(&self) -> Duration {
        let is_busy = self.outputs.outlets.iter().any(Outlet::is_busy)
            || self.outputs.database.as_ref().is_some_and(Database::is_busy);
        if is_busy || !self.folds.is_empty() { TICK } else { IDLE }
    }

    /// Takes what stands in the queue now, and no more than that, so that writing has its turn.
    fn empty_queue(&mut self) {
        for _ in 0..QUEUE {
            match self.messages.try_recv() {
                Ok(Message::Attempt(told)) => self.take(*told),
                Ok(Message::Look) => {}
                #[cfg(test)]
                Ok(Message::Panic) => panic!("as a test asked"),
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, told: Told) {
        let taken = self.folds.take(told.attempt, told.repeats, &self.outputs.mask);
        if taken.is_coarse {
            self.shared.metrics.audit_coarse.increment();
        }
        self.put(taken.closed);
        self.put(taken.opened);
    }

    /// Hands records to sinks, followers and store.
    fn put(&mut self, records: impl IntoIterator<Item = Record>) {
        let (metrics, now) = (&self.shared.metrics, Timestamp::now());
        for record in records {
            if !self.outputs.outlets.is_empty() {
                let line: Arc<str> = record.json_line().into();
                for outlet in &mut self.outputs.outlets {
                    outlet.push(Arc::clone(&line), metrics, now);
                }
            }
            self.shared.tell(&record);
            if let Some(database) = &mut self.outputs.database {
                database.put(record, metrics, now);
            }
        }
    }

    /// Closes what is past its window and writes everything that waits; counts of open folds too if it is time or asked for.
    fn write(&mut self, is_asked: bool) {
        let now = Timestamp::now();
        let closed = self.folds.expire(now);
        self.put(closed);
        let is_time = self.saved_at.elapsed() >= SAVE_EVERY;
        let metrics = &self.shared.metrics;
        if is_time || is_asked {
            let changed = self.folds.changed();
            if let Some(database) = &mut self.outputs.database {
                changed.into_iter().for_each(|record| database.put(record, metrics, now));
            }
        }
        for outlet in &mut self.outputs.outlets {
            outlet.write(metrics, now);
        }
        if let Some(database) = &mut self.outputs.database {
            database.write(metrics, now);
        }
        if is_time {
            self.saved_at = Instant::now();
            self.trim(now);
            self.complain();
        }
        self.show();
    }

    fn trim(&mut self, now: Timestamp) {
        let Some(database) = &mut self.outputs.database else { return };
        let oldest = now.checked_sub(self.outputs.keep).unwrap_or(Timestamp::MIN);
        let started = Instant::now();
        while database.trim(oldest, self.outputs.max_size, &self.shared.metrics, now) && started.elapsed() < TRIM_FOR {}
    }

    /// Gives whom to tell when it was told to stop.
    fn obey(&mut self, command: Command) -> Option<oneshot::Sender<()>> {
        let done = match command {
            Command::Flush(done) => done,
            Command::Reopen(done) => {
                // What waited belonged into the old file and is there.
                self.outputs.outlets.iter_mut().for_each(Outlet::reopen);
                self.write(true);
                done
            }
            Command::Reconfigure(outputs, done) => {
                self.replace(*outputs);
                done
            }
            Command::Stop(done) => {
                self.finish();
                return Some(done);
            }
        };
        // Whoever asked may have left.
        let _ = done.send(());
        None
    }

    /// Goes over to other options. Open folds are closed under the old ones: their records show clients as those say.
    fn replace(&mut self, mut outputs: Outputs) {
        let closed = self.folds.close_all();
        self.put(closed);
        self.write(true);
        let is_same_store = match (&self.outputs.database, &outputs.database) {
            (Some(old), Some(new)) => old.path() == new.path(),
            (Some(_) | None, _) => false,
        };
        if is_same_store {
            outputs.database = self.outputs.database.take();
        }
        // A sink that stays keeps what waits for it.
        let mut old: VecDeque<_> = std::mem::take(&mut self.outputs.outlets).into();
        for outlet in &mut outputs.outlets {
            if let Some(index) = old.iter().position(|old| old.sink() == outlet.sink())
                && let Some(same) = old.remove(index)
            {
                *outlet = same;
            }
        }
        for outlet in &old {
            outlet.give_up(&self.shared.metrics);
        }
        self.outputs.database.iter_mut().for_each(|database| database.give_up(&self.shared.metrics));
        self.outputs = outputs;
        if let Some(id) = self.outputs.database.as_ref().and_then(Database::last_id) {
            self.folds.go_on_above(id);
        }
        self.write(true);
    }

    /// Takes and writes all there is.
    fn finish(&mut self) {
        self.empty_queue();
        let closed = self.folds.close_all();
        self.put(closed);
        self.write(true);
        let metrics = &self.shared.metrics;
        self.outputs.outlets.iter().for_each(|outlet| outlet.give_up(metrics));
        self.outputs.database.iter_mut().for_each(|database| database.give_up(metrics));
        self.complain();
    }

    fn show(&self) {
        self.shared.show(Health {
            store: self.outputs.database.as_ref().map(|database| database.condition().clone()),
            sinks: self.outputs.outlets.iter().map(Outlet::health).collect(),
            ..Health::default()
        });
    }

    /// Says what was lost since it was last said, once a minute at most.
    fn complain(&mut self) {
        let metrics = &self.shared.metrics;
        let lost = [
            metrics.audit_lost_queue.value(),
            metrics.audit_lost_worker.value(),
            metrics.audit_lost_store.value(),
            metrics.audit_lost_sink.value(),
        ];
        let (at, known) = self.complained.map_or((None, [0; 4]), |(at, known)| (Some(at), known));
        if lost == known || at.is_some_and(|at| at.elapsed() < COMPLAIN_EVERY) {
            return;
        }
        let [queue, worker, store, sinks] = lost;
        warn!(queue, worker, store, sinks, "the record has lost attempts; the numbers are since the start");
        self.complained = Some((Instant::now(), lost));
    }
}
