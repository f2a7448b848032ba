//! Learned ingress addresses, by the whole daemon: what is refused for them, what is not, and who cannot bring it about.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};

use crate::support::{
    client::ask,
    daemon::{Daemon, wait_for},
    upstream::{Upstream, Zone},
};

const OWN: &str = "[organization]\ningress = [\"connect.acme.example\"]\naddresses = [\"84.1.0.0/28\"]\n";

/// The ingress has an address of either family; a stranger's names and the own ingress lead to the same.
const ZONE: &str = "
connect.ngrok-agent.com.      60 IN CNAME lb.ngrok-agent.com.
lb.ngrok-agent.com.           60 IN A     3.133.228.214
lb.ngrok-agent.com.           60 IN AAAA  2a05:d014:21b::6e74
connect.acme.example.         60 IN A     3.133.228.214
own.alias.example.            60 IN A     3.133.228.214
own.alias.example.            60 IN AAAA  2a05:d014:21b::6e74
nat64.alias.example.          60 IN AAAA  64:ff9b::3.133.228.214
www.site.example.             60 IN A     3.133.228.215
";

fn config(upstream: &Upstream, more: &str) -> String {
    format!("{OWN}{more}\n[listen]\nLISTEN\n[upstream]\nservers = [\"{}\"]\n", upstream.uri())
}

/// A daemon that has looked everything up once.
fn start(upstream: &Upstream, more: &str) -> Daemon {
    let daemon = Daemon::start(&config(upstream, more));
    daemon.first_round();
    daemon
}

fn rcode(daemon: &Daemon, name: &str, rtype: RecordType) -> ResponseCode {
    ask(name, rtype).udp(daemon.dns()).metadata.response_code
}

/// Every address that is in force, in order.
fn addresses(daemon: &Daemon) -> Vec<String> {
    let learned = daemon.learned();
    let entries = learned["learned"].as_array().unwrap();
    entries.iter().map(|entry| entry["address"].as_str().unwrap().to_owned()).collect()
}

/// What was turned away, with its reason.
fn turned_away(daemon: &Daemon) -> Vec<(String, String)> {
    let learned = daemon.learned();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let entries = learned["turned-away"].as_array().unwrap();
    entries.iter().map(|entry| (text(&entry["address"]), text(&entry["reason"]))).collect()
}

