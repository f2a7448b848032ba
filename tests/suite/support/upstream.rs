//! An upstream for the whole daemon: a [`Nameserver`] that answers from a zone, or by a script over messages.

use std::{collections::BTreeMap, net::SocketAddr};

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordSet, RecordType, RrKey,
        rdata::{NULL, opt::EdnsOption},
    },
    serialize::{binary::BinEncodable as _, txt::Parser},
};

use super::nameserver::{Nameserver, Say};

/// A running upstream. Ends when dropped.
pub struct Upstream(Nameserver);

impl Upstream {
    /// One that answers from a zone.
    pub fn of(zone: Zone) -> Self {
        Self::start(move |question, tcp| Some(zone.answer_over(question, tcp).to_vec().unwrap()))
    }

    /// One that answers by a script, which is told whether the question came over TCP; `None` is silence.
    pub fn start(script: impl Fn(&Message, bool) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self(Nameserver::start(say(script)))
    }

    /// The same where an earlier one was.
    pub fn start_at(
        at: SocketAddr,
        script: impl Fn(&Message, bool) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        Self(Nameserver::start_at(at, say(script)))
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// How the configuration names it.
    pub fn uri(&self) -> String {
        format!("udp://{}", self.0.address())
    }

    /// Every name and type it was asked for, in order, the daemon's own probes and lookups left out.
    pub fn asked(&self) -> Vec<(String, String)> {
        shown(self.0.asked())
    }

    /// The daemon's lookups of names that shipped packs resolve, as [`Nameserver::own_lookups`] has them.
    pub fn own_lookups(&self) -> Vec<(String, String)> {
        shown(self.0.own_lookups())
    }

    /// All of it but the probes.
    pub fn asked_by_anybody(&self) -> Vec<(String, String)> {
        shown(self.0.asked_by_anybody())
    }

    /// The questions themselves.
    pub fn messages(&self) -> Vec<Message> {
        self.0.asked_by_anybody().iter().map(|asked| Message::from_vec(&asked.packet).unwrap()).collect()
    }

    /// From now on it hears and says nothing, or answers again.
    pub fn silence(&self, silent: bool) {
        self.0.set_silent(silent);
    }
}

fn shown(asked: Vec<super::nameserver::Asked>) -> Vec<(String, String)> {
    asked.into_iter().map(|asked| (asked.name, type_name(asked.qtype.into()))).collect()
}

fn say(
    script: impl Fn(&Message, bool) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> impl Fn(&super::nameserver::Asked) -> Vec<Say> + Send + Sync + 'static {
    move |asked| {
        let question = Message::from_vec(&asked.packet).unwrap();
        script(&question, asked.tcp).map(Say::Here).into_iter().collect()
    }
}

/// Records of many names, as a zone file has them, with whole replies for some questions.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    records: BTreeMap<RrKey, RecordSet>,
    replies: BTreeMap<(String, String), Reply>,
}

/// A whole reply as a scenario writes it.
#[derive(Clone, Debug)]
struct Reply {
    message: Message,
    /// Cut over datagrams.
    is_cut: bool,
    /// An Extended DNS Error: code and text, in wire form.
    error: Option<Vec<u8>>,
}

