//! The admin door of the whole daemon: what it says, whom it turns away, and the command that asks it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
};

use hickory_proto::rr::RecordType;
use nix::sys::signal::Signal;

use crate::support::{
    client::ask,
    daemon::{Daemon, PATIENCE, command, wait_for},
    upstream::{Upstream, Zone},
};

const LISTEN: &str = "[listen]\ndns = [\"127.0.0.1:0\"]\nadmin = \"127.0.0.1:0\"\n";
const ZONE: &str = "example.org. 60 IN A 192.0.2.1\n";

fn start() -> (Upstream, Daemon) {
    let upstream = Upstream::of(Zone::parse(ZONE));
    let daemon = Daemon::start(&config(&upstream.uri()));
    (upstream, daemon)
}

fn config(server: &str) -> String {
    format!("{LISTEN}[upstream]\nservers = [\"{server}\"]\n")
}

/// A server that nobody is.
fn nobody() -> String {
    let held = UdpSocket::bind("127.0.0.1:0").unwrap();
    format!("udp://{}", held.local_addr().unwrap())
}

/// Sends bytes, reads until the end. Status (0 for none), head, body.
fn raw(door: SocketAddr, request: &[u8]) -> (u16, String, String) {
    let mut stream = TcpStream::connect(door).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may be refused before all of it is sent.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, head.to_lowercase(), body.to_owned())
}

