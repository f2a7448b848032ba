//! What clients and upstream servers send, and what we make of it.

use std::{net::IpAddr, sync::LazyLock};

use hickory_proto::op::Message;
use tokio::runtime::{Builder, Runtime};

use super::names::is_sound;
use crate::{
    listen::echoes,
    name::{DomainName, NameBuffer},
    wire::{
        CLASS_IN, HEADER, Rcode,
        answer::{Answer, Asked, BadAnswer},
        query::{Fit, Query},
        question::{Peeked, Question, Scrap, peek},
        reply::{self, Ageing, ExtendedError, Form, Refusal},
    },
};

/// Most bytes of a message.
const WHOLE: usize = 65_535;

/// A client's packet.
pub fn question(bytes: &[u8]) {
    let mut buffer = NameBuffer::new();
    match peek(bytes, &mut buffer) {
        Peeked::Silence(Scrap::Short) => assert!(bytes.len() < HEADER),
        Peeked::Silence(Scrap::Response) => assert!(bytes[2] & 0x80 != 0, "only answers are not answered"),
        Peeked::Fault { header, rcode } => {
            assert_eq!(rcode == Rcode::NOTIMP, header.opcode != 0);
            let mut out = Vec::new();
            reply::fault(header, rcode, &mut out);
            let shown = read_reply(&out, bytes);
            assert_eq!((out.len(), u16::from(shown.metadata.response_code)), (HEADER, rcode.0));
        }
        Peeked::Question(question) => {
            is_read_as_it_stands(bytes, &question);
            is_refused_within_every_limit(bytes, &question);
        }
    }
}

/// The name is that of the bytes, whatever stands behind it and in whatever case.
fn is_read_as_it_stands(bytes: &[u8], question: &Question<'_>) {
    let end = HEADER + question.section.len();
    assert_eq!(question.section, &bytes[HEADER..end]);
    let (name, rest) = question.section.split_at(question.section.len() - 4);
    assert_eq!(question.name.as_wire(), name.to_ascii_lowercase());
    assert_eq!(rest, [question.qtype.to_be_bytes(), question.qclass.to_be_bytes()].concat());
    is_sound(question.name);

    let turned: Vec<u8> =
        name.iter().map(|byte| if byte.is_ascii_alphabetic() { byte ^ 0x20 } else { *byte }).collect();
    for packet in [bytes[..end].to_vec(), [&bytes[..HEADER], &turned, &bytes[end - 4..]].concat()] {
        let mut buffer = NameBuffer::new();
        let Peeked::Question(again) = peek(&packet, &mut buffer) else { panic!("no question any more: {packet:02x?}") };
        assert_eq!(
            (again.name, again.qtype, again.qclass, again.header),
            (question.name, question.qtype, question.qclass, question.header)
        );
    }
}

fn is_refused_within_every_limit(bytes: &[u8], question: &Question<'_>) {
    let sinkhole = [IpAddr::from([192, 0, 2, 53]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 53])].repeat(30);
    let text = "r\u{e4}".repeat(200);
    let limits = [question.udp_limit(512), question.udp_limit(1232), question.udp_limit(4096), WHOLE];
    assert!(limits[0] == 512 && limits[1] <= 1232 && limits[2] <= 4096);
    for limit in limits {
        for form in [Form::Nxdomain, Form::Nodata, Form::Refused, Form::Sinkhole(&sinkhole)] {
            let mut out = Vec::new();
            reply::refusal(question, &Refusal { form, ttl: 60, text: &text }, limit, &mut out);
            is_reply(&out, bytes, question, limit);
        }
        let mut out = Vec::new();
        let error = ExtendedError { code: 22, text: text.as_bytes() };
        reply::error(question, Rcode::BADVERS, Some(error), limit, &mut out);
        is_reply(&out, bytes, question, limit);
    }
}

/// A reply of ours to this question: whole, of its id, with its question byte for byte, and not too long.
fn is_reply(out: &[u8], asked: &[u8], question: &Question<'_>, limit: usize) {
    assert!(out.len() <= limit, "{} bytes of {limit}", out.len());
    assert_eq!(&out[HEADER..HEADER + question.section.len()], question.section);
    let shown = read_reply(out, asked);
    assert_eq!(shown.edns.is_some(), question.edns.is_some(), "EDNS is answered with EDNS");
}

