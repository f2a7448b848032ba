//! Looking things up in the store, with or without a daemon that writes to it.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use jiff::Timestamp;
use nix::unistd::{AccessFlags, access};
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params_from_iter, types::Value};
use thiserror::Error;

use super::{
    Client, Decision, Id, Matched, Process, Question, Record, SCHEMA_VERSION, Way,
    fold::WINDOW,
    key::{client_range, name_key, network_range, wider_starts},
    store::{SCHEMA, beside},
};
use crate::name::{DomainName, InvalidName};

/// How long a search waits for somebody who holds the whole file, such as a recovery after a crash.
const BUSY: Duration = Duration::from_secs(2);

/// Which records are wanted; each part that is given must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Last seen then or later.
    pub since: Option<Timestamp>,
    /// First seen then or earlier.
    pub until: Option<Timestamp>,
    /// By whom.
    pub client: Option<ClientFilter>,
    /// Which name.
    pub name: Option<NameFilter>,
    /// A rule as `pack/rule`, or all rules of a pack.
    pub rule: Option<String>,
    /// The client's group.
    pub group: Option<String>,
    /// What was decided.
    pub decision: Option<Decision>,
    /// By which way it was tried.
    pub way: Option<Way>,
    /// By which process.
    pub process: Option<ProcessFilter>,
}

/// By whom. Read from an address, a network, or a hash as records show it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClientFilter {
    /// Clients in this network, and networks that may hold one of them.
    Network(IpNet),
    /// The client with this hash.
    Hash(String),
}

/// Which process. Read from a number, a path, or a path's last part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProcessFilter {
    /// The one with this number.
    Pid(u32),
    /// Those that execute this file, or one of this name.
    Exe(String),
}

/// Which name. Read from `name`, or `.name` for it and everything below.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NameFilter {
    /// This one, in presentation form.
    Exactly(String),
    /// This one and everything below it.
    Within(String),
}

/// Why nothing can be looked up.
#[derive(Debug, Error)]
pub enum SearchError {
    /// There is no store.
    #[error("there is no record at {}", path.display())]
    Absent {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file cannot be read by us.
    #[error("cannot open the record {}", path.display())]
    Denied {
        /// The store.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite cannot open it.
    #[error("cannot open the record {}", path.display())]
    Open {
        /// The store.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A later version wrote it, or something else did.
    #[error("{} has schema {found}, not {SCHEMA}: it is not a record, or not of this version", path.display())]
    Schema {
        /// The store.
        path: PathBuf,
        /// Its schema; 0 for none.
        found: i64,
    },
    /// It cannot be read.
    #[error("cannot read the record {}", path.display())]
    Read {
        /// The store.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

/// A store that is open for searches. Between calls it holds nothing, so that the daemon can tidy up.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    connection: Connection,
}

impl Reader {
    /// Opens a store to read it.
    ///
    /// # Errors
    /// There is none, it cannot be opened, or it is of another version.
    pub fn open(path: &Path) -> Result<Self, SearchError> {
        // Not by opening it: to close a file gives up every lock that this process has on it (fcntl(2)).
        match access(path, AccessFlags::R_OK).map_err(io::Error::from) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SearchError::Absent { path: path.into() });
            }
            Err(source) => return Err(SearchError::Denied { path: path.into(), source }),
        }
        let opened = open(path, false).or_else(|error| {
            // Without a log nobody is writing, and what may not be written to can be read as it is.
            let is_permission = matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied)
            );
            if is_permission && !beside(path, "-wal").exists() { open(path, true) } else { Err(error) }
        });
        match opened {
            Ok((connection, SCHEMA)) => Ok(Self { path: path.into(), connection }),
            Ok((_, found)) => Err(SearchError::Schema { path: path.into(), found }),
            Err(source) => Err(SearchError::Open { path: path.into(), source }),
        }
    }

    /// How many records there are.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn count(&self, filter: &Filter) -> Result<u64, SearchError> {
        let (wanted, values) = filter.condition();
        let sql = format!("SELECT count(*) FROM attempts WHERE {wanted}");
        let count = self.connection.query_row(&sql, params_from_iter(values), |row| row.get::<_, i64>(0));
        count.map(i64::unsigned_abs).map_err(|source| self.read_error(source))
    }

    /// The newest records, at most `limit`, the newest last.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn newest(&self, filter: &Filter, limit: u32) -> Result<Vec<Record>, SearchError> {
        let (wanted, values) = filter.condition();
        let mut records = self.records(&format!("{wanted} ORDER BY id DESC LIMIT {limit}"), values)?;
        records.reverse();
        Ok(records)
    }

    /// The records after one, at most `limit`, the oldest first: all of them, page by page.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn after(&self, filter: &Filter, id: Id, limit: u32) -> Result<Vec<Record>, SearchError> {
        let (wanted, mut values) = filter.condition();
        values.push(id_value(id));
        self.records(&format!("{wanted} AND id > ? ORDER BY id LIMIT {limit}"), values)
    }

    fn records(&self, wanted: &str, values: Vec<Value>) -> Result<Vec<Record>, SearchError> {
        let read = || -> rusqlite::Result<Vec<Record>> {
            let mut statement = self.connection.prepare(&format!(
                "SELECT id, first, last, count, decision, way, client, port, via, client_group, transport, name, type, \
                 class, rule, evidence_alias, evidence_address, action, rcode, destination, protocol, process_pid, \
                 process_exe, process_uid, process_cgroup FROM attempts WHERE {wanted}"
            ))?;
            statement.query_map(params_from_iter(values), record)?.collect()
        };
        read().map_err(|source| self.read_error(source))
    }

    fn read_error(&self, source: rusqlite::Error) -> SearchError {
        SearchError::Read { path: self.path.clone(), source }
    }
}

