//! `[firewall]`, and whether `[listen]` goes with it.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use ipnet::{IpNet, Ipv6Net};

use super::set;
use crate::{
    address::Carriers,
    document::{Fault, Table, Value, quoted},
    firewall::{Mode, OnStop, Options, OwnSockets},
    gateway::ClientScope,
    policy::plan::Organization,
    problem::{Located, Place, Problem, Problems},
    upstream::{self, Server},
};

const MODES: [(&str, Mode); 3] = [("off", Mode::Off), ("host", Mode::Host), ("gateway", Mode::Gateway)];

const OWN_SOCKETS: [(&str, OwnSockets); 2] = [("user", OwnSockets::User), ("mark", OwnSockets::Mark)];

const ON_STOP: [(&str, OnStop); 2] = [("keep", OnStop::Keep), ("remove", OnStop::Remove)];

/// How long a learned address may be remembered: longer, and it belongs to somebody else by then.
const REMEMBER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(30 * 24);

/// Longest name of an interface (IFNAMSIZ, with the zero behind it).
const MAX_INTERFACE: usize = 15;

/// Its programs are not held apart from each other.
const ROOT: &str = "root";

/// Longest name of a user (useradd(8)).
const MAX_USER: usize = 32;

/// The section: the options as far as it has them, and what else there is to say.
#[derive(Default)]
pub(super) struct Section {
    options: Options,
    pub(super) nat64: Vec<Located<Ipv6Net>>,
    /// How long a learned address counts after it was seen last.
    pub(super) remember: Option<Duration>,
    mode: Option<Place>,
    /// Where keys stand, for what is wrong with them beside the mode.
    given: Vec<(&'static str, Place)>,
}

pub(super) fn read(root: &mut Table<'_>) -> Section {
    root.table("firewall", read_section).unwrap_or_default()
}

fn read_section(table: &mut Table<'_>) -> Section {
    let mut section = Section::default();
    let Section { options, given, .. } = &mut section;
    let mode = table.take("mode", |value| Some(value.locate(value.keyword(&MODES)?)));
    let mut note = |key, value: &Value<'_>| given.push((key, value.place()));
    set(
        &mut options.strict,
        table.take("strict", |value| {
            note("strict", value);
            value.boolean()
        }),
    );
    set(
        &mut options.lan,
        table.take("lan", |value| {
            note("lan", value);
            value.entries(read_interface)
        }),
    );
    for (key, target) in [("exempt", &mut options.exempt), ("static", &mut options.fixed), ("ntp", &mut options.ntp)] {
        let networks = table.take(key, |value| {
            note(key, value);
            value.entries(|entry| Some(entry.network()?.value))
        });
        set(target, networks);
    }
    set(
        &mut options.user,
        table.take("user", |value| {
            note("user", value);
            read_user(value)
        }),
    );
    set(&mut options.own_sockets, table.take("own-sockets", |value| value.keyword(&OWN_SOCKETS)));
    set(&mut options.gate_port, table.take("gate-port", |value| value.integer(1..=u16::MAX)));
    set(
        &mut options.processes,
        table.take("processes", |value| {
            note("processes", value);
            value.boolean()
        }),
    );
    set(&mut options.on_stop, table.take("on-stop", |value| value.keyword(&ON_STOP)));
    section.nat64 = table.list("nat64", read_prefix).unwrap_or_default();
    section.remember = table.take("remember", |value| value.duration(REMEMBER));
    // What is empty, or as it would be anyway, says nothing.
    let Options { strict, lan, exempt, fixed, ntp, processes, user, .. } = &section.options;
    let is_default = *user == Options::default().user;
    let silent = [!strict, lan.is_empty(), exempt.is_empty(), fixed.is_empty(), ntp.is_empty(), !processes, is_default];
    let keys = ["strict", "lan", "exempt", "static", "ntp", "processes", "user"];
    section.given.retain(|(key, _)| !keys.iter().zip(silent).any(|(known, silent)| known == key && silent));
    if let Some(Located { value, place }) = mode {
        section.options.mode = value;
        section.mode = Some(place);
    }
    section
}

impl Section {
    /// What a host's programs ask comes from the host's own addresses when it was turned to us.
    pub(super) fn fit_clients(&self, clients: &[ClientScope], problems: &mut Problems) {
        let Some(place) = self.mode.as_ref().filter(|_| self.options.mode == Mode::Host) else { return };
        let is_named = |scope: &ClientScope| matches!(scope, ClientScope::OnLink | ClientScope::Network(_));
        if !clients.iter().any(is_named) {
            let warning = "[limits] clients lets nobody of this machine's own public addresses ask";
            problems.push(Problem::warning(place, warning).hint("add \"on-link\" to [limits] clients"));
        }
    }

