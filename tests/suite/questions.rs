//! Questions put to the whole daemon: every way to ask for a blocked name, and what others must get.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::{TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        DNSClass, RData, Record, RecordType,
        rdata::{
            A,
            opt::{ClientSubnet, EdnsOption},
        },
    },
};

use crate::support::{
    client::{ask, is_met_with_silence, read_frame, receive, send_tcp, send_udp, write_frame},
    daemon::{Daemon, PATIENCE, wait_for},
    upstream::{Upstream, Zone},
};

const OWN: &str = "[organization]\ningress = [\"connect.acme.example\"]\ncontact = \"netsec@acme.example\"\n";

const ZONE: &str = "
example.org.                      60 IN A     192.0.2.1
many.example.                     60 IN A     192.0.2.1
connect.acme.example.             60 IN CNAME connect.ngrok-agent.com.
connect.ngrok-agent.com.          60 IN A     198.51.100.7
connect.ngrok-agent.com.          60 IN AAAA  2001:db8::7
crl.ngrok-agent.com.              60 IN A     198.51.100.8
tunnel.us.ngrok.com.example.org.  60 IN A     192.0.2.2
notngrok-agent.com.               60 IN A     192.0.2.3
my.example.net.                   60 IN CNAME connect.ngrok-agent.com.
acme.example.                     60 IN CNAME connect.ngrok-agent.com.
";

fn start() -> (Upstream, Daemon) {
    start_with(OWN)
}

fn start_with(config: &str) -> (Upstream, Daemon) {
    let upstream = Upstream::of(Zone::parse(ZONE));
    let daemon =
        Daemon::start(&format!("{config}\n[listen]\nLISTEN\n[upstream]\nservers = [\"{}\"]\n", upstream.uri()));
    (upstream, daemon)
}

#[test]
fn a_blocked_name_is_refused_in_every_way_it_can_be_asked_for_and_leaves_no_trace_upstream() {
    let (upstream, daemon) = start();
    daemon.first_round();
    let own_lookups = upstream.own_lookups();
    let each: BTreeSet<_> = own_lookups.iter().collect();
    assert_eq!((each.len(), own_lookups.len()), (40, 40), "each name of the pack was looked up once, A and AAAA");
    let name = "Connect.EU.ngrok-Agent.com.";
    let base = || ask(name, RecordType::A);
    #[rustfmt::skip]
    let asks = [
        base(), ask("connect.eu.ngrok-agent.com.", RecordType::A), ask(name, RecordType::AAAA),
        ask(name, RecordType::HTTPS), ask(name, RecordType::SVCB), ask(name, RecordType::TXT),
        ask(name, RecordType::ANY), ask(name, RecordType::from(65_280)), ask(name, RecordType::SOA),
        base().class(DNSClass::CH), base().class(DNSClass::ANY), base().class(DNSClass::HS), base().class(DNSClass::NONE),
        base().with(|message| message.metadata.recursion_desired = false),
        base().with(|message| message.metadata.checking_disabled = true),
        base().with(|message| message.metadata.authentic_data = true),
        base().dnssec(), base().plain(),
        base().with(|message| { message.edns.as_mut().unwrap().set_version(9); }),
    ];
    for ask in &asks {
        for reply in [ask.udp(daemon.dns()), ask.tcp(daemon.dns())] {
            let header = &reply.metadata;
            assert_eq!(header.response_code, ResponseCode::NXDomain, "{:?}", ask.message);
            assert!(reply.answers.is_empty() && reply.additionals.is_empty(), "{reply}");
            assert!(header.recursion_available && !header.authentic_data && !header.authoritative);
            assert_eq!(header.recursion_desired, ask.message.metadata.recursion_desired);
            let [soa] = reply.authorities.as_slice() else { panic!("one SOA: {reply}") };
            assert_eq!((soa.record_type(), soa.ttl), (RecordType::SOA, 60));
            assert_eq!(soa.name.to_lowercase(), ask.message.queries[0].name().to_lowercase());
            assert_eq!(reply.edns.is_some(), ask.message.edns.is_some(), "EDNS is answered with EDNS");
            if let Some(edns) = &reply.edns {
                assert!(format!("{edns:?}").contains("Unknown(15)"), "an extended error: {edns:?}");
            }
        }
    }
    assert_eq!(upstream.asked(), [], "nothing went out");
    assert_eq!(upstream.own_lookups(), own_lookups, "nor anything that the daemon had asked for before");
    let attempts = daemon.attempts();
    assert!(attempts.iter().all(|attempt| attempt["decision"] == "blocked" && attempt["rule"] == "ngrok/connect"));
    assert!(!attempts.is_empty());
}

