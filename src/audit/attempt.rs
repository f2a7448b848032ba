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
    /// What the question came over.
    pub transport: Transport,
    /// The name asked for.
    pub name: DomainName,
    /// The type asked for, as its number.
    pub qtype: u16,
    /// The class asked for, as its number; 1 is IN.
    pub qclass: u16,
    /// The rule, as `pack/rule`, `policy.block`, `organization.ingress` or `exception`.
    pub rule: Arc<str>,
    /// What the rule matched, if not the question's name.
    pub evidence: Option<Evidence>,
    /// How it was refused; `None` where it was not.
    pub action: Option<Action>,
    /// The response code the client got; `None` where it got none.
    pub rcode: Option<u16>,
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
}

/// What the question came over.
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
        let Self { client, name, rule, decision, way, .. } = self;
        Likeness { client: client.ip(), name: name.as_name(), rule, decision: *decision, way: *way }
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
words!(Way { Dns = "dns" });
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
            transport: Transport::Udp,
            name: name.parse().unwrap(),
            qtype: 1,
            qclass: 1,
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
        assert_eq!(serde_json::to_value(Way::Dns).unwrap(), Way::Dns.as_str());
        let error = "block".parse::<Decision>().unwrap_err().to_string();
        assert_eq!(error, "expected one of: blocked observed allowed-own allowed-exception");
    }
}
