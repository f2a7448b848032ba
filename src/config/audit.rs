//! `[audit]`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::set;
use crate::{
    audit::{ClientMask, Options, Sink, Store},
    document::{Table, Value, quoted},
};

const MASKS: [(&str, ClientMask); 3] =
    [("full", ClientMask::Full), ("prefix", ClientMask::Prefix), ("keyed-hash", ClientMask::KeyedHash)];

const HOUR: Duration = Duration::from_hours(1);
const TEN_YEARS: Duration = Duration::from_hours(24 * 3650);

/// Smallest store, in bytes: below it the database's own pages are most of it.
const MIN_STORE: u64 = 1 << 20;

/// Sinks and formats of later versions.
const LATER: [&str; 6] = ["syslog", "journald", "dnstap", "ocsf", "ecs", "cef"];

pub(super) fn read(root: &mut Table<'_>, base: &Path) -> Options {
    let mut options = Options::default();
    root.table("audit", |table| {
        set(&mut options.store, table.take("store", read_store));
        set(&mut options.own_use, table.take("own-use", Value::boolean));
        set(&mut options.clients, table.take("clients", |value| value.keyword(&MASKS)));
        set(&mut options.keep, table.take("keep", |value| value.duration(HOUR..=TEN_YEARS)));
        set(&mut options.max_size, table.take("max-size", |value| value.size(MIN_STORE)));
        options.sinks = table.tables("sinks", |sink| read_sink(sink, base));
        if options.sinks.iter().filter(|sink| **sink == Sink::Stdout).count() > 1 {
            table.wrong("two sinks write to standard output", None);
        }
    });
    options
}

fn read_store(value: &Value<'_>) -> Option<Store> {
    let text = value.line()?;
    if text.contains("://") {
        let hint = "this version keeps its record in a file, such as \"attempts.db\"".to_owned();
        return value.wrong(format!("{} is no store that this version knows", quoted(&text)), Some(hint));
    }
    Some(if text == "off" { Store::Off } else { Store::File(text.into()) })
}

#[derive(Clone, Copy)]
enum Kind {
    Stdout,
    File,
}

fn read_sink(sink: &mut Table<'_>, base: &Path) -> Option<Sink> {
    let kinds = [("stdout", Kind::Stdout), ("file", Kind::File)];
    let kind = sink.require("kind", "kind = \"stdout\"", |value| known_here(value, &kinds));
    sink.take("format", |value| known_here(value, &[("json", ())]));
    let needs_path = matches!(kind, Some(Kind::File));
    let read_path = |value: &Value<'_>| -> Option<PathBuf> { Some(base.join(value.line()?)) };
    let path = if needs_path {
        sink.require("path", "path = \"/var/log/tunnelwarden/attempts.jsonl\"", read_path)
    } else {
        sink.take("path", read_path)
    };
    match kind? {
        Kind::File => path.map(Sink::File),
        Kind::Stdout => {
            if path.is_some() {
                sink.wrong("a sink to standard output has no path", Some("write kind = \"file\"".to_owned()));
            }
            Some(Sink::Stdout)
        }
    }
}

fn known_here<T: Copy>(value: &Value<'_>, words: &[(&'static str, T)]) -> Option<T> {
    let text = value.text()?;
    if LATER.contains(&text) {
        return value.wrong(format!("this version has no {} yet", quoted(text)), None);
    }
    value.keyword(words)
}