#[test]
fn neighbours_of_blocked_names_and_the_own_ingress_pass_and_an_alias_does_not() {
    let (upstream, daemon) = start();
    #[rustfmt::skip]
    let cases = [
        ("example.org.",                     ResponseCode::NoError,  1),
        ("crl.ngrok-agent.com.",             ResponseCode::NoError,  1),
        ("tunnel.us.ngrok.com.example.org.", ResponseCode::NoError,  1),
        ("notngrok-agent.com.",              ResponseCode::NoError,  1),
        ("connect.acme.example.",            ResponseCode::NoError,  2),
        ("my.example.net.",                  ResponseCode::NXDomain, 0),
    ];
    // The second time from the cache.
    for round in 0..2 {
        for (name, rcode, answers) in cases {
            let reply = ask(name, RecordType::A).udp(daemon.dns());
            assert_eq!((reply.metadata.response_code, reply.answers.len()), (rcode, answers), "{name}, round {round}");
        }
    }
    assert_eq!(upstream.asked().len(), cases.len(), "each was asked once");
    let of =
        |decision: &str| daemon.attempts().into_iter().filter(|one| one["decision"] == decision).collect::<Vec<_>>();
    let [own] = &of("allowed-own")[..] else { panic!("own use is on record once, folded") };
    assert_eq!((&own["question"]["name"], &own["count"]), (&"connect.acme.example".into(), &2.into()));
    let [blocked] = &of("blocked")[..] else { panic!("one refusal is on record") };
    assert_eq!(blocked["evidence"]["alias"], "connect.ngrok-agent.com");
}

#[test]
fn a_name_above_the_own_ingress_that_is_refused_for_its_alias_does_not_deny_the_ingress() {
    let (_upstream, daemon) = start();
    // The second time from the cache.
    for round in 0..2 {
        let reply = ask("acme.example.", RecordType::A).udp(daemon.dns());
        let shown = (reply.metadata.response_code, reply.answers.len(), reply.authorities.len());
        // NXDOMAIN would say that nothing exists below (RFC 8020).
        assert_eq!(shown, (ResponseCode::NoError, 0, 1), "round {round}: {reply}");
    }
}

#[test]
fn what_one_group_may_have_never_leaks_to_another_through_the_cache() {
    let group = "[[clients]]\nname = \"partners\"\nnetworks = [\"127.0.0.2/32\"]\ningress = [\"my.example.net\"]\n";
    let (upstream, daemon) = start_with(&format!("{OWN}{group}"));
    let from = |source: &str| {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        socket.connect(daemon.dns()).unwrap();
        socket.send(&ask("my.example.net.", RecordType::A).bytes()).unwrap();
        Message::from_vec(&receive(&socket, PATIENCE).unwrap()).unwrap().metadata.response_code
    };
    assert_eq!(from("127.0.0.2"), ResponseCode::NoError, "pardoned");
    assert_eq!(from("127.0.0.1"), ResponseCode::NXDomain, "judged afresh");
    assert_eq!(from("127.0.0.2"), ResponseCode::NoError, "still pardoned");
    assert_eq!(upstream.asked().len(), 1, "all from one answer");
}

#[test]
fn answers_to_answers_and_scraps_are_met_with_silence() {
    let (_upstream, daemon) = start();
    let mut response = ask("connect.ngrok-agent.com.", RecordType::A).bytes();
    response[2] |= 0x80;
    for packet in [&response[..], &response[..11], &[0], &[]] {
        assert!(is_met_with_silence(daemon.dns(), packet), "{packet:?}");
    }
}

#[test]
fn odd_packets_get_the_response_code_they_deserve() {
    let (upstream, daemon) = start();
    let plain = ask("example.org.", RecordType::A);
    let changed = |index: usize, value: u8| {
        let mut packet = plain.bytes();
        packet[index] = value;
        packet
    };
    let blocked = ask("connect.ngrok-agent.com.", RecordType::A).bytes();
    let two_questions = {
        let mut packet = blocked.clone();
        packet[5] = 2;
        packet
    };
    let update = plain.clone().with(|message| message.metadata.op_code = OpCode::Update).bytes();
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("NOTIFY",                        changed(2, 0x20),  4),
        ("UPDATE",                        update,            4),
        ("opcode 15",                     changed(2, 0x78),  4),
        ("no question",                   changed(5, 0),     1),
        ("two questions",                 two_questions,     1),
        ("cut in the question",           plain.bytes()[..20].to_vec(), 1),
        ("bytes behind it",               [plain.bytes(), vec![0; 7]].concat(), 1),
        ("class CH",                      plain.clone().class(DNSClass::CH).bytes(), 5),
        ("a zone transfer",               ask("example.org.", RecordType::AXFR).bytes(), 5),
        ("an unknown EDNS version",       plain.clone().with(|message| { message.edns.as_mut().unwrap().set_version(1); }).bytes(), 16),
    ];
    for (case, packet, rcode) in cases {
        let reply = send_udp(daemon.dns(), &packet).unwrap();
        assert_eq!(reply[..2], packet[..2], "{case}");
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(u16::from(reply.metadata.response_code), rcode, "{case}");
    }
    assert_eq!(upstream.asked(), []);
}

