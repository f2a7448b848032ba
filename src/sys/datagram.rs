//! Datagrams many at a time (recvmmsg(2), sendmmsg(2)), each with the address of ours that it was sent to.
//!
//! Where the kernel or a sandbox lacks these calls, the same is done one datagram at a time. And what a connected
//! socket needs to begin anew from another port.

#![expect(unsafe_code, reason = "recvmmsg, sendmmsg and their control messages have no face in std")]

use std::{
    cell::RefCell,
    io, mem,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::Arc,
};

use nix::sys::socket::{setsockopt, sockopt};

pub use super::ancillary::Local;
use super::ancillary::{CONTROL, Control, NAME, Name};
#[cfg(miri)]
use super::played::{recvmmsg, recvmsg, sendmmsg, sendmsg};
#[cfg(not(miri))]
use libc::{recvmmsg, recvmsg, sendmmsg, sendmsg};

/// Most datagrams received at once.
pub const BATCH: usize = 32;

/// Longest datagram received, in bytes; what is longer is cut. DNS questions stay far below.
pub const MAX_DATAGRAM: usize = 4096;

/// Buffers for one round of datagrams and the replies to them; made once, used again.
#[derive(Debug)]
pub struct Batch {
    slots: Vec<Slot>,
    received: usize,
    calls: Calls,
}

/// One datagram as it came.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// What it says.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it was sent to; told only on sockets that [`tell_local_address`] was called for.
    pub to: Option<Local>,
}

/// One datagram and the reply to it.
#[derive(Debug)]
struct Slot {
    bytes: Box<[u8; MAX_DATAGRAM]>,
    length: usize,
    name: Name,
    control: Control,
    from: Option<SocketAddr>,
    to: Option<Local>,
    reply: Vec<u8>,
}

/// Which system calls carry a batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Calls {
    /// One for all.
    Batched,
    /// One for each datagram.
    Single,
}

/// Makes the socket tell for each datagram which address of ours it was sent to: for wildcard binds.
///
/// # Errors
/// When the socket does not take the option.
pub fn tell_local_address(socket: &UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv4() {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    Ok(())
}

/// Sends one datagram from the given address of ours, or from the one the kernel chooses. Within [`corked`] it leaves
/// with the others.
///
/// # Errors
/// As sendmsg(2); on a socket that does not block, also where its buffer is full. What was held back is no error.
pub fn send_from(socket: &Arc<UdpSocket>, bytes: &[u8], to: SocketAddr, local: Option<Local>) -> io::Result<()> {
    let held = CORK.with_borrow_mut(|cork| cork.as_mut().map(|cork| cork.hold(socket, bytes, to, local)));
    if held.is_some() {
        return Ok(());
    }
    let (mut name, mut control) = (Name::EMPTY, Control::EMPTY);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let header = outgoing(&mut part, &mut name, &mut control, to, local);
    // SAFETY: what the header points at lives to the end of this function.
    unsafe { send_one(socket, &header) }
}

/// Does `work`, and then sends together what it sent by [`send_from`] on this thread: a system call for many replies,
/// and a client that is woken once for all of its own. Tells how many the system did not take.
pub fn corked(work: impl FnOnce()) -> usize {
    /// Opens the cork, after a panic too.
    struct Opener<'a>(&'a mut usize);
    impl Drop for Opener<'_> {
        fn drop(&mut self) {
            let cork = CORK.take();
            *self.0 = cork.map_or(0, |mut cork| cork.failed + cork.send());
        }
    }
    let mut failed = 0;
    CORK.set(Some(Cork::default()));
    let opener = Opener(&mut failed);
    work();
    drop(opener);
    failed
}

thread_local! {
    /// What [`corked`] holds back on this thread.
    static CORK: RefCell<Option<Cork>> = const { RefCell::new(None) };
}

/// Datagrams that are to leave together.
#[derive(Debug, Default)]
struct Cork {
    held: Vec<Held>,
    /// What they say, one behind the other.
    bytes: Vec<u8>,
    failed: usize,
}

