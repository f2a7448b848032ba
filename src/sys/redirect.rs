//! Where a redirected TCP connection was meant to go, as connection tracking remembers it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use socket2::SockRef;

/// The address a client dialled before a `redirect` rule brought its connection to us; our own address where none did.
/// `local` is the address at which it arrived: its family says which of both tables is asked. v4-mapped ones are v4.
///
/// # Errors
/// When connection tracking knows nothing of the connection, or is not there.
pub fn original_destination(socket: impl AsFd, local: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(&socket);
    // SO_ORIGINAL_DST at SOL_IP, IP6T_SO_ORIGINAL_DST at SOL_IPV6: the number is the same, the level is not.
    let destination = match local.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    }?;
    let destination = destination.as_socket().ok_or(io::ErrorKind::Unsupported)?;
    Ok(canonical(destination))
}

/// An address without scope and flow, a v4-mapped one as v4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_that_nobody_redirected_has_no_destination_but_ours() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let local = listener.local_addr().unwrap();
            let _client = TcpStream::connect(local).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            // Where nothing is tracked the kernel says so instead.
            let destination = original_destination(&accepted, local);
            assert!(destination.as_ref().map_or(true, |destination| *destination == local), "{destination:?}");
        }
    }
}
