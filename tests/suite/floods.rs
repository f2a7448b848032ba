//! Much of anything: connections, unique names, damaged answers, packets made to be expensive. Judged by counts,
//! processor time and memory, which a busy machine does not change.

use std::{
    collections::HashMap,
    io::Write as _,
    net::{SocketAddr, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::RecordType,
};

use crate::support::{
    client::{Ask, ask, connect_from, read_frame, receive, write_frame},
    daemon::{Daemon, PATIENCE, wait_for},
    dice::Dice,
    load::upstream_for_all,
    nameserver::{Nameserver, Say},
};

const BLOCKED: &str = "connect.ngrok-agent.com";

fn config(server: SocketAddr, more: &str) -> String {
    format!("{more}\n[listen]\nLISTEN\n[upstream]\nservers = [\"udp://{server}\"]\n")
}

fn is_refused(daemon: &Daemon) -> bool {
    ask(BLOCKED, RecordType::A).udp(daemon.dns()).metadata.response_code == ResponseCode::NXDomain
}

fn socket_to(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket
}

fn mebibytes_since(daemon: &Daemon, before: u64) -> u64 {
    daemon.memory().saturating_sub(before) >> 20
}

/// Asks all of `asks`, `window` at a time over one socket; every reply, checked against its question.
fn ask_all(socket: &UdpSocket, asks: impl IntoIterator<Item = Ask>, window: usize) -> Vec<Message> {
    let mut asks = asks.into_iter();
    let (mut waiting, mut replies, mut next_id) = (HashMap::new(), Vec::new(), 0_u16);
    loop {
        while waiting.len() < window
            && let Some(ask) = asks.next()
        {
            // Ids by chance would meet.
            next_id = next_id.wrapping_add(1);
            let ask = ask.with(|message| message.metadata.id = next_id);
            socket.send(&ask.bytes()).unwrap();
            waiting.insert(next_id, ask);
        }
        if waiting.is_empty() {
            return replies;
        }
        let reply = receive(socket, PATIENCE).unwrap_or_else(|| panic!("{} have no reply", waiting.len()));
        let ask = waiting.remove(&u16::from_be_bytes([reply[0], reply[1]])).expect("one reply to one question");
        replies.push(ask.check(&reply));
    }
}

#[test]
fn five_thousand_damaged_answers_of_an_upstream_are_survived_and_never_passed_on() {
    const DAMAGED: usize = 5000;
    let (dice, damaged) = (Mutex::new(Dice(0xda4a)), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&damaged);
    let upstream = Nameserver::start(move |asked| {
        let mut reply = asked.address([192, 0, 2, 1].into());
        let mut dice = dice.lock().unwrap();
        // Over TCP seldom, or the server would be left alone for its failures and damage no more.
        if asked.name.starts_with('n') && (!asked.tcp || dice.below(20) == 0) {
            dice.mutate(&mut reply);
            counted.fetch_add(1, Ordering::Relaxed);
        }
        vec![Say::Here(reply)]
    });
    let daemon = Daemon::start(&config(upstream.address(), ""));
    let socket = socket_to(daemon.dns());
    let (mut memory, mut round, mut answered) = (0, 0, 0);
    while damaged.load(Ordering::Relaxed) < DAMAGED {
        assert!(round < 4 * DAMAGED, "only {} answers were wanted", damaged.load(Ordering::Relaxed));
        let asks = (round..round + 500).map(|number| ask(&format!("n{number}.example"), RecordType::A));
        let replies = ask_all(&socket, asks, 50);
        answered += replies.iter().filter(|reply| reply.metadata.response_code == ResponseCode::NoError).count();
        assert!(is_refused(&daemon));
        if round == 1000 {
            memory = daemon.memory();
        }
        round += 500;
    }
    assert!(answered > 1000, "{answered} of {round}");
    assert!(memory > 0 && mebibytes_since(&daemon, memory) < 100, "{} MiB", mebibytes_since(&daemon, memory));
    wait_for("an honest answer", || {
        let reply = ask("honest.example", RecordType::A).udp(daemon.dns());
        (reply.metadata.response_code == ResponseCode::NoError).then_some(())
    });
    let (code, log) = daemon.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.lines().count() < 50, "strangers fill the log:\n{log}");
}

