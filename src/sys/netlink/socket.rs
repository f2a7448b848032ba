//! A netlink socket: requests, acknowledgements and dumps.

use std::{
    io,
    ops::ControlFlow,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recvfrom, send,
        setsockopt, socket, sockopt,
    },
};

use super::message::{Message, Messages, Next, Request};

/// What the kernel holds back for us at most; a batch of ten thousand elements is 2 MiB.
const ROOM: usize = 8 << 20;
/// The largest datagram of a dump is 32 KiB, of a log less.
const DATAGRAM: usize = 128 << 10;

/// A socket to one part of the kernel.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A socket to the kernel's packet filter. What of it owns a table does so as long as it lives.
#[derive(Debug)]
pub struct Netfilter(pub(super) Socket);

impl Netfilter {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel or a sandbox has none.
    pub fn open() -> io::Result<Self> {
        Socket::open(SockProtocol::NetlinkNetFilter, 0).map(Self)
    }

    /// The number by which the kernel tells this socket's doings from others'.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn port(&self) -> io::Result<u32> {
        Ok(getsockname::<NetlinkAddr>(self.0.fd.as_raw_fd())?.pid())
    }
}

impl Socket {
    /// `groups` has a bit for each multicast group to listen to.
    pub(super) fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        // Larger rooms need a right; without it what the system gives has to do.
        setsockopt(&fd, sockopt::SndBufForce, &ROOM).ok();
        setsockopt(&fd, sockopt::RcvBufForce, &ROOM).ok();
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { fd, sequence: 1, buffer: vec![0; DATAGRAM] })
    }

    /// An empty request whose numbers nobody else has.
    pub(super) fn request(&self) -> Request {
        Request::numbered(self.sequence)
    }

    /// Sends requests, `expected` of which ask for an acknowledgement; the first error is the whole's.
    pub(super) fn acknowledged(&mut self, request: &Request, expected: u32) -> io::Result<()> {
        self.send(request)?;
        let (mut error, mut acknowledged) = (None, 0);
        self.drain(|message| {
            if let (true, Some(code)) = (request.is_answered_by(message), message.error()) {
                acknowledged += 1;
                error = error.or((code != 0).then_some(code));
            }
            ControlFlow::Continue(())
        })?;
        match error {
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None if acknowledged >= expected => Ok(()),
            None => Err(io::Error::other("the kernel did not acknowledge")),
        }
    }

    /// Sends one request and hands over every message of the answer. Tells whether nothing changed meanwhile.
    pub(super) fn dump(&mut self, request: &Request, mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        self.send(request)?;
        let (mut outcome, mut whole) = (None, true);
        self.drain(|message| {
            if !request.is_answered_by(message) {
                return ControlFlow::Continue(());
            }
            whole &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
            outcome = match (message.error(), message.is_end_of_dump()) {
                (Some(code), _) => Some(code),
                (None, true) => Some(0),
                (None, false) => {
                    each(message);
                    return ControlFlow::Continue(());
                }
            };
            ControlFlow::Break(())
        })?;
        match outcome {
            Some(0) => Ok(whole),
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None => Err(io::Error::other("the kernel's answer has no end")),
        }
    }

    fn send(&mut self, request: &Request) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(request.count());
        send(self.fd.as_raw_fd(), request.bytes(), MsgFlags::empty())?;
        Ok(())
    }

    /// Hands over everything that is here, until there is no more or `each` has enough.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&Message<'_>) -> Next) -> io::Result<()> {
        while let Some(length) = self.receive()? {
            for message in Messages(self.buffer.get(..length).unwrap_or_default()) {
                if each(&message).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The length of the next datagram in the buffer, if there is one. Processes can send to us too: only what comes
    /// from the kernel counts.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        loop {
            match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut self.buffer) {
                Ok((length, Some(sender))) if sender.pid() == 0 => return Ok(Some(length)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
