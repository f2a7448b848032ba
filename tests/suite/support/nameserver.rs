//! An upstream that says what a test wants: UDP and TCP on one port of loopback, and a list of what it was asked.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, RecordSet, RecordType, RrKey},
    serialize::txt::Parser,
};

/// How often its threads look whether they should end.
const TICK: Duration = Duration::from_millis(20);

/// What it was asked: name as text, type as text.
pub type Asked = (String, String);

/// What it says to a question, if anything; `true` for TCP.
pub type Script = dyn Fn(&Message, bool) -> Option<Vec<u8>> + Send + Sync;

/// A running server. Ends when dropped.
pub struct Nameserver {
    /// Where it is.
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<(Message, SocketAddr)>>>,
    silent: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Nameserver {
    /// One that answers from a zone.
    pub fn of(zone: Zone) -> Self {
        Self::start(move |question, _| Some(zone.answer(question).to_vec().unwrap()))
    }

    /// One that answers by a script.
    pub fn start(script: impl Fn(&Message, bool) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script)
    }

    /// The same at an address: where an earlier one was, say.
    pub fn start_at(at: SocketAddr, script: impl Fn(&Message, bool) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (udp, tcp) = bind(at);
        let address = udp.local_addr().unwrap();
        let script: Arc<Script> = Arc::new(script);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (silent, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let answer = {
            let (asked, silent) = (Arc::clone(&asked), Arc::clone(&silent));
            move |packet: &[u8], from: SocketAddr, is_tcp: bool| {
                let question = Message::from_vec(packet).ok()?;
                asked.lock().unwrap().push((question.clone(), from));
                if silent.load(Ordering::SeqCst) { None } else { script(&question, is_tcp) }
            }
        };
        let for_tcp = answer.clone();
        let (stop_udp, stop_tcp) = (Arc::clone(&stop), Arc::clone(&stop));
        let threads = vec![
            thread::spawn(move || serve_udp(&udp, &stop_udp, answer)),
            thread::spawn(move || serve_tcp(&tcp, &stop_tcp, for_tcp)),
        ];
        Self { address, asked, silent, stop, threads }
    }

    /// How the configuration names it.
    pub fn uri(&self) -> String {
        format!("udp://{}", self.address)
    }

    /// Everything it was asked so far, in order, our own canaries and probes left out.
    pub fn asked(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap();
        let named = asked.iter().filter_map(|(message, _)| message.queries.first());
        let named = named.map(|query| (query.name().to_ascii().trim_end_matches('.').to_owned(), query.query_type().to_string()));
        named.filter(|(name, _)| !name.is_empty() && !name.contains("tunnelwarden")).collect()
    }

    /// The messages themselves, with where they came from, probes and canaries among them.
    pub fn messages(&self) -> Vec<(Message, SocketAddr)> {
        self.asked.lock().unwrap().clone()
    }

    /// From now on it hears and says nothing, or answers again.
    pub fn silence(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// UDP and TCP on one port, which the kernel may give to somebody else in between.
fn bind(at: SocketAddr) -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let tcp = TcpListener::bind(at).unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both");
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool, answer: impl Fn(&[u8], SocketAddr, bool) -> Option<Vec<u8>>) {
    socket.set_read_timeout(Some(TICK)).unwrap();
    let mut buffer = [0; 65_535];
    while !stop.load(Ordering::SeqCst) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer)
            && let Some(reply) = answer(&buffer[..length], from, false)
        {
            let _ = socket.send_to(&reply, from);
        }
    }
}

fn serve_tcp(
    listener: &TcpListener,
    stop: &AtomicBool,
    answer: impl Fn(&[u8], SocketAddr, bool) -> Option<Vec<u8>> + Clone + Send + 'static,
) {
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, from)) => {
                let answer = answer.clone();
                thread::spawn(move || {
                    let _ = converse(stream, |packet| answer(packet, from, true));
                });
            }
            Err(_) => thread::sleep(TICK),
        }
    }
}

fn converse(mut stream: TcpStream, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut packet)?;
        let Some(reply) = answer(&packet) else { return Ok(()) };
        let mut framed = u16::try_from(reply.len()).unwrap().to_be_bytes().to_vec();
        framed.extend(reply);
        stream.write_all(&framed)?;
    }
}

