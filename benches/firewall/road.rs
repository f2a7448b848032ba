//! Client, appliance and internet in a row, joined by cables, and who serves on them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::Context as _;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{daemon::Daemon, internet, namespace::Namespace};

/// What stands on the appliance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rules {
    /// A daemon that only answers.
    None,
    /// Nothing but one rule, of somebody's, that asks for the state of a connection.
    Tracking,
    /// The daemon with `mode = "gateway"`.
    Gateway,
    /// The same with `strict = true`.
    Strict,
}

/// All of it goes when this is dropped.
pub(crate) struct Road {
    pub(crate) client: Namespace,
    pub(crate) internet: Namespace,
    pub(crate) appliance: Namespace,
    pub(crate) daemon: Option<Daemon>,
}

/// Where an ordinary site is.
pub(crate) const SITE: Ipv4Addr = Ipv4Addr::new(3, 77, 0, 80);
/// Where every ingress is.
pub(crate) const INGRESS: Ipv4Addr = Ipv4Addr::new(3, 77, 0, 30);
/// Where the upstream server is.
pub(crate) const UPSTREAM: Ipv4Addr = Ipv4Addr::new(3, 77, 0, 53);
/// Where the appliance answers.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
/// Who asks for sites.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);
/// The device that packets arrive by in the internet.
pub(crate) const ARRIVAL: &str = "i0";

/// Where this program's clients run, and where its servers do; the daemon is free.
pub(crate) const CLIENT_CPU: usize = 0;
pub(crate) const SERVER_CPU: usize = 1;

impl Road {
    pub(crate) fn with(rules: Rules, binary: &Path) -> anyhow::Result<Self> {
        let [client, appliance, internet] = [(); 3].map(|()| Namespace::new());
        appliance.join("lan0", &client, "c0");
        appliance.join("wan0", &internet, ARRIVAL);
        client.ip(IN_CLIENT);
        appliance.ip(IN_APPLIANCE);
        appliance.set("ipv4/ip_forward", "1");
        internet.ip(&format!("{IN_INTERNET}{}", on_loopback([SITE, INGRESS, UPSTREAM])));
        internet.inside(internet::serve).context("cannot serve in the internet")?;
        let daemon = match rules {
            Rules::None => Some(Daemon::start(binary, &appliance, &configuration(""))?),
            Rules::Tracking => {
                let output = appliance.run(&["nft", "-f", "-"], TRACKING);
                anyhow::ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Rules::Gateway => Some(Daemon::start(binary, &appliance, &configuration(GATEWAY))?),
            Rules::Strict => {
                Some(Daemon::start(binary, &appliance, &configuration(&format!("{GATEWAY}strict = true\n")))?)
            }
        };
        Ok(Self { client, internet, appliance, daemon })
    }

    /// From now on packets leave the appliance and the internet one by one, as they come from a wire, or again as large
    /// as 64 KiB, cut at the end of the way.
    pub(crate) fn send_one_by_one(&self, single: bool) {
        let segments = if single { 1 } else { 65_535 };
        self.internet.ip(&format!("link set {ARRIVAL} gso_max_segs {segments}\n"));
        self.appliance.ip(&format!("link set lan0 gso_max_segs {segments}\n"));
    }
}

/// Of a daemon with these lines in `[firewall]`; none: without one.
pub(crate) fn configuration(firewall: &str) -> String {
    let firewall = if firewall.is_empty() { String::new() } else { format!("[firewall]\n{firewall}") };
    format!(
        "[organization]\ningress = [\"{}\"]\n[listen]\ndns = [\"0.0.0.0:53\"]\nadmin = \"off\"\n\
         [upstream]\nservers = [\"udp://{UPSTREAM}\"]\n{firewall}",
        internet::OWN
    )
}

/// A user that every Debian has.
pub(crate) const GATEWAY: &str = "mode = \"gateway\"\nlan = [\"lan0\"]\nuser = \"nobody\"\n";

fn on_loopback<const N: usize>(addresses: [Ipv4Addr; N]) -> String {
    addresses.map(|address| format!("addr add {address}/32 dev lo\n")).concat()
}

/// The calling thread runs on this CPU from now on.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus)).context("cannot choose a CPU")
}

pub(crate) fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    (IpAddr::from(address), port).into()
}

// The clients without number are all in one network.
const IN_CLIENT: &str = "\
addr add 10.77.1.2/24 dev c0
route add local 10.78.0.0/16 dev lo
route add default via 10.77.1.1
";

const IN_APPLIANCE: &str = "\
addr add 10.77.1.1/24 dev lan0
addr add 198.18.0.1/30 dev wan0
route add 10.78.0.0/16 via 10.77.1.2
route add default via 198.18.0.2
";

const IN_INTERNET: &str = "\
addr add 198.18.0.2/30 dev i0
route add 10.0.0.0/8 via 198.18.0.1
";

const TRACKING: &str = "\
table inet somebody {
  chain passing {
    type filter hook forward priority 0; policy accept;
    ct state invalid drop
  }
}
";
