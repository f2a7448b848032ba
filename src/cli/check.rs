//! `tunnelwarden check`: reads configuration and packs, tells every problem, and says what would be enforced.

use std::io::{self, Write};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    Common, Exit,
    ways::{Enforcement, open_ways},
};
use crate::{
    audit::{Sink, Store},
    config::{self, Config, Loaded},
    firewall,
    policy::{Mode, UnknownOnIngress},
    problem::{Problem, Problems, Severity, printable},
};

/// Reads configuration and packs and prints every problem with file, line and column.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Count warnings as errors.
    #[arg(long)]
    pub strict: bool,
}

/// Prints problems to standard error and the summary to standard output; with `--json` all of it to standard output.
///
/// # Errors
/// When neither takes any more.
pub fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<Exit> {
    let loaded = config::load(common.config.as_deref(), Timestamp::now());
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    Ok(report(loaded, arguments.strict, common.json, &mut out, &mut err)?)
}

fn report(loaded: Loaded, strict: bool, json: bool, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let Loaded { outcome, mut problems, .. } = loaded;
    problems.append(outcome.as_ref().map(uncovered).unwrap_or_default());
    let warnings = problems.count(Severity::Warning);
    let valid = outcome.is_some() && !(strict && warnings > 0);
    if json {
        writeln!(out, "{:#}", in_json(outcome.as_ref(), &problems, valid))?;
    } else {
        if !problems.is_empty() {
            writeln!(err, "{problems}")?;
        }
        let counts = format!("{}, {}", counted(problems.count(Severity::Error), "error"), counted(warnings, "warning"));
        writeln!(out, "{}: {counts}", if valid { "valid" } else { "invalid" })?;
        for (what, line) in outcome.iter().flat_map(lines) {
            writeln!(out, "{what:<12}{}", printable(&line))?;
        }
    }
    Ok(if valid { Exit::Done } else { Exit::Invalid })
}

/// What this setup does not do although its author may think so.
fn uncovered(config: &Config) -> Problems {
    let mut problems = Problems::default();
    let mut warn = |message: &str, hint: &str| {
        let (message, hint) = (message.to_owned(), Some(hint.to_owned()));
        problems.push(Problem { severity: Severity::Warning, place: None, message, hint });
    };
    // A front resolver on this machine may ask for others.
    let only_here =
        config.listen.dns.iter().all(|address| address.ip().is_loopback()) && config.limits.forwarders.is_empty();
    let groups = !config.outline.groups.is_empty();
    if only_here && groups {
        warn("there are client groups, but only this machine can ask", "add an address of the network to [listen] dns");
    }
    if !only_here && !groups && config.limits.clients.is_empty() {
        warn("others can reach us, but only this machine may ask", "name networks under [limits] clients");
    }
    if config.audit.store == Store::Off && config.audit.sinks.is_empty() {
        warn("attempts are recorded nowhere", "set [audit] store, or add a sink");
    }
    if config.policy.summary().patterns == 0 {
        warn("nothing is refused: there is neither a pack nor a local rule", "name packs under [policy]");
    }
    problems
}

/// What holds, a line each: a word and its text.
fn lines(config: &Config) -> Vec<(&'static str, String)> {
    let Config {
        path,
        listen,
        upstream,
        cache: _,
        limits: _,
        audit,
        firewall,
        ingress: learning,
        organization,
        client_networks: _,
        policy,
        outline,
    } = config;
    let mut lines = Vec::new();
    let path = path.as_ref().map_or_else(|| "none; built-in defaults".to_owned(), |path| path.display().to_string());
    lines.push(("file", path));
    let owner = [organization.name.as_deref(), organization.contact.as_deref()];
    let owner: Vec<&str> = owner.into_iter().flatten().collect();
    if !owner.is_empty() {
        lines.push(("for", owner.join(", ")));
    }
    let ingress = match outline.ingress.as_slice() {
        [] => "none: every ngrok ingress is refused".to_owned(),
        names => names.join(", "),
    };
    lines.push(("ingress", ingress));
    lines.push(("mode", format!("{}, {}", word(&outline.mode), word(&outline.action))));
    for pack in policy.summary().packs {
        let whose = if outline.packs.contains(&pack.name) { "" } else { ", for groups only" };
        let (rules, patterns) = (counted(pack.rules, "rule"), counted(pack.patterns, "pattern"));
        lines.push(("pack", format!("{} {} ({rules}, {patterns}{whose})", pack.name, pack.version)));
    }
    let names = policy.resolved().count();
    if names > 0 {
        let unknown = match outline.unknown_on_ingress {
            UnknownOnIngress::Refuse => "",
            UnknownOnIngress::Observe => ", only recorded",
        };
        let remember = SignedDuration::try_from(learning.remember).unwrap_or(SignedDuration::MAX);
        let names = counted(names, "ingress name");
        lines.push(("addresses", format!("of {names} looked up, remembered for {remember:#}{unknown}")));
    }
    let local = outline.allow.len() + outline.block.len();
    if local > 0 {
        lines.push(("local", counted(local, "pattern")));
    }
    for group in &outline.groups {
        let (networks, packs) = (counted(group.networks.len(), "network"), group.packs.join(", "));
        let (mode, action) = (word(&group.mode), word(&group.action));
        lines.push(("group", format!("{} ({networks}): {mode}, {action}; {packs}", group.name)));
    }
    for exception in &outline.exceptions {
        let (name, until, reason) = (&exception.name, exception.until, &exception.reason);
        lines.push(("exception", format!("{name} until {until}: {reason}")));
    }
    lines.push(("listen", joined(&listen.dns)));
    if let Some(address) = listen.admin.address() {
        lines.push(("admin", format!("http://{address}")));
    }
    lines.push(("upstream", joined(&upstream.servers)));
    lines.extend(
        upstream.zones.iter().map(|zone| ("zone", format!("{}: {}", joined(&zone.zones), joined(&zone.servers)))),
    );
    if firewall.mode != firewall::Mode::Off {
        lines.push(("firewall", filter(firewall)));
    }
    lines.extend(record(audit).into_iter().map(|line| ("record", line)));
    lines.extend(notes(config).into_iter().map(|note| ("not held", note)));
    lines
}

