//! What the daemon does for its firewall while it runs: the keeper hears what was learned, the record what was refused.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{Attempt, Decision, Evidence, Process, Recorder, Transport, Way},
    gateway::Gateway,
    ingress::Ingress,
    keeper::{Denied, Keeper, Notice, Notices, Tried},
    metrics::Metrics,
    policy::{Learned, Verdict},
};

/// How long the kernel denies an address that nobody names again: long enough for a daemon that is mended next month.
const DENIED_FOR: Duration = Duration::from_hours(30 * 24);

/// How often all of them are named again, so that none ends while it is known.
const RENEW: Duration = Duration::from_hours(1);

/// How soon what the kernel did not take is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the kernel's ingress addresses those that were learned, until `stop`.
pub(super) async fn deny_learned(keeper: Keeper, ingress: Arc<Ingress>, stop: CancellationToken) {
    let mut progress = ingress.progress();
    let mut renew = interval(RENEW);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut denied = HashSet::new();
    let mut failed = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = renew.tick() => denied.clear(),
            Ok(()) = progress.changed() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
        }
        let learned = ingress.published().load_full();
        let (keeper, before) = (keeper.clone(), std::mem::take(&mut denied));
        let told = spawn_blocking(move || tell(&keeper, &learned, before)).await;
        (denied, failed) = told.unwrap_or_default();
    }
}

/// Tells what came and what went. What is denied then, and whether the keeper would not have some of it.
fn tell(keeper: &Keeper, learned: &Learned, before: HashSet<IpAddr>) -> (HashSet<IpAddr>, bool) {
    let now: HashSet<IpAddr> = learned.iter().map(|(address, _)| address).collect();
    let new: Vec<_> = now.difference(&before).copied().collect();
    let gone: Vec<_> = before.difference(&now).copied().collect();
    let outcome = keeper.deny(&new, DENIED_FOR).and_then(|()| keeper.forget(&gone));
    match outcome {
        Ok(()) => (now, false),
        Err(error) => {
            tracing::warn!(%error, "the firewall does not have every ingress address that was learned; it is tried again");
            (before, true)
        }
    }
}

/// Puts on record what the kernel refused, until the keeper is gone.
pub(super) fn record_denied(notices: Notices, gateway: &Gateway, recorder: &Recorder, metrics: &Metrics) {
    for notice in notices {
        match notice {
            Notice::Denied(denied) => {
                metrics.packets_suppressed.add(u64::from(denied.suppressed));
                recorder.record(attempt(&denied, gateway));
            }
            Notice::Ready(_) => {}
            Notice::Restored => {
                metrics.firewall_restored.increment();
                tracing::warn!("somebody else changed table inet tunnelwarden; it is as it was");
            }
            Notice::Trouble { trouble, words } => tracing::error!("firewall: {trouble}: {words}"),
        }
    }
}

fn attempt(denied: &Denied, gateway: &Gateway) -> Attempt {
    let in_force = gateway.in_force();
    let policy = &in_force.policy;
    let SocketAddr { .. } = denied.source;
    let group = policy.group(denied.source.ip());
    let destination = denied.destination;
    let reason = match policy.judge_answer(group, &[], &[destination.ip()], &in_force.learned.load()) {
        Verdict::Block(reason) | Verdict::Observe(reason) => Some(reason),
        Verdict::Allow(_) => None,
    };
    let named = reason.map(|reason| Arc::clone(&policy.rule(reason.rule).label));
    let (way, rule) = match denied.way {
        Tried::Dns => (Way::DnsRedirected, "firewall.dns".into()),
        Tried::Dot => (Way::Dot, "firewall.dot".into()),
        Tried::Doh => (Way::Doh, named.unwrap_or_else(|| "firewall.doh".into())),
        Tried::Address => (Way::Address, named.unwrap_or_else(|| "firewall.address".into())),
        Tried::Unresolved => (Way::Address, "firewall.unresolved".into()),
        Tried::Strict => (Way::Address, "firewall.strict".into()),
    };
    let passed = denied.observed || denied.way == Tried::Unresolved;
    Attempt {
        time: Timestamp::now(),
        decision: if passed { Decision::Observed } else { Decision::Blocked },
        way,
        client: denied.source,
        via: None,
        group: policy.group_name(group).map(str::to_owned),
        transport: transport(denied.protocol),
        protocol: Some(denied.protocol),
        name: None,
        qtype: None,
        qclass: None,
        destination: Some(destination),
        process: denied.user.map(|uid| Process { pid: None, exe: None, uid, cgroup: None }),
        rule,
        evidence: Some(Evidence::Address(destination.ip())),
        action: None,
        rcode: None,
    }
}

/// The transport of a protocol number of the IP header.
fn transport(protocol: u8) -> Option<Transport> {
    match i32::from(protocol) {
        libc::IPPROTO_TCP => Some(Transport::Tcp),
        libc::IPPROTO_UDP => Some(Transport::Udp),
        _ => None,
    }
}
