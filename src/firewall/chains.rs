//! The rules. Their order is the policy: what refuses stands before everything that lets pass, so that a connection
//! which exists already ends, too.

use std::net::SocketAddr;

use super::{
    LOG_GROUP, MARK, ZONE,
    options::{Mode, Options, OwnSockets},
    script::Chain,
    sets,
};
use crate::address::{Family, regarded_bits};

/// All chains, and the counters they name.
pub(super) struct Chains {
    pub(super) counters: Vec<String>,
    pub(super) chains: Vec<Chain>,
}

/// Why a packet does not pass.
#[derive(Clone, Copy)]
enum Reason {
    Dns,
    Dot,
    Doh,
    /// To an ingress, past the gate.
    Address,
    /// To an ingress, where the gate would have looked.
    Gate,
    Strict,
    /// It does pass: its address was not resolved through us.
    Unresolved,
}

/// What becomes of it.
#[derive(Clone, Copy)]
enum Fate {
    Denied,
    Observed,
}

/// Whoever writes a rule knows these.
pub(super) struct Writer<'a> {
    pub(super) options: &'a Options,
    uid: u32,
}

/// Behind all of other people's rules that rewrite nothing; before those that rewrite destinations at -100
/// (docker, kube-proxy, firewalld).
const NAT: &str = "-105";

/// After our rewriting; before the filters at 0 (ufw, firewalld, docker), whose drop remains final.
const FILTER: &str = "-5";

/// Before conntrack looks at a packet (-200).
const RAW: &str = "-300";

/// What is logged of a packet, and how often at most; the counter beside it counts all.
const LIMIT: &str = "limit rate 20/second burst 50 packets";

/// What a server and a client of TLS over TCP or QUIC have in common with DNS: both ways of transport.
const TRANSPORT: &str = "meta l4proto { tcp, udp } th";

impl Chains {
    /// For the forwarder that runs as this user.
    pub(super) fn of(options: &Options, uid: u32) -> Self {
        let writer = Writer { options, uid };
        let mut chains = vec![writer.zone(), writer.redirect(), writer.dns(), writer.foreign_dns(), writer.guard()];
        chains.extend([writer.egress(), writer.observed()]);
        chains.extend(writer.passing());
        chains.extend([writer.rest(Fate::Denied), writer.rest(Fate::Observed)]);
        let ends: Vec<_> =
            END.into_iter().flat_map(|(reason, fates)| fates.iter().map(move |&fate| (reason, fate))).collect();
        chains.extend(ends.iter().map(|&(reason, fate)| end(reason, fate)));
        chains.push(refuse());
        let mut counters: Vec<_> = ends.iter().map(|&(reason, fate)| name(reason, fate)).collect();
        counters.push(FOREIGN_DNS.to_owned());
        Self { counters, chains }
    }
}

/// Which ends there are. Clients that are observed never meet the gate.
const END: [(Reason, &[Fate]); 7] = [
    (Reason::Dns, &[Fate::Denied, Fate::Observed]),
    (Reason::Dot, &[Fate::Denied, Fate::Observed]),
    (Reason::Doh, &[Fate::Denied, Fate::Observed]),
    (Reason::Address, &[Fate::Denied, Fate::Observed]),
    (Reason::Gate, &[Fate::Observed]),
    (Reason::Strict, &[Fate::Denied, Fate::Observed]),
    (Reason::Unresolved, &[Fate::Denied, Fate::Observed]),
];

const FOREIGN_DNS: &str = "foreign_dns";

