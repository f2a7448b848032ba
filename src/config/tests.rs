//! Files on a disk, and what is read from them or said of them.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    audit::{ClientMask, Sink, Store},
    firewall,
    gateway::{ClientScope, Others},
    listen::Admin,
    policy::{Action, Mode, UnknownOnIngress},
    upstream::Authorities,
};

const NOW: &str = "2026-11-25T00:00:00Z";

/// A pack that blocks one name.
fn pack(name: &str) -> String {
    format!("name = '{name}'\nversion = '1'\n[[rules]]\nid = 'a'\nreason = 'r'\nblock = ['{name}.example.net']\n")
}

/// A folder with a configuration, a `policies` folder beside it, and a system folder.
struct Scene(TempDir);

impl Scene {
    fn new(configuration: &str) -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        scene.file("w.toml", configuration);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> &Self {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
        self
    }

    fn load(&self) -> Loaded {
        load_in(&self.path("system"), Some(&self.path("w.toml")), NOW.parse().unwrap())
    }

    fn config(&self) -> Config {
        let loaded = self.load();
        loaded.outcome.unwrap_or_else(|| panic!("{}", loaded.problems))
    }

    /// Each problem as `file:line:column severity message | hint`, the scene's folder left out.
    fn problems(&self) -> Vec<String> {
        let loaded = self.load();
        assert_eq!(loaded.outcome.is_none(), loaded.problems.has_errors());
        loaded.problems.iter().map(|problem| self.shown(problem)).collect()
    }

    fn shown(&self, problem: &Problem) -> String {
        let place = problem.place.as_ref().map(|place| format!("{place} ")).unwrap_or_default();
        let severity = match problem.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        let hint = problem.hint.as_ref().map(|hint| format!(" | {hint}")).unwrap_or_default();
        let text = format!("{place}{severity}{}{hint}", problem.message);
        text.replace(&format!("{}/", self.0.path().display()), "")
    }

    fn pack_names(&self, selection: &str) -> Vec<String> {
        self.file("w.toml", selection);
        self.config().outline.packs
    }
}

#[test]
fn without_a_file_the_built_in_defaults_hold() {
    let scene = Scene::new("");
    let loaded = load_in(&scene.path("system"), None, NOW.parse().unwrap());
    let config = loaded.outcome.unwrap_or_else(|| panic!("{}", loaded.problems));
    assert_eq!(config.path, None);
    assert_eq!(config.listen, crate::listen::Options::default());
    assert_eq!(config.limits, gateway::Options::default());
    assert_eq!(config.audit, crate::audit::Options::default());
    assert_eq!(config.cache, crate::cache::Options::default());
    assert_eq!(config.outline.packs, builtin::DEFAULT_PACKS);
    // Looked for, so that one that is put there later is noticed.
    assert!(loaded.files.contains(&scene.path("system/tunnelwarden.toml")));
    assert!(loaded.files.contains(&scene.path("system/policies/ngrok.toml")));

    scene.file("system/tunnelwarden.toml", "[policy]\nmode = 'observe'\n");
    let loaded = load_in(&scene.path("system"), None, NOW.parse().unwrap());
    assert_eq!(loaded.outcome.unwrap().outline.mode, Mode::Observe);
}

#[test]
fn a_named_file_that_cannot_be_read_is_an_error() {
    let scene = Scene::new("");
    scene.file("latin1.toml", b"[policy]\n# M\xfcller\n");
    File::create(scene.path("huge.toml")).unwrap().set_len(100 << 20).unwrap();
    #[rustfmt::skip]
    let cases = [
        ("none.toml",   "cannot read configuration none.toml: no such file"),
        ("system",      "cannot read configuration system: no such file"),
        (".",           "cannot read configuration .: it is a folder, not a file"),
        ("latin1.toml", "cannot read configuration latin1.toml: line 2 is not UTF-8 text"),
        ("huge.toml",   "cannot read configuration huge.toml: it is larger than 1 MiB"),
    ];
    for (name, expected) in cases {
        let loaded = load_in(&scene.path("system"), Some(&scene.path(name)), NOW.parse().unwrap());
        assert!(loaded.outcome.is_none());
        assert_eq!(loaded.files, [scene.path(name)]);
        let told: Vec<_> = loaded.problems.iter().map(|problem| scene.shown(problem)).collect();
        assert_eq!(told, [expected]);
    }
}

