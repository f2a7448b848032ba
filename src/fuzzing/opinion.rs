//! hickory's reading beside ours: of a packet that both take, both say the same.

use std::net::IpAddr;

use hickory_proto::{
    op::{Message, MessageType, OpCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::opt::{EdnsCode, EdnsOption},
    },
};

use super::packets::question_of;
use crate::{
    name::{DomainName, NameBuffer},
    wire::{
        CLASS_IN, Rcode,
        answer::{Answer, Asked, MAX_ALIASES},
        question::{MAX_OPTIONS, MAX_RECORDS, Peeked, Question, peek},
        rtype,
    },
};

/// The packet as a client's question, and as a server's answer.
pub fn hickory_agrees(bytes: &[u8]) {
    let Ok(theirs) = Message::from_vec(bytes) else { return };
    let mut buffer = NameBuffer::new();
    match peek(bytes, &mut buffer) {
        Peeked::Question(question) => is_the_same_question(&theirs, &question),
        Peeked::Silence(_) => assert_eq!(theirs.metadata.message_type, MessageType::Response),
        Peeked::Fault { rcode, .. } => {
            let is_plain = theirs.metadata.op_code == OpCode::Query && theirs.queries.len() == 1;
            // hickory follows a pointer in a question, which has nothing to point back at.
            assert!(rcode == Rcode::NOTIMP || !is_plain || question_of(bytes).is_none(), "{theirs}");
        }
    }
    is_the_same_answer(bytes, &theirs);
}

fn is_the_same_question(theirs: &Message, ours: &Question<'_>) {
    let [query] = theirs.queries.as_slice() else { panic!("one question: {theirs}") };
    assert_eq!(plain(query.name()), ours.name.to_owned());
    assert_eq!((u16::from(query.query_type()), u16::from(query.query_class())), (ours.qtype, ours.qclass));
    let (meta, header) = (&theirs.metadata, ours.header);
    assert_eq!(
        (meta.id, meta.recursion_desired, meta.authentic_data, meta.checking_disabled),
        (header.id, header.recursion_desired, header.authentic_data, header.checking_disabled)
    );
    if ours.fault == Some(Rcode::FORMERR) {
        return;
    }
    assert!(theirs.answers.is_empty() && theirs.authorities.is_empty());
    assert!(theirs.additionals.len() <= usize::from(MAX_RECORDS));
    let (Some(edns), Some(own)) = (&theirs.edns, ours.edns) else {
        return assert_eq!(theirs.edns.is_none(), ours.edns.is_none());
    };
    assert_eq!((edns.version(), edns.flags().dnssec_ok), (own.version, own.dnssec_ok));
    // hickory raises what is too small.
    assert_eq!(edns.max_payload(), own.udp_size.max(512));
    assert!(edns.options().as_ref().len() <= MAX_OPTIONS || own.version > 0);
    if let (Some(address), Some(EdnsOption::Subnet(subnet))) = (own.client_subnet, edns.option(EdnsCode::Subnet)) {
        assert_eq!((subnet.addr(), subnet.scope_prefix()), (address, 0));
    }
}

fn is_the_same_answer(bytes: &[u8], theirs: &Message) {
    let Some((name, qtype, qclass)) = question_of(bytes) else { return };
    let asked = Asked { name: name.as_name(), qtype, qclass, dnssec_ok: false };
    let Ok(ours) = Answer::read(bytes, &asked) else { return };
    // Of a truncated packet we do not even read the OPT record, where the upper bits of the code are.
    let bits = if ours.is_truncated() { 0xf } else { u16::MAX };
    assert_eq!(ours.rcode().0, u16::from(theirs.metadata.response_code) & bits);
    assert_eq!(
        (ours.is_truncated(), ours.is_authentic()),
        (theirs.metadata.truncation, theirs.metadata.authentic_data)
    );
    // Which of several DNAMEs counts, and what ANY and CNAME show of a chain, is told by tests of their own.
    let is_plain = !theirs.answers.iter().any(|record| record.record_type() == RecordType::DNAME);
    if ours.is_truncated() || !is_plain || qclass != CLASS_IN || ![rtype::A, rtype::AAAA].contains(&qtype) {
        return;
    }
    let (aliases, addresses) = literal_chain(&name, RecordType::from(qtype), &theirs.answers);
    assert_eq!((ours.aliases(), ours.addresses()), (aliases.as_slice(), addresses.as_slice()), "{theirs}");
}

/// Where the name leads and what is there, read from the records as they are listed.
fn literal_chain(asked: &DomainName, qtype: RecordType, records: &[Record]) -> (Vec<DomainName>, Vec<IpAddr>) {
    let owned = |name: &DomainName| {
        let name = name.clone();
        let is_in = |record: &&Record| u16::from(record.dns_class) == CLASS_IN;
        records.iter().filter(is_in).filter(move |record| plain(&record.name) == name)
    };
    let (mut aliases, mut end) = (Vec::new(), asked.clone());
    let target = |record: &Record| if let RData::CNAME(target) = &record.data { Some(plain(target)) } else { None };
    while let Some(next) = owned(&end).find_map(target) {
        assert!(aliases.len() < MAX_ALIASES, "a longer chain is none");
        aliases.push(next.clone());
        end = next;
    }
    let address = |record: &Record| {
        let v4 = if let RData::A(address) = &record.data { Some(IpAddr::V4(address.0)) } else { None };
        let v6 = if let RData::AAAA(address) = &record.data { Some(IpAddr::V6(address.0)) } else { None };
        v4.or(v6)
    };
    let addresses = owned(&end).filter(|record| record.record_type() == qtype).filter_map(address).collect();
    (aliases, addresses)
}

/// A name of hickory's as one of ours.
fn plain(name: &Name) -> DomainName {
    let mut buffer = NameBuffer::new();
    buffer.clear();
    name.iter().for_each(|label| buffer.push_label(label).expect("a label"));
    buffer.close().expect("a name").name().to_owned()
}