#[test]
fn an_unknown_name_at_a_learned_address_is_refused_with_evidence_and_the_own_ingress_there_is_not() {
    let upstream = Upstream::of(Zone::parse(ZONE));
    let daemon = start(&upstream, "");
    assert_eq!(addresses(&daemon), ["3.133.228.214", "2a05:d014:21b::6e74"]);
    // The second time from the cache.
    for _ in 0..2 {
        for (name, rtype, expected) in [
            ("own.alias.example", RecordType::A, ResponseCode::NXDomain),
            ("own.alias.example", RecordType::AAAA, ResponseCode::NXDomain),
            ("nat64.alias.example", RecordType::AAAA, ResponseCode::NXDomain),
            ("connect.acme.example", RecordType::A, ResponseCode::NoError),
            ("www.site.example", RecordType::A, ResponseCode::NoError),
        ] {
            assert_eq!(rcode(&daemon, name, rtype), expected, "{name} {rtype}");
        }
    }
    let attempts = daemon.attempts();
    let blocked = attempts.iter().find(|one| one["question"]["name"] == "own.alias.example").unwrap();
    assert_eq!((&blocked["decision"], &blocked["rule"]), (&"blocked".into(), &"ngrok/connect".into()));
    assert_eq!(blocked["evidence"]["address"], "3.133.228.214");

    let explain = |arguments: &[&str]| daemon.command(&[&["explain"], arguments].concat());
    let output = explain(&["own.alias.example", "--answer", "A 3.133.228.214"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(text.contains("3.133.228.214, learned from connect.ngrok-agent.com, seen "), "{text}");
    let text = String::from_utf8(explain(&["own.alias.example"]).stdout).unwrap();
    assert!(text.contains("learned ingress addresses: 2"), "{text}");
    let text = String::from_utf8(explain(&["--learned"]).stdout).unwrap();
    assert!(
        text.starts_with("2 addresses, set ") && text.contains("connect.ngrok-agent.com (ngrok/connect)"),
        "{text}"
    );
}

#[test]
fn with_observe_an_unknown_name_at_a_learned_address_is_answered_and_recorded() {
    let upstream = Upstream::of(Zone::parse(ZONE));
    let daemon = start(&upstream, "[policy]\nunknown-on-ingress = \"observe\"\n");
    assert_eq!(rcode(&daemon, "own.alias.example", RecordType::A), ResponseCode::NoError);
    assert_eq!(rcode(&daemon, "connect.ngrok-agent.com", RecordType::A), ResponseCode::NXDomain, "the name still is");
    let attempts = daemon.attempts();
    let [observed, blocked] = &attempts[..] else { panic!("two attempts: {attempts:?}") };
    assert_eq!(
        (&observed["decision"], &observed["evidence"]["address"]),
        (&"observed".into(), &"3.133.228.214".into())
    );
    assert_eq!(blocked["decision"], "blocked");
}

/// Answers from the first zone until the daemon was restarted, from the second then; which, the number says.
fn changing(first: &str, second: &str) -> (Upstream, Arc<AtomicUsize>) {
    let (zones, number) = ([Zone::parse(first), Zone::parse(second)], Arc::new(AtomicUsize::new(0)));
    let now = Arc::clone(&number);
    let upstream = Upstream::start(move |question: &Message, tcp| {
        let zone = zones.get(now.load(Ordering::SeqCst))?;
        Some(zone.answer_over(question, tcp).to_vec().unwrap())
    });
    (upstream, number)
}

#[test]
fn a_restart_begins_with_what_was_known_and_what_vanished_is_forgotten_in_time() {
    let moved = "lb.ngrok-agent.com. 60 IN A 3.133.228.99\nconnect.ngrok-agent.com. 60 IN CNAME lb.ngrok-agent.com.\n\
                 own.alias.example. 60 IN A 3.133.228.214\n";
    let (upstream, zone) = changing(ZONE, moved);
    let mut daemon = start(&upstream, "");
    let before = addresses(&daemon);
    let kept = daemon.folder().join("state/learned-addresses.json");
    wait_for("the file", || fs::read_to_string(&kept).ok().filter(|text| text.contains("3.133.228.214")));
    // Nobody can be asked when it starts again.
    zone.store(2, Ordering::SeqCst);
    daemon.crash_and_restart();
    assert_eq!(addresses(&daemon), before, "before the first answer");
    zone.store(1, Ordering::SeqCst);
    wait_for("the new address", || addresses(&daemon).contains(&"3.133.228.99".to_owned()).then_some(()));
    assert_eq!(rcode(&daemon, "own.alias.example", RecordType::A), ResponseCode::NXDomain, "remembered for a day");

    daemon.rewrite(&config(&upstream, "[firewall]\nremember = 1\n"));
    assert!(daemon.command(&["reload"]).status.success());
    wait_for("what vanished to be forgotten", || (addresses(&daemon) == ["3.133.228.99"]).then_some(()));
    assert_eq!(rcode(&daemon, "own.alias.example", RecordType::A), ResponseCode::NoError);
}

/// A pack of a tunnel product's, with a list of addresses beside it.
fn write_pack(folder: &Path, resolve: &str, list: &str) {
    fs::create_dir_all(folder.join("policies")).unwrap();
    let pack = format!(
        "name = \"theirs\"\nversion = \"1\"\n[[rules]]\nid = \"edge\"\nreason = \"test\"\nblock = [\".edge.example\"]\n\
         resolve = [{resolve}]\naddress-lists = [\"list.json\"]\n"
    );
    fs::write(folder.join("policies/list.json"), list).unwrap();
    fs::write(folder.join("policies/theirs.toml"), pack).unwrap();
}

#[test]
fn no_client_zone_or_list_has_an_innocent_address_refused() {
    let claims = "
        a.edge.example.      60 IN A 8.8.8.8
        a.edge.example.      60 IN A 1.1.1.1
        a.edge.example.      60 IN A 84.1.0.5
        a.edge.example.      60 IN A 192.168.0.1
        a.edge.example.      60 IN A 104.16.1.1
        a.edge.example.      60 IN A 5.6.7.8
        user.example.        60 IN CNAME b.edge.example.
        b.edge.example.      60 IN A 93.184.216.34
        raw.user.example.    60 IN A 93.184.216.34
        dns.google.com.      60 IN A 8.8.8.8
        resolver.example.    60 IN A 8.8.8.8
        www.acme.example.    60 IN A 84.1.0.5
        files.acme.example.  60 IN A 192.168.0.1
        shop.example.        60 IN A 104.16.1.1
        news.example.        60 IN A 151.101.1.1
        other.example.       60 IN A 93.184.216.34
        caught.example.      60 IN A 5.6.7.8
        listed.example.      60 IN A 5.6.7.9
    ";
    let zone: String = claims.lines().map(|line| format!("{}\n", line.trim())).collect();
    let upstream = Upstream::of(Zone::parse(&zone));
    let list = r#"{"edge": ["8.8.8.8:443", "84.1.0.5", "10.0.0.1", "151.101.1.1", "5.6.7.9"]}"#;
    let packs = "[policy]\npacks = [\"theirs\"]\n";
    let prepare = |folder: &Path| write_pack(folder, "\"a.edge.example\"", list);
    let daemon = Daemon::start_with(&config(&upstream, packs), prepare);
    daemon.first_round();
    // A user's zone: an alias of a blocked name that no pack resolves, and its address.
    for name in ["user.example", "b.edge.example", "raw.user.example"] {
        ask(name, RecordType::A).udp(daemon.dns());
    }
    for innocent in [
        "resolver.example",
        "www.acme.example",
        "files.acme.example",
        "shop.example",
        "news.example",
        "other.example",
        "raw.user.example",
    ] {
        assert_eq!(rcode(&daemon, innocent, RecordType::A), ResponseCode::NoError, "{innocent}");
    }
    for caught in ["caught.example", "listed.example"] {
        assert_eq!(rcode(&daemon, caught, RecordType::A), ResponseCode::NXDomain, "{caught}");
    }
    assert_eq!(addresses(&daemon), ["5.6.7.8", "5.6.7.9"]);
    let turned_away = turned_away(&daemon);
    for expected in [
        ("8.8.8.8", "shared"),
        ("1.1.1.1", "shared"),
        ("84.1.0.5", "organization"),
        ("192.168.0.1", "not-global"),
        ("10.0.0.1", "not-global"),
        ("104.16.1.1", "shared"),
        ("151.101.1.1", "shared"),
    ] {
        let found = turned_away.iter().any(|(address, reason)| (&**address, &**reason) == expected);
        assert!(found, "{expected:?} in {turned_away:?}");
    }
}

#[test]
fn a_reload_learns_what_is_new_at_once_forgets_what_is_gone_and_asks_for_nothing_twice() {
    let zone = "a.edge.example. 60 IN A 5.6.7.8\nb.edge.example. 60 IN A 5.6.7.10\n";
    let upstream = Upstream::of(Zone::parse(zone));
    let packs = config(&upstream, "[policy]\npacks = [\"theirs\"]\n");
    let daemon = Daemon::start_with(&packs, |folder| write_pack(folder, "\"a.edge.example\"", "[\"5.6.7.9\"]"));
    daemon.first_round();
    assert_eq!(addresses(&daemon), ["5.6.7.8", "5.6.7.9"]);
    let number = daemon.learned()["number"].as_u64().unwrap();
    let reload = |resolve: &str, list: &str| {
        write_pack(daemon.folder(), resolve, list);
        assert!(daemon.command(&["reload"]).status.success());
        daemon.first_round();
    };
    reload("\"a.edge.example\", \"b.edge.example\"", "[\"5.6.7.11\"]");
    wait_for("both names and the list", || (addresses(&daemon) == ["5.6.7.8", "5.6.7.10", "5.6.7.11"]).then_some(()));
    assert!(daemon.learned()["number"].as_u64().unwrap() > number);
    let asked = upstream.asked();
    assert_eq!(asked.iter().filter(|(name, _)| name == "a.edge.example").count(), 2, "A and AAAA, once: {asked:?}");
    reload("\"b.edge.example\"", "[\"5.6.7.11\"]");
    wait_for("the name to be gone", || (addresses(&daemon) == ["5.6.7.10", "5.6.7.11"]).then_some(()));
}

#[test]
fn own_lookups_never_go_to_the_servers_of_a_zone() {
    let (world, zone) = (Upstream::of(Zone::parse(ZONE)), Upstream::of(Zone::parse(ZONE)));
    let zones = format!("[[upstream.zones]]\nzones = [\"com\"]\nservers = [\"{}\"]\n", zone.uri());
    let config = config(&world, "").replace("[upstream]\n", &format!("{zones}[upstream]\n"));
    let daemon = Daemon::start(&config);
    daemon.first_round();
    assert_eq!((world.own_lookups().len(), zone.own_lookups()), (40, Vec::new()));
    assert_eq!(addresses(&daemon).len(), 2);
}

#[test]
fn lookups_that_fail_are_said_once_and_hold_up_nothing() {
    let upstream = Upstream::of(Zone::parse(ZONE));
    let refusing = Upstream::start(|question, _| {
        let mut reply = Zone::default().answer(question);
        reply.metadata.response_code = ResponseCode::Refused;
        Some(reply.to_vec().unwrap())
    });
    let daemon = start(&refusing, "");
    wait_for("the line", || daemon.log().contains("ingress names cannot be looked up").then_some(()));
    let learned = daemon.learned();
    assert_eq!(learned["failing"].as_array().unwrap().len(), 20);
    assert_eq!(rcode(&daemon, "connect.ngrok-agent.com", RecordType::A), ResponseCode::NXDomain);
    wait_for("a second round", || (refusing.own_lookups().len() > 80).then_some(()));
    assert_eq!(daemon.log().matches("cannot be looked up").count(), 1, "{}", daemon.log());
    // An upstream that answers is asked as soon as it is there.
    daemon.rewrite(&config(&upstream, ""));
    assert!(daemon.command(&["reload"]).status.success());
    wait_for("the addresses", || (addresses(&daemon).len() == 2).then_some(()));
    wait_for("the good news", || daemon.log().contains("are looked up again").then_some(()));
}

#[test]
fn a_list_of_addresses_that_is_none_is_told_with_its_place_and_lies_below_its_pack() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tunnelwarden.toml"), "[policy]\npacks = [\"theirs\"]\n").unwrap();
    let check = |list: &str| {
        write_pack(folder.path(), "\"a.edge.example\"", list);
        let output = crate::support::daemon::command(folder.path(), &["check"]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = check("[\"5.6.0.0/16\"]");
    assert!(code == Some(3) && text.contains("theirs.toml:8:18") && text.contains("5.6.0.0/16 is a network"), "{text}");
    let (code, text) = check("no json");
    assert!(code == Some(3) && text.contains("is no list of addresses: it is no JSON"), "{text}");
    assert_eq!(check("[\"5.6.7.9\"]").0, Some(0));
    fs::remove_file(folder.path().join("policies/list.json")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", folder.path().join("policies/list.json")).unwrap();
    let output = crate::support::daemon::command(folder.path(), &["check"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("is outside its pack's folder"));
}
