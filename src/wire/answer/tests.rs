//! What is read from answers: chains, what is left behind, what a policy is shown, and that no packet is too much.

#![allow(clippy::type_complexity, reason = "a table's type is its columns")]

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::Message,
    rr::{Name, RData, Record as HickoryRecord},
};
use proptest::prelude::*;

use super::*;
use crate::name::NameBuffer;
use crate::wire::{
    CLASS_IN,
    question::{Peeked, peek},
    reply::{self, Ageing},
    testing::{longest_name, message, name, opt, option, query, record, response},
};

const NS: u16 = 2;
const MX: u16 = 15;
const TXT: u16 = 16;

struct Read {
    asked: DomainName,
    qtype: u16,
    result: Result<Answer, BadAnswer>,
}

/// Reads a packet as the answer to a question for `text`.
fn read_with(packet: &[u8], text: &str, qtype: u16, dnssec_ok: bool) -> Read {
    let asked = DomainName::from_wire(&name(text)).unwrap();
    let result = Answer::read(packet, &Asked { name: asked.as_name(), qtype, qclass: CLASS_IN, dnssec_ok });
    Read { asked, qtype, result }
}

fn read(packet: &[u8], text: &str, qtype: u16) -> Answer {
    read_with(packet, text, qtype, false).result.unwrap()
}

/// Reads the records of a response to `www.a.example`, type A.
fn read_answers(answers: &[Vec<u8>]) -> Result<Answer, BadAnswer> {
    read_with(&response("www.a.example", rtype::A, answers, &[]), "www.a.example", rtype::A, false).result
}

/// What a client gets of an answer, as hickory sees it.
fn delivered(answer: &Answer, text: &str, qtype: u16, seconds: u32) -> Message {
    let packet = query(text, qtype, &[opt(4096, 0, 0x80, &[])]);
    let mut buffer = NameBuffer::new();
    let Peeked::Question(question) = peek(&packet, &mut buffer) else { panic!("no question") };
    let mut out = Vec::new();
    reply::answer(&question, answer, Ageing { seconds, at_most: u32::MAX, stale: false }, 65_535, &mut out);
    Message::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {out:02x?}"))
}

fn texts(records: &[HickoryRecord]) -> Vec<String> {
    records.iter().map(|record| format!("{} {} {}", record.name, record.record_type(), record.data)).collect()
}

/// The answer section a client gets, a line a record.
fn lines(answer: &Answer, text: &str, qtype: u16) -> Vec<String> {
    texts(&delivered(answer, text, qtype, 0).answers)
}

fn names(answer: &Answer) -> Vec<String> {
    answer.aliases().iter().map(ToString::to_string).collect()
}

/// A name as [`DomainName`] shows it.
fn plain(name: &Name) -> String {
    name.to_lowercase().to_string().trim_end_matches('.').to_owned()
}

fn a(owner: &str) -> Vec<u8> {
    record(&name(owner), rtype::A, 300, &[192, 0, 2, 1])
}

fn cname(owner: &str, target: &str) -> Vec<u8> {
    record(&name(owner), rtype::CNAME, 60, &name(target))
}

fn dname(owner: &str, target: &str) -> Vec<u8> {
    record(&name(owner), rtype::DNAME, 90, &name(target))
}

fn soa(owner: &str, ttl: u32, minimum: u32) -> Vec<u8> {
    let data = [name("ns.a.example"), name("x.a.example"), vec![0; 16], minimum.to_be_bytes().to_vec()].concat();
    record(&name(owner), rtype::SOA, ttl, &data)
}

fn rrsig(owner: &str, covered: u16) -> Vec<u8> {
    let data = [&covered.to_be_bytes()[..], &[13, 2, 0, 0, 1, 44], &[0; 10], &name("a.example"), &[7; 64]].concat();
    record(&name(owner), rtype::RRSIG, 300, &data)
}

fn nsec(owner: &str) -> Vec<u8> {
    record(&name(owner), rtype::NSEC, 200, &[name("z.a.example"), vec![0, 1, 0x40]].concat())
}

fn https(owner: &str, target: &str, parameters: &[(u16, &[u8])]) -> Vec<u8> {
    let parameters: Vec<u8> = parameters.iter().flat_map(|(key, value)| option(*key, value)).collect();
    record(&name(owner), rtype::HTTPS, 300, &[vec![0, 1], name(target), parameters].concat())
}