/// Opens for reading and tells the schema. `as_it_is`: without locks and log.
fn open(path: &Path, as_it_is: bool) -> rusqlite::Result<(Connection, i64)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let query = if as_it_is { "?immutable=1" } else { "" };
    let connection = Connection::open_with_flags(format!("file:{}{query}", uri_path(path)), flags)?;
    connection.busy_timeout(BUSY)?;
    let found = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    // The version is on the first page; only a table shows that the log can be used too.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok((connection, found))
}

/// A path as SQLite's URI form wants it.
fn uri_path(path: &Path) -> String {
    let mut uri = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => uri.push(char::from(*byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

impl Filter {
    /// Does a record that was not looked up, but heard of, pass?
    pub fn accepts(&self, record: &Record) -> bool {
        self.since.is_none_or(|since| record.last >= since)
            && self.until.is_none_or(|until| record.first <= until)
            && self.client.as_ref().is_none_or(|client| client.accepts(&record.client))
            && self
                .name
                .as_ref()
                .is_none_or(|name| record.question.name.as_deref().is_some_and(|own| name.accepts(own)))
            && self.rule.as_ref().is_none_or(|rule| {
                record.rule.strip_prefix(rule).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
            && self.group.as_ref().is_none_or(|group| record.group.as_ref() == Some(group))
            && self.decision.is_none_or(|decision| record.decision == decision)
            && self.way.is_none_or(|way| record.way == way)
            && self
                .process
                .as_ref()
                .is_none_or(|wanted| record.process.as_ref().is_some_and(|process| wanted.accepts(process)))
    }

    /// The same as SQL, with its values in order.
    fn condition(&self) -> (String, Vec<Value>) {
        let mut parts = vec!["true".to_owned()];
        let mut values = Vec::new();
        let mut require = |part: &str, given: Vec<Value>| {
            parts.push(part.to_owned());
            values.extend(given);
        };
        if let Some(since) = self.since {
            // No id lies below its own moment, and a fold takes no longer than two windows even if the clock is
            // corrected meanwhile. So older rows need not be read.
            let oldest = since.checked_sub(2 * WINDOW).unwrap_or(Timestamp::MIN);
            require("last >= ? AND id >= ?", vec![since.as_millisecond().into(), id_value(Id::at(oldest))]);
        }
        if let Some(until) = self.until {
            require("first <= ?", vec![until.as_millisecond().into()]);
        }
        match &self.client {
            None => {}
            Some(ClientFilter::Hash(hash)) => require("client = ?", vec![hash.clone().into()]),
            Some(ClientFilter::Network(network)) => {
                let (low, high) = network_range(*network);
                let mut given = vec![low.to_vec().into(), high.to_vec().into(), high.to_vec().into()];
                let wider = wider_starts(*network);
                let marks = vec!["?"; wider.len()].join(", ");
                given.extend(wider.iter().map(|start| Value::from(start.to_vec())));
                require(
                    &format!("(client_low BETWEEN ? AND ? OR client_high >= ? AND client_low IN ({marks}))"),
                    given,
                );
            }
        }
        match &self.name {
            None => {}
            Some(NameFilter::Exactly(name)) => require("name_key = ?", vec![name_key(name).into()]),
            Some(NameFilter::Within(zone)) => {
                let key = name_key(zone);
                let end = key.strip_suffix('.').map_or_else(|| "\u{7f}".to_owned(), |start| format!("{start}/"));
                require("name_key >= ? AND name_key < ?", vec![key.into(), end.into()]);
            }
        }
        if let Some(rule) = &self.rule {
            let given = vec![rule.clone().into(), format!("{rule}/").into(), format!("{rule}0").into()];
            require("(rule = ? OR rule >= ? AND rule < ?)", given);
        }
        if let Some(group) = &self.group {
            require("client_group = ?", vec![group.clone().into()]);
        }
        if let Some(decision) = self.decision {
            require("decision = ?", vec![decision.as_str().to_owned().into()]);
        }
        if let Some(way) = self.way {
            require("way = ?", vec![way.as_str().to_owned().into()]);
        }
        match &self.process {
            None => {}
            Some(ProcessFilter::Pid(pid)) => require("process_pid = ?", vec![i64::from(*pid).into()]),
            Some(ProcessFilter::Exe(exe)) => {
                let end = format!("/{exe}");
                let length = i64::try_from(end.chars().count()).unwrap_or(i64::MAX);
                let given = vec![exe.clone().into(), (-length).into(), end.into()];
                require("(process_exe = ? OR substr(process_exe, ?) = ?)", given);
            }
        }
        (parts.join(" AND "), values)
    }
}

impl ClientFilter {
    fn accepts(&self, client: &Client) -> bool {
        match (self, client) {
            (Self::Hash(wanted), Client::Hash { hash }) => wanted == hash,
            (Self::Hash(_), Client::Address { .. } | Client::Network { .. }) => false,
            (Self::Network(network), _) => client_range(client).is_some_and(|(low, high)| {
                let (first, last) = network_range(*network);
                low >= first && high <= last || low <= first && high >= last
            }),
        }
    }
}

impl ProcessFilter {
    fn accepts(&self, process: &Process) -> bool {
        match self {
            Self::Pid(pid) => process.pid == Some(*pid),
            Self::Exe(wanted) => process.exe.as_deref().is_some_and(|exe| {
                exe.strip_suffix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
            }),
        }
    }
}

impl NameFilter {
    fn accepts(&self, name: &str) -> bool {
        match self {
            Self::Exactly(wanted) => wanted == name,
            Self::Within(zone) => name_key(name).starts_with(&name_key(zone)),
        }
    }
}

impl FromStr for ClientFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.to_canonical().into()));
        }
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(Self::Network(network.trunc()));
        }
        if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self::Hash(text.to_ascii_lowercase()));
        }
        Err("expected an address, a network, or a client's hash of 32 hexadecimal digits".to_owned())
    }
}

