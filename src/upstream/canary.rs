//! Finds servers that forward our questions back to us, however many others lie between.
//!
//! Each server is asked now and then for a name nobody can guess. Where that question comes to our own door, the
//! server loops. The names of default servers lie below `example`, which resolvers pass on like any other
//! (RFC 6761 section 6.5); `invalid` and `test` many answer themselves, so the loop would not show. The canary of a
//! server that only serves a zone lies in that zone.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{
    Query, State, locked,
    server::{Budget, Server},
};
use crate::name::{DomainName, NameRef};

/// The canaries that are out.
#[derive(Debug, Default)]
pub(super) struct Canaries(Mutex<Vec<Canary>>);

#[derive(Debug)]
struct Canary {
    name: DomainName,
    server: Weak<Server>,
    seen: bool,
}

/// Where the canaries of default servers live.
const HOME: &[u8] = b"\x04loop\x0ctunnelwarden\x07example\0";

/// How long a canary may take; a loop through slow servers shows after the reply was given up.
const FLIGHT: Duration = Duration::from_secs(5);

/// From one canary to the next: servers' configurations change too.
const EVERY: Duration = Duration::from_mins(10);

/// The same after a loop was found, or nothing was heard.
const SOON: Duration = Duration::from_secs(30);

/// How long the first canary waits, so that it comes home to a door that knows of it: at a reload, servers are
/// started before the door is told of them.
const SETTLE: Duration = Duration::from_millis(250);

/// A.
const A: u16 = 1;

/// Letters of a canary's first label: 128 bits in base 16.
const LETTERS: usize = 32;

impl Canaries {
    /// Is this the name of a canary that is out? Other names are told by their first label's length, without a lock.
    pub(super) fn is_out(&self, name: NameRef<'_>) -> bool {
        name.first_label().len() == LETTERS && locked(&self.0).iter().any(|canary| canary.name.as_name() == name)
    }

    /// One came home.
    pub(super) fn seen(&self, name: NameRef<'_>) {
        let server = {
            let mut out = locked(&self.0);
            let Some(canary) = out.iter_mut().find(|canary| canary.name.as_name() == name) else { return };
            // The same one may come home many times; once is news.
            if std::mem::replace(&mut canary.seen, true) {
                return;
            }
            canary.server.upgrade()
        };
        if let Some(server) = server {
            server.vitals.loops();
        }
    }

    fn release(&self, name: DomainName, server: &Weak<Server>) {
        locked(&self.0).push(Canary { name, server: Weak::clone(server), seen: false });
    }

    /// Takes it back. Has it come home?
    fn recall(&self, name: &DomainName) -> bool {
        let mut out = locked(&self.0);
        let place = out.iter().position(|canary| canary.name == *name);
        place.is_some_and(|place| out.swap_remove(place).seen)
    }
}

/// Sends canaries through one server for as long as it is configured.
pub(super) async fn watch(canaries: Arc<Canaries>, server: Weak<Server>, zone: Option<DomainName>) {
    sleep(SETTLE).await;
    while server.strong_count() > 0 {
        let name = name_below(zone.as_ref());
        canaries.release(name.clone(), &server);
        let started = Instant::now();
        let answered = send(&server, &name).await;
        tokio::time::sleep_until(started + FLIGHT).await;
        let came_home = canaries.recall(&name);
        if answered
            && !came_home
            && let Some(server) = server.upgrade()
        {
            server.vitals.does_not_loop();
        }
        sleep(if answered && !came_home { EVERY } else { SOON }).await;
    }
}

async fn send(server: &Weak<Server>, name: &DomainName) -> bool {
    let Some(server) = server.upgrade() else { return false };
    // A server that is down has probes of its own.
    if server.vitals.state() == State::Down {
        return false;
    }
    let query = Query { name: name.clone(), qtype: A, dnssec_ok: false, checking_disabled: false };
    let reply = timeout(FLIGHT, server.ask(&Arc::new(query), &Budget::new(4), None)).await;
    matches!(reply, Ok(Ok(_)))
}

fn name_below(zone: Option<&DomainName>) -> DomainName {
    let label = format!("{:032x}", rand::random::<u128>());
    let below = |zone: &[u8]| DomainName::from_wire(&[b"\x20", label.as_bytes(), zone].concat()).ok();
    zone.and_then(|zone| below(zone.as_wire())).or_else(|| below(HOME)).unwrap_or_else(DomainName::root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_lies_below_its_zone_and_where_that_is_too_long_at_home() {
        let home = DomainName::from_wire(HOME).unwrap();
        let zone: DomainName = "corp.example".parse().unwrap();
        let long: DomainName = vec!["a".repeat(62); 4].join(".").parse().unwrap();
        for (below, expected) in [(None, &home), (Some(&zone), &zone), (Some(&long), &home)] {
            let name = name_below(below);
            assert!(name.is_within(expected.as_name()), "{name}");
            assert_eq!(name.as_name().first_label().len(), LETTERS);
            assert_ne!(name, name_below(below));
        }
    }

    #[test]
    fn only_canaries_that_are_out_are_known() {
        let canaries = Canaries::default();
        let (ours, foreign) = (name_below(None), name_below(None));
        canaries.release(ours.clone(), &Weak::new());
        assert!(canaries.is_out(ours.as_name()));
        assert!(!canaries.is_out(foreign.as_name()), "another daemon's canary is a name like any other");
        canaries.seen(ours.as_name());
        canaries.seen(foreign.as_name());
        assert!(canaries.recall(&ours) && !canaries.is_out(ours.as_name()));
    }
}
