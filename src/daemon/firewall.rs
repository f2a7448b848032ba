//! What the daemon does for its firewall while it runs: the keeper hears what was learned, the record what was refused.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::guard::{Guard, Scout};
use crate::{
    audit::{Attempt, Decision, Evidence, Process, Recorder, Transport, Way},
    gate::{self, Gate, Witness},
    gateway::Gateway,
    ingress::Ingress,
    keeper::{Denied, Keeper, KeeperError, Leases, Notice, Notices, Standing, Trouble, Way as Tried},
    lasting,
    metrics::Metrics,
    policy::{Learned, Verdict},
};

/// How long the kernel denies an address that nobody names again: long enough for a daemon that is mended next month.
const DENIED_FOR: Duration = Duration::from_hours(30 * 24);

/// How often all of them are named again, so that none ends while it is known.
const RENEW: Duration = Duration::from_hours(1);

/// How soon what the kernel did not take is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long the same trouble is not said again.
const QUIET: Duration = Duration::from_secs(10);

/// How often what an exception opened is looked through.
const LOOK: Duration = Duration::from_secs(1);

/// How long the scout may take.
const SCOUTING: Duration = Duration::from_secs(3);

/// What holds the firewall while we run.
pub(super) struct Enforcement {
    keeper: Arc<Keeper>,
    gate: gate::Serving,
    /// Heard when the keeper has ended.
    gone: oneshot::Receiver<()>,
}

/// Who hears of it.
pub(super) struct Watched {
    pub(super) gateway: Arc<Gateway>,
    pub(super) ingress: Arc<Ingress>,
    pub(super) recorder: Recorder,
    pub(super) metrics: Arc<Metrics>,
}

impl Enforcement {
    /// Serves the gate, and begins to tell the keeper and to hear it.
    pub(super) fn begin(
        guard: Guard,
        gate: Gate,
        leases: Arc<Leases>,
        watched: Watched,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let Guard { keeper, notices, scout, obstacles } = guard;
        for obstacle in &obstacles {
            tracing::warn!("somebody else's rules turn away what is turned to us: {obstacle}");
        }
        let Watched { gateway, ingress, recorder, metrics } = watched;
        let house = gate::House {
            gateway: Arc::clone(&gateway),
            metrics: Arc::clone(&metrics),
            options: gate::Options::default(),
            witness: leases.has_one_client().then(|| witness(Arc::clone(&leases))),
        };
        let gate = gate.serve(house, &Handle::current(), stop.clone()).context("cannot serve the gate")?;
        if let Some(scout) = scout {
            tasks.spawn(send_out(scout, Arc::clone(&gateway), stop.clone()));
        }
        let (told, ended) = (Arc::clone(&keeper), stop.clone());
        let counts = Arc::clone(&metrics);
        tasks.spawn(async move {
            let what = "what tells the firewall of learned addresses";
            lasting::task(&counts, what, || deny_learned(&told, &ingress, &counts, &ended)).await;
        });
        let (counts, ended) = (Arc::clone(&metrics), stop.clone());
        tasks.spawn(async move {
            lasting::task(&counts, "the end of exceptions", || end_dated(&leases, &counts, &ended)).await;
        });
        let (told, gone) = oneshot::channel();
        let speaker = Arc::clone(&keeper);
        let listen = move || {
            while lasting::call(&metrics, || hear(&notices, &speaker, &gateway, &recorder, &metrics)).is_none() {
                thread::sleep(RETRY);
            }
            speaker.stands(Standing::Unattended);
            // Who stops does not listen any more.
            let _ = told.send(());
        };
        thread::Builder::new().name("firewall".to_owned()).spawn(listen).context("cannot start a thread")?;
        Ok(Self { keeper, gate, gone })
    }

    /// Returns when the keeper has ended before it was told to.
    pub(super) async fn gone(&mut self) {
        let _ = (&mut self.gone).await;
    }

    /// Has the keeper read the files again.
    pub(super) async fn reload(&self) -> Result<(), KeeperError> {
        let keeper = Arc::clone(&self.keeper);
        spawn_blocking(move || keeper.reload()).await.unwrap_or(Err(KeeperError::Gone))
    }

    /// Closes the gate, after everything else was told to stop, and says good-bye to the keeper.
    pub(super) async fn stop(self) {
        self.gate.stopped().await;
        let keeper = Arc::clone(&self.keeper);
        if let Ok(Err(error)) = spawn_blocking(move || keeper.say_bye()).await {
            tracing::warn!(%error, "the keeper of the firewall did not hear of the stop; its rules stay");
        }
    }
}