#[derive(Debug)]
struct Held {
    socket: Arc<UdpSocket>,
    length: usize,
    to: SocketAddr,
    local: Option<Local>,
}

impl Cork {
    fn hold(&mut self, socket: &Arc<UdpSocket>, bytes: &[u8], to: SocketAddr, local: Option<Local>) {
        if self.held.len() == BATCH {
            self.failed += self.send();
        }
        self.bytes.extend_from_slice(bytes);
        self.held.push(Held { socket: Arc::clone(socket), length: bytes.len(), to, local });
    }

    /// Sends what is held. Tells how many the system did not take.
    fn send(&mut self) -> usize {
        let mut bytes = self.bytes.as_mut_slice();
        let mut failed = 0;
        for run in self.held.chunk_by(|a, b| Arc::ptr_eq(&a.socket, &b.socket)) {
            let Some(first) = run.first() else { continue };
            let datagrams = run.iter().map_while(|held| {
                let (own, rest) = mem::take(&mut bytes).split_at_mut_checked(held.length)?;
                bytes = rest;
                Some((held.to, held.local, own))
            });
            failed += send_all(&first.socket, Calls::Batched, datagrams);
        }
        self.held.clear();
        self.bytes.clear();
        failed
    }
}

/// Takes a connected socket its peer and its port, so that connecting it again gives it another one: cheaper than a
/// new socket. What still lies in it came to the old port.
///
/// # Errors
/// As connect(2).
pub fn disconnect(socket: &UdpSocket) -> io::Result<()> {
    // SAFETY: every field of the structure is a number, for which zero is a value; AF_UNSPEC is zero (POSIX: connect
    // with it resets the peer; Linux gives up a port that the kernel chose, too).
    let nobody: libc::sockaddr = unsafe { mem::zeroed() };
    // SAFETY: the address lives until the call returns, and has the length it is said to have.
    let done = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, size_of_val(&nobody) as libc::socklen_t) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// Room for [`BATCH`] datagrams.
    pub fn new() -> Self {
        Self { slots: (0..BATCH).map(|_| Slot::new()).collect(), received: 0, calls: Calls::Batched }
    }

    /// Waits for the first datagram, as the socket blocks or does not, and takes what else is there, up to
    /// [`BATCH`]. What was in the batch before is forgotten. Tells how many came.
    ///
    /// # Errors
    /// As recvmsg(2).
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.received = 0;
        for slot in &mut self.slots {
            slot.reply.clear();
        }
        self.received = match self.calls {
            Calls::Batched => match self.receive_batched(socket) {
                Err(error) if is_missing(&error) => {
                    self.calls = Calls::Single;
                    self.receive_single(socket)?
                }
                received => received?,
            },
            Calls::Single => self.receive_single(socket)?,
        };
        Ok(self.received)
    }

    /// Each datagram that came, with the room for its reply: what is left empty is not answered.
    pub fn exchanges(&mut self) -> impl Iterator<Item = (Datagram<'_>, &mut Vec<u8>)> {
        self.slots.iter_mut().take(self.received).filter_map(|slot| {
            let bytes = slot.bytes.get(..slot.length)?;
            Some((Datagram { bytes, from: slot.from?, to: slot.to }, &mut slot.reply))
        })
    }

    /// Sends the replies, each from the address its datagram was sent to. Tells how many the system did not take.
    pub fn send(&mut self, socket: &UdpSocket) -> usize {
        let slots = self.slots.iter_mut().take(self.received).filter(|slot| !slot.reply.is_empty());
        let answered = slots.filter_map(|slot| Some((slot.from?, slot.to, slot.reply.as_mut_slice())));
        send_all(socket, self.calls, answered)
    }

    fn receive_batched(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut headers = [EMPTY_HEADER; BATCH];
        for ((header, part), slot) in headers.iter_mut().zip(&mut parts).zip(&mut self.slots) {
            header.msg_hdr = slot.incoming(part);
        }
        // SAFETY: the headers point at `parts` and at the buffers of `self.slots`, of the lengths they say;
        // both live, unmoved and otherwise untouched, until the call returns. No timeout is passed.
        let received = unsafe {
            recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE as _,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (header, slot) in headers.iter().zip(&mut self.slots).take(received) {
            slot.note(header.msg_len as usize, &header.msg_hdr);
        }
        Ok(received)
    }

    fn receive_single(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut received = 0;
        for slot in &mut self.slots {
            let flags = if received == 0 { 0 } else { libc::MSG_DONTWAIT };
            let mut part = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            let mut header = slot.incoming(&mut part);
            // SAFETY: the header points at `part` and at the slot's buffers, of the lengths it says; all live
            // until the call returns.
            let length = unsafe { recvmsg(socket.as_raw_fd(), &mut header, flags) };
            match usize::try_from(length) {
                Ok(length) => slot.note(length, &header),
                Err(_) if received > 0 => break,
                Err(_) => return Err(io::Error::last_os_error()),
            }
            received += 1;
        }
        Ok(received)
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            bytes: Box::new([0; MAX_DATAGRAM]),
            length: 0,
            name: Name::EMPTY,
            control: Control::EMPTY,
            from: None,
            to: None,
            reply: Vec::with_capacity(512),
        }
    }

    /// A header that has the kernel write into this slot; valid as long as neither slot nor `part` is touched.
    fn incoming(&mut self, part: &mut libc::iovec) -> libc::msghdr {
        *part = libc::iovec { iov_base: self.bytes.as_mut_ptr().cast(), iov_len: MAX_DATAGRAM };
        let mut header = EMPTY_HEADER.msg_hdr;
        header.msg_name = self.name.0.as_mut_ptr().cast();
        header.msg_namelen = NAME as libc::socklen_t;
        header.msg_iov = part;
        header.msg_iovlen = 1;
        header.msg_control = self.control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL as _;
        header
    }

    /// Takes note of what the kernel wrote.
    fn note(&mut self, length: usize, header: &libc::msghdr) {
        self.length = length.min(MAX_DATAGRAM);
        self.from = self.name.read();
        self.to = self.control.read(header.msg_controllen as _);
    }
}

