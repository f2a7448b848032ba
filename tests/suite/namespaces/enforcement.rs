//! What the daemon makes of every way round it, on a host and as an appliance: a function for each promise.

use std::{
    fs,
    process::Output,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use nix::sys::signal::{Signal, kill};

use super::{
    guarded::{Guarded, Mode, Rules, job_in},
    ways::{DEFAULT, OWN, WAYS},
};
use crate::support::{
    bed::{Bed, CROWD_PORT, Family, Host, Outcome, Vantage, ask_over, look_up, possible},
    daemon::wait_for,
};

/// The daemon's default.
const GATE_PORT: u16 = 5343;
/// Tries that have to be refused while the rules are replaced.
const TRIES: u64 = 100_000;
/// How often they are replaced meanwhile, at least.
const RELOADS: u32 = 11;

/// Registered tests begin with this: the scenario in both modes, where that is possible.
pub fn in_both_modes(test: &str, scenario: impl Fn(Mode)) {
    if possible(test) {
        Mode::BOTH.into_iter().for_each(scenario);
    }
}

// ---- The ways.

pub fn every_way_round_is_closed_and_the_rest_stays_open(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    guarded.assert_every_way();
}

/// Both are root: only the mark tells them apart.
pub fn jobs_of_the_forwarders_user_are_held_too() {
    let upstream = Host::Upstream.address(Family::V4);
    // Both ways of asking need the mark, and so does the gate.
    let over_tcp = format!("[[upstream.zones]]\nzones = [\"example.net\"]\nservers = [\"tcp://{upstream}\"]\n");
    let guarded = Guarded::by(Mode::Host, Rules { rest: over_tcp, shared: true, ..Rules::default() });
    guarded.assert_every_way();
}

pub fn ordinary_traffic_has_no_proxy_in_its_path(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    for family in Family::BOTH {
        guarded.bed.forget();
        guarded.job().inside(|prober| prober.by_name(Host::PublicResolver.at(family, 53), "www.example.net"));
        let peers: Vec<_> = guarded.bed.arrivals(Host::Web).iter().map(|arrival| arrival.peer.ip()).collect();
        assert!(!peers.is_empty() && peers.iter().all(|&peer| peer == guarded.job().address(family)), "{peers:?}");
    }
}

/// The real client, which needs no agent for a tunnel.
pub fn ssh_is_refused(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    for family in Family::BOTH {
        for (hosts, _) in ways_to_find(Host::Foreign, family) {
            guarded.bed.forget();
            let output = ssh(guarded.job(), family, &hosts);
            assert!(!output.status.success());
            for host in [Host::Foreign, Host::PublicResolver] {
                assert_eq!(guarded.bed.arrivals(host), [], "{family:?}, {hosts}");
            }
        }
    }
}

/// Lines of a hosts file with which a program finds `host` as the default ingress, and whether it has to ask for it.
pub fn ways_to_find(host: Host, family: Family) -> [(String, bool); 2] {
    [(String::new(), true), (format!("{} {DEFAULT}\n", host.address(family)), false)]
}

/// `ssh -R` as ngrok describes it.
pub fn ssh(from: Vantage<'_>, family: Family, hosts: &str) -> Output {
    let options = "-F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null";
    let target = format!("v2@{DEFAULT}");
    let mut command = vec!["ssh", family.of(["-4", "-6"]), "-o", "ConnectTimeout=10", "-R", "443:localhost:80"];
    command.extend(options.split(' '));
    command.extend([&target, "http"]);
    from.run_resolving(Host::PublicResolver.address(family), hosts, &command)
}

pub fn the_gate_is_no_relay(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    for family in Family::BOTH {
        let doors = match mode {
            Mode::Host => ["127.0.0.1", "::1"],
            Mode::Gateway => ["10.77.1.1", "fd77:1::1"],
        };
        let gate = (family.of(doors.map(|door| door.parse::<std::net::IpAddr>().unwrap())), GATE_PORT).into();
        guarded.bed.forget();
        let outcomes = guarded.job().inside(|prober| [prober.tls(gate, Some(OWN)), prober.tcp(gate)]);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Refused | Outcome::Silent)), "{outcomes:?}");
        assert_eq!(guarded.bed.arrivals(Host::Shared), []);
    }
    // Who decides over the own name's records cannot have the gate open a way inside either.
    guarded.bed.also_resolve(&format!("inside.{OWN}. 1 IN A 10.77.1.2\ninside.{OWN}. 1 IN AAAA fd77:1::2\n"));
    let name = format!("inside.{OWN}");
    let outcome = guarded.job().inside(|prober| prober.tls(Host::Shared.at(Family::V4, 443), Some(&name)));
    assert!(matches!(outcome, Outcome::Refused | Outcome::Alert(_)), "{outcome:?}");
}

