//! An upstream for the whole daemon: a [`Nameserver`] that answers from a zone, or by a script over messages.

use std::{collections::BTreeMap, net::SocketAddr};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, RecordSet, RecordType, RrKey},
    serialize::txt::Parser,
};

use super::nameserver::{Nameserver, Say};

/// A running upstream. Ends when dropped.
pub struct Upstream(Nameserver);

impl Upstream {
    /// One that answers from a zone.
    pub fn of(zone: Zone) -> Self {
        Self::start(move |question, _| Some(zone.answer(question).to_vec().unwrap()))
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

    /// Every name and type it was asked for, in order, the daemon's own probes left out.
    pub fn asked(&self) -> Vec<(String, String)> {
        let asked = self.0.asked().into_iter();
        asked.map(|asked| (asked.name, RecordType::from(asked.qtype).to_string())).collect()
    }

    /// The questions themselves.
    pub fn messages(&self) -> Vec<Message> {
        self.0.asked().iter().map(|asked| Message::from_vec(&asked.packet).unwrap()).collect()
    }

    /// From now on it hears and says nothing, or answers again.
    pub fn silence(&self, silent: bool) {
        self.0.set_silent(silent);
    }
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
    replies: BTreeMap<(String, String), Message>,
}

impl Zone {
    /// Reads lines of a zone file. `reply NAME TYPE RCODE` begins a whole reply: the indented lines after it, `answer`,
    /// `authority` or `additional` and a record each, are said as they stand when exactly that is asked.
    pub fn parse(text: &str) -> Self {
        let (mut zone, mut plain) = (Self::default(), String::new());
        let mut current: Option<(String, String)> = None;
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
        let mut reply =
            self.replies.get(&asked).cloned().unwrap_or_else(|| self.look_up(query.name(), query.query_type()));
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
