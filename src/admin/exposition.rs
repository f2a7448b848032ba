//! The page for Prometheus: every counter, and gauges of what is now. No name and no client's address is ever a label;
//! upstream servers are, as configured.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

use super::{Condition, Readiness, Reading, View, usage::Usage};
use crate::{audit, upstream::State};

/// The text exposition format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// States of a server, each a sample that is 1 or 0.
const STATES: [(State, &str); 4] =
    [(State::Up, "up"), (State::Suspect, "suspect"), (State::Down, "down"), (State::Looping, "looping")];

/// Everything.
pub(super) fn text(view: &View) -> String {
    let mut text = view.metrics.to_string();
    process(&mut text, view);
    sandbox(&mut text, view);
    checks(&mut text, view);
    policy(&mut text, view);
    cache(&mut text, view);
    upstream(&mut text, view);
    record(&mut text, &view.recorder.health());
    text
}

fn process(text: &mut String, view: &View) {
    let revision = option_env!("TUNNELWARDEN_REVISION").unwrap_or("unknown");
    let labels = format!("{{version=\"{}\",revision=\"{revision}\"}}", env!("CARGO_PKG_VERSION"));
    gauge(text, "tunnelwarden_build_info", "What runs; always 1.", [(labels, 1)]);
    // The names that Prometheus' own client libraries use.
    let started = (String::new(), view.started.as_second());
    gauge(text, "process_start_time_seconds", "When the process started, in Unix time.", [started]);
    let Usage { processor_seconds, resident_bytes, open_files, most_files } = Usage::read();
    let help = "Time that processors spent for the process.";
    metric(text, "counter", "process_cpu_seconds_total", help, processor_seconds.map(unlabelled));
    gauge(text, "process_resident_memory_bytes", "Memory that is resident.", resident_bytes.map(unlabelled));
    gauge(text, "process_open_fds", "Open file descriptors.", open_files.map(unlabelled));
    gauge(text, "process_max_fds", "File descriptors that may be open.", most_files.map(unlabelled));
}

fn sandbox(text: &mut String, view: &View) {
    let samples =
        view.sandbox.parts.iter().map(|part| (format!("{{part=\"{}\"}}", part.name), u8::from(part.is_in_force)));
    gauge(text, "tunnelwarden_sandbox", "Whether the kernel confines the process by this.", samples);
}

/// What the page for orchestrators says, but for its reasons.
fn checks(text: &mut String, view: &View) {
    let readiness = Readiness::of(view);
    let samples = readiness.checks.iter().flat_map(|check| {
        Condition::ALL.map(|condition| {
            let labels = format!("{{check=\"{}\",condition=\"{}\"}}", check.check, condition.as_str());
            (labels, u8::from(condition == check.condition))
        })
    });
    gauge(text, "tunnelwarden_check", "How each check of readiness comes out: 1 for that condition.", samples);
    let ready = u8::from(readiness.is_ready());
    gauge(text, "tunnelwarden_ready", "Whether questions are answered, as /readyz says.", plain(ready));
}

fn policy(text: &mut String, view: &View) {
    let summary = view.gateway.in_force().policy.summary();
    gauge(text, "tunnelwarden_policy_rules", "Rules in force.", plain(summary.rules));
    gauge(text, "tunnelwarden_policy_groups", "Client groups beside the default.", plain(summary.groups));
    gauge(text, "tunnelwarden_policy_exceptions", "Dated exceptions, past ones too.", plain(summary.exceptions));
    let learned = view.gateway.in_force().learned.load().len();
    gauge(text, "tunnelwarden_ingress_addresses", "Learned ingress addresses in force.", plain(learned));
    let files = *view.files.borrow();
    let succeeded = u8::from(files.reading == Reading::Loaded);
    let help = "Whether the files as they were read last are in force.";
    gauge(text, "tunnelwarden_last_reload_successful", help, plain(succeeded));
    let help = "When the files in force were read, in Unix time.";
    gauge(text, "tunnelwarden_last_reload_success_timestamp_seconds", help, plain(files.in_force_since.as_second()));
}

fn cache(text: &mut String, view: &View) {
    let cache = view.gateway.cache();
    gauge(text, "tunnelwarden_cache_bytes", "Memory that the cached answers take.", plain(cache.size()));
    gauge(text, "tunnelwarden_cache_entries", "Answers in the cache.", plain(cache.len()));
}

fn upstream(text: &mut String, view: &View) {
    // A server in two roles is one server.
    let health = view.gateway.upstream().health().into_iter();
    let servers: BTreeMap<_, _> =
        health.map(|server| (server.server.to_string(), (server.state, server.round_trip))).collect();
    let states = servers.iter().flat_map(|(server, (now, _))| {
        STATES.map(|(state, word)| (format!("{{server=\"{server}\",state=\"{word}\"}}"), u8::from(state == *now)))
    });
    gauge(
        text,
        "tunnelwarden_upstream_server_state",
        "Which state each upstream server is in: 1 for that one.",
        states,
    );
    let round_trips = servers.iter().filter_map(|(server, (_, round_trip))| {
        Some((format!("{{server=\"{server}\"}}"), round_trip.as_ref()?.as_secs_f64()))
    });
    let help =
        "Smoothed time from question to reply of each upstream server that was asked; what was lost is estimated.";
    gauge(text, "tunnelwarden_upstream_round_trip_seconds", help, round_trips);
}

fn record(text: &mut String, health: &audit::Health) {
    let store = health.store.iter().map(|condition| ("store".to_owned(), condition));
    // By their place in the configuration: two may have one name.
    let sinks = (1..).zip(&health.sinks).map(|(number, sink)| (format!("sink-{number}"), &sink.condition));
    let parts = store.chain(sinks);
    let samples = parts
        .map(|(part, condition)| (format!("{{part=\"{part}\"}}"), u8::from(*condition == audit::Condition::Working)));
    gauge(text, "tunnelwarden_audit_working", "Whether each part of the record can be written.", samples);
}

/// A sample without labels.
fn plain<T>(value: T) -> [(String, T); 1] {
    [unlabelled(value)]
}

fn unlabelled<T>(value: T) -> (String, T) {
    (String::new(), value)
}

fn gauge<T: Display>(text: &mut String, name: &str, help: &str, samples: impl IntoIterator<Item = (String, T)>) {
    metric(text, "gauge", name, help, samples);
}

/// A metric with its samples: labels with their braces, and the value. Left out when there are none.
fn metric<T: Display>(
    text: &mut String,
    kind: &str,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (String, T)>,
) {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}