/// Records of many names, as a zone file has them, with whole replies for some questions.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    records: BTreeMap<RrKey, RecordSet>,
    replies: BTreeMap<Asked, Message>,
}

impl Zone {
    /// Reads lines of a zone file. `reply NAME TYPE RCODE` begins a whole reply: the indented lines after it, `answer`,
    /// `authority` or `additional` and a record each, are said as they stand when exactly that is asked.
    pub fn parse(text: &str) -> Self {
        let (mut zone, mut plain) = (Self::default(), String::new());
        let mut current: Option<Asked> = None;
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            match (words.as_slice(), &current) {
                (["reply", name, rtype, rcode], _) => {
                    let asked = (name.to_lowercase(), rtype.to_uppercase());
                    let mut message = Message::response(0, hickory_proto::op::OpCode::Query);
                    message.metadata.response_code = rcode_named(rcode);
                    zone.replies.insert(asked.clone(), message);
                    current = Some(asked);
                }
                ([section, ..], Some(asked)) if line.starts_with(' ') => {
                    let record = record(line.trim_start().trim_start_matches(section));
                    let message = zone.replies.get_mut(asked).unwrap();
                    match *section {
                        "answer" => message.answers.push(record),
                        "authority" => message.authorities.push(record),
                        "additional" => message.additionals.push(record),
                        other => panic!("not a section: {other}"),
                    }
                }
                _ => {
                    current = None;
                    plain.push_str(line);
                    plain.push('\n');
                }
            }
        }
        zone.records = Parser::new(plain, None, Some(Name::root())).parse().unwrap().1;
        zone
    }

    /// What an authoritative server that also follows aliases would say.
    pub fn answer(&self, question: &Message) -> Message {
        let query = question.queries.first().unwrap();
        let asked = (query.name().to_ascii().trim_end_matches('.').to_lowercase(), query.query_type().to_string());
        let mut reply = self.replies.get(&asked).cloned().unwrap_or_else(|| self.look_up(query.name(), query.query_type()));
        reply.metadata.id = question.metadata.id;
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.recursion_desired = question.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.add_query(query.clone());
        reply.edns = question.edns.clone();
        reply
    }

    fn look_up(&self, name: &Name, rtype: RecordType) -> Message {
        let mut reply = Message::response(0, hickory_proto::op::OpCode::Query);
        let mut name = name.to_lowercase();
        for _ in 0..32 {
            if let Some(found) = self.set(&name, rtype) {
                reply.answers.extend(found);
                return reply;
            }
            let Some(alias) = self.set(&name, RecordType::CNAME).and_then(|found| found.into_iter().next()) else { break };
            let RData::CNAME(target) = &alias.data else { break };
            name = target.0.to_lowercase();
            reply.answers.push(alias);
        }
        let exists = self.records.keys().any(|key| Name::from(key.name.clone()) == name);
        reply.metadata.response_code = if exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
        reply.authorities.push(record(". 300 IN SOA ns.example. root.example. 1 3600 600 86400 300"));
        reply
    }

    fn set(&self, name: &Name, rtype: RecordType) -> Option<Vec<Record>> {
        let found = self.records.get(&RrKey::new(name.into(), rtype))?;
        Some(found.records_without_rrsigs().cloned().collect())
    }
}

/// A record, as a line of a zone file has it.
pub fn record(line: &str) -> Record {
    let zone = Parser::new(format!("{}\n", line.trim()), None, Some(Name::root())).parse().unwrap().1;
    zone.values().next().unwrap().records_without_rrsigs().next().unwrap().clone()
}

/// A response code by the name `dig` prints.
pub fn rcode_named(name: &str) -> ResponseCode {
    match name {
        "NOERROR" => ResponseCode::NoError,
        "FORMERR" => ResponseCode::FormErr,
        "SERVFAIL" => ResponseCode::ServFail,
        "NXDOMAIN" => ResponseCode::NXDomain,
        "NOTIMP" => ResponseCode::NotImp,
        "REFUSED" => ResponseCode::Refused,
        "BADVERS" => ResponseCode::BADVERS,
        other => panic!("not a response code: {other}"),
    }
}
