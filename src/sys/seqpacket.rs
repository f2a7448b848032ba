//! Two sockets that carry whole messages, and descriptors with them: between a process and its child, or to whoever
//! listens at a path. A closed end is heard by the other.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
        getsockopt, recvmsg, sendmsg, socket, socketpair, sockopt,
    },
    unistd::{dup2_stdin, dup2_stdout},
};

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What is said beside an end that is handed over: a message may not be empty.
const END: &[u8] = b"end";

impl Channel {
    /// Both ends. A child gets one as its standard input or output, and takes it with [`Self::from_stdin`] or
    /// [`Self::from_stdout`].
    ///
    /// # Errors
    /// When there is no room for more descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(ours), Self(theirs)))
    }

    /// The end that this process was started with as its standard input, which is empty from here on: no child of our
    /// own gets it.
    ///
    /// # Errors
    /// When it was started with something else.
    pub fn from_stdin() -> io::Result<Self> {
        let channel = Self::taken(io::stdin().as_fd())?;
        dup2_stdin(File::open("/dev/null")?)?;
        Ok(channel)
    }

    /// The same of the standard output, which leads nowhere from here on.
    ///
    /// # Errors
    /// When it was started with something else.
    pub fn from_stdout() -> io::Result<Self> {
        let channel = Self::taken(io::stdout().as_fd())?;
        dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        Ok(channel)
    }

    /// A way to whoever listens at `path`.
    ///
    /// # Errors
    /// When nobody does, or not for us.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let ours = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(ours.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self(ours))
    }

    /// Who has the other end, or made the pair: the user's number, as the kernel knows it.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn peer(&self) -> io::Result<u32> {
        Ok(getsockopt(&self.0, sockopt::PeerCredentials)?.uid())
    }

    /// Hands the other side the end of another channel.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_end(&self, end: Self, deadline: Instant) -> io::Result<()> {
        self.send_with(END, Some(end.as_fd()), deadline)
    }

    /// Takes the end that the other side hands us.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, `InvalidData` for anything else that it says.
    pub fn receive_end(&self, deadline: Instant) -> io::Result<Self> {
        match self.receive_with(&mut [0; END.len()], Some(deadline))? {
            Some((length, Some(end))) if length == END.len() => Self::taken(end.as_fd()),
            Some(_) | None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn taken(fd: BorrowedFd<'_>) -> io::Result<Self> {
        match getsockopt(&fd, sockopt::SockType) {
            Ok(SockType::SeqPacket) => fd.try_clone_to_owned().map(Self),
            Ok(_) | Err(Errno::ENOTSOCK) => Err(io::Error::other("not a channel")),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a message whole.
    ///
    /// # Errors
    /// `BrokenPipe` when the other end is gone, `TimedOut` when it does not read.
    pub fn send(&self, message: &[u8], deadline: Instant) -> io::Result<()> {
        self.send_with(message, None, deadline)
    }

    /// Sends a message whole, and a descriptor of the same file with it.
    ///
    /// # Errors
    /// `BrokenPipe` when the other end is gone, `TimedOut` when it does not read.
    pub fn send_with(&self, message: &[u8], fd: Option<BorrowedFd<'_>>, deadline: Instant) -> io::Result<()> {
        let fd = fd.map(|fd| [fd.as_raw_fd()]);
        let rights = fd.as_ref().map(|fd| ControlMessage::ScmRights(fd));
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(message)], rights.as_slice(), flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, Some(deadline))?,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The length of the next message, which stands in `room`; `None` when the other end is gone. No message is empty.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, `InvalidData` for a message that does not fit.
    pub fn receive(&self, room: &mut [u8], deadline: Option<Instant>) -> io::Result<Option<usize>> {
        Ok(self.receive_with(room, deadline)?.map(|(length, _)| length))
    }

    /// The same, with the descriptor that came with the message. If there were more, the others are closed.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, `InvalidData` for a message that does not fit.
    pub fn receive_with(&self, room: &mut [u8], deadline: Option<Instant>) -> io::Result<Option<Received>> {
        let size = room.len();
        loop {
            match receive(self.0.as_fd(), room) {
                Ok((0, _)) | Err(Errno::ECONNRESET) => return Ok(None),
                Ok((length, _)) if length > size => return Err(io::ErrorKind::InvalidData.into()),
                Ok((length, fds)) => return Ok(Some((length, fds.into_iter().next()))),
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLIN, deadline)?,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait(&self, event: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
        match poll(&mut [PollFd::new(self.0.as_fd(), event)], timeout(deadline)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The length of a message, and what came with it.
pub type Received = (usize, Option<OwnedFd>);

/// Descriptors that can come with a message (`SCM_MAX_FD`). With room for fewer, nix would not tell of those that came.
const MOST: usize = 253;

/// The real length of a message of which as much as there is room for is taken, and all descriptors with it.
fn receive(channel: BorrowedFd<'_>, room: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = cmsg_space!([RawFd; MOST]);
    let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(room)];
    let received = recvmsg::<()>(channel.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for message in received.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel made these descriptors for this call, and nobody else knows them.
            #[allow(unsafe_code, reason = "nix hands over bare numbers")]
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((received.bytes, fds))
}

/// The time until `deadline`, rounded up to what `poll` knows; without one, no end.
pub fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Channel> for Stdio {
    fn from(channel: Channel) -> Self {
        channel.0.into()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _, process::Command};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn messages_stay_apart_and_whole() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(b"one", soon()).unwrap();
        ours.send(b"longer", soon()).unwrap();
        ours.send(b"three", soon()).unwrap();
        let mut room = [0; 5];
        assert_eq!(theirs.receive(&mut room, Some(soon())).unwrap(), Some(3));
        assert_eq!(theirs.receive(&mut room, Some(soon())).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(theirs.receive(&mut room, Some(soon())).unwrap(), Some(5));
        let late = theirs.receive(&mut room, Some(Instant::now())).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        drop(ours);
        assert_eq!(theirs.receive(&mut room, None).unwrap(), None);
        assert_eq!(theirs.send(b"x", soon()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_descriptor_goes_with_its_message_and_no_other() {
        let (ours, theirs) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        ours.send(b"without", soon()).unwrap();
        ours.send_with(b"with", Some(file.as_fd()), soon()).unwrap();
        ours.send_with(b"lost", Some(file.as_fd()), soon()).unwrap();
        let mut room = [0; 8];
        let mut next = || theirs.receive_with(&mut room, Some(soon())).unwrap().unwrap();
        let (length, none) = next();
        assert!(length == 7 && none.is_none());
        let (length, same) = next();
        let [ours, theirs_of_it] = [file, File::from(same.unwrap())].map(|file| file.metadata().unwrap().ino());
        assert_eq!((length, ours), (4, theirs_of_it));
        let before = fs::read_dir("/proc/self/fd").unwrap().count();
        assert_eq!(theirs.receive(&mut room, Some(soon())).unwrap(), Some(4));
        let open = fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(open <= before + 2, "{before} {open}");
    }

    #[test]
    fn as_many_descriptors_as_can_come_are_taken_and_so_closed() {
        let (ours, theirs) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let many = [file.as_raw_fd(); MOST];
        let rights = [ControlMessage::ScmRights(&many)];
        sendmsg::<()>(ours.0.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).unwrap();
        let (length, fds) = receive(theirs.as_fd(), &mut [0; 8]).unwrap();
        assert_eq!((length, fds.len()), (1, MOST));
    }

    #[test]
    fn one_that_nobody_reads_fills_up() {
        let (ours, _theirs) = Channel::pair().unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = (0..1_000_000).find_map(|_| ours.send(&[1; 500], deadline).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_child_takes_its_end_from_its_standard_input() {
        const CHILD: &str = "TUNNELWARDEN_TEST_CHANNEL";
        let mut room = [0; 8];
        if std::env::var_os(CHILD).is_some() {
            let channel = Channel::from_stdin().unwrap();
            assert_eq!(io::read_to_string(io::stdin()).unwrap(), "");
            let length = channel.receive(&mut room, Some(soon())).unwrap().unwrap();
            return channel.send(&room[..length], soon()).unwrap();
        }
        let (ours, theirs) = Channel::pair().unwrap();
        let name = "sys::seqpacket::tests::a_child_takes_its_end_from_its_standard_input";
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", name]).env(CHILD, "1").stdin(theirs).stdout(Stdio::null());
        let mut child = again.spawn().unwrap();
        drop(again);
        ours.send(b"there", soon()).unwrap();
        assert_eq!(ours.receive(&mut room, None).unwrap(), Some(5));
        assert_eq!(ours.receive(&mut room, None).unwrap(), None);
        assert!(child.wait().unwrap().success());
        assert!(Channel::from_stdin().is_err());
    }

    #[test]
    fn an_end_is_handed_over_and_nothing_else_is_taken_for_one() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (near, far) = Channel::pair().unwrap();
        ours.send_end(far, soon()).unwrap();
        let far = theirs.receive_end(soon()).unwrap();
        near.send(b"through", soon()).unwrap();
        assert_eq!(far.receive(&mut [0; 8], Some(soon())).unwrap(), Some(7));
        ours.send(b"end", soon()).unwrap();
        assert_eq!(theirs.receive_end(soon()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        ours.send_end(near, soon()).unwrap();
        drop(ours);
        theirs.receive_end(soon()).unwrap();
        assert_eq!(theirs.receive_end(soon()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(theirs.peer().unwrap(), nix::unistd::geteuid().as_raw());
    }

    #[test]
    fn a_child_has_its_end_and_its_death_is_heard() {
        let (ours, theirs) = Channel::pair().unwrap();
        let mut child = Command::new("head").args(["-c", "5"]).stdin(theirs).stdout(Stdio::piped()).spawn().unwrap();
        ours.send(b"hello", soon()).unwrap();
        let mut room = [0; 8];
        assert_eq!(ours.receive(&mut room, Some(soon())).unwrap(), None);
        child.wait().unwrap();
    }
}
