//! The crate `ngrok` against the whole daemon: refused at its default ingress, let through to the own one.
//!
//! Its session code, its choice of address and its TLS are the real ones; only how a name becomes a
//! connection is given to it, because the system's resolver cannot be told a port. The release binary
//! meets clients that use the system's resolver in `tests/realclient`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test's helpers may fail loudly")]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_proto::{
    op::Message,
    rr::{RData, Record, RecordType, rdata::A},
};
use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use ngrok::session::{ConnectError, IoStream};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream, UdpSocket},
    task::{JoinHandle, spawn_blocking},
};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use crate::support::daemon::Daemon;

const DEFAULT_INGRESS: &str = "connect.ngrok-agent.com";
const OWN_INGRESS: &str = "connect.acme.example";
const PATIENCE: Duration = Duration::from_secs(10);

/// Without this the refusals would prove little: a client that never dials is refused by anything.
#[tokio::test]
async fn where_nothing_refuses_it_ngrok_dials_its_default_ingress() {
    let (upstream, ingress) = (Upstream::start().await, Ingress::start().await);

    let outcome = connect(upstream.address, &ingress, DEFAULT_INGRESS).await;

    assert!(matches!(outcome, ConnectError::Tls(_)), "the certificate is not ngrok's: {outcome:?}");
    assert_eq!(ingress.greeting().await.server_name.as_deref(), Some(DEFAULT_INGRESS));
}

#[tokio::test]
async fn ngrok_is_told_that_its_default_ingress_does_not_exist_and_the_upstream_is_not_asked() {
    let (upstream, ingress) = (Upstream::start().await, Ingress::start().await);
    let daemon = Daemon::start(&configuration(upstream.address));
    // The daemon looks the names up itself, once at its start: what comes later would be the client's.
    let daemon = spawn_blocking(move || {
        daemon.first_round();
        daemon
    });
    let daemon = daemon.await.unwrap();
    let own_lookups = upstream.ngrok_names();

    let outcome = connect(daemon.dns(), &ingress, DEFAULT_INGRESS).await;

    let ConnectError::Tcp(cause) = &outcome else { panic!("no lookup failure: {outcome:?}") };
    let lookup = cause.get_ref().and_then(|cause| cause.downcast_ref::<NetError>()).unwrap();
    assert!(lookup.is_nx_domain(), "{lookup}");
    assert_eq!(upstream.ngrok_names(), own_lookups);
}

#[tokio::test]
async fn ngrok_opens_its_session_over_tls_at_the_own_ingress() {
    let (upstream, ingress) = (Upstream::start().await, Ingress::start().await);
    let daemon = Daemon::start(&configuration(upstream.address));

    // The listener is no ngrok: it hangs up after the first bytes, which fails the session, not TLS.
    let outcome = connect(daemon.dns(), &ingress, OWN_INGRESS).await;

    assert!(matches!(outcome, ConnectError::Start(_) | ConnectError::Auth(_)), "{outcome:?}");
    let greeting = ingress.greeting().await;
    assert_eq!(greeting.server_name.as_deref(), Some(OWN_INGRESS));
    assert!(greeting.first_bytes.is_some_and(|bytes| !bytes.is_empty()), "TLS is not established, or nobody spoke");
}

/// Own ingress and upstream; the rest is as shipped.
fn configuration(upstream: SocketAddr) -> String {
    format!(
        r#"
        [organization]
        ingress = ["{OWN_INGRESS}"]
        [listen]
        dns = ["127.0.0.1:0"]
        admin = "off"
        [upstream]
        servers = ["udp://{upstream}"]
        "#
    )
}

/// Has the client open a session at `host`, names looked up at `dns`; returns how that failed, as it must.
async fn connect(dns: SocketAddr, ingress: &Ingress, host: &str) -> ConnectError {
    let port = ingress.port;
    let resolver = Arc::new(resolver(dns));
    let mut session = ngrok::Session::builder();
    session.authtoken("none").connector(move |host, _, tls, _| dial(Arc::clone(&resolver), host, port, tls));
    if host == OWN_INGRESS {
        session.server_addr(host).unwrap().ca_cert(ingress.authority.clone().into());
    }
    match tokio::time::timeout(PATIENCE, session.connect()).await {
        Ok(Err(failure)) => failure,
        Ok(Ok(_)) => panic!("a session with a listener that does not speak ngrok"),
        Err(_) => panic!("no outcome after {PATIENCE:?}"),
    }
}