#[test]
fn only_the_chain_and_its_end_are_kept_whatever_their_order() {
    let mut answers = vec![
        a("planted.example"),
        cname("www.a.example", "b.example"),
        cname("b.example", "C.example"),
        a("c.example"),
        record(&name("c.example"), TXT, 5, b"\x01x"),
        a("www.a.example"),
    ];
    let expected = ["www.a.example. CNAME b.example.", "b.example. CNAME C.example.", "C.example. A 192.0.2.1"];
    for _ in 0..answers.len() {
        answers.rotate_left(1);
        let answer = read_answers(&answers).unwrap();
        assert_eq!(lines(&answer, "www.a.example", rtype::A), expected);
        assert_eq!(names(&answer), ["b.example", "c.example"]);
        assert_eq!(answer.addresses(), [Ipv4Addr::new(192, 0, 2, 1)]);
        assert_eq!((answer.ttl(), answer.is_negative(), answer.rcode()), (Some(60), false, Rcode::NOERROR));
    }
}

#[test]
fn sixteen_aliases_are_followed_and_seventeen_are_not() {
    let chain = |length: usize| -> Vec<Vec<u8>> {
        let next = |index: usize| if index == 0 { "www.a.example".to_owned() } else { format!("n{index}.example") };
        let links = (0..length).rev().map(|index| cname(&next(index), &next(index + 1)));
        links.chain([a(&next(length))]).collect()
    };
    let answer = read_answers(&chain(16)).unwrap();
    assert_eq!((answer.aliases().len(), answer.addresses().len()), (16, 1));
    assert_eq!(read_answers(&chain(17)), Err(BadAnswer::TooManyAliases));
}

#[test]
fn aliases_in_a_circle_are_no_answer() {
    for circle in [
        vec![cname("www.a.example", "WWW.a.example")],
        vec![cname("www.a.example", "b.example"), cname("b.example", "www.a.example")],
        vec![cname("www.a.example", "b.example"), cname("b.example", "c.example"), cname("c.example", "b.example")],
    ] {
        assert_eq!(read_answers(&circle), Err(BadAnswer::AliasLoop));
    }
    let growing = read_answers(&[dname("a.example", "a.a.example")]);
    assert_eq!(growing, Err(BadAnswer::TooManyAliases));
}

#[test]
fn a_dname_counts_by_the_name_it_makes() {
    let made = "www.a.example. CNAME www.b.example.";
    let given = [dname("a.example", "b.example"), cname("www.a.example", "www.b.example"), a("www.b.example")];
    let alone = [a("www.b.example"), dname("a.example", "b.example")];
    for answers in [&given[..], &alone[..]] {
        let answer = read_answers(answers).unwrap();
        let lines = lines(&answer, "www.a.example", rtype::A);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("a.example. DNAME"), "{lines:?}");
        assert_eq!(lines[1..], [made, "www.b.example. A 192.0.2.1"]);
        assert_eq!(names(&answer), ["www.b.example"]);
    }
    let contradicting = [dname("a.example", "b.example"), cname("www.a.example", "c.example"), a("c.example")];
    assert_eq!(names(&read_answers(&contradicting).unwrap()), ["www.b.example", "c.example"]);
    // Its own name, and names that are not below it, are none of its business.
    let owner = read(&response("a.example", rtype::A, &[dname("a.example", "b.example")], &[]), "a.example", rtype::A);
    assert!(owner.aliases().is_empty() && owner.is_negative());
}

#[test]
fn who_asks_for_the_alias_gets_it_and_it_is_judged() {
    let answers = [cname("www.a.example", "b.example"), cname("b.example", "c.example")];
    for answers in [&answers[..], &[dname("a.example", "b.example")]] {
        let answer = read(&response("www.a.example", rtype::CNAME, answers, &[]), "www.a.example", rtype::CNAME);
        assert!(!answer.is_negative());
        assert_eq!(answer.aliases().len(), 1);
        assert!(lines(&answer, "www.a.example", rtype::CNAME).last().unwrap().contains("CNAME"));
    }
}