impl Writer<'_> {
    fn is_host(&self) -> bool {
        match self.options.mode {
            Mode::Off | Mode::Host => true,
            Mode::Gateway => false,
        }
    }

    /// A socket of the forwarder's. Whoever may mark sockets himself is stopped by the user, as far as it is another.
    fn ours(&self) -> String {
        match self.options.own_sockets {
            OwnSockets::User => format!("meta skuid {}", self.uid),
            OwnSockets::Mark => format!("meta skuid {} meta mark {MARK:#010x}", self.uid),
        }
    }

    /// `"eth1"`, or `{ "eth1", "eth2" }`.
    fn lan(&self) -> String {
        let quoted: Vec<_> = self.options.lan.iter().map(|name| format!("\"{name}\"")).collect();
        match quoted.as_slice() {
            // A comparison, where a set would have to be searched.
            [only] => only.clone(),
            _ => format!("{{ {} }}", quoted.join(", ")),
        }
    }

    fn zone(&self) -> Chain {
        let base = format!("type filter hook output priority {RAW}");
        let why = "the forwarder's own connections are told apart from those that were turned to it.";
        let mut chain = Chain::base("zone", &base, why);
        chain.why("Both have the same addresses and ports at times, and without a zone of its own a question of the");
        chain.why("forwarder's would be sent back to it. Replies stay where other people's rules look for them.");
        chain.rule(format!("{} meta l4proto {{ tcp, udp }} ct original zone set {ZONE}", self.ours()));
        chain
    }

    fn redirect(&self) -> Chain {
        let hook = if self.is_host() { "output" } else { "prerouting" };
        let base = format!("type nat hook {hook} priority {NAT}");
        let mut chain = Chain::base("turn", &base, "DNS goes to the forwarder, TLS to an ingress to the gate.");
        if self.is_host() {
            chain.rule(format!("{} accept", self.ours()));
        } else {
            self.only_clients(&mut chain);
        }
        chain.why("Observed clients' too: otherwise nothing of theirs is seen.");
        chain.rule(format!("{TRANSPORT} dport 53 jump dns"));
        self.not_for_the_gate(&mut chain);
        for family in Family::BOTH {
            let Some(turned) = self.turn_to_gate(family) else { continue };
            for set in [sets::INGRESS, sets::INGRESS_NET] {
                let (header, set) = (family.header(), family.pick(set));
                chain.rule(format!("{header} daddr @{set} tcp dport 443 {turned}"));
            }
        }
        chain
    }

    /// What goes to an ingress and past the gate, as far as `egress` lets it.
    pub(super) fn not_for_the_gate(&self, chain: &mut Chain) {
        chain.rules(|family| format!("{} daddr @{} return", family.header(), family.pick(sets::OWN)));
        chain.rules(|family| format!("{} saddr @{} return", family.header(), family.pick(sets::OBSERVED)));
        chain.rules(|family| format!("{} saddr @{} return", family.header(), family.pick(sets::UNBOUND)));
    }

    fn dns(&self) -> Chain {
        let mut chain = Chain::new("dns", "every question, whomever it was meant for.");
        if self.is_host() {
            chain.why("Stub resolvers of this machine are turned away when they ask on.");
            chain.rule("fib daddr type local return");
        }
        for family in Family::BOTH {
            let Some(door) = self.options.dns_door(family) else {
                chain.why("Nothing answers in the other family: the filter refuses.");
                continue;
            };
            let (header, resolvers) = (family.header(), family.pick(sets::RESOLVER));
            let foreign = if self.is_host() { "" } else { "fib daddr type != local " };
            chain.rule(format!("{foreign}{header} daddr != @{resolvers} jump {FOREIGN_DNS}"));
            let to = self.to(family, door);
            chain.rule(format!("meta nfproto {} meta l4proto {{ tcp, udp }} {to}", family.protocol()));
        }
        chain
    }

    fn foreign_dns(&self) -> Chain {
        let mut chain = Chain::new(FOREIGN_DNS, "told, and then turned to us like the others.");
        tell(&mut chain, FOREIGN_DNS, "dns");
        chain
    }

    /// What turns a packet to a door.
    pub(super) fn to(&self, family: Family, door: SocketAddr) -> String {
        if self.is_host() || door.ip().is_unspecified() {
            return format!("redirect to :{}", door.port());
        }
        format!("dnat {} to {door}", family.header())
    }

    fn guard(&self) -> Chain {
        let base = format!("type filter hook input priority {FILTER}");
        let mut chain = Chain::base("guard", &base, "the gate takes what was turned to it, and is no relay.");
        let port = self.options.gate_port;
        let from = if self.is_host() { String::new() } else { format!("iifname {} ", self.lan()) };
        chain.rule(format!("{from}tcp dport {port} ct status dnat accept"));
        chain.rule(format!("tcp dport {port} reject with tcp reset"));
        chain
    }

    fn egress(&self) -> Chain {
        let hook = if self.is_host() { "output" } else { "forward" };
        let base = format!("type filter hook {hook} priority {FILTER}");
        let mut chain = Chain::base("egress", &base, "what leaves.");
        if self.is_host() {
            self.own_and_local(&mut chain);
        } else {
            self.only_clients(&mut chain);
        }
        chain.why("The organization's own ingress addresses, on all ports.");
        chain.rules(|family| format!("{} daddr @{} accept", family.header(), family.pick(sets::OWN)));
        chain.why("Clients that are observed.");
        chain.rules(|family| format!("{} saddr @{} goto observed", family.header(), family.pick(sets::OBSERVED)));
        self.refusals(&mut chain, Fate::Denied);
        chain
    }

    fn observed(&self) -> Chain {
        let mut chain = Chain::new("observed", "the same for clients that are observed: told once, and let pass.");
        chain.rule("ct state established,related accept");
        self.refusals(&mut chain, Fate::Observed);
        chain
    }

    /// A host's first rules.
    fn own_and_local(&self, chain: &mut Chain) {
        chain.why("The forwarder asks its servers, and the gate reaches what it lets through. Nothing else of theirs");
        chain.why("is special.");
        let mut ports: Vec<u16> = self.options.resolvers.iter().map(SocketAddr::port).chain([443]).collect();
        ports.extend(self.options.asks_system.then_some(53));
        ports.sort_unstable();
        ports.dedup();
        let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
        chain.rule(format!("{} {TRANSPORT} dport {{ {} }} accept", self.ours(), ports.join(", ")));
        chain.why("What was turned to us has the address already, and not yet the interface.");
        chain.rule("oifname \"lo\" accept");
        chain.rule("ip daddr 127.0.0.0/8 accept");
        chain.rule("ip6 daddr ::1 accept");
    }

    /// A gateway's first rules.
    pub(super) fn only_clients(&self, chain: &mut Chain) {
        chain.rule(format!("iifname != {} return", self.lan()));
        chain.rules(|family| format!("{} saddr @{} return", family.header(), family.pick(sets::EXEMPT)));
    }

    /// What does not pass.
    fn refusals(&self, chain: &mut Chain, fate: Fate) {
        let to = |reason| name(reason, fate);
        chain.why("Questions that could not be turned to us, or were not: a connection of before.");
        let (dns, dot) = (to(Reason::Dns), to(Reason::Dot));
        chain.rule(format!("{TRANSPORT} dport vmap {{ 53 : goto {dns}, 853 : goto {dot}, 8853 : goto {dot} }}"));
        chain.why("What few packets are comes first, here and below: all of them are looked at.");
        chain.rules(|family| {
            let (header, doh, free) = (family.header(), family.pick(sets::DOH), family.pick(sets::DOH_FREE));
            format!("{header} daddr @{doh} {TRANSPORT} dport 443 {header} saddr != @{free} goto {}", to(Reason::Doh))
        });
        chain.why("Clients that no ingress is refused.");
        chain.rules(|family| {
            let (header, unbound) = (family.header(), family.pick(sets::UNBOUND));
            format!("{header} saddr @{unbound} goto {}", rest_name(fate))
        });
        chain.why("Ports that an allowing rule opens, then nothing more: whatever the protocol. The gate has taken");
        chain.why("its part before.");
        chain.rules(|family| {
            let (header, client) = (family.header(), self.client(family));
            format!("{client}{header} daddr . tcp dport @{} accept", family.pick(sets::PORT))
        });
        for family in Family::BOTH {
            for set in [sets::INGRESS, sets::INGRESS_NET] {
                let (header, set) = (family.header(), family.pick(set));
                match fate {
                    Fate::Denied => self.let_on(chain, family, set),
                    Fate::Observed => {
                        chain.rule(format!("{header} daddr @{set} tcp dport 443 goto {}", to(Reason::Gate)));
                    }
                }
                chain.rule(format!("{header} daddr @{set} goto {}", to(Reason::Address)));
            }
        }
        let prefixes = self.options.nat64.prefixes().iter();
        for (prefix, mask) in prefixes.filter_map(|&prefix| Some((prefix, regarded_bits(prefix)?))) {
            chain.why("A translator does not look at the bits around the IPv4 address, so neither do we.");
            let set = Family::V6.pick(sets::INGRESS);
            chain.rule(format!("ip6 daddr {prefix} ip6 daddr & {mask} @{set} goto {}", to(Reason::Address)));
        }
        chain.rule(format!("goto {}", rest_name(fate)));
    }

    /// A gateway's dynamic sets begin with the client.
    fn client(&self, family: Family) -> String {
        if self.is_host() { String::new() } else { format!("{} saddr . ", family.header()) }
    }

    /// What is no ingress.
    fn rest(&self, fate: Fate) -> Chain {
        let why = if self.options.strict {
            "nothing leaves but to addresses that were resolved through us, or are always open."
        } else {
            "all of it passes; TLS to an address that nobody resolved through us is told."
        };
        let mut chain = Chain::new(rest_name(fate), why);
        if self.options.strict {
            self.strict(&mut chain, fate);
            return chain;
        }
        chain.rule("tcp dport != 443 accept");
        chain.rule("meta l4proto != tcp accept");
        chain.rule("ct state != new accept");
        self.open(&mut chain);
        chain.rule(format!("goto {}", name(Reason::Unresolved, fate)));
        chain
    }

    fn strict(&self, chain: &mut Chain, fate: Fate) {
        chain.rule("ct state established,related accept");
        if self.is_host() {
            chain.why("Without neighbours and an address of its own a machine has no network.");
            chain.rule(NEIGHBOURS);
            chain.why("DHCP, to servers of the own network.");
            chain.rule(format!("ip daddr {DHCP_V4} udp sport 68 udp dport 67 accept"));
            chain.rule(format!("ip6 daddr {DHCP_V6} udp sport 546 udp dport 547 accept"));
        }
        chain.rules(|family| format!("{} daddr @{} udp dport 123 accept", family.header(), family.pick(sets::NTP)));
        self.open(chain);
        chain.rule(format!("goto {}", name(Reason::Strict, fate)));
    }

    /// Addresses that are always open, and those that were resolved.
    fn open(&self, chain: &mut Chain) {
        chain.rules(|family| format!("{} daddr @{} accept", family.header(), family.pick(sets::STATIC)));
        chain.rules(|family| {
            let (header, client) = (family.header(), self.client(family));
            format!("{client}{header} daddr @{} accept", family.pick(sets::LEASE))
        });
    }
}

