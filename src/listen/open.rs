//! Binding every address, UDP and TCP, before any is served; and saying why one cannot be.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    num::NonZero,
    thread,
};

use socket2::{Domain, SockRef, Socket, Type};
use thiserror::Error;

use super::{Admin, Given, Options};
use crate::{
    problem::printable,
    sys::{
        datagram::tell_local_address,
        holder::{self, Holder, Protocol},
        interfaces::Interfaces,
    },
};

/// Everything bound, nothing served yet.
#[derive(Debug)]
pub struct Doors {
    pub(super) entries: Vec<Entry>,
    pub(super) skipped: Vec<SocketAddr>,
}

/// One entry of `[listen] dns`.
#[derive(Debug)]
pub(super) struct Entry {
    /// The address, with the port that was given where 0 was asked for.
    pub(super) address: SocketAddr,
    pub(super) tcp: TcpListener,
    /// One for each worker; the kernel spreads the clients over them.
    pub(super) udp: Vec<UdpSocket>,
}

/// Why an address cannot be listened on. [`OpenError::hint`] says what to do.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Somebody else is there.
    #[error("cannot listen on {address} over {}: the port is in use{}", Shown(*protocol), HeldBy(holder.as_ref()))]
    InUse {
        /// Where.
        address: SocketAddr,
        /// Over what.
        protocol: Protocol,
        /// Who has it, as far as we may see.
        holder: Option<Holder>,
    },
    /// We may not.
    #[error("cannot listen on {address} over {}: not permitted", Shown(*protocol))]
    NotPermitted {
        /// Where.
        address: SocketAddr,
        /// Over what.
        protocol: Protocol,
        /// What the system said.
        source: io::Error,
    },
    /// No interface has the address, or IPv6 is off.
    #[error("cannot listen on {address}: this machine does not have that address")]
    NotHere {
        /// Where.
        address: SocketAddr,
        /// The addresses it has.
        own: Vec<IpAddr>,
    },
    /// Systemd opened something for us, and nothing says that it is ours.
    #[error("systemd passed a socket {0}, where the configuration does not listen")]
    Unasked(String),
    /// Anything else.
    #[error("cannot listen on {address} over {}", Shown(*protocol))]
    Failed {
        /// Where.
        address: SocketAddr,
        /// Over what.
        protocol: Protocol,
        /// What the system said.
        source: io::Error,
    },
}

/// Most workers, and so most sockets for one address; beyond, batches save more than another thread does.
const MAX_WORKERS: usize = 64;

/// Room for datagrams that arrive while all workers are busy, in bytes; the system may give less.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 1024;

/// How often a free port is looked for that is free over both UDP and TCP.
const PORT_TRIES: usize = 64;

impl Doors {
    /// Binds every address of `[listen] dns`, UDP and TCP, or none; what is given for one is taken. Port 0 takes a port
    /// that is free over both.
    /// A default address is left out where the machine has no IPv6; see [`Doors::skipped`].
    ///
    /// # Errors
    /// For the first address that cannot be bound.
    pub fn open(options: &Options, given: &mut Given) -> Result<Self, OpenError> {
        let workers = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_WORKERS);
        let is_default = options.dns == Options::default().dns;
        let mut doors = Self { entries: Vec::new(), skipped: Vec::new() };
        for &address in &options.dns {
            match Entry::open(address, workers, given) {
                Ok(entry) => doors.entries.push(entry),
                Err(OpenError::NotHere { .. }) if is_default && address.is_ipv6() => doors.skipped.push(address),
                Err(error) => return Err(error),
            }
        }
        Ok(doors)
    }

    /// How many threads take datagrams once they are served.
    pub fn workers(&self) -> usize {
        self.entries.iter().map(|entry| entry.udp.len()).max().unwrap_or_default()
    }
}

