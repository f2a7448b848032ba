//! A record as the one line that is read in a terminal while `serve` runs.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;

use super::{Decision, Matched, Process, Record};
use crate::problem::printable;

/// The line, without a newline: `02:14:05 blocked  connect.eu.ngrok-agent.com A from 127.0.0.1: ngrok/connect, NXDOMAIN x12`.
/// Every text in it is escaped and cut.
pub fn line(record: &Record, zone: &TimeZone, is_coloured: bool) -> String {
    let style = if is_coloured { decision_style(record.decision) } else { Style::new() };
    let mut line = format!("{} ", record.last.to_zoned_datetime(zone.clone()).strftime("%H:%M:%S"));
    let Record { decision, client, rule, .. } = record;
    // Writing to a string does not fail.
    let _ = write!(line, "{style}{decision:<8}{style:#} {} {}", shown_name(record), shown_kind(record));
    let _ = write!(line, " from {client}");
    if let Some(via) = record.via {
        let _ = write!(line, " via {via}");
    }
    let _ = write!(line, ": {}", printable(rule));
    match &record.evidence {
        None => {}
        Some(Matched::Alias(alias)) => line.push_str(&format!(" by its alias {}", printable(alias))),
        Some(Matched::Address(address)) => line.push_str(&format!(" by its address {address}")),
    }
    if let Some(rcode) = &record.rcode {
        let _ = write!(line, ", {}", printable(rcode));
    }
    if let Some(process) = &record.process {
        let _ = write!(line, ", {}", shown_process(process));
    }
    if record.count > 1 {
        let _ = write!(line, " x{}", record.count);
    }
    line
}

/// The name that was asked for, or where it was to go without one; words for a record that joins several.
pub fn shown_name(record: &Record) -> String {
    match (&record.question.name, record.destination) {
        (Some(name), _) => printable(name),
        (None, Some(destination)) => destination.to_string(),
        (None, None) => "(several names)".to_owned(),
    }
}

/// The type that was asked for; of what is no question, the way.
pub fn shown_kind(record: &Record) -> String {
    record.question.qtype.as_deref().map_or_else(|| record.way.to_string(), printable)
}

/// A process by its file's name and number, or by its user where only that is known.
pub fn shown_process(process: &Process) -> String {
    let name = process.exe.as_deref().map(|exe| printable(exe.rsplit('/').next().unwrap_or(exe)));
    match (name, process.pid) {
        (Some(name), Some(pid)) => format!("{name}[{pid}]"),
        (Some(name), None) => name,
        (None, Some(pid)) => format!("pid {pid}"),
        (None, None) => format!("uid {}", process.uid),
    }
}

/// How a decision looks where colours are wanted.
pub fn decision_style(decision: Decision) -> Style {
    let colour = match decision {
        Decision::Blocked => AnsiColor::Red,
        Decision::Observed => AnsiColor::Yellow,
        Decision::AllowedOwn => AnsiColor::Green,
        Decision::AllowedException => AnsiColor::Cyan,
    };
    colour.on_default().bold()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Attempt, Client, Evidence, Id, Way, attempt::tests::attempt};

    fn record(attempt: &Attempt) -> Record {
        let client = Client::Address { address: attempt.client.ip(), port: 1 };
        Record::first(Id(1), attempt, client, attempt.name.as_ref().map(ToString::to_string))
    }

    #[test]
    fn a_line_says_when_what_who_and_why() {
        let plain = attempt("192.0.2.7:1", "connect.eu.ngrok-agent.com");
        let alias = Attempt {
            decision: Decision::Observed,
            via: Some("10.0.0.53".parse().unwrap()),
            evidence: Some(Evidence::Alias("tunnel.ngrok.com".parse().unwrap())),
            rcode: None,
            ..plain.clone()
        };
        let process = Process { pid: Some(7), exe: Some("/opt/ngrok".into()), uid: 0, cgroup: None };
        let gate = Attempt {
            way: Way::TlsGate,
            name: None,
            qtype: None,
            qclass: None,
            destination: "3.125.1.1:443".parse().ok(),
            process: Some(process),
            rcode: None,
            ..plain.clone()
        };
        let repeated = Record { count: 12, ..record(&plain) };
        let several =
            Record { question: crate::audit::Question { name: None, ..repeated.question.clone() }, ..record(&plain) };
        #[rustfmt::skip]
        let cases = [
            (record(&plain), "08:00:00 blocked  connect.eu.ngrok-agent.com A from 192.0.2.7: ngrok/connect, NXDOMAIN"),
            (repeated,       "08:00:00 blocked  connect.eu.ngrok-agent.com A from 192.0.2.7: ngrok/connect, NXDOMAIN x12"),
            (several,        "08:00:00 blocked  (several names) A from 192.0.2.7: ngrok/connect, NXDOMAIN"),
            (record(&gate),  "08:00:00 blocked  3.125.1.1:443 tls-gate from 192.0.2.7: ngrok/connect, ngrok[7]"),
            (record(&alias), "08:00:00 observed connect.eu.ngrok-agent.com A from 192.0.2.7 via 10.0.0.53: ngrok/connect by its alias tunnel.ngrok.com"),
        ];
        for (record, expected) in cases {
            assert_eq!(line(&record, &TimeZone::UTC, false), expected);
        }
    }

    #[test]
    fn colours_are_there_only_when_asked_for_and_text_never_brings_its_own() {
        let attempt = attempt("192.0.2.7:1", "a.example");
        let mut hostile = record(&attempt);
        hostile.question.name = Some("\u{1b}[2J\n\u{202e}".repeat(100));
        hostile.rule = "p/\u{7}".into();
        let shown = line(&hostile, &TimeZone::UTC, false);
        assert!(!shown.chars().any(|character| character.is_control() || character == '\u{202e}'), "{shown}");
        let coloured = line(&record(&attempt), &TimeZone::UTC, true);
        assert_eq!(coloured.matches('\u{1b}').count(), 3, "{coloured:?}");
    }
}
