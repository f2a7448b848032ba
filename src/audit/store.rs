//! The searchable store: one SQLite file, written by the record's worker alone.
//!
//! It is in WAL mode, so that searches never wait for it nor it for them, with `synchronous = NORMAL`: the file survives
//! everything, and a loss of power costs at most what was not yet synced. While it cannot be written, rows are kept in
//! memory up to [`MAX_PENDING`] and tried again every [`RETRY`]. A file that is no database any more is moved aside,
//! said, and begun anew.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};
use thiserror::Error;
use tracing::error;

use super::{
    Client, Condition, Id, Matched, Record, Transport,
    health::Watched,
    key::{client_range, name_key},
    sink::FILE_MODE,
};
use crate::metrics::Metrics;

/// How soon a store that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Rows that may wait for a store that does not take them.
const MAX_PENDING: usize = 16_384;

/// Rows that wait for more to come in a burst.
const MANY_PENDING: usize = 2048;

/// How long a write waits for somebody who holds the file locked.
const BUSY: Duration = Duration::from_millis(250);

/// Rows that one step of retention removes, and pages it gives back; a few milliseconds.
const TRIM_ROWS: u32 = 500;
const TRIM_PAGES: u32 = 256;

/// How often a broken file is moved aside at most; a broken disk would be filled with them.
const SET_ASIDE_EVERY: Duration = Duration::from_secs(3600);

/// Each brings the schema from its index to the next number, which `user_version` holds.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE attempts (
        id               INTEGER PRIMARY KEY,
        first            INTEGER NOT NULL,   -- milliseconds since 1970, UTC
        last             INTEGER NOT NULL,
        count            INTEGER NOT NULL,
        decision         TEXT NOT NULL,
        way              TEXT NOT NULL,
        client           TEXT NOT NULL,      -- address, network or hash
        client_low       BLOB,               -- first and last address as 16 bytes, v4 mapped; none of a hash
        client_high      BLOB,
        port             INTEGER,
        via              TEXT,
        client_group     TEXT,
        transport        TEXT NOT NULL,
        name             TEXT,
        name_key         TEXT,               -- labels from right to left, each closed by a dot
        type             TEXT NOT NULL,
        class            TEXT NOT NULL,
        rule             TEXT NOT NULL,
        evidence_alias   TEXT,
        evidence_address TEXT,
        action           TEXT,
        rcode            TEXT
    ) STRICT;
    CREATE INDEX attempts_by_time ON attempts (last);
    CREATE INDEX attempts_by_client ON attempts (client_low);
    CREATE INDEX attempts_by_name ON attempts (name_key);
    CREATE INDEX attempts_by_rule ON attempts (rule);
", "
    -- What is tried without a question has no type and no class, and perhaps no transport. A constraint that is not in the
    -- rows is taken away in the schema's own text (sqlite.org/lang_altertable.html, section 7): to copy a full store
    -- would keep a resolver from starting for half a minute.
    PRAGMA writable_schema = ON;
    UPDATE sqlite_schema SET sql =
        replace(replace(replace(sql,
            'transport        TEXT NOT NULL', 'transport        TEXT'),
            'type             TEXT NOT NULL', 'type             TEXT'),
            'class            TEXT NOT NULL', 'class            TEXT')
        WHERE type = 'table' AND name = 'attempts';
    PRAGMA writable_schema = RESET;
    ALTER TABLE attempts ADD COLUMN destination TEXT;      -- address and port
    ALTER TABLE attempts ADD COLUMN protocol TEXT;         -- of packets that no transport says
    ALTER TABLE attempts ADD COLUMN process_pid INTEGER;
    ALTER TABLE attempts ADD COLUMN process_exe TEXT;
    ALTER TABLE attempts ADD COLUMN process_uid INTEGER;   -- none: no process is known
    ALTER TABLE attempts ADD COLUMN process_cgroup TEXT;
"];

/// The schema this version writes.
pub(super) const SCHEMA: i64 = MIGRATIONS.len() as i64;

