//! What the running daemon has learned of ingress addresses: asked over the control socket, and shown.

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::bail;
use serde::Serialize;

use crate::{
    control::{self, Reply, Request},
    ingress::{Entry, Report, TurnedAway},
    policy::{Policy, Source},
};

/// Asks the daemon.
///
/// # Errors
/// When there is none, or it may not be asked.
pub fn ask(socket: &Path) -> anyhow::Result<Report> {
    match control::send(socket, &Request::Learned)? {
        Reply::Learned(report) => Ok(report),
        Reply::Reload(_) | Reply::Flushed | Reply::Firewall(_) | Reply::Following | Reply::Refused { .. } => {
            bail!("the daemon answered something else")
        }
    }
}

/// The report with the rules that each address stands for.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// For each of `learned`, in its order.
    rules: Vec<Vec<&'a str>>,
}

/// Shows all of it, as a table or as one JSON object. The policy names the rules.
///
/// # Errors
/// Writing to `out` failed.
pub fn show(report: &Report, policy: &Policy, (json, out): &mut (bool, &mut impl Write)) -> io::Result<()> {
    let rules_of = |source: &Source| policy.rules_of(source).map(|rule| &*rule.label).collect::<Vec<_>>();
    if *json {
        let rules = report.learned.iter().map(|entry| rules_of(&entry.sighting.source)).collect();
        serde_json::to_writer(&mut *out, &Shown { report, rules })?;
        return writeln!(out);
    }
    let Report { number, pending, failing, learned, turned_away } = report;
    writeln!(
        out,
        "{} addresses, set {number}; {pending} names not looked up yet, {} failing",
        learned.len(),
        failing.len()
    )?;
    for name in failing {
        writeln!(out, "  failing      {name}")?;
    }
    for Entry { address, sighting } in learned {
        let (source, rules) = (&sighting.source, rules_of(&sighting.source).join(", "));
        writeln!(out, "  {address:<39}  {:.0}  {:.0}  {source} ({rules})", sighting.first, sighting.last)?;
    }
    for TurnedAway { address, source, reason } in turned_away {
        writeln!(out, "  turned away  {address}, of {source}: {}", reason.why())?;
    }
    Ok(())
}
