//! What `serve` says when it is up: where it listens, whom it asks, what it enforces, what to try. On a terminal it
//! goes on with a line for each attempt.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write, stdout},
    net::SocketAddr,
    path::Path,
    thread,
};

use jiff::tz::TimeZone;
use tokio::runtime::Handle;

use crate::{
    audit::{Recorder, Sink, Store, line},
    config::{Config, Outline},
    firewall,
    keeper::Standing,
    policy::Mode,
    sys::sandbox::Sandbox,
};

/// Says what is up. On standard output, unless attempts go there as JSON.
pub(super) fn print(
    config: &Config,
    doors: (&[SocketAddr], &[SocketAddr], Option<SocketAddr>),
    held: (Option<Standing>, &Sandbox),
    state_dir: &Path,
) {
    let text = text(config, doors, held, state_dir);
    if config.audit.sinks.contains(&Sink::Stdout) {
        say(anstream::stderr(), &text);
    } else {
        say(anstream::stdout(), &text);
    }
}

/// Nobody who cannot be told stops us: a terminal that is gone, a full disk.
fn say(mut out: impl Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Shows each attempt while somebody watches. A terminal that is paused holds up this thread and nothing else, a stop
/// least of all; what it misses meanwhile is counted.
pub(super) fn follow(recorder: &Recorder) {
    if !stdout().is_terminal() {
        return;
    }
    let mut attempts = recorder.subscribe();
    let (runtime, zone) = (Handle::current(), TimeZone::system());
    let show = move || {
        while let Some(record) = runtime.block_on(attempts.next()) {
            say(anstream::stdout(), &format!("{}\n", line(&record, &zone, true)));
        }
    };
    if let Err(error) = thread::Builder::new().name("terminal".to_owned()).spawn(show) {
        tracing::warn!(%error, "cannot show attempts here");
    }
}

fn text(
    config: &Config,
    (addresses, skipped, admin): (&[SocketAddr], &[SocketAddr], Option<SocketAddr>),
    (firewall, sandbox): (Option<Standing>, &Sandbox),
    state_dir: &Path,
) -> String {
    let mut text = format!("tunnelwarden {}\n", env!("CARGO_PKG_VERSION"));
    let mut row = |title: &str, value: &str| {
        let _ = writeln!(text, "  {title:<12} {value}");
    };
    for address in addresses {
        row("listening", &format!("{address} (UDP and TCP)"));
    }
    for address in skipped {
        row("", &format!("not on {address}: this machine has no such address"));
    }
    if let Some(address) = admin {
        row("admin", &format!("http://{address} (/readyz, /metrics)"));
    }
    let servers: Vec<_> = config.upstream.servers.iter().map(ToString::to_string).collect();
    row("upstream", &servers.join(", "));
    row("policy", &policy(config));
    row("own ingress", &own_ingress(&config.outline));
    if let Some(standing) = firewall {
        row("firewall", &enforced(&config.firewall, standing));
    }
    row("sandbox", &sandbox.to_string());
    if let Some(address) = addresses.first() {
        let (ip, port) = (address.ip(), address.port());
        row("try", &format!("dig @{ip} -p {port} connect.eu.ngrok-agent.com"));
    }
    // Last, so that who waits for it knows that everything is up.
    row("record", &record(&config.audit.store, state_dir));
    text
}

fn policy(config: &Config) -> String {
    let summary = config.policy.summary();
    let packs: Vec<_> = summary.packs.iter().map(|pack| format!("{} {}", pack.name, pack.version)).collect();
    let verb = match config.outline.mode {
        Mode::Enforce => "enforced",
        Mode::Observe => "observed: nothing is refused",
    };
    let mut text = format!("{}: {} rules, {verb}", packs.join(", "), summary.rules);
    for (count, what) in [(summary.groups, "client groups"), (summary.exceptions, "exceptions")] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    text
}

fn enforced(options: &firewall::Options, standing: Standing) -> String {
    let mode = match options.mode {
        firewall::Mode::Off => "off".to_owned(),
        firewall::Mode::Host => "this host".to_owned(),
        firewall::Mode::Gateway => format!("gateway of {}", options.lan.join(", ")),
    };
    let strict = if options.strict { ", strict" } else { "" };
    format!("{mode}{strict}; table inet {} {standing}", firewall::TABLE)
}

fn own_ingress(outline: &Outline) -> String {
    if outline.ingress.is_empty() {
        "none: every ngrok ingress is refused".to_owned()
    } else {
        outline.ingress.join(", ")
    }
}

fn record(store: &Store, state_dir: &Path) -> String {
    match store {
        Store::Off => "no store".to_owned(),
        Store::File(path) => format!("{} (read it with `tunnelwarden attempts`)", state_dir.join(path).display()),
    }
}
