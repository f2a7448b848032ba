//! Sockets that systemd opened for us: each has to be one that the configuration asks for.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
};

use socket2::{Socket, Type};

use super::OpenError;

/// What was passed and is not taken yet.
#[derive(Debug, Default)]
pub struct Given(Vec<(Place, Socket)>);

/// Where a socket hears.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    Udp(SocketAddr),
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// Nothing that we could listen at.
    Other,
}

impl Given {
    /// Looks at what was passed.
    ///
    /// # Errors
    /// When it is no socket.
    pub fn of(passed: Vec<OwnedFd>) -> io::Result<Self> {
        let sockets = passed.into_iter().map(|passed| {
            let socket = Socket::from(passed);
            // systemd makes them blocking, unless it is told otherwise (systemd.exec(5), NonBlocking=).
            socket.set_nonblocking(true)?;
            Ok((place_of(&socket)?, socket))
        });
        Ok(Self(sockets.collect::<io::Result<_>>()?))
    }

    /// Those for datagrams at an address: one, or with `ReusePort=` several.
    pub(super) fn udp(&mut self, address: SocketAddr) -> Vec<UdpSocket> {
        self.take(&Place::Udp(address)).into_iter().map(UdpSocket::from).collect()
    }

    /// The one for connections.
    pub(super) fn tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        self.take(&Place::Tcp(address)).pop().map(TcpListener::from)
    }

    /// The one at a path.
    pub fn unix(&mut self, path: &Path) -> Option<UnixListener> {
        self.take(&Place::Unix(path.to_owned())).pop().map(|socket| UnixListener::from(OwnedFd::from(socket)))
    }

    /// To be called when everything is open.
    ///
    /// # Errors
    /// When something is left: who set it up expects an answer there.
    pub fn all_taken(self) -> Result<(), OpenError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((place, _)) => Err(OpenError::Unasked(place.shown())),
        }
    }

    fn take(&mut self, wanted: &Place) -> Vec<Socket> {
        self.0.extract_if(.., |(place, _)| place == wanted).map(|(_, socket)| socket).collect()
    }
}

fn place_of(socket: &Socket) -> io::Result<Place> {
    let (address, kind) = (socket.local_addr()?, socket.r#type()?);
    let listens = kind == Type::STREAM && socket.is_listener()?;
    let place = match address.as_socket() {
        Some(address) if kind == Type::DGRAM => Some(Place::Udp(address)),
        Some(address) if listens => Some(Place::Tcp(address)),
        None if listens => address.as_pathname().map(|path| Place::Unix(path.to_owned())),
        Some(_) | None => None,
    };
    Ok(place.unwrap_or(Place::Other))
}

impl Place {
    fn shown(&self) -> String {
        match self {
            Self::Udp(address) => format!("for {address} over UDP"),
            Self::Tcp(address) => format!("for {address} over TCP"),
            Self::Unix(path) => format!("at {}", path.display()),
            Self::Other => "of another kind than datagrams, TCP or a path's".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_socket_is_found_at_its_place_and_what_is_left_is_an_error() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("[::1]:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let unix = UnixListener::bind(&path).unwrap();
        let (at_udp, at_tcp) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let mut given = Given::of(vec![unix.into(), tcp.into(), udp.into()]).unwrap();
        assert!(given.udp(at_tcp).is_empty() && given.tcp(at_udp).is_none() && given.unix("/other".as_ref()).is_none());
        assert_eq!(given.tcp(at_tcp).unwrap().local_addr().unwrap(), at_tcp);
        assert!(given.unix(&path).is_some());
        assert!(given.unix(&path).is_none(), "it is taken once");
        let error = given.all_taken().unwrap_err();
        assert!(error.to_string().contains(&format!("for {at_udp} over UDP")), "{error}");
    }

    #[test]
    fn what_nobody_can_listen_at_is_left() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Given::of(vec![one.into()]).unwrap().all_taken().is_err());
        let (reader, _writer) = io::pipe().unwrap();
        assert!(Given::of(vec![reader.into()]).is_err());
    }
}
