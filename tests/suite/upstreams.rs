//! Upstreams that die, come back, keep silent, lie, or are ourselves, as a client of the whole daemon sees it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        RData, RecordType,
        rdata::{
            A,
            opt::{EdnsCode, EdnsOption},
        },
    },
};
use nix::sys::signal::Signal;

use crate::support::{
    client::{Ask, ask, is_met_with_silence, receive},
    daemon::{Daemon, PATIENCE, wait_for},
    load::{ADDRESS, Load, address_of, upstream_for_all},
    nameserver::Nameserver,
    upstream::Upstream,
};

/// Soon enough for a client that waits: its own patience is five seconds.
const SERVFAIL_WITHIN: Duration = Duration::from_secs(3);

fn start(servers: &[&Upstream], more: &str) -> Daemon {
    let servers: Vec<_> = servers.iter().map(|server| server.uri()).collect();
    Daemon::start(&format!("{more}\n[listen]\nLISTEN\n[upstream]\nservers = {servers:?}\n"))
}

fn a(name: &str) -> Ask {
    ask(name, RecordType::A)
}

/// The codes of the extended errors.
fn extended_errors(reply: &Message) -> Vec<u16> {
    let options = reply.edns.iter().flat_map(|edns| edns.options().as_ref());
    let codes = options.filter_map(|(code, option)| match (code, option) {
        (EdnsCode::Unknown(15), EdnsOption::Unknown(_, bytes)) => Some(u16::from_be_bytes([bytes[0], bytes[1]])),
        _ => None,
    });
    codes.collect()
}

#[test]
fn killing_one_of_two_servers_costs_no_answer() {
    let (first, second) = (upstream_for_all(), upstream_for_all());
    let daemon = start(&[&first, &second], "");
    let load = Load::on(daemon.dns());
    load.go_on_for(50);
    drop(first);
    load.go_on_for(100);
    let (wrong, asked) = load.end();
    assert!(wrong.is_empty(), "{} of {asked}: {wrong:?}", wrong.len());
}

