//! The keeper as a process of its own with the one right it keeps, beside a forwarder that has none. Three processes,
//! so this is no test of the usual harness: it starts itself again in two more roles.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use std::{
    env, fs,
    net::IpAddr,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tunnelwarden::{
    keeper::{self, Failure, Keeper, Protection, Terms},
    sys::{
        rights::{self, Right},
        seqpacket::Channel,
    },
};

const SCRIPT: &str = "add table inet tunnelwarden
add set inet tunnelwarden ingress_v4 { type ipv4_addr; flags timeout; size 65536; }
add set inet tunnelwarden ingress_v6 { type ipv6_addr; flags timeout; size 65536; }
add set inet tunnelwarden lease_v4 { type ipv4_addr; flags timeout; size 262144; }
add set inet tunnelwarden lease_v6 { type ipv6_addr; flags timeout; size 262144; }
add set inet tunnelwarden port_v4 { type ipv4_addr . inet_service; flags timeout; size 65536; }
add set inet tunnelwarden port_v6 { type ipv6_addr . inet_service; flags timeout; size 65536; }
";
const NOBODY: u32 = 65534;

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        Some("as-keeper") => as_keeper(),
        Some("as-forwarder") => as_forwarder(&env::args().nth(2).unwrap()),
        Some(_) | None => in_a_network_of_our_own(),
    }
}

fn in_a_network_of_our_own() -> ExitCode {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("SKIPPED: no network namespace: {error}");
        return if env::var_os("CI").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    for (last_word, table_stays) in [("bye", false), ("death", true)] {
        let forwarder = Command::new(env::current_exe().unwrap()).args(["as-forwarder", last_word]).status().unwrap();
        assert_eq!(forwarder.success(), last_word == "bye", "{last_word}: {forwarder}");
        let table = Command::new("nft").args(["list", "table", "inet", "tunnelwarden"]).output().unwrap();
        assert_eq!(table.status.success(), table_stays, "{last_word}");
        assert_eq!(String::from_utf8(table.stdout).unwrap().contains("93.184.216.34"), table_stays, "{last_word}");
    }
    ExitCode::SUCCESS
}

fn as_keeper() -> ExitCode {
    rights::keep_only(&[Right::NetAdmin]).unwrap();
    let (requests, notices) = (Channel::from_stdin().unwrap(), Channel::from_stdout().unwrap());
    let terms = || Ok(Terms { script: SCRIPT.to_owned(), on_stop_remove: true, ..Terms::default() });
    keeper::run(requests, notices, terms).unwrap();
    ExitCode::SUCCESS
}

fn as_forwarder(last_word: &str) -> ExitCode {
    let mut program = Command::new(env::current_exe().unwrap());
    program.arg("as-keeper");
    let (keeper, notices, protection) = Keeper::start(program).unwrap();
    let child = child();
    let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap();
    assert!(status.contains("CapEff:\t0000000000001000") && status.contains("NoNewPrivs:\t1"), "{status}");
    // Whoever stops a service signals all of its processes.
    kill(child, Signal::SIGTERM).unwrap();
    rights::become_user(NOBODY, NOBODY, &[]).unwrap();
    assert!(!rights::has(Right::NetAdmin).unwrap());
    keeper.permit(None, &["93.184.216.34".parse::<IpAddr>().unwrap()], Duration::from_secs(3600)).unwrap();
    keeper.reload().unwrap();
    measure(&keeper, protection);
    if last_word == "bye" {
        keeper.say_bye().unwrap();
        assert!(matches!(notices.next(None), Ok(None) | Err(Failure::Gone)));
        return ExitCode::SUCCESS;
    }
    std::process::abort();
}

fn measure(keeper: &Keeper, protection: Protection) {
    let mut times: Vec<_> = (0..5000_u16)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            let start = Instant::now();
            keeper.permit(None, &[IpAddr::from([20, 0, high, low])], Duration::from_secs(60)).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("{protection:?}: a lease from process to process: p50 {:?}, p99 {:?}", times[2500], times[4950]);
}

/// The one process that we started.
fn child() -> Pid {
    let pid = std::process::id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap())
}
