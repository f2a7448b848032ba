//! A rule as it is shown: its name, its reason, where it was read, and what a refused client is told.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer};

use crate::problem::{Place, printable};

/// Longest text of an Extended DNS Error that we send, in bytes: a refusal must fit beside its SOA.
pub const MAX_REFUSAL: usize = 199;

/// One rule: a pack's, a list of local patterns, an own ingress list or an exception.
#[derive(Clone, Debug)]
pub struct Rule {
    /// `pack/rule`, `policy.block`, `clients.NAME.block`, `organization.ingress`, `exceptions`.
    pub label: Arc<str>,
    /// Why it exists.
    pub reason: Box<str>,
    /// Where it was read; a pattern's own place is told by `explain`.
    pub place: Option<Place>,
    /// What a firewall opens for the names it allows.
    pub ports: Box<[u16]>,
    /// Text of the Extended DNS Error.
    pub(super) refusal: Box<str>,
}

/// Where a pattern or network was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// In a configuration file or pack.
    Place(Place),
    /// In a file of names.
    Line {
        /// The file.
        path: Box<str>,
        /// Counted from 1.
        line: u32,
    },
}

impl Rule {
    pub(super) fn new(label: String, reason: &str, place: Option<Place>, contact: Option<&str>) -> Self {
        let refusal = refusal(&label, reason, contact).into();
        Self { label: label.into(), reason: reason.into(), place, ports: Box::default(), refusal }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(place) => place.fmt(f),
            Self::Line { path, line } => write!(f, "{}:{line}", printable(path)),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Rule, reason and contact; where that is too long the reason is cut, then the whole.
fn refusal(label: &str, reason: &str, contact: Option<&str>) -> String {
    let (label, reason) = (printable(label), printable(reason));
    let contact = contact.map(|contact| format!("; contact {}", printable(contact))).unwrap_or_default();
    let room = MAX_REFUSAL.saturating_sub(label.len() + 2 + contact.len());
    cut(&format!("{label}: {}{contact}", cut(&reason, room)), MAX_REFUSAL).to_owned()
}

/// At most so many bytes, whole characters.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_rule_reason_and_contact_within_its_bytes() {
        let short = refusal("ngrok/connect", "ngrok agent ingress", Some("netsec@acme.example"));
        assert_eq!(short, "ngrok/connect: ngrok agent ingress; contact netsec@acme.example");
        assert_eq!(refusal("a/b", "why", None), "a/b: why");
        for filler in ["x", "ü", "\u{1b}"] {
            let long = refusal("a/b", &filler.repeat(400), Some("netsec@acme.example"));
            assert!(long.len() <= MAX_REFUSAL && long.ends_with("; contact netsec@acme.example"), "{long}");
            assert!(!long.contains('\u{1b}'), "{long:?}");
        }
        assert!(refusal(&"l".repeat(300), "why", Some(&"c".repeat(300))).len() <= MAX_REFUSAL);
    }
}