#[test]
fn a_large_answer_is_cut_for_a_datagram_and_whole_over_tcp() {
    let upstream = Upstream::start(|question, _| {
        let mut reply = Zone::default().answer(question);
        reply.metadata.response_code = ResponseCode::NoError;
        reply.authorities.clear();
        for host in 0..200 {
            let name = question.queries[0].name().clone();
            reply.answers.push(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, host))));
        }
        Some(reply.to_vec().unwrap())
    });
    let daemon = Daemon::start(&format!("[listen]\nLISTEN\n[upstream]\nservers = [\"{}\"]\n", upstream.uri()));
    for (size, plain) in [(4096, false), (512, false), (1232, false), (0, true)] {
        let question = if plain {
            ask("many.example.", RecordType::A).plain()
        } else {
            ask("many.example.", RecordType::A).with(|message| {
                message.edns.as_mut().unwrap().set_max_payload(size);
            })
        };
        let bytes = send_udp(daemon.dns(), &question.bytes()).unwrap();
        let most = if plain { 512 } else { usize::from(size.clamp(512, 1232)) };
        assert!(bytes.len() <= most, "{} bytes for {size}", bytes.len());
        assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
    }
    assert_eq!(ask("many.example.", RecordType::A).tcp(daemon.dns()).answers.len(), 200);
}

#[test]
fn questions_of_one_connection_are_answered_as_they_become_known() {
    let upstream = Upstream::start(|question, _| {
        let slow = question.queries[0].name().to_ascii().starts_with("slow");
        (!slow).then(|| Zone::parse(ZONE).answer(question).to_vec().unwrap())
    });
    let daemon = Daemon::start(&format!("[listen]\nLISTEN\n[upstream]\nservers = [\"{}\"]\n", upstream.uri()));
    let mut stream = TcpStream::connect(daemon.dns()).unwrap();
    let (slow, fast) = (ask("slow.example.", RecordType::A), ask("example.org.", RecordType::A));
    // Both in one segment.
    let mut both = Vec::new();
    for question in [&slow, &fast] {
        let bytes = question.bytes();
        both.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
        both.extend(bytes);
    }
    stream.write_all(&both).unwrap();
    let first = read_frame(&mut stream).unwrap();
    assert_eq!(first[..2], fast.bytes()[..2], "the one that waits does not hold up the other");
    let second = Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap();
    assert_eq!(second.metadata.response_code, ResponseCode::ServFail);
    write_frame(&mut stream, &fast.bytes());
    assert!(read_frame(&mut stream).is_some(), "the connection stays");
}

#[test]
fn strangers_are_refused_or_met_with_silence_and_only_forwarders_speak_for_others() {
    let limits = |others: &str, forwarders: &str| {
        format!(
            "{OWN}[limits]\nclients = []\nothers = \"{others}\"\nforwarders = [{forwarders}]\n[[clients]]\nname = \"them\"\nnetworks = [\"203.0.113.7/32\"]\n"
        )
    };
    let with_subnet = |name: &str| {
        ask(name, RecordType::A).with(|message| {
            let subnet = EdnsOption::Subnet(ClientSubnet::new("203.0.113.7".parse().unwrap(), 32, 0));
            message.edns.as_mut().unwrap().options_mut().insert(subnet);
        })
    };
    // Loopback may always ask; it is believed only where it is named as a forwarder.
    for (forwarders, group) in [("", serde_json::Value::Null), ("\"127.0.0.1\"", "them".into())] {
        let (upstream, daemon) = start_with(&limits("refused", forwarders));
        assert_eq!(
            with_subnet("connect.ngrok-agent.com.").udp(daemon.dns()).metadata.response_code,
            ResponseCode::NXDomain
        );
        let [attempt] = &daemon.attempts()[..] else { panic!("one attempt") };
        assert_eq!(attempt["group"], group);
        assert_eq!(attempt["via"].is_null(), forwarders.is_empty());
        with_subnet("example.org.").udp(daemon.dns());
        let sent = upstream.messages();
        let message = sent.iter().find(|message| message.queries[0].name().to_ascii() == "example.org.").unwrap();
        assert!(message.edns.as_ref().unwrap().options().as_ref().is_empty(), "nothing of the client is passed on");
    }
}

