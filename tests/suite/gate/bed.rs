//! Three networks: clients, the gate, and an Internet with ingresses. The redirect is real nftables, the gate is the
//! library's, and nothing outside is touched.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use nix::sys::socket::{Shutdown, shutdown};
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tunnelwarden::{
    audit::{Filter, Process, Reader, Record, Recorder},
    cache::Cache,
    config::{self, Config},
    gate::{Gate, House, Options, Serving},
    gateway::{Access, Clock, Gateway, InForce},
    ingress::Published,
    metrics::Metrics,
    policy::{Learned, Sighting, Source},
    upstream::{Lanes, Surroundings, Upstream},
};

use crate::support::{
    bed::Namespace,
    daemon::PATIENCE,
    upstream::{self, Zone},
};

/// An ingress that everybody shares; the one address that is known and so redirected.
pub const SHARED: &str = "3.125.1.1";
/// Where the own ingress is.
pub const OWN: &str = "3.125.1.2";
/// Somebody else's server.
pub const OTHER: &str = "3.125.1.3";
/// Shared and own ingress over IPv6.
pub const SHARED_V6: &str = "2a05:d014:21b::1";
pub const OWN_V6: &str = "2a05:d014:21b::2";

/// What the gate's upstream server says.
const ZONE: &str = "
connect.acme.example. 60 IN A 3.125.1.2
six.connect.acme.example. 60 IN AAAA 2a05:d014:21b::2
inside.connect.acme.example. 60 IN A 10.9.0.2
down.connect.acme.example. 60 IN A 3.125.1.9
connect.ngrok-agent.com. 60 IN A 3.125.1.2
web.example. 60 IN A 3.125.1.3
alias.example. 60 IN CNAME tunnel.ngrok.com.
tunnel.ngrok.com. 60 IN A 3.125.1.3
";

/// The gate in its surroundings.
pub struct Bed {
    pub clients: Clients,
    pub gateway: Arc<Gateway>,
    pub metrics: Arc<Metrics>,
    /// Where the gate is, as clients see it.
    pub gate: SocketAddr,
    runtime: Runtime,
    serving: Option<Serving>,
    stop: CancellationToken,
    recorder: Recorder,
    learned: Published,
    folder: TempDir,
    upstream: Option<upstream::Upstream>,
    network: Arc<Namespace>,
    _servers: Vec<Server>,
}

/// Where whoever wants through the gate is.
pub struct Clients(Namespace);

impl Bed {
    /// With this below `[organization]`, and the defaults besides.
    pub fn new(config: &str, options: Options) -> Self {
        let [clients, gate, internet] = [(); 3].map(|()| Namespace::new());
        gate.join("lan", &clients, "eth0");
        gate.join("wan", &internet, "eth0");
        clients.ip(IN_CLIENTS);
        gate.ip(IN_GATE);
        internet.ip(&format!("{IN_INTERNET}{}", addresses_of_servers()));
        let servers = internet.inside(|| SERVERS.map(Server::start).into());
        let gate = Arc::new(gate);
        // Threads of the runtime, and of what else is started, stay where they begin.
        gate.inside(|| Self::start(config, options, Clients(clients), Arc::clone(&gate), servers))
    }

    fn start(config: &str, options: Options, clients: Clients, network: Arc<Namespace>, servers: Vec<Server>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (folder, upstream) = (tempfile::tempdir().unwrap(), upstream::Upstream::of(Zone::parse(ZONE)));
        let config = read(&folder, &upstream, config);
        let metrics = Arc::<Metrics>::default();
        let recorder = Recorder::start(&config.audit, folder.path(), Arc::clone(&metrics)).unwrap();
        let learned = Arc::new(ArcSwap::from_pointee(learned()));
        let entered = runtime.enter();
        let asked = {
            let lanes = Lanes::start(1, &metrics).unwrap();
            Upstream::start(&config.upstream, Surroundings::new(Vec::new(), lanes), Arc::clone(&metrics)).unwrap()
        };
        let access = Access::new(&config.limits, config.client_networks.iter().copied(), Arc::clone(&metrics));
        let gateway = Arc::new(Gateway::new(
            in_force(&config, &learned),
            Arc::new(asked),
            Arc::new(access),
            Cache::new(&config.cache, Arc::clone(&metrics)),
            recorder.clone(),
            Arc::new(Clock::new(None)),
            Arc::clone(&metrics),
        ));
        let gate = Gate::open(&["10.9.0.1:0".parse().unwrap(), "[fd00:9::1]:0".parse().unwrap()]).unwrap();
        let addresses: Vec<_> = gate.addresses().collect();
        network.must(&["nft", "-f", "-"], &redirect(addresses[0].port(), addresses[1].port()));
        let stop = CancellationToken::new();
        let house = House {
            gateway: Arc::clone(&gateway),
            metrics: Arc::clone(&metrics),
            options,
            witness: Some(Arc::new(|_, _| Some(process()))),
        };
        let serving = gate.serve(house, runtime.handle(), stop.clone()).unwrap();
        drop(entered);
        let (gate, serving) = (addresses[0], Some(serving));
        #[rustfmt::skip]
        let bed = Self { clients, gateway, metrics, gate, runtime, serving, stop, recorder, learned, folder, upstream: Some(upstream), network, _servers: servers };
        bed
    }

