//! Every way round a name server, tried in networks of our own: first that each is open where nothing closes it, without
//! which a refusal would prove nothing; then, in [`enforcement`], what the daemon makes of it.

mod commands;
mod enforcement;
#[allow(dead_code, reason = "as long as not every scenario is listed")]
mod guarded;
mod others;
mod ways;

use std::thread;

use self::ways::WAYS;
use crate::support::bed::{self, Bed, Family, Host, Outcome, Prober, Vantage};

/// A test of each scenario of a module that is named, in both modes.
macro_rules! in_both_modes {
    ($module:ident: $(fn $scenario:ident();)*) => {
        $(#[test]
        fn $scenario() {
            enforcement::in_both_modes(concat!("namespaces::", stringify!($scenario)), $module::$scenario);
        })*
    };
}

in_both_modes! {
    enforcement:
    fn every_way_round_is_closed_and_the_rest_stays_open();
    fn ordinary_traffic_has_no_proxy_in_its_path();
    fn ssh_is_refused();
    fn the_gate_is_no_relay();
    fn it_answers_wherever_it_may_be_asked();
    fn connections_from_before_are_cut();
    fn nothing_leaks_when_the_daemon_is_killed();
    fn nothing_leaks_when_the_keeper_is_killed();
    fn nothing_leaks_after_somebody_flushes_every_rule();
    fn it_comes_back_with_what_it_knew();
    fn a_reload_under_traffic_leaks_nothing();
    fn what_on_stop_says_is_what_stays();
    fn root_takes_the_rules_away_and_puts_them_back();
    fn a_keeper_that_hangs_stops_nothing_but_what_it_opens();
    fn strict_lets_out_what_was_resolved_and_nothing_else();
    fn static_networks_are_open_in_strict_mode();
    fn what_one_client_resolved_opens_nothing_for_another();
    fn an_answer_opens_its_addresses_before_it_is_given();
    fn a_lease_ends_and_what_lives_by_it_does_not();
    fn a_client_that_resolves_without_end_fills_the_set_for_nobody_else();
    fn observed_clients_are_refused_nothing_and_recorded();
    fn connections_that_are_only_observed_are_not_cut();
    fn an_exception_opens_its_name_for_a_time_and_then_cuts();
    fn own_addresses_are_open_on_every_port();
    fn a_groups_own_ingress_is_that_groups();
    fn exempt_clients_are_left_alone();
    fn a_reload_cuts_what_it_blocks();
    fn what_was_refused_is_on_record();
}

in_both_modes! {
    others:
    fn another_tables_drop_rule_still_holds();
    fn another_tables_rule_holds_for_its_client_and_for_no_other();
    fn another_tables_rewriting_leads_nobody_round_the_gate();
}

in_both_modes! {
    commands:
    fn the_firewalls_commands_go_through_the_daemon();
    fn the_daemon_takes_over_what_was_applied_before();
    fn the_forwarder_has_no_right_to_the_firewall();
    fn a_foreign_firewall_in_the_way_is_told_with_the_line_that_opens_it();
    fn without_a_foreign_firewall_nothing_is_told();
    fn the_record_names_the_process_that_tried();
}

#[test]
fn without_a_firewall_every_way_round_is_open() {
    if !bed::possible("namespaces::without_a_firewall_every_way_round_is_open") {
        return;
    }
    let bed = Bed::new();
    for (who, vantage) in [("client", bed.client()), ("neighbour", bed.neighbour()), ("appliance", bed.appliance())] {
        for family in Family::BOTH {
            every_way_is_open(&bed, vantage, &format!("{who}, {family:?}"), family);
        }
    }
}

/// And whoever is to be spared later hears of it now, from the address that is expected.
fn every_way_is_open(bed: &Bed, vantage: Vantage<'_>, who: &str, family: Family) {
    for way in WAYS.iter().filter(|way| way.exists(family)) {
        bed.forget();
        let outcome = vantage.inside(|prober| (way.attempt)(prober, family));
        assert_eq!(outcome, way.open, "{}: {who}", way.name);
        for &host in way.spared {
            let arrivals = bed.arrivals(host);
            assert!(!arrivals.is_empty(), "{}: {who}: {host:?} saw nobody", way.name);
            let strangers = arrivals.iter().find(|arrival| arrival.peer.ip() != vantage.address(family));
            assert_eq!(strangers, None, "{}: {who}", way.name);
        }
    }
}

