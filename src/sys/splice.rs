//! Bytes moved from one socket to another within the kernel, through pipes of which there is a bounded number.
//!
//! Nothing here waits: sockets are in non-blocking mode, and who calls knows when to try again.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};

/// What a pipe is asked to hold, in bytes; the kernel may give less.
pub const PIPE: usize = 256 << 10;

/// An empty pipe, or one that holds what was taken and not yet given.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    held: usize,
}

/// Pipes that nobody uses at the moment, and how many there may be. With as many of [`PIPE`] bytes as 256, a user has
/// used up what it may have beyond a page or two each (pipe(7), pipe-user-pages-soft).
#[derive(Debug)]
pub struct Pipes {
    stock: Mutex<Stock>,
    most: usize,
}

#[derive(Debug, Default)]
struct Stock {
    idle: Vec<Pipe>,
    made: usize,
}

impl Pipes {
    /// None yet, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Self { stock: Mutex::default(), most }
    }

    /// An empty pipe; `None` where there are enough, or the system gives none.
    pub fn take(&self) -> Option<Pipe> {
        let mut stock = self.stock();
        if let Some(pipe) = stock.idle.pop() {
            return Some(pipe);
        }
        if stock.made >= self.most {
            return None;
        }
        let pipe = Pipe::new().ok()?;
        stock.made += 1;
        Some(pipe)
    }

    /// Gives a pipe back. One that still holds something of a connection is closed with it.
    pub fn give_back(&self, pipe: Pipe) {
        let mut stock = self.stock();
        if pipe.held == 0 {
            stock.idle.push(pipe);
        } else {
            stock.made = stock.made.saturating_sub(1);
        }
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // A smaller one serves too.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
        Ok(Self { reader, writer, held: 0 })
    }

    /// Takes what a socket has, into the empty pipe; 0 at its end.
    ///
    /// # Errors
    /// `WouldBlock` when it has nothing now; `InvalidInput` when it cannot be spliced from.
    pub fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let taken = splice(socket, None, &self.writer, None, PIPE, flags)?;
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
}
