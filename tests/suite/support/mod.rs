//! What several tests need: the daemon as a process, a scripted upstream, a client that asks.

pub mod bed;
pub mod client;
pub mod daemon;
pub mod dice;
pub mod encrypted;
pub mod load;
#[allow(dead_code, reason = "shared with the library's own tests of upstreams, which need more of it")]
pub mod nameserver;
pub mod upstream;