#[test]
fn a_reply_leaves_from_the_address_that_was_asked_on_a_wildcard_address() {
    let daemon = Daemon::start(
        "[listen]\ndns = [\"0.0.0.0:0\"]\nadmin = \"off\"\n[upstream]\nservers = [\"udp://127.0.0.1:9\"]\n",
    );
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = daemon.dns().port();
    let packet = ask("connect.ngrok-agent.com.", RecordType::A).bytes();
    for host in ["127.0.0.2", "127.0.0.3"] {
        socket.send_to(&packet, (host, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 1500];
        let (_, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from.ip().to_string(), host);
    }
}

#[test]
fn v4_and_v6_udp_and_tcp_answer_alike() {
    let daemon = Daemon::start(
        "[listen]\ndns = [\"127.0.0.1:0\", \"[::1]:0\"]\nadmin = \"off\"\n[upstream]\nservers = [\"udp://127.0.0.1:9\"]\n",
    );
    assert_eq!(daemon.addresses.len(), 2);
    for &address in &daemon.addresses {
        let question = ask("tunnel.us.ngrok.com.", RecordType::AAAA);
        assert_eq!(question.udp(address).to_vec().unwrap(), question.tcp(address).to_vec().unwrap(), "{address}");
    }
}

#[test]
fn an_upstream_that_only_says_servfail_is_as_good_as_none_and_stale_answers_stand_in() {
    let broken = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&broken);
    let upstream = Upstream::start(move |question, _| {
        let mut reply = Message::response(question.metadata.id, OpCode::Query);
        reply.queries = question.queries.clone();
        if seen.load(Ordering::Relaxed) {
            reply.metadata.response_code = ResponseCode::ServFail;
        } else {
            reply.add_answer(Record::from_rdata(question.queries[0].name().clone(), 1, RData::A(A::new(192, 0, 2, 1))));
        }
        Some(reply.to_vec().unwrap())
    });
    let daemon = Daemon::start(&format!("[listen]\nLISTEN\n[upstream]\nservers = [\"{}\"]\n", upstream.uri()));
    let ask = || ask("stale.example.", RecordType::A).udp(daemon.dns());
    assert_eq!(ask().metadata.response_code, ResponseCode::NoError);
    broken.store(true, Ordering::Relaxed);
    wait_for("a stale answer", || {
        let reply = ask();
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 1), "{reply}");
        (reply.answers[0].ttl == 30).then_some(())
    });
}

#[test]
fn a_machine_without_an_upstream_still_refuses_and_says_why_it_cannot_answer() {
    let daemon = Daemon::start("[listen]\nLISTEN\n[upstream]\nservers = [\"udp://127.0.0.1:9\"]\n");
    let blocked = ask("connect.ngrok-agent.com.", RecordType::A).udp(daemon.dns());
    assert_eq!(blocked.metadata.response_code, ResponseCode::NXDomain);
    let other = ask("example.org.", RecordType::A).udp(daemon.dns());
    assert_eq!(other.metadata.response_code, ResponseCode::ServFail);
    assert!(format!("{:?}", other.edns).contains("Unknown(15)"), "an extended error says why: {:?}", other.edns);
}

#[test]
fn an_attempt_is_on_record_at_once_and_a_hundred_repeats_are_one_line() {
    let (_upstream, daemon) = start();
    for _ in 0..100 {
        ask("tunnel.eu.ngrok.com.", RecordType::A).udp(daemon.dns());
    }
    let [attempt] = &daemon.attempts()[..] else { panic!("one line: {:?}", daemon.attempts()) };
    assert_eq!(attempt["rule"], "ngrok/tunnel");
    wait_for("the whole count", || (daemon.attempts()[0]["count"] == 100).then_some(()));
}

#[test]
fn a_name_full_of_hostile_bytes_is_answered_and_does_not_reach_terminal_or_line() {
    let (_upstream, daemon) = start_with(&format!("{OWN}[policy]\nblock = [\".hostile.example\"]\n"));
    let mut packet = vec![0xbe, 0xef, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let label = b"\x1b[31m\"\n\r\0\xff\x80%n'\\";
    packet.push(u8::try_from(label.len()).unwrap());
    packet.extend(label);
    packet.extend(b"\x07hostile\x07example\0\0\x01\0\x01");
    assert_eq!(send_udp(daemon.dns(), &packet).unwrap()[3] & 0xf, 3);
    assert_eq!(send_tcp(daemon.dns(), &packet).unwrap()[3] & 0xf, 3);
    for arguments in [&["attempts"][..], &["attempts", "--json"]] {
        let output = daemon.command(arguments);
        assert!(output.status.success());
        assert!(output.stdout.iter().all(|&byte| byte == b'\n' || (0x20..0x7f).contains(&byte)), "{arguments:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| line.contains("hostile.example")).count();
        assert_eq!(lines, 1, "{text}");
    }
}
