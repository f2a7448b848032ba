//! `export`: the same policy for another system, and what that system cannot say.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use jiff::Timestamp;

use super::{Common, Exit, learned, load, socket_or_default};
use crate::{
    config::Config,
    export::{Fragment, squid},
    policy::Learned,
};

/// What `export` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// For which system
    #[arg(value_enum)]
    format: Format,
    /// Write to FILE, and long lists to files beside it, FILE.names-1 and so on [default: standard output, in one piece]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    /// Lines for squid.conf that deny what the policy refuses, CONNECT above all
    Squid,
}

/// Prints or writes the export, and tells on standard error what is not in it.
pub(super) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<Exit> {
    let mut config = load(common)?;
    let learned = learned(&mut config, common)?;
    let fragment = match arguments.format {
        Format::Squid => squid::export(&squid::Facts {
            policy: &config.policy,
            own_addresses: &config.organization.addresses.iter().map(|network| network.value).collect::<Vec<_>>(),
            learned: learned.as_ref().map_err(String::as_str),
            time: Timestamp::now(),
        }),
    };
    match &arguments.out {
        Some(path) => write(&fragment, path)?,
        None => anstream::stdout().lock().write_all(fragment.text().as_bytes())?,
    }
    for missing in &fragment.missing {
        anstream::eprintln!("not in it: {missing}");
    }
    Ok(Exit::Done)
}

/// What the daemon has learned, or why that is not known.
fn learned(config: &mut Config, common: &Common) -> anyhow::Result<Result<Learned, String>> {
    let socket = socket_or_default(config.listen.socket.take(), common)?;
    let report = match learned::ask(&socket) {
        Ok(report) => report,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let unknown = report.pending + report.failing.len();
    if unknown > 0 {
        anstream::eprintln!("{unknown} ingress names have not been looked up yet: export again once they are");
    }
    Ok(Ok(Learned::from(&report)))
}

/// The file last: what it names is there by then.
fn write(fragment: &Fragment, path: &Path) -> anyhow::Result<()> {
    // Squid has another working folder.
    let path = std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))?;
    let (text, beside) = fragment.files(&path);
    beside.iter().try_for_each(|(path, names)| replace(path, names))?;
    replace(&path, &text)
}

/// The old file or the new, nothing between. Whoever may read in that folder may read it: the proxy is another user.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".new");
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}