// SAFETY: every field of the structure is a number or a pointer, for which zero is a value; musl's has private
// padding, so that it cannot be written out field by field.
const EMPTY_HEADER: libc::mmsghdr = unsafe { mem::zeroed() };

/// A header that sends `part`; valid as long as none of what it points at is touched.
fn outgoing(
    part: &mut libc::iovec,
    name: &mut Name,
    control: &mut Control,
    to: SocketAddr,
    local: Option<Local>,
) -> libc::msghdr {
    let mut header = EMPTY_HEADER.msg_hdr;
    header.msg_namelen = name.write(to) as libc::socklen_t;
    header.msg_name = name.0.as_mut_ptr().cast();
    header.msg_iov = part;
    header.msg_iovlen = 1;
    if let Some(local) = local {
        header.msg_controllen = control.write(local) as _;
        header.msg_control = control.0.as_mut_ptr().cast();
    }
    header
}

/// Sends up to [`BATCH`] datagrams. Tells how many the system did not take.
fn send_all<'a>(
    socket: &UdpSocket,
    calls: Calls,
    datagrams: impl Iterator<Item = (SocketAddr, Option<Local>, &'a mut [u8])>,
) -> usize {
    let (mut names, mut controls) = ([Name::EMPTY; BATCH], [Control::EMPTY; BATCH]);
    let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
    let mut headers = [EMPTY_HEADER; BATCH];
    let mut count = 0;
    let rooms = headers.iter_mut().zip(&mut parts).zip(&mut names).zip(&mut controls);
    for ((((header, part), name), control), (to, local, bytes)) in rooms.zip(datagrams) {
        *part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        header.msg_hdr = outgoing(part, name, control, to, local);
        count += 1;
    }
    let mut rest = headers.get_mut(..count).unwrap_or_default();
    let mut failed = 0;
    while !rest.is_empty() {
        // SAFETY: what the headers point at, the datagrams and the arrays above, lives and stays to the end of this
        // function.
        let sent = unsafe {
            let sent = match calls {
                Calls::Batched => send_many(socket, rest),
                Calls::Single => Err(io::ErrorKind::Unsupported.into()),
            };
            // Where it failed for want of the call, the other one will do.
            sent.or_else(|_| rest.first().map_or(Ok(0), |first| send_one(socket, &first.msg_hdr).map(|()| 1)))
        };
        // An error is that of the first datagram alone: a firewall's "no", an unreachable client.
        failed += usize::from(sent.is_err());
        rest = rest.get_mut(sent.unwrap_or(1).max(1)..).unwrap_or_default();
    }
    failed
}

