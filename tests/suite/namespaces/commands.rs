//! The firewall's commands beside a running daemon, and who has which rights while it runs.

use std::{fs, process::Output};

use super::guarded::{Guarded, Mode, Rules, forwarder as user};
use crate::support::{
    bed::{Family, Host, JOB, Outcome, several_users},
    daemon::wait_for,
};

/// A command of the binary with the daemon's configuration, on the appliance.
fn firewall(guarded: &Guarded, action: &str) -> (Option<i32>, String) {
    let output: Output = guarded.bed.appliance().inside(|_| guarded.daemon.command(&["firewall", action]));
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// Warnings follow, where the forwarder has to be root.
fn first(said: &str) -> &str {
    said.lines().next().unwrap_or_default()
}

/// The table is its keeper's, which does what root asks the daemon for.
pub fn the_firewalls_commands_go_through_the_daemon(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    let learned = Host::Shared.address(Family::V4).to_string();
    let (code, said) = firewall(&guarded, "status");
    assert_eq!(code, Some(0), "{said}");
    for line in ["the kernel has the rules", "table: in force", "learned: ", &learned, "connect.ngrok-agent.com"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let (code, said) = firewall(&guarded, "remove");
    assert_eq!((code, first(&said)), (Some(0), "removed: table inet tunnelwarden, by the running daemon"));
    let ssh = |_| guarded.job().inside(|prober| prober.tcp(Host::Foreign.at(Family::V4, 22)));
    assert_eq!(ssh(()), Outcome::Reached(Host::Foreign));
    let (code, said) = firewall(&guarded, "status");
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("taken away on request"), "{said}");
    let (code, said) = firewall(&guarded, "apply");
    assert_eq!((code, first(&said)), (Some(0), "in force: table inet tunnelwarden, by the running daemon"));
    assert_eq!(ssh(()), Outcome::Refused, "what was learned is denied again");
    guarded.assert_every_way();
    let (code, said) = firewall(&guarded, "status");
    assert_eq!(code, Some(0), "{said}");
}

/// What is loaded before the network is up, by `firewall apply`, is what the daemon takes over and owns.
pub fn the_daemon_takes_over_what_was_applied_before(mode: Mode) {
    let guarded = Guarded::after(mode, Rules::default(), |bed, folder| {
        let apply = crate::support::daemon::command(folder, &["firewall", "apply"]);
        let output = bed.appliance().inside(move |_| {
            let mut apply = apply;
            apply.output().unwrap()
        });
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
    let (code, said) = firewall(&guarded, "status");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("nobody else can change it"), "{said}");
    guarded.assert_every_way();
}

/// The part that hears strangers has no right to the packet filter, and is another user; the part that has hears nobody.
pub fn the_forwarder_has_no_right_to_the_firewall(mode: Mode) {
    const NET_ADMIN: u64 = 1 << 12;
    let guarded = Guarded::by(mode, Rules::default());
    let keeper = wait_for("the keeper", || Some(guarded.keeper()));
    let field = |pid, name: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    let rights = |pid, name| u64::from_str_radix(&field(pid, name), 16).unwrap();
    let forwarder = guarded.daemon.pid();
    for kind in ["CapPrm:", "CapEff:", "CapInh:", "CapBnd:", "CapAmb:"] {
        assert_eq!(rights(forwarder, kind) & !(1 << 10), 0, "{kind} has more than ports below 1024");
        assert_eq!(rights(keeper, kind) & !NET_ADMIN, 0, "{kind} of the keeper");
    }
    assert_eq!(rights(keeper, "CapEff:"), NET_ADMIN);
    let (_, uid) = user();
    assert_eq!(field(forwarder, "Uid:"), [uid; 4].map(|uid| uid.to_string()).join("\t"));
    assert_eq!(field(forwarder, "Groups:"), "");
    for confined in [forwarder, keeper] {
        assert_eq!([field(confined, "NoNewPrivs:"), field(confined, "Seccomp:")], ["1", "2"], "{confined}");
    }
}

/// Whoever closes the input hook to clients closes it to what is turned to us: it is said, with the line that opens it.
pub fn a_foreign_firewall_in_the_way_is_told_with_the_line_that_opens_it(mode: Mode) {
    const WARNING: [&str; 2] = ["should have been turned to us did not arrive", "somebody else's rules turn away"];
    let (foreign, expected) = match mode {
        Mode::Host => ("udp dport 53 drop", WARNING[0]),
        Mode::Gateway => ("iifname \"lan0\" ip protocol icmp accept; ct state established accept; drop", WARNING[1]),
    };
    let table = format!(
        "table inet theirs {{\n chain in {{\n type filter hook input priority 0; policy accept;\n {}\n }}\n}}\n",
        foreign.replace("; ", "\n")
    );
    let guarded = Guarded::after(mode, Rules::default(), |bed, _| {
        bed.appliance().must(&["nft", "-f", "-"], &table);
    });
    wait_for("the warning", || guarded.daemon.log().contains(expected).then_some(()));
    if mode == Mode::Host {
        return;
    }
    let ask =
        || guarded.job().inside(|prober| prober.dns_udp(Host::PublicResolver.at(Family::V4, 53), "www.example.net"));
    assert_eq!(ask(), Outcome::Silent);
    let log = guarded.daemon.log();
    let (_, line) = log.split_once("its owner opens it: nft ").unwrap();
    let line = line.lines().next().unwrap().trim();
    guarded.bed.appliance().must(&["nft", line], "");
    assert_eq!(ask(), Outcome::Reached(Host::Web));
}

pub fn without_a_foreign_firewall_nothing_is_told(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    if mode == Mode::Host {
        wait_for("the scout's end", || {
            let tasks = format!("/proc/{0}/task/{0}/children", guarded.daemon.pid());
            let children = fs::read_to_string(tasks).unwrap();
            (children.split_whitespace().count() <= 1).then_some(())
        });
    }
    assert!(!guarded.daemon.log().contains("WARN"), "{}", guarded.daemon.log());
}

/// On a host: who tried is known by its user, and with the right to look also by its program. That has two milliseconds,
/// so on a busy machine it takes several tries.
pub fn the_record_names_the_process_that_tried(mode: Mode) {
    const TRIES: usize = 20;
    if mode == Mode::Gateway {
        return;
    }
    let server = format!("@{}", Host::PublicResolver.address(Family::V4));
    let job = if several_users() { JOB } else { 0 };
    for processes in [false, true] {
        let firewall = format!("processes = {processes}\n");
        let guarded = Guarded::by(mode, Rules { firewall, ..Rules::default() });
        for number in 0..TRIES {
            // Another name each time: what repeats is one attempt.
            let name = format!("connect.r{number}.ngrok-agent.com");
            guarded.job().run(&["dig", "+tries=1", &server, &name], "");
        }
        guarded.job().inside(|prober| prober.tls(Host::Foreign.at(Family::V4, 443), None));
        guarded.wait_for_attempt("tls-gate", "blocked");
        let attempts = guarded.daemon.attempts();
        let of_job = attempts.iter().filter(|attempt| attempt["process"]["uid"] == job);
        assert!(of_job.clone().any(|attempt| attempt["way"] == "tls-gate"), "{attempts:?}");
        let asked: Vec<_> = of_job.filter(|attempt| attempt["way"] == "dns").collect();
        assert!(!asked.is_empty(), "{attempts:?}");
        let is_named = |attempt: &&serde_json::Value| {
            attempt["process"]["exe"].as_str().is_some_and(|path| path.ends_with("/dig"))
        };
        assert_eq!(asked.iter().any(is_named), processes, "{asked:?}");
    }
}