#[test]
fn any_gives_everything_the_chain_owns() {
    let answers = [
        cname("www.a.example", "b.example"),
        cname("www.a.example", "evil.example"),
        record(&name("www.a.example"), TXT, 5, b"\x01x"),
        record(&name("b.example"), MX, 5, &[vec![0, 1], name("m.example")].concat()),
        record(&name("b.example"), rtype::OPT, 5, &[]),
        record(&name("b.example"), 250, 5, &[1]),
        a("b.example"),
        a("c.example"),
    ];
    let answer = read(&response("www.a.example", rtype::ANY, &answers, &[]), "www.a.example", rtype::ANY);
    let lines = lines(&answer, "www.a.example", rtype::ANY);
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(!lines.concat().contains("evil") && !lines.concat().contains("c.example"), "{lines:?}");
}

#[test]
fn signatures_and_proofs_are_kept_for_who_asked_for_them() {
    let answers = [
        cname("www.a.example", "b.a.example"),
        rrsig("www.a.example", rtype::CNAME),
        rrsig("www.a.example", rtype::A),
        a("b.a.example"),
        rrsig("b.a.example", rtype::A),
        rrsig("b.a.example", TXT),
        rrsig("other.example", rtype::A),
    ];
    let authorities =
        [nsec("a.example"), rrsig("a.example", rtype::NSEC), rrsig("a.example", NS), soa("a.example", 9, 9)];
    let packet = response("www.a.example", rtype::A, &answers, &authorities);
    for (dnssec_ok, counts) in [(true, (4, 2)), (false, (2, 0))] {
        let answer = read_with(&packet, "www.a.example", rtype::A, dnssec_ok).result.unwrap();
        assert_eq!(answer.counts(), counts);
        assert_eq!(delivered(&answer, "www.a.example", rtype::A, 0).authorities.len(), usize::from(counts.1));
    }
    let authorities =
        [soa("a.example", 9, 9), rrsig("a.example", rtype::SOA), nsec("a.example"), rrsig("a.example", NS)];
    let packet = message(0x8183, ("www.a.example", rtype::A), [&[], &authorities, &[]]);
    for (dnssec_ok, counts) in [(true, (0, 3)), (false, (0, 1))] {
        let answer = read_with(&packet, "www.a.example", rtype::A, dnssec_ok).result.unwrap();
        assert_eq!((answer.counts(), answer.rcode()), (counts, Rcode::NXDOMAIN));
    }
}

#[test]
fn a_negative_answer_holds_as_long_as_its_soa_says() {
    let alias = [cname("www.a.example", "b.a.example")];
    let nothing = &[][..];
    #[rustfmt::skip]
    let cases: &[(&str, u16, &[Vec<u8>], Vec<Vec<u8>>, Option<u32>, (u16, u16))] = &[
        ("minimum is shorter",   0x8183, nothing, vec![soa("a.example", 3600, 60)],       Some(60), (0, 1)),
        ("TTL is shorter",       0x8183, nothing, vec![soa("a.example", 30, 60)],         Some(30), (0, 1)),
        ("nodata",               0x8180, nothing, vec![soa("a.example", 3600, 60)],       Some(60), (0, 1)),
        ("alias is shorter",     0x8183, &alias,  vec![soa("a.example", 3600, 900)],      Some(60), (1, 1)),
        ("of the root",          0x8183, nothing, vec![soa("", 3600, 60)],                Some(60), (0, 1)),
        ("without SOA",          0x8183, nothing, vec![],                                 None,     (0, 0)),
        ("SOA of another zone",  0x8183, nothing, vec![soa("b.example", 3600, 60)],       None,     (0, 0)),
        ("a referral",           0x8180, nothing, vec![record(&name("example"), NS, 9, &name("n.example"))], None, (0, 0)),
        ("two SOAs",             0x8183, nothing, vec![soa("a.example", 50, 60), soa("a.example", 9, 9)], Some(50), (0, 1)),
        ("a failure",            0x8182, nothing, vec![soa("a.example", 3600, 60)],       None,     (0, 1)),
        ("refused",              0x8185, nothing, vec![],                                 None,     (0, 0)),
    ];
    for (what, flags, answers, authorities, ttl, counts) in cases {
        let packet = message(*flags, ("www.a.example", rtype::A), [answers, authorities, &[]]);
        let answer = read(&packet, "www.a.example", rtype::A);
        assert_eq!((answer.ttl(), answer.counts(), answer.is_negative()), (*ttl, *counts, true), "{what}");
    }
    let packet = message(0x8183, ("www.a.example", rtype::A), [&[], &[soa("a.example", 3600, 60)], &[]]);
    let delivered = delivered(&read(&packet, "www.a.example", rtype::A), "www.a.example", rtype::A, 50);
    assert_eq!(delivered.authorities[0].ttl, 10, "an absence ends for everybody at the same time");
}