/// # Safety
/// The header is [`outgoing`]'s, and all it points at is alive and unchanged.
unsafe fn send_one(socket: &UdpSocket, header: &libc::msghdr) -> io::Result<()> {
    // SAFETY: as above; the kernel only reads.
    let sent = unsafe { sendmsg(socket.as_raw_fd(), header, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// # Safety
/// The headers are [`outgoing`]'s, and all they point at is alive and unchanged.
unsafe fn send_many(socket: &UdpSocket, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    // SAFETY: as above; the length is the slice's, at most `BATCH`; the kernel writes into the headers alone.
    let sent = unsafe {
        sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as libc::c_uint, libc::MSG_NOSIGNAL as _)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Does the error say that there is no such call? Seccomp filters commonly answer EPERM. Asked of receiving
/// alone, where a packet filter cannot cause it.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use super::*;

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

    fn socket(address: &str) -> UdpSocket {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(PATIENCE).unwrap();
        socket
    }

    /// Everything that works in one way must work in the other.
    fn both_ways(test: impl Fn(Batch)) {
        for calls in [Calls::Batched, Calls::Single] {
            test(Batch { calls, ..Batch::new() });
        }
    }

    fn echo(batch: &mut Batch, server: &UdpSocket, expected: usize) {
        let mut answered = 0;
        while answered < expected {
            answered += batch.receive(server).unwrap();
            for (datagram, reply) in batch.exchanges() {
                reply.extend(datagram.bytes);
            }
            assert_eq!(batch.send(server), 0);
        }
    }

    #[test]
    fn more_datagrams_than_a_batch_holds_are_all_answered() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            both_ways(|mut batch| {
                let (server, client) = (socket(address), socket(address));
                client.connect(server.local_addr().unwrap()).unwrap();
                for number in 0..50_u8 {
                    client.send(&[number; 20]).unwrap();
                }
                echo(&mut batch, &server, 50);
                let mut buffer = [0; 64];
                for number in 0..50_u8 {
                    let length = client.recv(&mut buffer).unwrap();
                    assert_eq!(buffer[..length], [number; 20]);
                }
            });
        }
    }

    #[test]
    fn a_reply_leaves_from_the_address_that_was_asked() {
        both_ways(|mut batch| {
            let server = Arc::new(socket("0.0.0.0:0"));
            tell_local_address(&server).unwrap();
            let port = server.local_addr().unwrap().port();
            for asked in ["127.0.0.2", "127.0.0.3", "127.0.0.1"] {
                let client = socket("127.0.0.1:0");
                let asked = SocketAddr::new(asked.parse().unwrap(), port);
                client.send_to(b"who are you", asked).unwrap();
                assert_eq!(batch.receive(&server).unwrap(), 1);
                let (datagram, reply) = batch.exchanges().next().unwrap();
                assert_eq!(datagram.to, Some(Local { ip: asked.ip(), interface: 0 }));
                assert_eq!(datagram.from, client.local_addr().unwrap());
                reply.extend(b"me");
                let (to, local) = (datagram.from, datagram.to);
                assert_eq!(batch.send(&server), 0);
                send_from(&server, b"and later", to, local).unwrap();
                let mut buffer = [0; 64];
                for text in [b"me".as_slice(), b"and later"] {
                    let (length, from) = client.recv_from(&mut buffer).unwrap();
                    assert_eq!((&buffer[..length], from), (text, asked));
                }
            }
        });
    }

    #[test]
    fn a_v6_wildcard_socket_tells_where_a_datagram_was_sent_to() {
        both_ways(|mut batch| {
            let server = socket("[::]:0");
            tell_local_address(&server).unwrap();
            let client = socket("[::1]:0");
            let asked =
                SocketAddr::new(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16]), server.local_addr().unwrap().port());
            client.send_to(b"x", asked).unwrap();
            batch.receive(&server).unwrap();
            let (datagram, reply) = batch.exchanges().next().unwrap();
            assert_eq!(datagram.to.map(|local| local.ip), Some(asked.ip()));
            reply.extend(b"y");
            assert_eq!(batch.send(&server), 0);
            assert_eq!(client.recv_from(&mut [0; 8]).unwrap(), (1, asked));
        });
    }

    #[test]
    fn silence_sends_nothing_and_replies_of_the_last_round_are_forgotten() {
        both_ways(|mut batch| {
            let (server, client) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
            client.connect(server.local_addr().unwrap()).unwrap();
            client.send(b"answer me").unwrap();
            echo(&mut batch, &server, 1);
            client.send(b"leave me alone").unwrap();
            batch.receive(&server).unwrap();
            assert_eq!(batch.exchanges().count(), 1);
            assert_eq!(batch.send(&server), 0);
            client.send(b"last").unwrap();
            echo(&mut batch, &server, 1);
            let mut buffer = [0; 64];
            let mut heard = || {
                let length = client.recv(&mut buffer).unwrap();
                buffer[..length].to_vec()
            };
            assert_eq!((heard(), heard()), (b"answer me".to_vec(), b"last".to_vec()));
        });
    }

    #[test]
    fn an_overlong_datagram_is_cut_and_an_empty_one_is_shown() {
        both_ways(|mut batch| {
            let (server, client) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
            for length in [0, 1, MAX_DATAGRAM, MAX_DATAGRAM + 1, 60_000] {
                client.send_to(&vec![7; length], server.local_addr().unwrap()).unwrap();
                batch.receive(&server).unwrap();
                let (datagram, _) = batch.exchanges().next().unwrap();
                assert_eq!(datagram.bytes, vec![7; length.min(MAX_DATAGRAM)]);
            }
        });
    }

    #[test]
    fn one_reply_that_cannot_be_sent_is_counted_and_keeps_none_back() {
        both_ways(|mut batch| {
            let (server, client) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
            for _ in 0..3 {
                client.send_to(b"x", server.local_addr().unwrap()).unwrap();
            }
            assert_eq!(batch.receive(&server).unwrap(), 3, "what is sent over loopback is there at once");
            for (index, (_, reply)) in batch.exchanges().enumerate() {
                // The second is longer than any datagram can be.
                reply.resize(if index == 1 { 70_000 } else { index + 1 }, 0);
            }
            assert_eq!(batch.send(&server), 1);
            assert_eq!(client.recv(&mut [0; 8]).unwrap(), 1);
            assert_eq!(client.recv(&mut [0; 8]).unwrap(), 3);
        });
    }

    #[test]
    fn what_is_sent_within_a_cork_leaves_at_its_end_in_order_even_after_a_panic_and_what_cannot_is_counted() {
        let (server, other) = (Arc::new(socket("127.0.0.1:0")), Arc::new(socket("127.0.0.1:0")));
        let client = socket("127.0.0.1:0");
        let to = client.local_addr().unwrap();
        let nothing_is_there = || {
            client.set_nonblocking(true).unwrap();
            assert_eq!(client.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            client.set_nonblocking(false).unwrap();
        };
        // More than leave together at a time, and one too long for any datagram.
        let failed = corked(|| {
            for number in 0..BATCH as u8 {
                let socket = if number % 3 == 0 { &other } else { &server };
                send_from(socket, &[number], to, None).unwrap();
            }
            nothing_is_there();
            send_from(&server, &[0; 70_000], to, None).unwrap();
            send_from(&server, &[BATCH as u8], to, None).unwrap();
        });
        assert_eq!(failed, 1);
        let mut buffer = [0; 8];
        for number in 0..=BATCH as u8 {
            let (length, from) = client.recv_from(&mut buffer).unwrap();
            let from_other = number % 3 == 0 && number < BATCH as u8;
            let socket = if from_other { &other } else { &server };
            assert_eq!((&buffer[..length], from), (&[number][..], socket.local_addr().unwrap()));
        }
        let panicked = std::panic::catch_unwind(|| {
            corked(|| {
                send_from(&server, b"held", to, None).unwrap();
                panic!("a bug");
            })
        });
        assert!(panicked.is_err());
        assert_eq!(client.recv(&mut buffer).unwrap(), 4);
        send_from(&server, b"at once", to, None).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 7);
    }

    #[test]
    fn a_disconnected_socket_goes_on_from_another_port() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = socket(address);
            let to = server.local_addr().unwrap();
            let client = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::DGRAM, None).unwrap();
            let client = UdpSocket::from(client);
            let ports: std::collections::HashSet<_> = (0..50_u8)
                .map(|number| {
                    client.connect(to).unwrap();
                    client.send(&[number]).unwrap();
                    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
                    disconnect(&client).unwrap();
                    from
                })
                .collect();
            assert!(ports.len() > 40, "{ports:?}");
        }
    }

    /// The kernel is played here, and Miri looks at what it is handed.
    #[cfg(miri)]
    #[test]
    fn every_pointer_the_kernel_is_handed_may_be_used_as_it_does() {
        // Any descriptor will do.
        let nowhere = || std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let socket = Arc::new(UdpSocket::from(nowhere()));
        let to = "[fe80::1%3]:53".parse().unwrap_or_else(|_| "[fe80::1]:53".parse().unwrap());
        for local in [None, Some(Local { ip: "127.0.0.2".parse().unwrap(), interface: 0 })] {
            both_ways(|mut batch| {
                send_from(&socket, b"at once", to, local).unwrap();
                let failed = corked(|| {
                    for number in 0..BATCH as u8 + 3 {
                        send_from(&socket, &[number; 20], to, local).unwrap();
                    }
                });
                assert_eq!(failed, 0);
                let mut heard = Vec::new();
                while let Ok(1..) = batch.receive(&socket) {
                    for (datagram, reply) in batch.exchanges() {
                        assert_eq!((datagram.from, datagram.to), (to, local));
                        heard.push(datagram.bytes.to_vec());
                        // One in three is asked again, as a reply.
                        if datagram.bytes.len() == 20 && datagram.bytes[0] % 3 == 0 {
                            reply.extend([200; 30]);
                        }
                    }
                    assert_eq!(batch.send(&socket), 0);
                }
                let count =
                    |first, length| heard.iter().filter(|bytes| (bytes[0], bytes.len()) == (first, length)).count();
                assert_eq!((heard.len(), count(b'a', 7), count(34, 20), count(200, 30)), (1 + 35 + 12, 1, 1, 12));
            });
        }
    }

    #[test]
    fn a_missing_call_is_told_from_other_errors() {
        for (code, missing) in
            [(libc::ENOSYS, true), (libc::EPERM, true), (libc::EAGAIN, false), (libc::ENOBUFS, false)]
        {
            assert_eq!(is_missing(&io::Error::from_raw_os_error(code)), missing);
        }
    }
}