impl FromStr for ProcessFilter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.parse() {
            Ok(pid) => Ok(Self::Pid(pid)),
            Err(_) if text.is_empty() => Err("expected a process's number, its file, or the file's name"),
            Err(_) => Ok(Self::Exe(text.to_owned())),
        }
    }
}

impl FromStr for NameFilter {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.strip_prefix('.') {
            Some(zone) if !zone.is_empty() => presented(zone).map(Self::Within),
            _ => presented(text).map(Self::Exactly),
        }
    }
}

fn presented(name: &str) -> Result<String, InvalidName> {
    match name.parse::<DomainName>() {
        Ok(name) => Ok(name.to_string()),
        // People ask for such names, so they are on record.
        Err(InvalidName::BadIdn) if name.is_ascii() => Ok(name.trim_end_matches('.').to_ascii_lowercase()),
        Err(error) => Err(error),
    }
}

fn id_value(id: Id) -> Value {
    i64::try_from(id.0).unwrap_or(i64::MAX).into()
}

/// A row in the order of the columns that [`Reader::records`] asks for.
fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let client: String = row.get(6)?;
    let last = moment(row, 2)?;
    let client = match (client.parse::<IpAddr>(), client.parse::<IpNet>()) {
        (Ok(address), _) => Client::Address { address, port: row.get::<_, Option<u16>>(7)?.unwrap_or(0) },
        (_, Ok(network)) => Client::Network { network },
        (Err(_), Err(_)) => Client::Hash { hash: client },
    };
    let evidence = match row.get::<_, Option<String>>(15)? {
        Some(alias) => Some(Matched::Alias(alias)),
        None => optional_word(row, 16)?.map(Matched::Address),
    };
    Ok(Record {
        version: SCHEMA_VERSION,
        id: Id(row.get::<_, i64>(0)?.unsigned_abs()),
        time: last,
        decision: word(row, 4)?,
        way: word(row, 5)?,
        client,
        via: optional_word(row, 8)?,
        group: row.get(9)?,
        transport: optional_word(row, 10)?,
        protocol: row.get(20)?,
        question: Question { name: row.get(11)?, qtype: row.get(12)?, class: row.get(13)? },
        rule: row.get(14)?,
        evidence,
        destination: optional_word(row, 19)?,
        process: process(row)?,
        action: row.get(17)?,
        rcode: row.get(18)?,
        count: row.get::<_, i64>(3)?.unsigned_abs(),
        first: moment(row, 1)?,
        last,
    })
}