#[test]
fn a_hundred_thousand_unique_names_leave_the_hot_ones_answered_and_memory_bounded() {
    const UNIQUE: usize = 100_000;
    let upstream = Nameserver::start(|asked| {
        let address = asked.name.ends_with("hot.example").then(|| asked.address([192, 0, 2, 1].into()));
        vec![Say::Here(address.unwrap_or_else(|| asked.reply(3)))]
    });
    let daemon = Daemon::start(&config(upstream.address(), ""));
    let (socket, hot) = (socket_to(daemon.dns()), |number: usize| format!("n{}.hot.example", number % 20));
    ask_all(&socket, (0..20).map(|number| ask(&hot(number), RecordType::A)), 20);
    let before = daemon.memory();
    // Every tenth is for a hot name.
    let asks = (0..UNIQUE + UNIQUE / 9 + 2).map(|number| {
        let name = if number % 10 == 0 { hot(number / 10) } else { format!("u{number}.torture.example") };
        ask(&name, RecordType::A)
    });
    let replies = ask_all(&socket, asks, 100);
    let (hot, unique): (Vec<_>, Vec<_>) =
        replies.iter().partition(|reply| reply.queries[0].name().to_ascii().contains(".hot."));
    let with =
        |replies: &[&Message], rcode| replies.iter().filter(|reply| reply.metadata.response_code == rcode).count();
    let answered = with(&hot, ResponseCode::NoError);
    assert!(answered * 100 >= hot.len() * 95, "{answered} of {} hot ones", hot.len());
    let denied = with(&unique, ResponseCode::NXDomain);
    assert!(unique.len() >= UNIQUE && denied * 100 >= unique.len() * 99, "{denied} of {}", unique.len());
    assert!(mebibytes_since(&daemon, before) < 150, "{} MiB", mebibytes_since(&daemon, before));
    let again = upstream.asked().iter().filter(|asked| asked.name.ends_with("hot.example")).count();
    assert!(again < 40, "hot names were driven out of the cache: {again} questions for 20");
}

/// Whoever delays answers until they burst gets as many as may wait, and silence for the rest (DNSBomb,
/// CVE-2024-33655).
#[test]
fn of_a_bomb_of_delayed_answers_no_more_go_off_than_may_wait() {
    const CAP: usize = 50;
    let upstream = Nameserver::with_address([192, 0, 2, 1].into());
    let daemon = Daemon::start(&config(upstream.address(), &format!("[limits]\nwaiting-per-client = {CAP}\n")));
    upstream.set_silent(true);
    wait_for("a round in which no wait ended before all was sent", || {
        let (socket, began) = (socket_to(daemon.dns()), Instant::now());
        // In pieces, or the kernel drops what the daemon should have counted.
        let mut replies = 0;
        for piece in 0..20 {
            for number in 0..50 {
                socket.send(&ask(&format!("b{piece}-{number}.example"), RecordType::A).bytes()).unwrap();
            }
            let control = ask(BLOCKED, RecordType::A).bytes();
            socket.send(&control).unwrap();
            while receive(&socket, PATIENCE).expect("the daemon is gone")[..2] != control[..2] {
                replies += 1;
            }
        }
        if began.elapsed() > Duration::from_secs(1) {
            thread::sleep(Duration::from_secs(4));
            return None;
        }
        while receive(&socket, Duration::from_secs(5)).is_some() {
            replies += 1;
        }
        assert!((1..=CAP).contains(&replies), "{replies} answers to 1,000 questions");
        Some(())
    });
}

/// Connections of many clients, 50 each.
fn connections(server: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).map(|number| connect_from(&format!("127.0.1.{}", 1 + number / 50), server)).collect()
}

/// This process holds the other end of each connection.
fn allow_myself_descriptors() {
    let pid = std::process::id().to_string();
    assert!(Command::new("prlimit").args(["--pid", &pid, "--nofile=8192:"]).status().unwrap().success());
}