/// Neighbour discovery (RFC 4861) and the reports of listeners that its multicast needs (RFC 3810).
const NEIGHBOURS: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, \
                          mld-listener-report, mld-listener-done, mld2-listener-report } accept";

/// Broadcast, and addresses that lead nowhere on the Internet: a job may have port 68.
const DHCP_V4: &str = "{ 10.0.0.0/8, 100.64.0.0/10, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16, 255.255.255.255 }";

/// All servers and relays (RFC 8415 section 7.1), and neighbours.
const DHCP_V6: &str = "{ fc00::/7, fe80::/10, ff02::1:2, ff05::1:3 }";

/// The last chain of a packet, and its counter.
fn end(reason: Reason, fate: Fate) -> Chain {
    let why = match (reason, fate) {
        (Reason::Unresolved, _) => "told, and let pass.",
        (_, Fate::Denied) => "told, and refused.",
        (_, Fate::Observed) => "would be refused; told, and let pass.",
    };
    let name = name(reason, fate);
    let mut chain = Chain::new(name.clone(), why);
    let prefix = match fate {
        Fate::Denied => word(reason).to_owned(),
        Fate::Observed => format!("observe-{}", word(reason)),
    };
    tell(&mut chain, &name, &prefix);
    chain.rule(match (reason, fate) {
        (Reason::Unresolved, _) | (_, Fate::Observed) => "accept",
        (_, Fate::Denied) => "goto refuse",
    });
    chain
}