/// The admin door's socket; `None` where there is to be none. Where somebody else has the default address, the door
/// is left out, with a warning: nobody asked for it, and answering must not hang on it.
///
/// # Errors
/// When the address cannot be bound.
pub fn open_admin(admin: Admin, given: &mut Given) -> Result<Option<TcpListener>, OpenError> {
    let Some(address) = admin.address() else { return Ok(None) };
    if let Some(listener) = given.tcp(address) {
        return Ok(Some(listener));
    }
    match open_tcp(address).map_err(|error| OpenError::new(address, Protocol::Tcp, error)) {
        Ok(listener) => Ok(Some(listener)),
        Err(error @ OpenError::InUse { .. }) if admin == Admin::Default => {
            tracing::warn!("no health and metrics: {error}; [listen] admin gives another address, or \"off\"");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Entry {
    fn open(address: SocketAddr, workers: usize, given: &mut Given) -> Result<Self, OpenError> {
        let (udp, tcp) = (given.udp(address), given.tcp(address));
        if !udp.is_empty() || tcp.is_some() {
            return Self::take(address, workers, udp, tcp);
        }
        let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            let opened = Self::open_once(address, workers);
            if tries == 0 || !matches!(opened, Err(OpenError::InUse { .. })) {
                return opened;
            }
        }
    }

    fn open_once(wanted: SocketAddr, workers: usize) -> Result<Self, OpenError> {
        let (udp, address) =
            open_all_udp(wanted, workers).map_err(|error| OpenError::new(wanted, Protocol::Udp, error))?;
        let tcp = open_tcp(address).map_err(|error| OpenError::new(address, Protocol::Tcp, error))?;
        Ok(Self { address, tcp, udp })
    }

    /// Takes what is given, and opens what is missing beside it.
    fn take(
        address: SocketAddr,
        workers: usize,
        udp: Vec<UdpSocket>,
        tcp: Option<TcpListener>,
    ) -> Result<Self, OpenError> {
        let udp = if udp.is_empty() { open_all_udp(address, workers).map(|(udp, _)| udp) } else { share(udp, workers) };
        let tcp = tcp.map_or_else(|| open_tcp(address), Ok);
        Ok(Self {
            address,
            udp: udp.map_err(|error| OpenError::new(address, Protocol::Udp, error))?,
            tcp: tcp.map_err(|error| OpenError::new(address, Protocol::Tcp, error))?,
        })
    }
}

/// A socket for each worker, and the address they got.
fn open_all_udp(wanted: SocketAddr, workers: usize) -> io::Result<(Vec<UdpSocket>, SocketAddr)> {
    let (first, address) = open_udp(wanted, false)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(open_udp(address, true)?.0);
    }
    Ok((sockets, address))
}

/// What is given goes round among the workers. They share one socket where there are not enough: the kernel lets only
/// the user who opened it bind more of them (socket(7), `SO_REUSEPORT`), and that was systemd.
fn share(given: Vec<UdpSocket>, workers: usize) -> io::Result<Vec<UdpSocket>> {
    let mut sockets = given;
    for socket in &sockets {
        // More would be good, less will do.
        let _ = SockRef::from(socket).set_recv_buffer_size(RECEIVE_BUFFER);
        if socket.local_addr()?.ip().is_unspecified() {
            tell_local_address(socket)?;
        }
    }
    let missing = workers.saturating_sub(sockets.len());
    let more = sockets.iter().cycle().take(missing).map(UdpSocket::try_clone).collect::<io::Result<Vec<_>>>()?;
    sockets.extend(more);
    Ok(sockets)
}

/// One of the sockets of an address. The first is bound without `SO_REUSEPORT`, so that a port somebody has is
/// found to be in use, and lets others in only once it holds the port: from then on the kernel admits sockets of
/// our own user alone (socket(7)). A second daemon of that user fails on its own first socket.
fn open_udp(address: SocketAddr, joins: bool) -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = new_socket(address, Type::DGRAM)?;
    socket.set_reuse_port(joins)?;
    // More would be good, less will do.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&address.into())?;
    socket.set_reuse_port(true)?;
    let socket = UdpSocket::from(socket);
    if address.ip().is_unspecified() {
        tell_local_address(&socket)?;
    }
    let bound = socket.local_addr()?;
    Ok((socket, bound))
}

fn open_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(address, Type::STREAM)?;
    // A restart must not wait for connections that ended a minute ago; a listener still there is still found.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn new_socket(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