#[test]
fn a_ttl_with_the_top_bit_set_is_0() {
    let answer = read_answers(&[record(&name("www.a.example"), rtype::A, 0x8000_0001, &[1; 4])]).unwrap();
    assert_eq!(answer.ttl(), Some(0));
    assert_eq!(delivered(&answer, "www.a.example", rtype::A, 0).answers[0].ttl, 0);
    let answer = read_answers(&[record(&name("www.a.example"), rtype::A, 0x7fff_ffff, &[1; 4])]).unwrap();
    assert_eq!(answer.ttl(), Some(0x7fff_ffff));
}

#[test]
fn what_answers_something_else_is_no_answer() {
    let good = response("www.a.example", rtype::A, &[a("www.a.example")], &[]);
    let other = BadAnswer::OtherQuestion;
    let changed = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        packet
    };
    let class_at = 12 + name("www.a.example").len() + 3;
    #[rustfmt::skip]
    let cases: &[(&str, Vec<u8>, BadAnswer)] = &[
        ("a query",            changed(2, 0x01),                                        other),
        ("another operation",  changed(2, 0xa9),                                        other),
        ("two questions",      changed(5, 2),                                           other),
        ("no question",        changed(5, 0),                                           other),
        ("another name",       response("wwx.a.example", rtype::A, &[], &[]),           other),
        ("another type",       response("www.a.example", rtype::AAAA, &[], &[]),        other),
        ("another class",      changed(class_at, 3),                                    other),
        ("pointer as name",    changed(12, 0xc0),                                       BadAnswer::Malformed),
        ("header only",        good[..12].to_vec(),                                     BadAnswer::Malformed),
        ("cut off",            good[..good.len() - 1].to_vec(),                         BadAnswer::Malformed),
        ("less than a header", good[..11].to_vec(),                                     BadAnswer::Malformed),
        ("more claimed",       changed(7, 2),                                           BadAnswer::Malformed),
    ];
    for (what, packet, error) in cases {
        assert_eq!(read_with(packet, "www.a.example", rtype::A, false).result, Err(*error), "{what}");
    }
    let cased = response("WwW.a.eXample", rtype::A, &[a("www.a.example")], &[]);
    assert_eq!(read(&cased, "www.a.example", rtype::A).counts(), (1, 0));
}

#[test]
fn malformed_data_of_what_would_be_kept_is_no_answer() {
    let of = |rtype: u16, data: &[u8]| response("www.a.example", rtype, &[record(&[0xc0, 12], rtype, 9, data)], &[]);
    let root_then = |rest: &[u8]| [&[0, 1, 0], rest].concat();
    #[rustfmt::skip]
    let cases: &[(&str, u16, Vec<u8>)] = &[
        ("A of 3",                rtype::A,     vec![1, 2, 3]),
        ("AAAA of 4",             rtype::AAAA,  vec![1; 4]),
        ("NS cut",                NS,           vec![3, b'n', b's']),
        ("NS and more",           NS,           vec![1, b'n', 0, 0]),
        ("NS to itself",          NS,           vec![0xc0, 43]),
        ("NS far ahead",          NS,           vec![0xff, 0xff]),
        ("MX without name",       MX,           vec![0, 1]),
        ("TXT of nothing",        TXT,          vec![]),
        ("TXT cut",               TXT,          vec![2, b'a']),
        ("HTTPS to a pointer",    rtype::HTTPS, vec![0, 1, 0xc0, 12]),
        ("HTTPS without target",  rtype::HTTPS, vec![0, 1]),
        ("HTTPS key cut",         rtype::HTTPS, root_then(&[0])),
        ("HTTPS value cut",       rtype::HTTPS, root_then(&[0, 1, 0, 9, 1])),
        ("HTTPS keys in no order",rtype::HTTPS, root_then(&[0, 3, 0, 0, 0, 1, 0, 0])),
        ("HTTPS key twice",       rtype::HTTPS, root_then(&[0, 5, 0, 0, 0, 5, 0, 0])),
        ("ipv4hint of 5",         rtype::HTTPS, root_then(&[0, 4, 0, 5, 1, 2, 3, 4, 5])),
        ("ipv6hint of 0",         rtype::HTTPS, root_then(&[0, 6, 0, 0])),
        ("mandatory of 1",        rtype::HTTPS, root_then(&[0, 0, 0, 1, 0])),
    ];
    for (what, rtype, data) in cases {
        let result = read_with(&of(*rtype, data), "www.a.example", *rtype, false).result;
        assert_eq!(result, Err(BadAnswer::Malformed), "{what}");
    }
}