    /// The options whole, and what contradicts them.
    pub(super) fn complete(
        self,
        dns: &[SocketAddr],
        upstream: &upstream::Options,
        organization: &Organization,
        problems: &mut Problems,
    ) -> Options {
        let servers = upstream.servers.iter().chain(upstream.zones.iter().flat_map(|zone| &zone.servers));
        let (resolvers, system): (Vec<_>, Vec<_>) = servers.map(Server::address).partition(Option::is_some);
        let mut options = Options {
            nat64: Carriers::new(self.nat64.iter().map(|prefix| prefix.value)),
            own: organization.addresses.iter().map(|network| network.value).collect(),
            dns: dns.to_vec(),
            resolvers: resolvers.into_iter().flatten().collect(),
            asks_system: !system.is_empty(),
            ..self.options
        };
        options.resolvers.sort_unstable();
        options.resolvers.dedup();
        let Some(place) = &self.mode else {
            without_mode(&self.given, problems);
            return options;
        };
        match options.mode {
            Mode::Off => without_mode(&self.given, problems),
            Mode::Host => on_host(&options, place, &self.given, problems),
            Mode::Gateway => on_gateway(&options, place, &self.given, problems),
        }
        if options.mode != Mode::Off && !options.strict {
            for (key, place) in self.given.iter().filter(|(key, _)| *key == "ntp") {
                let warning = Problem::warning(place, format!("{key:?} says nothing without strict = true"));
                problems.push(warning.hint("all other traffic passes anyway"));
            }
        }
        options
    }
}

fn without_mode(given: &[(&'static str, Place)], problems: &mut Problems) {
    for (key, place) in given.iter().filter(|(key, _)| *key != "user") {
        let warning = Problem::warning(place, format!("{key:?} says nothing: there is no firewall"));
        problems.push(warning.hint("set mode = \"host\" or \"gateway\" in [firewall]"));
    }
}

fn on_host(options: &Options, place: &Place, given: &[(&'static str, Place)], problems: &mut Problems) {
    for (_, place) in given.iter().filter(|(key, _)| *key == "user" && options.user == ROOT) {
        match options.own_sockets {
            OwnSockets::Mark => as_root(place, problems),
            OwnSockets::User => {
                let error = "the forwarder cannot be root: all of root's programs would be let out";
                let hint = "make a user of its own: useradd --system --no-create-home tunnelwarden; where there can be \
                            none, set own-sockets = \"mark\"";
                problems.push(Problem::error(place, error).hint(hint));
            }
        }
    }
    for (key, place) in given.iter().filter(|(key, _)| ["lan", "exempt"].contains(key)) {
        let error = Problem::error(place, format!("{key:?} is for clients of a gateway, and this is mode \"host\""));
        problems.push(error.hint("take it out, or set mode = \"gateway\""));
    }
    if let Some(server) = options.resolvers.iter().find(|server| server.ip().is_loopback()) {
        let message =
            format!("the upstream server {server} is on this machine, and what it asks would be turned to us");
        problems.push(Problem::error(place, message).hint("name the servers that it asks in [upstream]"));
    }
    if !options.answers_v4() {
        let error =
            Problem::error(place, "this machine's questions cannot be turned to us: nothing of [listen] dns is there");
        problems.push(error.hint("add \"127.0.0.1:5300\" to [listen] dns, and \"[::1]:5300\" for IPv6"));
    }
    shared_port(options, place, problems);
}

fn on_gateway(options: &Options, place: &Place, given: &[(&'static str, Place)], problems: &mut Problems) {
    for (_, place) in given.iter().filter(|(key, _)| *key == "user" && options.user == ROOT) {
        as_root(place, problems);
    }
    for (_, place) in given.iter().filter(|(key, _)| *key == "processes") {
        let error = Problem::error(place, "\"processes\" is for a host's own, and this is mode \"gateway\"");
        problems.push(error.hint("take it out: what runs on clients cannot be seen from here"));
    }
    if options.lan.is_empty() {
        let error =
            Problem::error(place, "mode \"gateway\" needs \"lan\": the interfaces behind which the clients are");
        problems.push(error.hint("such as: lan = [\"eth1\"]"));
    }
    if !options.answers_v4() && !options.answers_v6() {
        let error = Problem::error(place, "none of [listen] dns covers lan: clients' questions cannot be turned to us");
        problems.push(
            error.hint("add the address that this machine has there, such as \"192.0.2.1:53\", or \"0.0.0.0:53\""),
        );
    }
    shared_port(options, place, problems);
}

fn as_root(place: &Place, problems: &mut Problems) {
    let warning = Problem::warning(place, "who takes over a forwarder that is root may rewrite what its keeper reads");
    problems.push(warning.hint("make a user of its own: useradd --system --no-create-home tunnelwarden"));
}

fn shared_port(options: &Options, place: &Place, problems: &mut Problems) {
    if options.dns.iter().any(|door| door.port() == options.gate_port) {
        let message = format!("the gate cannot listen on port {}: [listen] dns has it", options.gate_port);
        problems.push(Problem::error(place, message).hint("set another gate-port"));
    }
}

/// The name of an interface, which `nft` is to take as it stands.
fn read_interface(value: &Value<'_>) -> Option<String> {
    value.converted(|text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.@:-".contains(&byte);
        if !text.is_empty() && text.len() <= MAX_INTERFACE && text.bytes().all(plain) {
            return Ok(text.to_owned());
        }
        let fault = Fault::from(format!("{} is no name of an interface", quoted(text)));
        Err(match text.contains('*') {
            true => fault.hint("name each of them: there are no wildcards here"),
            false => {
                fault.hint(format!("a name is up to {MAX_INTERFACE} letters, digits and _ . @ : -; see: ip -br link"))
            }
        })
    })
}

/// The user as whom the forwarder runs.
fn read_user(value: &Value<'_>) -> Option<String> {
    value.converted(|text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let begins = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        if !begins || text.len() > MAX_USER || !text.bytes().all(plain) {
            return Err(Fault::from(format!("{} is no name of a user", quoted(text))));
        }
        Ok(text.to_owned())
    })
}

fn read_prefix(value: &Value<'_>) -> Option<Located<Ipv6Net>> {
    match value.network()?.value {
        IpNet::V6(prefix) => Some(value.locate(prefix)),
        IpNet::V4(network) => {
            let hint = "it is an IPv6 prefix, such as 2001:db8:64::/96 (RFC 6052)".to_owned();
            value.wrong(format!("{network} is no NAT64 prefix"), Some(hint))
        }
    }
}
