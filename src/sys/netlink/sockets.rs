//! Sockets of this machine: whose one is, and ends for those that nobody may have any more (SOCK_DIAG).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use nix::sys::socket::SockProtocol;

use super::{
    message::{Message, Request, number},
    socket::Socket,
};

const BY_FAMILY: u16 = 20; // SOCK_DIAG_BY_FAMILY
const DESTROY: u16 = 21; // SOCK_DESTROY
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// Where it stands in `struct inet_diag_msg`, and where user and inode do.
const MESSAGE_ID: usize = 4;
const MESSAGE_USER: usize = 64;
const MESSAGE_INODE: usize = 68;
const MESSAGE: usize = 72;
const CGROUP: u16 = 21; // INET_DIAG_CGROUP_ID, Linux 5.7
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Which sockets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A socket, and whose it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FoundSocket {
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; unspecified where it has none.
    pub remote: SocketAddr,
    /// The user.
    pub user: u32,
    /// By this number processes have it open.
    pub inode: u32,
    /// The number of its control group, where the kernel tells.
    pub cgroup: Option<u64>,
    id: [u8; ID],
}

/// The kernel's table of sockets.
#[derive(Debug)]
pub struct SocketTable(Socket);

impl SocketTable {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel or a sandbox has none.
    pub fn open() -> io::Result<Self> {
        Socket::open(SockProtocol::NetlinkSockDiag, 0).map(Self)
    }

    /// The socket whose packets go from `local` to `remote`. `None` where it is gone, or not in this network namespace.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn find(
        &mut self,
        transport: Transport,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> io::Result<Option<FoundSocket>> {
        // Of datagrams the kernel takes the ends as a packet to the socket has them.
        let (first, second) = match transport {
            Transport::Tcp => (local, remote),
            Transport::Udp => (remote, local),
        };
        let mut request = self.0.request();
        ask(&mut request, libc::NLM_F_ACK, transport, family(local), &id(first, second));
        let mut found = None;
        match self.0.dump(&request, |message| found = read(message)) {
            Ok(_) => Ok(found.filter(|found| is_at(found, local))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The socket at `local`, whatever its other end. A datagram that was redirected names another than its socket does.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn find_at(&mut self, transport: Transport, local: SocketAddr) -> io::Result<Option<FoundSocket>> {
        let mut found = None;
        // An IPv6 socket may have sent an IPv4 packet.
        for family in [family(local), libc::AF_INET6] {
            self.each(transport, family, local.port(), |socket| {
                if is_at(&socket, local) {
                    found = found.or(Some(socket));
                }
            })?;
        }
        Ok(found)
    }

    /// The TCP sockets with another end that are `wanted`.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn connected(&mut self, mut wanted: impl FnMut(&FoundSocket) -> bool) -> io::Result<Vec<FoundSocket>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.each(Transport::Tcp, family, 0, |socket| {
                if !socket.remote.ip().is_unspecified() && wanted(&socket) {
                    found.push(socket);
                }
            })?;
        }
        Ok(found)
    }

    /// Ends TCP sockets; those who have them hear of an abort. Tells how many there still were.
    ///
    /// # Errors
    /// When there is no right to, or the kernel was built without (CONFIG_INET_DIAG_DESTROY): `EOPNOTSUPP`.
    pub fn destroy(&mut self, sockets: &[FoundSocket]) -> io::Result<usize> {
        sockets.iter().try_fold(0, |count, socket| {
            let family = if socket.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            Ok(count + usize::from(self.destroy_one(family, &socket.id)?))
        })
    }

    fn destroy_one(&mut self, family: i32, id: &[u8; ID]) -> io::Result<bool> {
        let mut request = self.0.request();
        request.message(DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK);
        request.push(&question(Transport::Tcp, family, id));
        match self.0.acknowledged(&request, 1) {
            Ok(()) => Ok(true),
            // It ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `port` is the sockets' own; 0 for any.
    fn each(
        &mut self,
        transport: Transport,
        family: i32,
        port: u16,
        mut each: impl FnMut(FoundSocket),
    ) -> io::Result<()> {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let mut request = self.0.request();
        let id = id(SocketAddr::new(any.ip(), port), any);
        ask(&mut request, libc::NLM_F_DUMP, transport, family, &id);
        self.0.dump(&request, |message| read(message).into_iter().for_each(&mut each)).map(drop)
    }
}

fn ask(request: &mut Request, flags: i32, transport: Transport, family: i32, id: &[u8; ID]) {
    request.message(BY_FAMILY, libc::NLM_F_REQUEST | flags).push(&question(transport, family, id));
}

/// `struct inet_diag_req_v2`, for sockets in every state.
fn question(transport: Transport, family: i32, id: &[u8; ID]) -> Vec<u8> {
    let protocol = match transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Udp => libc::IPPROTO_UDP,
    };
    let byte = |number: i32| u8::try_from(number).unwrap_or_default();
    [&[byte(family), byte(protocol), 0, 0][..], &u32::MAX.to_ne_bytes(), id].concat()
}