#[test]
fn service_records_show_targets_and_hints() {
    let v6 = Ipv6Addr::LOCALHOST.octets();
    let answers = [
        https("www.a.example", "Svc.example", &[(1, b"\x02h2"), (4, &[192, 0, 2, 1, 192, 0, 2, 2]), (6, &v6)]),
        https("www.a.example", "", &[(5, b"ech"), (65000, b"?")]),
    ];
    let answer = read(&response("www.a.example", rtype::HTTPS, &answers, &[]), "www.a.example", rtype::HTTPS);
    assert_eq!(names(&answer), ["svc.example"]);
    let addresses: Vec<String> = answer.addresses().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.1", "192.0.2.2", "::1"]);
    assert!(answer.has_ech());
}

#[test]
fn ech_goes_and_the_demand_for_it_too() {
    let all: [(u16, &[u8]); 4] = [(0, &[0, 1, 0, 5]), (1, b"\x02h2"), (5, b"key"), (6, &[0; 16])];
    let only: [(u16, &[u8]); 2] = [(0, &[0, 5]), (5, b"key")];
    let answers = [
        cname("www.a.example", "b.example"),
        https("b.example", "t.example", &all),
        https("b.example", "", &only),
        https("b.example", "u.example", &[(1, b"\x02h2")]),
    ];
    let question = ("www.a.example", rtype::HTTPS);
    let errors = opt(1232, 0, 0, &option(15, &[0, 9, b'e']));
    let packet = message(0x81a0, question, [&answers, &[], &[errors]]);
    let asked = DomainName::from_wire(&name(question.0)).unwrap();
    let asked = Asked { name: asked.as_name(), qtype: rtype::HTTPS, qclass: CLASS_IN, dnssec_ok: false };
    let answer = Answer::read(&packet, &asked).unwrap();
    let without = answer.without_ech(&asked).unwrap();
    assert!(answer.has_ech() && answer.is_authentic());
    assert!(!without.has_ech() && !without.is_authentic());
    assert_eq!(
        (without.ttl(), without.aliases(), without.addresses()),
        (answer.ttl(), answer.aliases(), answer.addresses())
    );
    assert_eq!(without.errors().collect::<Vec<_>>(), answer.errors().collect::<Vec<_>>());
    let expected = [
        cname("www.a.example", "b.example"),
        https("b.example", "t.example", &[(0, &[0, 1]), (1, b"\x02h2"), (6, &[0; 16])]),
        https("b.example", "", &[]),
        https("b.example", "u.example", &[(1, b"\x02h2")]),
    ];
    let expected = read(&response(question.0, question.1, &expected, &[]), question.0, question.1);
    assert_eq!(without.body(), expected.body());
}