fn request(door: SocketAddr, method: &str, page: &str, host: &str) -> (u16, String, String) {
    raw(door, format!("{method} {page} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
}

/// Status and body.
fn get(daemon: &Daemon, page: &str) -> (u16, String) {
    let door = daemon.admin.unwrap();
    let (status, _, body) = request(door, "GET", page, &door.to_string());
    (status, body)
}

/// A sample's value.
fn sample(daemon: &Daemon, series: &str) -> f64 {
    let (_, text) = get(daemon, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

fn turned_away(daemon: &Daemon, reason: &str) -> f64 {
    sample(daemon, &format!("tunnelwarden_admin_turned_away_total{{reason=\"{reason}\"}}"))
}

/// Exit code, standard output and standard error of `healthcheck`.
fn healthcheck(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = daemon.command(&[&["healthcheck"], arguments].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_daemon_that_is_well_says_so_to_orchestrators_and_to_healthcheck() {
    let (upstream, daemon) = start();
    assert_eq!(get(&daemon, "/livez"), (200, "ok\n".into()));
    let (status, body) = get(&daemon, "/readyz");
    let lines: Vec<_> = body.lines().collect();
    let [listeners, policy, servers, record, sandbox] = lines[..] else { panic!("{body}") };
    assert_eq!(status, 200);
    assert_eq!(listeners, format!("ok listeners: {}", daemon.dns()));
    assert!(policy.starts_with("ok policy: ") && policy.contains(" rules, read at 20"), "{policy}");
    assert_eq!(servers, "ok upstream: 1 of 1 up");
    assert_eq!(record, "ok record: written to store");
    assert!(sandbox.starts_with("ok sandbox: no capabilities, no_new_privs, "), "{sandbox}");
    assert_eq!(sample(&daemon, "tunnelwarden_sandbox{part=\"no_new_privs\"}"), 1.0);
    assert_eq!(get(&daemon, "/readyz?strict").0, 200);
    assert_eq!(upstream.asked(), [], "looking asks nobody");

    assert_eq!(healthcheck(&daemon, &["--strict"]), (Some(0), body, String::new()));
    let (code, json, _) = healthcheck(&daemon, &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["ready"]), (Some(0), &true.into()));
    assert_eq!(json["checks"][2]["check"], "upstream");
    assert_eq!(json["checks"][2]["condition"], "ok");
}

#[test]
fn without_an_upstream_server_that_answers_it_is_ready_degraded_and_strictly_not_ready() {
    let daemon = Daemon::start(&config(&nobody()));
    ask("example.org.", RecordType::A).udp(daemon.dns());
    let expected = "degraded upstream: 0 of 1 up";
    wait_for("the server to be down", || get(&daemon, "/readyz").1.contains(expected).then_some(()));
    assert_eq!(get(&daemon, "/readyz").0, 200, "a restart would not help");
    assert_eq!(get(&daemon, "/readyz?strict").0, 503);
    let (code, shown, _) = healthcheck(&daemon, &[]);
    assert!(code == Some(0) && shown.contains(expected), "{shown}");
    let (code, shown, _) = healthcheck(&daemon, &["--strict"]);
    assert!(code == Some(1) && shown.contains(expected), "{shown}");
    let (code, json, _) = healthcheck(&daemon, &["--strict", "--json"]);
    assert!(code == Some(1) && json.contains("\"ready\":false"), "{json}");
}

#[test]
fn a_zone_whose_servers_do_not_answer_is_named() {
    let upstream = Upstream::of(Zone::parse(ZONE));
    let zone = format!("[[upstream.zones]]\nzones = [\"corp.example\"]\nservers = [\"{}\"]\n", nobody());
    let daemon = Daemon::start(&format!("{}{zone}", config(&upstream.uri())));
    ask("host.corp.example.", RecordType::A).udp(daemon.dns());
    let expected = "degraded upstream: 1 of 1 up; 0 of 1 up for corp.example\n";
    wait_for("the zone's server to be down", || get(&daemon, "/readyz").1.contains(expected).then_some(()));
}

#[test]
fn a_refused_reload_and_one_that_waits_are_said_until_one_is_taken() {
    let (upstream, daemon) = start();
    let good = config(&upstream.uri());
    let reload = |text: &str| {
        daemon.rewrite(text);
        daemon.command(&["reload"]).status.code()
    };
    let said = |expected: &str| {
        let (status, body) = get(&daemon, "/readyz");
        assert!(status == 200 && body.contains(expected), "{expected}: {status} {body}");
    };
    assert_eq!(reload("[listen"), Some(3));
    said("degraded policy: the files as read at 20");
    said(" are broken and were refused; in force: ");
    assert_eq!(sample(&daemon, "tunnelwarden_last_reload_successful"), 0.0);
    let in_force_since = sample(&daemon, "tunnelwarden_last_reload_success_timestamp_seconds");
    assert_eq!(in_force_since, sample(&daemon, "process_start_time_seconds"));
    let (code, shown, errors) = healthcheck(&daemon, &[]);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "broken files do not make a daemon look dead: {shown}");

    assert_eq!(reload(&format!("{good}[policy]\npacks = [\"dns-bypass\"]\n")), Some(4));
    said("degraded policy: the files as read at 20");
    said(" take much away and wait for `tunnelwarden reload --accept`; in force: ");

    assert_eq!(reload(&good), Some(0));
    said("ok policy: ");
    assert_eq!(sample(&daemon, "tunnelwarden_last_reload_successful"), 1.0);
}

#[test]
fn a_part_of_the_record_that_fails_is_said_until_it_works_again() {
    let upstream = Upstream::of(Zone::parse(ZONE));
    let sink = "[[audit.sinks]]\nkind = \"file\"\npath = \"lines\"\n";
    let blocked = |folder: &Path| fs::create_dir(folder.join("lines")).unwrap();
    let daemon = Daemon::start_with(&format!("{}{sink}", config(&upstream.uri())), blocked);
    ask("connect.ngrok-agent.com.", RecordType::A).udp(daemon.dns());
    wait_for("the sink to fail", || get(&daemon, "/readyz").1.contains("degraded record: ").then_some(()));
    let (status, body) = get(&daemon, "/readyz");
    assert!(status == 200 && body.contains("/lines fails since 20"), "{body}");
    assert_eq!(sample(&daemon, "tunnelwarden_audit_working{part=\"sink-1\"}"), 0.0);
    assert_eq!(sample(&daemon, "tunnelwarden_audit_working{part=\"store\"}"), 1.0);

    fs::remove_dir(daemon.folder().join("lines")).unwrap();
    wait_for("the sink to work", || get(&daemon, "/readyz").1.contains("ok record: ").then_some(()));
}

#[test]
fn a_daemon_that_stops_is_not_ready_while_what_waits_is_answered() {
    let silent = Upstream::start(|_, _| None);
    let daemon = Daemon::start(&config(&silent.uri()));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(&ask("example.org.", RecordType::A).bytes(), daemon.dns()).unwrap();
    wait_for("the question to wait", || silent.asked().first().map(|_| ()));
    daemon.signal(Signal::SIGTERM);
    wait_for("unreadiness", || {
        let (status, body) = get(&daemon, "/readyz");
        (status == 503 && body.starts_with("failed listeners: stopping")).then_some(())
    });
    assert_eq!(healthcheck(&daemon, &[]).0, Some(1));
    assert_eq!(daemon.stop().0, Some(0));
}

#[test]
fn other_peoples_hosts_methods_and_pages_are_turned_away_and_counted() {
    let (_upstream, daemon) = start();
    let door = daemon.admin.unwrap();
    let port = door.port();
    for host in ["evil.example", &format!("evil.example:{port}"), "127.0.0.1.evil.example", ""] {
        let (status, _, body) = request(door, "GET", "/metrics", host);
        assert!(status == 421 && !body.contains("tunnelwarden_"), "{host}: {status} {body}");
    }
    let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for host in ["localhost", &format!("127.0.0.1:{port}"), "[::1]", machine.trim()] {
        assert_eq!(request(door, "GET", "/livez", host).0, 200, "{host}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "BREW"] {
        let page = if method == "CONNECT" { "127.0.0.1:80" } else { "/livez" };
        let (status, head, _) = request(door, method, page, "localhost");
        assert!(status == 405 && head.contains("allow: get, head"), "{method}: {head}");
    }
    let (status, _, pages) = request(door, "GET", "/attempts", "localhost");
    assert!(status == 404 && pages.contains("/readyz"));
    let (status, head, body) = request(door, "HEAD", "/metrics", "localhost");
    assert!(status == 200 && body.is_empty() && head.contains("content-length: "), "{head}");
    assert!(head.contains("connection: close") && head.contains("cache-control: no-store"), "{head}");
    assert_eq!(raw(door, b"GET /livez HTTP/1.0\r\n\r\n").0, 200, "health checkers speak HTTP/1.0 without a host");

    let long = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(8192));
    assert_eq!(raw(door, long.as_bytes()).0, 431);
    assert_eq!(raw(door, b"\x16\x03\x01 this is not HTTP\r\n\r\n").0, 400);
    let two = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert!(!raw(door, two).2.contains("HTTP/1.1"), "one request a connection");

    for (reason, count) in [("foreign-host", 4.0), ("method", 7.0), ("no-page", 1.0), ("malformed", 2.0)] {
        // What hyper refuses by itself is counted a moment after it was said.
        wait_for(reason, || (turned_away(&daemon, reason) >= count).then_some(()));
        assert_eq!(turned_away(&daemon, reason), count, "{reason}");
    }
}

#[test]
fn who_says_nothing_keeps_a_place_for_seconds_and_no_more_than_all_are_taken() {
    let (_upstream, daemon) = start();
    let door = daemon.admin.unwrap();
    let mut idle: Vec<_> = (0..32).map(|_| TcpStream::connect(door).unwrap()).collect();
    for stream in &mut idle {
        stream.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    assert_eq!(request(door, "GET", "/livez", "localhost").0, 0, "all places are taken");
    ask("example.org.", RecordType::A).udp(daemon.dns());
    for mut stream in idle {
        assert_eq!(stream.read(&mut [0; 64]).unwrap_or(0), 0, "closed without an answer");
    }
    wait_for("a place", || (request(door, "GET", "/livez", "localhost").0 == 200).then_some(()));
    // A connection is closed a moment before it is counted.
    wait_for("all of them counted", || (turned_away(&daemon, "slow") >= 32.0).then_some(()));
    assert_eq!(turned_away(&daemon, "slow"), 32.0);
    assert!(turned_away(&daemon, "crowded") >= 1.0);
}

#[test]
fn a_taken_address_is_an_error_that_names_the_holder_and_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = format!("[listen]\ndns = [\"127.0.0.1:0\"]\nadmin = \"{address}\"\n");
    fs::write(folder.path().join("tunnelwarden.toml"), config).unwrap();
    let output = command(folder.path(), &["serve"]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    let holder = std::process::id();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains(&format!("cannot listen on {address} over TCP: the port is in use by ")), "{errors}");
    assert!(
        errors.contains(&format!("\n    hint: stop process {holder}, or give another address under [listen]")),
        "{errors}"
    );
}

#[test]
fn healthcheck_fails_with_the_reason_where_nobody_or_somebody_else_answers() {
    let check = |admin: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tunnelwarden.toml"), format!("[listen]\nadmin = \"{admin}\"\n")).unwrap();
        let output = command(folder.path(), &["healthcheck"]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").unwrap();
    });
    let (code, errors) = check(&format!("0.0.0.0:{}", address.port()));
    assert!(code == Some(1) && errors.contains("whoever listens there is no tunnelwarden"), "{errors}");
    assert!(errors.contains(&format!("http://{address}/readyz")), "a wildcard is asked over loopback: {errors}");
    answering.join().unwrap();
    let (code, errors) = check(&address.to_string());
    assert!(code == Some(1) && errors.contains("refused"), "{errors}");
    let (code, errors) = check("off");
    assert!(code == Some(1) && errors.contains("there is no admin door"), "{errors}");
    let (code, errors) = check("127.0.0.1:0");
    assert!(code == Some(1) && errors.contains("neither the configuration nor the state folder"), "{errors}");
}

#[test]
fn every_metric_is_well_formed_and_stands_in_the_documentation() {
    let (_upstream, daemon) = start();
    ask("example.org.", RecordType::A).udp(daemon.dns());
    let (_, text) = get(&daemon, "/metrics");
    assert_eq!(read_exposition(&text), documented_metrics(), "docs/operating.md, \"Health and metrics\"");
}

#[test]
fn no_name_and_no_client_is_ever_shown() {
    let (_upstream, daemon) = start();
    let client = UdpSocket::bind("127.0.0.77:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for name in ["connect.ngrok-agent.com.", "example.org.", "unheard-of.example."] {
        client.send_to(&ask(name, RecordType::A).bytes(), daemon.dns()).unwrap();
        client.recv(&mut [0; 1500]).unwrap();
    }
    assert_eq!(sample(&daemon, "tunnelwarden_blocked_total"), 1.0);
    for page in ["/metrics", "/readyz", "/livez", "/"] {
        let (_, text) = get(&daemon, page);
        for word in ["127.0.0.77", "ngrok-agent", "example"] {
            assert!(!text.contains(word), "{page} shows {word}:\n{text}");
        }
    }
}

/// What is said of metrics: type and labels, by name.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// Reads the text format strictly.
fn read_exposition(text: &str) -> Metrics {
    let (mut metrics, mut series) = (Metrics::new(), BTreeSet::new());
    let mut current = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(help.ends_with('.') && !help.contains('\\'), "{line}");
            let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{name} is a {kind}");
            let earlier = metrics.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
            assert!(earlier.is_none(), "{name} comes twice");
            assert!(lines.peek().is_some_and(|next| next.starts_with(name)), "{name} has no sample");
            name.clone_into(&mut current);
            continue;
        }
        let (named, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = named.split_once('{').unwrap_or((named, "}"));
        let is_histogram = metrics.get(&current).is_some_and(|(kind, _)| kind == "histogram");
        let parts = ["_bucket", "_sum", "_count"].iter().filter(|_| is_histogram);
        let name = parts.filter_map(|part| name.strip_suffix(part)).next().unwrap_or(name);
        assert_eq!(name, current, "samples of one metric stand together, below what describes it");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        for label in labels.strip_suffix('}').unwrap().split(',').filter(|label| !label.is_empty()) {
            let (key, value) = label.split_once('=').unwrap();
            assert!(
                value.len() > 2 && value.starts_with('"') && value.ends_with('"') && !value.contains('\\'),
                "{line}"
            );
            // The bound of a bucket is the format's.
            if key != "le" {
                metrics.get_mut(name).unwrap().1.insert(key.to_owned());
            }
        }
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(series.insert(named.to_owned()), "{named} comes twice");
    }
    metrics
}

/// The same in the table of the documentation.
fn documented_metrics() -> Metrics {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n## Health and metrics\n").unwrap();
    let (_, section) = section.split_once("\n| metric | type | labels | meaning |\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let in_ticks = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let row = |line: &str| {
        let [_, name, kind, labels, meaning, _] = line.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            return None;
        };
        let name = in_ticks(name).pop()?;
        assert!(meaning.ends_with('.'), "{line}");
        Some((name, (kind.to_owned(), in_ticks(labels).into_iter().collect())))
    };
    section.lines().filter_map(row).collect()
}
