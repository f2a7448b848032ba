//! What a client tries, and how that ends.

use std::{
    io::{
        self,
        ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, PermissionDenied,
            TimedOut, UnexpectedEof, WouldBlock,
        },
        Read, Write,
    },
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use socket2::{Domain, Socket, Type};

use super::{
    super::client::ask,
    hello,
    host::{Family, Host},
};

/// Tries things from where it is.
pub struct Prober {
    pub(super) sources: [IpAddr; 2],
    pub(super) trust: Arc<ClientConfig>,
}

/// How a try ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// This host answered; or the name led to it, where names were asked for only.
    Reached(Host),
    /// Reset, turned away by ICMP, hung up on; a resolver said that it failed.
    Refused,
    /// A TLS alert.
    Alert(u8),
    /// Nothing came in time.
    Silent,
    /// The name does not exist, or not for this family.
    NoName,
}

/// A connection that stays.
pub struct Conversation(Box<dyn Duplex>);

trait Duplex: Read + Write + Send {}

impl<T: Read + Write + Send> Duplex for T {}

/// After how long without an answer there is none. A lost first packet is sent again after one second, the second one
/// after two more, and a busy machine takes its time between them.
const SILENCE: Duration = Duration::from_secs(6);

/// Any server that speaks first ignores it, and any other answers it.
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

impl Prober {
    /// TLS with this server name or none, then a request. The certificate has to be right for the name, or for the
    /// address.
    pub fn tls(&self, server: SocketAddr, name: Option<&str>) -> Outcome {
        ended(self.connect(server).and_then(|stream| self.request_over_tls(stream, server, name)))
    }

    /// The same with every byte in a segment of its own.
    pub fn tls_dripped(&self, server: SocketAddr, name: &str) -> Outcome {
        ended(self.connect(server).and_then(|stream| {
            stream.set_nodelay(true)?;
            self.request_over_tls(Dripping(stream), server, Some(name))
        }))
    }

    /// A ClientHello that says of itself that the true one is encrypted within, behind this outer name. Whoever goes on
    /// with the handshake counts as the host that was dialled: who it is would be said later.
    pub fn tls_encrypted_hello(&self, server: SocketAddr, outer: &str) -> Outcome {
        ended(self.connect(server).and_then(|mut stream| {
            let mut hello = Vec::new();
            self.session(server, Some(outer)).write_tls(&mut hello)?;
            stream.write_all(&hello::with_encrypted_hello(hello))?;
            let mut record = [0; 7];
            stream.read_exact(&mut record)?;
            Ok(match (record[0], Host::of(server.ip())) {
                (hello::ALERT, _) => Outcome::Alert(record[6]),
                (_, Some(host)) => Outcome::Reached(host),
                (_, None) => panic!("nobody's: {server}"),
            })
        }))
    }

    /// TCP, and whoever answers.
    pub fn tcp(&self, server: SocketAddr) -> Outcome {
        self.say(server, REQUEST)
    }

    /// TCP with other first words.
    pub fn say(&self, server: SocketAddr, words: &[u8]) -> Outcome {
        ended(self.connect(server).and_then(|mut stream| {
            stream.write_all(words)?;
            greeting(stream)
        }))
    }

    /// A datagram, and whoever answers.
    pub fn udp(&self, server: SocketAddr) -> Outcome {
        ended(self.flow(server).and_then(|socket| {
            socket.send(b"who are you")?;
            let mut reply = [0; 64];
            let length = socket.recv(&mut reply)?;
            host_of(&reply[..length])
        }))
    }

    /// Where `name` leads by a resolver over UDP; A is asked for over IPv4 and AAAA over IPv6.
    pub fn dns_udp(&self, server: SocketAddr, name: &str) -> Outcome {
        ended(self.flow(server).and_then(|flow| ask_over(&flow, name)))
    }

    /// The same over TCP.
    pub fn dns_tcp(&self, server: SocketAddr, name: &str) -> Outcome {
        ended(self.connect(server).and_then(|stream| ask_stream(stream, &question(server, name))))
    }