#[test]
fn compressed_names_in_data_stay_whole_and_unknown_types_stay_as_they_are() {
    // Behind the question (12 + 15 + 4 bytes): a planted record whose data holds a name others point into.
    let planted_data = 12 + 15 + 4 + name("planted.example").len() + 10;
    let pointer = |offset: usize| (0xc000 | u16::try_from(offset).unwrap()).to_be_bytes().to_vec();
    let planted = record(&name("planted.example"), NS, 9, &name("ns.Deep.example"));
    let deep = pointer(planted_data + 3);
    #[rustfmt::skip]
    let cases: &[(&str, u16, Vec<u8>, Vec<u8>)] = &[
        ("NS",      NS,  [b"\x01x".to_vec(), deep.clone()].concat(),                        name("x.Deep.example")),
        ("MX",      MX,  [vec![0, 9], deep.clone()].concat(),                               [vec![0, 9], name("Deep.example")].concat()),
        ("SRV",     33,  [vec![0, 1, 0, 2, 0, 3], deep.clone()].concat(),                   [vec![0, 1, 0, 2, 0, 3], name("Deep.example")].concat()),
        ("NAPTR",   35,  [b"\0\x01\0\x02\x01s\0\0".to_vec(), deep.clone()].concat(),        [b"\0\x01\0\x02\x01s\0\0".to_vec(), name("Deep.example")].concat()),
        ("RP",      17,  [deep.clone(), deep.clone()].concat(),                             [name("Deep.example"), name("Deep.example")].concat()),
        ("unknown", 999, [b"\x01x".to_vec(), deep.clone()].concat(),                        [b"\x01x".to_vec(), deep.clone()].concat()),
        ("empty",   999, vec![],                                                            vec![]),
    ];
    for (what, rtype, data, whole) in cases {
        let packet = response("www.a.example", *rtype, &[planted.clone(), record(&[0xc0, 12], *rtype, 9, data)], &[]);
        let answer = read(&packet, "www.a.example", *rtype);
        assert_eq!(answer.counts(), (1, 0), "{what}");
        assert_eq!(answer.body(), record(&[0xc0, 12], *rtype, 9, whole), "{what}");
    }
}

#[test]
fn what_the_upstream_says_in_its_opt_is_kept_within_bounds() {
    let long = [&[0, 22][..], "ä".repeat(200).as_bytes()].concat();
    let cookie = option(10, &[1; 8]);
    let options = [cookie, option(15, &[0, 9, b'x']), option(15, &long), option(15, &[0, 1]).repeat(5)].concat();
    let packet = message(0x8182, ("www.a.example", 1), [&[], &[], &[opt(1232, 0, 0, &options)]]);
    let answer = read(&packet, "www.a.example", 1);
    let errors: Vec<_> = answer.errors().map(|error| (error.code, error.text.len())).collect();
    assert_eq!(errors, [(9, 1), (22, 256), (1, 0), (1, 0)]);
    let mut badcookie = opt(1232, 0, 0, &[]);
    badcookie[5] = 1;
    let packet = message(0x8187, ("www.a.example", 1), [&[], &[], &[badcookie.clone()]]);
    assert_eq!(read(&packet, "www.a.example", 1).rcode(), Rcode(23));
    for additional in [vec![badcookie.clone(), badcookie.clone()], vec![opt(1, 0, 0, &[0, 15, 0, 1, 0])]] {
        let packet = message(0x8180, ("www.a.example", 1), [&[], &[], &additional]);
        assert_eq!(read_with(&packet, "www.a.example", 1, false).result, Err(BadAnswer::Malformed));
    }
}

#[test]
fn nothing_of_a_truncated_answer_is_used() {
    let whole = message(0x8380, ("www.a.example", 1), [&[a("www.a.example")], &[], &[]]);
    for packet in [&whole[..], &whole[..whole.len() - 3]] {
        let answer = read(packet, "www.a.example", 1);
        assert!(answer.is_truncated() && answer.body().is_empty() && answer.ttl().is_none());
        assert!(delivered(&answer, "www.a.example", 1, 0).metadata.truncation);
    }
}

#[test]
fn the_longest_name_has_an_answer() {
    let longest = longest_name();
    let packet = response(&longest, 1, &[a(&longest), cname("x.example", &longest)], &[]);
    assert_eq!(lines(&read(&packet, &longest, 1), &longest, 1), [format!("{longest}. A 192.0.2.1")]);
    let longer = cname("www.a.example", &format!("{longest}d"));
    assert_eq!(read_answers(&[longer]), Err(BadAnswer::Malformed));
}

/// Reads as [`read_with`] does, and tells what it cost.
fn cost(packet: &[u8], text: &str, qtype: u16) -> (Result<Answer, BadAnswer>, u32) {
    let asked = DomainName::from_wire(&name(text)).unwrap();
    let mut steps = Steps::new();
    let asked = Asked { name: asked.as_name(), qtype, qclass: CLASS_IN, dnssec_ok: true };
    (Answer::read_counted(packet, &asked, false, &mut steps), steps.spent())
}

