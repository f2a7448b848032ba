//! Every system call that std and tokio lack, each with a safe face. All unsafe code there is stands below here.

pub mod activation;
pub mod datagram;
pub mod file;
pub mod holder;
pub mod interfaces;
pub mod memory;
pub mod namespace;
pub mod netlink;
pub mod peer;
pub mod redirect;
pub mod rights;
pub mod sandbox;
pub mod seqpacket;
pub mod splice;

mod ancillary;
#[cfg(miri)]
mod played;