/// As `ngrok::session::default_connect`, but the names are asked of our resolver and the port is the listener's.
async fn dial(
    resolver: Arc<TokioResolver>,
    host: String,
    port: u16,
    tls: Arc<ClientConfig>,
) -> Result<Box<dyn IoStream>, ConnectError> {
    let lookup = resolver.lookup_ip(format!("{host}.")).await.map_err(io::Error::other).map_err(ConnectError::Tcp)?;
    let addresses: Vec<_> = lookup.iter().map(|address| SocketAddr::new(address, port)).collect();
    let stream = TcpStream::connect(&*addresses).await.map_err(ConnectError::Tcp)?;
    let name = host.try_into().map_err(io::Error::other).map_err(ConnectError::Tls)?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(ConnectError::Tls)?;
    Ok(Box::new(stream))
}

fn resolver(dns: SocketAddr) -> TokioResolver {
    let mut server = NameServerConfig::udp_and_tcp(dns.ip());
    for connection in &mut server.connections {
        connection.port = dns.port();
    }
    let config = ResolverConfig::from_name_servers(vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().use_hosts_file = ResolveHosts::Never;
    builder.build().unwrap()
}

/// A resolver that answers every name with loopback's address, and remembers what it was asked.
struct Upstream {
    address: SocketAddr,
    questions: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let upstream = Self { address: socket.local_addr().unwrap(), questions: Arc::default() };
        let questions = Arc::clone(&upstream.questions);
        tokio::spawn(async move {
            let mut packet = [0; 4096];
            while let Ok((length, asker)) = socket.recv_from(&mut packet).await {
                let answer = answer(&packet[..length], &questions);
                socket.send_to(&answer, asker).await.unwrap();
            }
        });
        upstream
    }

    /// The names of ngrok's domains that it was asked for.
    fn ngrok_names(&self) -> Vec<String> {
        let questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        questions.iter().filter(|name| name.contains("ngrok")).cloned().collect()
    }
}

fn answer(packet: &[u8], questions: &Mutex<Vec<String>>) -> Vec<u8> {
    let mut message = Message::from_vec(packet).unwrap().into_response();
    let question = message.queries.first().unwrap().clone();
    questions.lock().unwrap_or_else(PoisonError::into_inner).push(question.name().to_string().to_lowercase());
    if question.query_type() == RecordType::A {
        let address = RData::A(A(Ipv4Addr::LOCALHOST));
        message.add_answer(Record::from_rdata(question.name().clone(), 30, address));
    }
    message.to_vec().unwrap()
}

/// What stands where the own ingress resolves to: takes one connection, speaks TLS under a throw-away
/// CA, reads the session's first bytes and hangs up.
struct Ingress {
    port: u16,
    /// The CA's certificate, PEM.
    authority: String,
    task: JoinHandle<Greeting>,
}

/// What a client said.
struct Greeting {
    server_name: Option<String>,
    /// `None` where the client broke TLS off.
    first_bytes: Option<Vec<u8>>,
}

impl Ingress {
    async fn start() -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![OWN_INGRESS.into()]).unwrap().signed_by(&key, &authority).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.into()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self {
            port: listener.local_addr().unwrap().port(),
            authority: authority.pem(),
            task: tokio::spawn(async move { greet(&listener, config).await.unwrap() }),
        }
    }

    /// What the one client said.
    async fn greeting(self) -> Greeting {
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap()
    }
}

async fn greet(listener: &TcpListener, config: ServerConfig) -> io::Result<Greeting> {
    let (stream, _) = listener.accept().await?;
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let server_name = hello.client_hello().server_name().map(str::to_owned);
    let Ok(mut stream) = hello.into_stream(Arc::new(config)).await else {
        return Ok(Greeting { server_name, first_bytes: None });
    };
    let mut bytes = vec![0; 8];
    let length = stream.read(&mut bytes).await?;
    bytes.truncate(length);
    Ok(Greeting { server_name, first_bytes: Some(bytes) })
}
