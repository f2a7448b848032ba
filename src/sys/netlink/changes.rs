//! Who changed a table: the kernel's notices of every change to nftables.

use std::{
    io,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::socket::SockProtocol;

use super::{
    message::Message,
    socket::Socket,
    tables::{NFGENMSG, inet, nftables},
};

/// In every message about tables and what is in them, the first attribute is the table's name.
const TABLE: u16 = 1;

/// A change to the table one listens for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// The socket of this number changed it.
    By(u32),
    /// There was more than the kernel keeps for us: anybody may have changed anything.
    Unknown,
}

/// Hears of every change since it was opened.
#[derive(Debug)]
pub struct Changes {
    socket: Socket,
    table: String,
}

impl Changes {
    /// Listens for changes to a table of family `inet`.
    ///
    /// # Errors
    /// When there is no right to listen.
    pub fn of(table: &str) -> io::Result<Self> {
        let group = u32::try_from(1 << (libc::NFNLGRP_NFTABLES - 1)).unwrap_or_default();
        let socket = Socket::open(SockProtocol::NetlinkNetFilter, group)?;
        Ok(Self { socket, table: table.to_owned() })
    }

    /// The changes that are known by now and not told yet.
    ///
    /// # Errors
    /// When the socket broke.
    pub fn read(&mut self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        let table = &self.table;
        loop {
            let outcome = self.socket.drain(|message| {
                if concerns(message, table) && changes.last() != Some(&Change::By(message.port)) {
                    changes.push(Change::By(message.port));
                }
                ControlFlow::Continue(())
            });
            match outcome {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changes.push(Change::Unknown),
                outcome => return outcome.map(|()| changes),
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A new generation of the whole is said at the end of each change, and names no table.
fn concerns(message: &Message<'_>, table: &str) -> bool {
    message.kind != nftables(libc::NFT_MSG_NEWGEN)
        && message.body.first() == Some(&inet())
        && message.attributes(NFGENMSG).text(TABLE).is_some_and(|name| name == table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::{
        Netfilter,
        testing::{nft, within_namespace},
    };

    #[test]
    fn changes_to_a_table_are_heard_with_whose_they_are() {
        within_namespace(|| {
            let mut changes = Changes::of("watched").unwrap();
            let mut ours = Netfilter::open().unwrap();
            ours.create_table("other").unwrap();
            assert_eq!(changes.read().unwrap(), []);
            ours.create_table("watched").unwrap();
            assert_eq!(changes.read().unwrap(), [Change::By(ours.port().unwrap())]);
            nft("delete table inet watched").unwrap();
            let heard = changes.read().unwrap();
            assert!(matches!(heard[..], [Change::By(port)] if port != ours.port().unwrap()), "{heard:?}");
        });
    }
}
