//! The one event there is: somebody tried something that a rule speaks of.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Likeness;
use crate::{
    name::DomainName,
    policy::{Action, Mode},
};

/// One try, as the gateway saw it. Folding adds count, first and last seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// When.
    pub time: Timestamp,
    /// What was decided.
    pub decision: Decision,
    /// By which way it was tried.
    pub way: Way,
    /// Who tried; believed from a forwarder where `via` is set. Port 0 where it is not known.
    pub client: SocketAddr,
    /// The forwarder that spoke for the client.
    pub via: Option<IpAddr>,
    /// The client's group, by name.
    pub group: Option<String>,
    /// What the question, or the connection, came over; `None` for packets of another protocol.
    pub transport: Option<Transport>,
    /// The protocol of a packet, as its number in the IP header, where no transport says it.
    pub protocol: Option<u8>,
    /// The name asked for: a question's, or a TLS server name. `None` where none was said.
    pub name: Option<DomainName>,
    /// The type asked for, as its number; `None` where there was no question.
    pub qtype: Option<u16>,
    /// The class asked for, as its number; 1 is IN.
    pub qclass: Option<u16>,
    /// Where it was to go, where that was not to us.
    pub destination: Option<SocketAddr>,
    /// The process on this machine that tried, where it is known.
    pub process: Option<Process>,
    /// The rule, as `pack/rule`, `policy.block`, `organization.ingress`, `exception` or [`UNREADABLE`].
    pub rule: Arc<str>,
    /// What the rule matched, if not the question's name.
    pub evidence: Option<Evidence>,
    /// How it was refused; `None` where it was not.
    pub action: Option<Action>,
    /// The response code the client got; `None` where it got none.
    pub rcode: Option<u16>,
}

/// The rule of what names no server that a rule could speak of, at an address that none speaks of either.
pub const UNREADABLE: &str = "gate.unreadable";

/// A process, as far as the kernel told. Evidence, never a reason: between its try and our look it may have changed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Process {
    /// Its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The path of what it executes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Its user.
    pub uid: u32,
    /// Its control group: a service, a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// What was decided.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Refused.
    Blocked,
    /// Would have been refused; the group only observes.
    Observed,
    /// The own ingress was used.
    AllowedOwn,
    /// A dated exception let it pass.
    AllowedException,
}

/// By which way.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// A question put to us.
    Dns,
    /// A question meant for another resolver, which was redirected to us.
    DnsRedirected,
    /// DNS over TLS to another resolver.
    Dot,
    /// DNS over HTTPS to another resolver.
    Doh,
    /// A packet to an ingress address.
    Address,
    /// A TLS connection to an ingress address, which was redirected to the gate.
    TlsGate,
}

/// What the question, or the connection, came over.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A TCP connection.
    Tcp,
    /// DNS over TLS.
    Tls,
    /// DNS over HTTPS.
    Https,
}

/// What in the answer a rule matched.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Evidence {
    /// An alias.
    Alias(DomainName),
    /// An address.
    Address(IpAddr),
}

impl Attempt {
    /// What makes others the same as this one.
    pub fn likeness(&self) -> Likeness<'_> {
        let Self { client, name, rule, decision, way, destination, .. } = self;
        let name = name.as_ref().map(DomainName::as_name);
        let destination = destination.filter(|_| way.is_to_an_address());
        Likeness { client: client.ip(), name, destination, rule, decision: *decision, way: *way }
    }
}

impl Way {
    /// Is it the address that was tried, so that another address is another attempt?
    pub fn is_to_an_address(self) -> bool {
        match self {
            Self::Address | Self::Dot | Self::Doh => true,
            Self::Dns | Self::DnsRedirected | Self::TlsGate => false,
        }
    }
}

impl Decision {
    /// The decision for a violation under `mode`.
    pub fn of_violation(mode: Mode) -> Self {
        match mode {
            Mode::Enforce => Self::Blocked,
            Mode::Observe => Self::Observed,
        }
    }
}

/// The word of each variant, as JSON, store and command line have it.
macro_rules! words {
    ($kind:ident { $($variant:ident = $word:literal),+ }) => {
        impl $kind {
            /// Its word in JSON, in the store and on the command line.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $kind {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $( $word => Ok(Self::$variant), )+
                    _ => Err(UnknownWord { expected: concat!($($word, " "),+) }),
                }
            }
        }
    };
}

words!(Decision { Blocked = "blocked", Observed = "observed", AllowedOwn = "allowed-own", AllowedException = "allowed-exception" });
words!(Way { Dns = "dns", DnsRedirected = "dns-redirected", Dot = "dot", Doh = "doh", Address = "address", TlsGate = "tls-gate" });
words!(Transport { Udp = "udp", Tcp = "tcp", Tls = "tls", Https = "https" });

/// A word that is none of those that are known.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("expected one of: {}", expected.trim_end())]
pub struct UnknownWord {
    expected: &'static str,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A refused question of `client` for `name`, at a fixed time.
    pub(crate) fn attempt(client: &str, name: &str) -> Attempt {
        Attempt {
            time: Timestamp::from_second(1_800_000_000).unwrap(),
            decision: Decision::Blocked,
            way: Way::Dns,
            client: client.parse().unwrap(),
            via: None,
            group: None,
            transport: Some(Transport::Udp),
            protocol: None,
            name: name.parse().ok(),
            qtype: Some(1),
            qclass: Some(1),
            destination: None,
            process: None,
            rule: "ngrok/connect".into(),
            evidence: None,
            action: Some(Action::Nxdomain),
            rcode: Some(3),
        }
    }

    #[test]
    fn a_violation_is_blocked_or_observed_as_the_mode_says() {
        assert_eq!(Decision::of_violation(Mode::Enforce), Decision::Blocked);
        assert_eq!(Decision::of_violation(Mode::Observe), Decision::Observed);
    }

    #[test]
    fn words_are_the_same_in_json_and_elsewhere() {
        for word in ["blocked", "observed", "allowed-own", "allowed-exception"] {
            let decision: Decision = word.parse().unwrap();
            assert_eq!((decision.to_string(), serde_json::to_value(decision).unwrap()), (word.to_owned(), word.into()));
        }
        for word in ["udp", "tcp", "tls", "https"] {
            let transport: Transport = word.parse().unwrap();
            assert_eq!((transport.as_str(), serde_json::to_value(transport).unwrap()), (word, word.into()));
        }
        for word in ["dns", "dns-redirected", "dot", "doh", "address", "tls-gate"] {
            let way: Way = word.parse().unwrap();
            assert_eq!((way.as_str(), serde_json::to_value(way).unwrap()), (word, word.into()));
        }
        let error = "block".parse::<Decision>().unwrap_err().to_string();
        assert_eq!(error, "expected one of: blocked observed allowed-own allowed-exception");
    }
}
