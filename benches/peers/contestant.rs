//! Who is compared, with the same policy, the same upstream and one worker each: how each is configured and
//! started, and what it does and does not do in the run.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddrV4,
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::{
    machine::package_version,
    question::{BLOCKED, listed_name, network},
    server::{SERVER_CPU, Server, free_address},
};

/// Who.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Echo,
    Tunnelwarden,
    Unbound,
    Dnsdist,
    Named,
    Dnsmasq,
}

/// What differs between runs; the rest is the same for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Names blocked besides [`BLOCKED`].
    pub(crate) listed: usize,
    /// Networks that tunnelwarden knows as groups of clients.
    pub(crate) groups: usize,
    /// Room for answers in tunnelwarden's cache, in MiB.
    pub(crate) cache: usize,
    /// May it use the load's CPU too, with a second worker?
    pub(crate) both_cpus: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self { listed: 0, groups: 0, cache: 256, both_cpus: false }
    }
}

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    /// The folder for configurations and state.
    pub(crate) dir: PathBuf,
    pub(crate) upstream: SocketAddrV4,
    /// tunnelwarden's binary.
    pub(crate) binary: PathBuf,
}

impl Kind {
    pub(crate) const PEERS: [Self; 4] = [Self::Unbound, Self::Dnsdist, Self::Named, Self::Dnsmasq];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Tunnelwarden => "tunnelwarden",
            Self::Unbound => "unbound",
            Self::Dnsdist => "dnsdist",
            Self::Named => "named",
            Self::Dnsmasq => "dnsmasq",
        }
    }

    /// Debian's package that has it.
    pub(crate) fn package(self) -> Option<&'static str> {
        match self {
            Self::Echo | Self::Tunnelwarden => None,
            Self::Unbound => Some("unbound"),
            Self::Dnsdist => Some("dnsdist"),
            Self::Named => Some("bind9"),
            Self::Dnsmasq => Some("dnsmasq-base"),
        }
    }

    pub(crate) fn version(self) -> String {
        match self.package() {
            Some(package) => package_version(package).unwrap_or_else(|| "version unknown".to_owned()),
            None => env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// For the document: what it does in the run that costs, and what it leaves out that others do.
    pub(crate) fn account(self) -> &'static str {
        match self {
            Self::Echo => {
                "One recvfrom and one sendto for each datagram, the reply bit set. Reads no name, decides nothing: \
                 the cost of the kernel, and the unit of every ratio here."
            }
            Self::Tunnelwarden => {
                "Judges every question and every answer's aliases and addresses; refuses with SOA and an Extended \
                 DNS Error; records every refused attempt in its SQLite store and in a JSON file, folded by client, \
                 name and rule; asks upstream from random ports with random ids. Does not validate DNSSEC or resolve \
                 by itself."
            }
            Self::Unbound => {
                "`local-zone .. always_nxdomain`. A recursive resolver used as a forwarder, iterator module only: no \
                 DNSSEC validation. Random ports and ids. Records nothing: no query log, no statistics."
            }
            Self::Dnsdist => {
                "A suffix rule that answers NXDOMAIN. A load balancer: passes packets through one connected socket, \
                 its ids and that port being all the randomness there is; looks at no alias or address of an answer. \
                 Records nothing."
            }
            Self::Named => {
                "A response policy zone. A recursive resolver used as a forwarder, without DNSSEC validation. Random \
                 ports and ids. Logs and query statistics off: records nothing."
            }
            Self::Dnsmasq => {
                "`address=/../`. Random ports and ids. No log. One process without threads, which forks for TCP; so \
                 it is left out of the TCP run. Its cache is kept at 2,000 names, where it is fastest."
            }
        }
    }

    /// The program, where this machine has it.
    pub(crate) fn program(self, ground: &Ground) -> Option<PathBuf> {
        match self {
            Self::Echo => std::env::current_exe().ok(),
            Self::Tunnelwarden => Some(ground.binary.clone()),
            Self::Unbound | Self::Dnsdist | Self::Named | Self::Dnsmasq => {
                let dirs = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
                dirs.iter().map(|dir| Path::new(dir).join(self.name())).find(|path| path.is_file())
            }
        }
    }

    /// Writes its configuration into a new folder and starts it on the servers' CPU.
    pub(crate) fn start(self, ground: &Ground, terms: Terms) -> anyhow::Result<Server> {
        let address = free_address()?;
        // Removed with the folder it is in.
        let dir = tempfile::Builder::new().prefix(self.name()).tempdir_in(&ground.dir);
        let dir = dir.with_context(|| format!("cannot make a folder in {}", ground.dir.display()))?.keep();
        let program = self.program(ground).with_context(|| format!("{} is not installed", self.name()))?;
        let site = Site { dir: &dir, address, upstream: ground.upstream, terms };
        let arguments = match self {
            Self::Echo => {
                let workers = if terms.both_cpus { "2" } else { "1" };
                vec!["echo".to_owned(), address.to_string(), workers.to_owned()]
            }
            Self::Tunnelwarden => site.tunnelwarden()?,
            Self::Unbound => site.unbound()?,
            Self::Dnsdist => site.dnsdist()?,
            Self::Named => site.named()?,
            Self::Dnsmasq => site.dnsmasq()?,
        };
        let cpus: &[usize] = if terms.both_cpus { &[0, SERVER_CPU] } else { &[SERVER_CPU] };
        Server::start(&program, &arguments, &dir, address, cpus)
    }
}