/// What the packet filter does.
fn filter(firewall: &firewall::Options) -> String {
    let mode = match firewall.mode {
        firewall::Mode::Off => "off".to_owned(),
        firewall::Mode::Host => "this machine's programs".to_owned(),
        firewall::Mode::Gateway => format!("clients behind {}", firewall.lan.join(", ")),
    };
    let strict = if firewall.strict { ", nothing but what was resolved" } else { "" };
    format!("{mode}{strict}; we are user {}", firewall.user)
}

/// Where attempts go.
fn record(audit: &crate::audit::Options) -> Vec<String> {
    let store = match &audit.store {
        Store::Off => None,
        Store::File(path) => {
            let hours = audit.keep.as_secs() / 3600;
            let place = if path.is_absolute() { "" } else { " in the state folder" };
            let kept = if hours.is_multiple_of(24) { format!("{} days", hours / 24) } else { format!("{hours} hours") };
            Some(format!("{}{place}, for {kept}, up to {} MiB", path.display(), audit.max_size >> 20))
        }
    };
    let sinks = audit.sinks.iter().map(|sink| match sink {
        Sink::Stdout => "standard output".to_owned(),
        Sink::File(path) => path.display().to_string(),
    });
    store.into_iter().chain(sinks).collect()
}

/// What nobody can configure away in this version, and what the configuration leaves open on purpose.
fn notes(config: &Config) -> Vec<String> {
    let mut notes = Vec::new();
    if config.outline.mode == Mode::Observe {
        notes.push("clients of no group are only observed".to_owned());
    }
    for group in config.outline.groups.iter().filter(|group| group.mode == Mode::Observe) {
        notes.push(format!("clients of {} are only observed", group.name));
    }
    let forwarders = joined(&config.limits.forwarders);
    notes.extend(open_ways(enforcement(&config.firewall), &forwarders));
    notes
}

/// What stands behind the resolver.
fn enforcement(options: &firewall::Options) -> Enforcement {
    let strict = options.strict;
    match options.mode {
        firewall::Mode::Off => Enforcement::Resolver,
        firewall::Mode::Host => Enforcement::Host { strict },
        firewall::Mode::Gateway => Enforcement::Gateway { strict },
    }
}

fn in_json(config: Option<&Config>, problems: &Problems, valid: bool) -> Value {
    let told: Vec<Value> = problems
        .iter()
        .map(|problem| {
            let place = problem.place.as_ref();
            json!({
                "severity": match problem.severity { Severity::Error => "error", Severity::Warning => "warning" },
                "file": place.map(|place| place.path().display().to_string()),
                "line": place.map(|place| place.line()),
                "column": place.map(|place| place.column()),
                "excerpt": place.map(|place| place.excerpt()),
                "message": problem.message,
                "hint": problem.hint,
            })
        })
        .collect();
    let enforced = config.map(|config| {
        json!({
            "file": config.path.as_ref().map(|path| path.display().to_string()),
            "policy": config.outline,
            "packs": config.policy.summary().packs,
            "listen": texts(&config.listen.dns),
            "upstream": texts(&config.upstream.servers),
            "record": record(&config.audit),
            "not-held": notes(config),
        })
    });
    json!({ "valid": valid, "problems": told, "enforced": enforced })
}