#[test]
fn the_largest_honest_answer_takes_under_half_of_the_steps() {
    // Every record points at an owner of six labels; 4,000 of them fill 64 KiB.
    let text = "a.rather.long.name.of.example";
    let address = record(&[0xc0, 12], rtype::A, 9, &[192, 0, 2, 1]);
    let (answer, steps) = cost(&response(text, rtype::A, &vec![address; 4000], &[]), text, rtype::A);
    assert_eq!(answer.unwrap().addresses().len(), 4000);
    assert!(steps < packet::MAX_STEPS / 2, "{steps}");
}

#[test]
fn a_bomb_of_pointers_or_labels_is_put_down() {
    // A ladder of pointers, each to the one before and the first to a root, that every owner climbs down.
    let start = 12 + u16::try_from(name("a.example").len()).unwrap() + 4 + 12;
    let rung = |index: u16| 0xc000 | (start + 1 + 2 * index);
    let pointers = (0..8000).map(|index: u16| index.checked_sub(1).map_or(0xc000 | start, rung));
    let ladder: Vec<u8> = [0].into_iter().chain(pointers.flat_map(u16::to_be_bytes)).collect();
    let mut answers = vec![record(&[0xc0, 12], 999, 9, &ladder)];
    answers.extend(vec![record(&rung(7999).to_be_bytes(), NS, 9, &[0]); 3000]);
    let one = response("a.example", NS, &answers[..2], &[]);
    assert!(cost(&one, "a.example", NS).1 > 8000, "the ladder is climbed");
    let (result, steps) = cost(&response("a.example", NS, &answers, &[]), "a.example", NS);
    assert_eq!(result, Err(BadAnswer::TooMuchWork));
    assert!(steps <= packet::MAX_STEPS);

    // Names of 127 labels, each compared to its end.
    let long = "a.".repeat(120) + "example";
    let alias = record(&[0xc0, 12], rtype::CNAME, 9, &[0xc0, 14]);
    let many: Vec<_> = [alias].into_iter().chain(vec![record(&[0xc0, 12], NS, 9, &[0xc0, 14]); 4000]).collect();
    let (result, steps) = cost(&response(&long, rtype::ANY, &many, &[]), &long, rtype::ANY);
    assert_eq!(result, Err(BadAnswer::TooMuchWork));
    assert!(steps <= packet::MAX_STEPS);
}

#[test]
fn names_that_unfold_past_a_message_are_too_large() {
    // SRV targets are written out: 2,000 pointers to a name of 255 bytes are half a megabyte.
    let longest = longest_name();
    let service = record(&[0xc0, 12], 33, 9, &[0, 1, 0, 1, 0, 1, 0xc0, 12]);
    let (result, _) = cost(&response(&longest, 33, &vec![service; 2000], &[]), &longest, 33);
    assert_eq!(result, Err(BadAnswer::TooLarge));
}

