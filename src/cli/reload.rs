//! `reload`: asks the daemon to read its files again and says what came of it.

use anyhow::bail;

use super::{Common, Exit, control_socket, load, print_json};
use crate::control::{self, Outcome, ReloadReport, Reply, Request};

/// What `reload` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Also take a change that removes a pack, an own ingress, or over a fifth of the rules or patterns
    #[arg(long)]
    accept: bool,
}

pub(super) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<Exit> {
    let socket = control_socket(common)?;
    let sent = control::send(&socket, &Request::Reload { accept: arguments.accept });
    if sent.is_err() && common.config.as_ref().is_some_and(|path| !path.exists()) {
        // The missing file is what is wrong; that no daemon runs with it follows from that.
        load(common)?;
    }
    let report = match sent? {
        Reply::Reload(report) => report,
        Reply::Flushed | Reply::Learned(_) | Reply::Firewall(_) | Reply::Following | Reply::Refused { .. } => {
            bail!("the daemon answered something else")
        }
    };
    if common.json {
        print_json(&report)?;
    } else {
        print(&report);
    }
    Ok(match report.outcome {
        Outcome::Loaded => Exit::Done,
        Outcome::Refused => Exit::Invalid,
        Outcome::Held => Exit::No,
    })
}

fn print(report: &ReloadReport) {
    for problem in &report.problems {
        anstream::eprintln!("{problem}");
    }
    let ReloadReport { rules, groups, exceptions, .. } = report;
    let counts = format!("{rules} rules, {groups} client groups, {exceptions} exceptions");
    match report.outcome {
        Outcome::Loaded => anstream::println!("loaded: {counts}"),
        Outcome::Refused => anstream::println!("refused: the files are broken; still in force: {counts}"),
        Outcome::Held => anstream::println!(
            "held: the change takes much away; `tunnelwarden reload --accept` takes it; still in force: {counts}"
        ),
    }
    for change in &report.changes {
        anstream::println!("  {change}");
    }
    for change in &report.restart {
        anstream::println!("  after a restart: {change}");
    }
}
