//! Who is at the other end of a Unix socket, as the kernel says. User and first group std and tokio can tell; the
//! other groups they cannot.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd as _},
};

/// The peer's supplementary groups at the time it connected (SO_PEERGROUPS, Linux 4.13).
///
/// # Errors
/// When the socket has no peer, or the kernel does not know the option.
pub fn groups(socket: impl AsFd) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let room = mem::size_of_val(groups.as_slice());
        let mut size = libc::socklen_t::try_from(room).map_err(io::Error::other)?;
        // SAFETY: `groups` is valid for writes of `size` bytes, and `size` is a valid socklen_t.
        #[allow(unsafe_code, reason = "no safe face for SO_PEERGROUPS in std, tokio, nix or socket2")]
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        let count = usize::try_from(size).map_err(io::Error::other)? / mem::size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel tells how much room it wants.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_peer_has_the_groups_of_its_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let expected: Vec<_> = nix::unistd::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        assert_eq!(groups(&ours).unwrap(), expected);
    }
}
