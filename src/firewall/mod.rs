//! The packet filter as a value: what stands in the kernel so that nobody goes round the forwarder.
//!
//! | file | does |
//! |---|---|
//! | `options` | what the configuration says |
//! | `sets` | the sets that rules look addresses up in: names and types |
//! | `ruleset` | all of it, made from options and policy; its text is what `nft -f` reads |
//! | `chains` | the rules, in the order that counts |
//! | `passing` | how other people's forward rules see what is turned to the gate |
//! | `script` | how sets, chains and rules are written, so that a reload leaves no gap |
//! | `foreign` | other people's rules that stand in our way |
//! | `kernel` | loads the text, takes it away, compares it with what is there |
//! | `user` | the forwarder's user |
//! | `listing` | what `nft` lists, taken apart to be compared |
//!
//! Everything but `kernel` and `user` is pure. Elements that come and go while the daemon runs are not put in here.

mod chains;
mod foreign;
mod kernel;
mod listing;
mod options;
mod passing;
mod ruleset;
mod script;
pub mod sets;
mod user;

pub use self::{
    foreign::{Obstacle, obstacles},
    kernel::{Failure, apply, compare, compare_with_none, load, remove, rules_of_all, without_table},
    listing::Difference,
    options::{Mode, OnStop, Options, OwnSockets},
    ruleset::{Ruleset, free_clients},
    user::{NoUser, user_of},
};

#[cfg(any(test, fuzzing))]
pub(crate) use self::listing::Listing;

/// Our table, of family `inet`. Nobody else's is ever touched.
pub const TABLE: &str = "tunnelwarden";

/// Where rules tell of packets: the NFLOG group.
pub const LOG_GROUP: u16 = 20053;

/// The mark of the forwarder's own sockets, where they have one. None of the bits that kube-proxy, Cilium or Tailscale
/// look at alone.
pub const MARK: u32 = 0x7477_0000;

/// The conntrack zone of the forwarder's own connections.
pub const ZONE: u16 = 20053;
