//! What several tests need: the daemon as a process, a scripted upstream, a client that asks.

pub mod client;
pub mod daemon;
pub mod encrypted;
pub mod nameserver;
pub mod upstream;
