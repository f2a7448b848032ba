//! What limits have turned away, in one line a minute: strangers make them act, so nothing is said of each time.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    lasting,
    metrics::{Counter, Metrics},
};

/// How often it is said.
const PERIOD: Duration = Duration::from_secs(60);

/// Says what has acted until `stop`, and then what has since.
pub(super) async fn watch(metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut said = Said::default();
    let mut since = Instant::now();
    while stop.run_until_cancelled(sleep(PERIOD)).await.is_some() {
        if let Some(Some(acted)) = lasting::call(&metrics, || said.and_since(&metrics)) {
            tracing::warn!("limits: in the last minute {acted}");
        }
        since = Instant::now();
    }
    if let Some(acted) = said.and_since(&metrics) {
        tracing::warn!("limits: in the last {} s {acted}", since.elapsed().as_secs() + 1);
    }
}

/// What each counter stood at when it was last looked at.
#[derive(Debug, Default)]
struct Said([u64; LIMITS.len()]);

/// A limit's counter, and what it turned away, with the keys that set it.
type Limit = (fn(&Metrics) -> &Counter, &'static str);

#[rustfmt::skip]
const LIMITS: [Limit; 22] = [
    (|metrics| &metrics.turned_away,               "questions of others (clients)"),
    (|metrics| &metrics.over_rate_silent,          "questions over the rate met with silence (rate)"),
    (|metrics| &metrics.over_rate_truncated,       "questions over the rate sent to TCP (rate, slip)"),
    (|metrics| &metrics.over_rate_refused,         "questions over the rate refused (rate, rate-per-forwarder)"),
    (|metrics| &metrics.waiting_refused_all,       "questions beyond those that may wait in all (waiting)"),
    (|metrics| &metrics.waiting_refused_client,    "questions beyond those of one client that may wait (waiting-per-client)"),
    (|metrics| &metrics.waiting_refused_network,   "questions beyond those of one v6 /64 that may wait (waiting-per-client)"),
    (|metrics| &metrics.waiting_refused_forwarder, "questions beyond those of one forwarder that may wait (waiting-per-forwarder)"),
    (|metrics| &metrics.connections_refused_all,   "connections refused, beyond all there may be (connections)"),
    (|metrics| &metrics.connections_refused_client, "connections refused, beyond those of one client (connections-per-client)"),
    (|metrics| &metrics.connections_refused_network, "connections refused, beyond those of one v6 /64 (connections-per-client)"),
    (|metrics| &metrics.connections_refused_strangers, "connections refused, beyond those of all who may not ask (connections-per-client)"),
    (|metrics| &metrics.upstream_over_questions,   "questions beyond those that may be open upstream"),
    (|metrics| &metrics.upstream_over_server,      "questions beyond those that may be open at one server"),
    (|metrics| &metrics.upstream_over_sockets,     "questions for which there was no upstream socket"),
    (|metrics| &metrics.gate_full,                 "connections refused by a full gate"),
    (|metrics| &metrics.leases_refused,            "answers withheld because their addresses were not opened"),
    (|metrics| &metrics.packets_suppressed,        "refused packets told in sum"),
    (|metrics| &metrics.audit_lost_queue,          "attempts beyond the queue of the record"),
    (|metrics| &metrics.ingress_crowded,           "ingress addresses beyond those of one name"),
    (|metrics| &metrics.control_turned_away,       "connections refused by the control socket"),
    (|metrics| &metrics.admin_crowded,             "requests refused by the admin door"),
];

impl Said {
    /// What has acted since the last time, and nothing where nothing has.
    fn and_since(&mut self, metrics: &Metrics) -> Option<String> {
        let mut acted = Vec::new();
        for ((counter, what), said) in LIMITS.iter().zip(&mut self.0) {
            let value = counter(metrics).value();
            let more = value.saturating_sub(std::mem::replace(said, value));
            if more > 0 {
                acted.push(format!("{more} {what}"));
            }
        }
        (!acted.is_empty()).then(|| acted.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acted_since_the_last_time_is_one_line_and_nothing_is_said_twice() {
        let (metrics, mut said) = (Metrics::default(), Said::default());
        assert_eq!(said.and_since(&metrics), None);
        metrics.over_rate_silent.add(123);
        metrics.connections_refused_client.add(4);
        let line = said.and_since(&metrics).unwrap();
        let expected = "123 questions over the rate met with silence (rate), \
                        4 connections refused, beyond those of one client (connections-per-client)";
        assert_eq!(line, expected);
        assert_eq!(said.and_since(&metrics), None);
        metrics.gate_full.increment();
        assert_eq!(said.and_since(&metrics).unwrap(), "1 connections refused by a full gate");
    }

    #[test]
    fn every_limit_is_told_by_itself() {
        for (counter, what) in LIMITS {
            let (metrics, mut said) = (Metrics::default(), Said::default());
            counter(&metrics).add(7);
            assert_eq!(said.and_since(&metrics).unwrap(), format!("7 {what}"));
        }
    }
}