    /// The same over TLS.
    pub fn dot(&self, server: SocketAddr, name: &str) -> Outcome {
        ended(self.connect(server).and_then(|mut stream| {
            let mut tls = self.session(server, Some(RESOLVER));
            ask_stream(rustls::Stream::new(&mut tls, &mut stream), &question(server, name))
        }))
    }

    /// The same over HTTPS.
    pub fn doh(&self, server: SocketAddr, name: &str) -> Outcome {
        ended(self.connect(server).and_then(|mut stream| {
            let mut tls = self.session(server, Some(RESOLVER));
            ask_https(rustls::Stream::new(&mut tls, &mut stream), &question(server, name))
        }))
    }

    /// What a client without tricks does: asks for the name, then speaks TLS with it at the address.
    pub fn by_name(&self, resolver: SocketAddr, name: &str) -> Outcome {
        let asked = self.dns_udp(resolver, name);
        if let Outcome::Reached(host) = asked {
            return self.tls(host.at(family(resolver), 443), Some(name));
        }
        asked
    }

    /// The same with TCP and another port.
    pub fn by_name_at(&self, resolver: SocketAddr, name: &str, port: u16) -> Outcome {
        let asked = self.dns_udp(resolver, name);
        if let Outcome::Reached(host) = asked {
            return self.tcp(host.at(family(resolver), port));
        }
        asked
    }

    /// What a stub resolver does with two `nameserver` lines: a name that does not exist ends it, failure does not.
    pub fn dns_by_either(&self, servers: [SocketAddr; 2], name: &str) -> Outcome {
        let asked = self.dns_udp(servers[0], name);
        if matches!(asked, Outcome::Refused | Outcome::Silent) {
            return self.dns_udp(servers[1], name);
        }
        asked
    }

    /// A TCP connection that stays, once its far end has spoken.
    ///
    /// # Errors
    /// It never came to be.
    pub fn converse(&self, server: SocketAddr) -> io::Result<Conversation> {
        let stream = self.connect(server)?;
        Conversation::begin(Box::new(stream))
    }

    /// The same over TLS.
    ///
    /// # Errors
    /// It never came to be.
    pub fn converse_over_tls(&self, server: SocketAddr, name: &str) -> io::Result<Conversation> {
        let stream = self.connect(server)?;
        Conversation::begin(Box::new(StreamOwned::new(self.session(server, Some(name)), stream)))
    }

    /// A UDP socket for several questions or datagrams.
    ///
    /// # Errors
    /// There is no way there.
    pub fn flow(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((self.source(server), 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(socket)
    }

    fn connect(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((self.source(server), 0)).into())?;
        socket.connect_timeout(&server.into(), SILENCE)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(stream)
    }

    fn source(&self, server: SocketAddr) -> IpAddr {
        if server.ip().is_loopback() { server.ip() } else { family(server).of(self.sources) }
    }

    /// TLS as of rustls, which sends no server name where it has an address.
    fn session(&self, server: SocketAddr, name: Option<&str>) -> ClientConnection {
        let name = name.map_or(server.ip().into(), |name| ServerName::try_from(name.to_owned()).unwrap());
        ClientConnection::new(Arc::clone(&self.trust), name).unwrap()
    }

    fn request_over_tls(
        &self,
        mut stream: impl Read + Write,
        server: SocketAddr,
        name: Option<&str>,
    ) -> io::Result<Outcome> {
        let mut tls = self.session(server, name);
        let mut stream = rustls::Stream::new(&mut tls, &mut stream);
        stream.write_all(REQUEST)?;
        greeting(stream)
    }
}

/// The name in the public resolver's certificate.
const RESOLVER: &str = "dns.google";

impl Conversation {
    fn begin(mut stream: Box<dyn Duplex>) -> io::Result<Self> {
        stream.write_all(REQUEST)?;
        match stream.read(&mut [0; 1024])? {
            0 => Err(ConnectionReset.into()),
            _ => Ok(Self(stream)),
        }
    }