/// Whatever address of it somebody asks.
pub fn it_answers_wherever_it_may_be_asked(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    let addresses: &[&str] = match mode {
        Mode::Host => &["127.0.0.1", "::1"],
        Mode::Gateway => &["10.77.1.1", "fd77:1::1", "198.18.0.1", "fd77:2::1"],
    };
    for address in addresses {
        let server = (address.parse::<std::net::IpAddr>().unwrap(), 53).into();
        let outcomes = guarded.job().inside(|prober| {
            let ask = |name| [prober.dns_udp(server, name), prober.dns_tcp(server, name)];
            [ask(WEB), ask(DEFAULT)].concat()
        });
        let (reached, none) = (Outcome::Reached(Host::Web), Outcome::NoName);
        assert_eq!(outcomes, [reached, reached, none, none], "{address}");
    }
    // Its own programs have no lease on an appliance, and need none.
    for server in ["127.0.0.1:53", "[::1]:53"] {
        let outcome = guarded.bed.appliance().inside(|prober| prober.dns_udp(server.parse().unwrap(), WEB));
        assert_eq!(outcome, Outcome::Reached(Host::Web), "{server}");
    }
}

// ---- What happens to it.

pub fn connections_from_before_are_cut(mode: Mode) {
    let bed = Bed::new();
    let (mut before, flows) = job_in(&bed, mode).inside(|prober| {
        let foreign = |port| Family::BOTH.map(|family| prober.converse(Host::Foreign.at(family, port)).unwrap());
        let flows = Family::BOTH.map(|family| prober.flow(Host::PublicResolver.at(family, 53)).unwrap());
        for flow in &flows {
            let reached = ask_over(flow, DEFAULT).unwrap();
            assert_eq!(reached, Outcome::Reached(Host::Foreign));
        }
        ([foreign(22), foreign(80)].into_iter().flatten().collect::<Vec<_>>(), flows)
    });
    assert!(before.iter_mut().all(|conversation| conversation.goes_on()));
    let guarded = Guarded::on(bed, mode, Rules::default());
    assert!(before.iter_mut().all(|conversation| !conversation.goes_on()), "a connection outlived the policy");
    guarded.bed.forget();
    for flow in &flows {
        // The answer may come from us or not at all; the old way is closed.
        let outcome = ask_over(flow, DEFAULT).ok();
        assert_ne!(outcome, Some(Outcome::Reached(Host::Foreign)));
    }
    assert_eq!(guarded.bed.arrivals(Host::PublicResolver), []);
}

pub fn nothing_leaks_when_the_daemon_is_killed(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    guarded.daemon.signal(Signal::SIGKILL);
    wait_for("its end", || fs::read_link(format!("/proc/{}/exe", guarded.daemon.pid())).is_err().then_some(()));
    guarded.assert_nothing_leaks();
}

pub fn nothing_leaks_when_the_keeper_is_killed(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    kill(guarded.keeper(), Signal::SIGKILL).unwrap();
    guarded.assert_nothing_leaks();
}