prop_compose! {
    /// A record of the small world below; its data may point into the question or at the record before.
    fn any_record()(
        owner in 0..6_usize,
        rtype in prop::sample::select(vec![1_u16, 2, 5, 5, 6, 12, 15, 16, 28, 33, 35, 39, 46, 47, 64, 65, 999]),
        target_index in 0..6_usize,
        ttl in any::<u32>(),
        compressed in any::<bool>(),
    ) -> Vec<u8> {
        const NAMES: [&str; 6] = ["www.a.example", "a.example", "b.example", "x.b.example", "C.example", "d.c.example"];
        let owner = if owner == 0 && compressed { vec![0xc0, 12] } else { name(NAMES[owner]) };
        let target = match (compressed, target_index) {
            (true, 0) => vec![0xc0, 12],
            (true, 1) => vec![0xc0, 16],
            _ => name(NAMES[target_index]),
        };
        let plain = name("t.example");
        let data = match rtype {
            1 => vec![192, 0, 2, 1],
            28 => vec![0x20; 16],
            6 => [target, plain, [0, 0, 0, 9].repeat(5)].concat(),
            15 => [vec![0, 1], target].concat(),
            16 => b"\x01x\x00".to_vec(),
            33 => [vec![0, 1, 0, 1, 0, 1], target].concat(),
            35 => [b"\0\x01\0\x02\x01s\0\0".to_vec(), target].concat(),
            46 => [vec![0, 1, 13, 2], vec![0; 14], plain, vec![7; 8]].concat(),
            47 => [plain, vec![0, 1, 0x40]].concat(),
            64 | 65 => [vec![0, 1], plain, option(4, &[192, 0, 2, 9]), option(5, b"ech")].concat(),
            999 => vec![0xc0, 0xc0, 1],
            // A server may not compress it, and hickory would show bytes.
            39 => name(NAMES[target_index]),
            _ => target,
        };
        record(&owner, rtype, ttl, &data)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn every_kept_record_is_one_of_the_originals_with_its_ttl_aged(
        answers in prop::collection::vec(any_record(), 0..10),
        authorities in prop::collection::vec(any_record(), 0..4),
        qtype in prop::sample::select(vec![1_u16, 2, 5, 15, 16, 28, 33, 65, 255]),
        seconds in prop::sample::select(vec![0_u32, 1, 3600, u32::MAX]),
    ) {
        let packet = response("www.a.example", qtype, &answers, &authorities);
        let original = Message::from_vec(&packet).unwrap();
        let Ok(answer) = read_with(&packet, "www.a.example", qtype, true).result else { return Ok(()) };
        let delivered = delivered(&answer, "www.a.example", qtype, seconds);
        prop_assert!(delivered.answers.len() <= original.answers.len() + MAX_ALIASES);
        let is_of = |record: &HickoryRecord, other: &HickoryRecord, longest: u32| {
            let ttl = if other.ttl > i32::MAX.unsigned_abs() { 0 } else { other.ttl.min(longest) };
            let same = other.name == record.name && other.data == record.data;
            same && record.ttl == ttl.saturating_sub(seconds)
        };
        for record in &delivered.answers {
            let kept = original.answers.iter().any(|other| is_of(record, other, u32::MAX));
            // The one record that is ours: a CNAME that a DNAME makes.
            let made = matches!(&record.data, RData::CNAME(target) if names(&answer).contains(&plain(&target.0)));
            prop_assert!(kept || made, "{record}");
        }
        for record in &delivered.authorities {
            let kept = original.authorities.iter().any(|other| {
                let minimum = if let RData::SOA(soa) = &other.data { soa.minimum } else { u32::MAX };
                is_of(record, other, minimum)
            });
            prop_assert!(kept, "{record}");
        }
    }

    #[test]
    fn a_mutated_answer_never_panics_and_what_is_kept_of_it_can_be_read(
        answers in prop::collection::vec(any_record(), 0..8),
        authorities in prop::collection::vec(any_record(), 0..4),
        qtype in prop::sample::select(vec![1_u16, 2, 5, 6, 12, 15, 16, 28, 33, 35, 39, 46, 64, 65, 255, 999]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let errors = opt(1232, 0, 0, &option(15, &[0, 9, b'x']));
        let mut packet = message(0x8180, ("www.a.example", qtype), [&answers, &authorities, &[errors]]);
        for (index, byte) in changes {
            // Past the question, where the rest is still looked at.
            let at = 31 + index.index(packet.len() - 31);
            packet[at] = byte;
        }
        if let Some(cut) = cut {
            packet.truncate(cut.index(packet.len()));
        }
        let Read { asked, qtype, result } = read_with(&packet, "www.a.example", qtype, true);
        let Ok(answer) = result else { return Ok(()) };
        // It is its own fixed point: read again, nothing is missed and nothing more is found.
        let asked = Asked { name: asked.as_name(), qtype, qclass: CLASS_IN, dnssec_ok: true };
        let again = Answer::read(&answer.as_packet(&asked), &asked).unwrap();
        prop_assert_eq!(&again.body, &answer.body);
        prop_assert_eq!(&again.addresses, &answer.addresses);
        // hickory refuses empty data of any type, and some types' data we copy unread.
        if Message::from_vec(&packet).is_ok() {
            delivered(&answer, "www.a.example", qtype, 0);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(tail in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut packet = response("www.a.example", 255, &[], &[]);
        packet[7] = 9;
        packet.extend(tail);
        let _ = read_with(&packet, "www.a.example", 255, true);
    }
}