#[test]
fn with_all_servers_gone_a_failure_comes_soon_and_so_does_recovery_and_old_answers_help_out() {
    let short = || Upstream::start(|question, _| Some(address_of(question, 1).to_vec().unwrap()));
    let (first, second) = (short(), short());
    let daemon = start(&[&first, &second], "");
    assert_eq!(a("old.example").udp(daemon.dns()).metadata.response_code, ResponseCode::NoError);
    let address = first.address();
    drop((first, second));
    // The answer's own second.
    thread::sleep(Duration::from_millis(1100));

    for ask in [Ask::udp, Ask::tcp] {
        let began = Instant::now();
        let reply = ask(&a("new.example"), daemon.dns());
        assert!(began.elapsed() < SERVFAIL_WITHIN, "{:?}", began.elapsed());
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        assert!(matches!(extended_errors(&reply)[..], [22 | 23]), "{:?}", extended_errors(&reply));
    }
    let reply = a("old.example").udp(daemon.dns());
    assert_eq!((reply.metadata.response_code, extended_errors(&reply)), (ResponseCode::NoError, vec![3]));
    assert_eq!((&reply.answers[0].data, reply.answers[0].ttl <= 30), (&ADDRESS, true), "RFC 8767 section 4");
    let blocked = a("connect.ngrok-agent.com").udp(daemon.dns());
    assert_eq!(blocked.metadata.response_code, ResponseCode::NXDomain, "refusing needs nobody");

    let _back = Upstream::start_at(address, |question, _| Some(address_of(question, 1).to_vec().unwrap()));
    let began = Instant::now();
    wait_for("recovery", || {
        let reply = a("new.example").udp(daemon.dns());
        (reply.metadata.response_code == ResponseCode::NoError).then_some(())
    });
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn a_failure_is_remembered_for_a_moment_and_no_longer() {
    let upstream = upstream_for_all();
    let daemon = start(&[&upstream], "");
    upstream.silence(true);
    let reply = a("a.example").udp(daemon.dns());
    assert_eq!((reply.metadata.response_code, extended_errors(&reply)), (ResponseCode::ServFail, vec![22]));
    let (asked, failed) = (upstream.asked().len(), Instant::now());
    let reply = a("a.example").udp(daemon.dns());
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    if failed.elapsed() < Duration::from_secs(1) {
        assert_eq!(upstream.asked().len(), asked, "nobody is asked again within a second");
    }
    upstream.silence(false);
    wait_for("an answer", || {
        (a("a.example").udp(daemon.dns()).metadata.response_code == ResponseCode::NoError).then_some(())
    });
    // RFC 9520 section 3.2: five minutes at most, and here so that nobody notices; the rest is the server's recovery.
    assert!(failed.elapsed() < Duration::from_secs(10), "{:?}", failed.elapsed());
}

#[test]
fn zones_go_to_their_own_servers_and_a_dead_zone_slows_nobody_else() {
    let (everything, corp) = (upstream_for_all(), upstream_for_all());
    let zone = format!("[[upstream.zones]]\nzones = [\"corp.example\"]\nservers = [\"{}\"]\n", corp.uri());
    let config = format!("[listen]\nLISTEN\n[upstream]\nservers = [\"{}\"]\n{zone}", everything.uri());
    let daemon = Daemon::start(&config);
    assert_eq!(a("host.corp.example").udp(daemon.dns()).metadata.response_code, ResponseCode::NoError);
    assert_eq!(a("host.notcorp.example").udp(daemon.dns()).metadata.response_code, ResponseCode::NoError);
    assert_eq!(corp.asked(), [("host.corp.example".to_owned(), "A".to_owned())]);
    assert_eq!(everything.asked(), [("host.notcorp.example".to_owned(), "A".to_owned())]);

    corp.silence(true);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(daemon.dns()).unwrap();
    for number in 0..50 {
        socket.send(&a(&format!("n{number}.corp.example")).bytes()).unwrap();
    }
    wait_for("questions at the dead server", || (corp.asked().len() > 10).then_some(()));
    let began = Instant::now();
    for number in 0..20 {
        let reply = a(&format!("n{number}.example")).udp(daemon.dns());
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(everything.asked().iter().all(|(name, _)| !name.ends_with(".corp.example")), "nothing leaks out");
}

#[test]
fn two_daemons_that_name_each_other_find_it_out_refuse_and_say_it_once() {
    let placeholder = upstream_for_all();
    let first = start(&[&placeholder], "");
    let config = |server: SocketAddr| format!("[listen]\nLISTEN\n[upstream]\nservers = [\"udp://{server}\"]\n");
    let second = Daemon::start(&config(first.dns()));
    first.rewrite(&config(second.dns()));
    first.signal(Signal::SIGHUP);
    // Whichever finds it first breaks it, and the other has none to find.
    wait_for("one to find the loop", || {
        let _ = a("loop.example").udp(first.dns());
        [&first, &second].iter().any(|daemon| daemon.log().contains("forwards our questions back to us")).then_some(())
    });
    let began = Instant::now();
    for number in 0..5 {
        let reply = a(&format!("n{number}.example")).udp(first.dns());
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }
    assert!(began.elapsed() < SERVFAIL_WITHIN, "{:?}", began.elapsed());
    for daemon in [&first, &second] {
        assert!(daemon.log().matches("forwards our questions back to us").count() <= 1, "{}", daemon.log());
    }
    first.rewrite(&format!("[listen]\nLISTEN\n[upstream]\nservers = [\"udp://{}\"]\n", first.dns()));
    let output = first.command(&["reload"]);
    assert_eq!(output.status.code(), Some(3));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("is this daemon itself"), "{errors}");
}

#[test]
fn questions_leave_from_many_ports_far_apart() {
    let upstream = Nameserver::with_address(Ipv4Addr::new(192, 0, 2, 1));
    let config = format!("[listen]\nLISTEN\n[upstream]\nservers = [\"udp://{}\"]\n", upstream.address());
    let daemon = Daemon::start(&config);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(daemon.dns()).unwrap();
    for round in 0..60 {
        for number in 0..50 {
            socket.send(&a(&format!("n{round}-{number}.example")).bytes()).unwrap();
        }
        for _ in 0..50 {
            receive(&socket, PATIENCE).expect("an answer is missing");
        }
    }
    let asked = upstream.asked();
    let ports: BTreeSet<_> = asked.iter().filter(|asked| !asked.tcp).map(|asked| asked.from.port()).collect();
    let (lowest, highest) = (ports.first().unwrap(), ports.last().unwrap());
    assert!(asked.len() >= 3000, "{}", asked.len());
    assert!(ports.len() >= 500 && highest - lowest >= 16_000, "{} ports, {lowest} to {highest}", ports.len());
}

#[test]
fn equal_questions_in_flight_are_one() {
    let upstream = upstream_for_all();
    let daemon = start(&[&upstream], "");
    upstream.silence(true);
    let sockets: Vec<_> = (0..40).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for socket in &sockets {
        socket.connect(daemon.dns()).unwrap();
        socket.send(&a("same.example").bytes()).unwrap();
    }
    for socket in &sockets {
        let reply = Message::from_vec(&receive(socket, PATIENCE).unwrap()).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }
    let packets = upstream.asked().len();
    assert!((1..=8).contains(&packets), "{packets}: one question and its repetitions");
}

#[test]
fn who_has_enough_waiting_gets_silence_for_more_and_others_are_served() {
    let upstream = Upstream::start(|question, _| {
        let is_slow = question.queries[0].name().to_ascii().starts_with("slow");
        (!is_slow).then(|| address_of(question, 60).to_vec().unwrap())
    });
    let daemon = start(&[&upstream], "[limits]\nwaiting-per-client = 5\n");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(daemon.dns()).unwrap();
    for number in 0..5 {
        socket.send(&a(&format!("slow{number}.example")).bytes()).unwrap();
    }
    wait_for("all five at the server", || {
        let names: BTreeSet<_> = upstream.asked().into_iter().map(|(name, _)| name).collect();
        (names.len() == 5).then_some(())
    });
    assert!(is_met_with_silence(daemon.dns(), &a("more.example").bytes()));
    assert_eq!(a("more.example").tcp(daemon.dns()).metadata.response_code, ResponseCode::ServFail);
    assert!(upstream.asked().iter().all(|(name, _)| name != "more.example"), "it was asked about none of them");
    let other = UdpSocket::bind("127.0.0.2:0").unwrap();
    other.connect(daemon.dns()).unwrap();
    other.send(&a("other.example").bytes()).unwrap();
    let reply = Message::from_vec(&receive(&other, PATIENCE).unwrap()).unwrap();
    assert_eq!(reply.answers[0].data, ADDRESS);
    // What waited is told in the end, and then there is room again.
    for _ in 0..5 {
        receive(&socket, PATIENCE).unwrap();
    }
    assert_eq!(a("more.example").udp(daemon.dns()).answers[0].data, ADDRESS);
}

#[test]
fn what_is_no_reply_to_the_question_never_gets_through() {
    const FORGED: RData = RData::A(A::new(203, 0, 113, 66));
    let upstream = Upstream::start(|question, is_tcp| {
        let name = question.queries[0].name().to_ascii();
        let mut reply = address_of(question, 60);
        if is_tcp && !name.contains("always") {
            return Some(reply.to_vec().unwrap());
        }
        if let Some(answer) = reply.answers.first_mut() {
            answer.data = FORGED;
        }
        if name.starts_with("id") {
            reply.metadata.id = reply.metadata.id.wrapping_add(1);
        } else if name.starts_with("question") {
            let other = "other.example.".parse().unwrap();
            reply.queries[0].set_name(other);
        } else if name.starts_with("type") {
            reply.queries[0].set_query_type(RecordType::AAAA);
        } else if name.starts_with("echo") {
            return Some(question.to_vec().unwrap());
        } else if name.starts_with("garbage") {
            return Some(b"\x00\x01garbage that is longer than a header".to_vec());
        } else {
            return Some(address_of(question, 60).to_vec().unwrap());
        }
        Some(reply.to_vec().unwrap())
    });
    let daemon = start(&[&upstream], "");
    for kind in ["id", "question", "type", "echo", "garbage"] {
        for way in ["always", "udp"] {
            let reply = a(&format!("{kind}.{way}.example")).udp(daemon.dns());
            assert!(reply.answers.iter().all(|answer| answer.data != FORGED), "{kind} {way}: {reply}");
            let expected = if way == "udp" { ResponseCode::NoError } else { ResponseCode::ServFail };
            assert_eq!(reply.metadata.response_code, expected, "{kind} {way}");
        }
    }
    assert_eq!(a("honest.example").udp(daemon.dns()).answers[0].data, ADDRESS);
}
