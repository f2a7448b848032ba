//! `healthcheck`: asks the running daemon whether it is ready. For containers, which know 0 and 1 and nothing else.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde::Serialize;

use super::{Common, Exit, print_json, state_dir};
use crate::{
    admin::{READY, Readiness},
    config, daemon,
};

/// What `healthcheck` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Also fail when something is degraded: no upstream server answers, the record cannot be written, a reload was refused
    #[arg(long)]
    strict: bool,
}

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest answer, in bytes.
const ANSWER: u64 = 1 << 16;

#[derive(Serialize)]
struct Report<'a> {
    ready: bool,
    #[serde(flatten)]
    readiness: &'a Readiness,
}

pub(super) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<Exit> {
    // No other exit code, whatever goes wrong: Docker keeps 2 for itself.
    check(arguments, common).or_else(|error| {
        anstream::eprintln!("tunnelwarden: {error:#}");
        Ok(Exit::Failed)
    })
}

fn check(arguments: &Arguments, common: &Common) -> anyhow::Result<Exit> {
    let address = admin_address(common)?;
    let readiness = ask(address).with_context(|| format!("no readiness from http://{address}{READY}"))?;
    let ready = if arguments.strict { readiness.is_all_well() } else { readiness.is_ready() };
    if common.json {
        print_json(&Report { ready, readiness: &readiness })?;
    } else {
        anstream::print!("{readiness}");
    }
    Ok(if ready { Exit::Done } else { Exit::Failed })
}

/// Where the configuration says, else where the daemon left word that it is. Broken files must not make a daemon look
/// dead that runs with those of before: the restart that follows would end it. So nothing is said of them here.
fn admin_address(common: &Common) -> anyhow::Result<SocketAddr> {
    let loaded = config::load(common.config.as_deref(), Timestamp::now());
    let configured = match loaded.outcome.map(|config| config.listen.admin.address()) {
        Some(None) => bail!("there is no admin door to ask: [listen] admin is \"off\""),
        // Port 0 stands for the one that was given.
        Some(address) => address.filter(|address| address.port() != 0),
        None => None,
    };
    let known = configured.or_else(|| daemon::admin_address(&state_dir(common).ok()?));
    let mut address = known.context("neither the configuration nor the state folder tells where the admin door is")?;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    Ok(address)
}

fn ask(address: SocketAddr) -> anyhow::Result<Readiness> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // In one piece: whoever answers before the rest has come would reset the connection.
    let request = format!("GET {READY} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER).read_to_string(&mut answer)?;
    // Whatever the status: the lines say the same, and why.
    let (_, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    Ok(body.parse()?)
}
