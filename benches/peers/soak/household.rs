//! The daemon's folder: configuration and pack, which change all the time; its commands; its counters.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::Context;

use crate::{question::BLOCKED, server::free_address};

/// Longest answer of the admin door.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where everything of the daemon is.
#[derive(Debug)]
pub(super) struct Household {
    pub(super) dir: PathBuf,
    pub(super) address: SocketAddrV4,
    binary: PathBuf,
    pub(super) admin: SocketAddrV4,
    upstream: SocketAddrV4,
    hostile: [SocketAddrV4; 3],
}

/// Zones whose servers are hostile: one that never answers, one that answers probes and nothing else, one that damages
/// what it says.
pub(super) const DEAD: &str = "dead.example";
pub(super) const MUTE: &str = "mute.example";
pub(super) const DAMAGED: &str = "damaged.example";

/// What a client may have of connections.
pub(super) const CONNECTIONS: usize = 20;

/// `/metrics`, as it was said.
#[derive(Debug, Default)]
pub(super) struct Counters(String);

impl Household {
    pub(super) fn new(
        dir: PathBuf,
        binary: &Path,
        upstream: SocketAddrV4,
        hostile: [SocketAddrV4; 3],
    ) -> anyhow::Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (address, admin) = (free_address()?, free_address()?);
        let household = Self { dir, address, binary: binary.to_owned(), admin, upstream, hostile };
        household.furnish(0)?;
        Ok(household)
    }

    /// Writes the files, of which each edition differs from the one before: a pattern, and a zone with its servers.
    ///
    /// The limits are such that attackers run into them and honest clients do not. A flood of 3,000 questions a second is
    /// over the rate; the load's datagrams come from so many clients that each asks some hundred. Its streams all come
    /// from 127.0.0.1 and ask as much as the machine can: that is a front resolver, without a rate. Of the few hundred
    /// questions that the whole load has open at any time no client has as many waiting as it may; a zone that does not
    /// answer takes that many in a second.
    pub(super) fn furnish(&self, edition: u64) -> anyhow::Result<()> {
        let Self { address, admin, upstream, hostile: [dead, mute, damaging], .. } = self;
        let config = format!(
            r#"
[listen]
dns = ["{address}"]
admin = "{admin}"
[upstream]
servers = ["udp://{upstream}"]
[[upstream.zones]]
zones = ["zone-{edition}.example"]
servers = ["udp://{upstream}"]
[[upstream.zones]]
zones = ["{DEAD}"]
servers = ["udp://{dead}"]
[[upstream.zones]]
zones = ["{MUTE}"]
servers = ["udp://{mute}"]
[[upstream.zones]]
zones = ["{DAMAGED}"]
servers = ["udp://{damaging}"]
[limits]
rate = 2000
forwarders = ["127.0.0.1/32"]
waiting-per-client = 50
connections-per-client = {CONNECTIONS}
[policy]
packs = ["./soak.toml"]
[cache]
size = "8MiB"
[audit]
store = "attempts.db"
max-size = "1MiB"
[[audit.sinks]]
kind = "file"
path = "attempts.jsonl"
format = "json"
"#
        );
        let own = format!("edition-{edition}.blocked.example");
        let patterns: Vec<_> = BLOCKED.iter().copied().chain([own.as_str()]).map(|name| format!(".{name}")).collect();
        let pack = format!(
            "name = \"soak\"\nversion = \"{edition}\"\n[[rules]]\nid = \"ingress\"\nreason = \"soak\"\nblock = {patterns:?}\n"
        );
        self.put("soak.toml", &pack)?;
        self.put("tunnelwarden.toml", &config)
    }

    /// In one step: the daemon may look at any time.
    fn put(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let (beside, path) = (self.dir.join("new"), self.dir.join(name));
        fs::write(&beside, text)
            .and_then(|()| fs::rename(&beside, &path))
            .with_context(|| format!("cannot write {name}"))
    }

    /// The arguments that have a command use these files.
    pub(super) fn command_line(&self, command: &str) -> Vec<String> {
        let (config, state) = (self.dir.join("tunnelwarden.toml"), self.dir.join("state"));
        let (config, state) = (config.display().to_string(), state.display().to_string());
        [command, "--config", &config, "--state-dir", &state].map(str::to_owned).to_vec()
    }

    /// Runs a command of the binary to its end.
    pub(super) fn command(&self, name: &str, more: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(&self.binary);
        let output = command.args(self.command_line(name)).args(more).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run {name}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{name} failed ({}): {}", output.status, said.trim());
        Ok(output)
    }

    /// All counters now.
    pub(super) fn counters(&self) -> anyhow::Result<Counters> {
        let mut door = TcpStream::connect(self.admin).context("cannot reach the admin door")?;
        door.set_read_timeout(Some(PATIENCE))?;
        write!(door, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin)?;
        let mut text = String::new();
        door.read_to_string(&mut text).context("the admin door does not answer")?;
        Ok(Counters(text))
    }
}

impl Counters {
    /// The sum of a metric's samples, all of them or those that begin with these labels.
    pub(super) fn sum(&self, metric: &str) -> u64 {
        let samples = self.0.lines().filter_map(|line| line.strip_prefix("tunnelwarden_")?.strip_prefix(metric));
        let whole = samples.filter(|rest| rest.starts_with(['{', ' ']));
        whole.filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// What is thought of the household's own server.
    pub(super) fn server_is(&self, household: &Household, state: &str) -> bool {
        let server = household.upstream;
        self.sum(&format!("upstream_server_state{{server=\"udp://{server}\",state=\"{state}\"}}")) == 1
    }
}