fn id(first: SocketAddr, second: SocketAddr) -> [u8; ID] {
    let mut id = [0; ID];
    let mut fill = |at: usize, bytes: &[u8]| {
        if let Some(room) = id.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    };
    fill(0, &first.port().to_be_bytes());
    fill(2, &second.port().to_be_bytes());
    for (at, ip) in [(4, first.ip()), (20, second.ip())] {
        match ip {
            IpAddr::V4(v4) => fill(at, &v4.octets()),
            IpAddr::V6(v6) => fill(at, &v6.octets()),
        }
    }
    fill(40, &NO_COOKIE);
    id
}

fn family(address: SocketAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn is_at(socket: &FoundSocket, local: SocketAddr) -> bool {
    let own = socket.local.ip().to_canonical();
    socket.local.port() == local.port() && (own == local.ip().to_canonical() || own.is_unspecified())
}

pub(super) fn read(message: &Message<'_>) -> Option<FoundSocket> {
    let family = i32::from(*message.body.first()?);
    let id: [u8; ID] = number(message.body.get(MESSAGE_ID..)?)?;
    let end = |port: usize, ip: usize| {
        let port = u16::from_be_bytes(number(id.get(port..)?)?);
        let ip = match family {
            libc::AF_INET => IpAddr::from(number::<4>(id.get(ip..)?)?),
            libc::AF_INET6 => IpAddr::from(number::<16>(id.get(ip..)?)?),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    };
    let own = |at: usize| message.body.get(at..).and_then(number).map(u32::from_ne_bytes);
    Some(FoundSocket {
        local: end(0, 4)?,
        remote: end(2, 20)?,
        user: own(MESSAGE_USER)?,
        inode: own(MESSAGE_INODE)?,
        cgroup: message.attributes(MESSAGE).value(CGROUP).and_then(number).map(u64::from_ne_bytes),
        id,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream, UdpSocket},
        os::unix::fs::MetadataExt as _,
    };

    use nix::unistd::getuid;
    use proptest::prelude::*;

    use super::*;
    use crate::sys::netlink::testing::within_namespace;

    fn inode_of(socket: &impl std::os::fd::AsRawFd) -> u64 {
        std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino()
    }

    #[test]
    fn a_socket_is_found_by_its_ends() {
        within_namespace(|| {
            let mut table = SocketTable::open().unwrap();
            let server = UdpSocket::bind("127.0.0.1:0").unwrap();
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            let (local, remote) = (client.local_addr().unwrap(), server.local_addr().unwrap());
            let found = table.find(Transport::Udp, local, remote).unwrap().unwrap();
            assert_eq!((u64::from(found.inode), found.user), (inode_of(&client), getuid().as_raw()));
            assert!(found.cgroup.is_some(), "{found:?}");
            client.connect("127.0.0.1:9").unwrap();
            assert_eq!(table.find(Transport::Udp, local, remote).unwrap(), None);
            assert_eq!(table.find_at(Transport::Udp, local).unwrap().map(|found| found.inode), Some(found.inode));
            let listener = TcpListener::bind("[::1]:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let ends = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let found = table.find(Transport::Tcp, ends.0, ends.1).unwrap().unwrap();
            assert_eq!((u64::from(found.inode), found.local, found.remote), (inode_of(&stream), ends.0, ends.1));
            drop((client, server));
            assert_eq!(table.find_at(Transport::Udp, local).unwrap(), None);
        });
    }

    #[test]
    fn an_idle_connection_ends_when_it_is_destroyed() {
        within_namespace(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let other = TcpListener::bind("127.0.0.1:0").unwrap();
            let _kept = TcpStream::connect(other.local_addr().unwrap()).unwrap();
            let target = stream.peer_addr().unwrap();
            let mut table = SocketTable::open().unwrap();
            let found = table.connected(|socket| socket.remote == target).unwrap();
            assert_eq!(table.destroy(&found).unwrap(), 1);
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        });
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(family in prop::sample::select(vec![2_u8, 10, 7]), body in prop::collection::vec(any::<u8>(), 0..120)) {
            let body = [&[family][..], &body].concat();
            let _ = read(&Message { kind: BY_FAMILY, flags: 0, sequence: 0, port: 0, body: &body });
        }
    }
}
