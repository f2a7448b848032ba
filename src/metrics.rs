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
    /// Questions received, by transport.
    questions_udp = "questions_total" { "transport=\"udp\"" };
    /// Questions received, by transport.
    questions_tcp = "questions_total" { "transport=\"tcp\"" };
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
