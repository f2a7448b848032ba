//! `tunnelwarden attempts`: the record, as a table for people or as JSON lines for programs.
//!
//! What was recorded is read from the store itself, with or without a daemon; what is recorded from now on comes from
//! the daemon as JSON lines, in whatever way the caller has got them.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
    str::FromStr,
};

use anstyle::Style;
use anyhow::{Context, Result};
use jiff::{Span, Timestamp, ZonedDateTime, civil::DateTime};

use crate::{
    audit::{
        ClientFilter, Decision, Filter, Id, NameFilter, ProcessFilter, Reader, Record, Way, decision_style, shown_kind,
        shown_name, shown_process,
    },
    problem::printable,
};

/// Rows shown unless more are asked for.
const LIMIT: u32 = 100;

/// Rows read at once when all are wanted.
const PAGE: u32 = 1000;

/// Rows remembered so that following does not show them again; more than a follower can be behind.
const REMEMBERED: usize = 2048;

/// What `attempts` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Only what was seen since then: a span back (2h, 7d) or a time (2026-11-23T08:00Z; without an offset, local) [default: 24h].
    #[arg(long, value_name = "WHEN")]
    pub since: Option<When>,
    /// Only what was seen until then, written the same way.
    #[arg(long, value_name = "WHEN", conflicts_with = "follow")]
    pub until: Option<When>,
    /// How many to show, the newest ones [default: 100].
    #[arg(long, value_name = "COUNT", conflicts_with = "all")]
    pub limit: Option<u32>,
    /// Show all that match, from the beginning of the record unless --since is given.
    #[arg(long)]
    pub all: bool,
    /// Only of this client: an address, a network, or a hash as the record shows it.
    #[arg(long, value_name = "CLIENT")]
    pub client: Option<ClientFilter>,
    /// Only for this name; .NAME is the name and everything below it.
    #[arg(long, value_name = "NAME")]
    pub name: Option<NameFilter>,
    /// Only by this rule, such as ngrok/connect, or by any rule of a pack, such as ngrok.
    #[arg(long, value_name = "RULE")]
    pub rule: Option<String>,
    /// Only of clients of this group.
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Only decided so: blocked, observed, allowed-own or allowed-exception.
    #[arg(long, value_name = "DECISION")]
    pub decision: Option<Decision>,
    /// Only tried this way: dns, dns-redirected, dot, doh, address or tls-gate.
    #[arg(long, value_name = "WAY")]
    pub way: Option<Way>,
    /// Only by this process: its number, the file it executes, or that file's name.
    #[arg(long, value_name = "PROCESS")]
    pub process: Option<ProcessFilter>,
    /// Then go on showing what is recorded, until interrupted.
    #[arg(long)]
    pub follow: bool,
}

/// A moment as people write it.
#[derive(Clone, Debug)]
pub enum When {
    /// So long ago.
    Ago(Box<Span>),
    /// A moment with an offset.
    At(Timestamp),
    /// A time of day here.
    Here(DateTime),
}

/// Where results go and how they look.
pub struct Screen<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Remarks about them.
    pub notes: &'a mut dyn Write,
    /// JSON lines instead of a table.
    pub json: bool,
    /// Colours in the table.
    pub is_coloured: bool,
    /// Now, in the time zone of the table.
    pub now: ZonedDateTime,
}

/// What has been shown, for [`follow`] to go on from.
#[derive(Debug)]
pub struct Shown {
    filter: Filter,
    table: Table,
    counts: BTreeMap<Id, u64>,
}

