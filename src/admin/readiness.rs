//! Whether questions are answered, and what is not as it should be.
//!
//! Three conditions, because two do not serve: what is degraded is said and does not make us unready. With every
//! upstream silent we still refuse foreign ingresses, answer from the cache and record; all replicas share those
//! upstreams, so that unreadiness would take them all away at once, and a restart would only empty their caches.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use thiserror::Error;

use super::{Reading, View};
use crate::{audit, keeper::Standing, upstream::State};

/// Every check, in a fixed order.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Readiness {
    /// `listeners`, `policy`, `upstream`, `record`, `firewall` where there is one, and `sandbox`.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// What was looked at: one word.
    pub check: String,
    /// How it is.
    pub condition: Condition,
    /// Why, in one line.
    pub reason: String,
}

/// How a part is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// As it should be.
    Ok,
    /// Somebody should look; questions are answered as well as can be.
    Degraded,
    /// Questions are not answered.
    Failed,
}

/// What was read is not what a tunnelwarden says of its readiness.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("whoever listens there is no tunnelwarden")]
pub struct NotReadiness;

/// How long readiness waits for the first lookups of ingress names.
pub const LEARNING: Duration = Duration::from_secs(10);

impl Readiness {
    /// Looks at everything.
    pub(super) fn of(view: &View) -> Self {
        let mut checks = vec![listeners(view), policy(view), upstream(view), record(&view.recorder.health())];
        if let Some((keeper, progress)) = &view.firewall {
            let age = Timestamp::now().duration_since(view.started).unsigned_abs();
            checks.push(firewall(keeper.standing(), progress.borrow().pending, age));
        }
        // What the kernel lacks is said and no alarm: it would last as long as the kernel.
        checks.push(Check::new("sandbox", Condition::Ok, view.sandbox.to_string()));
        Self { checks }
    }

    /// Are questions answered?
    pub fn is_ready(&self) -> bool {
        self.checks.iter().all(|check| check.condition != Condition::Failed)
    }

    /// Is everything as it should be?
    pub fn is_all_well(&self) -> bool {
        self.checks.iter().all(|check| check.condition == Condition::Ok)
    }
}

fn listeners(view: &View) -> Check {
    if view.stop.is_cancelled() {
        return Check::new("listeners", Condition::Failed, "stopping: no more questions are taken");
    }
    let addresses: Vec<_> = view.listening.iter().map(ToString::to_string).collect();
    Check::new("listeners", Condition::Ok, addresses.join(", "))
}

fn policy(view: &View) -> Check {
    let files = *view.files.borrow();
    let rules = view.gateway.in_force().policy.summary().rules;
    let in_force = format!("{rules} rules, read at {:.0}", files.in_force_since);
    let (condition, what) = match files.reading {
        Reading::Loaded => (Condition::Ok, None),
        Reading::Refused => (Condition::Degraded, Some("are broken and were refused")),
        Reading::Held => (Condition::Degraded, Some("take much away and wait for `tunnelwarden reload --accept`")),
    };
    let reason = match what {
        None => in_force,
        Some(what) => format!("the files as read at {:.0} {what}; in force: {in_force}", files.read_at),
    };
    Check::new("policy", condition, reason)
}

/// It has to be in force. Just after a start it is not yet known where ingresses are; that is waited for, for a while.
fn firewall(standing: Standing, pending: usize, age: Duration) -> Check {
    let condition = match standing {
        Standing::Held(_) if pending > 0 && age < LEARNING => {
            let reason = format!("{standing}; {pending} ingress names are being looked up for the first time");
            return Check::new("firewall", Condition::Failed, reason);
        }
        Standing::Held(_) => Condition::Ok,
        Standing::Unknown | Standing::Lost | Standing::Unattended => Condition::Failed,
        Standing::Removed => Condition::Degraded,
    };
    Check::new("firewall", condition, standing.to_string())
}

/// Each set of servers has to have one that answers.
fn upstream(view: &View) -> Check {
    // By the names they serve; those for all other names come first.
    let mut sets = BTreeMap::from([(String::new(), (0_usize, 0_usize))]);
    for server in view.gateway.upstream().health() {
        let zones: Vec<_> = server.zones.iter().map(ToString::to_string).collect();
        let (up, all) = sets.entry(zones.join(", ")).or_default();
        *all += 1;
        *up += usize::from(matches!(server.state, State::Up | State::Suspect));
    }
    let mut condition = Condition::Ok;
    let mut reasons = Vec::new();
    for (zones, (up, all)) in sets {
        let zone = if zones.is_empty() { String::new() } else { format!(" for {zones}") };
        reasons.push(match all {
            0 => format!("no server is known{zone}"),
            _ => format!("{up} of {all} up{zone}"),
        });
        if up == 0 {
            condition = Condition::Degraded;
        }
    }
    Check::new("upstream", condition, reasons.join("; "))
}