const UPSERT: &str = "
    INSERT INTO attempts (id, first, last, count, decision, way, client, client_low, client_high, port, via, client_group,
        transport, name, name_key, type, class, rule, evidence_alias, evidence_address, action, rcode, destination,
        protocol, process_pid, process_exe, process_uid, process_cgroup)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
        ?24, ?25, ?26, ?27, ?28)
    ON CONFLICT (id) DO UPDATE SET last = excluded.last, count = excluded.count";

/// The store, what waits for it, and how it is doing.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    connection: Option<Connection>,
    /// Device and number of the file that is open.
    file: Option<(u64, u64)>,
    pending: BTreeMap<Id, Record>,
    watched: Watched,
    retry_at: Option<Instant>,
    set_aside_at: Option<Instant>,
}

/// Why the store cannot be used.
#[derive(Debug, Error)]
pub(super) enum StoreError {
    #[error("cannot create {}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("written by a later version, with schema {found}")]
    LaterSchema { found: i64 },
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl Database {
    /// A store, not yet opened.
    pub(super) fn new(path: PathBuf) -> Self {
        let (watched, pending) = (Watched::new(&format!("audit store {}", path.display())), BTreeMap::new());
        Self { path, connection: None, file: None, pending, watched, retry_at: None, set_aside_at: None }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How it is doing.
    pub(super) fn condition(&self) -> &Condition {
        self.watched.condition()
    }

    /// Does anything wait for it, or it for being tried again?
    pub(super) fn is_busy(&self) -> bool {
        !self.pending.is_empty() || !self.watched.is_working() || self.connection.is_none()
    }

    /// Opens it if it is not open, and moves a broken file aside.
    pub(super) fn open(&mut self) -> Result<(), StoreError> {
        if self.connection.is_some() {
            return Ok(());
        }
        let opened = match open(&self.path) {
            Err(StoreError::Sqlite(error)) if is_broken(&error) && self.may_set_aside() => {
                self.set_aside(&error);
                open(&self.path)
            }
            opened => opened,
        };
        self.connection = Some(opened?);
        self.file = identity(&self.path);
        Ok(())
    }

    /// The highest id in it, so that ids go on growing after a restart with a clock set back.
    pub(super) fn last_id(&self) -> Option<Id> {
        let query =
            |connection: &Connection| connection.query_row("SELECT max(id) FROM attempts", [], |row| row.get(0));
        let highest: Option<i64> = self.connection.as_ref().and_then(|connection| query(connection).ok())?;
        highest.and_then(|id| u64::try_from(id).ok()).map(Id)
    }

    /// Takes a row, or a later state of one; [`write`](Self::write) writes it, and so does this once many wait.
    pub(super) fn put(&mut self, record: Record, metrics: &Metrics, now: Timestamp) {
        if self.pending.len() >= MANY_PENDING {
            self.write(metrics, now);
        }
        self.pending.insert(record.id, record);
        if self.pending.len() > MAX_PENDING {
            self.pending.pop_first();
            metrics.audit_lost_store.increment();
        }
    }

    /// Writes what waits in one transaction, unless it failed less than [`RETRY`] ago.
    pub(super) fn write(&mut self, metrics: &Metrics, now: Timestamp) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        if !self.is_busy() {
            return;
        }
        match self.try_write() {
            Ok(()) => self.watched.recover(),
            Err(error) => self.failed(&error, metrics, now),
        }
    }

    fn try_write(&mut self) -> Result<(), StoreError> {
        // Rows written into a file that was removed or replaced would be seen by nobody.
        if self.connection.is_some() && self.file != identity(&self.path) {
            self.connection = None;
        }
        self.open()?;
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut statement = transaction.prepare_cached(UPSERT)?;
            for record in self.pending.values() {
                upsert(&mut statement, record)?;
            }
        }
        transaction.commit()?;
        self.pending.clear();
        Ok(())
    }

