//! A scripted name server on loopback, UDP and TCP on one port, for tests that need an upstream.
//!
//! A closure says what is sent for each question; it may block, which holds the answers to later questions over the
//! same transport back. Plain threads, so that it serves whatever runtime a test has. Dropping it closes the port.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// The server; it ends when this is dropped.
pub struct Nameserver {
    address: SocketAddr,
    script: Arc<Script>,
    threads: Vec<JoinHandle<()>>,
}

/// One question as it arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    /// In presentation form, lower case, without the last dot; `.` is the root.
    pub name: String,
    pub qtype: u16,
    pub tcp: bool,
    pub from: SocketAddr,
    pub packet: Vec<u8>,
}

/// One thing to send.
pub enum Say {
    /// From where the question came to.
    Here(Vec<u8>),
    /// From another port of this host; over TCP not at all.
    Elsewhere(Vec<u8>),
    /// Over TCP: close the connection.
    HangUp,
}

/// Those of `policies/ngrok.toml`.
const REGIONS: [&str; 9] = ["us", "eu", "ap", "au", "sa", "jp", "in", "us-cal-1", "eu-lon-1"];

type Answer = dyn Fn(&Asked) -> Vec<Say> + Send + Sync;

struct Script {
    answer: Box<Answer>,
    asked: Mutex<Vec<Asked>>,
    silent: AtomicBool,
    ended: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Nameserver {
    /// At a port of its own on 127.0.0.1.
    pub fn start(answer: impl Fn(&Asked) -> Vec<Say> + Send + Sync + 'static) -> Self {
        let (tcp, udp) = std::iter::repeat_with(|| {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let udp = UdpSocket::bind(tcp.local_addr().unwrap());
            udp.ok().map(|udp| (tcp, udp))
        })
        .flatten()
        .next()
        .unwrap();
        Self::on(tcp, udp, answer)
    }

    /// Where another one was before.
    pub fn start_at(address: SocketAddr, answer: impl Fn(&Asked) -> Vec<Say> + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap(), answer)
    }

    /// Answers every question with this address.
    pub fn with_address(address: Ipv4Addr) -> Self {
        Self::start(move |asked| vec![Say::Here(asked.address(address))])
    }

