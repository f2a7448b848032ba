//! Bytes moved from one socket to another within the kernel, through pipes of which there is a bounded number.
//!
//! Nothing here waits: sockets are in non-blocking mode, and who calls knows when to try again.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};

/// An empty pipe, or one that holds what was taken and not yet given.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes it was asked to hold.
    size: usize,
    held: usize,
}

/// Pipes that nobody uses at the moment, and how many there may be.
#[derive(Debug)]
pub struct Pipes {
    stock: Mutex<Stock>,
    most: usize,
}

#[derive(Debug)]
struct Stock {
    /// The largest last.
    idle: VecDeque<Pipe>,
    made: usize,
    /// What those not yet made may hold together.
    room: usize,
}

/// What a pipe is asked to hold, in bytes: the more the fewer calls and the less CPU time for a byte, by a third from
/// 256 KiB to 1 MiB. It holds references to pages that sockets have received, not copies.
const LARGE: usize = 1 << 20;

/// The same once more large ones would leave too little for the rest.
const SMALL: usize = 128 << 10;

/// What all may hold. A user that has 64 MiB in pipes gets no more than two pages for each further one (pipe(7),
/// pipe-user-pages-soft), and may have other pipes than these.
const ROOM: usize = 60 << 20;

impl Pipes {
    /// None yet, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Self { stock: Mutex::new(Stock { idle: VecDeque::new(), made: 0, room: ROOM }), most }
    }

    /// An empty pipe, one of the large ones if there is one; `None` where there are enough, or the system gives none.
    pub fn take(&self) -> Option<Pipe> {
        let mut stock = self.stock();
        if let Some(pipe) = stock.idle.pop_back() {
            return Some(pipe);
        }
        if stock.made >= self.most {
            return None;
        }
        let left_for_others = (self.most - stock.made - 1).saturating_mul(SMALL);
        let is_large = stock.room >= LARGE.saturating_add(left_for_others);
        let pipe = Pipe::new(if is_large { LARGE } else { SMALL }).ok()?;
        stock.made += 1;
        stock.room = stock.room.saturating_sub(pipe.size);
        Some(pipe)
    }

    /// Gives a pipe back. One that still holds something of a connection is closed with it.
    pub fn give_back(&self, pipe: Pipe) {
        let mut stock = self.stock();
        if pipe.held > 0 {
            stock.made = stock.made.saturating_sub(1);
            stock.room += pipe.size;
        } else if pipe.size == LARGE {
            stock.idle.push_back(pipe);
        } else {
            stock.idle.push_front(pipe);
        }
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipe {
    fn new(size: usize) -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Where the kernel does not give so much, half of it may do, and any serves.
        let sizes = [size, size / 2, size / 4];
        let _ = sizes.iter().find(|size| fcntl(&writer, FcntlArg::F_SETPIPE_SZ(**size as i32)).is_ok());
        Ok(Self { reader, writer, size, held: 0 })
    }

    /// Takes what a socket has, into the empty pipe; 0 at its end.
    ///
    /// # Errors
    /// `WouldBlock` when it has nothing now; `InvalidInput` when it cannot be spliced from.
    pub fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let taken = splice(socket, None, &self.writer, None, self.size, flags)?;
        self.held += taken;
        Ok(taken)
    }

    /// Gives a socket what it takes of that.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing now.
    pub fn empty(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let given = splice(&self.reader, None, socket, None, self.held, flags)?;
        self.held = self.held.saturating_sub(given);
        Ok(given)
    }

    /// Bytes taken and not yet given.
    pub fn held(&self) -> usize {
        self.held
    }
}

/// Has who waits for a TCP socket to be readable wake once it has so many bytes, or its end, or no room for more.
///
/// # Errors
/// When the socket does not take the option.
pub fn wake_at(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&bytes)).map_err(io::Error::other)?;
    // SAFETY: `bytes` is valid for reads of `size` bytes.
    #[allow(unsafe_code, reason = "no safe face for SO_RCVLOWAT in std, tokio, nix or socket2")]
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn what_one_socket_has_reaches_the_other_and_its_end_is_seen() {
        let ((mut client, from), (to, mut server)) = (pair(), pair());
        from.set_nonblocking(true).unwrap();
        let pipes = Pipes::new(1);
        let mut pipe = pipes.take().unwrap();
        assert!(pipes.take().is_none(), "there may be one");
        assert_eq!(pipe.fill(&from).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"hello").unwrap();
        drop(client);
        // Loopback delivers before write returns.
        assert_eq!((pipe.fill(&from).unwrap(), pipe.held()), (5, 5));
        assert_eq!((pipe.empty(&to).unwrap(), pipe.held()), (5, 0));
        assert_eq!(pipe.fill(&from).unwrap(), 0);
        drop(to);
        let mut heard = String::new();
        server.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");
        pipes.give_back(pipe);
        assert!(pipes.take().is_some(), "it is used again");
    }

    #[test]
    fn a_pipe_that_holds_something_is_not_used_again() {
        let (mut client, from) = pair();
        client.write_all(b"secret of another").unwrap();
        let pipes = Pipes::new(1);
        let mut pipe = pipes.take().unwrap();
        pipe.fill(&from).unwrap();
        pipes.give_back(pipe);
        assert_eq!(pipes.take().unwrap().held(), 0);
    }

    #[test]
    fn some_pipes_are_large_and_all_of_them_are_what_one_user_may_have() {
        let pipes = Pipes::new(100);
        let all: Vec<_> = (0..100).map(|_| pipes.take().unwrap()).collect();
        for size in [LARGE, SMALL] {
            let count = all.iter().filter(|pipe| pipe.size == size).count();
            assert!(count > 30, "{count} of {size} bytes");
        }
        assert!(all.iter().map(|pipe| pipe.size).sum::<usize>() <= ROOM);
        assert!(pipes.take().is_none());
        all.into_iter().for_each(|pipe| pipes.give_back(pipe));
        assert_eq!(pipes.take().unwrap().size, LARGE);
    }

    #[test]
    fn a_pipe_that_is_closed_makes_room_for_one_as_large() {
        let (mut client, from) = pair();
        let pipes = Pipes::new(1);
        for _ in 0..=ROOM / LARGE {
            client.write_all(b"something").unwrap();
            let mut pipe = pipes.take().unwrap();
            assert_eq!(pipe.size, LARGE);
            pipe.fill(&from).unwrap();
            pipes.give_back(pipe);
        }
    }
}