    /// Puts another configuration in force, as a reload does.
    pub fn reload(&self, config: &str) {
        let config = read(&self.folder, self.upstream(), config);
        self.gateway.replace(in_force(&config, &self.learned));
    }

    /// Leads the gate's own connections back to it, as a ruleset would that does not know it.
    pub fn lead_back(&self) {
        let rules = format!(
            "add chain inet gate outgoing {{ type nat hook output priority -105; policy accept; }}
             add rule inet gate outgoing ip daddr {OWN} tcp dport 443 dnat ip to {}",
            self.gate
        );
        self.network.must(&["nft", "-f", "-"], &rules);
    }

    /// Names that the gate's upstream server was asked for.
    pub fn looked_up(&self) -> Vec<String> {
        self.upstream().asked_by_anybody().into_iter().map(|(name, _)| name).collect()
    }

    fn upstream(&self) -> &upstream::Upstream {
        self.upstream.as_ref().expect("it is there for as long as the bed")
    }

    /// Stops the gate, and waits until it is closed.
    pub fn stop(&mut self) {
        self.stop.cancel();
        if let Some(serving) = self.serving.take() {
            self.runtime.block_on(serving.stopped());
        }
    }

    /// The record, oldest first.
    pub fn attempts(&self) -> Vec<Record> {
        self.runtime.block_on(self.recorder.flush());
        Reader::open(&self.folder.path().join("attempts.db")).unwrap().newest(&Filter::default(), 1000).unwrap()
    }

    /// The record in words: decision, name or destination, rule.
    pub fn record(&self) -> Vec<String> {
        let word = |record: &Record| {
            let name = record.question.name.clone().or(record.destination.map(|to| to.to_string()));
            format!("{} {} {}", record.decision, name.unwrap_or_default(), record.rule)
        };
        self.attempts().iter().map(word).collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop();
        // It wakes its threads by a connection.
        let upstream = self.upstream.take();
        self.network.inside(|| drop(upstream));
    }
}

impl Clients {
    /// Dials from there, and says something in pieces.
    pub fn dial(&self, to: SocketAddr, pieces: Vec<Vec<u8>>) -> TcpStream {
        self.0.inside(|| {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            for piece in pieces {
                // Whoever was reset in the middle hears of it when it reads.
                let _ = stream.write_all(&piece);
            }
            stream
        })
    }

    /// The address of the server that answers, or how it ended.
    pub fn reach(&self, to: &str, pieces: Vec<Vec<u8>>) -> Result<IpAddr, String> {
        let mut stream = self.dial(SocketAddr::new(to.parse().unwrap(), 443), pieces);
        banner(&mut stream).map(|text| text.parse().unwrap())
    }

    /// The same, from one of the clients' addresses.
    pub fn reach_from(&self, source: &str, to: &str, said: Vec<u8>) -> Result<IpAddr, String> {
        let (source, to) = (SocketAddr::new(source.parse().unwrap(), 0), SocketAddr::new(to.parse().unwrap(), 443));
        self.0.inside(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.bind(&source.into()).unwrap();
            socket.connect(&to.into()).unwrap();
            let mut stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&said).unwrap();
            banner(&mut stream).map(|text| text.parse().unwrap())
        })
    }

    /// Is a connection reset before anything was said? The reset may come while it is still being made.
    pub fn is_reset(&self, to: SocketAddr) -> bool {
        self.0.inside(|| {
            let read = TcpStream::connect(to).and_then(|mut stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.read(&mut [0])
            });
            read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
        })
    }

    /// What rustls says of a handshake.
    pub fn shake_hands(&self, to: &str, name: &str) -> String {
        let (to, mut tls) = (SocketAddr::new(to.parse().unwrap(), 443), client(name));
        self.0.inside(|| {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            loop {
                match tls.complete_io(&mut stream) {
                    Ok(_) if tls.is_handshaking() => {}
                    Ok(_) => return "done".to_owned(),
                    Err(error) => return error.to_string(),
                }
            }
        })
    }
}