    /// Is it still there? Says something and waits for it to come back.
    pub fn goes_on(&mut self) -> bool {
        let mut echo = [0; 1];
        // What the far end said before may still be on its way; the last byte is ours.
        self.0.write_all(b"~").is_ok()
            && std::iter::repeat_with(|| self.0.read_exact(&mut echo).map(|()| echo))
                .take(4096)
                .find(|read| read.as_ref().map_or(true, |echo| echo == b"~"))
                .is_some_and(|read| read.is_ok())
    }
}

/// Where `name` leads by the resolver that `flow` is connected to.
///
/// # Errors
/// It did not answer, or was kept from it.
pub fn ask_over(flow: &UdpSocket, name: &str) -> io::Result<Outcome> {
    Ok(answer(&exchange(flow, name)?))
}

/// The address of `name` by the resolver that `flow` is connected to, if there is one.
///
/// # Errors
/// It did not answer, or was kept from it.
pub fn look_up(flow: &UdpSocket, name: &str) -> io::Result<Option<IpAddr>> {
    Ok(first_address(&exchange(flow, name)?))
}

fn exchange(flow: &UdpSocket, name: &str) -> io::Result<Message> {
    let question = question(flow.peer_addr()?, name);
    flow.send(&question)?;
    let mut reply = [0; 4096];
    let length = flow.recv(&mut reply)?;
    Ok(Message::from_vec(&reply[..length]).unwrap())
}

fn question(server: SocketAddr, name: &str) -> Vec<u8> {
    ask(&format!("{name}."), family(server).of([RecordType::A, RecordType::AAAA])).bytes()
}

fn ask_stream(mut stream: impl Read + Write, question: &[u8]) -> io::Result<Outcome> {
    stream.write_all(&[&u16::try_from(question.len()).unwrap().to_be_bytes(), question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    Ok(answer(&Message::from_vec(&reply).unwrap()))
}

fn ask_https(mut stream: impl Read + Write, question: &[u8]) -> io::Result<Outcome> {
    let head = format!("POST /dns-query HTTP/1.1\r\nHost: {RESOLVER}\r\nContent-Length: {}\r\n\r\n", question.len());
    stream.write_all(&[head.as_bytes(), question].concat())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut reply = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut reply)?;
    Ok(answer(&Message::from_vec(&reply).unwrap()))
}

fn first_address(reply: &Message) -> Option<IpAddr> {
    reply.answers.iter().find_map(|record| record.data.ip_addr())
}

fn answer(reply: &Message) -> Outcome {
    match (reply.metadata.response_code, first_address(reply)) {
        (_, Some(address)) => Outcome::Reached(Host::of(address).unwrap_or_else(|| panic!("nobody's: {address}"))),
        (ResponseCode::NoError | ResponseCode::NXDomain, None) => Outcome::NoName,
        (_, None) => Outcome::Refused,
    }
}

/// Reads until somebody has said who they are.
fn greeting(mut stream: impl Read) -> io::Result<Outcome> {
    let (mut said, mut bytes) = (Vec::new(), [0; 1024]);
    loop {
        let length = stream.read(&mut bytes)?;
        said.extend_from_slice(&bytes[..length]);
        if length == 0 || Host::greeting(&String::from_utf8_lossy(&said)).is_some() {
            return host_of(&said);
        }
    }
}

fn host_of(said: &[u8]) -> io::Result<Outcome> {
    let host = Host::greeting(&String::from_utf8_lossy(said));
    host.map(Outcome::Reached).ok_or_else(|| ConnectionAborted.into())
}

fn ended(result: io::Result<Outcome>) -> Outcome {
    let error = match result {
        Ok(outcome) => return outcome,
        Err(error) => error,
    };
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => return Outcome::Alert(u8::from(*alert)),
        // A wrong certificate, say: somebody else answered in a host's name.
        Some(other) => panic!("TLS was tampered with: {other}"),
        None => {}
    }
    if matches!(error.kind(), TimedOut | WouldBlock) {
        return Outcome::Silent;
    }
    // What this machine lacks, ports or routes, is no refusal.
    let by_others = matches!(
        error.kind(),
        ConnectionRefused
            | ConnectionReset
            | ConnectionAborted
            | BrokenPipe
            | UnexpectedEof
            | HostUnreachable
            | PermissionDenied
    );
    assert!(by_others, "not a refusal: {error}");
    Outcome::Refused
}

fn family(address: SocketAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Writes one byte at a time.
struct Dripping(TcpStream);

impl Write for Dripping {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes.get(..1).unwrap_or_default())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Read for Dripping {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}
