//! The few system calls that std lacks: many datagrams at once, each with the source address to send it from;
//! waiting for sockets; on which CPU a thread runs; and how long a child process may live. The only unsafe code of the bench.

#![expect(unsafe_code, reason = "sendmmsg, recvmmsg, ppoll, sched_setaffinity and prctl have no face in std")]

use std::{
    io, mem,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    ptr,
    time::Duration,
};

/// Most datagrams carried by one call.
pub(crate) const BATCH: usize = 32;

/// Room for one datagram, in bytes: more than any question or answer of the bench has.
pub(crate) const ROOM: usize = 1500;

/// A datagram on its way out or in.
#[derive(Clone)]
pub(crate) struct Packet {
    pub(crate) bytes: [u8; ROOM],
    pub(crate) length: usize,
    /// Whom it goes to, or who sent it.
    pub(crate) peer: SocketAddrV4,
    /// The address of this machine that it leaves from; unspecified leaves the choice to the kernel. Not told of
    /// what came in.
    pub(crate) source: Ipv4Addr,
}

impl Packet {
    pub(crate) fn new() -> Self {
        let peer = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        Self { bytes: [0; ROOM], length: 0, peer, source: Ipv4Addr::UNSPECIFIED }
    }

    pub(crate) fn content(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Room for one control message with an `in_pktinfo`, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

// SAFETY: CMSG_SPACE only computes.
const CONTROL: usize = unsafe { libc::CMSG_SPACE(mem::size_of::<libc::in_pktinfo>() as u32) } as usize;

// SAFETY: zero is a value of every field: numbers and pointers.
const EMPTY: libc::mmsghdr = unsafe { mem::zeroed() };
// SAFETY: as above.
const NO_NAME: libc::sockaddr_in = unsafe { mem::zeroed() };
const NO_PART: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// Sends up to [`BATCH`] datagrams without waiting; tells how many the kernel took.
pub(crate) fn send(socket: &UdpSocket, packets: &mut [Packet]) -> io::Result<usize> {
    let (mut headers, mut parts, mut names) = ([EMPTY; BATCH], [NO_PART; BATCH], [NO_NAME; BATCH]);
    let mut controls = [Control([0; CONTROL]); BATCH];
    let count = packets.len().min(BATCH);
    for (index, packet) in packets.iter_mut().take(count).enumerate() {
        names[index] = name(packet.peer);
        parts[index] = libc::iovec { iov_base: packet.bytes.as_mut_ptr().cast(), iov_len: packet.length };
        let header = &mut headers[index].msg_hdr;
        header.msg_name = ptr::from_mut(&mut names[index]).cast();
        header.msg_namelen = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
        header.msg_iov = &mut parts[index];
        header.msg_iovlen = 1;
        if !packet.source.is_unspecified() {
            header.msg_control = controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
            // SAFETY: the control buffer has room for exactly this message and is aligned for its header.
            unsafe {
                let message = libc::CMSG_FIRSTHDR(header);
                (*message).cmsg_level = libc::IPPROTO_IP;
                (*message).cmsg_type = libc::IP_PKTINFO;
                (*message).cmsg_len = libc::CMSG_LEN(mem::size_of::<libc::in_pktinfo>() as u32) as _;
                let from = libc::in_addr { s_addr: u32::from(packet.source).to_be() };
                let info =
                    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: libc::in_addr { s_addr: 0 } };
                ptr::write_unaligned(libc::CMSG_DATA(message).cast(), info);
            }
        }
    }
    // SAFETY: the first `count` headers point into `packets` and the arrays above, which live to the end.
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT as _)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives up to [`BATCH`] datagrams: what is there, or with `wait` at least one.
pub(crate) fn receive(socket: &UdpSocket, packets: &mut [Packet], wait: bool) -> io::Result<usize> {
    let (mut headers, mut parts, mut names) = ([EMPTY; BATCH], [NO_PART; BATCH], [NO_NAME; BATCH]);
    let count = packets.len().min(BATCH);
    for (index, packet) in packets.iter_mut().take(count).enumerate() {
        parts[index] = libc::iovec { iov_base: packet.bytes.as_mut_ptr().cast(), iov_len: ROOM };
        let header = &mut headers[index].msg_hdr;
        header.msg_name = ptr::from_mut(&mut names[index]).cast();
        header.msg_namelen = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
        header.msg_iov = &mut parts[index];
        header.msg_iovlen = 1;
    }
    let flags = if wait { libc::MSG_WAITFORONE } else { libc::MSG_DONTWAIT };
    // SAFETY: as in `send`; no timeout is passed.
    let received = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count as libc::c_uint, flags as _, ptr::null_mut())
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    for (index, packet) in packets.iter_mut().take(received).enumerate() {
        packet.length = headers[index].msg_len as usize;
        let ip = Ipv4Addr::from(u32::from_be(names[index].sin_addr.s_addr));
        packet.peer = SocketAddrV4::new(ip, u16::from_be(names[index].sin_port));
    }
    Ok(received)
}

fn name(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        ..NO_NAME
    }
}

/// A set of sockets to wait for.
pub(crate) struct Watch(Vec<libc::pollfd>);

impl Watch {
    pub(crate) fn new(sockets: impl IntoIterator<Item = RawFd>) -> Self {
        let watched = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        Self(sockets.into_iter().map(watched).collect())
    }

    /// Waits until one of them can be read, or the time is over; true for each that can.
    pub(crate) fn wait(&mut self, at_most: Duration) -> impl Iterator<Item = bool> {
        let time = libc::timespec { tv_sec: at_most.as_secs() as _, tv_nsec: at_most.subsec_nanos() as _ };
        // SAFETY: the set is ours for the time of the call; the time is read only; no signal mask is passed.
        let ready = unsafe { libc::ppoll(self.0.as_mut_ptr(), self.0.len() as _, &time, ptr::null()) };
        self.0.iter().map(move |watched| ready > 0 && watched.revents != 0)
    }
}

/// Binds the calling thread, and what it starts from now on, to these CPUs.
pub(crate) fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: the set is a plain bit field, for which zero is a value; CPU_SET checks its bounds.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        cpus.iter().for_each(|&cpu| libc::CPU_SET(cpu, &mut set));
        libc::sched_setaffinity(0, mem::size_of_val(&set), &set)
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks a process that we started to end.
pub(crate) fn terminate(pid: u32) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: a plain system call; the process is our own child, not yet waited for, so the id is still its.
        let _ = unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// Has the kernel end what this command starts when we end, however that happens.
pub(crate) fn end_with_us(command: &mut Command) {
    let bind = || {
        // SAFETY: a plain system call that touches no memory.
        let failed = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec only that one system call is made.
    unsafe { command.pre_exec(bind) };
}
