//! Every counter there is, in one struct that is passed in, and its text form.
//!
//! A counter says what happened; what a stranger can trigger is counted here and not logged. No name and
//! no client's address is ever a label.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// That many more.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares the counters with their metric names, labels and help, and how they are printed.
macro_rules! counters {
    ($( $(#[doc = $help:literal])+ $field:ident = $metric:literal $({ $labels:literal })? ; )+) => {
        /// Every counter. Names follow the conventions of Prometheus: base units, `_total`.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $( $(#[doc = $help])+ pub $field: Counter, )+
        }

        impl fmt::Display for Metrics {
            /// The text exposition format of Prometheus, version 0.0.4.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut described = "";
                $(
                    if described != $metric {
                        let help = concat!($($help),+);
                        writeln!(f, "# HELP tunnelwarden_{} {}", $metric, help.trim())?;
                        writeln!(f, "# TYPE tunnelwarden_{} counter", $metric)?;
                    }
                    described = $metric;
                    writeln!(f, concat!("tunnelwarden_", $metric $(, "{{", $labels, "}}")?, " {}"), self.$field.value())?;
                )+
                let _ = described;
                Ok(())
            }
        }
    };
}

// Fields of one metric stand together: the format wants a metric's samples in one group.
counters! {
    /// Messages received, by transport; scraps and malformed ones too.
    questions_udp = "questions_total" { "transport=\"udp\"" };
    /// Messages received, by transport; scraps and malformed ones too.
    questions_tcp = "questions_total" { "transport=\"tcp\"" };
    /// Packets that are never answered: answers themselves, or too short for a header.
    scraps = "scraps_total";
    /// Packets with an unknown operation or a question that cannot be read.
    malformed = "malformed_total";
    /// Questions of those who may not ask.
    turned_away = "turned_away_total";
    /// Questions refused by the policy.
    blocked = "blocked_total";
    /// Questions answered past the answer's time because no upstream answered.
    stale_answers = "stale_answers_total";
    /// Questions for which no upstream had an answer.
    failures = "failures_total";
    /// Reloads, by what came of them.
    reloads_loaded = "reloads_total" { "outcome=\"loaded\"" };
    /// Reloads, by what came of them.
    reloads_refused = "reloads_total" { "outcome=\"refused\"" };
    /// Reloads, by what came of them.
    reloads_held = "reloads_total" { "outcome=\"held\"" };
    /// Connections to the control socket beyond what it takes at once.
    control_turned_away = "control_turned_away_total";
    /// Requests to the admin door that were turned away, by reason.
    admin_crowded = "admin_turned_away_total" { "reason=\"crowded\"" };
    /// Requests to the admin door that were turned away, by reason.
    admin_slow = "admin_turned_away_total" { "reason=\"slow\"" };
    /// Requests to the admin door that were turned away, by reason.
    admin_malformed = "admin_turned_away_total" { "reason=\"malformed\"" };
    /// Requests to the admin door that were turned away, by reason.
    admin_foreign_host = "admin_turned_away_total" { "reason=\"foreign-host\"" };
    /// Requests to the admin door that were turned away, by reason.
    admin_method = "admin_turned_away_total" { "reason=\"method\"" };
    /// Requests to the admin door that were turned away, by reason.
    admin_no_page = "admin_turned_away_total" { "reason=\"no-page\"" };
    /// Questions answered from the cache.
    cache_hits = "cache_hits_total";
    /// Questions for which the cache held nothing fresh.
    cache_misses = "cache_misses_total";
    /// Answers that made room for others in the cache.
    cache_evictions = "cache_evictions_total";
    /// Questions turned away because their client, its forwarder or all together had enough waiting.
    waiting_refused = "waiting_refused_total";
    /// Stream connections closed on arrival because their peer or all together had enough.
    connections_refused = "connections_refused_total";
    /// Stream connections accepted.
    connections_accepted = "connections_accepted_total";
    /// Stream connections we ended, by reason.
    connections_idle = "connections_ended_total" { "reason=\"idle\"" };
    /// Stream connections we ended, by reason.
    connections_slow = "connections_ended_total" { "reason=\"slow\"" };
    /// Stream connections we ended, by reason.
    connections_not_reading = "connections_ended_total" { "reason=\"not-reading\"" };
    /// Stream connections we ended, by reason.
    connections_malformed = "connections_ended_total" { "reason=\"malformed\"" };
    /// Errors of accepting a connection.
    accept_errors = "accept_errors_total";
    /// Errors of receiving datagrams.
    receive_errors = "receive_errors_total";
    /// Replies in datagrams that the system did not take.
    send_errors = "send_errors_total";
    /// Datagrams of forwarders whose PROXY header could not be read.
    proxy_headers_malformed = "proxy_headers_malformed_total";
    /// Panics that were caught, each in one question, connection or worker.
    panics = "panics_total";
    /// Queries sent to upstream servers, by transport.
    upstream_queries_udp = "upstream_queries_total" { "transport=\"udp\"" };
    /// Queries sent to upstream servers, by transport.
    upstream_queries_tcp = "upstream_queries_total" { "transport=\"tcp\"" };
    /// Replies of upstream servers that did not come in time, so that another try was made or given up.
    upstream_late = "upstream_late_total";
    /// Queries that the network refused or lost: port unreachable, no route, connection closed.
    upstream_network_errors = "upstream_network_errors_total";
    /// Packets that came to an upstream socket and were no reply to what it asked: guesses, or broken servers.
    upstream_near_misses = "upstream_near_misses_total";
    /// Queries repeated over TCP, by reason.
    upstream_tcp_truncated = "upstream_tcp_retries_total" { "reason=\"truncated\"" };
    /// Queries repeated over TCP, by reason.
    upstream_tcp_near_miss = "upstream_tcp_retries_total" { "reason=\"near-miss\"" };
    /// Queries repeated without EDNS for servers that do not know it.
    upstream_plain_retries = "upstream_plain_retries_total";
    /// Questions that joined an equal one in flight.
    upstream_merged = "upstream_merged_total";
    /// Questions no upstream server answered, by reason.
    upstream_failed_silent = "upstream_failures_total" { "reason=\"silent\"" };
    /// Questions no upstream server answered, by reason.
    upstream_failed_network = "upstream_failures_total" { "reason=\"network\"" };
    /// Questions no upstream server answered, by reason.
    upstream_failed_no_server = "upstream_failures_total" { "reason=\"no-server\"" };
    /// Questions no upstream server answered, by reason.
    upstream_failed_loop = "upstream_failures_total" { "reason=\"loop\"" };
    /// Turned away by a bound of the upstream side: questions in all, questions at one server, sockets.
    upstream_over_questions = "upstream_turned_away_total" { "bound=\"questions\"" };
    /// Turned away by a bound of the upstream side: questions in all, questions at one server, sockets.
    upstream_over_server = "upstream_turned_away_total" { "bound=\"server\"" };
    /// Turned away by a bound of the upstream side: questions in all, questions at one server, sockets.
    upstream_over_sockets = "upstream_turned_away_total" { "bound=\"sockets\"" };
    /// Canary questions that came back through an upstream server.
    upstream_loops = "upstream_loops_total";
    /// Attempts taken into the record's queue.
    audit_attempts = "audit_attempts_total";
    /// Attempts, rows, lines or messages of the record that were given up, by where.
    audit_lost_queue = "audit_lost_total" { "at=\"queue\"" };
    /// Attempts, rows, lines or messages of the record that were given up, by where.
    audit_lost_worker = "audit_lost_total" { "at=\"worker\"" };
    /// Attempts, rows, lines or messages of the record that were given up, by where.
    audit_lost_store = "audit_lost_total" { "at=\"store\"" };
    /// Attempts, rows, lines or messages of the record that were given up, by where.
    audit_lost_sink = "audit_lost_total" { "at=\"sink\"" };
    /// Attempts, rows, lines or messages of the record that were given up, by where.
    audit_lost_follower = "audit_lost_total" { "at=\"follower\"" };
    /// Writes of the record that failed and are tried again, by where.
    audit_failures_store = "audit_failures_total" { "at=\"store\"" };
    /// Writes of the record that failed and are tried again, by where.
    audit_failures_sink = "audit_failures_total" { "at=\"sink\"" };
    /// Records that join several clients and names, because too many were open.
    audit_coarse = "audit_coarse_records_total";
    /// Rows of the store that went by age or for room.
    audit_removed_age = "audit_removed_total" { "for=\"age\"" };
    /// Rows of the store that went by age or for room.
    audit_removed_size = "audit_removed_total" { "for=\"size\"" };
    /// Panics of the record's worker, which is then started again.
    audit_restarts = "audit_worker_restarts_total";
}