fn record(health: &audit::Health) -> Check {
    let store = health.store.iter().map(|condition| ("store", condition));
    let sinks = health.sinks.iter().map(|sink| (sink.sink.as_str(), &sink.condition));
    let parts: Vec<_> = store.chain(sinks).collect();
    let mut reasons: Vec<String> = parts.iter().filter_map(|(part, condition)| trouble(part, condition)).collect();
    if health.lost > 0 {
        reasons.push(format!("{} lost since the start", health.lost));
    }
    let condition = if health.is_working() { Condition::Ok } else { Condition::Degraded };
    if reasons.is_empty() {
        let parts: Vec<_> = parts.iter().map(|(part, _)| *part).collect();
        reasons.push(if parts.is_empty() { "off".to_owned() } else { format!("written to {}", parts.join(", ")) });
    }
    Check::new("record", condition, reasons.join("; "))
}

fn trouble(part: &str, condition: &audit::Condition) -> Option<String> {
    match condition {
        audit::Condition::Working => None,
        audit::Condition::Failing { since, why } => Some(format!("{part} fails since {since:.0}: {why}")),
    }
}

impl Check {
    fn new(check: &str, condition: Condition, reason: impl Into<String>) -> Self {
        Self { check: check.to_owned(), condition, reason: reason.into() }
    }
}

impl Condition {
    pub(super) const ALL: [Self; 3] = [Self::Ok, Self::Degraded, Self::Failed];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Readiness {
    /// `condition check: reason`, a line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.checks
            .iter()
            .try_for_each(|check| writeln!(f, "{} {}: {}", check.condition.as_str(), check.check, check.reason))
    }
}

impl FromStr for Readiness {
    type Err = NotReadiness;

    fn from_str(text: &str) -> Result<Self, NotReadiness> {
        let checks = text.lines().map(|line| read_check(line).ok_or(NotReadiness)).collect::<Result<Vec<_>, _>>()?;
        if checks.is_empty() { Err(NotReadiness) } else { Ok(Self { checks }) }
    }
}

fn read_check(line: &str) -> Option<Check> {
    let (condition, rest) = line.split_once(' ')?;
    let condition = Condition::ALL.into_iter().find(|known| known.as_str() == condition)?;
    let (check, reason) = rest.split_once(": ")?;
    Some(Check::new(check, condition, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::SinkHealth;

    #[test]
    fn what_is_written_is_read_back_and_something_else_is_not() {
        let readiness = Readiness {
            checks: vec![
                Check::new("listeners", Condition::Ok, "[::1]:53"),
                Check::new("record", Condition::Degraded, "store fails: full"),
                Check::new("policy", Condition::Failed, "gone"),
            ],
        };
        assert_eq!(readiness.to_string().parse(), Ok(readiness));
        for text in ["", "ok\n", "<html>", "ok listeners: fine\nsplendid record: fine\n"] {
            assert_eq!(text.parse::<Readiness>(), Err(NotReadiness), "{text}");
        }
    }

    #[test]
    fn what_is_degraded_is_ready_and_not_all_well() {
        use Condition::{Degraded, Failed, Ok};
        for (conditions, is_ready, is_all_well) in
            [([Ok, Ok], true, true), ([Ok, Degraded], true, false), ([Failed, Degraded], false, false)]
        {
            let readiness = Readiness { checks: conditions.map(|condition| Check::new("x", condition, "y")).into() };
            assert_eq!((readiness.is_ready(), readiness.is_all_well()), (is_ready, is_all_well), "{conditions:?}");
        }
    }

    #[test]
    fn a_record_that_fails_is_degraded_and_says_which_part_since_when_and_why() {
        let since = "2026-11-25T01:02:03.456Z".parse().unwrap();
        let failing = audit::Condition::Failing { since, why: "disk full".into() };
        let sink = |condition| SinkHealth { sink: "stdout".into(), condition };
        let health = |store, sinks: Vec<SinkHealth>, lost| audit::Health { store, sinks, lost, restarts: 0 };
        let working = audit::Condition::Working;
        #[rustfmt::skip]
        let cases = [
            (health(None, vec![], 0),                                  "ok record: off"),
            (health(Some(working.clone()), vec![sink(working.clone())], 0), "ok record: written to store, stdout"),
            (health(Some(working.clone()), vec![], 7),                 "ok record: 7 lost since the start"),
            (health(Some(failing.clone()), vec![sink(working)], 2),
                "degraded record: store fails since 2026-11-25T01:02:03Z: disk full; 2 lost since the start"),
            (health(None, vec![sink(failing)], 0),
                "degraded record: stdout fails since 2026-11-25T01:02:03Z: disk full"),
        ];
        for (health, expected) in cases {
            assert_eq!(Readiness { checks: vec![record(&health)] }.to_string().trim_end(), expected);
        }
    }
}
