//! The packet filter's rules in a real kernel, in a network of their own: the text, its way there and back, and that
//! nothing slips through while it changes. What packets meet on their way is tested in beds with routers in them.
//!
//! A ruleset is compared with `rulesets/NAME.nft`; `UPDATE_RULESETS=1` writes it anew.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use crate::support::{
    bed::{Namespace, possible},
    daemon::binary,
};

const RULESETS: [&str; 4] = ["host", "host-strict", "gateway", "gateway-strict"];

/// The number for which the texts are written: that of Debian's `nobody`.
const UID: &str = "65534";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/rulesets")
}

fn tunnelwarden(ruleset: &str, arguments: &[&str]) -> Output {
    let config = folder().join(format!("{ruleset}.toml"));
    let mut command = Command::new(binary());
    command.arg("firewall").args(arguments).arg("--config").arg(config).env("NO_COLOR", "1");
    command.output().unwrap()
}

fn shown(ruleset: &str) -> String {
    let output = tunnelwarden(ruleset, &["show", "--uid", UID]);
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs `tunnelwarden firewall`, which has to end with this code; what it printed.
fn run(ruleset: &str, arguments: &[&str], code: i32) -> String {
    let output = tunnelwarden(ruleset, arguments);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

/// Has `nft` carry out a script.
fn load(network: &Namespace, script: &str) {
    network.must(&["nft", "-f", "-"], script);
}

/// Runs the rest of the test called `name` in a network of its own, where there can be one.
fn in_a_network_of_its_own(name: &str, rest: impl FnOnce(&Namespace) + Send) {
    if possible(&format!("firewall::{name}")) {
        let network = Namespace::new();
        network.inside(|| rest(&network));
    }
}

#[test]
fn the_text_of_a_ruleset_is_the_one_that_was_agreed() {
    for name in RULESETS {
        let (text, path) = (shown(name), folder().join(format!("{name}.nft")));
        if std::env::var_os("UPDATE_RULESETS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(&path).unwrap(), "{}", path.display());
    }
}

#[test]
fn every_ruleset_is_accepted_by_nft() {
    in_a_network_of_its_own("every_ruleset_is_accepted_by_nft", |network| {
        for name in RULESETS {
            network.must(&["nft", "-c", "-f", "-"], &shown(name));
        }
    });
}

#[test]
fn rules_are_applied_compared_and_taken_away_and_nobody_elses_are_touched() {
    in_a_network_of_its_own("rules_are_applied_compared_and_taken_away_and_nobody_elses_are_touched", |network| {
        let foreign = "table inet filter {\n\tchain output {\n\t\ttype filter hook output priority 0; policy accept;\n\t\tcounter\n\t}\n}\n";
        load(network, foreign);
        let others = || network.must(&["nft", "-s", "list", "table", "inet", "filter"], "");
        let before = others();
        for name in RULESETS {
            assert_eq!(run(name, &["remove"], 0), "there was no table inet tunnelwarden\n");
            assert!(run(name, &["status"], 4).starts_with("there is no table inet tunnelwarden\nno daemon answers: "));
            run(name, &["apply"], 0);
            run(name, &["status"], 0);
            load(network, "add element inet tunnelwarden ingress_v4 { 198.51.100.7 timeout 1h }\n");
            if name.starts_with("gateway") {
                load(network, "add element inet tunnelwarden passed_v4 { 10.77.0.2 . 198.51.100.7 }\n");
            }
            run(name, &["apply"], 0);
            run(name, &["status"], 0);
            let learned = network.must(&["nft", "list", "set", "inet", "tunnelwarden", "ingress_v4"], "");
            assert!(learned.contains("198.51.100.7"), "what was learned stays: {learned}");
            if name.starts_with("gateway") {
                let passed = network.must(&["nft", "list", "set", "inet", "tunnelwarden", "passed_v4"], "");
                assert!(passed.contains("10.77.0.2 . 198.51.100.7"), "so does what others let pass: {passed}");
            }

            network.must(&["nft", "insert", "rule", "inet", "tunnelwarden", "egress", "accept"], "");
            load(network, "add element inet tunnelwarden doh_v4 { 198.51.100.200 }\nadd chain inet tunnelwarden odd\n");
            let told = run(name, &["status"], 4);
            for line in ["extra    chain egress: accept", "extra    set doh_v4: 198.51.100.200", "extra    chain odd"] {
                assert!(told.contains(line), "{told}");
            }
            let told: serde_json::Value = serde_json::from_str(&run(name, &["status", "--json"], 4)).unwrap();
            assert_eq!(told["same"], false);
            assert_eq!(told["differences"].as_array().unwrap().len(), 3, "{told}");
            assert_eq!(run(name, &["remove"], 0), "removed: table inet tunnelwarden\n");
            assert_eq!(others(), before);
        }
    });
}

#[test]
fn another_mode_takes_the_place_of_the_one_before() {
    in_a_network_of_its_own("another_mode_takes_the_place_of_the_one_before", |_| {
        for (from, to) in [
            ("host", "gateway"),
            ("gateway", "gateway-strict"),
            ("gateway-strict", "host-strict"),
            ("host-strict", "host"),
        ] {
            run(from, &["apply"], 0);
            run(to, &["status"], 4);
            run(to, &["apply"], 0);
            run(to, &["status"], 0);
        }
    });
}

#[test]
fn a_broken_text_changes_nothing_and_says_which_line() {
    in_a_network_of_its_own("a_broken_text_changes_nothing_and_says_which_line", |network| {
        // A chain keeps its hook for life, and somebody made ours with another.
        let ours = shown("host");
        let sets = ours.lines().filter(|line| line.starts_with("add set ") && line.contains("timeout"));
        let sets: String = sets.map(|line| format!("{line}\n")).collect();
        let chain = "add chain inet tunnelwarden egress { type filter hook input priority 5; }\n";
        load(network, &format!("add table inet tunnelwarden\n{sets}{chain}"));
        let told = run("host", &["apply"], 1);
        assert!(told.contains("nft refuses: /dev/stdin:") && told.contains("egress"), "{told}");
        let there = network.must(&["nft", "list", "table", "inet", "tunnelwarden"], "");
        assert!(!there.contains("doh_v4"), "{there}");
    });
}

#[test]
fn whoever_may_not_change_rules_is_told_so() {
    in_a_network_of_its_own("whoever_may_not_change_rules_is_told_so", |_| {
        for action in ["apply", "status", "remove"] {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", "-all", "--inh-caps", "-all", binary(), "firewall", action, "--config"]);
            let output = command.arg(folder().join("host.toml")).output().unwrap();
            assert_eq!(output.status.code(), Some(5), "{}", text(&output));
            assert!(text(&output).contains("not permitted"), "{}", text(&output));
        }
    });
}

/// Datagrams that were tried, and those of them that left.
#[derive(Default)]
struct Hammer {
    tries: AtomicU64,
    left: AtomicU64,
}

impl Hammer {
    /// Goes on until `stop`.
    fn strike(&self, address: &str, stop: &AtomicBool) {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        while !stop.load(Ordering::Relaxed) {
            // What is refused here is refused in the call.
            let left = socket.send_to(b"x", address).is_ok();
            self.left.fetch_add(left.into(), Ordering::Relaxed);
            self.tries.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tries(&self) -> u64 {
        self.tries.load(Ordering::Relaxed)
    }

    fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }
}

/// A way out to a router that takes everything and says nothing.
const UPLINK: &str = "\
link add uplink type veth peer name router
addr add 10.9.0.2/24 dev uplink
link set uplink up
link set router up
neigh add 10.9.0.1 lladdr 02:00:00:00:00:01 dev uplink nud permanent
route add default via 10.9.0.1
addr add 2001:db8:9::2/64 dev uplink nodad
neigh add 2001:db8:9::1 lladdr 02:00:00:00:00:01 dev uplink nud permanent
route add default via 2001:db8:9::1
";

/// Does a datagram leave? What is refused here is refused in the call.
fn leaves(address: &str) -> bool {
    let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    UdpSocket::bind(any).unwrap().send_to(b"x", address).is_ok()
}

#[test]
fn an_ingress_behind_nat64_is_refused_whatever_stands_around_its_address() {
    in_a_network_of_its_own("an_ingress_behind_nat64_is_refused_whatever_stands_around_its_address", |network| {
        network.ip(UPLINK);
        run("host-strict", &["apply"], 0);
        // 84.1.0.5 and, so that the address is all that matters, leases for everything.
        let (plain, odd, other) =
            ("2001:db8:64:5401:0:500::", "2001:db8:64:5401:7700:500::1", "2001:db8:64:5401:0:600::");
        load(
            network,
            &format!(
                "add element inet tunnelwarden ingress_v6 {{ {plain} }}\nadd element inet tunnelwarden lease_v6 {{ {plain}, {odd}, {other} }}\n"
            ),
        );
        let left = [plain, odd, other].map(|address| leaves(&format!("[{address}]:4433")));
        assert_eq!(left, [false, false, true]);
    });
}

/// Says stop when it goes.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nothing_slips_through_while_rules_are_applied_again_and_again() {
    in_a_network_of_its_own("nothing_slips_through_while_rules_are_applied_again_and_again", |network| {
        network.ip(UPLINK);
        run("host-strict", &["apply"], 0);
        load(
            network,
            "add element inet tunnelwarden ingress_v4 { 84.1.0.5 }\nadd element inet tunnelwarden lease_v4 { 84.1.0.5, 84.1.0.6, 192.0.2.53, 198.51.100.9 }\n",
        );
        // Learned; a pack's network; a known resolver; nothing that was resolved; and one that must get through.
        let targets = ["84.1.0.5:4433", "198.51.100.9:22", "192.0.2.53:443", "84.1.0.9:80", "84.1.0.6:80"];
        let (stop, hammers) = (AtomicBool::new(false), targets.map(|_| Hammer::default()));
        let [refused @ .., open] = &hammers;
        let tries = || refused.iter().map(Hammer::tries).sum::<u64>();
        let mut applied = 0;
        thread::scope(|scope| {
            for (hammer, address) in hammers.iter().zip(targets) {
                let stop = &stop;
                scope.spawn(move || hammer.strike(address, stop));
            }
            // Where an apply fails, too: the scope waits for the hammers.
            let _stopping = Stopping(&stop);
            while applied < APPLIES || tries() < TRIES {
                run("host-strict", &["apply"], 0);
                applied += 1;
            }
        });
        let left: Vec<_> = refused.iter().map(Hammer::left).collect();
        println!("{applied} applies, left of {} tries: {left:?}", tries());
        assert!(left.iter().all(|left| *left == 0), "{left:?}");
        assert_eq!(open.left(), open.tries(), "what was resolved is never held up");
    });
}

/// So often the rules are replaced at least, under so many tries.
const APPLIES: u32 = 40;
const TRIES: u64 = 100_000;
