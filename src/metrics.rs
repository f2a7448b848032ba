//! Every counter there is, in one struct that is passed in, and its text form.
//!
//! A counter says what happened; what a stranger can trigger is counted here and not logged. No name and
//! no client's address is ever a label.

use std::{
    array,
    cell::Cell,
    fmt,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

/// A number that only grows. Threads that count at the same time do not get in each other's way: the first [`OWNED`]
/// that ever count have a cell each, later ones share a few.
#[derive(Debug)]
pub struct Counter {
    owned: [Line; OWNED],
    shared: [Line; SHARED],
}

/// Threads with a cell of their own in every counter.
const OWNED: usize = 16;

/// Cells for the others.
const SHARED: usize = 4;

/// A number alone in its cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// That many more.
    pub fn add(&self, amount: u64) {
        let thread = this_thread();
        if let Some(Line(cell)) = self.owned.get(thread) {
            // Nobody else writes here, so nothing comes in between.
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        } else if let Some(Line(cell)) = self.shared.get(thread % SHARED) {
            cell.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// How many so far.
    pub fn value(&self) -> u64 {
        self.owned.iter().chain(&self.shared).map(|Line(cell)| cell.load(Ordering::Relaxed)).sum()
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self { owned: array::from_fn(|_| Line::default()), shared: array::from_fn(|_| Line::default()) }
    }
}

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    within: [Counter; BOUNDS.len()],
    longer: Counter,
    microseconds: Counter,
}

/// Upper bounds of the buckets, in microseconds, and as Prometheus reads them.
const BOUNDS: [(u64, &str); 11] = [
    (500, "0.0005"),
    (1000, "0.001"),
    (2500, "0.0025"),
    (5000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
];

impl Histogram {
    /// Once more, and it took so long.
    pub fn observe(&self, duration: Duration) {
        let took = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().zip(&self.within).find(|((bound, _), _)| took <= *bound);
        bucket.map_or(&self.longer, |(_, bucket)| bucket).increment();
        self.microseconds.add(took);
    }

    /// Samples of the text format.
    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        let mut count = 0;
        for ((_, bound), bucket) in BOUNDS.iter().zip(&self.within) {
            count += bucket.value();
            writeln!(f, "{name}_bucket{{le=\"{bound}\"}} {count}")?;
        }
        count += self.longer.value();
        let microseconds = self.microseconds.value();
        let (seconds, rest) = (microseconds / 1_000_000, microseconds % 1_000_000);
        writeln!(f, "{name}_bucket{{le=\"+Inf\"}} {count}")?;
        writeln!(f, "{name}_sum {seconds}.{rest:06}\n{name}_count {count}")
    }
}

/// The number of the calling thread, for what is kept once a thread: 0 for the first that asks. None is given twice.
pub fn this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
    }
    NUMBER.get().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        NUMBER.set(Some(number));
        number
    })
}