impl OpenError {
    fn new(address: SocketAddr, protocol: Protocol, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EADDRINUSE) => Self::InUse { address, protocol, holder: holder::holder(protocol, address) },
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted { address, protocol, source },
            Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => {
                let own = Interfaces::read().map(|interfaces| interfaces.addresses).unwrap_or_default();
                Self::NotHere { address, own }
            }
            _ => Self::Failed { address, protocol, source },
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        const ELSEWHERE: &str = "or give another address under [listen]";
        match self {
            Self::InUse { holder: Some(Holder { process: Some(process), .. }), .. } => {
                format!("stop process {}, {ELSEWHERE}", process.id)
            }
            Self::InUse { address, protocol, .. } => {
                let table = match protocol {
                    Protocol::Udp => "u",
                    Protocol::Tcp => "t",
                };
                let port = address.port();
                format!("`sudo ss -{table}lnp 'sport = :{port}'` shows whose it is; stop that, {ELSEWHERE}")
            }
            Self::NotPermitted { address, .. } => format!(
                "ports below 1024 need a capability: AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit, \
                 or `sudo setcap cap_net_bind_service=+ep` on the binary, or \
                 `sudo sysctl net.ipv4.ip_unprivileged_port_start={}`; {ELSEWHERE}",
                address.port()
            ),
            Self::NotHere { own, .. } if own.is_empty() => {
                "give 0.0.0.0 or [::], which stand for every address, under [listen]".to_owned()
            }
            Self::NotHere { own, .. } => {
                let own: Vec<String> = own.iter().map(IpAddr::to_string).collect();
                format!("it has {}; give one of these, or 0.0.0.0 or [::] for all, under [listen]", own.join(", "))
            }
            Self::Unasked(_) => "name it under [listen], or take it out of the unit of kind .socket".to_owned(),
            Self::Failed { .. } => format!("look up what the system says, {ELSEWHERE}"),
        }
    }
}

struct Shown(Protocol);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Protocol::Udp => "UDP",
            Protocol::Tcp => "TCP",
        })
    }
}

struct HeldBy<'a>(Option<&'a Holder>);

