//! Opens what an answer names, before the client learns it.
//!
//! Where a firewall is in force, an address that nobody resolved through us is closed or remarkable. So an answer is held
//! until the kernel has its addresses, on a cache hit too, and no TTL outlives what was opened for it.

use std::time::Instant;

use super::{Case, Gateway, Pass};
use crate::{
    audit,
    cache::Found,
    keeper::{self, KeeperError, Leases},
    wire::{ede, reply::ExtendedError},
};

/// What a client is told whose answer could not be opened.
pub(super) const UNOPENED: ExtendedError<'static> =
    ExtendedError { code: ede::OTHER, text: b"the firewall did not open the answer's addresses" };

/// The port that the gate watches: no answer opens it.
const GATED: u16 = 443;

impl From<keeper::Process> for audit::Process {
    fn from(found: keeper::Process) -> Self {
        let keeper::Process { user, cgroup, id, exe } = found;
        let exe = Some(exe).filter(|exe| !exe.is_empty());
        Self { pid: id, exe, uid: user, cgroup: cgroup.map(|id| id.to_string()) }
    }
}

impl Gateway {
    /// Opens the addresses of an answer for the client, and tells how long they stay so, in seconds: no TTL may be
    /// larger. `wanted` is the largest it would have otherwise.
    pub(super) fn open(&self, case: &Case<'_>, found: &Found, pass: &Pass, wanted: u32) -> Result<u32, KeeperError> {
        let addresses = found.answer.addresses();
        let Some(leases) = case.in_force.leases.as_deref().filter(|_| !addresses.is_empty()) else {
            return Ok(u32::MAX);
        };
        let age = found.age;
        let ttl = found.answer.ttl().map_or(0, |ttl| ttl.saturating_sub(age)).min(wanted);
        let opened = self.open_all(leases, case, (addresses, pass), ttl);
        if opened.is_err() {
            self.metrics.leases_refused.increment();
        }
        opened
    }

    fn open_all(
        &self,
        leases: &Leases,
        case: &Case<'_>,
        (addresses, pass): (&[std::net::IpAddr], &Pass),
        ttl: u32,
    ) -> Result<u32, KeeperError> {
        let (client, now) = (case.asker.client.ip(), Instant::now());
        let mut opened = leases.open(client, addresses, ttl, now)?;
        if let Some(until) = pass.until {
            leases.ends_at(until, client, addresses)?;
        }
        let ports = pass.allowed_by.map(|rule| case.in_force.policy.rule(rule).ports.as_ref()).unwrap_or_default();
        for &port in ports.iter().filter(|&&port| port != GATED) {
            opened = opened.min(leases.open_port(client, (addresses, port), ttl, now)?);
        }
        Ok(opened)
    }
}