/// Lets the scout ask, and says so where its question does not come here.
async fn send_out(scout: Scout, gateway: Arc<Gateway>, stop: CancellationToken) {
    let Scout { name, mut process } = scout;
    gateway.expect_scout(name);
    // The end of its input is its word.
    drop(process.stdin.take());
    let ended = spawn_blocking(move || process.wait());
    let outcome = stop.run_until_cancelled(timeout(SCOUTING, ended)).await;
    // One that could not ask, as before there is a network, has seen nothing.
    let has_asked = matches!(outcome, Some(Ok(Ok(Ok(status)))) if status.success());
    if has_asked && !gateway.scout_came() {
        tracing::warn!(
            "a question of this machine that should have been turned to us did not arrive: see `nft list ruleset` for \
             somebody else's rules of the output or input hook that drop port 53; this opens a chain of theirs: \
             nft insert rule FAMILY TABLE CHAIN oifname lo accept"
        );
    }
}

/// Closes what an exception opened when it ends, until `stop`.
async fn end_dated(leases: &Arc<Leases>, metrics: &Metrics, stop: &CancellationToken) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(look.tick()).await.is_some() {
        let leases = Arc::clone(leases);
        let ended = spawn_blocking(move || leases.end_due(Timestamp::now())).await;
        if let Some(Err(error)) = lasting::joined(metrics, ended) {
            tracing::warn!(%error, "what an exception opened is not closed yet; it is tried again");
        }
    }
}

/// Keeps the kernel's ingress addresses those that were learned, until `stop`.
async fn deny_learned(keeper: &Arc<Keeper>, ingress: &Ingress, metrics: &Metrics, stop: &CancellationToken) {
    let mut progress = ingress.progress();
    let mut renew = interval(RENEW);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut denied = HashSet::new();
    let (mut failed, mut all) = (false, false);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = renew.tick() => all = true,
            Ok(()) = progress.changed() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
        }
        let learned = ingress.published().load_full();
        let (keeper, before) = (Arc::clone(keeper), std::mem::take(&mut denied));
        let told = spawn_blocking(move || tell(&keeper, &learned, before, all)).await;
        // Where that is not known, all of them are told once more.
        (denied, failed) = lasting::joined(metrics, told).unwrap_or((HashSet::new(), true));
        all &= failed;
    }
}

/// Tells what came, or all of it, and what went. What is denied then, and whether the keeper would not have some of it.
fn tell(keeper: &Keeper, learned: &Learned, before: HashSet<IpAddr>, all: bool) -> (HashSet<IpAddr>, bool) {
    let now: HashSet<IpAddr> = learned.iter().map(|(address, _)| address).collect();
    let new: Vec<_> = now.iter().filter(|address| all || !before.contains(address)).copied().collect();
    let gone: Vec<_> = before.difference(&now).copied().collect();
    // Both, whatever becomes of the other: where there is no room for what came, there is when the rest has gone.
    let forgotten = keeper.forget(&gone);
    match keeper.deny(&new, DENIED_FOR).and(forgotten) {
        Ok(_) => (now, false),
        Err(error) => {
            tracing::warn!(%error, "the firewall does not have every ingress address that was learned; it is tried again");
            (before, true)
        }
    }
}

/// Puts on record what the kernel refused, and keeps how the table stands, until the keeper is gone.
fn hear(notices: &Notices, keeper: &Keeper, gateway: &Gateway, recorder: &Recorder, metrics: &Metrics) {
    let mut said: Option<(Trouble, Instant)> = None;
    // An error is an end too: the keeper that says what is no notice is none.
    while let Ok(Some(notice)) = notices.next(None) {
        match notice {
            Notice::Denied(denied) => {
                metrics.packets_suppressed.add(u64::from(denied.suppressed));
                recorder.record(attempt(&denied, gateway));
            }
            Notice::Ready(protection) => keeper.stands(Standing::Held(protection)),
            Notice::Restored => {
                metrics.firewall_restored.increment();
                tracing::warn!("somebody else changed table inet tunnelwarden; it is as it was");
            }
            Notice::Lost => keeper.stands(Standing::Lost),
            // Every question may meet the same one.
            Notice::Trouble { trouble, .. }
                if said.is_some_and(|(last, at)| last == trouble && at.elapsed() < QUIET) => {}
            Notice::Trouble { trouble, words } => {
                said = Some((trouble, Instant::now()));
                tracing::error!("firewall: {trouble}: {words}");
            }
        }
    }
}

fn attempt(denied: &Denied, gateway: &Gateway) -> Attempt {
    let in_force = gateway.in_force();
    let policy = &in_force.policy;
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
        Tried::Gate => (Way::Address, "firewall.gate".into()),
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

/// Asks the keeper whose a connection of this machine is.
fn witness(leases: Arc<Leases>) -> Witness {
    const TCP: u8 = 6;
    Arc::new(move |client, destination| leases.process_of(TCP, client, Some(destination)).map(Process::from))
}

/// The transport of a protocol number of the IP header.
fn transport(protocol: u8) -> Option<Transport> {
    match i32::from(protocol) {
        libc::IPPROTO_TCP => Some(Transport::Tcp),
        libc::IPPROTO_UDP => Some(Transport::Udp),
        _ => None,
    }
}
