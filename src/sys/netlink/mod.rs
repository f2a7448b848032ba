//! Netlink, as much of it as a firewall needs, without a C library.
//!
//! | file | speaks |
//! |---|---|
//! | `message` | headers and attributes: the one place where bytes are walked |
//! | `socket` | requests and what comes back |
//! | `tables` | nftables: a table, who owns it, what stands in it |
//! | `elements` | nftables: elements of sets |
//! | `changes` | nftables: who changed a table |
//! | `packets` | the log of packets (NFLOG) |
//! | `flows` | connection tracking |
//! | `sockets` | sockets of this machine (SOCK_DIAG) |
//!
//! Numbers come from the kernel's `include/uapi/linux/netlink.h`, `netfilter/*.h`, `inet_diag.h` and `sock_diag.h`.
//! The kernel handles a request while it is sent, and goes on with a dump while it is read, so nothing here waits.

mod changes;
mod elements;
mod flows;
mod message;
mod packets;
mod socket;
mod sockets;
mod tables;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(any(test, fuzzing))]
mod walk;

pub use changes::{Change, Changes};
pub use elements::{Element, Key};
pub use flows::{Flow, Flows};
pub use packets::{LoggedPacket, PacketLog};
pub use socket::Netfilter;
pub use sockets::{FoundSocket, SocketTable, Transport};
pub use tables::{Adoption, Table};
#[cfg(any(test, fuzzing))]
pub(crate) use walk::walk;
