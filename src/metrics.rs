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
    /// Questions answered from the cache.
    cache_hits = "cache_hits_total";
    /// Questions for which the cache held nothing fresh.
    cache_misses = "cache_misses_total";
    /// Answers that made room for others in the cache.
    cache_evictions = "cache_evictions_total";
}