/// Shows what is in the store. To follow without a gap, begin to listen before calling this.
///
/// # Errors
/// There is no store, it cannot be read, or the results cannot be written.
pub fn show(arguments: &Arguments, store: &Path, screen: &mut Screen<'_>) -> Result<Shown> {
    let filter = arguments.filter(&screen.now)?;
    let reader = Reader::open(store).context("nothing was recorded here, or the daemon has another state folder")?;
    let mut shown = Shown { filter, table: Table::default(), counts: BTreeMap::new() };
    let is_empty = if arguments.all {
        shown.show_all(&reader, screen)?
    } else {
        shown.show_newest(&reader, arguments.limit.unwrap_or(LIMIT), screen)?
    };
    if is_empty && !arguments.follow {
        let since = shown.filter.since.map(|since| local(since, &screen.now));
        let since = since.map(|since| format!(" since {since}")).unwrap_or_default();
        writeln!(screen.notes, "no attempts{since}")?;
    }
    screen.out.flush()?;
    Ok(shown)
}

/// Shows each record that the daemon tells of and the filter accepts, until the lines end.
///
/// # Errors
/// A line cannot be read or is no record, or the results cannot be written.
pub fn follow(
    mut shown: Shown,
    lines: impl Iterator<Item = io::Result<String>>,
    screen: &mut Screen<'_>,
) -> Result<()> {
    for line in lines {
        let line = line.context("cannot hear the daemon any more")?;
        let record: Record = serde_json::from_str(&line).context("the daemon sent a line that is no record")?;
        let is_known = shown.counts.get(&record.id).is_some_and(|count| *count >= record.count);
        if !is_known && shown.filter.accepts(&record) {
            shown.print(&[record], screen)?;
            screen.out.flush()?;
        }
    }
    Ok(())
}

impl Arguments {
    fn filter(&self, now: &ZonedDateTime) -> Result<Filter> {
        let until = self.until.as_ref().map(|until| until.resolve(now)).transpose()?;
        let since = match &self.since {
            Some(since) => Some(since.resolve(now)?),
            None if self.all => None,
            None => Some(until.unwrap_or(now.timestamp()).checked_sub(Span::new().hours(24))?),
        };
        let Self { client, name, rule, group, decision, way, process, .. } = self.clone();
        Ok(Filter { since, until, client, name, rule, group, decision, way, process })
    }
}

impl Shown {
    fn show_newest(&mut self, reader: &Reader, limit: u32, screen: &mut Screen<'_>) -> Result<bool> {
        let records = reader.newest(&self.filter, limit)?;
        self.print(&records, screen)?;
        let more = reader.count(&self.filter)?.saturating_sub(records.len() as u64);
        if more > 0 {
            writeln!(screen.notes, "{more} older ones are not shown: --limit COUNT shows more, --all shows all")?;
        }
        Ok(records.is_empty())
    }

    fn show_all(&mut self, reader: &Reader, screen: &mut Screen<'_>) -> Result<bool> {
        let mut last = Id(0);
        loop {
            let records = reader.after(&self.filter, last, PAGE)?;
            self.print(&records, screen)?;
            match records.last() {
                Some(record) => last = record.id,
                None => return Ok(last == Id(0)),
            }
        }
    }

    fn print(&mut self, records: &[Record], screen: &mut Screen<'_>) -> Result<()> {
        for record in records {
            self.counts.insert(record.id, record.count);
            if self.counts.len() > REMEMBERED {
                self.counts.pop_first();
            }
        }
        if screen.json {
            records.iter().try_for_each(|record| screen.out.write_all(record.json_line().as_bytes()))?;
        } else {
            self.table.print(records, screen)?;
        }
        Ok(())
    }
}

/// What a table has printed so far: a later page is aligned with it, or wider.
#[derive(Debug, Default)]
struct Table {
    widths: [usize; COLUMNS],
    has_head: bool,
}

const COLUMNS: usize = 11;

const HEAD: [&str; COLUMNS] =
    ["FIRST SEEN", "DECISION", "CLIENT", "VIA", "GROUP", "PROCESS", "NAME", "TYPE", "RULE", "ANSWER", "COUNT"];