fn texts(items: &[impl ToString]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn joined(items: &[impl ToString]) -> String {
    texts(items).join(", ")
}

/// A mode or an action, as it is written in a configuration.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACK: &str =
        "name = 'mine'\nversion = '2026-11-23'\n[[rules]]\nid = 'a'\nreason = 'r'\nblock = ['.relay.example.net']\n";

    /// Exit code, standard output and standard error for a configuration beside a pack; the folder's name is left out.
    fn checked(configuration: &str, strict: bool, json: bool) -> (Exit, String, String) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("policies")).unwrap();
        std::fs::write(folder.path().join("policies/mine.toml"), PACK).unwrap();
        let path = folder.path().join("w.toml");
        std::fs::write(&path, configuration).unwrap();
        let loaded = config::load(Some(&path), Timestamp::UNIX_EPOCH);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = report(loaded, strict, json, &mut out, &mut err).unwrap();
        let shown = |bytes| String::from_utf8(bytes).unwrap().replace(&format!("{}/", folder.path().display()), "");
        (exit, shown(out), shown(err))
    }

    #[test]
    fn a_valid_configuration_is_summed_up() {
        let configuration = r#"
            [organization]
            name = "Acme"
            contact = "netsec@acme.example"
            ingress = ["connect.acme.example"]
            [listen]
            dns = ["192.0.2.1"]
            [upstream]
            servers = ["udp://9.9.9.9"]
            [[upstream.zones]]
            zones = ["corp.example"]
            servers = ["tcp://10.0.0.53"]
            [policy]
            packs = ["mine"]
            allow = ["a.relay.example.net"]
            [[clients]]
            name = "guests"
            networks = ["10.99.0.0/16"]
            mode = "observe"
            [[exceptions]]
            name = "b.relay.example.net"
            networks = ["10.20.7.0/24"]
            until = 2026-12-24T18:00:00Z
            reason = "NET-4711"
            [[audit.sinks]]
            kind = "stdout"
        "#;
        let (exit, out, err) = checked(configuration, true, false);
        assert_eq!((exit, err.as_str()), (Exit::Done, ""));
        let expected = "\
valid: 0 errors, 0 warnings
file        w.toml
for         Acme, netsec@acme.example
ingress     connect.acme.example
mode        enforce, nxdomain
pack        mine 2026-11-23 (1 rule, 1 pattern)
local       1 pattern
group       guests (1 network): observe, nxdomain; mine
exception   b.relay.example.net until 2026-12-24T18:00:00Z: NET-4711
listen      192.0.2.1:53
admin       http://127.0.0.1:9053
upstream    udp://9.9.9.9
zone        corp.example: tcp://10.0.0.53
record      attempts.db in the state folder, for 90 days, up to 1024 MiB
record      standard output
not held    clients of guests are only observed
not held    agents with a resolver of their own; the official one asks 8.8.8.8, and Google over HTTPS: close ports 53 and 853
not held    a hosts file, a raw address, ssh -R to an address: pair this with a firewall that denies by default
not held    names that a proxy looks up: let only the proxy out, and give it `tunnelwarden export squid`
";
        assert_eq!(out, expected);
    }

    #[test]
    fn an_error_is_told_on_standard_error_and_gives_code_3() {
        let (exit, out, err) = checked("[policy]\npakcs = []\n", false, false);
        assert_eq!((exit, out.as_str()), (Exit::Invalid, "invalid: 1 error, 0 warnings\n"));
        let expected =
            "w.toml:2:1: error: unknown key \"pakcs\" in [policy]\n    pakcs = []\n    hint: did you mean \"packs\"?\n";
        assert_eq!(err, expected);
    }

    #[test]
    fn what_the_setup_leaves_open_is_a_warning_which_counts_only_under_strict() {
        #[rustfmt::skip]
        let cases = [
            ("[policy]\npacks = ['mine']\n[[clients]]\nname = 'a'\nnetworks = ['10.0.0.0/8']", "there are client groups, but only this machine can ask"),
            ("[policy]\npacks = ['mine']\n[listen]\ndns = ['0.0.0.0']\n[limits]\nclients = []", "others can reach us, but only this machine may ask"),
            ("[policy]\npacks = ['mine']\n[audit]\nstore = 'off'", "attempts are recorded nowhere"),
            ("[policy]\npacks = []", "nothing is refused: there is neither a pack nor a local rule"),
        ];
        for (configuration, expected) in cases {
            let (exit, _, err) = checked(configuration, false, false);
            assert_eq!(exit, Exit::Done, "{err}");
            assert!(err.starts_with(&format!("warning: {expected}\n")), "{err}");
            assert_eq!(checked(configuration, true, false).0, Exit::Invalid);
        }
    }

    #[test]
    fn json_holds_problems_and_what_is_enforced() {
        let (exit, out, err) = checked("[policy]\npacks = ['mine']\n[audit]\nstore = 'off'", false, true);
        assert_eq!((exit, err.as_str()), (Exit::Done, ""));
        let value: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["valid"], true);
        assert_eq!(value["problems"][0]["severity"], "warning");
        assert_eq!(value["enforced"]["packs"][0]["name"], "mine");
        let (exit, out, _) = checked("x = 1", false, true);
        let value: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((exit, &value["problems"][0]["line"], &value["enforced"]), (Exit::Invalid, &json!(1), &Value::Null));
    }
}