/// The line that a server begins with, or how the connection ended.
pub fn banner(stream: &mut TcpStream) -> Result<String, String> {
    let mut text = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Err(format!("closed after {text:?}")),
            Ok(_) if byte[0] == b'\n' => return Ok(String::from_utf8(text).unwrap()),
            Ok(_) => text.push(byte[0]),
            Err(error) => return Err(format!("{:?} after {text:?}", error.kind())),
        }
    }
}

/// What a client says first that wants to speak to `name`; an address makes it say no name.
pub fn hello(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    client(name).write_tls(&mut bytes).unwrap();
    bytes
}

fn client(name: &str) -> ClientConnection {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A server that takes one TLS record, says its address on a line, and then says everything back.
struct Server(TcpListener);

impl Server {
    fn start(address: &str) -> Self {
        let listener = TcpListener::bind(SocketAddr::new(address.parse().unwrap(), 443)).unwrap();
        let server = Self(listener.try_clone().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(|| echo(stream));
            }
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whoever waits in accept hears of it.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let mut record = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    stream.read_exact(&mut record)?;
    stream.set_nodelay(true)?;
    writeln!(stream, "{}", stream.local_addr()?.ip())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

fn read(folder: &TempDir, upstream: &upstream::Upstream, config: &str) -> Config {
    let path = folder.path().join("tunnelwarden.toml");
    let text = format!("{config}\n[upstream]\nservers = [\"{}\"]\n", upstream.uri());
    std::fs::write(&path, text).unwrap();
    let loaded = config::load(Some(&path), Timestamp::now());
    loaded.outcome.unwrap_or_else(|| panic!("{}", loaded.problems))
}

fn in_force(config: &Config, learned: &Published) -> InForce {
    let (policy, learned) = (Arc::clone(&config.policy), Arc::clone(learned));
    InForce { policy, learned, leases: None, udp_size: config.limits.udp_size, others: config.limits.others }
}

/// Who is said to have made every connection.
pub fn process() -> Process {
    Process { pid: Some(4711), exe: Some("/usr/bin/ngrok".to_owned()), uid: 1000, cgroup: None }
}

fn learned() -> Learned {
    let now = Timestamp::now();
    let source = Source::Name("connect.ngrok-agent.com".parse().unwrap());
    let sighting = Sighting { source, first: now, last: now };
    Learned::default().followed_by([SHARED, SHARED_V6].map(|text| (text.parse().unwrap(), sighting.clone())))
}

const SERVERS: [&str; 5] = [SHARED, OWN, OTHER, SHARED_V6, OWN_V6];

fn addresses_of_servers() -> String {
    let nodad = |address: &str| if address.contains(':') { "nodad" } else { "" };
    SERVERS.map(|address| format!("address add {address} dev lo {}\n", nodad(address))).concat()
}

const IN_CLIENTS: &str = "\
address add 10.9.0.2/24 dev eth0
address add 10.9.0.3/24 dev eth0
address add fd00:9::2/64 dev eth0 nodad
route add default via 10.9.0.1
route add default via fd00:9::1
";

const IN_GATE: &str = "\
address add 10.9.0.1/24 dev lan
address add fd00:9::1/64 dev lan nodad
address add 198.18.0.1/30 dev wan
address add fd00:8::1/64 dev wan nodad
route add default via 198.18.0.2
route add default via fd00:8::2
";

const IN_INTERNET: &str = "\
address add 198.18.0.2/30 dev eth0
address add fd00:8::2/64 dev eth0 nodad
route add default via 198.18.0.1
route add default via fd00:8::1
";

/// What the ruleset does with tcp/443 to ingress addresses.
fn redirect(v4: u16, v6: u16) -> String {
    format!(
        "table inet gate {{
            chain incoming {{
                type nat hook prerouting priority -105; policy accept;
                iifname lan tcp dport 443 ip daddr {SHARED} redirect to :{v4}
                iifname lan tcp dport 443 ip6 daddr {SHARED_V6} redirect to :{v6}
            }}
        }}"
    )
}
