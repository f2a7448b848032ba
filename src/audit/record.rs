//! An attempt as it is written: the one shape that files, followers, the store's search and `attempts --json` share.
//!
//! Text in it is escaped already ([`DomainName`](crate::name::DomainName)'s presentation form) and clients are masked. A
//! record stands for everything that was folded into it: the first line of an attempt has `count` 1 and is written at
//! once, a second with the same `id` and the whole count follows when its window ends. Whoever reads lines keeps, for
//! each `id`, the one with the highest `count`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    Attempt, Decision, Evidence, Process, Transport, Way,
    words::{action_text, class_text, protocol_text, rcode_text, type_text},
};

/// Version of the JSON shape. It grows when a key changes its meaning or goes; new keys do not count.
pub const SCHEMA_VERSION: u32 = 1;

/// One attempt and how often it was repeated. Serializes to one JSON object in the shape of the record.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Record {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// The same for all lines and the store's row of one attempt; grows with time.
    pub id: Id,
    /// When the last attempt that this record knows of was made; equals `last`.
    #[serde(with = "milliseconds")]
    pub time: Timestamp,
    /// What was decided.
    pub decision: Decision,
    /// By which way it was tried.
    pub way: Way,
    /// Who tried, as far as it may be shown.
    pub client: Client,
    /// The forwarder that spoke for the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// The client's group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What the first question, or connection, came over; absent for other packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// The protocol of other packets, as `icmp` or `47`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The first question; of a TLS connection its server name. Absent where nothing was named.
    #[serde(default, skip_serializing_if = "Question::is_empty")]
    pub question: Question,
    /// Where the first was to go, where that was not to us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<SocketAddr>,
    /// The process that made the first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The rule, as `pack/rule`, `policy.block`, `organization.ingress`, `exception` or `gate.unreadable`.
    pub rule: String,
    /// What the rule matched, if not the question's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Matched>,
    /// How it was refused, in the words of `[policy] action`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The response code, as `NXDOMAIN`; absent where the client got no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rcode: Option<String>,
    /// How many attempts this record stands for.
    pub count: u64,
    /// When the first of them was made.
    #[serde(with = "milliseconds")]
    pub first: Timestamp,
    /// When the last of them was made.
    #[serde(with = "milliseconds")]
    pub last: Timestamp,
}

/// Who tried, as far as it may be shown.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Client {
    /// The whole address.
    Address {
        /// The address; v4-mapped ones are v4.
        address: IpAddr,
        /// The port of the first attempt; 0 where it is not known.
        port: u16,
    },
    /// A network: clients are shown as prefixes, or several clients were folded.
    Network {
        /// /24 or /56; /0 for "too many to tell".
        network: IpNet,
    },
    /// A keyed hash of the address or network.
    Hash {
        /// 32 hexadecimal digits.
        hash: String,
    },
}

/// What was asked first.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Question {
    /// The name, escaped; absent when several names were folded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The type, as `AAAA` or `TYPE65280`; absent of what is no question.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub qtype: Option<String>,
    /// The class, as `IN` or `CLASS5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

/// What in the answer a rule matched.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matched {
    /// An alias, escaped.
    Alias(String),
    /// An address.
    Address(IpAddr),
}

/// The number of an attempt: milliseconds since 1970 times 2^19, or one more than the last. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Id(pub u64);

impl Id {
    /// The first id of a moment.
    pub fn at(time: Timestamp) -> Self {
        Self(u64::try_from(time.as_millisecond()).unwrap_or(0) << 19)
    }

    /// An id for a moment that is above this one, whatever the clock did.
    #[must_use]
    pub fn next(self, time: Timestamp) -> Self {
        Self::at(time).max(Self(self.0 + 1))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map(Self).map_err(de::Error::custom)
    }
}

impl Record {
    /// The record of an attempt's first occurrence, with `client` as it may be shown.
    pub(super) fn first(id: Id, attempt: &Attempt, client: Client, name: Option<String>) -> Self {
        let time = whole_milliseconds(attempt.time);
        Self {
            version: SCHEMA_VERSION,
            id,
            time,
            decision: attempt.decision,
            way: attempt.way,
            client,
            via: attempt.via.map(|via| via.to_canonical()),
            group: attempt.group.clone(),
            transport: attempt.transport,
            protocol: attempt.protocol.map(protocol_text),
            question: Question { name, qtype: attempt.qtype.map(type_text), class: attempt.qclass.map(class_text) },
            destination: attempt.destination,
            process: attempt.process.clone(),
            rule: attempt.rule.to_string(),
            evidence: attempt.evidence.as_ref().map(Matched::from),
            action: attempt.action.map(|action| action_text(action).to_owned()),
            rcode: attempt.rcode.map(rcode_text),
            count: 1,
            first: time,
            last: time,
        }
    }

    /// So many more of the same, the last of them then.
    pub(super) fn repeat(&mut self, times: u64, last: Timestamp) {
        self.count += times;
        self.last = self.last.max(whole_milliseconds(last));
        self.time = self.last;
    }

    /// The JSON line, its newline included.
    pub fn json_line(&self) -> String {
        // A record has string keys and no map, so it cannot fail to serialize.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

impl Question {
    /// Does it say nothing?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Client {
    /// `192.0.2.1`, `192.0.2.0/24` or the hash; without the port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { address, .. } => write!(f, "{address}"),
            Self::Network { network } => write!(f, "{network}"),
            Self::Hash { hash } => f.write_str(hash),
        }
    }
}

impl From<&Evidence> for Matched {
    fn from(evidence: &Evidence) -> Self {
        match evidence {
            Evidence::Alias(name) => Self::Alias(name.to_string()),
            Evidence::Address(address) => Self::Address(*address),
        }
    }
}

impl fmt::Display for Matched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(name) => f.write_str(name),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

fn whole_milliseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

/// RFC 3339 in UTC with exactly three digits after the second.
mod milliseconds {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{time:.3}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        Timestamp::deserialize(deserializer)
    }
}