/// One server's place.
struct Site<'a> {
    dir: &'a Path,
    address: SocketAddrV4,
    upstream: SocketAddrV4,
    terms: Terms,
}

impl Site<'_> {
    fn tunnelwarden(&self) -> anyhow::Result<Vec<String>> {
        let Self { address, upstream, terms, .. } = self;
        let mut config = format!(
            r#"
[listen]
dns = ["{address}"]
admin = "off"
[upstream]
servers = ["udp://{upstream}"]
[policy]
packs = ["./bench.toml"]
[cache]
size = "{}MiB"
[audit]
store = "attempts.db"
[[audit.sinks]]
kind = "file"
path = "attempts.jsonl"
format = "json"
"#,
            terms.cache
        );
        for number in 0..terms.groups {
            writeln!(config, "[[clients]]\nname = \"group-{number}\"\nnetworks = [\"{}/24\"]", network(number))?;
        }
        let patterns: Vec<_> = BLOCKED.iter().map(|name| format!(".{name}")).collect();
        let mut pack = format!(
            "name = \"bench\"\nversion = \"1\"\n[[rules]]\nid = \"ingress\"\nreason = \"bench\"\nblock = {patterns:?}\n"
        );
        if terms.listed > 0 {
            pack.push_str("[[rules]]\nid = \"list\"\nreason = \"bench\"\nlists = [\"listed.txt\"]\n");
            self.write("listed.txt", &self.listed(|name| format!("||{name}^\n")))?;
        }
        self.write("bench.toml", &pack)?;
        let config = self.write("tunnelwarden.toml", &config)?;
        let state = self.dir.join("state").display().to_string();
        Ok(vec!["serve".into(), "--config".into(), config, "--state-dir".into(), state])
    }

    fn unbound(&self) -> anyhow::Result<Vec<String>> {
        let zones = self.blocked(|name| format!("    local-zone: \"{name}.\" always_nxdomain\n"));
        let (port, up, dir) = (self.address.port(), self.upstream, self.dir.display());
        let up = format!("{}@{}", up.ip(), up.port());
        let config = format!(
            r#"server:
    interface: 127.0.0.1@{port}
    access-control: 127.0.0.0/8 allow
    num-threads: 1
    module-config: "iterator"
    do-ip6: no
    do-not-query-localhost: no
    qname-minimisation: no
    minimal-responses: yes
    msg-cache-size: 64m
    rrset-cache-size: 128m
    outgoing-range: 4096
    num-queries-per-thread: 4096
    incoming-num-tcp: 200
    username: ""
    chroot: ""
    directory: "{dir}"
    pidfile: "{dir}/pid"
    use-syslog: no
    logfile: "{dir}/log"
    log-queries: no
{zones}remote-control:
    control-enable: no
forward-zone:
    name: "."
    forward-addr: {up}
"#
        );
        Ok(vec!["-d".into(), "-c".into(), self.write("unbound.conf", &config)?])
    }

    fn dnsdist(&self) -> anyhow::Result<Vec<String>> {
        let names = self.write("names", &self.blocked(|name| format!("{name}\n")))?;
        let (address, upstream) = (self.address, self.upstream);
        let config = format!(
            r#"setLocal("{address}")
setACL({{"127.0.0.0/8"}})
setSecurityPollSuffix("")
setUDPMultipleMessagesVectorSize(64)
setMaxUDPOutstanding(65535)
newServer({{address="{upstream}", checkInterval=60}}):setUp()
getPool(""):setCache(newPacketCache(500000, {{maxTTL=86400}}))
blocked = newSuffixMatchNode()
for name in io.lines("{names}") do blocked:add(newDNSName(name)) end
addAction(SuffixMatchNodeRule(blocked, true), RCodeAction(DNSRCode.NXDOMAIN))
"#
        );
        let config = self.write("dnsdist.conf", &config)?;
        Ok(["--supervised", "--disable-syslog", "-C", &config].map(str::to_owned).to_vec())
    }

    fn named(&self) -> anyhow::Result<Vec<String>> {
        let mut zone = "$TTL 300\n@ SOA localhost. root.localhost. 1 3600 600 86400 60\n@ NS localhost.\n".to_owned();
        zone.push_str(&self.blocked(|name| format!("{name} CNAME .\n*.{name} CNAME .\n")));
        let zone = self.write("policy.zone", &zone)?;
        let (port, dir) = (self.address.port(), self.dir.display());
        let (up, up_port) = (self.upstream.ip(), self.upstream.port());
        let config = format!(
            r#"options {{
    directory "{dir}";
    pid-file "{dir}/pid";
    session-keyfile "{dir}/session.key";
    lock-file none;
    listen-on port {port} {{ 127.0.0.1; }};
    listen-on-v6 {{ none; }};
    allow-query {{ 127.0.0.0/8; }};
    recursion yes;
    forward only;
    forwarders port {up_port} {{ {up}; }};
    dnssec-validation no;
    minimal-responses yes;
    querylog no;
    zone-statistics none;
    empty-zones-enable no;
    max-cache-size 256m;
    recursive-clients 20000;
    fetches-per-server 0;
    fetches-per-zone 0;
    clients-per-query 0;
    tcp-clients 1000;
    response-policy {{ zone "policy"; }} qname-wait-recurse no break-dnssec yes;
}};
controls {{ }};
logging {{ category default {{ stderr_errors; }}; category rpz {{ null; }}; channel stderr_errors {{ stderr; severity error; }}; }};
zone "policy" {{ type primary; file "{zone}"; allow-query {{ none; }}; check-names ignore; }};
"#
        );
        let config = self.write("named.conf", &config)?;
        Ok(["-f", "-n", "1", "-c", &config].map(str::to_owned).to_vec())
    }

    fn dnsmasq(&self) -> anyhow::Result<Vec<String>> {
        let names = self.blocked(|name| format!("address=/{name}/\n"));
        let (port, up, up_port) = (self.address.port(), self.upstream.ip(), self.upstream.port());
        // Started by root it would change to another user, and then not end with us.
        let config = format!(
            "port={port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nno-poll\npid-file=\n\
             log-facility=-\nuser=root\ncache-size=2000\nserver={up}#{up_port}\n{names}"
        );
        Ok(vec!["-k".into(), "-C".into(), self.write("dnsmasq.conf", &config)?])
    }

    /// All blocked names, each in a server's own words.
    fn blocked(&self, line: impl Fn(&str) -> String) -> String {
        let fixed: String = BLOCKED.iter().map(|name| line(name)).collect();
        fixed + &self.listed(line)
    }

    fn listed(&self, line: impl Fn(&str) -> String) -> String {
        (0..self.terms.listed).map(|number| line(&listed_name(number))).collect()
    }

    /// Writes a file into the folder; gives its path.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.display().to_string())
    }
}