#[test]
fn every_key_reaches_its_option() {
    let scene = Scene::new(
        r#"
        [organization]
        name = "Acme"
        contact = "netsec@acme.example"
        ingress = ["connect.acme.example"]
        addresses = ["203.0.113.0/28"]
        ingress-whole-domain = false
        [listen]
        dns = ["192.0.2.1", "[::1]:5300"]
        admin = "off"
        socket = "control"
        [upstream]
        servers = ["udp://9.9.9.9", "system"]
        certificate-authority = "ca.pem"
        [[upstream.zones]]
        zones = ["corp.example", "10.in-addr.arpa"]
        servers = ["tcp://10.0.0.53:5353", "tls://10.0.0.53#dns.corp.example"]
        [policy]
        packs = ["ngrok"]
        mode = "observe"
        action = "sinkhole"
        sinkhole = ["192.0.2.7", "2001:db8::7"]
        allow = ["a.example.com"]
        block = ["b.example.com", ".c.example.com"]
        block-ttl = 30
        strip-ech = true
        unknown-on-ingress = "observe"
        [[clients]]
        name = "build hosts"
        networks = ["10.20.0.0/16"]
        mode = "enforce"
        packs = ["+dns-bypass"]
        ingress = ["connect.build.example"]
        allow = []
        block = []
        action = "nodata"
        [[exceptions]]
        name = "connect.eu.ngrok-agent.com"
        networks = ["any"]
        until = 2026-12-24T18:00:00Z
        reason = "NET-4711"
        [cache]
        size = "1MiB"
        min-ttl = 5
        max-ttl = "1h"
        max-negative-ttl = "10m"
        serve-stale = 0
        [limits]
        clients = ["private", "192.0.2.0/24"]
        others = "silence"
        forwarders = ["10.0.0.53"]
        rate = 7
        rate-per-forwarder = 8
        slip = 9
        waiting = 1
        waiting-per-client = 2
        waiting-per-forwarder = 3
        connections = 4
        connections-per-client = 5
        pipeline = 6
        udp-size = 4096
        [audit]
        store = "off"
        own-use = false
        clients = "keyed-hash"
        keep = "2d"
        max-size = "2MiB"
        [[audit.sinks]]
        kind = "stdout"
        format = "json"
        [[audit.sinks]]
        kind = "file"
        path = "attempts.jsonl"
        [firewall]
        mode = "gateway"
        strict = true
        lan = ["eth1", "br-lan.7"]
        exempt = ["192.0.2.53"]
        static = ["10.0.0.0/8"]
        ntp = ["198.51.100.123"]
        user = "warden"
        own-sockets = "mark"
        gate-port = 8443
        on-stop = "remove"
        nat64 = ["2001:db8:64::/96"]
        remember = "2h"
        "#,
    );
    let authority = rcgen::CertificateParams::default().self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    scene.file("ca.pem", authority.pem());
    // Taken apart field by field, so that a new section is not forgotten here.
    let Config {
        path,
        listen,
        upstream,
        cache,
        limits,
        audit,
        firewall,
        ingress,
        organization,
        client_networks: _,
        policy: _,
        outline,
    } = scene.config();
    assert_eq!(path, Some(scene.path("w.toml")));
    let dns = vec!["192.0.2.1:53".parse().unwrap(), "[::1]:5300".parse().unwrap()];
    assert_eq!(listen, crate::listen::Options { dns, admin: Admin::Off, socket: Some(scene.path("control")) });
    let servers: Vec<_> = upstream.servers.iter().chain(&upstream.zones[0].servers).map(ToString::to_string).collect();
    assert_eq!(servers, ["udp://9.9.9.9", "system", "tcp://10.0.0.53:5353", "tls://10.0.0.53#dns.corp.example"]);
    assert_eq!(upstream.authorities, Authorities::from_pem(authority.pem().as_bytes()).unwrap());
    assert!(scene.load().files.contains(&scene.path("ca.pem")), "its change is noticed");
    assert_eq!(upstream.zones[0].zones.len(), 2);
    let expected = crate::cache::Options {
        size: 1 << 20,
        min_ttl: Duration::from_secs(5),
        max_ttl: Duration::from_hours(1),
        max_negative_ttl: Duration::from_mins(10),
        serve_stale: Duration::ZERO,
    };
    assert_eq!(cache, expected);
    let expected = gateway::Options {
        clients: vec![ClientScope::Private, ClientScope::Network("192.0.2.0/24".parse().unwrap())],
        others: Others::Silence,
        forwarders: vec!["10.0.0.53/32".parse().unwrap()],
        rate: 7,
        rate_per_forwarder: 8,
        slip: 9,
        waiting: 1,
        waiting_per_client: 2,
        waiting_per_forwarder: 3,
        connections: 4,
        connections_per_client: 5,
        pipeline: 6,
        udp_size: 4096,
    };
    assert_eq!(limits, expected);
    let expected = crate::audit::Options {
        store: Store::Off,
        own_use: false,
        clients: ClientMask::KeyedHash,
        keep: Duration::from_hours(48),
        max_size: 2 << 20,
        sinks: vec![Sink::Stdout, Sink::File(scene.path("attempts.jsonl"))],
    };
    assert_eq!(audit, expected);
    let expected = firewall::Options {
        mode: firewall::Mode::Gateway,
        strict: true,
        lan: vec!["eth1".into(), "br-lan.7".into()],
        exempt: vec!["192.0.2.53/32".parse().unwrap()],
        fixed: vec!["10.0.0.0/8".parse().unwrap()],
        ntp: vec!["198.51.100.123/32".parse().unwrap()],
        nat64: crate::address::Carriers::new(["2001:db8:64::/96".parse().unwrap()]),
        own: vec!["203.0.113.0/28".parse().unwrap()],
        user: "warden".into(),
        own_sockets: firewall::OwnSockets::Mark,
        gate_port: 8443,
        processes: false,
        on_stop: firewall::OnStop::Remove,
        dns: listen.dns,
        resolvers: ["9.9.9.9:53", "10.0.0.53:853", "10.0.0.53:5353"].map(|text| text.parse().unwrap()).to_vec(),
        asks_system: true,
    };
    let mut resolvers = expected.resolvers.clone();
    resolvers.sort_unstable();
    assert_eq!(firewall, firewall::Options { resolvers, ..expected });
    assert_eq!((ingress.fixed, ingress.exempt), (firewall.fixed, firewall.exempt));
    assert_eq!(
        (ingress.remember, ingress.organization),
        (Duration::from_hours(2), vec!["203.0.113.0/28".parse().unwrap()])
    );
    assert!(ingress.shared.contains(&"8.8.8.8/32".parse().unwrap()));
    assert_eq!(
        (organization.name.as_deref(), organization.contact.as_deref()),
        (Some("Acme"), Some("netsec@acme.example"))
    );
    assert_eq!((outline.mode, outline.action), (Mode::Observe, Action::Sinkhole));
    assert_eq!(outline.unknown_on_ingress, UnknownOnIngress::Observe);
    assert_eq!(outline.allow.len() + outline.block.len(), 3);
    assert_eq!(outline.ingress, ["connect.acme.example"]);
    let group = &outline.groups[0];
    assert_eq!((group.name.as_str(), group.mode, group.action), ("build hosts", Mode::Enforce, Action::Nodata));
    assert_eq!(group.packs, ["ngrok", "dns-bypass"]);
    assert_eq!(outline.packs, ["ngrok"]);
    assert_eq!(outline.exceptions[0].until.to_string(), "2026-12-24T18:00:00Z");
}