#[test]
fn five_hundred_clients_of_a_byte_a_second_and_two_thousand_connections_do_not_touch_datagrams() {
    allow_myself_descriptors();
    let upstream = upstream_for_all();
    let daemon = Daemon::start_under(&["prlimit", "--nofile=8192:"], &config(upstream.address(), ""), |_| {});
    assert!(is_refused(&daemon));
    let (before, memory) = (daemon.descriptors(), daemon.memory());
    let mut slow = connections(daemon.dns(), 500);
    let mut idle = Vec::new();
    for (second, byte) in [0, 60, 1, 2].into_iter().enumerate() {
        for stream in &mut slow {
            // It may be closed for its slowness by then.
            let _ = stream.write_all(&[byte]);
        }
        let next = Instant::now() + Duration::from_secs(1);
        if second == 1 {
            idle = connections(daemon.dns(), 1500);
            wait_for("most of them", || (daemon.descriptors() > before + 1000).then_some(()));
        }
        let socket = socket_to(daemon.dns());
        let asks = (0..100).map(|number| {
            let name = if number % 2 == 0 { BLOCKED.to_owned() } else { format!("s{second}n{number}.example") };
            ask(&name, RecordType::A)
        });
        let replies = ask_all(&socket, asks, 10);
        assert!(replies.iter().all(|reply| reply.metadata.response_code != ResponseCode::ServFail));
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    assert!(mebibytes_since(&daemon, memory) < 100, "{} MiB", mebibytes_since(&daemon, memory));
    // All places are taken until one of them is given up.
    wait_for("a place for a new client", || {
        let mut stream = connect_from("127.0.2.1", daemon.dns());
        let _ = stream.set_write_timeout(Some(PATIENCE));
        let packet = ask(BLOCKED, RecordType::A).bytes();
        let framed = [&u16::try_from(packet.len()).unwrap().to_be_bytes(), packet.as_slice()].concat();
        stream.write_all(&framed).ok()?;
        read_frame(&mut stream).map(|_| ())
    });
    drop((slow, idle));
    wait_for("descriptors", || (daemon.descriptors() <= before + 2).then_some(()));
}

#[test]
fn with_128_descriptors_and_400_tcp_clients_datagrams_are_answered_and_nothing_spins() {
    let upstream = upstream_for_all();
    let daemon = Daemon::start_under(&["prlimit", "--nofile=128:128"], &config(upstream.address(), ""), |_| {});
    assert!(is_refused(&daemon));
    let clients = connections(daemon.dns(), 400);
    let socket = socket_to(daemon.dns());
    let asks = (0..200).map(|number| {
        let name = if number % 2 == 0 { BLOCKED.to_owned() } else { format!("n{number}.example") };
        ask(&name, RecordType::A)
    });
    let replies = ask_all(&socket, asks, 10);
    let failed = replies.iter().filter(|reply| reply.metadata.response_code == ResponseCode::ServFail).count();
    assert_eq!(failed, 0, "of 200");
    let used = daemon.ticks();
    thread::sleep(Duration::from_secs(1));
    let used = daemon.ticks() - used;
    assert!(used < 50, "{used} ticks in a second of rest");
    assert!(daemon.descriptors() < 128);
    drop(clients);
    let reply = wait_for("a new client", || {
        let mut stream = connect_from("127.0.2.1", daemon.dns());
        write_frame(&mut stream, &ask(BLOCKED, RecordType::A).bytes());
        read_frame(&mut stream)
    });
    assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, ResponseCode::NXDomain);
}

/// A header with these counts, recursion desired.
fn header(id: u16, counts: [u16; 4]) -> Vec<u8> {
    let mut packet = [id.to_be_bytes(), [1, 0]].concat();
    packet.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    packet
}

/// Makes a packet with an id.
type Bomb = fn(u16) -> Vec<u8>;

/// A question for an A record in IN.
const QUESTION: &[u8] = b"\x03www\x07example\x00\x00\x01\x00\x01";

/// 64 kB of options without content (CVE-2026-41292).
fn many_options(id: u16) -> Vec<u8> {
    let options = [0xff, 0x00, 0, 0].repeat(16_000);
    let length = u16::try_from(options.len()).unwrap().to_be_bytes();
    let opt = [&[0, 0, 41, 4, 208, 0, 0, 0, 0][..], &length, &options].concat();
    [header(id, [1, 0, 0, 1]), QUESTION.to_vec(), opt].concat()
}

