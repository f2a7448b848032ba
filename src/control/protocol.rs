//! What is said over the control socket.

use serde::{Deserialize, Serialize};

use crate::{
    ingress,
    keeper::{Counts, Standing},
};

/// What a client asks for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Read the files again.
    Reload {
        /// Also take a change that removes a pack, an own ingress or over a fifth of the rules.
        accept: bool,
    },
    /// Write everything recorded so far to file and store.
    Flush,
    /// Say which ingress addresses were learned.
    Learned,
    /// Say how the firewall stands; or put its rules in force anew, or take them away, for root alone.
    Firewall {
        /// What is to become of them; nothing.
        change: Option<Change>,
    },
    /// Send each attempt as it is recorded, a JSON object a line, until the client goes.
    Follow,
}

/// What is to become of the firewall's rules.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// They are made from the files, and put in force.
    Apply,
    /// They are taken away. The daemon goes on without them until it is told otherwise.
    Remove,
}

/// How the firewall stands, and what came of a change.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "firewall", rename_all = "kebab-case")]
pub enum Firewall {
    /// This daemon has none.
    None,
    /// It has one.
    Held {
        /// The table.
        standing: Standing,
        /// What is in it.
        counts: Counts,
    },
    /// The change was not made, or the keeper does not say.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// What came of a reload.
    Reload(ReloadReport),
    /// Everything recorded before the request is written.
    Flushed,
    /// What was learned.
    Learned(ingress::Report),
    /// How the firewall stands now.
    Firewall(Firewall),
    /// Every attempt from now on follows, a line each.
    Following,
    /// The request was not understood or not permitted.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What came of a reload.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReloadReport {
    /// Whether the files are in force now.
    pub outcome: Outcome,
    /// Rules in force after it.
    pub rules: usize,
    /// Client groups in force after it.
    pub groups: usize,
    /// Exceptions in force after it, past ones among them.
    pub exceptions: usize,
    /// What differs from before, a line each.
    pub changes: Vec<String>,
    /// Everything that is wrong with the files, warnings among it.
    pub problems: Vec<String>,
    /// Changes that only a restart brings about, a line each.
    pub restart: Vec<String>,
}

/// Whether the files are in force.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// They are.
    Loaded,
    /// They are broken; what was in force before still is.
    Refused,
    /// They are sound, but take away so much that somebody has to say yes: `reload --accept` or SIGHUP.
    Held,
}
