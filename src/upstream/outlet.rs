//! How our own sockets come to be known to the rules that turn everybody else's back to us.

use std::{
    fmt, io,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Makes every socket towards somebody else. Without a mark the rules know it by its user, or there are none.
#[derive(Clone, Default)]
pub struct Outlet(Option<Arc<Mark>>);

/// Has a socket marked that nothing has been sent from yet. It may block for some milliseconds.
type Mark = dyn Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync;

impl Outlet {
    /// One whose sockets are marked. Where that fails there is no socket: its packets would come back to us.
    pub fn marking(mark: impl Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(mark)))
    }

    /// A socket for datagrams from and to this server alone, at a port that the kernel chose.
    pub(super) fn udp(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(server), kind, Some(Protocol::UDP))?;
        self.mark(socket.as_fd())?;
        // Connecting an unbound socket makes the kernel choose address and port.
        socket.connect(&server.into())?;
        Ok(socket.into())
    }

    /// A connection that does not gather small writes. Takes as long as it takes.
    ///
    /// # Errors
    /// When the socket cannot be marked, or the server not be reached.
    pub async fn tcp(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        self.mark(socket.as_fd())?;
        socket.set_nodelay(true)?;
        socket.connect(server).await
    }

    fn mark(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |mark| mark(socket))
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Outlet(marking)" } else { "Outlet" })
    }
}