/// As many records as go in, each owner a pointer to the record before, so that reading one reads them all
/// (CVE-2024-8508).
fn many_pointers(id: u16) -> Vec<u8> {
    let mut packet = [header(id, [1, 0, 0, 4000]), QUESTION.to_vec()].concat();
    let mut before = 12;
    for _ in 0..4000 {
        let here = packet.len();
        let [high, low] = u16::to_be_bytes(before);
        packet.extend([1, b'x', 0xc0 | high, low, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
        // A pointer reaches 14 bits.
        before = u16::try_from(here).ok().filter(|here| *here < 0x3fff).unwrap_or(before);
    }
    packet
}

/// A name of nothing but pointers that go round.
fn a_loop_of_pointers(id: u16) -> Vec<u8> {
    [header(id, [1, 0, 0, 0]), b"\xc0\x0c\x00\x01\x00\x01".to_vec()].concat()
}

#[test]
fn no_question_made_to_be_expensive_costs_ten_milliseconds() {
    const EACH: u64 = 60;
    let upstream = upstream_for_all();
    let daemon = Daemon::start(&config(upstream.address(), ""));
    assert!(is_refused(&daemon));
    let bombs: [(&str, Bomb); 3] =
        [("options", many_options), ("pointers", many_pointers), ("a loop", a_loop_of_pointers)];
    for (kind, bomb) in bombs {
        let before = daemon.ticks();
        let mut stream = TcpStream::connect(daemon.dns()).unwrap();
        for id in 0..u16::try_from(EACH).unwrap() {
            // Its reader may close instead of answering.
            if id % 20 == 0 {
                stream = TcpStream::connect(daemon.dns()).unwrap();
            }
            write_frame(&mut stream, &bomb(id));
            if let Some(reply) = read_frame(&mut stream) {
                assert_eq!(Message::from_vec(&reply).unwrap().metadata.message_type, MessageType::Response);
            } else {
                stream = TcpStream::connect(daemon.dns()).unwrap();
            }
        }
        let used = daemon.ticks() - before;
        assert!(used < EACH, "{kind}: {used} hundredths of a second for {EACH}");
        assert!(is_refused(&daemon));
    }
}

#[test]
fn no_answer_made_to_be_expensive_costs_ten_milliseconds() {
    const EACH: u64 = 60;
    let upstream = Nameserver::start(|asked| {
        if !asked.tcp && asked.name.ends_with("bomb.example") {
            let mut cut = asked.reply(0);
            cut[2] |= 2;
            return vec![Say::Here(cut)];
        }
        let records: Vec<_> = match asked.name.split('.').nth(1).unwrap_or_default() {
            // One set of 4,000.
            "set" => (0..4000_u16)
                .map(|n| [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 10, 0][..], &n.to_be_bytes()].concat())
                .collect(),
            // Owners that nobody asked for, each of its own (CVE-2023-4408).
            "owners" => (0..2900_u16)
                .map(|n| {
                    let name = format!("{n:05x}");
                    [&[5], name.as_bytes(), &[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 10, 0, 0, 1]].concat()
                })
                .collect(),
            // Aliases that lead on and on, in the order that makes whoever sorts them work most.
            "aliases" => (0..1500_u16)
                .rev()
                .map(|n| {
                    let (own, next) = (format!("{n:05x}"), format!("{:05x}", n + 1));
                    let head = if n == 0 { vec![0xc0, 12] } else { [&[5], own.as_bytes(), &[0xc0, 12]].concat() };
                    [&head[..], &[0, 5, 0, 1, 0, 0, 1, 44, 0, 8, 5], next.as_bytes(), &[0xc0, 12]].concat()
                })
                .collect(),
            _ => return vec![Say::Here(asked.address([192, 0, 2, 1].into()))],
        };
        vec![Say::Here(asked.reply_with(0, &records))]
    });
    let daemon = Daemon::start(&config(upstream.address(), ""));
    assert!(is_refused(&daemon));
    for kind in ["set", "owners", "aliases"] {
        let before = daemon.ticks();
        for number in 0..EACH {
            let reply = ask(&format!("n{number}.{kind}.bomb.example"), RecordType::A).udp(daemon.dns());
            assert!(reply.answers.len() < 100, "a datagram of {} records", reply.answers.len());
        }
        let used = daemon.ticks() - before;
        assert!(used < EACH, "{kind}: {used} hundredths of a second for {EACH}");
        assert!(is_refused(&daemon));
    }
    let asked = upstream.asked();
    for kind in ["set", "owners", "aliases"] {
        let came =
            asked.iter().filter(|asked| asked.tcp && asked.name.ends_with(&format!("{kind}.bomb.example"))).count();
        assert!(came > 0, "no answer about {kind} was ever given");
    }
}