/// Declares the counters with their metric names, labels and help, and how they are printed.
macro_rules! counters {
    ($( $(#[doc = $help:literal])+ $field:ident = $metric:literal $({ $labels:literal })? ; )+) => {
        /// Every counter. Names follow the conventions of Prometheus: base units, `_total`.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $( $(#[doc = $help])+ pub $field: Counter, )+
            /// How long those questions took for which an upstream was asked.
            pub waits: Histogram,
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
                let (name, help) = ("tunnelwarden_wait_seconds", "Time to the reply of questions that the cache could not answer.");
                writeln!(f, "# HELP {name} {help}\n# TYPE {name} histogram")?;
                self.waits.write(f, name)
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
    /// Questions beyond the rate of their client or forwarder, by what they got.
    over_rate_silent = "over_rate_total" { "answer=\"silence\"" };
    /// Questions beyond the rate of their client or forwarder, by what they got.
    over_rate_truncated = "over_rate_total" { "answer=\"truncated\"" };
    /// Questions beyond the rate of their client or forwarder, by what they got.
    over_rate_refused = "over_rate_total" { "answer=\"refused\"" };
    /// Questions refused by the policy.
    blocked = "blocked_total";
    /// What the policy said of questions, packets and connections that it knows something of.
    decisions_blocked = "decisions_total" { "decision=\"blocked\"" };
    /// What the policy said of questions, packets and connections that it knows something of.
    decisions_observed = "decisions_total" { "decision=\"observed\"" };
    /// What the policy said of questions, packets and connections that it knows something of.
    decisions_allowed_own = "decisions_total" { "decision=\"allowed-own\"" };
    /// What the policy said of questions, packets and connections that it knows something of.
    decisions_allowed_exception = "decisions_total" { "decision=\"allowed-exception\"" };
    /// What was refused, or observed only, and was no question put to us.
    bypass_dns_blocked = "bypass_attempts_total" { "way=\"dns-redirected\",decision=\"blocked\"" };
    /// What was refused, or observed only, and was no question put to us.
    bypass_dns_observed = "bypass_attempts_total" { "way=\"dns-redirected\",decision=\"observed\"" };
    /// What was refused, or observed only, and was no question put to us.
    bypass_dot_blocked = "bypass_attempts_total" { "way=\"dot\",decision=\"blocked\"" };
    /// What was refused, or observed only, and was no question put to us.
    bypass_dot_observed = "bypass_attempts_total" { "way=\"dot\",decision=\"observed\"" };
    /// What was refused, or observed only, and was no question put to us.
    bypass_doh_blocked = "bypass_attempts_total" { "way=\"doh\",decision=\"blocked\"" };
    /// What was refused, or observed only, and was no question put to us.
    bypass_doh_observed = "bypass_attempts_total" { "way=\"doh\",decision=\"observed\"" };
    /// What was refused, or observed only, and was no question put to us.
    bypass_address_blocked = "bypass_attempts_total" { "way=\"address\",decision=\"blocked\"" };
    /// What was refused, or observed only, and was no question put to us.
    bypass_address_observed = "bypass_attempts_total" { "way=\"address\",decision=\"observed\"" };
    /// What was refused, or observed only, and was no question put to us.
    bypass_tls_gate_blocked = "bypass_attempts_total" { "way=\"tls-gate\",decision=\"blocked\"" };
    /// What was refused, or observed only, and was no question put to us.
    bypass_tls_gate_observed = "bypass_attempts_total" { "way=\"tls-gate\",decision=\"observed\"" };
    /// Replies to clients, by response code.
    responses_noerror = "responses_total" { "rcode=\"NOERROR\"" };
    /// Replies to clients, by response code.
    responses_nxdomain = "responses_total" { "rcode=\"NXDOMAIN\"" };
    /// Replies to clients, by response code.
    responses_servfail = "responses_total" { "rcode=\"SERVFAIL\"" };
    /// Replies to clients, by response code.
    responses_refused = "responses_total" { "rcode=\"REFUSED\"" };
    /// Replies to clients, by response code.
    responses_other = "responses_total" { "rcode=\"other\"" };
    /// Answers that became SERVFAIL because the firewall did not open their addresses.
    leases_refused = "leases_refused_total";
    /// Refused packets of which no notice was given, because there were too many.
    packets_suppressed = "firewall_suppressed_total";
    /// Times that the firewall's table was put back because somebody else had changed it.
    firewall_restored = "firewall_restored_total";
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
    /// Questions turned away because as many waited as may, by whose bound was met.
    waiting_refused_all = "waiting_refused_total" { "bound=\"all\"" };
    /// Questions turned away because as many waited as may, by whose bound was met.
    waiting_refused_client = "waiting_refused_total" { "bound=\"client\"" };
    /// Questions turned away because as many waited as may, by whose bound was met.
    waiting_refused_network = "waiting_refused_total" { "bound=\"network\"" };
    /// Questions turned away because as many waited as may, by whose bound was met.
    waiting_refused_forwarder = "waiting_refused_total" { "bound=\"forwarder\"" };
    /// Stream connections closed on arrival because there were as many as may be, by whose bound was met.
    connections_refused_all = "connections_refused_total" { "bound=\"all\"" };
    /// Stream connections closed on arrival because there were as many as may be, by whose bound was met.
    connections_refused_client = "connections_refused_total" { "bound=\"client\"" };
    /// Stream connections closed on arrival because there were as many as may be, by whose bound was met.
    connections_refused_network = "connections_refused_total" { "bound=\"network\"" };
    /// Stream connections closed on arrival because there were as many as may be, by whose bound was met.
    connections_refused_strangers = "connections_refused_total" { "bound=\"strangers\"" };
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
    /// Panics that were caught, each in one question, connection, worker or task.
    panics = "panics_total";
    /// Queries sent to upstream servers, by transport.
    upstream_queries_udp = "upstream_queries_total" { "transport=\"udp\"" };
    /// Queries sent to upstream servers, by transport.
    upstream_queries_tcp = "upstream_queries_total" { "transport=\"tcp\"" };
    /// Queries sent to upstream servers, by transport.
    upstream_queries_tls = "upstream_queries_total" { "transport=\"tls\"" };
    /// Queries sent to upstream servers, by transport.
    upstream_queries_https = "upstream_queries_total" { "transport=\"https\"" };
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
    /// Names of packs whose addresses were looked up.
    ingress_lookups = "ingress_lookups_total";
    /// The same that brought no answer for A or AAAA.
    ingress_failures = "ingress_lookup_failures_total";
    /// Addresses that were found and not learned, each time, by reason.
    ingress_not_global = "ingress_turned_away_total" { "reason=\"not-global\"" };
    /// Addresses that were found and not learned, each time, by reason.
    ingress_own = "ingress_turned_away_total" { "reason=\"own\"" };
    /// Addresses that were found and not learned, each time, by reason.
    ingress_on_link = "ingress_turned_away_total" { "reason=\"on-link\"" };
    /// Addresses that were found and not learned, each time, by reason.
    ingress_upstream = "ingress_turned_away_total" { "reason=\"upstream\"" };
    /// Addresses that were found and not learned, each time, by reason.
    ingress_organization = "ingress_turned_away_total" { "reason=\"organization\"" };
    /// Addresses that were found and not learned, each time, by reason.
    ingress_static = "ingress_turned_away_total" { "reason=\"static\"" };
    /// Addresses that were found and not learned, each time, by reason.
    ingress_exempt = "ingress_turned_away_total" { "reason=\"exempt\"" };
    /// Addresses that were found and not learned, each time, by reason.
    ingress_shared = "ingress_turned_away_total" { "reason=\"shared\"" };
    /// Addresses that were found and not learned, each time, by reason.
    ingress_crowded = "ingress_turned_away_total" { "reason=\"crowded\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_passed = "gate_connections_total" { "outcome=\"passed\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_refused = "gate_connections_total" { "outcome=\"refused\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_unreadable = "gate_connections_total" { "outcome=\"unreadable\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_slow = "gate_connections_total" { "outcome=\"slow\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_gone = "gate_connections_total" { "outcome=\"gone\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_direct = "gate_connections_total" { "outcome=\"direct\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_loop = "gate_connections_total" { "outcome=\"loop\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_stranger = "gate_connections_total" { "outcome=\"stranger\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_full = "gate_connections_total" { "outcome=\"full\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_unresolved = "gate_connections_total" { "outcome=\"unresolved\"" };
    /// TLS connections that came to the gate, by what became of them.
    gate_unreachable = "gate_connections_total" { "outcome=\"unreachable\"" };
    /// Connections through the gate that were cut, by reason.
    gate_cut_policy = "gate_cut_total" { "reason=\"policy\"" };
    /// Connections through the gate that were cut, by reason.
    gate_cut_idle = "gate_cut_total" { "reason=\"idle\"" };
    /// Connections through the gate that were cut, by reason.
    gate_cut_stop = "gate_cut_total" { "reason=\"stop\"" };
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_miscounted_by_more_threads_than_have_a_cell() {
        const THREADS: usize = OWNED + SHARED + 3;
        const TIMES: usize = 1000;
        let counter = Counter::default();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| (0..TIMES).for_each(|_| counter.increment()));
            }
        });
        assert_eq!(usize::try_from(counter.value()), Ok(THREADS * TIMES));
    }

    #[test]
    fn a_duration_is_in_every_bucket_that_is_wide_enough() {
        let metrics = Metrics::default();
        for microseconds in [500, 501, 3_000_000] {
            metrics.waits.observe(Duration::from_micros(microseconds));
        }
        let text = metrics.to_string();
        for sample in [
            "bucket{le=\"0.0005\"} 1",
            "bucket{le=\"0.001\"} 2",
            "bucket{le=\"2.5\"} 2",
            "bucket{le=\"+Inf\"} 3",
            "sum 3.001001",
            "count 3",
        ] {
            assert!(text.contains(&format!("\ntunnelwarden_wait_seconds_{sample}\n")), "{sample}:\n{text}");
        }
    }

    #[test]
    fn a_threads_number_is_its_own_and_stays() {
        let numbers: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| [this_thread(), this_thread()])).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(numbers.iter().all(|[first, second]| first == second), "{numbers:?}");
        let mut distinct: Vec<_> = numbers.iter().map(|[first, _]| first).collect();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 8, "{numbers:?}");
    }
}