/// hickory takes it for a response with this packet's id.
fn read_reply(out: &[u8], asked: &[u8]) -> Message {
    is_well_formed(out);
    let shown = Message::from_vec(out).unwrap_or_else(|error| panic!("{error}: {out:02x?}"));
    assert_eq!(out[..2], asked[..2]);
    assert!(out[2] & 0x80 != 0);
    shown
}

/// A client's stream: questions are told apart by the lengths in front of them, and by nothing else.
pub fn stream(bytes: &[u8]) {
    let (written, is_whole) = RUNTIME.block_on(echoes(bytes));
    let (asked, ends_well) = frames(bytes);
    let (mut echoed, is_framed) = frames(&written);
    assert_eq!((is_whole, is_framed), (ends_well, true));
    assert!(!is_whole || echoed.len() == asked.len(), "every question is answered, once");
    for question in asked {
        if let Some(place) = echoed.iter().position(|echo| *echo == question) {
            echoed.swap_remove(place);
        }
    }
    assert!(echoed.is_empty(), "an answer to what was not asked");
}

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));

/// The frames up to the first that is none, and whether there is nothing behind them.
fn frames(mut rest: &[u8]) -> (Vec<&[u8]>, bool) {
    let mut frames = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length));
        match behind.split_at_checked(length).filter(|_| (1..=4096).contains(&length)) {
            Some((frame, behind)) => {
                frames.push(frame);
                rest = behind;
            }
            None => break,
        }
    }
    (frames, rest.is_empty())
}

/// A server's packet, read as the answer to the question that stands in it. Whether DNSSEC records were asked for and
/// whether the client speaks EDNS is in the id, which has no other meaning here.
pub fn upstream_answer(bytes: &[u8]) {
    let Some((name, qtype, qclass)) = question_of(bytes) else {
        let root = DomainName::root();
        let asked = Asked { name: root.as_name(), qtype: 1, qclass: CLASS_IN, dnssec_ok: true };
        assert!(Answer::read(bytes, &asked).is_err());
        return;
    };
    let asked = Asked { name: name.as_name(), qtype, qclass, dnssec_ok: bytes[1] & 1 != 0 };
    fits_its_question_alone(bytes, &asked);
    let other = Asked { qtype: qtype ^ 1, ..asked };
    assert!(matches!(Answer::read(bytes, &other), Err(BadAnswer::OtherQuestion | BadAnswer::Malformed)));
    let Ok(answer) = Answer::read(bytes, &asked) else { return };
    holds_what_it_says(&answer);
    for limit in [512, 1232, WHOLE] {
        is_given_within(&answer, &asked, bytes, limit);
    }
    is_the_same_read_again(&answer, &asked);
    let stripped = answer.without_ech(&asked).expect("it was read with this question");
    assert!(!stripped.has_ech() && !stripped.is_authentic());
    assert_eq!((stripped.aliases(), stripped.addresses()), (answer.aliases(), answer.addresses()));
    is_given_within(&stripped, &asked, bytes, WHOLE);
}

/// What is taken for the reply to a question of ours is one to it.
fn fits_its_question_alone(bytes: &[u8], asked: &Asked<'_>) {
    let id = u16::from_be_bytes([bytes[0], bytes[1]]);
    let (name, qtype) = (asked.name.to_owned(), asked.qtype);
    let query = Query { name, qtype, dnssec_ok: asked.dnssec_ok, checking_disabled: false };
    let fit = query.fit(id, bytes);
    assert!(query.fit(!id, bytes) == Fit::NearMiss && query.fit(id, &query.to_packet(id, true)) == Fit::NearMiss);
    let is_one = bytes[2] & 0xf8 == 0x80 && bytes[4..6] == [0, 1] && asked.qclass == CLASS_IN;
    assert_eq!(fit == Fit::Reply, is_one);
    let read = Answer::read(bytes, &Asked { qclass: CLASS_IN, ..*asked });
    assert_eq!(read == Err(BadAnswer::OtherQuestion), !is_one, "{fit:?}");
}