    fn failed(&mut self, error: &StoreError, metrics: &Metrics, now: Timestamp) {
        metrics.audit_failures_store.increment();
        self.watched.fail(&with_cause(error), now);
        self.retry_at = Some(Instant::now() + RETRY);
        let StoreError::Sqlite(error) = error else { return };
        if is_broken(error) && self.may_set_aside() {
            self.set_aside(error);
            self.retry_at = None;
        }
        // Room and locks come back by themselves; after anything else the file is opened anew.
        if !matches!(error.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy)) {
            self.connection = None;
        }
    }

    /// One bounded step of retention: what was last seen before `oldest` goes, then what is too much for `max_size` bytes.
    /// True if there is more to do.
    pub(super) fn trim(&mut self, oldest: Timestamp, max_size: u64, metrics: &Metrics, now: Timestamp) -> bool {
        let Some(connection) = self.connection.as_mut().filter(|_| self.retry_at.is_none()) else { return false };
        match trim(connection, oldest, max_size) {
            Ok(Trimmed { by_age, by_size, is_done }) => {
                metrics.audit_removed_age.add(by_age);
                metrics.audit_removed_size.add(by_size);
                !is_done
            }
            Err(error) => {
                self.failed(&error.into(), metrics, now);
                false
            }
        }
    }

    /// Closes the file, as after a panic; the next write opens it again.
    pub(super) fn close(&mut self) {
        self.connection = None;
    }

    /// Gives up what still waits.
    pub(super) fn give_up(&mut self, metrics: &Metrics) {
        metrics.audit_lost_store.add(self.pending.len().try_into().unwrap_or(u64::MAX));
        self.pending.clear();
    }

    fn may_set_aside(&self) -> bool {
        self.set_aside_at.is_none_or(|at| at.elapsed() >= SET_ASIDE_EVERY)
    }

    fn set_aside(&mut self, why: &rusqlite::Error) {
        self.connection = None;
        self.set_aside_at = Some(Instant::now());
        let aside = beside(&self.path, &Timestamp::now().strftime(".corrupt-%Y%m%dT%H%M%SZ").to_string());
        error!("audit store {} is broken ({why}): moved to {} and begun anew", self.path.display(), aside.display());
        // The log belongs to the broken file: with a new one it would be played into that.
        for (from, to) in [
            (self.path.clone(), aside.clone()),
            (beside(&self.path, "-wal"), beside(&aside, "-wal")),
            (beside(&self.path, "-shm"), beside(&aside, "-shm")),
        ] {
            if let Err(error) = fs::rename(&from, &to)
                && error.kind() != io::ErrorKind::NotFound
            {
                error!("cannot move {} aside: {error}", from.display());
            }
        }
    }
}

/// Opens or creates a store and brings its schema up to date.
fn open(path: &Path) -> Result<Connection, StoreError> {
    create(path).map_err(|source| StoreError::Create { path: path.into(), source })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    // Before the first table, or it has no effect.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // The log is cut to this after a burst.
    connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
    migrate(&mut connection)?;
    Ok(connection)
}

