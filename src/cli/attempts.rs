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
use jiff::{Span, Timestamp, Zoned, civil::DateTime};

use crate::{
    audit::{ClientFilter, Decision, Filter, Id, NameFilter, Reader, Record, decision_style, shown_name},
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
    /// Seen since: a span back such as 2h or 7d, or a time such as 2026-11-23T08:00Z [default: 24h].
    #[arg(long, value_name = "WHEN")]
    pub since: Option<When>,
    /// Seen until: the same.
    #[arg(long, value_name = "WHEN", conflicts_with = "follow")]
    pub until: Option<When>,
    /// Show that many, the newest [default: 100].
    #[arg(long, value_name = "COUNT", conflicts_with = "all")]
    pub limit: Option<u32>,
    /// Show all that match, as far back as the record goes unless --since says otherwise.
    #[arg(long)]
    pub all: bool,
    /// By this client: an address, a network, or a hash as the record shows it.
    #[arg(long, value_name = "CLIENT")]
    pub client: Option<ClientFilter>,
    /// For this name; .name is it and everything below it.
    #[arg(long, value_name = "NAME")]
    pub name: Option<NameFilter>,
    /// By this rule, as ngrok/connect, or by any rule of a pack, as ngrok.
    #[arg(long, value_name = "RULE")]
    pub rule: Option<String>,
    /// By a client of this group.
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Decided so: blocked, observed, allowed-own or allowed-exception.
    #[arg(long, value_name = "DECISION")]
    pub decision: Option<Decision>,
    /// Go on showing what is recorded, until interrupted.
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
    pub now: Zoned,
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
    fn filter(&self, now: &Zoned) -> Result<Filter> {
        let until = self.until.as_ref().map(|until| until.resolve(now)).transpose()?;
        let since = match &self.since {
            Some(since) => Some(since.resolve(now)?),
            None if self.all => None,
            None => Some(until.unwrap_or(now.timestamp()).checked_sub(Span::new().hours(24))?),
        };
        let Self { client, name, rule, group, decision, .. } = self.clone();
        Ok(Filter { since, until, client, name, rule, group, decision })
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

const COLUMNS: usize = 10;

const HEAD: [&str; COLUMNS] =
    ["FIRST SEEN", "DECISION", "CLIENT", "VIA", "GROUP", "NAME", "TYPE", "RULE", "ANSWER", "COUNT"];

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
fn cells(record: &Record, now: &Zoned) -> [String; COLUMNS] {
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
        name,
        printable(&record.question.qtype),
        printable(&record.rule),
        record.rcode.as_deref().map_or_else(|| "none".to_owned(), printable),
        record.count.to_string(),
    ]
}

/// A moment in the table's time zone, with its offset.
fn local(time: Timestamp, now: &Zoned) -> String {
    time.to_zoned(now.time_zone().clone()).strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
}

impl When {
    /// The moment it means, seen from `now`.
    fn resolve(&self, now: &Zoned) -> Result<Timestamp> {
        Ok(match self {
            Self::Ago(span) => now.checked_sub(**span).context("that is too long ago")?.timestamp(),
            Self::At(time) => *time,
            Self::Here(time) => time.to_zoned(now.time_zone().clone()).context("there is no such time here")?.timestamp(),
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