pub fn nothing_leaks_after_somebody_flushes_every_rule(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    // Kernels that know owners refuse to, or skip what is owned; with others it is repaired.
    guarded.bed.appliance().run(&["nft", "flush", "ruleset"], "");
    let ssh = || guarded.job().inside(|prober| prober.tcp(Host::Foreign.at(Family::V4, 22)));
    wait_for("the repair", || (ssh() == Outcome::Refused).then_some(()));
    guarded.assert_every_way();
}

pub fn it_comes_back_with_what_it_knew(mode: Mode) {
    let mut guarded = Guarded::by(mode, Rules::default());
    let namespace = guarded.bed.appliance();
    namespace.inside(|_| guarded.daemon.crash_and_restart());
    guarded.daemon.first_round();
    guarded.assert_every_way();
}

pub fn a_reload_under_traffic_leaks_nothing(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    let (stop, tries, reached) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let (guarded, stop, tries, reached) = (&guarded, &stop, &tries, &reached);
        for family in Family::BOTH {
            scope.spawn(move || {
                guarded.job().inside(|prober| {
                    while !stop.load(Ordering::Relaxed) {
                        let outcome = prober.tcp(Host::Foreign.at(family, 22));
                        reached.fetch_add(u64::from(outcome != Outcome::Refused), Ordering::Relaxed);
                        tries.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        let mut reloads = 0;
        while tries.load(Ordering::Relaxed) < TRIES || reloads < RELOADS {
            reloads += 1;
            let rules = Rules { rest: format!("[policy]\nblock = [\"n{reloads}.example.org\"]\n"), ..Rules::default() };
            guarded.daemon.rewrite(&rules.configuration(mode));
            let output = guarded.daemon.command(&["reload", "--accept"]);
            if !output.status.success() {
                stop.store(true, Ordering::Relaxed);
                panic!("{}", String::from_utf8_lossy(&output.stderr));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(reached.into_inner(), 0, "of {} tries", tries.into_inner());
    assert_eq!(guarded.bed.arrivals(Host::Foreign), []);
}

pub fn what_on_stop_says_is_what_stays(mode: Mode) {
    for (on_stop, stays) in [("keep", true), ("remove", false)] {
        let guarded = Guarded::by(mode, Rules { firewall: format!("on-stop = \"{on_stop}\"\n"), ..Rules::default() });
        let Guarded { bed, daemon, .. } = guarded;
        assert_eq!(daemon.stop().0, Some(0));
        let table = bed.appliance().run(&["nft", "list", "table", "inet", "tunnelwarden"], "");
        assert_eq!(table.status.success(), stays, "{on_stop}");
        let ssh = job_in(&bed, mode).inside(|prober| prober.tcp(Host::Foreign.at(Family::V4, 22)));
        assert_eq!(ssh != Outcome::Refused, !stays, "{on_stop}: {ssh:?}");
    }
}

/// Through the daemon, whose table it is; nobody else can change that.
pub fn root_takes_the_rules_away_and_puts_them_back(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    let appliance = guarded.bed.appliance();
    let firewall = |verb: &str| {
        let output = appliance.inside(|_| guarded.daemon.command(&["firewall", verb]));
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let resolver = (if mode == Mode::Host { [127, 0, 0, 1] } else { [10, 77, 1, 1] }, 53).into();
    let tries = || {
        let job = guarded.job();
        job.inside(|prober| [prober.tcp(Host::Foreign.at(Family::V4, 22)), prober.dns_udp(resolver, WEB)])
    };
    let asked = Outcome::Reached(Host::Web);
    assert_eq!(tries(), [Outcome::Refused, asked]);
    firewall("remove");
    assert_eq!(tries(), [Outcome::Reached(Host::Foreign), asked], "it does not answer without its rules");
    firewall("apply");
    assert_eq!(tries(), [Outcome::Refused, asked]);
}

/// Names that are blocked are refused at once, though nothing can be opened.
pub fn a_keeper_that_hangs_stops_nothing_but_what_it_opens(mode: Mode) {
    let guarded = Guarded::by(mode, Rules { firewall: "strict = true\n".to_owned(), ..Rules::default() });
    guarded.bed.also_resolve(&crowd(SITES));
    let keeper = guarded.keeper();
    kill(keeper, Signal::SIGSTOP).unwrap();
    let begun = std::time::Instant::now();
    guarded.job().inside(|prober| {
        let flow = prober.flow(Host::PublicResolver.at(Family::V4, 53)).unwrap();
        for site in 0..100 {
            assert_eq!(ask_over(&flow, &one_of_the_crowd(site)).unwrap(), Outcome::Refused);
            assert_eq!(ask_over(&flow, DEFAULT).unwrap(), Outcome::NoName);
        }
    });
    let took = begun.elapsed();
    kill(keeper, Signal::SIGCONT).unwrap();
    // Half a second for each that has to be opened would be 50.
    assert!(took < Duration::from_secs(30), "200 questions took {took:?}");
    let resolver = Host::PublicResolver.at(Family::V4, 53);
    wait_for("it to open again", || {
        let outcome = guarded.job().inside(|prober| prober.by_name(resolver, WEB));
        (outcome == Outcome::Reached(Host::Web)).then_some(())
    });
}

// ---- Strict.

pub fn strict_lets_out_what_was_resolved_and_nothing_else(mode: Mode) {
    let clock = Family::BOTH.map(|family| Host::Clock.address(family));
    let firewall = format!("strict = true\nntp = [\"{}\", \"{}\"]\n", clock[0], clock[1]);
    let guarded = Guarded::by(mode, Rules { firewall, ..Rules::default() });
    for family in Family::BOTH {
        let outcomes = guarded.job().inside(|prober| {
            [
                prober.tls(Host::Unnamed.at(family, 443), None),
                prober.udp(Host::Unnamed.at(family, 123)),
                prober.udp(Host::Clock.at(family, 123)),
                prober.tcp(Host::Web.at(family, 80)),
                prober.by_name(Host::PublicResolver.at(family, 53), "www.example.net"),
                prober.tcp(Host::Web.at(family, 80)),
            ]
        });
        let reached = Outcome::Reached;
        let expected = [
            Outcome::Refused,
            Outcome::Refused,
            reached(Host::Clock),
            Outcome::Refused,
            reached(Host::Web),
            reached(Host::Web),
        ];
        assert_eq!(outcomes, expected, "{family:?}");
    }
    // What nobody asked for is the one difference to the rest.
    let unresolved = ["an address that nobody asked for", "ordinary QUIC", "ordinary site at any port"];
    guarded.assert_ways(|way| !unresolved.contains(&way.name));
}

pub fn static_networks_are_open_in_strict_mode(mode: Mode) {
    let unnamed = Family::BOTH.map(|family| Host::Unnamed.address(family));
    let firewall = format!("strict = true\nstatic = [\"{}\", \"{}\"]\n", unnamed[0], unnamed[1]);
    let guarded = Guarded::by(mode, Rules { firewall, ..Rules::default() });
    for family in Family::BOTH {
        let outcome = guarded.job().inside(|prober| prober.tls(Host::Unnamed.at(family, 443), None));
        assert_eq!(outcome, Outcome::Reached(Host::Unnamed), "{family:?}");
    }
}

/// On an appliance only: on a host there is but one client.
pub fn what_one_client_resolved_opens_nothing_for_another(mode: Mode) {
    if mode == Mode::Host {
        return;
    }
    let guarded = Guarded::by(mode, Rules { firewall: "strict = true\n".to_owned(), ..Rules::default() });
    for family in Family::BOTH {
        let web = Host::Web.at(family, 443);
        let by_name = guarded.job().inside(|prober| prober.by_name(Host::PublicResolver.at(family, 53), WEB));
        let beside = guarded.bed.neighbour().inside(|prober| prober.tls(web, Some(WEB)));
        assert_eq!((by_name, beside), (Outcome::Reached(Host::Web), Outcome::Refused), "{family:?}");
    }
}

/// By everybody's first question and by the ones that the cache answers.
pub fn an_answer_opens_its_addresses_before_it_is_given(mode: Mode) {
    let guarded = Guarded::by(mode, Rules { firewall: "strict = true\n".to_owned(), ..Rules::default() });
    guarded.bed.also_resolve(&crowd(SITES));
    let second = if mode == Mode::Host { guarded.job() } else { guarded.bed.neighbour() };
    for (who, family) in [(guarded.job(), Family::V4), (guarded.job(), Family::V6), (second, Family::V4)] {
        let refused: Vec<_> = who.inside(|prober| {
            let flow = prober.flow(Host::PublicResolver.at(family, 53)).unwrap();
            let visit = |site| {
                let address = look_up(&flow, &one_of_the_crowd(site)).unwrap().expect("it has an address");
                prober.tcp((address, CROWD_PORT).into())
            };
            (0..SITES).filter(|&site| visit(site) != Outcome::Reached(Host::Crowd)).collect()
        });
        assert_eq!(refused, [0; 0], "{family:?}");
    }
}

/// Enough to lose a race in, fewer than a client may have leases.
const SITES: u32 = 500;

/// So many names, each with addresses of its own.
fn crowd(size: u32) -> String {
    let site = |i| {
        let (name, upper, lower) = (one_of_the_crowd(i), i / 250, i % 250 + 1);
        format!("{name}. 300 IN A 3.78.{upper}.{lower}\n{name}. 300 IN AAAA 2602:78::{upper}:{lower}\n")
    };
    (0..size).map(site).collect()
}

fn one_of_the_crowd(site: u32) -> String {
    format!("n{site}.crowd.example.net")
}

/// A lease lasts longer than its answer's TTL by a grace that is the daemon's to choose, a few minutes at most.
pub fn a_lease_ends_and_what_lives_by_it_does_not(mode: Mode) {
    let guarded = Guarded::by(mode, Rules { firewall: "strict = true\n".to_owned(), ..Rules::default() });
    let web = Host::Web.address(Family::V4);
    guarded.bed.also_resolve(&format!("brief.example.net. 1 IN A {web}\n"));
    let job = guarded.job();
    let mut lives = job.inside(|prober| {
        let resolver = Host::PublicResolver.at(Family::V4, 53);
        assert_eq!(prober.by_name(resolver, "brief.example.net"), Outcome::Reached(Host::Web));
        prober.converse(Host::Web.at(Family::V4, 22)).unwrap()
    });
    let set = ["nft", "list", "set", "inet", "tunnelwarden", "lease_v4"];
    let has = |address: &str| guarded.bed.appliance().must(&set, "").contains(address);
    assert!(has(&web.to_string()), "no lease: {}", guarded.bed.appliance().must(&set, ""));
    let left = std::time::Instant::now() + LONGEST_LEASE;
    while has(&web.to_string()) {
        assert!(std::time::Instant::now() < left, "the lease of a second does not end");
        thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(job.inside(|prober| prober.tcp(Host::Web.at(Family::V4, 80))), Outcome::Refused);
    assert!(lives.goes_on(), "a live connection was cut by an expiring lease");
    let again = job.inside(|prober| prober.by_name(Host::PublicResolver.at(Family::V4, 53), "brief.example.net"));
    assert_eq!(again, Outcome::Reached(Host::Web));
}

const LONGEST_LEASE: Duration = Duration::from_secs(400);

/// On an appliance only: there a client has 2,000 leases, and whoever resolves more loses its own oldest.
pub fn a_client_that_resolves_without_end_fills_the_set_for_nobody_else(mode: Mode) {
    if mode == Mode::Host {
        return;
    }
    let guarded = Guarded::by(mode, Rules { firewall: "strict = true\n".to_owned(), ..Rules::default() });
    guarded.bed.also_resolve(&crowd(2_100));
    let resolver = Host::PublicResolver.at(Family::V4, 53);
    let (client, neighbour) = (guarded.bed.client(), guarded.bed.neighbour());
    let first = [client, neighbour].map(|vantage| vantage.inside(|prober| prober.by_name(resolver, WEB)));
    assert_eq!(first, [Outcome::Reached(Host::Web); 2]);
    client.inside(|prober| {
        let flow = prober.flow(resolver).unwrap();
        for i in 0..2_100 {
            assert!(look_up(&flow, &one_of_the_crowd(i)).unwrap().is_some());
        }
    });
    let web = Host::Web.at(Family::V4, 443);
    let then = [client, neighbour].map(|vantage| vantage.inside(|prober| prober.tls(web, Some(WEB))));
    assert_eq!(then, [Outcome::Refused, Outcome::Reached(Host::Web)]);
}

const WEB: &str = "www.example.net";

// ---- Groups and exceptions.

/// On an appliance: clients in mode observe are asked nothing and refused nothing, and are on record all the same.
pub fn observed_clients_are_refused_nothing_and_recorded(mode: Mode) {
    if mode == Mode::Host {
        return;
    }
    let observed = "[[clients]]\nname = \"watched\"\nnetworks = [\"10.77.1.2\", \"fd77:1::2\"]\nmode = \"observe\"\n";
    let guarded = Guarded::by(mode, Rules { rest: observed.to_owned(), ..Rules::default() });
    for family in Family::BOTH {
        for way in WAYS.iter().filter(|way| way.exists(family)) {
            let outcome = guarded.bed.client().inside(|prober| (way.attempt)(prober, family));
            assert_eq!(outcome, way.open, "{}, {family:?}", way.name);
        }
        let neighbour = guarded.bed.neighbour().inside(|prober| prober.tcp(Host::Foreign.at(family, 22)));
        assert_eq!(neighbour, Outcome::Refused, "the group is too large");
    }
    let asked: Vec<_> = guarded.bed.arrivals(Host::PublicResolver).into_iter().filter(|a| a.port == 53).collect();
    assert_eq!(asked, [], "port 53 is not redirected, so nothing is seen");
    for way in ["dns", "address", "dot", "doh"] {
        guarded.wait_for_attempt(way, "observed");
    }
}

/// Not even those that were there when the address became known.
pub fn connections_that_are_only_observed_are_not_cut(mode: Mode) {
    let bed = Bed::new();
    let mut before = job_in(&bed, mode)
        .inside(|prober| Family::BOTH.map(|family| prober.converse(Host::Foreign.at(family, 22)).unwrap()));
    let guarded =
        Guarded::on(bed, mode, Rules { rest: "[policy]\nmode = \"observe\"\n".to_owned(), ..Rules::default() });
    guarded.wait_for_denied(Host::Foreign);
    assert!(before.iter_mut().all(|conversation| conversation.goes_on()));
}

pub fn an_exception_opens_its_name_for_a_time_and_then_cuts(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    // Long enough for a busy machine to be let through before its end.
    let until = jiff::Timestamp::now() + Duration::from_secs(30);
    let rest =
        format!("[[exceptions]]\nname = \"{DEFAULT}\"\nnetworks = [\"any\"]\nuntil = {until}\nreason = \"a test\"\n");
    guarded.reload(&Rules { rest, ..Rules::default() }.configuration(mode));
    let resolver = Host::PublicResolver.at(Family::V4, 53);
    let by_name = || guarded.job().inside(|prober| prober.by_name(resolver, DEFAULT));
    assert_eq!(by_name(), Outcome::Reached(Host::Foreign));
    let foreign = Host::Foreign.at(Family::V4, 443);
    let other = guarded.job().inside(|prober| prober.tls(foreign, None));
    assert_eq!(other, Outcome::Alert(112), "it opened more than its name");
    let mut lives = guarded.job().inside(|prober| prober.converse_over_tls(foreign, DEFAULT)).unwrap();
    assert!(lives.goes_on());
    thread::sleep(Duration::try_from(until.duration_since(jiff::Timestamp::now())).unwrap_or_default());
    wait_for("its end", || (by_name() == Outcome::NoName).then_some(()));
    wait_for("the cut", || (!lives.goes_on()).then_some(()));
    guarded.assert_every_way();
}

/// Addresses of the organization's own are its own on every port, whoever else is refused theirs.
pub fn own_addresses_are_open_on_every_port(mode: Mode) {
    let own = Family::BOTH.map(|family| Host::Shared.address(family));
    let organization = format!("addresses = [\"{}\", \"{}\"]\n", own[0], own[1]);
    let guarded = Guarded::by(mode, Rules { organization, ..Rules::default() });
    for family in Family::BOTH {
        let outcomes = guarded.job().inside(|prober| {
            [
                prober.tls(Host::Shared.at(family, 443), Some(OWN)),
                prober.tcp(Host::Shared.at(family, 22)),
                prober.udp(Host::Shared.at(family, 443)),
                prober.tcp(Host::Foreign.at(family, 22)),
            ]
        });
        let open = Outcome::Reached(Host::Shared);
        assert_eq!(outcomes, [open, open, open, Outcome::Refused], "{family:?}");
    }
}

/// On an appliance: a group with an own ingress of its own has that one, and nobody else has it.
pub fn a_groups_own_ingress_is_that_groups(mode: Mode) {
    if mode == Mode::Host {
        return;
    }
    let name = "connect.other.example";
    let rest =
        format!("[[clients]]\nname = \"others\"\nnetworks = [\"10.77.1.3\", \"fd77:1::3\"]\ningress = [\"{name}\"]\n");
    let guarded = Guarded::by(mode, Rules { rest, ..Rules::default() });
    for family in Family::BOTH {
        let (resolver, shared) = (Host::PublicResolver.at(family, 53), Host::Shared.at(family, 443));
        let attempts = [guarded.bed.client(), guarded.bed.neighbour()]
            .map(|vantage| vantage.inside(|prober| [prober.by_name(resolver, name), prober.tls(shared, Some(OWN))]));
        let open = Outcome::Reached(Host::Shared);
        assert_eq!(attempts, [[Outcome::NoName, open], [open, Outcome::Alert(112)]], "{family:?}");
    }
}

/// On an appliance: clients outside of the policy are not touched at all, their questions included.
pub fn exempt_clients_are_left_alone(mode: Mode) {
    if mode == Mode::Host {
        return;
    }
    let firewall = "exempt = [\"10.77.1.3\", \"fd77:1::3\"]\n".to_owned();
    let guarded = Guarded::by(mode, Rules { firewall, ..Rules::default() });
    for family in Family::BOTH {
        for way in WAYS.iter().filter(|way| way.exists(family)) {
            guarded.bed.forget();
            let outcome = guarded.bed.neighbour().inside(|prober| (way.attempt)(prober, family));
            assert_eq!(outcome, way.open, "{}, {family:?}", way.name);
            for &host in way.spared {
                assert!(!guarded.bed.arrivals(host).is_empty(), "{}: {host:?} saw nobody", way.name);
            }
        }
    }
    guarded.assert_every_way();
}

/// A policy that takes an own ingress away ends what goes through the gate to it.
pub fn a_reload_cuts_what_it_blocks(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    let shared = Host::Shared.at(Family::V4, 443);
    let mut lives = guarded.job().inside(|prober| prober.converse_over_tls(shared, OWN)).unwrap();
    assert!(lives.goes_on());
    let without = Rules::default().configuration(mode).replace(OWN, "connect.elsewhere.example");
    guarded.reload(&without);
    wait_for("the cut", || (!lives.goes_on()).then_some(()));
}

pub fn what_was_refused_is_on_record(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    guarded.assert_every_way();
    for way in ["dns", "dns-redirected", "dot", "doh", "address", "tls-gate"] {
        guarded.wait_for_attempt(way, if way == "dns-redirected" { "" } else { "blocked" });
    }
}