impl fmt::Display for HeldBy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Holder { address, user, process }) = self.0 else { return Ok(()) };
        match process {
            Some(process) => write!(f, " by {} (process {}) at {address}", printable(&process.name), process.id),
            None => write!(f, " by a process of user {user} at {address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn listen(addresses: &[&str]) -> Options {
        Options { dns: addresses.iter().map(|address| address.parse().unwrap()).collect(), ..Options::default() }
    }

    #[test]
    fn udp_and_tcp_of_port_0_share_the_port_they_are_given() {
        let doors = Doors::open(&listen(&["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"]), &mut Given::default()).unwrap();
        assert_eq!(doors.entries.len(), 3);
        for entry in &doors.entries {
            assert_ne!(entry.address.port(), 0);
            assert_eq!(entry.tcp.local_addr().unwrap(), entry.address);
            assert!(entry.udp.iter().all(|socket| socket.local_addr().unwrap() == entry.address));
        }
    }

    #[test]
    fn v6_and_v4_wildcards_stand_side_by_side_on_one_port() {
        let is_free_over_v4_too = |_| {
            let v6 = Doors::open(&listen(&["[::]:0"]), &mut Given::default()).unwrap();
            Doors::open(&listen(&[&format!("0.0.0.0:{}", v6.entries[0].address.port())]), &mut Given::default()).is_ok()
        };
        // One port may be somebody else's over v4, twenty are not.
        assert!((0..20).any(is_free_over_v4_too));
    }

    #[test]
    fn sockets_of_one_address_share_its_clients() {
        let entry = Entry::open("127.0.0.1:0".parse().unwrap(), 4, &mut Given::default()).unwrap();
        let clients: Vec<UdpSocket> = (0..64).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for client in &clients {
            client.send_to(b"x", entry.address).unwrap();
        }
        let mut heard = HashSet::new();
        for (index, socket) in entry.udp.iter().enumerate() {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 8]) {
                heard.insert((index, from));
            }
        }
        assert_eq!(heard.len(), clients.len(), "each datagram arrives once");
        let used: HashSet<usize> = heard.iter().map(|(index, _)| *index).collect();
        assert!(used.len() > 1, "64 clients on one of four sockets: 4 in 4^64 by chance");
    }

    #[test]
    fn what_is_given_is_shared_by_all_workers_and_what_is_not_is_opened_beside_it() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let mut given = Given::of(vec![udp.into()]).unwrap();
        let entry = Entry::open(address, 3, &mut given).unwrap();
        given.all_taken().unwrap();
        assert_eq!((entry.udp.len(), entry.tcp.local_addr().unwrap()), (3, address));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", address).unwrap();
        let heard = entry.udp.iter().filter(|socket| socket.recv_from(&mut [0; 8]).is_ok()).count();
        assert_eq!(heard, 1, "a datagram arrives once, whoever takes it, and nobody waits for another");
    }

    #[test]
    fn a_port_in_use_is_found_and_its_holder_named_even_if_it_is_our_like() {
        let first = Doors::open(&listen(&["127.0.0.1:0"]), &mut Given::default()).unwrap();
        let address = first.entries[0].address;
        let error = Doors::open(&listen(&[&address.to_string()]), &mut Given::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot listen on {address} over UDP: the port is in use by ")), "{text}");
        assert!(text.ends_with(&format!("(process {}) at {address}", std::process::id())), "{text}");
        assert!(error.hint().contains(&format!("stop process {}", std::process::id())), "{}", error.hint());

        let wildcard = format!("0.0.0.0:{}", address.port());
        assert!(matches!(Doors::open(&listen(&[&wildcard]), &mut Given::default()), Err(OpenError::InUse { .. })));
    }

    #[test]
    fn a_port_that_only_tcp_holds_is_in_use_too() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        let error = Doors::open(&listen(&[&address]), &mut Given::default()).unwrap_err();
        assert!(matches!(error, OpenError::InUse { protocol: Protocol::Tcp, holder: Some(_), .. }), "{error}");
    }

    #[test]
    fn an_admin_address_somebody_has_is_an_error_where_it_was_asked_for() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = open_admin(Admin::At(taken.local_addr().unwrap()), &mut Given::default()).unwrap_err();
        assert!(matches!(error, OpenError::InUse { protocol: Protocol::Tcp, holder: Some(_), .. }), "{error}");
        assert!(open_admin(Admin::Off, &mut Given::default()).unwrap().is_none());
    }

    #[test]
    fn the_default_admin_address_is_left_out_where_somebody_has_it() {
        // Whoever comes first has it: this listener, or somebody else on this machine.
        let _taken = TcpListener::bind(Admin::Default.address().unwrap());
        assert!(open_admin(Admin::Default, &mut Given::default()).unwrap().is_none());
    }

    #[test]
    fn a_foreign_address_is_answered_with_our_own() {
        // TEST-NET-1 belongs to nobody.
        let error = Doors::open(&listen(&["192.0.2.1:0"]), &mut Given::default()).unwrap_err();
        assert_eq!(error.to_string(), "cannot listen on 192.0.2.1:0: this machine does not have that address");
        assert!(error.hint().contains("127.0.0.1"), "{}", error.hint());
    }

    #[test]
    fn what_the_system_says_becomes_what_to_do() {
        let address: SocketAddr = "192.0.2.1:53".parse().unwrap();
        for (code, expected) in [
            (libc::EACCES, "net.ipv4.ip_unprivileged_port_start=53"),
            (libc::EADDRINUSE, "ss -ulnp 'sport = :53'"),
            (libc::EAFNOSUPPORT, "give one of these"),
            (libc::ENOBUFS, "look up what the system says"),
        ] {
            let error = OpenError::new(address, Protocol::Udp, io::Error::from_raw_os_error(code));
            // Somebody on this machine may hold port 53, visibly.
            let hint = error.hint();
            assert!(hint.contains(expected) || hint.starts_with("stop process"), "{hint}");
        }
    }

    #[test]
    fn a_holder_with_a_hostile_name_harms_no_terminal() {
        let process = holder::Process { id: 7, name: "\u{1b}[2Jnamed".into() };
        let holder = Holder { address: "0.0.0.0:53".parse().unwrap(), user: 0, process: Some(process) };
        assert_eq!(HeldBy(Some(&holder)).to_string(), " by \\u{1b}[2Jnamed (process 7) at 0.0.0.0:53");
        let unseen = Holder { process: None, ..holder };
        assert_eq!(HeldBy(Some(&unseen)).to_string(), " by a process of user 0 at 0.0.0.0:53");
    }
}