fn process(row: &Row<'_>) -> rusqlite::Result<Option<Process>> {
    let Some(uid) = row.get::<_, Option<u32>>(23)? else { return Ok(None) };
    Ok(Some(Process { pid: row.get(21)?, exe: row.get(22)?, uid, cgroup: row.get(24)? }))
}

fn moment(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(row.get(column)?).map_err(|error| unreadable(column, error))
}

fn word<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    row.get::<_, String>(column)?.parse().map_err(|error| unreadable(column, error))
}

fn optional_word<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<T>> {
    let text = row.get::<_, Option<String>>(column)?;
    text.map(|text| text.parse().map_err(|error| unreadable(column, error))).transpose()
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Attempt, ClientMask, attempt::tests::attempt, mask::Mask, store::Database},
        metrics::Metrics,
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    /// A store with one row per client and name, and those rows.
    fn store(folder: &Path) -> (PathBuf, Vec<Record>) {
        let hashed = Mask::new(ClientMask::KeyedHash, folder).unwrap();
        #[rustfmt::skip]
        let rows = [
            // second  client               shown as        name                      rule               group           decision
            (0,   "192.0.2.7/32",         &Mask::Full,    "connect.ngrok-agent.com", "ngrok/connect",   None,           Decision::Blocked),
            (10,  "192.0.2.0/24",         &Mask::Full,    "ngrok-agent.com",         "ngrok/support",   Some("build"),  Decision::Observed),
            (20,  "192.0.3.1/32",         &Mask::Full,    "notngrok-agent.com",      "ngrok-strict/x",  Some("build"),  Decision::Blocked),
            (30,  "2001:db8::1/128",      &Mask::Full,    "connect.acme.example",    "organization.ingress", None,      Decision::AllowedOwn),
            (40,  "2001:db8::1/128",      &Mask::Prefix,  "a.example",               "policy.block",    Some("o'hara"), Decision::Blocked),
            (50,  "192.0.2.7/32",         &hashed,        "a.example",               "exception",       None,           Decision::AllowedException),
            (60,  "0.0.0.0/0",            &Mask::Full,    "a.example",               "ngrok/connect",   None,           Decision::Blocked),
        ];
        let mut database = Database::new(folder.join("attempts.db"));
        let metrics = Metrics::default();
        let records = rows.map(|(second, clients, mask, name, rule, group, decision)| {
            let attempt = Attempt {
                time: at(second),
                rule: rule.into(),
                group: group.map(str::to_owned),
                decision,
                evidence: Some(crate::audit::Evidence::Address("3.125.1.1".parse().unwrap())),
                way: if second < 30 { Way::TlsGate } else { Way::Dns },
                destination: "3.125.1.1:443".parse().ok(),
                process: (second == 20).then(|| Process {
                    pid: Some(4711),
                    exe: Some("/opt/my ngrok".into()),
                    uid: 0,
                    cgroup: Some("/system.slice/ci.service".into()),
                }),
                ..attempt("192.0.2.7:1", name)
            };
            let client = mask.show(clients.parse().unwrap(), 1);
            let record = Record::first(Id::at(at(second)), &attempt, client, Some(name.into()));
            database.put(record.clone(), &metrics, at(0));
            record
        });
        database.write(&metrics, at(0));
        (database.path().into(), records.into())
    }

    #[test]
    fn each_filter_finds_what_it_says_in_the_store_and_in_what_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let (path, records) = store(folder.path());
        let reader = Reader::open(&path).unwrap();
        let client = |text: &str| Filter { client: Some(text.parse().unwrap()), ..Filter::default() };
        let name = |text: &str| Filter { name: Some(text.parse().unwrap()), ..Filter::default() };
        let rule = |text: &str| Filter { rule: Some(text.into()), ..Filter::default() };
        let group = |text: &str| Filter { group: Some(text.into()), ..Filter::default() };
        let process = |text: &str| Filter { process: Some(text.parse().unwrap()), ..Filter::default() };
        let decision = |decision| Filter { decision: Some(decision), ..Filter::default() };
        let time =
            |since: i64, until: i64| Filter { since: Some(at(since)), until: Some(at(until)), ..Filter::default() };
        let hash = records[5].client.to_string();
        #[rustfmt::skip]
        let cases: &[(&str, Filter, &[usize])] = &[
            ("everything",           Filter::default(),               &[0, 1, 2, 3, 4, 5, 6]),
            ("an address",           client("192.0.2.7"),             &[0, 1, 6]),
            ("a mapped address",     client("::ffff:192.0.2.7"),      &[0, 1, 6]),
            ("a network",            client("192.0.2.0/23"),          &[0, 1, 2, 6]),
            ("host bits",            client("192.0.2.9/23"),          &[0, 1, 2, 6]),
            ("all of v4",            client("0.0.0.0/0"),             &[0, 1, 2, 6]),
            ("a v6 address",         client("2001:db8::1"),           &[3, 4]),
            ("its neighbour",        client("2001:db8::2"),           &[4]),
            ("a hash",               client(&hash),                   &[5]),
            ("a name",               name("NGROK-agent.com."),        &[1]),
            ("and below",            name(".ngrok-agent.com"),        &[0, 1]),
            ("all names",            name("."),                       &[]),
            ("a rule",               rule("ngrok/connect"),           &[0, 6]),
            ("a pack",               rule("ngrok"),                   &[0, 1, 6]),
            ("a local rule",         rule("policy.block"),            &[4]),
            ("a pattern is none",    rule("%"),                       &[]),
            ("a group",              group("build"),                  &[1, 2]),
            ("a quote",              group("o'hara"),                 &[4]),
            ("a decision",           decision(Decision::Observed),    &[1]),
            ("a way",                Filter { way: Some(Way::TlsGate), ..Filter::default() }, &[0, 1, 2]),
            ("a pid",                process("4711"),                 &[2]),
            ("another",              process("471"),                  &[]),
            ("a file",               process("/opt/my ngrok"),        &[2]),
            ("its name",             process("my ngrok"),             &[2]),
            ("a part of it",         process("ngrok"),                &[]),
            ("a time",               time(10, 30),                    &[1, 2, 3]),
            ("several",              Filter { group: Some("build".into()), ..rule("ngrok") }, &[1]),
        ];
        for (case, filter, expected) in cases {
            let found = reader.newest(filter, 100).unwrap();
            let expected: Vec<_> = expected.iter().map(|index| records[*index].clone()).collect();
            assert_eq!(found, expected, "{case}");
            let heard: Vec<_> = records.iter().filter(|record| filter.accepts(record)).cloned().collect();
            assert_eq!(heard, expected, "{case}, heard");
            assert_eq!(reader.count(filter).unwrap(), expected.len() as u64, "{case}");
            assert_eq!(reader.after(filter, Id(0), 100).unwrap(), expected, "{case}");
        }
        assert_eq!(reader.newest(&Filter::default(), 2).unwrap(), records[5..]);
        assert_eq!(reader.after(&Filter::default(), records[1].id, 2).unwrap(), records[2..4]);
    }

    #[test]
    fn a_store_without_a_log_is_read_from_a_place_that_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let (path, records) = store(folder.path());
        let (connection, found) = open(&path, true).unwrap();
        let count: i64 = connection.query_row("SELECT count(*) FROM attempts", [], |row| row.get(0)).unwrap();
        assert_eq!((found, usize::try_from(count).unwrap()), (SCHEMA, records.len()));
    }

    #[test]
    fn what_is_no_record_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a name?with#signs%.db");
        assert!(matches!(Reader::open(&path), Err(SearchError::Absent { .. })));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(Reader::open(&path), Err(SearchError::Schema { found: 0, .. })));
        std::fs::write(&path, "garbage ".repeat(1000)).unwrap();
        assert!(matches!(Reader::open(&path), Err(SearchError::Open { .. })));
    }
}
