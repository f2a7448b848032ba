//! The kernel's part of sending and receiving datagrams, played for Miri, which has no such calls and is to look at
//! every pointer that `datagram` hands over: what is sent is what is received next.

#![expect(unsafe_code, reason = "reads and writes by the pointers of a header, as the kernel does")]

use std::{cell::RefCell, collections::VecDeque, slice};

use libc::{c_int, c_uint, mmsghdr, msghdr, ssize_t, timespec};

/// One datagram: whom to, from which address of ours, what it says.
struct Sent {
    name: Vec<u8>,
    control: Vec<u8>,
    bytes: Vec<u8>,
}

thread_local! {
    static SENT: RefCell<VecDeque<Sent>> = const { RefCell::new(VecDeque::new()) };
}

/// # Safety
/// As sendmsg(2).
pub(super) unsafe fn sendmsg(_: c_int, header: *const msghdr, _: c_int) -> ssize_t {
    // SAFETY: the caller's.
    let sent = unsafe {
        let header = &*header;
        let part = &*header.msg_iov;
        Sent {
            name: bytes_at(header.msg_name.cast(), header.msg_namelen as usize),
            control: bytes_at(header.msg_control.cast(), header.msg_controllen as usize),
            bytes: bytes_at(part.iov_base.cast(), part.iov_len),
        }
    };
    let length = sent.bytes.len();
    SENT.with_borrow_mut(|queue| queue.push_back(sent));
    length as ssize_t
}

/// # Safety
/// As sendmmsg(2).
pub(super) unsafe fn sendmmsg(fd: c_int, headers: *mut mmsghdr, count: c_uint, _: c_int) -> c_int {
    for index in 0..count as usize {
        // SAFETY: the caller's.
        unsafe {
            let header = &mut *headers.add(index);
            header.msg_len = sendmsg(fd, &raw const header.msg_hdr, 0) as c_uint;
        }
    }
    count as c_int
}

/// # Safety
/// As recvmsg(2).
pub(super) unsafe fn recvmsg(_: c_int, header: *mut msghdr, _: c_int) -> ssize_t {
    let Some(sent) = SENT.with_borrow_mut(VecDeque::pop_front) else { return -1 };
    // SAFETY: the caller's.
    unsafe {
        let header = &mut *header;
        let part = &*header.msg_iov;
        header.msg_namelen = fill(header.msg_name.cast(), header.msg_namelen as usize, &sent.name) as _;
        header.msg_controllen = fill(header.msg_control.cast(), header.msg_controllen as usize, &sent.control) as _;
        fill(part.iov_base.cast(), part.iov_len, &sent.bytes) as ssize_t
    }
}

/// # Safety
/// As recvmmsg(2).
pub(super) unsafe fn recvmmsg(fd: c_int, headers: *mut mmsghdr, count: c_uint, _: c_int, _: *mut timespec) -> c_int {
    for index in 0..count as usize {
        // SAFETY: the caller's.
        unsafe {
            let header = &mut *headers.add(index);
            match recvmsg(fd, &raw mut header.msg_hdr, 0) {
                length @ 0.. => header.msg_len = length as c_uint,
                _ if index > 0 => return index as c_int,
                _ => return -1,
            }
        }
    }
    count as c_int
}

/// # Safety
/// `length` bytes are there to be read.
unsafe fn bytes_at(start: *const u8, length: usize) -> Vec<u8> {
    // SAFETY: the caller's.
    if length == 0 { Vec::new() } else { unsafe { slice::from_raw_parts(start, length) }.to_vec() }
}

/// Writes what fits and tells how much that was.
///
/// # Safety
/// There is room for `room` bytes.
unsafe fn fill(start: *mut u8, room: usize, bytes: &[u8]) -> usize {
    let length = bytes.len().min(room);
    // SAFETY: the caller's.
    unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), length) };
    length
}
