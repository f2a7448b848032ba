//! The scout: `serve` starts it on a host to see whether questions of other users are turned to us. It asks somebody else
//! for a name that only the daemon knows, and does not wait for an answer: the daemon sees whether it arrives.

use std::{
    io::Read as _,
    net::{SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::Context as _;

use super::Exit;
use crate::{name::DomainName, sys::rights, wire::query::Query};

/// What `scout` takes.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// Whom it asks
    server: SocketAddr,
    /// For what
    name: DomainName,
}

/// A datagram may be lost.
const TIMES: u16 = 3;

const BETWEEN: Duration = Duration::from_millis(300);

/// A.
const A: u16 = 1;

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    rights::keep_only(&[]).context("cannot give up rights")?;
    // Until the daemon answers; or is gone.
    let _ = std::io::stdin().read(&mut [0]);
    let Arguments { server, name } = arguments.clone();
    let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    let query = Query { name, qtype: A, dnssec_ok: false, checking_disabled: false };
    for number in 0..TIMES {
        socket.send_to(&query.to_packet(number, false), server)?;
        thread::sleep(BETWEEN);
    }
    Ok(Exit::Done)
}
