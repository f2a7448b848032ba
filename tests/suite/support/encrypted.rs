//! A name server that is reached over TLS or HTTPS: hickory's, which nobody here wrote, with certificates of a
//! throw-away authority. It answers from a zone and remembers what it was asked.

use std::{
    collections::HashSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use hickory_proto::op::{Message, Metadata};
use hickory_server::{
    Server,
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};

use super::upstream::Zone;

/// Who signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What the server speaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speech {
    /// DNS over TLS.
    Tls,
    /// DNS over HTTPS, at `/dns-query`.
    Https,
}

/// How a server is.
#[derive(Clone)]
pub struct Manner {
    /// What it speaks.
    pub speech: Speech,
    /// The name or address its certificate is for.
    pub certificate: &'static str,
    /// What it knows.
    pub zone: Zone,
    /// After how long it closes an idle connection.
    pub idle: Duration,
    /// It answers a name that begins with `together` once this many of them are waiting.
    pub together: usize,
}

/// A running server. Ends, with all its connections, when dropped.
pub struct Encrypted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Message>>>,
    runtime: Option<Runtime>,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    fn server_config(&self, name: &str, protocol: &[u8]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.into()]).unwrap().signed_by(&key, &self.0).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.into()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }
}

impl Manner {
    /// With a certificate for `dns.example`, a zone of `text`, and no haste.
    pub fn new(speech: Speech, text: &str) -> Self {
        let (zone, idle) = (Zone::parse(text), Duration::from_secs(60));
        Self { speech, certificate: "dns.example", zone, idle, together: 1 }
    }
}

impl Encrypted {
    /// At a port of its own on 127.0.0.1.
    pub fn start(authority: &Authority, manner: Manner) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), authority, manner)
    }

    /// Where another one was before.
    pub fn start_at(address: SocketAddr, authority: &Authority, manner: Manner) -> Self {
        let runtime = Runtime::new().unwrap();
        let asked = Arc::<Mutex<Vec<Message>>>::default();
        let Manner { speech, certificate, zone, idle, together } = manner;
        let waiting = watch::Sender::default();
        let mut server = Server::new(Handler { zone, asked: Arc::clone(&asked), waiting, together });
        let address = runtime.block_on(async {
            let listener = TcpListener::bind(address).await.unwrap();
            let address = listener.local_addr().unwrap();
            let registered = match speech {
                Speech::Tls => {
                    let config = authority.server_config(certificate, b"dot");
                    server.register_tls_listener_with_tls_config(listener, idle, config)
                }
                Speech::Https => {
                    let (config, path) = (authority.server_config(certificate, b"h2"), "/dns-query".to_owned());
                    server.register_https_listener_with_tls_config(listener, idle, config, None, path)
                }
            };
            registered.unwrap();
            address
        });
        runtime.spawn(async move { server.block_until_done().await });
        Self { address, asked, runtime: Some(runtime) }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked, in order, the daemon's own probes and canaries among it.
    pub fn asked(&self) -> Vec<Message> {
        self.asked.lock().unwrap().clone()
    }

    /// How many connections to it both ends hold open, as the kernel counts them.
    pub fn connections(&self) -> usize {
        const ESTABLISHED: &str = "01";
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let here = format!("0100007F:{:04X}", self.address.port());
        let open = |line: &&str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields[1] == here && fields[3] == ESTABLISHED
        };
        table.lines().skip(1).filter(open).count()
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

struct Handler {
    zone: Zone,
    asked: Arc<Mutex<Vec<Message>>>,
    waiting: watch::Sender<HashSet<String>>,
    together: usize,
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut handle: R) -> ResponseInfo {
        let question = Message::from_vec(request.as_slice()).unwrap();
        self.asked.lock().unwrap().push(question.clone());
        let name = question.queries[0].name().to_string();
        if name.starts_with("together") {
            let mut waiting = self.waiting.subscribe();
            self.waiting.send_modify(|names| {
                names.insert(name);
            });
            waiting.wait_for(|names| names.len() >= self.together).await.unwrap();
        }
        let reply = self.zone.answer(&question);
        let mut response = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &reply.edns {
            response.edns(edns);
        }
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.metadata.response_code;
        metadata.recursion_available = true;
        let response = response.build(metadata, &reply.answers, &reply.authorities, [], &reply.additionals);
        handle.send_response(response).await.unwrap()
    }
}