impl Zone {
    /// Reads lines of a zone file. `reply NAME TYPE RCODE` begins a whole reply: the indented lines after it, `answer`,
    /// `authority` or `additional` and a record each, `ad`, `aa`, `tc` (cut over datagrams) and `ede CODE TEXT`, are
    /// said as they stand when exactly that is asked.
    pub fn parse(text: &str) -> Self {
        let (mut zone, mut plain) = (Self::default(), String::new());
        let mut current: Option<(String, String)> = None;
        let mut extra = Vec::new();
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            match (words.as_slice(), &current) {
                (["reply", name, rtype, rcode], _) => {
                    let asked = (name.trim_end_matches('.').to_lowercase(), rtype.to_uppercase());
                    let mut message = Message::response(0, OpCode::Query);
                    message.metadata.response_code = rcode_named(rcode);
                    zone.replies.insert(asked.clone(), Reply { message, is_cut: false, error: None });
                    current = Some(asked);
                }
                ([what, rest @ ..], Some(asked)) if line.starts_with(' ') => {
                    zone.replies.get_mut(asked).unwrap().add(what, &rest.join(" "));
                }
                ([owner, _, "IN", rtype, data @ ..], _)
                    if *rtype == "DNAME" || data.first() == Some(&r"\#") || owner.contains('\\') =>
                {
                    let record = record(line);
                    let key = RrKey::new((&record.name).into(), record.record_type());
                    extra.push((key, RecordSet::from(record)));
                }
                _ => {
                    current = None;
                    plain.push_str(line);
                    plain.push('\n');
                }
            }
        }
        zone.records = Parser::new(plain, None, Some(Name::root())).parse().unwrap().1;
        zone.records.extend(extra);
        zone
    }

    /// Adds a whole reply with a record that a zone file cannot say.
    pub fn add_reply(&mut self, name: &Name, rtype: RecordType, answer: RData) {
        let mut message = Message::response(0, hickory_proto::op::OpCode::Query);
        message.answers.push(Record::from_rdata(name.clone(), 60, answer));
        let name = name.to_ascii().trim_end_matches('.').to_lowercase();
        self.replies.insert((name, type_name(rtype)), Reply { message, is_cut: false, error: None });
    }

    /// Has a whole reply say this Extended DNS Error (RFC 8914) too.
    pub fn add_extended_error(&mut self, name: &str, rtype: RecordType, code: u16) {
        let reply = self.replies.get_mut(&(name.to_owned(), type_name(rtype))).unwrap();
        reply.error = Some(code.to_be_bytes().to_vec());
    }

    /// What an authoritative server that also follows aliases would say over TCP.
    pub fn answer(&self, question: &Message) -> Message {
        self.answer_over(question, true)
    }

    /// The same over either transport.
    pub fn answer_over(&self, question: &Message, tcp: bool) -> Message {
        let query = question.queries.first().unwrap();
        let asked = (query.name().to_ascii().trim_end_matches('.').to_lowercase(), type_name(query.query_type()));
        let written = self.replies.get(&asked);
        let mut reply = match written {
            Some(written) if written.is_cut && !tcp => {
                let mut cut = Message::response(0, OpCode::Query);
                cut.metadata.truncation = true;
                cut
            }
            Some(written) => written.message.clone(),
            None => self.look_up(query.name(), query.query_type()),
        };
        reply.metadata.id = question.metadata.id;
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.recursion_desired = question.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.add_query(query.clone());
        reply.edns = question.edns.clone();
        if let (Some(edns), Some(error)) = (reply.edns.as_mut(), written.and_then(|written| written.error.clone())) {
            edns.options_mut().insert(EdnsOption::Unknown(15, error));
        }
        reply
    }

    fn look_up(&self, name: &Name, rtype: RecordType) -> Message {
        let mut reply = Message::response(0, OpCode::Query);
        let mut name = name.to_lowercase();
        for _ in 0..32 {
            if let Some(found) = self.set(&name, rtype) {
                reply.answers.extend(found);
                return reply;
            }
            let Some(alias) = self.set(&name, RecordType::CNAME).and_then(|found| found.into_iter().next()) else {
                break;
            };
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

impl Reply {
    fn add(&mut self, what: &str, rest: &str) {
        let message = &mut self.message;
        match what {
            "answer" => message.answers.push(record(rest)),
            "authority" => message.authorities.push(record(rest)),
            "additional" => message.additionals.push(record(rest)),
            "aa" => message.metadata.authoritative = true,
            "ad" => message.metadata.authentic_data = true,
            "tc" => self.is_cut = true,
            "ede" => {
                let (code, text) = rest.split_once(' ').unwrap_or((rest, ""));
                let code: u16 = code.parse().unwrap();
                self.error = Some([&code.to_be_bytes(), text.trim_matches('"').as_bytes()].concat());
            }
            other => panic!("not a part of a reply: {other}"),
        }
    }
}

/// A record, as a line of a zone file has it. Data may be `\# LENGTH HEX` (RFC 3597).
pub fn record(line: &str) -> Record {
    let words: Vec<_> = line.split_whitespace().collect();
    let (name, ttl, rtype, data) = match words.as_slice() {
        [name, ttl, "IN", "DNAME", target] => {
            (*name, *ttl, RecordType::DNAME, Name::from_ascii(target).unwrap().to_bytes().unwrap())
        }
        [name, ttl, "IN", rtype, r"\#", length, hex @ ..] => {
            let hex = hex.concat();
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let data: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            assert_eq!(data.len(), length.parse::<usize>().unwrap(), "{line}");
            let number: u16 = rtype.trim_start_matches("TYPE").parse().unwrap();
            (*name, *ttl, RecordType::from(number), data)
        }
        [name, rest @ ..] => {
            let mut record = parsed(&format!("x. {}", rest.join(" ")));
            record.name = name_of(name);
            return record;
        }
        [] => panic!("no record"),
    };
    let data = RData::Unknown { code: rtype, rdata: NULL::with(data) };
    Record::from_rdata(name_of(name), ttl.parse().unwrap(), data)
}

/// `A`, or `TYPE65280` where there is no name (RFC 3597).
pub fn type_name(rtype: RecordType) -> String {
    if matches!(rtype, RecordType::Unknown(_)) { format!("TYPE{}", u16::from(rtype)) } else { rtype.to_string() }
}

/// A name in the form of a zone file, `\.` and decimal `\DDD` in it (RFC 1035 section 5.1), its case kept.
pub fn name_of(text: &str) -> Name {
    let (mut labels, mut label) = (Vec::new(), Vec::new());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'\\', [a, b, c, after @ ..]) if a.is_ascii_digit() => {
                let digits = [*a, *b, *c];
                label.push(std::str::from_utf8(&digits).unwrap().parse().unwrap());
                rest = after;
            }
            (b'\\', [escaped, after @ ..]) => {
                label.push(*escaped);
                rest = after;
            }
            (b'.', _) if label.is_empty() => {}
            (b'.', _) => labels.push(std::mem::take(&mut label)),
            (byte, _) => label.push(*byte),
        }
    }
    labels.extend(Some(label).filter(|label| !label.is_empty()));
    Name::from_labels(labels).unwrap()
}

fn parsed(line: &str) -> Record {
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