/// The question of a packet, if it has one.
pub(super) fn question_of(packet: &[u8]) -> Option<(DomainName, u16, u16)> {
    let mut buffer = NameBuffer::new();
    let length = buffer.take_wire(packet.get(HEADER..)?).ok()?;
    let &[a, b, c, d] = packet.get(HEADER + length..)?.first_chunk()?;
    Some((buffer.name().to_owned(), u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn holds_what_it_says(answer: &Answer) {
    answer.aliases().iter().for_each(|name| is_sound(name.as_name()));
    assert!(answer.memory() >= size_of_val(answer.addresses()));
    assert!(answer.errors().count() <= 4 && answer.errors().all(|error| error.text.len() <= 256));
    if answer.is_truncated() {
        assert!(answer.aliases().is_empty() && answer.addresses().is_empty() && answer.ttl().is_none());
    }
    let may_be_kept = matches!(answer.rcode(), Rcode::NOERROR | Rcode::NXDOMAIN);
    assert!(answer.ttl().is_none_or(|ttl| may_be_kept && ttl <= i32::MAX.unsigned_abs()));
}

/// The packet of a client that asks for it: AD and RD set; EDNS with or without DO.
fn packet_of(asked: &Asked<'_>, edns: bool) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    packet.extend_from_slice(asked.name.as_wire());
    packet.extend_from_slice(&asked.qtype.to_be_bytes());
    packet.extend_from_slice(&asked.qclass.to_be_bytes());
    if edns {
        packet.extend_from_slice(&[0, 0, 41, 0xff, 0xff, 0, 0, if asked.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
    }
    packet
}

const FRESH: Ageing = Ageing { seconds: 0, at_most: u32::MAX, stale: false };

/// What is given out of it keeps within a limit, and can be read wherever the server's own packet could.
fn is_given_within(answer: &Answer, asked: &Asked<'_>, server_said: &[u8], limit: usize) {
    let packet = packet_of(asked, server_said[0] & 1 != 0);
    let mut buffer = NameBuffer::new();
    let Peeked::Question(question) = peek(&packet, &mut buffer) else { panic!("no question: {packet:02x?}") };
    for seconds in [0, 17] {
        let mut out = Vec::new();
        reply::answer(&question, answer, Ageing { seconds, at_most: 300, stale: false }, limit, &mut out);
        assert!(out.len() <= limit, "{} bytes of {limit}", out.len());
        is_well_formed(&out);
        // Data of types that only its owner and hickory know goes on as it came.
        if Message::from_vec(server_said).is_ok() {
            let shown = Message::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {out:02x?}"));
            let records = shown.answers.iter().chain(&shown.authorities);
            assert!(records.into_iter().all(|record| record.ttl <= 300));
        }
    }
}

/// What we send is what we would read, had a server sent it: nothing in it is left to be understood otherwise.
fn is_the_same_read_again(answer: &Answer, asked: &Asked<'_>) {
    let packet = packet_of(asked, true);
    let mut buffer = NameBuffer::new();
    let Peeked::Question(question) = peek(&packet, &mut buffer) else { panic!("no question: {packet:02x?}") };
    let mut out = Vec::new();
    reply::answer(&question, answer, FRESH, usize::MAX, &mut out);
    if out.len() <= WHOLE && !answer.is_truncated() {
        assert_eq!(Answer::read(&out, asked).as_ref(), Ok(answer), "{out:02x?}");
    }
}

/// Header, names, records and lengths add up; pointers lead backwards to the beginning of a label.
pub(super) fn is_well_formed(packet: &[u8]) {
    let count = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let mut labels = vec![false; packet.len()];
    let mut at = HEADER;
    for _ in 0..count(4) {
        at = pass_name(packet, at, &mut labels) + 4;
    }
    for _ in 0..count(6) + count(8) + count(10) {
        at = pass_name(packet, at, &mut labels) + 10;
        let data = at;
        at += count(data - 2);
        // Names in data are pointed at too; where they begin depends on the type.
        labels[data..at].fill(true);
    }
    assert_eq!(at, packet.len(), "the counts are those of the records: {packet:02x?}");
}

/// Passes over a name; its labels may be pointed at from now on.
fn pass_name(packet: &[u8], mut at: usize, labels: &mut [bool]) -> usize {
    loop {
        match packet[at] {
            length @ 0..=63 => {
                labels[at] = true;
                at += 1 + usize::from(length);
                if length == 0 {
                    return at;
                }
            }
            high @ 192..=255 => {
                let target = usize::from(u16::from_be_bytes([high & 0x3f, packet[at + 1]]));
                assert!(labels[target], "a pointer to {target}, where no label begins: {packet:02x?}");
                return at + 2;
            }
            64..=191 => panic!("a label of another kind: {packet:02x?}"),
        }
    }
}