    fn on(tcp: TcpListener, udp: UdpSocket, answer: impl Fn(&Asked) -> Vec<Say> + Send + Sync + 'static) -> Self {
        let script = Arc::new(Script {
            answer: Box::new(answer),
            asked: Mutex::default(),
            silent: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let address = udp.local_addr().unwrap();
        let (over_udp, over_tcp) = (Arc::clone(&script), Arc::clone(&script));
        let threads =
            vec![thread::spawn(move || over_udp.serve_udp(&udp)), thread::spawn(move || over_tcp.serve_tcp(&tcp))];
        Self { address, script, threads }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked so far, in order. The asker's own upkeep is left out: probes (the root's NS), canaries (a
    /// first label of 32 hexadecimal digits), and what [`own_lookups`](Self::own_lookups) tells.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked_if(|asked| !asked.is_upkeep() && !asked.is_own_lookup())
    }

    /// Questions for addresses of names that shipped packs list under `resolve`. A client's leaked question for one would
    /// be among them: who is out for those compares this list before and after.
    pub fn own_lookups(&self) -> Vec<Asked> {
        self.asked_if(Asked::is_own_lookup)
    }

    /// Both.
    pub fn asked_by_anybody(&self) -> Vec<Asked> {
        self.asked_if(|asked| !asked.is_upkeep())
    }

    fn asked_if(&self, counts: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        let asked = self.script.asked.lock().unwrap();
        asked.iter().filter(|asked| counts(asked)).cloned().collect()
    }

    /// While silent it takes questions down and says nothing.
    pub fn set_silent(&self, silent: bool) {
        self.script.silent.store(silent, Ordering::SeqCst);
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.script.ended.store(true, Ordering::SeqCst);
        // Something has to arrive for the threads to look up.
        let waker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        waker.send_to(&[], self.address).unwrap();
        drop(TcpStream::connect(self.address));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Asked {
    fn read(packet: &[u8], from: SocketAddr, tcp: bool) -> Option<Self> {
        let end = question_end(packet)?;
        let mut labels = Vec::new();
        let mut rest = &packet[12..end - 4];
        while let Some((&length, tail)) = rest.split_first()
            && length > 0
        {
            let (label, tail) = tail.split_at_checked(usize::from(length))?;
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
            rest = tail;
        }
        let name = if labels.is_empty() { ".".to_owned() } else { labels.join(".") };
        let qtype = u16::from_be_bytes([packet[end - 4], packet[end - 3]]);
        Some(Self { name, qtype, tcp, from, packet: packet.to_vec() })
    }

    /// The id.
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.packet[0], self.packet[1]])
    }

    /// Did it come with an OPT record?
    pub fn has_edns(&self) -> bool {
        self.packet[11] > 0
    }

    /// An answer without records; with an OPT record where the question had one.
    pub fn reply(&self, rcode: u8) -> Vec<u8> {
        self.reply_with(rcode, &[])
    }

    /// The same with one A record (whatever the question's type).
    pub fn address(&self, address: Ipv4Addr) -> Vec<u8> {
        let mut record = vec![0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4];
        record.extend(address.octets());
        self.reply_with(0, &[record])
    }

    /// The same with these records, in wire form, as answers.
    pub fn reply_with(&self, rcode: u8, answers: &[Vec<u8>]) -> Vec<u8> {
        let end = question_end(&self.packet).unwrap();
        let mut reply = self.packet[..end].to_vec();
        reply[2] = 0x80 | (reply[2] & 0x01);
        reply[3] = 0x80 | rcode;
        reply[6..8].copy_from_slice(&u16::try_from(answers.len()).unwrap().to_be_bytes());
        reply[8..12].copy_from_slice(&[0, 0, 0, u8::from(self.has_edns())]);
        reply.extend(answers.concat());
        if self.has_edns() {
            reply.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        reply
    }

    /// For A or AAAA of `connect[.REGION].ngrok-agent.com` or `tunnel[.REGION].ngrok.com`.
    fn is_own_lookup(&self) -> bool {
        let labels: Vec<_> = self.name.split('.').collect();
        let is_resolved = match labels[..] {
            ["connect", "ngrok-agent", "com"] | ["tunnel", "ngrok", "com"] => true,
            ["connect", region, "ngrok-agent", "com"] | ["tunnel", region, "ngrok", "com"] => REGIONS.contains(&region),
            _ => false,
        };
        is_resolved && [1, 28].contains(&self.qtype)
    }

    fn is_upkeep(&self) -> bool {
        let first = self.name.split('.').next().unwrap_or_default();
        let canary = first.len() == 32 && first.bytes().all(|byte| byte.is_ascii_hexdigit());
        canary || self.name == "." && self.qtype == 2
    }
}

/// Where the first question ends.
fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = 12;
    while *packet.get(at)? != 0 {
        at += 1 + usize::from(packet[at]);
    }
    Some(at + 5).filter(|end| *end <= packet.len())
}

impl Script {
    /// Takes a question down and says what is to be sent.
    fn hear(&self, packet: &[u8], from: SocketAddr, tcp: bool) -> Vec<Say> {
        let Some(asked) = Asked::read(packet, from, tcp) else { return Vec::new() };
        self.asked.lock().unwrap().push(asked.clone());
        if self.silent.load(Ordering::SeqCst) { Vec::new() } else { (self.answer)(&asked) }
    }

    fn serve_udp(&self, socket: &UdpSocket) {
        let elsewhere = UdpSocket::bind((socket.local_addr().unwrap().ip(), 0)).unwrap();
        let mut buffer = [0; 4096];
        while !self.ended.load(Ordering::SeqCst) {
            // An ICMP error of an earlier reply shows here, and is no reason to end.
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            for say in self.hear(&buffer[..length], from, false) {
                let _ = match say {
                    Say::Here(reply) => socket.send_to(&reply, from),
                    Say::Elsewhere(reply) => elsewhere.send_to(&reply, from),
                    Say::HangUp => Ok(0),
                };
            }
        }
    }

    fn serve_tcp(self: &Arc<Self>, listener: &TcpListener) {
        let mut threads = Vec::new();
        while let Ok((stream, from)) = listener.accept() {
            if self.ended.load(Ordering::SeqCst) {
                break;
            }
            self.connections.lock().unwrap().push(stream.try_clone().unwrap());
            let script = Arc::clone(self);
            threads.push(thread::spawn(move || script.serve_connection(stream, from)));
        }
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// Until either side hangs up.
    fn serve_connection(&self, mut stream: TcpStream, from: SocketAddr) {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
            if stream.read_exact(&mut packet).is_err() {
                return;
            }
            for say in self.hear(&packet, from, true) {
                match say {
                    Say::Here(reply) => {
                        let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
                        let _ = stream.write_all(&[&length, reply.as_slice()].concat());
                    }
                    Say::Elsewhere(_) => {}
                    Say::HangUp => {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                }
            }
        }
    }
}
