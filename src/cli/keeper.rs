//! The keeper of the firewall: `serve` starts it, and nobody else has a use for it. It alone may change the packet filter.

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use jiff::Timestamp;

use super::{Common, Exit};
use crate::{
    config::{self, Config},
    firewall::{self, Mode, OnStop, Ruleset},
    keeper::{self, Terms},
    problem::Severity,
    sys::{
        interfaces::Interfaces,
        rights::{self, Right},
        seqpacket::Channel,
    },
    upstream,
};

/// What `keeper` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Keep the rights to look into everybody's processes
    #[arg(long)]
    processes: bool,
}

pub(super) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<Exit> {
    let started = "the keeper is started by `tunnelwarden serve`";
    let requests = Channel::from_stdin().context(started)?;
    let notices = Channel::from_stdout().context(started)?;
    let more: &[Right] = if arguments.processes { &[Right::SysPtrace, Right::DacReadSearch] } else { &[] };
    rights::keep_only(&[&[Right::NetAdmin], more].concat()).context("cannot give up rights")?;
    let outcome = keeper::run(requests, notices, || terms(common).map_err(|error| format!("{error:#}")));
    // What was wrong was said, and is printed where it was heard.
    Ok(if outcome.is_ok() { Exit::Done } else { Exit::Failed })
}

/// What the files say now.
fn terms(common: &Common) -> anyhow::Result<Terms> {
    let loaded = config::load(common.config.as_deref(), Timestamp::now());
    let Some(config) = loaded.outcome else {
        let first = loaded.problems.iter().find(|problem| problem.severity == Severity::Error);
        bail!("{}", first.map(ToString::to_string).unwrap_or_default());
    };
    let options = &config.firewall;
    let uid = firewall::uid_of(options)?;
    let Some(ruleset) = Ruleset::new(options, &config.policy, uid) else { bail!("[firewall] mode is \"off\"") };
    let interfaces = Interfaces::read().context("cannot read the interfaces")?;
    Ok(Terms {
        script: ruleset.to_string(),
        gateway: options.mode == Mode::Gateway,
        nat64: options.nat64.clone(),
        never: untouched(&config, &interfaces),
        spared: interfaces.networks.iter().chain(&config.ingress.shared).copied().collect(),
        allowed_ports: config.policy.allowed_ports(),
        on_stop_remove: options.on_stop == OnStop::Remove,
    })
}

/// What no request opens or closes: our own addresses, those of whom we ask, and what the configuration settles.
fn untouched(config: &Config, interfaces: &Interfaces) -> Vec<IpNet> {
    let options = &config.firewall;
    let system = options.asks_system.then(upstream::system_servers).unwrap_or_default();
    let servers = options.resolvers.iter().chain(&system).map(|server| server.ip().to_canonical());
    let hosts = interfaces.addresses.iter().copied().chain(servers).map(IpNet::from);
    let settled = [&options.own, &options.fixed, &options.exempt];
    hosts.chain(settled.into_iter().flatten().copied()).collect()
}
