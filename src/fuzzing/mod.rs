//! What must hold of every parser, whatever the bytes: one function for each, which panics where something does not.
//!
//! They are called in two ways: by the fuzzers, for as long as somebody likes (`fuzz/`, which sets `cfg(fuzzing)`), and by
//! the tests below on changed seeds, for a moment. In no other build is any of this compiled, so it may reach what is
//! private to the crate, and nobody can come to depend on it.
//!
//! | file | reads |
//! |---|---|
//! | `names` | names, on the wire and as text |
//! | `packets` | what clients and upstream servers send |
//! | `hellos` | what stands in front: TLS hellos, PROXY headers |
//! | `files` | configuration, packs, lists, what the system says of itself |
//! | `messages` | what keeper, kernel and control socket say |
//! | `decisions` | the compiled policy beside the literal one |
//! | `gateway` | a question's ways through the whole of it |
//! | `opinion` | hickory's reading beside ours |

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "what does not hold has to be seen"
)]

mod decisions;
mod files;
mod gateway;
mod hellos;
mod messages;
mod names;
mod opinion;
mod packets;
#[cfg(test)]
mod tests;

pub use self::{
    decisions::policy_against_naive,
    files::{address_list, config, learned_addresses, list_file, listing, pack, resolv_conf},
    gateway::fast_against_slow,
    hellos::{client_hello, proxy_header},
    messages::{control_message, keeper_message, netlink_message},
    names::name,
    opinion::hickory_agrees,
    packets::{question, stream, upstream_answer},
};

/// The name of a program in `fuzz/`, and of the folder of its seeds, with what it calls.
pub type Target = (&'static str, fn(&[u8]));

/// Every one there is.
pub const TARGETS: [Target; 19] = [
    ("address_list", address_list),
    ("client_hello", client_hello),
    ("config", config),
    ("control_message", control_message),
    ("fast_against_slow", fast_against_slow),
    ("hickory_agrees", hickory_agrees),
    ("keeper_message", keeper_message),
    ("learned_addresses", learned_addresses),
    ("list_file", list_file),
    ("listing", listing),
    ("name", name),
    ("netlink_message", netlink_message),
    ("pack", pack),
    ("policy_against_naive", policy_against_naive),
    ("proxy_header", proxy_header),
    ("question", question),
    ("resolv_conf", resolv_conf),
    ("stream", stream),
    ("upstream_answer", upstream_answer),
];