/// Creates the file with [`FILE_MODE`] whatever the umask says; SQLite gives its log the same mode.
pub(super) fn create(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path) {
        Ok(file) => file.set_permissions(Permissions::from_mode(FILE_MODE)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = usize::try_from(found).unwrap_or(usize::MAX);
    let Some(migrations) = MIGRATIONS.get(done..) else { return Err(StoreError::LaterSchema { found }) };
    for (step, version) in migrations.iter().zip(found + 1..) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

fn upsert(statement: &mut rusqlite::Statement<'_>, record: &Record) -> rusqlite::Result<usize> {
    let (low, high) = client_range(&record.client).unzip();
    let port = match &record.client {
        Client::Address { port, .. } => Some(*port),
        Client::Network { .. } | Client::Hash { .. } => None,
    };
    let process = record.process.as_ref();
    let (alias, address) = match &record.evidence {
        None => (None, None),
        Some(Matched::Alias(name)) => (Some(name), None),
        Some(Matched::Address(address)) => (None, Some(address.to_string())),
    };
    statement.execute(params![
        i64::try_from(record.id.0).unwrap_or(i64::MAX),
        record.first.as_millisecond(),
        record.last.as_millisecond(),
        i64::try_from(record.count).unwrap_or(i64::MAX),
        record.decision.as_str(),
        record.way.as_str(),
        record.client.to_string(),
        low,
        high,
        port,
        record.via.map(|via| via.to_string()),
        record.group,
        record.transport.map(Transport::as_str),
        record.question.name,
        record.question.name.as_deref().map(name_key),
        record.question.qtype,
        record.question.class,
        record.rule,
        alias,
        address,
        record.action,
        record.rcode,
        record.destination.map(|destination| destination.to_string()),
        record.protocol,
        process.and_then(|process| process.pid),
        process.and_then(|process| process.exe.as_deref()),
        process.map(|process| process.uid),
        process.and_then(|process| process.cgroup.as_deref()),
    ])
}

struct Trimmed {
    by_age: u64,
    by_size: u64,
    is_done: bool,
}

fn trim(connection: &mut Connection, oldest: Timestamp, max_size: u64) -> rusqlite::Result<Trimmed> {
    let by_age = connection
        .prepare_cached(
            "DELETE FROM attempts WHERE id IN (SELECT id FROM attempts WHERE last < ?1 ORDER BY last LIMIT ?2)",
        )?
        .execute(params![oldest.as_millisecond(), TRIM_ROWS])?;
    let (size, free) = pages(connection)?;
    let is_large = size > max_size;
    let by_size = if is_large && by_age == 0 {
        connection
            .prepare_cached("DELETE FROM attempts WHERE id IN (SELECT id FROM attempts ORDER BY id LIMIT ?1)")?
            .execute([TRIM_ROWS])?
    } else {
        0
    };
    if free > 0 {
        // Gives a row for each page, and does it only when asked for that row.
        let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({TRIM_PAGES})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
    }
    let is_done = by_age < TRIM_ROWS as usize && (!is_large || by_age + by_size == 0);
    Ok(Trimmed { by_age: by_age as u64, by_size: by_size as u64, is_done })
}

/// Bytes in use, and pages that are free.
fn pages(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map(i64::unsigned_abs);
    let (count, free, size) = (pragma("page_count")?, pragma("freelist_count")?, pragma("page_size")?);
    Ok((count.saturating_sub(free) * size, free))
}

fn is_broken(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The path with something added to its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn with_cause(error: &StoreError) -> String {
    match error {
        StoreError::Create { source, .. } => format!("{error}: {source}"),
        StoreError::LaterSchema { .. } | StoreError::Sqlite(_) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Filter, Process, Reader, attempt::tests::attempt, mask::Mask};

    struct Bench {
        folder: tempfile::TempDir,
        metrics: Metrics,
        database: Database,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut database = Database::new(folder.path().join("attempts.db"));
            database.open().unwrap();
            Self { folder, metrics: Metrics::default(), database }
        }

        /// Puts one row a second from second `from` on.
        fn fill(&mut self, from: i64, count: i64) {
            for second in from..from + count {
                let attempt = attempt("192.0.2.7:1", &format!("n{second}.example"));
                let client = Mask::Full.show("192.0.2.7/32".parse().unwrap(), 1);
                let time = at(second);
                let name = attempt.name.as_ref().map(ToString::to_string);
                let attempt = crate::audit::Attempt { time, ..attempt };
                self.database.put(Record::first(Id::at(time), &attempt, client, name), &self.metrics, at(0));
            }
            self.database.write(&self.metrics, at(0));
        }

        fn trim(&mut self, oldest: Timestamp, max_size: u64) {
            while self.database.trim(oldest, max_size, &self.metrics, at(0)) {}
        }

        fn rows(&self) -> Vec<Record> {
            Reader::open(self.database.path()).unwrap().newest(&Filter::default(), 100_000).unwrap()
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn what_is_older_than_it_is_kept_goes() {
        let mut bench = Bench::new();
        bench.fill(0, 2000);
        bench.trim(at(1500), u64::MAX);
        let rows = bench.rows();
        assert_eq!((rows.len(), rows[0].first), (500, at(1500)));
        assert_eq!((bench.metrics.audit_removed_age.value(), bench.metrics.audit_removed_size.value()), (1500, 0));
    }

    #[test]
    fn the_oldest_go_when_the_store_is_too_large_and_the_file_shrinks() {
        let mut bench = Bench::new();
        bench.fill(0, 10_000);
        let max_size = 1 << 20;
        let size = |bench: &Bench| pages(bench.database.connection.as_ref().unwrap()).unwrap().0;
        assert!(size(&bench) > 2 * max_size);
        bench.trim(at(0), max_size);
        assert!(size(&bench) <= max_size && size(&bench) > max_size / 2, "{}", size(&bench));
        let rows = bench.rows();
        assert_eq!(rows.last().unwrap().first, at(9999), "the newest stay");
        assert_eq!(rows[0].first, at(10_000 - i64::try_from(rows.len()).unwrap()), "the oldest went");
        assert_eq!(bench.metrics.audit_removed_size.value(), 10_000 - rows.len() as u64);
        bench.database.close();
        assert!(fs::metadata(bench.database.path()).unwrap().len() < 2 * max_size, "the file was given back");
    }

    #[test]
    fn a_store_that_may_be_emptied_does_not_trim_for_ever() {
        let mut bench = Bench::new();
        bench.fill(0, 10);
        bench.trim(at(0), 0);
        assert!(bench.rows().is_empty());
    }

    #[test]
    fn a_full_disk_is_counted_bounded_and_made_up_for_when_there_is_room() {
        let mut bench = Bench::new();
        bench.fill(0, 10);
        let limit = |bench: &Bench, pages: u32| {
            let connection = bench.database.connection.as_ref().unwrap();
            connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
        };
        limit(&bench, 1);
        bench.fill(100, 20_000);
        assert!(matches!(bench.database.condition(), Condition::Failing { why, .. } if why.contains("full")));
        assert_eq!(bench.database.pending.len(), MAX_PENDING);
        assert_eq!(bench.metrics.audit_lost_store.value(), 20_000 - MAX_PENDING as u64);
        assert_eq!(bench.rows().len(), 10, "what was there is still found");
        limit(&bench, u32::MAX - 1);
        bench.database.retry_at = None;
        bench.database.write(&bench.metrics, at(0));
        assert_eq!(*bench.database.condition(), Condition::Working);
        assert_eq!(bench.rows().len(), 10 + MAX_PENDING);
    }

    #[test]
    fn a_locked_store_is_tried_again() {
        let mut bench = Bench::new();
        let other = Connection::open(bench.database.path()).unwrap();
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        bench.fill(0, 1);
        assert!(matches!(bench.database.condition(), Condition::Failing { why, .. } if why.contains("locked")));
        other.execute_batch("ROLLBACK").unwrap();
        bench.database.retry_at = None;
        bench.database.write(&bench.metrics, at(0));
        assert_eq!((bench.rows().len(), bench.database.condition()), (1, &Condition::Working));
    }

    #[test]
    fn a_file_that_is_no_database_is_moved_aside_and_begun_anew_but_not_again_and_again() {
        let mut bench = Bench::new();
        bench.fill(0, 10);
        bench.database.close();
        fs::write(bench.database.path(), "garbage ".repeat(1000)).unwrap();
        bench.fill(100, 5);
        assert_eq!(bench.rows().len(), 5);
        let aside = |bench: &Bench| {
            let names = fs::read_dir(bench.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name.to_string_lossy().starts_with("attempts.db.corrupt-")).count()
        };
        assert_eq!(aside(&bench), 1);
        bench.database.close();
        fs::write(bench.database.path(), "garbage ".repeat(1000)).unwrap();
        bench.fill(200, 5);
        assert!(matches!(bench.database.condition(), Condition::Failing { .. }));
        assert_eq!(aside(&bench), 1);
    }

    #[test]
    fn a_store_of_the_first_schema_keeps_its_rows_and_takes_what_has_no_question() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attempts.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        let id = i64::try_from(Id::at(at(0)).0).unwrap();
        old.execute(
            "INSERT INTO attempts VALUES (?1, ?2, ?3, 12, 'blocked', 'dns', '192.0.2.7', ?4, ?4, 5353, '10.0.0.53', \
             'build', 'udp', 'a.example', 'example.a.', 'A', 'IN', 'ngrok/connect', NULL, '3.125.1.1', 'nxdomain', \
             'NXDOMAIN')",
            params![id, at(0).as_millisecond(), at(9).as_millisecond(), [0_u8; 16]],
        )
        .unwrap();
        drop(old);
        let mut database = Database::new(path.clone());
        database.open().unwrap();
        assert_eq!(database.last_id(), Some(Id::at(at(0))));
        let attempt = crate::audit::Attempt {
            time: at(20),
            name: None,
            qtype: None,
            qclass: None,
            transport: None,
            protocol: Some(47),
            destination: "[2001:db8::1]:443".parse().ok(),
            process: Some(Process { pid: Some(4711), exe: Some("/usr/bin/ngrok".into()), uid: 1000, cgroup: None }),
            ..attempt("192.0.2.7:1", "a.example")
        };
        let new = Record::first(Id::at(at(20)), &attempt, Mask::Full.show("192.0.2.7/32".parse().unwrap(), 1), None);
        database.put(new.clone(), &Metrics::default(), at(20));
        database.write(&Metrics::default(), at(20));
        let rows = Reader::open(&path).unwrap().newest(&Filter::default(), 10).unwrap();
        let [kept, added] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((kept.count, kept.first, kept.last), (12, at(0), at(9)));
        assert_eq!((kept.question.qtype.as_deref(), kept.transport), (Some("A"), Some(Transport::Udp)));
        assert_eq!((kept.via, kept.destination, &kept.process), ("10.0.0.53".parse().ok(), None, &None));
        assert_eq!(*added, new);
        let count =
            |sql: &str| Connection::open(&path).unwrap().query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        assert_eq!(count("PRAGMA integrity_check"), "ok");
        drop(database);
        assert_eq!(count("SELECT CAST(user_version AS TEXT) FROM pragma_user_version"), SCHEMA.to_string());
    }

    #[test]
    fn a_store_that_was_brought_over_has_the_columns_of_a_new_one() {
        let columns = |connection: &Connection| -> Vec<(String, String, bool)> {
            let mut statement =
                connection.prepare("SELECT name, type, \"notnull\" FROM pragma_table_info('attempts')").unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
            rows.map(Result::unwrap).collect()
        };
        let nullable = |connection: &Connection| -> Vec<String> {
            columns(connection).into_iter().filter(|(_, _, required)| !required).map(|(name, ..)| name).collect()
        };
        let bench = Bench::new();
        let connection = bench.database.connection.as_ref().unwrap();
        assert_eq!(columns(connection).len(), 28);
        for name in ["transport", "type", "class", "destination", "process_uid"] {
            assert!(nullable(connection).iter().any(|column| column == name), "{name}");
        }
        for name in ["first", "last", "count", "decision", "way", "client", "rule"] {
            assert!(nullable(connection).iter().all(|column| column != name), "{name}");
        }
    }

    #[test]
    fn a_store_that_was_removed_is_begun_anew() {
        let mut bench = Bench::new();
        bench.fill(0, 10);
        fs::remove_file(bench.database.path()).unwrap();
        bench.fill(100, 5);
        assert_eq!(bench.rows().len(), 5);
    }
}
