//! The stand-ins: every host of the internet on one thread, saying who it is to whoever reaches it.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use hickory_proto::op::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::PrivateKeyDer,
    server::{Acceptor, NoServerSessionStorage},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    runtime,
    sync::oneshot,
};
use tokio_rustls::LazyConfigAcceptor;

use super::{
    super::upstream::Zone,
    host::{self, Host},
};

/// One thing that reached a host: a connection, a server name, a question, a datagram.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Arrival {
    pub host: Host,
    pub port: u16,
    pub peer: SocketAddr,
    /// The server name or the question's name, where this is one.
    pub name: Option<String>,
}

/// All of them. They end when this is dropped.
pub struct Internet {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    arrivals: Mutex<Vec<Arrival>>,
    zone: Mutex<Zone>,
    tls: Arc<ServerConfig>,
}

/// A door of a host.
#[derive(Clone, Copy)]
struct Door {
    host: Host,
    port: u16,
}

/// More of them stay than any test keeps.
const REMEMBERED: usize = 100_000;

impl Internet {
    /// Starts them in the network of the calling thread; with what a client needs to trust their certificates.
    pub fn start() -> (Self, Arc<ClientConfig>) {
        let (tls, trust) = certificates();
        let zone = Mutex::new(Zone::parse(&host::zone()));
        let shared = Arc::new(Shared { arrivals: Mutex::default(), zone, tls });
        // A thread begins in the namespace of the one that starts it.
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(open(&shared));
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let _ = runtime.block_on(stopped);
        });
        (Self { shared, stop: Some(stop), thread: Some(thread) }, trust)
    }

    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.arrivals.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.shared.arrivals.lock().unwrap().clear();
    }

    pub fn also_resolve(&self, lines: &str) {
        *self.shared.zone.lock().unwrap() = Zone::parse(&format!("{}{lines}", host::zone()));
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// Opens every door of every host at all its addresses.
async fn open(shared: &Arc<Shared>) {
    let everywhere = TcpListener::bind(("::", host::CROWD_PORT)).await.unwrap();
    let door = Door { host: Host::Crowd, port: host::CROWD_PORT };
    tokio::spawn(Arc::clone(shared).take_connections(everywhere, door));
    for host in Host::ALL {
        for address in host.addresses() {
            for &port in host.tcp() {
                let listener = TcpListener::bind((address, port)).await.unwrap();
                tokio::spawn(Arc::clone(shared).take_connections(listener, Door { host, port }));
            }
            for &port in host.udp() {
                let socket = UdpSocket::bind((address, port)).await.unwrap();
                tokio::spawn(Arc::clone(shared).take_datagrams(socket, Door { host, port }));
            }
        }
    }
}

impl Shared {
    fn note(&self, door: Door, peer: SocketAddr, name: Option<String>) {
        let mut arrivals = self.arrivals.lock().unwrap();
        assert!(arrivals.len() < REMEMBERED, "the stand-ins are flooded");
        arrivals.push(Arrival { host: door.host, port: door.port, peer, name });
    }

    async fn take_connections(self: Arc<Self>, listener: TcpListener, door: Door) {
        while let Ok((stream, peer)) = listener.accept().await {
            self.note(door, peer, None);
            // A test is not to wait for acknowledgements that come late.
            let _ = stream.set_nodelay(true);
            let shared = Arc::clone(&self);
            // A client that hangs up is no failure.
            tokio::spawn(async move { shared.serve(stream, peer, door).await });
        }
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr, door: Door) -> io::Result<()> {
        match door.port {
            53 => self.answer_stream(stream, peer, door).await,
            443 | 853 => self.serve_tls(stream, peer, door).await,
            80 => self.serve_http(stream, peer, door).await,
            _ => greet(stream, door).await,
        }
    }

    async fn serve_tls(&self, stream: TcpStream, peer: SocketAddr, door: Door) -> io::Result<()> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        if let Some(name) = hello.client_hello().server_name() {
            self.note(door, peer, Some(name.to_owned()));
        }
        let stream = hello.into_stream(Arc::clone(&self.tls)).await?;
        match door.port {
            853 => self.answer_stream(stream, peer, door).await,
            _ => self.serve_http(stream, peer, door).await,
        }
    }

    /// DNS over TCP or TLS (RFC 1035 section 4.2.2).
    async fn answer_stream(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: SocketAddr,
        door: Door,
    ) -> io::Result<()> {
        loop {
            let mut question = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut question).await?;
            let Some(answer) = self.answer(&question, true, peer, door) else { return Ok(()) };
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await?;
            stream.write_all(&answer).await?;
        }
    }

    /// One request: DNS where a resolver is posted a question (RFC 8484), else who we are. What comes afterwards is
    /// given back, so that a test can keep the connection.
    async fn serve_http(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: SocketAddr,
        door: Door,
    ) -> io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let mut body = vec![0; length.and_then(|length| length.trim().parse().ok()).unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let (kind, body) = if head.starts_with("post /dns-query") {
            ("application/dns-message", self.answer(&body, true, peer, door).unwrap_or_default())
        } else {
            ("text/plain", format!("{}\n", door.host.name()).into_bytes())
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), &body].concat()).await?;
        echo(stream).await
    }

    async fn take_datagrams(self: Arc<Self>, socket: UdpSocket, door: Door) {
        let mut packet = [0; 4096];
        loop {
            // An ICMP error of an earlier reply shows here, and is no reason to end.
            let Ok((length, peer)) = socket.recv_from(&mut packet).await else { continue };
            let reply = if door.port == 53 {
                self.answer(&packet[..length], false, peer, door)
            } else {
                self.note(door, peer, None);
                Some(door.host.name().into())
            };
            if let Some(reply) = reply {
                let _ = socket.send_to(&reply, peer).await;
            }
        }
    }

    fn answer(&self, packet: &[u8], tcp: bool, peer: SocketAddr, door: Door) -> Option<Vec<u8>> {
        let question = Message::from_vec(packet).ok()?;
        let name = question.queries.first()?.name().to_ascii();
        self.note(door, peer, Some(name.trim_end_matches('.').to_lowercase()));
        self.zone.lock().unwrap().answer_over(&question, tcp).to_vec().ok()
    }
}

/// Says who we are, as an SSH server begins, and gives back what comes.
async fn greet(mut stream: TcpStream, door: Door) -> io::Result<()> {
    stream.write_all(format!("SSH-2.0-{}\r\n", door.host.name()).as_bytes()).await?;
    echo(stream).await
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut bytes = [0; 1024];
    loop {
        let length = stream.read(&mut bytes).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&bytes[..length]).await?;
    }
}

/// One certificate of a throw-away authority for every name and address, and who trusts that authority.
fn certificates() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let mut leaf = CertificateParams::new(host::CERTIFIED.map(str::to_owned)).unwrap();
    leaf.subject_alt_names.extend(Host::ALL.into_iter().flat_map(Host::addresses).map(SanType::IpAddress));
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, &authority).unwrap();
    let provider = Arc::new(ring::default_provider());
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.into()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    // No tickets: what a client reads first is what we say.
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = rustls::client::Resumption::disabled();
    (Arc::new(server), Arc::new(client))
}