#[test]
fn what_is_wrong_in_a_section_is_told_with_place_and_hint() {
    #[rustfmt::skip]
    let cases: &[(&str, &str)] = &[
        ("[organisation]",                          r#"1:2 unknown key "organisation" | did you mean "organization"?"#),
        ("[organization]\naddresses = ['1.2.3.4/8']", r#"2:14 "1.2.3.4/8" has bits set behind its prefix length | did you mean 1.0.0.0/8?"#),
        ("[listen]\ndns = []",                      r#"2:7 "dns" is empty | such as: dns = ["127.0.0.1:5300"]"#),
        ("[listen]\ndns = ['localhost']",           r#"2:8 "localhost" is no address to listen at | write an address of this machine and a port, such as "127.0.0.1:5300" or "[::1]:5300""#),
        ("[listen]\ndns = ['::1', '[::1]:53']",     r#"2:15 [::1]:53 is named twice"#),
        ("[listen]\ntls = []",                      r#"2:1 unknown key "tls" in [listen] | this version cannot do that yet; take the key out"#),
        ("[listen]\nadmin = 'none'",                r#"2:9 "none" is no address to listen at | write an address of this machine and a port, such as "127.0.0.1:5300" or "[::1]:5300""#),
        ("[upstream]\nservers = []",                r#"2:11 "servers" is empty | such as: servers = ["system"] or servers = ["udp://9.9.9.9"]"#),
        ("[upstream]\nservers = ['9.9.9.9']",       r#"2:12 "9.9.9.9" does not say how to ask; write "udp://9.9.9.9" or "tcp://9.9.9.9""#),
        ("[upstream]\nservers = ['https://dns.example']", r#"2:12 "dns.example" is not an address, and there is nobody to look a name up before there is a server; write one like "tls://9.9.9.9#dns.quad9.net" or "https://9.9.9.9/dns-query#dns.quad9.net""#),
        ("[upstream]\ncertificate-authority = 'gone.pem'", r#"2:25 cannot use gone.pem: no such file | name a file with the certificate of your certificate authority, in PEM"#),
        ("[upstream]\ncertificate-authority = 'w.toml'", r#"2:25 cannot use w.toml: there is no certificate in it (PEM, "-----BEGIN CERTIFICATE-----") | name a file with the certificate of your certificate authority, in PEM"#),
        ("[[upstream.zones]]\nzones = ['a.example']", r#"1:1 [[upstream.zones]] needs "servers" | such as: servers = ["system"] or servers = ["udp://9.9.9.9"]"#),
        ("[[upstream.zones]]\nzones = ['a.example', 'A.example.']\nservers = ['system']", r#"2:23 zone a.example is named twice | put its servers in one entry"#),
        ("[policy]\nunknown-on-ingress = 'block'",  r#"2:22 "unknown-on-ingress" cannot be "block" | it can be "refuse", "observe""#),
        ("[firewall]\nremember = 0",                r#"2:12 "remember" is 0s; it must be from 1s to 30d"#),
        ("[policy]\nmode = 'enforced'",             r#"2:8 "mode" cannot be "enforced" | did you mean "enforce"? It can be "enforce", "observe""#),
        ("[policy]\nblock-ttl = 0",                 r#"2:13 "block-ttl" is 0s; it must be from 1s to 1d"#),
        ("[policy]\nsinkhole = ['here']",           r#"2:13 "here": invalid IP address syntax"#),
        ("[policy]\npacks = 'ngrok'",               r#"2:9 "packs" must be a list, not a string | write packs = ['ngrok']"#),
        ("[policy]\npacks = ['+ngrok']",            r#"2:10 "+ngrok" amends a list, and there is none here | name the packs without + and -; signs are for [[clients]]"#),
        ("[clients]\nname = 'a'",                   r#"1:1 [[clients]] must be an array of tables, not a table | begin each with a line [[clients]]"#),
        ("[[clients]]\nname = 'a'\nmode = 'observe'", r#"1:1 [[clients]] needs "networks" | such as: networks = ["10.20.0.0/16"]"#),
        ("[[clients]]\nname = 'a'\nnetworks = []",  r#"3:12 "networks" is empty | such as: networks = ["10.20.0.0/16"]"#),
        ("[[clients]]\nname = 'a'\nnetworks = ['10.20.0.1/16']\nmode = 'observe'", r#"3:13 "10.20.0.1/16" has bits set behind its prefix length | did you mean 10.20.0.0/16?"#),
        ("[[exceptions]]\nname = 'a.example'\nnetworks = []\nuntil = 2027-01-01T00:00:00Z\nreason = 'r'", r#"3:12 "networks" is empty | such as: networks = ["10.20.7.0/24"], or ["any"] for everybody"#),
        ("[[exceptions]]\nname = 'a.example'\nnetworks = ['any']\nuntil = 2027-01-01T00:00:00\nreason = 'r'", r#"4:9 "until" lacks an offset from UTC | add Z for UTC or the offset, such as 2026-12-24T18:00:00Z or 2026-12-24T18:00:00+01:00"#),
        ("[cache]\nprefetch = true",                r#"2:1 unknown key "prefetch" in [cache] | this version cannot do that yet; take the key out"#),
        ("[cache]\nmin-ttl = '1h'\nmax-ttl = '1m'", r#"1:1 min-ttl is longer than max-ttl"#),
        ("[cache]\nmax-ttl = '8d'",                 r#"2:11 "max-ttl" is 8d; it must be from 0s to 7d"#),
        ("[limits]\nclients = ['onlink']",          r#"2:12 "onlink" names no clients | write "private", "on-link" or a network such as "10.0.0.0/8""#),
        ("[limits]\nudp-size = 65535",              r#"2:12 "udp-size" is 65535; it must be from 512 to 4096"#),
        ("[limits]\nforwarders = ['::/0']",         r#"2:15 ::/0 would let every client say who it is | name the front resolvers, such as forwarders = ["10.0.0.53"]"#),
        ("[limits]\nwaiting = 0",                   r#"2:11 "waiting" is 0; it must be from 1 to 1000000"#),
        ("[audit]\nstore = 'postgres://db/x'",      r#"2:9 "postgres://db/x" is no store that this version knows | this version keeps its record in a file, such as "attempts.db""#),
        ("[audit]\nkeep = '5m'",                    r#"2:8 "keep" is 5m; it must be from 1h to 3650d"#),
        ("[[audit.sinks]]\nkind = 'syslog'",        r#"2:8 this version has no "syslog" yet"#),
        ("[[audit.sinks]]\nkind = 'stdout'\nformat = 'cef'", r#"3:10 this version has no "cef" yet"#),
        ("[[audit.sinks]]\nkind = 'file'",          r#"1:1 [[audit.sinks]] needs "path" | such as: path = "/var/log/tunnelwarden/attempts.jsonl""#),
        ("[[audit.sinks]]\nkind = 'stdout'\npath = 'x'", r#"1:1 a sink to standard output has no path | write kind = "file""#),
        ("[[audit.sinks]]\nkind = 'stdout'\n[[audit.sinks]]\nkind = 'stdout'", r#"1:3 two sinks write to standard output"#),
        ("[firewall]\nmode = 'hots'",               r#"2:8 "mode" cannot be "hots" | did you mean "host"? It can be "off", "host", "gateway""#),
        ("[firewall]\non-stop = 'drop'",            r#"2:11 "on-stop" cannot be "drop" | "#),
        ("[firewall]\nlan = ['eth*']",              r#"2:8 "eth*" is no name of an interface | name each of them: there are no wildcards here"#),
        ("[firewall]\nlan = ['a b']",               r#"2:8 "a b" is no name of an interface | a name is up to 15 letters, "#),
        ("[firewall]\nlan = ['x\\\"; }']",          r#"2:8 "x\\\"; }" is no name of an interface"#),
        ("[firewall]\nlan = ['sixteen-letters-']",  r#"2:8 "sixteen-letters-" is no name of an interface"#),
        ("[upstream]\nservers = ['udp://127.0.0.1:5353']\n[firewall]\nmode = 'host'", r#"4:8 the upstream server 127.0.0.1:5353 is on this machine, and what it asks would be turned to us"#),
        ("[limits]\nclients = ['private']\n[firewall]\nmode = 'host'", r#"4:8 warning: [limits] clients lets nobody of this machine's own public addresses ask | add "on-link" to [limits] clients"#),
        ("[firewall]\nmode = 'host'\nuser = 'root'", r#"3:8 the forwarder cannot be root: all of root's programs would be let out | make a user of its own"#),
        ("[firewall]\nmode = 'host'\nuser = 'root'\nown-sockets = 'mark'", r#"3:8 warning: who takes over a forwarder that is root may rewrite what its keeper reads"#),
        ("[firewall]\nown-sockets = 'uid'",         r#"2:15 "own-sockets" cannot be "uid" | "#),
        ("[firewall]\nuser = '0'",                  r#"2:8 "0" is no name of a user"#),
        ("[firewall]\nstrict = true",               r#"2:10 warning: "strict" says nothing: there is no firewall | set mode = "host" or "gateway" in [firewall]"#),
        ("[firewall]\nmode = 'off'\nntp = ['::1']", r#"3:7 warning: "ntp" says nothing: there is no firewall"#),
        ("[firewall]\nmode = 'host'\nntp = ['::1']", r#"3:7 warning: "ntp" says nothing without strict = true"#),
        ("[firewall]\nmode = 'host'\nlan = ['eth1']", r#"3:7 "lan" is for clients of a gateway, and this is mode "host" | take it out, or set mode = "gateway""#),
        ("[firewall]\nmode = 'host'\nexempt = ['::1']", r#"3:10 "exempt" is for clients of a gateway"#),
        ("[firewall]\nmode = 'host'\ngate-port = 5300", r#"2:8 the gate cannot listen on port 5300: [listen] dns has it | set another gate-port"#),
        ("[firewall]\nmode = 'host'\n[listen]\ndns = ['192.0.2.1', '[::1]']", r#"2:8 this machine's questions cannot be turned to us"#),
        ("[firewall]\nmode = 'host'\n[listen]\ndns = ['127.0.0.1:0']", r#"2:8 this machine's questions cannot be turned to us"#),
        ("[firewall]\nmode = 'gateway'\n[listen]\ndns = ['192.0.2.1']", r#"2:8 mode "gateway" needs "lan": the interfaces behind which the clients are | such as: lan = ["eth1"]"#),
        ("[firewall]\nmode = 'gateway'\nlan = ['eth1']", r#"2:8 none of [listen] dns covers lan: clients' questions cannot be turned to us | add "#),
        ("[firewall]\nnat64 = ['10.0.0.0/8']",      r#"2:10 10.0.0.0/8 is no NAT64 prefix | it is an IPv6 prefix, such as 2001:db8:64::/96 (RFC 6052)"#),
        ("[policy]\npacks = []\n\u{202e}",          "3:1 invalid unquoted key"),
        ("mode = enforce",                          "1:8 string values must be quoted, expected literal string"),
        ("a\0b = 1",                                "1:2 "),
    ];
    for (text, expected) in cases {
        let problems = Scene::new(text).problems();
        let problem = problems.last().unwrap_or_else(|| panic!("nothing is wrong with {text}"));
        let told = problem.strip_prefix("w.toml:").unwrap();
        assert!(told.starts_with(expected), "{text}\n  told {problems:#?}\n  want {expected}");
        assert_eq!(problems.len(), 1, "{text}\n{problems:#?}");
    }
}

#[test]
fn a_file_saved_on_windows_is_read_and_its_places_are_right() {
    let scene = Scene::new("\u{feff}[policy]\r\nmode = 'observe'\r\n");
    assert_eq!(scene.config().outline.mode, Mode::Observe);
    scene.file("w.toml", "\u{feff}[policy]\r\nmode = 'x'\r\n");
    assert_eq!(scene.problems(), ["w.toml:2:8 \"mode\" cannot be \"x\" | it can be \"enforce\", \"observe\""]);
}

#[test]
fn ten_different_errors_in_two_files_are_told_at_once_in_order() {
    let scene = Scene::new(
        r#"
[organization]
ingres = ["connect.acme.example"]
[listen]
dns = ["localhost:53"]
[upstream]
servers = []
[policy]
packs = ["mine", "ngork"]
mode = 1
[[clients]]
name = "build"
networks = ["10.20.0.1/16"]
[[exceptions]]
name = "a.example.com"
networks = ["any"]
[cache]
size = "big"
[limits]
udp-size = 1
[audit]
keep = 90
"#,
    );
    scene.file("policies/mine.toml", "name = 'mine'\nversion = 1\n[[rules]]\nid = 'a'\nreason = 'r'\n");
    let problems = scene.problems();
    let places: Vec<_> = problems.iter().map(|problem| problem.split(' ').next().unwrap()).collect();
    #[rustfmt::skip]
    assert_eq!(places, [
        "w.toml:3:1", "w.toml:5:8", "w.toml:7:11", "w.toml:9:18", "w.toml:10:8", "w.toml:13:13", "w.toml:14:1",
        "w.toml:14:1", "w.toml:18:8", "w.toml:20:12", "w.toml:22:8", "policies/mine.toml:2:11", "policies/mine.toml:3:1",
    ], "{problems:#?}");
    assert!(
        problems[3].contains("no pack \"ngork\" in policies, system/policies or built in | did you mean \"ngrok\"?")
    );
}

#[test]
fn a_pack_is_looked_for_beside_the_file_then_in_the_system_folder_then_built_in() {
    let scene = Scene::new("");
    scene.file("policies/one.toml", pack("one-beside")).file("system/policies/one.toml", pack("one-system"));
    scene.file("system/policies/two.toml", pack("two-system")).file("elsewhere/three.toml", pack("three"));
    let names =
        scene.pack_names("[policy]\npacks = ['one', 'two', 'bore', 'elsewhere/three.toml', './policies/one.toml']");
    assert_eq!(names, ["one-beside", "two-system", "bore", "three"], "the same file by two paths is one pack");
    let loaded = scene.load();
    for looked_for in
        ["w.toml", "policies/one.toml", "policies/two.toml", "system/policies/bore.toml", "elsewhere/three.toml"]
    {
        assert!(loaded.files.contains(&scene.path(looked_for)), "{looked_for}: {:?}", loaded.files);
    }
    assert_eq!(loaded.sources.len(), 5);
}

#[test]
fn a_config_map_made_of_symlinks_is_read() {
    let scene = Scene::new("[policy]\npacks = ['mine']");
    let text = pack("mine") + "lists = ['names.txt']\n";
    scene.file("policies/..2026/mine.toml", text).file("policies/..2026/names.txt", "x.example.net\n");
    symlink("..2026", scene.path("policies/..data")).unwrap();
    symlink("..data/mine.toml", scene.path("policies/mine.toml")).unwrap();
    symlink("..data/names.txt", scene.path("policies/names.txt")).unwrap();
    let config = scene.config();
    assert_eq!(config.policy.summary().packs[0].patterns, 2);
}

#[test]
fn groups_amend_packs_by_sign() {
    let scene = Scene::new("");
    let of_group = |packs: &str| {
        let text = format!(
            "[policy]\npacks = ['ngrok', 'bore']\n[[clients]]\nname = 'a'\nnetworks = ['10.0.0.0/8']\npacks = {packs}\n"
        );
        scene.file("w.toml", text);
        let loaded = scene.load();
        let problems: Vec<_> = loaded.problems.iter().map(|problem| scene.shown(problem)).collect();
        loaded.outcome.map(|config| config.outline.groups[0].packs.clone()).ok_or(problems)
    };
    scene.file("mine.toml", pack("mine"));
    assert_eq!(of_group("[]").unwrap(), [""; 0]);
    assert_eq!(of_group("['zrok']").unwrap(), ["zrok"]);
    assert_eq!(of_group("['+zrok', '-ngrok']").unwrap(), ["bore", "zrok"]);
    assert_eq!(of_group("['+./mine.toml', '+bore']").unwrap(), ["ngrok", "bore", "mine"]);
    #[rustfmt::skip]
    let cases = [
        ("['+zrok', 'ngrok']", "w.toml:6:19 \"ngrok\": plain and signed packs do not mix | give every entry a sign to amend the list of [policy], or none to replace it"),
        ("['-ngork']",         "w.toml:6:10 \"-ngork\" takes away a pack that is not active | did you mean \"-ngrok\"?"),
        ("['-zrok']",          "w.toml:6:10 \"-zrok\" takes away a pack that is not active | active are: ngrok, bore"),
        ("['+none.toml']",     "w.toml:6:10 cannot read pack none.toml: no such file"),
    ];
    for (packs, expected) in cases {
        assert_eq!(of_group(packs).unwrap_err(), [expected]);
    }
}

#[test]
fn a_pack_that_cannot_be_used_is_told_once_with_its_reason() {
    let scene =
        Scene::new("[policy]\npacks = ['it']\n[[clients]]\nname = 'a'\nnetworks = ['10.0.0.0/8']\npacks = ['+it']");
    scene.file("policies/it.toml", "x");
    let told = scene.problems();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].starts_with("policies/it.toml:1:"), "{told:#?}");

    File::create(scene.path("policies/it.toml")).unwrap().set_len(100 << 20).unwrap();
    assert_eq!(
        scene.problems(),
        [
            "w.toml:2:10 cannot read pack policies/it.toml: it is larger than 1 MiB | put names into files of their own, and name those under lists"
        ]
    );

    scene.file("policies/it.toml", pack("one")).file("policies/one.toml", pack("one"));
    scene.file("w.toml", "[policy]\npacks = ['one', 'it']");
    let problems = scene.problems();
    assert!(problems[0].starts_with("policies/it.toml:1:8 another pack is named \"one\" too: "), "{problems:#?}");
    assert!(problems[0].ends_with("policies/one.toml:1:8 | give one of them another name"), "{problems:#?}");
}

#[test]
fn a_pack_of_garbage_is_refused_in_bounded_time() {
    let scene = Scene::new("[policy]\npacks = ['it']");
    let size = 1 << 20;
    for garbage in ["=\n", "[[", "\"", "a.", "\0", "[[rules]]\n", "{", "'''"] {
        scene.file("policies/it.toml", garbage.repeat(size / garbage.len()));
        let start = Instant::now();
        let loaded = scene.load();
        assert!(loaded.outcome.is_none());
        assert!(loaded.problems.iter().len() <= crate::document::MAX_PROBLEMS + 2);
        assert!(start.elapsed() < Duration::from_secs(20), "{garbage:?} took {:?}", start.elapsed());
    }
}

#[test]
fn a_list_file_lies_below_its_packs_folder() {
    let scene = Scene::new("[policy]\npacks = ['mine']");
    scene.file("secret.txt", "x.example.net\n").file("policies/sub/good.txt", "a.example.net\n||b.example.net^\n");
    symlink(scene.path("secret.txt"), scene.path("policies/link.txt")).unwrap();
    let lists = |path: &str| scene.file("policies/mine.toml", pack("mine") + &format!("lists = ['{path}']\n"));
    lists("sub/good.txt");
    assert_eq!(scene.config().policy.summary().packs[0].patterns, 3);
    assert!(scene.load().files.contains(&scene.path("policies/sub/good.txt")));
    #[rustfmt::skip]
    let cases = [
        ("../secret.txt", "policies/mine.toml:7:10 list policies/../secret.txt is outside its pack's folder | put it below policies"),
        ("link.txt",      "policies/mine.toml:7:10 list policies/link.txt is outside its pack's folder | put it below policies"),
        ("/dev/zero",     "policies/mine.toml:7:10 list /dev/zero is outside its pack's folder | put it below policies"),
        ("sub",           "policies/mine.toml:7:10 cannot read list policies/sub: it is a folder, not a file"),
        ("none.txt",      "policies/mine.toml:7:10 cannot read list policies/none.txt: no such file"),
    ];
    for (path, expected) in cases {
        lists(path);
        assert_eq!(
            scene
                .problems()
                .iter()
                .map(|told| told.replace(scene.path("").to_str().unwrap().trim_end_matches('/'), ""))
                .collect::<Vec<_>>(),
            [expected]
        );
    }
    scene.file("policies/sub/good.txt", "a.example.net\nno name\n10.0.0.1 b.example.net\n");
    lists("sub/good.txt");
    #[rustfmt::skip]
    assert_eq!(scene.problems(), [
        "policies/mine.toml:7:10 warning: sub/good.txt:2: \"no name\" is no name and was left out",
        "policies/mine.toml:7:10 warning: sub/good.txt:3: \"10.0.0.1 b.example.net\" is no name and was left out",
    ]);
}

#[test]
fn contradictions_are_told_beside_what_cannot_be_read() {
    let scene = Scene::new(
        r#"
[organization]
ingress = ["co.uk"]
[policy]
packs = ["mine", "nope"]
action = "sinkhole"
[[clients]]
name = "a"
networks = ["10.0.0.0/8"]
[[clients]]
name = "a"
networks = ["::ffff:10.0.0.0/104", "10.1.1.1/8"]
[[exceptions]]
name = "nothing.example.org"
networks = ["any"]
until = 2020-01-01T00:00:00Z
reason = "past, which is a warning, and for now none: what it opens may be in the pack that is missing"
"#,
    );
    scene.file("policies/mine.toml", pack("mine"));
    let problems = scene.problems();
    let places: Vec<_> = problems.iter().map(|problem| problem.split(' ').next().unwrap()).collect();
    let expected = ["w.toml:3:12", "w.toml:5:18", "w.toml:6:10", "w.toml:11:8", "w.toml:12:13", "w.toml:12:36"];
    assert_eq!(places, expected, "{problems:#?}");
}

const VALID: &str = "[organization]\ningress = ['connect.acme.example']\n[policy]\npacks = ['ngrok', 'mine']\n\
[[clients]]\nname = 'a'\nnetworks = ['10.0.0.0/8']\npacks = ['+bore']\n[[exceptions]]\nname = 'x.ngrok-agent.com'\n\
networks = ['any']\nuntil = 2027-01-01T00:00:00Z\nreason = 'r'\n[audit]\nkeep = '90d'\n[[audit.sinks]]\nkind = 'stdout'\n";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_panic_and_every_place_is_inside_its_file(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        check_places(&Scene::new("[policy]\npacks = ['mine']"), &bytes, "policies/mine.toml");
        check_places(&Scene::new(""), &bytes, "w.toml");
    }

    #[test]
    fn no_mutation_of_a_valid_file_panics(at in 0..VALID.len(), cut in 0..30_usize, insert in "[\\[\\]{}=\"'#.,\na0+/:-]{0,6}") {
        let end = (at + cut).min(VALID.len());
        check_places(&Scene::new(""), format!("{}{insert}{}", &VALID[..at], &VALID[end..]).as_bytes(), "w.toml");
    }
}

fn check_places(scene: &Scene, bytes: &[u8], name: &str) {
    scene.file(name, bytes);
    let loaded = scene.load();
    assert_eq!(loaded.outcome.is_none(), loaded.problems.has_errors());
    for problem in loaded.problems.iter() {
        let Some(place) = &problem.place else { continue };
        let source = loaded
            .sources
            .iter()
            .find(|source| source.path == place.path())
            .expect("a place is in a file that was read");
        assert!(place.line() <= source.text.matches('\n').count() + 1);
        assert!(place.column() <= source.text.chars().count() + 1);
    }
}
