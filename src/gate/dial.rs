//! Where a name's servers are, asked by ourselves, and a connection to one of them.
//!
//! Such a connection must not be redirected to the gate again: the ruleset knows us by our user, or our mark. Should it not, the gate
//! knows its own by their addresses, and no connection becomes hundreds.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::{FutureExt as _, select_ok};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time};

use super::{House, Inside, visit::Turned};
use crate::{
    gateway::Ticket,
    ingress::{exclusions::Exclusions, lookup::look_up},
    name::DomainName,
    sys::{interfaces::Interfaces, redirect::canonical},
};

/// What is at a name.
pub(super) struct Found {
    pub(super) aliases: Vec<DomainName>,
    pub(super) addresses: Vec<IpAddr>,
    /// Those of them that may be dialled, in the order in which they are.
    pub(super) servers: Vec<SocketAddr>,
}

/// Our ends of the connections to servers, as a connection that leads back to us would show them.
#[derive(Debug, Default)]
pub(super) struct Dialled(Mutex<HashSet<SocketAddr>>);

/// A connection to a server.
pub(super) struct Server<'d> {
    pub(super) stream: TcpStream,
    dialled: &'d Dialled,
    local: SocketAddr,
}

/// The one port that is redirected to the gate, and that it dials.
const HTTPS: u16 = 443;

/// Addresses of a name that are tried.
const MOST: usize = 8;

/// How long the next address waits for the one before it (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Looks the name up with the servers that our own questions go to. Only global unicast addresses count, and none that is
/// ours, on our links or an upstream's: a name that its owner points at the inside must not open the inside.
pub(super) async fn find(house: &House, ticket: &Ticket) -> Result<Found, Turned> {
    let upstream = house.gateway.upstream();
    let looked = time::timeout(house.options.dial, look_up(&upstream, ticket.name().clone())).await;
    let looked = looked.map_err(|_| Turned::Reset)?;
    let in_force = house.gateway.in_force();
    let interfaces = Interfaces::read().map_err(|_| Turned::Reset)?;
    let servers = upstream.health().into_iter().filter_map(|server| server.server.address());
    let exclusions = Exclusions::new(&in_force.policy, &interfaces, servers.map(|server| server.ip()));
    let admitted: Vec<_> = looked.addresses.iter().filter(|address| exclusions.admit(**address).is_ok()).collect();
    let servers = in_turns(admitted.into_iter().copied(), ticket.arrival().destination.ip());
    if servers.is_empty() {
        return Err(Turned::Reset);
    }
    Ok(Found { aliases: looked.aliases, addresses: looked.addresses, servers })
}

/// Dials them one after the other, without waiting long for any, and says what the client said so far.
pub(super) async fn reach<'i>(inside: &'i Inside, servers: &[SocketAddr], said: &[u8]) -> Result<Server<'i>, Turned> {
    let outlet = &inside.house.gateway.upstream().outlet().clone();
    let dialled = (0..).zip(servers).map(|(place, server)| {
        let server = *server;
        async move {
            // A timer takes a millisecond at least.
            if place > 0 {
                time::sleep(HEAD_START * place).await;
            }
            outlet.tcp(server).await
        }
        .boxed()
    });
    let reached = async {
        let (stream, _) = select_ok(dialled).await?;
        // Before the first byte: should it come back to us, it is known by then.
        let mut server = inside.dialled.enter(stream)?;
        server.stream.write_all(said).await?;
        io::Result::Ok(server)
    };
    time::timeout(inside.house.options.dial, reached).await.ok().and_then(Result::ok).ok_or(Turned::Reset)
}

impl Dialled {
    /// Does this peer of ours stand for ourselves?
    pub(super) fn holds(&self, peer: SocketAddr) -> bool {
        self.all().contains(&peer)
    }

    fn enter(&self, stream: TcpStream) -> io::Result<Server<'_>> {
        let local = canonical(stream.local_addr()?);
        self.all().insert(local);
        Ok(Server { stream, dialled: self, local })
    }

    fn all(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.dialled.all().remove(&self.local);
    }
}

/// Both families in turns, that of the client first.
fn in_turns(addresses: impl Iterator<Item = IpAddr>, client: IpAddr) -> Vec<SocketAddr> {
    let is_first = |address: &IpAddr| address.is_ipv4() == client.is_ipv4();
    let (first, second): (Vec<_>, Vec<_>) = addresses.map(|address| address.to_canonical()).partition(is_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::new();
    while turns.len() < MOST {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            break;
        }
        turns.extend(pair.into_iter().flatten().map(|address| SocketAddr::new(address, HTTPS)));
    }
    turns.truncate(MOST);
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_tried_in_turns_and_no_more_than_so_many() {
        let addresses = ["2001:db8::1", "192.0.2.1", "::ffff:192.0.2.2", "192.0.2.3", "2001:db8::2"];
        let turns = |client: &str| -> Vec<String> {
            let addresses = addresses.iter().map(|text| text.parse().unwrap());
            in_turns(addresses, client.parse().unwrap()).iter().map(|server| server.ip().to_string()).collect()
        };
        assert_eq!(turns("10.0.0.1"), ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2", "192.0.2.3"]);
        assert_eq!(turns("fd00::1"), ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "192.0.2.3"]);
        let many = (0..100).map(|last| IpAddr::from([192, 0, 2, last]));
        assert_eq!(in_turns(many, "10.0.0.1".parse().unwrap()).len(), MOST);
    }
}
