//! The keeper: the one process that may change the packet filter, and nothing else.
//!
//! It is a child of the forwarder's, started while that is still root, or of systemd's. It has no network input: it reads the
//! configuration itself, renders and loads the ruleset, and does on the forwarder's request what [`ground`] allows.
//! Requests and replies are numbered messages of fixed length; notices go on a socket of their own.
//!
//! | file | does |
//! |---|---|
//! | `message`, `notice`, `codec` | what is said |
//! | `ground`, `rate`, `removal` | what may be asked, how often, and on whose word |
//! | `book` | what is open to whom |
//! | `sets` | addresses as the kernel's sets have them |
//! | `kernel` | the table: loaded, owned, restored |
//! | `service` | a request, carried out |
//! | `process`, `outset` | the keeper's life; its beginning alone |
//! | `tally` | how many packets nobody was told of |
//! | `owner` | whose a socket is |
//! | `handle`, `leases` | the forwarder's side |

mod book;
mod codec;
mod ground;
mod handle;
mod kernel;
mod leases;
mod message;
mod notice;
mod outset;
mod owner;
mod process;
mod rate;
mod removal;
mod service;
mod sets;
mod tally;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, ops::RangeInclusive, path::PathBuf};

use ipnet::IpNet;

pub use codec::Malformed;
pub use handle::{Keeper, KeeperError, Notices, Standing};
pub use leases::{Keyed, Leases};
pub use message::{Counts, DENIED_AT_ONCE, Done, LONGEST, PERMITTED_AT_ONCE, Process, Refusal, Reply, Request};
pub use notice::{Denied, Notice, Protection, Trouble, Way};
pub use outset::set_up;
pub use process::run;
pub use removal::Word;

use crate::address::Carriers;

/// What the configuration says to the keeper.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The ruleset for `nft -f`: lines that add to what is there, or make it.
    pub script: String,
    /// Are there clients behind us, each with leases of its own? Else this machine is the only one.
    pub gateway: bool,
    /// The prefixes of the network's translators.
    pub nat64: Carriers,
    /// Neither opened nor closed on request: our own, upstream servers', `addresses`, `static`, `exempt`.
    pub never: Vec<IpNet>,
    /// May be opened, never closed: networks of this machine's interfaces, and what half of the Internet depends on.
    pub spared: Vec<IpNet>,
    /// Ports that allowing rules name.
    pub allowed_ports: Vec<u16>,
    /// Clients who may reach an ingress: their connections to it are not ended.
    pub free: Vec<RangeInclusive<IpAddr>>,
    /// Do the rules know the forwarder's sockets by a mark, which it asks for?
    pub marks: bool,
    /// Is the table taken away when the forwarder stops on purpose?
    pub on_stop_remove: bool,
    /// Where root leaves word that the table is to be taken away, which the forwarder's asking does not prove: how the
    /// file's path begins.
    pub removal: PathBuf,
}

/// Where [`Terms::removal`] is: in a folder in which nobody but root can make a file.
pub const REMOVAL: &str = "/run/tunnelwarden-firewall-remove";