/// Programs that find their servers by themselves are as free here as the probes are.
#[test]
fn without_a_firewall_ssh_reaches_an_ingress_by_name_and_by_hosts_file() {
    let test = "namespaces::without_a_firewall_ssh_reaches_an_ingress_by_name_and_by_hosts_file";
    if !bed::installed(test, "ssh", "-V") || !bed::possible(test) {
        return;
    }
    let bed = Bed::new();
    for family in Family::BOTH {
        for (hosts, resolver_is_asked) in enforcement::ways_to_find(Host::Foreign, family) {
            bed.forget();
            let output = enforcement::ssh(bed.client(), family, &hosts);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!bed.arrivals(Host::Foreign).is_empty(), "{family:?}, {hosts}: {said}");
            assert_eq!(!bed.arrivals(Host::PublicResolver).is_empty(), resolver_is_asked, "{said}");
        }
    }
}

#[test]
fn each_kind_of_refusal_is_told_from_the_others() {
    if !bed::possible("namespaces::each_kind_of_refusal_is_told_from_the_others") {
        return;
    }
    let bed = Bed::new();
    for (vantage, hook) in [(bed.client(), "forward"), (bed.appliance(), "output")] {
        let table = TABLE.replace("HOOK", hook).replace("MATCH", "");
        bed.appliance().must(&["nft", "-f", "-"], &table);
        thread::scope(|scope| {
            for family in Family::BOTH {
                scope.spawn(move || vantage.inside(|prober| refusals_are_seen(prober, family)));
            }
        });
    }
}

fn refusals_are_seen(prober: &Prober, family: Family) {
    let at = |port| Host::Foreign.at(family, port);
    assert_eq!(prober.tcp(at(22)), Outcome::Refused, "reset");
    assert_eq!(prober.tcp(at(80)), Outcome::Refused, "turned away by ICMP");
    assert_eq!(prober.udp(at(443)), Outcome::Refused, "turned away by ICMP");
    assert_eq!(prober.tcp(at(8443)), Outcome::Silent, "dropped");
    assert_eq!(prober.tls(at(443), None), Outcome::Reached(Host::Foreign), "no rule");
    assert_eq!(prober.dns_udp(Host::Upstream.at(family, 53), "nobody.example.net"), Outcome::NoName);
}

#[test]
fn a_tls_alert_is_told_from_a_reset() {
    if !bed::possible("namespaces::a_tls_alert_is_told_from_a_reset") {
        return;
    }
    let bed = Bed::new();
    // A server that has no certificate for anybody.
    let listener = bed.appliance().inside(|_| std::net::TcpListener::bind("10.77.1.1:443").unwrap());
    let server = thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        stream.write_all(&[21, 3, 3, 0, 2, 2, 112]).unwrap();
        // The client reads it before it hangs up.
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let outcome = bed.client().inside(|prober| prober.tls("10.77.1.1:443".parse().unwrap(), Some("www.example.net")));
    server.join().unwrap();
    assert_eq!(outcome, Outcome::Alert(112));
}

#[test]
fn jobs_of_the_forwarders_user_are_held_too() {
    if bed::possible("namespaces::jobs_of_the_forwarders_user_are_held_too") {
        enforcement::jobs_of_the_forwarders_user_are_held_too();
    }
}

#[test]
fn a_job_on_the_host_is_known_by_its_user() {
    if !bed::several_users_possible("namespaces::a_job_on_the_host_is_known_by_its_user") {
        return;
    }
    let bed = Bed::new();
    let table = TABLE.replace("HOOK", "output").replace("MATCH", &format!("meta skuid {}", bed::JOB));
    bed.appliance().must(&["nft", "-f", "-"], &table);
    for family in Family::BOTH {
        bed.job().inside(|prober| refusals_are_seen(prober, family));
        let root = bed.appliance().inside(|prober| prober.tcp(Host::Foreign.at(family, 22)));
        assert_eq!(root, Outcome::Reached(Host::Foreign));
    }
}

/// Three ways to be turned away, by port.
const TABLE: &str = "
table inet turnedaway
delete table inet turnedaway
table inet turnedaway {
  chain out {
    type filter hook HOOK priority 0; policy accept;
    MATCH tcp dport 22 reject with tcp reset
    MATCH tcp dport 80 reject with icmpx admin-prohibited
    MATCH udp dport 443 reject with icmpx admin-prohibited
    MATCH tcp dport 8443 drop
  }
}
";

#[test]
fn a_connection_that_stays_is_seen_to_end() {
    if !bed::possible("namespaces::a_connection_that_stays_is_seen_to_end") {
        return;
    }
    let bed = Bed::new();
    for family in Family::BOTH {
        let mut ssh = bed.client().inside(|prober| prober.converse(Host::Foreign.at(family, 22))).unwrap();
        assert!(ssh.goes_on() && ssh.goes_on());
        let table = TABLE.replace("HOOK", "forward").replace("MATCH", "");
        bed.appliance().must(&["nft", "-f", "-"], &table);
        assert!(!ssh.goes_on());
        bed.appliance().must(&["nft", "delete", "table", "inet", "turnedaway"], "");
    }
}
