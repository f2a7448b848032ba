//! Reading the files again: all or nothing, and it says what came of it.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{Running, Watch, in_force_by, terms_by};
use crate::{
    admin::{Files, Reading},
    config::{self, Config, Loaded},
    control::{Command, Outcome, ReloadReport},
    metrics::Metrics,
    policy::Summary,
    sys::memory,
    upstream::{Surroundings, Upstream},
};

/// Why the files are read again.
pub(super) enum Cause {
    /// Somebody sent SIGHUP: every sound change is taken.
    Signal,
    /// They changed: a change that takes much away waits for somebody to say yes.
    Files,
    /// Somebody asked over the control socket, and wants to hear of it.
    Commands(Vec<Command>),
}

/// Reads the files again and puts them in force.
pub(super) struct Reloader {
    path: Option<PathBuf>,
    /// What is in force, to compare the next with.
    config: Config,
    surroundings: Surroundings,
    metrics: Arc<Metrics>,
    /// Tells the admin door what came of it.
    files: watch::Sender<Files>,
}

impl Reloader {
    pub(super) fn new(
        path: Option<PathBuf>,
        config: Config,
        surroundings: Surroundings,
        metrics: Arc<Metrics>,
        files: watch::Sender<Files>,
    ) -> Self {
        Self { path, config, surroundings, metrics, files }
    }

    /// Reads the files, puts them in force if they are sound and may be, and tells everybody who asked. `watch`
    /// then waits for the next change.
    pub(super) async fn reload(&mut self, running: &Running, cause: Cause, watch: &mut Watch) {
        let accept = match &cause {
            Cause::Signal => true,
            Cause::Files => false,
            Cause::Commands(commands) => commands.iter().any(|Command::Reload { accept, .. }| *accept),
        };
        let read_at = SystemTime::now();
        let path = self.path.clone();
        // A million names take a second to read; the tasks of this thread go on meanwhile.
        let loaded = tokio::task::block_in_place(|| config::load(path.as_deref(), Timestamp::now()));
        let Loaded { outcome, problems, files, sources } = loaded;
        let mut report = ReloadReport {
            problems: problems.iter().map(ToString::to_string).collect(),
            ..ReloadReport::in_force(&self.config.policy.summary())
        };
        match outcome {
            Some(next) => self.weigh(running, next, accept, &mut report).await,
            None => report.outcome = Outcome::Refused,
        }
        if report.outcome == Outcome::Loaded
            && let Err(error) = running.state.keep_last_good(&sources)
        {
            tracing::warn!(%error, "cannot keep a copy of the files in force");
        }
        watch.follow(&files, read_at);
        // What reading took; what was in force before follows once nobody holds it.
        memory::give_back();
        self.tell(&report, cause);
    }

    /// A sound configuration: does it take so much away that somebody has to say yes?
    async fn weigh(&mut self, running: &Running, next: Config, accept: bool, report: &mut ReloadReport) {
        report.changes = next.changes_since(&self.config);
        let losses = next.losses_since(&self.config);
        if !accept && !losses.is_empty() {
            report.outcome = Outcome::Held;
            report.changes = losses;
            return;
        }
        match self.put_in_force(running, next).await {
            Ok(restart) => {
                let (changes, problems) = (std::mem::take(&mut report.changes), std::mem::take(&mut report.problems));
                *report = ReloadReport {
                    changes,
                    problems,
                    restart,
                    ..ReloadReport::in_force(&self.config.policy.summary())
                };
            }
            Err(error) => {
                report.outcome = Outcome::Refused;
                report.problems.push(format!("error: {error:#}"));
            }
        }
    }