impl Table {
    fn print(&mut self, records: &[Record], screen: &mut Screen<'_>) -> io::Result<()> {
        let rows: Vec<_> = records.iter().map(|record| cells(record, &screen.now)).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        if !self.has_head && !rows.is_empty() {
            // A column that nothing stands in is left out; once there is a head, it stays as it is.
            for (width, head) in self.widths.iter_mut().zip(HEAD) {
                *width = if *width == 0 { 0 } else { (*width).max(head.len()) };
            }
            let bold = if screen.is_coloured { Style::new().bold() } else { Style::new() };
            writeln!(screen.out, "{bold}{}{bold:#}", self.aligned(&HEAD.map(str::to_owned), Style::new()))?;
            self.has_head = true;
        }
        for (row, record) in rows.iter().zip(records) {
            let style = if screen.is_coloured { decision_style(record.decision) } else { Style::new() };
            writeln!(screen.out, "{}", self.aligned(row, style))?;
        }
        Ok(())
    }

    /// A row with its columns padded; the decision in `style`.
    fn aligned(&self, row: &[String; COLUMNS], style: Style) -> String {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(self.widths).enumerate().filter(|(_, (_, width))| *width > 0) {
            let padding = width.saturating_sub(cell.chars().count());
            let style = if index == 1 { style } else { Style::new() };
            if index > 0 {
                line.push_str("  ");
            }
            line.push_str(&format!("{style}{cell}{style:#}{:padding$}", ""));
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A record in the order of [`HEAD`], escaped.
fn cells(record: &Record, now: &ZonedDateTime) -> [String; COLUMNS] {
    let name = match &record.evidence {
        None => shown_name(record),
        Some(matched) => format!("{} ({})", shown_name(record), printable(&matched.to_string())),
    };
    [
        local(record.first, now),
        record.decision.to_string(),
        printable(&record.client.to_string()),
        record.via.map(|via| via.to_string()).unwrap_or_default(),
        record.group.as_deref().map(printable).unwrap_or_default(),
        record.process.as_ref().map(shown_process).unwrap_or_default(),
        name,
        shown_kind(record),
        printable(&record.rule),
        record.rcode.as_deref().map_or_else(|| "none".to_owned(), printable),
        record.count.to_string(),
    ]
}

/// A moment in the table's time zone, with its offset.
fn local(time: Timestamp, now: &ZonedDateTime) -> String {
    time.to_zoned_datetime(now.time_zone().clone()).strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
}

impl When {
    /// The moment it means, seen from `now`.
    fn resolve(&self, now: &ZonedDateTime) -> Result<Timestamp> {
        Ok(match self {
            Self::Ago(span) => now.checked_sub(**span).context("that is too long ago")?.timestamp(),
            Self::At(time) => *time,
            Self::Here(time) => {
                time.to_zoned_datetime(now.time_zone().clone()).context("there is no such time here")?.timestamp()
            }
        })
    }
}

impl FromStr for When {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self::At(time));
        }
        // Jiff reads a date as its midnight. A time with an offset it cannot make sense of must not become a local one.
        if let Ok(time) = text.parse::<DateTime>() {
            return Ok(Self::Here(time));
        }
        match text.parse::<Span>() {
            Ok(span) if !span.is_negative() => Ok(Self::Ago(Box::new(span))),
            Ok(_) | Err(_) => Err("expected a span such as 2h or 7d, or a time such as 2026-11-23T08:00Z"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use clap::Parser;
    use jiff::tz::{Offset, TimeZone};

    use super::*;
    use crate::{
        audit::{Attempt, Options, Recorder, Transport, Way},
        metrics::Metrics,
        name::DomainName,
        policy::Action,
    };

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(line: &str) -> Arguments {
        Line::try_parse_from(std::iter::once("attempts").chain(line.split_whitespace())).unwrap().arguments
    }

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    fn now() -> ZonedDateTime {
        at("2026-11-25T12:00:00Z").to_zoned_datetime(TimeZone::fixed(Offset::constant(1)))
    }

    fn attempt(time: &str, client: &str, name: &[u8]) -> Attempt {
        let mut wire = vec![u8::try_from(name.len()).unwrap()];
        wire.extend_from_slice(name);
        wire.extend_from_slice(b"\x07example\0");
        Attempt {
            time: at(time),
            decision: Decision::Blocked,
            way: Way::Dns,
            client: SocketAddr::new(client.parse().unwrap(), 4711),
            via: None,
            group: None,
            transport: Some(Transport::Udp),
            protocol: None,
            name: DomainName::from_wire(&wire).ok(),
            qtype: Some(1),
            qclass: Some(1),
            destination: None,
            process: None,
            rule: "ngrok/connect".into(),
            evidence: None,
            action: Some(Action::Nxdomain),
            rcode: Some(3),
        }
    }

    /// A folder with a store in which these were recorded.
    async fn recorded(attempts: impl IntoIterator<Item = Attempt>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { keep: std::time::Duration::from_secs(1 << 32), ..Options::default() };
        let recorder = Recorder::start(&options, folder.path(), Arc::<Metrics>::default()).unwrap();
        attempts.into_iter().for_each(|attempt| recorder.record(attempt));
        recorder.stop().await;
        folder
    }

    /// Results, remarks, and what to go on with.
    fn shown(line: &str, folder: &Path, json: bool) -> (String, String, Shown) {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let mut screen = Screen { out: &mut out, notes: &mut notes, json, is_coloured: false, now: now() };
        let shown = show(&arguments(line), &folder.join("attempts.db"), &mut screen).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap(), shown)
    }

    #[tokio::test]
    async fn the_table_is_aligned_in_local_time_and_escapes_what_it_shows() {
        let folder = recorded([
            attempt("2026-11-25T01:14:05Z", "192.0.2.7", b"connect"),
            attempt("2026-11-25T01:14:06Z", "192.0.2.7", b"connect"),
            Attempt {
                decision: Decision::AllowedException,
                group: Some("build\u{1b}[2Jhosts".into()),
                rcode: None,
                ..attempt("2026-11-25T02:00:00.5Z", "2001:db8::1", b"\x1b[31m\n\"\xff")
            },
        ])
        .await;
        let (table, notes, _) = shown("", folder.path(), false);
        let expected = r#"FIRST SEEN                 DECISION           CLIENT       GROUP                 NAME                            TYPE  RULE           ANSWER    COUNT
2026-11-25 02:14:05+01:00  blocked            192.0.2.7                          connect.example                 A     ngrok/connect  NXDOMAIN  2
2026-11-25 03:00:00+01:00  allowed-exception  2001:db8::1  build\u{1b}[2Jhosts  \027\[31m\010\"\255.example  A     ngrok/connect  none      1
"#;
        let squeezed = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&table), squeezed(expected));
        let starts: Vec<_> = table.lines().map(|line| line.find("ngrok/connect").or(line.find("RULE"))).collect();
        assert!(starts.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
        assert!(table.chars().all(|character| character == '\n' || !character.is_control()));
        assert_eq!(notes, "");
    }

    #[tokio::test]
    async fn the_newest_hundred_of_a_day_are_shown_and_the_others_counted() {
        let many = (0..250).map(|second| {
            let time = at("2026-11-25T11:00:00Z") + Span::new().seconds(second);
            Attempt { time, ..attempt("2026-11-25T11:00:00Z", "192.0.2.7", format!("n{second}").as_bytes()) }
        });
        let old = attempt("2026-11-20T11:00:00Z", "192.0.2.7", b"old");
        let folder = recorded([old].into_iter().chain(many)).await;
        #[rustfmt::skip]
        let cases = [
            ("",                               100, "n249", "150 older ones are not shown: --limit COUNT shows more, --all shows all\n"),
            ("--limit 3",                        3, "n249", "247 older ones are not shown: --limit COUNT shows more, --all shows all\n"),
            ("--all",                          251, "n249", ""),
            ("--all --since 2d",               250, "n249", ""),
            ("--since 2026-11-25T12:04:09",      1, "n249", ""),
            ("--since 2026-11-25T11:04:09Z",     1, "n249", ""),
            ("--until 2026-11-21",               1, "old",  ""),
            ("--since 30d --until 2026-11-25T11:00:01Z", 3, "n1", ""),
            ("--name n7.example",                1, "n7",   ""),
            ("--name .example --limit 250",    250, "n249", ""),
            ("--name .other",                    0, "",     "no attempts since 2026-11-24 13:00:00+01:00\n"),
            ("--decision observed --all",        0, "",     "no attempts\n"),
            ("--client 192.0.2.0/24 --rule ngrok --limit 1000", 250, "n249", ""),
        ];
        for (line, count, last, remarks) in cases {
            let (out, notes, _) = shown(line, folder.path(), true);
            assert_eq!((out.lines().count(), notes.as_str()), (count, remarks), "{line}");
            assert!(
                out.lines().last().unwrap_or_default().contains(&format!("\"{last}")) || count == 0,
                "{line}: {out}"
            );
        }
    }

    #[tokio::test]
    async fn following_goes_on_where_the_table_ended() {
        let folder = recorded([attempt("2026-11-25T11:00:00Z", "192.0.2.7", b"one")]).await;
        let (line, _, shown) = shown("--follow --name .example", folder.path(), true);
        let known: Record = serde_json::from_str(&line).unwrap();
        let repeated = Record { count: 12, ..known.clone() };
        let mut stranger = Record { id: Id(known.id.0 + 1), ..known.clone() };
        stranger.question.name = Some("one.other".into());
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let mut screen = Screen { out: &mut out, notes: &mut notes, json: true, is_coloured: false, now: now() };
        let heard = [&known, &repeated, &stranger].map(|record| Ok(record.json_line()));
        follow(shown, heard.into_iter(), &mut screen).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), repeated.json_line());
    }

    #[test]
    fn without_a_store_it_says_where_it_looked() {
        let folder = tempfile::tempdir().unwrap();
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let mut screen = Screen { out: &mut out, notes: &mut notes, json: false, is_coloured: false, now: now() };
        let store = folder.path().join("attempts.db");
        let error = format!("{:#}", show(&arguments(""), &store, &mut screen).unwrap_err());
        assert!(error.contains("there is no record at") && error.contains(&store.display().to_string()), "{error}");
    }

    #[test]
    fn a_moment_may_be_a_span_back_or_a_time_here_or_anywhere() {
        #[rustfmt::skip]
        let cases = [
            ("2h",                        Some("2026-11-25T10:00:00Z")),
            ("7d",                        Some("2026-11-18T12:00:00Z")),
            ("90 minutes",                Some("2026-11-25T10:30:00Z")),
            ("2026-11-25T08:00Z",         Some("2026-11-25T08:00:00Z")),
            ("2026-11-25T08:00:00+05:00", Some("2026-11-25T03:00:00Z")),
            ("2026-11-25 08:00",          Some("2026-11-25T07:00:00Z")),
            ("2026-11-25",                Some("2026-11-24T23:00:00Z")),
            ("-2h",                       None),
            ("yesterday",                 None),
            ("",                          None),
            ("2026-13-01",                None),
        ];
        for (text, expected) in cases {
            let moment = When::from_str(text).ok().map(|when| when.resolve(&now()).unwrap());
            assert_eq!(moment, expected.map(at), "{text}");
        }
        assert!(When::from_str("15000y").unwrap().resolve(&now()).is_err());
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "--all --limit 3",
            "--follow --until 1h",
            "--client somebody",
            "--name a..b",
            "--decision no",
            "--since soon",
        ] {
            let parsed = Line::try_parse_from(std::iter::once("attempts").chain(line.split_whitespace()));
            assert!(parsed.is_err(), "{line}");
        }
    }
}