/// Counts all packets, and logs as many as somebody can read.
fn tell(chain: &mut Chain, counter: &str, prefix: &str) {
    chain.rule(format!("counter name \"{counter}\""));
    chain.rule(format!("{LIMIT} log prefix \"tw:{prefix} \" group {LOG_GROUP} snaplen 128"));
}

fn refuse() -> Chain {
    let mut chain = Chain::new("refuse", "at once, so that programs say what is wrong instead of waiting.");
    chain.rule("meta l4proto tcp reject with tcp reset");
    chain.rule("reject with icmpx admin-prohibited");
    chain
}

fn name(reason: Reason, fate: Fate) -> String {
    match (reason, fate) {
        (Reason::Unresolved, Fate::Denied) => word(reason).to_owned(),
        (_, Fate::Denied) => format!("denied_{}", word(reason)),
        (_, Fate::Observed) => format!("observed_{}", word(reason)),
    }
}

fn rest_name(fate: Fate) -> &'static str {
    match fate {
        Fate::Denied => "rest",
        Fate::Observed => "observed_rest",
    }
}

fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::Dns => "dns",
        Reason::Dot => "dot",
        Reason::Doh => "doh",
        Reason::Address => "address",
        Reason::Gate => "gate",
        Reason::Strict => "strict",
        Reason::Unresolved => "unresolved",
    }
}