    /// What can fail comes first, so that a failure leaves everything as it was.
    async fn put_in_force(&mut self, running: &Running, next: Config) -> anyhow::Result<Vec<String>> {
        if let Some(path) = running.confinement.outside(&next, running.state.folder()) {
            anyhow::bail!(
                "{} is written only after a restart: this process gave up writing outside the folders it began with",
                path.display()
            );
        }
        let upstream = if next.upstream == self.config.upstream {
            None
        } else {
            let surroundings = self.surroundings.clone();
            Some(Arc::new(Upstream::start(&next.upstream, surroundings, Arc::clone(&self.metrics))?))
        };
        if let Some(enforcement) = running.enforcement.as_ref().filter(|_| is_same_firewall(&self.config, &next)) {
            // It reads the files itself: what we would tell it, it need not believe.
            enforcement.reload().await.context("the rules of the firewall were not changed")?;
        }
        if next.audit != self.config.audit {
            running.recorder.reconfigure(&next.audit, running.state.folder()).await?;
        }
        running.gateway.access().replace(&next.limits, next.client_networks.iter().copied());
        let leases = running.gateway.in_force().leases.clone();
        running.gateway.replace(in_force_by(&next, &running.ingress, leases));
        if let Some(upstream) = upstream {
            let old = running.gateway.replace_upstream(upstream);
            // Questions under way there end by themselves; dropping the last handle ends the rest.
            drop(old);
        }
        running.ingress.follow(terms_by(&next, running.gateway.upstream()));
        let restart = restart_needed(&self.config, &next);
        self.config = next;
        Ok(restart)
    }

    /// A reload has panicked. What was in force still is, but for what was swapped before that.
    pub(super) fn tell_of_a_defect(&self) {
        self.metrics.reloads_refused.increment();
        self.files.send_modify(|files| files.read_again(Reading::Refused, Timestamp::now()));
        tracing::error!("reading the files again met a defect of this program; they are read again when they change");
    }

    fn tell(&self, report: &ReloadReport, cause: Cause) {
        let ReloadReport { rules, groups, exceptions, .. } = report;
        let reading = match report.outcome {
            Outcome::Loaded => {
                self.metrics.reloads_loaded.increment();
                tracing::info!(rules, groups, exceptions, changes = report.changes.join("; "), "files read again");
                Reading::Loaded
            }
            Outcome::Refused => {
                self.metrics.reloads_refused.increment();
                tracing::error!(rules, groups, exceptions, "the files are broken; what was in force still is");
                Reading::Refused
            }
            Outcome::Held => {
                self.metrics.reloads_held.increment();
                let losses = report.changes.join("; ");
                tracing::warn!(losses, "the change takes much away; SIGHUP or `tunnelwarden reload --accept` takes it");
                Reading::Held
            }
        };
        self.files.send_modify(|files| files.read_again(reading, Timestamp::now()));
        for problem in &report.problems {
            tracing::warn!("{problem}");
        }
        for change in &report.restart {
            tracing::warn!("takes effect after a restart: {change}");
        }
        if let Cause::Commands(commands) = cause {
            for Command::Reload { report: waiting, .. } in commands {
                // Whoever asked may have gone.
                let _ = waiting.send(report.clone());
            }
        }
    }
}

impl ReloadReport {
    fn in_force(summary: &Summary) -> Self {
        Self {
            outcome: Outcome::Loaded,
            rules: summary.rules,
            groups: summary.groups,
            exceptions: summary.exceptions,
            changes: Vec::new(),
            problems: Vec::new(),
            restart: Vec::new(),
        }
    }
}

/// What cannot be changed while we run: sockets are bound, the cache has its size.
fn restart_needed(before: &Config, after: &Config) -> Vec<String> {
    let mut needed = Vec::new();
    if before.listen != after.listen {
        needed.push("[listen]".to_owned());
    }
    if before.cache != after.cache {
        needed.push("[cache]".to_owned());
    }
    if !is_same_firewall(before, after) {
        needed.push(
            "[firewall], since mode, user, own-sockets, processes, gate-port or [listen] dns is another".to_owned(),
        );
    }
    needed
}

/// Can its rules be changed while we run? Not who we are, where we listen, and whose leases there are.
fn is_same_firewall(before: &Config, after: &Config) -> bool {
    let fixed = |config: &Config| {
        let options = &config.firewall;
        let who = (options.user.clone(), options.own_sockets, options.processes);
        (options.mode, who, options.gate(), options.dns.clone())
    };
    fixed(before) == fixed(after)
}
